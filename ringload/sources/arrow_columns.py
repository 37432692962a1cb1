"""Columns of Arrow in files that this process maps, as Hugging Face's datasets are, by the places of their bytes.

    a buffer's address --/proc/self/maps--> (file, where in it)     for a buffer in no mapped file: the memory itself

So workers need neither Arrow nor the library that has mapped the files: they read the bytes of a row. This module is for the
trainer; it makes the index, by NumPy, with a step of Python for each chunk of a column (1,000 rows of Hugging Face's).
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np

from ringload.errors import ConfigError
from ringload.sources.disk_arrays import identity_of
from ringload.sources.file_ranges import LocalFile, Place

LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-.[sp] ([0-9a-f]+) \S+ (\d+) +(/.*)")  # of proc(5), maps: read-only


class NotAFieldError(Exception):
    """The rows of a column have no fixed shape of numbers. The message goes on after the column's name."""


class Cells(NamedTuple):
    """The bytes of each row of a column: its place `(N,) int32`, where they start there `(N,) int64`, and how many there are
    `(N,) int64`; -1 where the row has none."""

    places: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def take(self, rows: np.ndarray) -> Cells:
        """Those of some rows."""
        return Cells(*(array[rows] for array in self))


class RowBlocks(NamedTuple):
    """Rows of one shape and dtype, in blocks: rows `first[b]` to `first[b + 1]` lie one after another from byte `starts[b]` of
    place `places[b]` on. `first (n + 1,) int64`, `places (n,) int32`, `starts (n,) int64`."""

    shape: tuple[int, ...]  # of a row
    dtype: np.dtype[Any]
    first: np.ndarray
    places: np.ndarray
    starts: np.ndarray


class Places:
    """The places of the buffers of some columns, which share a file's."""

    def __init__(self) -> None:
        self.all: list[Place] = []
        self._numbers: dict[str, int] = {}  # of files
        self._ranges: list[tuple[int, int, int, int, str]] = []  # first address, end, offset, inode, path
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for found in map(LINE.match, lines):
                if found:
                    first, end, offset = (int(found[group], 16) for group in (1, 2, 3))
                    self._ranges.append((first, end, offset, int(found[4]), found[5].replace("\\012", "\n")))
        self._firsts = [one[0] for one in self._ranges]

    def find(self, buffer: Any) -> tuple[int, int]:
        """The place of an Arrow buffer, and where it starts there.

        Raises:
            ConfigError: the file that it is in was deleted or replaced.
        """
        number = bisect_right(self._firsts, buffer.address) - 1
        if number < 0 or buffer.address + buffer.size > self._ranges[number][1]:
            self.all.append(np.frombuffer(buffer, np.uint8))
            return len(self.all) - 1, 0
        first, _, offset, inode, path = self._ranges[number]
        if path not in self._numbers:
            self._numbers[path] = len(self.all)
            self.all.append(_mapped(path, inode))
        start = offset + buffer.address - first
        file = self.all[self._numbers[path]]
        if isinstance(file, LocalFile) and start + buffer.size > file.n_bytes:
            raise ConfigError(f"{path} is shorter than when the dataset was opened: load the dataset again")
        return self._numbers[path], start

    def check(self, column: Any) -> None:
        """Check that the files of a column are there, as long as they were: reading what is missing would kill this process.

        Raises:
            ConfigError: they are not.
        """
        n_places = len(self.all)
        for chunk in column.chunks:
            for buffer in chunk.buffers():
                if buffer is not None and buffer.size:
                    self.find(buffer)
        self.all = [place for number, place in enumerate(self.all) if number < n_places or isinstance(place, LocalFile)]
        self._numbers = {place.path: number for number, place in enumerate(self.all) if isinstance(place, LocalFile)}


def _mapped(path: str, inode: int) -> LocalFile:
    try:
        status = os.stat(path)
    except OSError:
        status = None
    if status is None or status.st_ino != inode:
        gone = path.removesuffix(" (deleted)")
        raise ConfigError(
            f"{gone} was deleted or replaced after the dataset was opened, and workers cannot open it: load the dataset again"
        )
    return LocalFile(path, identity_of(status))


def cells_of(column: Any, places: Places) -> Cells:
    """The bytes of each row of a column of Arrow's binary or string.

    Raises:
        NotAFieldError: it is of another type.
    """
    places.check(column)
    found = []
    for chunk in column.chunks:
        offsets_type = {"binary": np.int32, "string": np.int32, "large_binary": np.int64, "large_string": np.int64}.get(
            str(chunk.type)
        )
        if offsets_type is None:
            raise NotAFieldError(f"is of Arrow's type {chunk.type}, and no column of bytes")
        if not len(chunk):
            continue
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, offsets_type)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
        place, start = places.find(data) if data is not None and data.size else (0, 0)
        lengths = np.diff(ends)
        if chunk.null_count:
            lengths[np.asarray(chunk.is_null())] = -1
        found.append((np.full(len(chunk), place, np.int32), ends[:-1] + start, lengths))
    return Cells(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def row_blocks(column: Any, places: Places) -> RowBlocks:
    """The rows of a column of numbers, or of lists of one length, also nested.

    Raises:
        NotAFieldError: its rows are something else, or some are missing.
    """
    places.check(column)
    first, where, starts = [0], [], []
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    for chunk in column.chunks:
        if not len(chunk):
            continue
        values, of_row = flat(chunk, first[-1])
        if shape is not None and shape != of_row:
            raise NotAFieldError(f"has rows of different lengths: row {first[-1]} is {of_row}, row 0 is {shape}")
        shape = of_row
        if str(values.type) == "bool":  # of one bit each
            dtype, buffer, skipped = np.dtype(bool), np.asarray(values.to_numpy(zero_copy_only=False)), 0
            places.all.append(buffer.view(np.uint8))
            place, start = len(places.all) - 1, 0
        else:
            dtype = np.dtype(values.type.to_pandas_dtype())
            place, start = places.find(values.buffers()[1])
            skipped = values.offset * dtype.itemsize
        first.append(first[-1] + len(chunk))
        where.append(place)
        starts.append(start + skipped)
    if shape is None or dtype is None:
        raise NotAFieldError("has no rows")
    return RowBlocks(shape, dtype, np.array(first), np.array(where, np.int32), np.array(starts))


def flat(chunk: Any, row: int) -> tuple[Any, tuple[int, ...]]:
    """The numbers of a chunk, one after another, and the shape of a row. `row`: the number of the chunk's first."""
    shape: tuple[int, ...] = ()
    values = getattr(chunk, "storage", chunk)
    while str(values.type).startswith(("list<", "large_list<", "fixed_size_list<")):
        if values.null_count:
            raise NotAFieldError("has missing lists")
        lengths = np.asarray(values.value_lengths()) if not str(values.type).startswith("fixed") else None
        length = int(values.type.list_size if lengths is None else lengths[0])
        if lengths is not None and (other := np.flatnonzero(lengths != length)).size:
            at = row + int(other[0]) if not shape else row
            raise NotAFieldError(f"has lists of different lengths, {int(lengths[other[0]])} and {length}, first in row {at}")
        if length == 0:
            raise NotAFieldError("has empty lists")
        shape, values = (*shape, length), values.flatten()
    if values.null_count:
        raise NotAFieldError(f"has {values.null_count} missing values, the first of them in row {row} or later")
    kind = str(values.type)
    if not re.fullmatch(r"bool|u?int(8|16|32|64)|halffloat|float|double", kind):
        raise NotAFieldError(f"is of {kind}, and no column of numbers")
    return values, shape
