"""ringload: feeds a training loop from a dataset far larger than memory.

Worker processes decode samples straight into a ring of NumPy slots in shared memory; the trainer is lent views of them.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from ringload.errors import (
    AllSlotsLentError,
    BudgetError,
    ClusterLostError,
    ConfigError,
    ContentTooLargeError,
    LoaderClosedError,
    RingloadError,
    SampleError,
    StallError,
    TooManyBadSamplesError,
    UnknownFieldError,
    WorkerDiedError,
)

if TYPE_CHECKING:
    from ringload.bridge.generator import generator_from_df
    from ringload.fields import Field, Worker
    from ringload.insight.check.findings import CheckReport
    from ringload.insight.check.run import check
    from ringload.loader import Loader
    from ringload.order.buckets import Buckets
    from ringload.order.given import Explicit
    from ringload.order.positions import Blocks
    from ringload.order.shares import Balanced
    from ringload.order.weighted import Weighted
    from ringload.protocols import (
        ByteRange,
        ContentStat,
        Observer,
        Order,
        PositionOrder,
        Rows,
        Source,
        Storage,
        Workers,
    )
    from ringload.ring.lease import Batch
    from ringload.ring.plan import Plan
    from ringload.sources.arrays import Arrays
    from ringload.sources.cached import Cached
    from ringload.sources.function import FunctionSource
    from ringload.sources.huggingface import from_huggingface
    from ringload.sources.image_folder import ImageFolder
    from ringload.sources.image_table import ImageFrame
    from ringload.sources.map_dataset import from_dataset
    from ringload.sources.mixed import mix
    from ringload.sources.packed import Packed
    from ringload.sources.parquet import ParquetImages, ParquetTable
    from ringload.sources.parts import Part
    from ringload.sources.stream import Stream
    from ringload.sources.tar_shards import TarShards
    from ringload.sources.tar_stream import TarStream
    from ringload.stats import Stats
    from ringload.storage.fsspec_files import FsspecStorage
    from ringload.storage.http import HttpStorage
    from ringload.storage.object_store import ObjectStorage
    from ringload.storage.registry import register_storage
    from ringload.storage.threaded import ThreadedStorage

__version__ = "0.1.0"

__all__ = [
    "AllSlotsLentError",
    "Arrays",
    "Balanced",
    "Batch",
    "Blocks",
    "Buckets",
    "BudgetError",
    "ByteRange",
    "Cached",
    "CheckReport",
    "ClusterLostError",
    "ConfigError",
    "ContentStat",
    "ContentTooLargeError",
    "Explicit",
    "Field",
    "FsspecStorage",
    "FunctionSource",
    "HttpStorage",
    "ImageFolder",
    "ImageFrame",
    "Loader",
    "LoaderClosedError",
    "ObjectStorage",
    "Observer",
    "Order",
    "Packed",
    "ParquetImages",
    "ParquetTable",
    "Part",
    "Plan",
    "PositionOrder",
    "RingloadError",
    "Rows",
    "SampleError",
    "Source",
    "StallError",
    "Stats",
    "Storage",
    "Stream",
    "TarShards",
    "TarStream",
    "ThreadedStorage",
    "TooManyBadSamplesError",
    "UnknownFieldError",
    "Weighted",
    "Worker",
    "WorkerDiedError",
    "Workers",
    "check",
    "from_dataset",
    "from_huggingface",
    "generator_from_df",
    "mix",
    "register_storage",
]

# Where each name lives: imported when it is first asked for, so that a worker that needs no images imports no decoder.
_HOMES = {
    "Arrays": "ringload.sources.arrays",
    "Balanced": "ringload.order.shares",
    "Batch": "ringload.ring.lease",
    "Blocks": "ringload.order.positions",
    "Buckets": "ringload.order.buckets",
    "ByteRange": "ringload.protocols",
    "Cached": "ringload.sources.cached",
    "CheckReport": "ringload.insight.check.findings",
    "ContentStat": "ringload.protocols",
    "Explicit": "ringload.order.given",
    "Field": "ringload.fields",
    "FsspecStorage": "ringload.storage.fsspec_files",
    "FunctionSource": "ringload.sources.function",
    "HttpStorage": "ringload.storage.http",
    "ImageFolder": "ringload.sources.image_folder",
    "ImageFrame": "ringload.sources.image_table",
    "Loader": "ringload.loader",
    "ObjectStorage": "ringload.storage.object_store",
    "Observer": "ringload.protocols",
    "Order": "ringload.protocols",
    "Packed": "ringload.sources.packed",
    "ParquetImages": "ringload.sources.parquet",
    "ParquetTable": "ringload.sources.parquet",
    "Part": "ringload.sources.parts",
    "Plan": "ringload.ring.plan",
    "PositionOrder": "ringload.protocols",
    "Rows": "ringload.protocols",
    "Source": "ringload.protocols",
    "Stats": "ringload.stats",
    "Storage": "ringload.protocols",
    "Stream": "ringload.sources.stream",
    "TarShards": "ringload.sources.tar_shards",
    "TarStream": "ringload.sources.tar_stream",
    "ThreadedStorage": "ringload.storage.threaded",
    "Weighted": "ringload.order.weighted",
    "Worker": "ringload.fields",
    "Workers": "ringload.protocols",
    "check": "ringload.insight.check.run",
    "from_dataset": "ringload.sources.map_dataset",
    "from_huggingface": "ringload.sources.huggingface",
    "generator_from_df": "ringload.bridge.generator",
    "mix": "ringload.sources.mixed",
    "register_storage": "ringload.storage.registry",
}
_MODULES = {"jax", "keras", "ray", "state", "tf", "torch"}
_FORMER_NAMES = {
    "Closed": "LoaderClosedError",
    "Producer": "Worker",
    "ProducerDied": "WorkerDiedError",
    "Stalled": "StallError",
    "Starved": "AllSlotsLentError",
    "TooManyBad": "TooManyBadSamplesError",
    "UnknownField": "UnknownFieldError",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ringload.{name}")
    if name in _FORMER_NAMES:
        new = _FORMER_NAMES[name]
        warnings.warn(
            f"ringload.{name} is called ringload.{new} now; the old name will go in 0.2", DeprecationWarning, stacklevel=2
        )
        return globals().get(new) or __getattr__(new)
    if name not in _HOMES:
        raise AttributeError(f"module 'ringload' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Without the adapters that are not imported yet: `help(ringload)` would import each framework, or fail for want of one."""
    return [*__all__, *(name for name in sorted(_MODULES) if name in globals())]
