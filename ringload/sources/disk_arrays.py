"""Arrays on disk: the process that needs rows reads them when it needs them.

    Hdf5Array       an h5py.Dataset, which cannot be pickled: each process opens the file again by its path, and refuses a file
                    that has changed. In a forked process HDF5 reuses the inherited file, and reads it by pread(2), which
                    shares no position; h5py holds its lock while a process forks
    PickledArray    any other (zarr, dask, xarray): it is pickled, and opens its store again when it is unpickled

This module does not import h5py or zarr: the user who gives such an array has imported them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import numpy as np

from ringload.sources.group_cache import KEPT_BYTES, GroupedRows

READ_BYTES = 1 << 20  # of consecutive rows, read at once
GROUP_BYTES = 1 << 20  # of a group of chunks, at least, so that the edges of groups take little memory
CACHE_BYTES = 1 << 20  # of chunks that HDF5 keeps for each dataset


class DiskArray(Protocol):
    """`(N, ...)` on disk. `scratch_bytes`: the most memory that reading takes, beside the rows that are read. `groups`: which
    rows are read and kept together, for an array with compressed chunks of several rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    groups: GroupedRows | None

    @property
    def scratch_bytes(self) -> int: ...

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Read the rows `indices (n,) int64` into `out (n, ...)`."""


class Hdf5Array:
    """A dataset, by the path of its file and its name in the file. `identity`: `identity_of` the file."""

    def __init__(self, h5py: Any, path: str, name: str, dataset: Any, identity: tuple[int, ...]) -> None:
        self._h5py, self._path, self._name, self._identity = h5py, path, name, identity  # a worker imports h5py with the source
        self.shape: tuple[int, ...] = tuple(dataset.shape)
        self.dtype: np.dtype[Any] = dataset.dtype
        chunk_bytes = prod(dataset.chunks) * self.dtype.itemsize if dataset.chunks else 0
        self._row_bytes = max(1, prod(self.shape[1:]) * self.dtype.itemsize)
        # twice a chunk: as it is stored, and unpacked
        self._read_bytes: int = max(READ_BYTES, self._row_bytes) + 2 * chunk_bytes + CACHE_BYTES
        is_filtered = (
            bool(dataset.chunks) and dataset.id.get_create_plist().get_nfilters() > 0
        )  # else HDF5 reads parts of chunks
        self.groups = groups_of(self.shape, dataset.chunks[0], self._row_bytes) if is_filtered else None
        self._dataset: Any = None  # as this process has opened it

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_dataset": None}

    @property
    def scratch_bytes(self) -> int:
        """See `DiskArray`."""
        return self._read_bytes + bytes_of(self.groups)

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """See `DiskArray`."""
        if self._dataset is None:
            self._dataset = self._open()
        try:
            if self.groups is not None and self.groups.can_read(indices, out, self._rows):
                return
            for start, stop, first in runs(indices, max(1, READ_BYTES // self._row_bytes)):
                out[start:stop] = self._dataset[first : first + stop - start]  # read_direct is many times slower
        except OSError as error:  # HDF5's message does not name the file
            raise OSError(f"{self._path}, dataset {self._name}: {error}") from error

    def _rows(self, group: int, first: int, stop: int) -> np.ndarray:
        return np.asarray(self._dataset[first:stop])

    def _open(self) -> Any:
        if identity_of(os.stat(self._path)) != self._identity:
            raise OSError(f"{self._path} has changed since the source was made: make the source again, ringload.Arrays(...)")
        return self._h5py.File(self._path, "r")[self._name]


class PickledArray:
    """An object that gives rows by `array[a:b]`. `first`: `content_of` its first row, which each process compares: a store in
    another process's memory, or at a relative path, can look like an array whose values were never written."""

    def __init__(
        self, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_bytes: int, chunk_rows: int, first: bytes | None
    ) -> None:
        self._array, self.shape, self.dtype = array, shape, dtype
        self._first, self._is_same = first, False
        self._row_bytes = max(1, prod(shape[1:]) * dtype.itemsize)
        self._read_bytes = max(READ_BYTES, self._row_bytes) + 2 * chunk_bytes
        self.groups = groups_of(shape, chunk_rows, self._row_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_is_same": False}

    @property
    def scratch_bytes(self) -> int:
        """See `DiskArray`."""
        return self._read_bytes + bytes_of(self.groups)

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """See `DiskArray`."""
        if not self._is_same:
            self._is_same = content_of(self._array[0:1]) == self._first
            if not self._is_same:
                raise OSError(
                    f"row 0 of the {type(self._array).__name__} is not what it was when the source was made: its store has "
                    "changed, is in another process's memory, or has a relative path. Give a store on disk by its absolute path"
                )
        if self.groups is not None and self.groups.can_read(indices, out, self._rows):
            return
        for start, stop, first in runs(indices, max(1, READ_BYTES // self._row_bytes)):
            out[start:stop] = self._rows(0, first, first + stop - start)

    def _rows(self, group: int, first: int, stop: int) -> np.ndarray:
        rows = np.asarray(self._array[first:stop])
        if (rows.shape, rows.dtype) != ((stop - first, *self.shape[1:]), self.dtype):
            raise ValueError(f"rows {first} to {stop} are {rows.shape} {rows.dtype}, not {self.dtype} of one shape")
        return rows


def content_of(rows: Any) -> bytes:
    """A checksum of the content of rows."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).digest()


def identity_of(status: os.stat_result) -> tuple[int, ...]:
    """Values that change when the content of a file changes."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def runs(indices: np.ndarray, most: int) -> Iterator[tuple[int, int, int]]:
    """Runs of consecutive indices, each of at most `most`: (start, stop, the first index)."""
    ends = [*(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    for begin, end in pairwise([0, *ends]):
        for start in range(begin, end, most):
            yield start, min(start + most, end), int(indices[start])


def groups_of(shape: tuple[int, ...], chunk_rows: int, row_bytes: int) -> GroupedRows | None:
    """The groups of rows of an array with chunks: whole chunks, of GROUP_BYTES or more. None if a chunk has one row, or if the
    chunks of some rows take more than is kept of groups."""
    group_rows = chunk_rows * -(-GROUP_BYTES // (chunk_rows * row_bytes)) if chunk_rows else 0
    if chunk_rows < 2 or not shape[0] or min(group_rows, shape[0]) * row_bytes > KEPT_BYTES:
        return None
    return GroupedRows(np.append(np.arange(0, shape[0], group_rows), shape[0]), row_bytes)


def bytes_of(groups: GroupedRows | None) -> int:
    """What reading a group takes, and those that are kept."""
    return 0 if groups is None else groups.group_bytes + groups.kept_bytes
