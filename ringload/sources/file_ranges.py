"""Ranges of bytes in local files and in memory, for contents and columns whose place is known from an index.

    (place, start, n_bytes) --pread(2)--> bytes

Files are read, and not mapped: in a mapped file that has become shorter, reading the missing pages would kill the process by
SIGBUS, which no message explains. A process opens a file when it first reads from it, and a fork opens its own. A file that is
another one than when the source was made, by its inode, size or time, is refused at each read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ringload.sources.disk_arrays import identity_of
from ringload.storage.read_ahead import FLAGS
from ringload.system.interrupts import FdOwner

MAX_OPEN = 64  # files of one reader that are open at once: a table may have thousands
KEPT_BYTES = 4 << 20  # of memory that is used for each content again


class LocalFile(NamedTuple):
    """A file that must not change: its absolute path, and `identity_of` it."""

    path: str
    identity: tuple[int, ...]

    @classmethod
    def of(cls, path: str) -> LocalFile:
        """A file as it is now. OSError if there is none."""
        return cls(os.path.abspath(path), identity_of(os.stat(path)))

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return self.identity[2]


Place = LocalFile | np.ndarray  # an array is (n_bytes,) uint8


class _OpenFile(FdOwner):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.fd = self._open(os.open, path, FLAGS)


class RangeReader:
    """Reads ranges of `places`. Owns the descriptors of up to `MAX_OPEN` of its files, the last ones that were read."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        for place in self.places:
            if isinstance(place, np.ndarray):
                place.flags.writeable = False  # so it is not compared with the workers' copies
        self._open: dict[int, _OpenFile] = {}
        self._pid = 0  # of the process that has opened them
        self._kept = bytearray()

    def __getstate__(self) -> dict[str, Any]:
        return {"places": self.places, "_open": {}, "_pid": 0, "_kept": bytearray()}

    def path(self, place: int) -> str:
        """The path of a place; "memory" for one in memory."""
        one = self.places[place]
        return "memory" if isinstance(one, np.ndarray) else one.path

    def read(self, place: int, start: int, n_bytes: int) -> memoryview:
        """A range, until the next is read.

        Raises:
            OSError: the file cannot be read, has changed, or ends before.
        """
        one = self.places[place]
        if isinstance(one, np.ndarray):
            return one[start : start + n_bytes].data
        if n_bytes > KEPT_BYTES:
            buffer = np.empty(n_bytes, np.uint8).data
        else:
            if n_bytes > len(self._kept):
                self._kept = bytearray(min(n_bytes + n_bytes // 4, KEPT_BYTES))
            buffer = memoryview(self._kept)[:n_bytes]
        self.read_into(place, start, buffer)
        return buffer

    def read_into(self, place: int, start: int, out: memoryview) -> None:
        """A range of `len(out)` bytes into `out`, `(n_bytes,) uint8`. Raises what `read` does."""
        one = self.places[place]
        if isinstance(one, np.ndarray):
            out[:] = one[start : start + len(out)].data
            return
        fd, n_read = self._fd(place, one), 0
        while n_read < len(out):
            n = os.preadv(fd, [out[n_read:]], start + n_read)
            if n == 0:
                raise OSError(f"{one.path} ends before byte {start + len(out):,}")
            n_read += n

    def prefetch(self, place: int, start: int, n_bytes: int) -> None:
        """Have the kernel read a range ahead. A file that cannot be opened is told of when it is read."""
        one = self.places[place]
        if isinstance(one, np.ndarray):
            return
        try:
            os.posix_fadvise(self._fd(place, one), start, n_bytes, os.POSIX_FADV_WILLNEED)
        except OSError:
            return

    def _fd(self, place: int, file: LocalFile) -> int:
        if self._pid != os.getpid():
            self._open, self._pid = {}, os.getpid()
        opened = self._open.pop(place, None) or _OpenFile(file.path)
        if identity_of(os.fstat(opened.fd)) != file.identity:
            raise OSError(f"{file.path} has changed since the source was made: make the source again")
        while len(self._open) >= MAX_OPEN:
            self._open.pop(next(iter(self._open))).close()
        self._open[place] = opened  # the last of them
        return opened.fd
