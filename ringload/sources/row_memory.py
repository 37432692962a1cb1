"""Rows in memory that the processes of one loader share: `Loader(cache="ram")`.

    record i    mark, 48 bytes, and 16 unused; then row i, `row_bytes`. It begins at a multiple of 64
    mark        as in a file of rows (see `row_cache`), with 0 in place of the row's checksum

The memory is one memfd. The loader owns its descriptor, and its workers have copies under the same number. So it needs no room
in /dev/shm, and is gone with the last of these processes, however they end.

**Guarantees.** A row is given only if it was written whole: its mark is written after it, by another call. Each row is written
once, and then never changes: a process that writes holds a lock of the kernel on the record's first byte, and looks for a mark
again before it writes. Nobody waits for such a lock: whoever does not get it does not keep the row. The kernel releases it if
its process dies, and the next process that loads the row writes it. Processes map the memory for reading only, so that nothing
but `write` changes a row, and readers need no checksum of it.

Rows that are marked are read through the mapping; pages that were never written are not touched. Writing is pwrite(2): if the
system has no memory left, that is an error, and no SIGBUS. Then this process writes no more.

**Which rows** are kept depends on their number alone: the first ones. Nothing is evicted.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any

import numpy as np

from ringload.sources.row_cache import MARK, MARKED, Version, mark_of, said_by
from ringload.system.segment import Segment, map_shared, round_up

ALIGNED_BYTES = 64  # of a line of the processor's cache
HEAD_BYTES = ALIGNED_BYTES


class RowMemory:
    """The rows `0 <= i < n_kept` in a memfd. `allocate` says how many these are, before the first use.

    Arguments:
        row_bytes: of each row. n_rows: how many there are.
    """

    def __init__(self, row_bytes: int, n_rows: int) -> None:
        self._row_bytes, self._n_rows = row_bytes, n_rows
        self.record_bytes = round_up(HEAD_BYTES + row_bytes, ALIGNED_BYTES)
        self._have(Segment(0))

    def _have(self, segment: Segment) -> None:
        self.segment: Segment | None = segment
        self._fd, self._file = segment.fd, _file_of(segment.fd)
        self._forget()

    def _forget(self) -> None:
        self._n_kept: int | None = None
        self._mapped: np.ndarray | None = None
        self._writes = True

    @property
    def all_bytes(self) -> int:
        """What all rows take."""
        return self._n_rows * self.record_bytes

    @property
    def n_kept(self) -> int:
        """How many rows there is room for. The size of the memfd says it, as workers are sent its descriptor alone."""
        if self._n_kept is None:
            is_there = self._fd >= 0 and _file_of(self._fd) == self._file
            self._n_kept = os.fstat(self._fd).st_size // self.record_bytes if is_there else 0
        return self._n_kept

    # -- in the trainer -----------------------------------------------------------------------------------------------

    def allocate(self, n_bytes: int) -> None:
        """Have room for as many rows as `n_bytes` hold. Memory is taken as they are written."""
        assert self.segment is not None
        self.segment.resize(min(self._n_rows, n_bytes // self.record_bytes) * self.record_bytes)
        self._forget()

    def begin_anew(self) -> None:
        """Have as much room, with nothing in it. Processes that have the present memory go on with that."""
        if self.segment is not None:
            self._have(Segment(self.segment.n_bytes))

    def close(self) -> None:
        """Have no memory any more: all rows are loaded. Idempotent."""
        if self.segment is not None:
            self.segment.close()
            self.segment, self._fd = None, -1
            self._forget()

    # -- in all processes ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Map the memory.

        Raises:
            BudgetError: RLIMIT_AS has no room for it.
        """
        if self._mapped is None and self.n_kept:
            self._mapped = map_shared(self._fd, self.n_kept * self.record_bytes, mmap.PROT_READ)

    def find(self, index: int, version: Version, scratch: np.ndarray) -> tuple[tuple[int, int], np.ndarray] | None:
        """(height, width) of a row's image, and the row `(row_bytes,) uint8`, read-only. None: it is not there, or is of
        another version of the content."""
        said = self._said(index)
        if said is None or said[0] != version:
            return None
        self.open()
        assert self._mapped is not None
        start = index * self.record_bytes + HEAD_BYTES
        return said[1], self._mapped[start : start + self._row_bytes]

    def keep(self, index: int, version: Version, size: tuple[int, int], row: np.ndarray) -> None:
        """Keep a row, unless it is kept already, or another process is about to do so, or there is no room."""
        if not (0 <= index < self.n_kept and self._writes):
            return
        start = index * self.record_bytes
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)
        except BlockingIOError:
            return
        try:
            if self._said(index) is None:
                mark = mark_of(index, version, size, 0)
                self._writes = os.pwrite(self._fd, row.data, start + HEAD_BYTES) == self._row_bytes
                self._writes = self._writes and os.pwrite(self._fd, mark, start) == len(mark)
        except OSError:  # no memory, or a limit of it: the row is loaded each time
            self._writes = False
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, start)

    def are_marked(self, indices: np.ndarray) -> np.ndarray:
        """Which rows are there: `(n,) bool`."""
        return np.array([self._said(index) is not None for index in indices.tolist()], bool)

    def will_need(self, indices: np.ndarray) -> None:
        """Nothing: the rows are in memory."""

    def _said(self, index: int) -> tuple[Version, tuple[int, int], int] | None:
        if not 0 <= index < self.n_kept:
            return None
        mark = os.pread(self._fd, MARK.size, index * self.record_bytes)
        return said_by(mark, index) if mark[:8] == MARKED else None

    def __getstate__(self) -> dict[str, Any]:
        own = ("segment", "_mapped", "_n_kept", "_writes")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, segment=None)
        self._forget()


def _file_of(fd: int) -> tuple[int, int] | None:
    """What tells the file of a descriptor from others: in a process that did not get it, the number may be of another one."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
