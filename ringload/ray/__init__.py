"""ringload on Ray.

Workers(4)                          for `Loader(workers=...)`: Ray actors, on any node of a cluster, fill the ring
train_loader(source, batch_size)    the loader of a Ray Train worker; `save_state` puts its position into a checkpoint
from_dataset(dataset)               a source of a Ray Data pipeline
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    import ray  # noqa: F401
except ImportError as error:
    raise ImportError(f"ringload.ray needs Ray ({error}): pip install 'ray[data,train]'") from error

if TYPE_CHECKING:
    from ringload.ray.data import from_dataset
    from ringload.ray.train import save_state, train_loader
    from ringload.ray.workers import Workers

__all__ = ["Workers", "from_dataset", "save_state", "train_loader"]

# Where each name lives: imported when it is first asked for, as importing Ray Train or Ray Data takes seconds.
_HOMES = {
    "Workers": "ringload.ray.workers",
    "from_dataset": "ringload.ray.data",
    "save_state": "ringload.ray.train",
    "train_loader": "ringload.ray.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ringload.ray' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
