"""ringload: feeds a training loop from a dataset far larger than memory.

Producer processes decode samples straight into a ring of NumPy slots in shared memory; the trainer is lent views of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ringload.errors import (
    BudgetError,
    Closed,
    ConfigError,
    ProducerDied,
    RingloadError,
    SampleError,
    Stalled,
    Starved,
    TooManyBad,
)

if TYPE_CHECKING:
    from ringload.adapters.generator import generator_from_df
    from ringload.data.arrays import Arrays
    from ringload.data.fields import Field, Producer
    from ringload.data.frame import ImageFolder, ImageFrame
    from ringload.insight.stats import Stats
    from ringload.loader import Loader
    from ringload.ring.lease import Batch
    from ringload.ring.memory import Plan

__version__ = "0.1.0"

__all__ = [
    "Arrays",
    "Batch",
    "BudgetError",
    "Closed",
    "ConfigError",
    "Field",
    "ImageFolder",
    "ImageFrame",
    "Loader",
    "Plan",
    "Producer",
    "ProducerDied",
    "RingloadError",
    "SampleError",
    "Stalled",
    "Starved",
    "Stats",
    "TooManyBad",
    "generator_from_df",
]

# Where each name lives: imported when it is first asked for, so that a producer that needs no images imports no decoder.
_HOMES = {
    "Arrays": "ringload.data.arrays",
    "Batch": "ringload.ring.lease",
    "Field": "ringload.data.fields",
    "ImageFolder": "ringload.data.frame",
    "ImageFrame": "ringload.data.frame",
    "Loader": "ringload.loader",
    "Plan": "ringload.ring.memory",
    "Producer": "ringload.data.fields",
    "Stats": "ringload.insight.stats",
    "generator_from_df": "ringload.adapters.generator",
}
_MODULES = {"jax", "keras", "tf", "torch"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ringload.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'ringload' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
