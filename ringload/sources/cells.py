"""What a worker reads of columns whose bytes have known places: encoded images, and rows of numbers.

Both have the rows of a dataset in its own order, which `rows (N,)` maps to those of the table below it (Hugging Face's
`shuffle`, `select` and `filter` make such a mapping, and leave the table).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ringload.errors import ContentTooLargeError
from ringload.sources.contents import version_of
from ringload.sources.disk_arrays import runs
from ringload.sources.file_ranges import Place, RangeReader
from ringload.sources.fingerprints import checksum
from ringload.sources.string_column import Strings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ringload.sources.arrow_columns import Cells, RowBlocks

N_COMPARED = 16  # contents whose bytes are in a fingerprint


class CellContents:
    """Content `index` is a cell of a table. See `contents.Contents`. `numbers (N,) int64`: the cells' rows, for messages."""

    ahead_bytes = 0  # what is read ahead is in the kernel's cache

    def __init__(self, places: Sequence[Place], cells: Cells, numbers: np.ndarray, names: Strings) -> None:
        self._reader, self._cells, self._numbers, self.names = RangeReader(places), cells, numbers, names
        for array in (*cells, numbers):
            array.flags.writeable = False  # so it is not compared with the workers' copies

    def __len__(self) -> int:
        return len(self._numbers)

    def key(self, index: int) -> str:
        """The file of a content, its row, and its name there."""
        name = self.names[index].decode(errors="replace")
        path = self._reader.path(int(self._cells.places[index]))
        return f"{path}, row {int(self._numbers[index]):,}{f' ({name})' if name and not path.endswith(name) else ''}"

    def prefetch(self, indices: np.ndarray) -> None:
        """Have the kernel read some contents ahead."""
        for index in indices.tolist():
            self._reader.prefetch(*self._place(index))

    def is_ready(self, indices: np.ndarray) -> bool:
        """Local files are read when they are needed."""
        return True

    def forget(self, indices: np.ndarray) -> None:
        """Nothing is kept."""

    def read(self, index: int, max_bytes: int) -> memoryview:
        """A content, until the next is read: see `ringload.Storage`."""
        place, start, n_bytes = self._place(index)
        if n_bytes > max_bytes:
            raise ContentTooLargeError(n_bytes, max_bytes)
        if n_bytes == 0:
            raise ValueError("an empty cell")
        return self._reader.read(place, start, n_bytes)

    def version(self, index: int) -> tuple[int, int]:
        """The size and the time of its file."""
        return version_of(self._reader.path(int(self._cells.places[index])))

    def take(self, rows: np.ndarray) -> CellContents:
        """Some of the contents; the copy opens its own files."""
        return CellContents(self._reader.places, self._cells.take(rows), self._numbers[rows], self.names.take(rows))

    def _place(self, index: int) -> tuple[int, int, int]:
        return int(self._cells.places[index]), int(self._cells.starts[index]), int(self._cells.lengths[index])


def fingerprinted(names: Strings, places: Sequence[Place], cells: Cells) -> Strings:
    """The names with a checksum behind them that no name has: of the sizes of all contents, and of the bytes of some. So the
    fingerprint of a table, which has all bytes of its names, is another one for other contents."""
    reader, parts = RangeReader(places), [cells.lengths]
    for row in np.unique(np.linspace(0, len(cells.lengths) - 1, N_COMPARED).astype(np.int64)).tolist():
        content = reader.read(int(cells.places[row]), int(cells.starts[row]), int(cells.lengths[row]))
        parts.append(np.frombuffer(bytes(content), np.uint8))
    ends = np.frombuffer(checksum(*parts).encode(), np.uint8)
    return Strings(np.concatenate([names.blob, ends]), names.starts, names.lengths)


class BlockColumn:
    """Rows of a column in blocks, as an array `(N, ...)` on disk. See `disk_arrays.DiskArray`. `rows (N,)`: those of the
    blocks that the array has; None: all, in their order."""

    scratch_bytes = 0
    groups = None

    def __init__(self, places: Sequence[Place], blocks: RowBlocks, rows: np.ndarray | None) -> None:
        self._reader, self._rows = RangeReader(places), rows
        self._first, self._places, self._starts = blocks.first, blocks.places, blocks.starts
        self.shape, self.dtype = (int(blocks.first[-1]) if rows is None else len(rows), *blocks.shape), blocks.dtype
        self._row_bytes = self.dtype.itemsize * int(np.prod(blocks.shape, dtype=np.int64))
        for array in (self._first, self._places, self._starts, *(() if rows is None else (rows,))):
            array.flags.writeable = False  # so it is not compared with the workers' copies

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """See `DiskArray`."""
        rows = indices if self._rows is None else self._rows[indices]
        blocks = np.searchsorted(self._first, rows, "right") - 1
        made = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
        as_bytes = made.reshape(-1).view(np.uint8).data
        for start, stop, row in runs(rows, len(rows)):
            while start < stop:
                block = int(blocks[start])
                n = min(stop - start, int(self._first[block + 1]) - row)
                begin = int(self._starts[block]) + (row - int(self._first[block])) * self._row_bytes
                part = as_bytes[start * self._row_bytes : (start + n) * self._row_bytes]
                self._reader.read_into(int(self._places[block]), begin, part)
                start, row = start + n, row + n
        if made is not out:
            out[...] = made
