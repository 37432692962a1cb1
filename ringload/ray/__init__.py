"""ringload on Ray: workers that are Ray actors, on any node of a cluster.

`pip install ringload[ray]`. The core imports nothing of this package, and this package imports Ray when a name of it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringload.ray.workers import Workers

__all__ = ["Workers"]

_HOMES = {"Workers": "ringload.ray.workers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ringload.ray' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
