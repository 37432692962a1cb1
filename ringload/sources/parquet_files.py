"""Row groups of Parquet files: what workers read of them, and how.

    row --edges--> row group (file, number in the file) --pyarrow, one column--> the decoded group, kept --> cell

Invariants: one column of one row group is decoded at a time, without threads. A file that has changed since the source was made
is refused before a row group is read. A process opens its own files, at most MAX_OPEN at once. A row group may not decode to
more than ROOM times the size in the file's metadata: a dictionary can hold one image for a million rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ringload.errors import ContentTooLargeError, missing
from ringload.sources.contents import version_of
from ringload.sources.disk_arrays import identity_of
from ringload.sources.file_ranges import LocalFile
from ringload.sources.group_cache import GroupCache, GroupedRows
from ringload.sources.string_column import Strings

MAX_OPEN = 4
ROOM = 2
MORE_BYTES = 1 << 20  # beside ROOM times the size: offsets and bits of small columns
BATCH_ROWS = 64  # of bytes of any length, decoded at a time before their size is checked
BATCH_BYTES = 4 << 20  # the same of numbers


def arrow(part: str) -> Any:
    """pyarrow, with pyarrow.parquet. ImportError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise missing(part, "pyarrow", error) from error
    return pyarrow


class RowGroups:
    """Reads one column of the row groups of some files.

    `column`: its path in the schema, such as "image.bytes". For each group, `of_file (G,)` is its file, `numbers (G,)` its
    number there, `n_bytes (G,)` what it decodes to by the metadata. `batch_rows`: how many rows are decoded at a time.
    """

    def __init__(
        self,
        files: Sequence[LocalFile],
        column: str,
        of_file: np.ndarray,
        numbers: np.ndarray,
        n_bytes: np.ndarray,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self.files, self.column, self.of_file, self.numbers, self.n_bytes = tuple(files), column, of_file, numbers, n_bytes
        self.batch_rows = batch_rows
        for array in (of_file, numbers, n_bytes):
            array.flags.writeable = False  # so it is not compared with the workers' copies
        self._open: dict[int, Any] = {}
        self._pid = 0  # of the process that has opened them

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_pid": 0}

    @property
    def group_bytes(self) -> int:
        """The most memory that a decoded group takes."""
        return ROOM * int(self.n_bytes.max()) + MORE_BYTES

    def path(self, group: int) -> str:
        """The file of a group."""
        return self.files[int(self.of_file[group])].path

    def read(self, group: int) -> Any:
        """The column of a row group, as a ChunkedArray of pyarrow.

        Raises:
            OSError: the file cannot be read, or has changed. ValueError: the group is damaged, or larger than it says.
        """
        pyarrow = arrow("a Parquet file")
        number, most_bytes = int(self.numbers[group]), ROOM * int(self.n_bytes[group]) + MORE_BYTES
        file = self._file(int(self.of_file[group]))
        chunks, n_bytes = [], 0
        try:
            for batch in file.iter_batches(self.batch_rows, row_groups=[number], columns=[self.column], use_threads=False):
                column = batch.column(0)
                chunks.append(column.flatten()[0] if str(column.type).startswith("struct<") else column)
                if (n_bytes := n_bytes + batch.nbytes) > most_bytes:
                    raise ValueError(
                        f"it decodes to more than {most_bytes:,} bytes, and the metadata say {int(self.n_bytes[group]):,}: "
                        "write the file with smaller row groups, or without a dictionary"
                    )
        except (pyarrow.ArrowException, OSError, ValueError) as error:  # pyarrow's messages do not name the file
            raise ValueError(f"row group {number} of {self.path(group)}, column {self.column}: {error}") from error
        return pyarrow.chunked_array(chunks)

    def _file(self, number: int) -> Any:
        if self._pid != os.getpid():
            self._open, self._pid = {}, os.getpid()
        file = self.files[number]
        if identity_of(os.stat(file.path)) != file.identity:
            raise OSError(f"{file.path} has changed since the source was made: make the source again")
        opened = self._open.pop(number, None)
        while len(self._open) >= MAX_OPEN:
            self._open.pop(next(iter(self._open))).close(force=True)
        self._open[number] = opened or arrow("a Parquet file").parquet.ParquetFile(
            file.path, memory_map=False, pre_buffer=False
        )
        return self._open[number]


class ParquetContents:
    """Content `index` is a cell of bytes in a Parquet file. See `contents.Contents`. `edges (G + 1,)`: the rows at which row
    groups begin; `rows (N,)`: those that are samples."""

    def __init__(self, groups: RowGroups, edges: np.ndarray, rows: np.ndarray, names: Strings, window: int) -> None:
        self._groups, self.edges, self.rows, self.names, self.window = groups, edges, rows, names, window
        self.keep(window)
        for array in (edges, rows):
            array.flags.writeable = False  # so it is not compared with the workers' copies

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def group_bytes(self) -> int:
        """The most memory that one group takes."""
        return self._groups.group_bytes

    def keep(self, n_groups: int) -> None:
        """Keep so many groups from now on."""
        self._kept, self.ahead_bytes = GroupCache[Any](n_groups), n_groups * self.group_bytes

    def key(self, index: int) -> str:
        """The file of a content, and its row there."""
        group, _ = self._place(index)
        first = int(np.argmax(self._groups.of_file == self._groups.of_file[group]))  # group of the file
        return f"{self._groups.path(group)}, row {int(self.rows[index] - self.edges[first]):,}"

    def prefetch(self, indices: np.ndarray) -> None:
        """Nothing: a row group is read as a whole."""

    def is_ready(self, indices: np.ndarray) -> bool:
        """Local files are read when they are needed."""
        return True

    def forget(self, indices: np.ndarray) -> None:
        """Nothing is kept."""

    def read(self, index: int, max_bytes: int) -> memoryview:
        """A content: see `ringload.Storage.read`."""
        group, row = self._place(index)
        cell = self._kept.get(group, self._groups.read)[row]
        if not cell.is_valid:
            raise ValueError("the cell is null: there is no image")
        content = memoryview(cell.as_buffer()).cast("B")
        if len(content) > max_bytes:
            raise ContentTooLargeError(len(content), max_bytes)
        if not len(content):
            raise ValueError("an empty cell")
        return content

    def version(self, index: int) -> tuple[int, int]:
        """The size and the time of its file."""
        return version_of(self._groups.path(self._place(index)[0]))

    def take(self, rows: np.ndarray) -> ParquetContents:
        """Some of the contents; the copy opens its own files."""
        return ParquetContents(_copy(self._groups), self.edges, self.rows[rows], self.names.take(rows), self.window)

    def _place(self, index: int) -> tuple[int, int]:
        """(row group, row there)."""
        row = int(self.rows[index])
        group = int(np.searchsorted(self.edges, row, "right")) - 1
        return group, row - int(self.edges[group])


def _copy(groups: RowGroups) -> RowGroups:
    return RowGroups(groups.files, groups.column, groups.of_file, groups.numbers, groups.n_bytes)


class ParquetColumn:
    """A column of numbers as an array `(N, ...)` on disk: see `disk_arrays.DiskArray`."""

    def __init__(self, groups: RowGroups, edges: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._groups, self.dtype = groups, dtype
        self.shape = (int(edges[-1]), *shape)
        self.groups = GroupedRows(edges, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))

    @property
    def scratch_bytes(self) -> int:
        """The decoded group of Arrow's, beside the kept groups."""
        return self._groups.group_bytes + self.groups.kept_bytes

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """See `DiskArray`."""
        self.groups.read(indices, out, self._group)

    def _group(self, group: int, first: int, stop: int) -> np.ndarray:
        from ringload.sources.arrow_columns import NotAFieldError, flat

        parts, row = [], first
        for chunk in self._groups.read(group).chunks:
            try:
                values, shape = flat(chunk, row - first)
            except NotAFieldError as error:
                raise ValueError(f"row group {self._groups.numbers[group]} of {self._groups.path(group)} {error}") from None
            parts.append(values.to_numpy(zero_copy_only=False).reshape(-1, *shape))
            row += len(chunk)
        made = np.concatenate(parts)
        if (made.shape, made.dtype) != ((stop - first, *self.shape[1:]), self.dtype):
            raise ValueError(
                f"row group {self._groups.numbers[group]} of {self._groups.path(group)} is {made.shape} {made.dtype}, not "
                f"{(stop - first, *self.shape[1:])} {self.dtype}, as the first rows of the table"
            )
        return made
