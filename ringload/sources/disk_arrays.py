"""Arrays that are not in memory: their rows are read when they are needed, by the process that needs them.

    Hdf5Array       an h5py.Dataset, which cannot be pickled: each process opens the file again, by its name, and refuses one
                    that has changed. Where it is forked, HDF5 finds the file that it inherited, and reads it by pread(2),
                    which has no position to share; h5py holds its lock while a process forks
    PickledArray    any other (zarr, dask, xarray): it is pickled, and opens itself again

Nothing here imports h5py or zarr: where there is an array of theirs, they were imported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import numpy as np

READ_BYTES = 1 << 20  # of rows that follow each other, read at once
CACHE_BYTES = 1 << 20  # of chunks, that HDF5 keeps for each dataset


class DiskArray(Protocol):
    """`(N, ...)` on disk. `scratch_bytes`: the most memory that reading takes, beside the rows that are read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scratch_bytes: int

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Read the rows `indices (n,) int64` into `out (n, ...)`."""


class Hdf5Array:
    """A dataset, by the name of its file and its name there. `identity`: what `identity_of` says of the file."""

    def __init__(self, h5py: Any, path: str, name: str, dataset: Any, identity: tuple[int, ...]) -> None:
        self._h5py, self._path, self._name, self._identity = h5py, path, name, identity  # a worker imports h5py with the source
        self.shape: tuple[int, ...] = tuple(dataset.shape)
        self.dtype: np.dtype[Any] = dataset.dtype
        chunk_bytes = prod(dataset.chunks) * self.dtype.itemsize if dataset.chunks else 0
        self._row_bytes = max(1, prod(self.shape[1:]) * self.dtype.itemsize)
        # twice a chunk: as it is stored, and unpacked
        self.scratch_bytes = max(READ_BYTES, self._row_bytes) + 2 * chunk_bytes + CACHE_BYTES
        self._dataset: Any = None  # as this process has opened it

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_dataset": None}

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """See `DiskArray`."""
        if self._dataset is None:
            self._dataset = self._open()
        try:
            for start, stop, first in _runs(indices, max(1, READ_BYTES // self._row_bytes)):
                out[start:stop] = self._dataset[first : first + stop - start]  # read_direct is many times as slow
        except OSError as error:  # HDF5's words tell no file
            raise OSError(f"{self._path}, dataset {self._name}: {error}") from error

    def _open(self) -> Any:
        if identity_of(os.stat(self._path)) != self._identity:
            raise OSError(f"{self._path} has changed since the source was made: make it anew, ringload.Arrays(...)")
        return self._h5py.File(self._path, "r")[self._name]


class PickledArray:
    """An object that gives rows by `array[a:b]`. `first`: what `content_of` says of its first row. A store that is in another
    process's memory, or at a path that is relative to another folder, can look like one whose values were never written."""

    def __init__(self, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_bytes: int, first: bytes | None) -> None:
        self._array, self.shape, self.dtype = array, shape, dtype
        self._first, self._is_same = first, False
        self._row_bytes = max(1, prod(shape[1:]) * dtype.itemsize)
        self.scratch_bytes = max(READ_BYTES, self._row_bytes) + 2 * chunk_bytes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_is_same": False}

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """See `DiskArray`."""
        if not self._is_same:
            self._is_same = content_of(self._array[0:1]) == self._first
            if not self._is_same:
                raise OSError(
                    f"row 0 of the {type(self._array).__name__} is not what it was when the source was "
                    "made: its store was changed, is in another process's memory, or has a path that is relative to another "
                    "folder. Give one on disk, by an absolute path"
                )
        for start, stop, first in _runs(indices, max(1, READ_BYTES // self._row_bytes)):
            rows = np.asarray(self._array[first : first + stop - start])
            if (rows.shape, rows.dtype) != ((stop - start, *self.shape[1:]), self.dtype):
                raise ValueError(f"rows {first} to {first + stop - start} came as {rows.shape} {rows.dtype}")
            out[start:stop] = rows


def content_of(rows: Any) -> bytes:
    """A checksum of what is in them."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).digest()


def identity_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes with a file's content."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _runs(indices: np.ndarray, most: int) -> Iterator[tuple[int, int, int]]:
    """Parts of at most `most` indices, each one more than the last: (start, stop, the first index)."""
    ends = [*(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    for begin, end in pairwise([0, *ends]):
        for start in range(begin, end, most):
            yield start, min(start + most, end), int(indices[start])
