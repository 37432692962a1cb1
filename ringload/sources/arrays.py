"""Arrays as a source: rows of those in memory are copied, many in one call; rows of those on disk are read when needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import fixed_once_made, no_field
from ringload.errors import ConfigError
from ringload.fields import Field, Worker, as_fields, in_brief
from ringload.order.groups import Groups
from ringload.sources import parts, splits
from ringload.sources.disk_arrays import DiskArray
from ringload.sources.fingerprints import Fingerprint, fingerprint_of_arrays
from ringload.sources.group_cache import GroupedRows, window_of


class Arrays:
    """One field an argument: `Arrays(x=images, y=labels)` with arrays `(N, ...)` of one length N.

    In memory: NumPy's arrays and memory maps; lists of numbers, of strings, or of lists of one length; tensors of torch,
    TensorFlow and JAX in CPU memory; columns of pandas and pyarrow. Arrays, maps and tensors are not copied here. Workers
    share memory with the trainer, and map files again.

    On disk: an `h5py.Dataset`, a `zarr.Array`, and any object that has `shape` and `dtype`, gives rows by `x[a:b]`, and can be
    pickled (dask, xarray). The trainer does not read them. Each worker opens them again and reads the rows that it needs,
    one after another; `y=file["y"][:]` is faster for small arrays. An HDF5 file must be open for reading only, by its path,
    and must not change. Where chunks of several rows are stored compressed, a row costs reading its chunk. Then workers keep
    some chunks, the budget has room for that, and the order of a loader that is given no `order=` keeps chunks together:
    groups of chunks are shuffled, then the samples of up to 16 groups are mixed (of 1 MiB or more each, 64 MiB together).

    Dtypes are not converted. Arguments without rows of one shape and one dtype are refused: sparse and masked arrays, lists of
    different lengths, Python objects, columns with missing values, generators.

    Attributes: `rows`, the numbers of the samples; `subset`, `split` and `folds` make parts, which share the arrays.

    Raises:
        ConfigError: an array cannot be used, as above, or the arrays' lengths differ. The message says what to do.
    """

    random = False

    def __init__(self, /, *unnamed: Any, **arrays: Any) -> None:
        from ringload.sources.array_kinds import rows_of  # workers do not need it

        if unnamed:
            raise TypeError("arrays are given by the names of their fields: Arrays(x=..., y=...)")
        if not arrays:
            raise ConfigError("Arrays needs at least one array: Arrays(x=..., y=...)")
        self._arrays: dict[str, np.ndarray | DiskArray] = {name: rows_of(name, array) for name, array in arrays.items()}
        lengths = {name: array.shape[0] for name, array in self._arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"the arrays have different lengths: {lengths}")
        self._n_samples = next(iter(lengths.values()))
        self._fingerprint: Fingerprint | None = None
        self.fields = as_fields({name: Field(array.shape[1:], array.dtype) for name, array in self._arrays.items()})
        self._share_groups()
        self._turn: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._fixed = ("fields", "random")

    if not TYPE_CHECKING:
        __setattr__ = fixed_once_made

    def __repr__(self) -> str:
        return in_brief(self, type(self).__name__)

    def __len__(self) -> int:
        return self._n_samples

    # -- groups of rows that are read together ------------------------------------------------------------------------

    @property
    def _grouped(self) -> list[GroupedRows]:
        return [
            array.groups for array in self._arrays.values() if not isinstance(array, np.ndarray) and array.groups is not None
        ]

    def _share_groups(self) -> None:
        """Have all arrays read the groups of the one with the largest rows, as one order is for all."""
        if grouped := self._grouped:
            edges = max(grouped, key=lambda one: one.row_bytes).edges
            self._window = window_of(sum(int(np.diff(edges).max()) * one.row_bytes for one in grouped))
            for one in grouped:
                one.set(edges, self._window)

    @property
    def default_order(self) -> Groups | None:
        """Groups stay together; None without any."""
        return Groups(grouped[0].edges, self._window) if (grouped := self._grouped) else None

    @property
    def scratch_bytes(self) -> int:
        """The most memory that reading takes, beside the rows that are read, with what is kept."""
        return sum(array.scratch_bytes for array in self._arrays.values() if not isinstance(array, np.ndarray))

    @property
    def ahead_bytes(self) -> int:
        """Of these, what is kept of groups."""
        return sum(one.kept_bytes for one in self._grouped)

    def fingerprint(self) -> Fingerprint:
        """This source in a loader's state: shapes, dtypes, and a checksum of the content, or of parts of it."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of_arrays(self._arrays)
        return self._fingerprint

    def column(self, name: str) -> np.ndarray:
        """The array of a field, for orders that name it: `(N, ...)`.

        Raises:
            ConfigError: there is no such array, or it is not in memory.
        """
        if name not in self._arrays:
            raise ConfigError(no_field(name, list(self._arrays), "column"))
        array = self._arrays[name]
        if not isinstance(array, np.ndarray):
            raise ConfigError(f"the array {name!r} is on disk: give an order its values, read before")
        return array

    rows = property(parts.rows)
    subset, split, folds, plain = parts.subset, splits.split, splits.folds, splits.plain

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker: keep as many groups as there is memory for."""
        if (grouped := self._grouped) and self.scratch_bytes > worker.scratch_bytes:
            each = sum(one.group_bytes for one in grouped)
            n_kept = max(0, worker.scratch_bytes - (self.scratch_bytes - self.ahead_bytes)) // each
            for one in grouped:
                one.set(one.edges, n_kept)
        if self.scratch_bytes > worker.scratch_bytes:
            self._turn = worker.exclusive

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        """Copy the rows `indices (n,) int64` into `out`: field -> `(n, ...)`."""
        for name, array in self._arrays.items():
            if not isinstance(array, np.ndarray):
                with self._turn():
                    array.read(indices, out[name])
            elif array.flags.c_contiguous and array.dtype.isnative:
                np.take(array, indices, axis=0, out=out[name], mode="clip")  # "raise" would make a copy
            else:
                out[name][...] = array[indices]  # `take` would copy the whole array first
