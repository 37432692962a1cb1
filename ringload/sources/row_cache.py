"""A file of rows on a local disk, which processes fill and read together, without a lock.

    header      64 bytes: `MAGIC`, and the key of what the rows are (32 bytes); the rest is zero
    record i    mark, then row i: `row_bytes` of payload. It begins at 64 + i * (48 + row_bytes)
    mark        48 bytes, six u64, little-endian: `MARKED`; the content's size and time, two; height and width of the image,
                32 bits each; the row's checksum; the checksum of these and of i

**Guarantees.** A row is given only if it was written whole: the mark is written after the row, and holds its checksum (XXH3),
which a reader computes again. So a write that was cut off by a kill, a power failure or a full disk, and a file that somebody
truncates or overwrites, cost the time to load the row, and give no wrong one. Reads are pread(2), not a mapping: a file that is
truncated raises no SIGBUS.

**Which rows** are kept depends on their number alone: those that begin within `max_bytes`. Nothing is ever evicted, so nothing
thrashes. Two processes that write the same row write the same bytes. A process whose write fails (no space, a quota) writes no
more. The file grows as it is filled, and is sparse meanwhile.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Protocol

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError, missing

MAGIC = b"ringload rows 1\0"
KEY_BYTES = 32
HEADER_BYTES = 64
MARK = struct.Struct("<6Q")
SEAL = struct.Struct("<6Q")  # what the last checksum of a mark is of: the first five, and the row's number
MARKED = (0x6B72616D).to_bytes(8, "little")  # "mark"
Version = tuple[int, int]  # a content's size in bytes and time in ns; (0, 0) where it is not known
Size = tuple[int, int]  # (height, width) of an image as it is shown


class Rows(Protocol):
    """Where the rows `0 <= i < n_kept` are: a file (`RowCache`), or memory (`row_memory.RowMemory`)."""

    @property
    def n_kept(self) -> int:
        """How many rows there is room for: the first ones."""
        ...

    def open(self) -> None:
        """Prepare to read and write in this process."""
        ...

    def find(self, index: int, version: Version, scratch: np.ndarray) -> tuple[Size, np.ndarray] | None:
        """(size of the image, row `(row_bytes,) uint8`), which may be in `scratch`, of as many bytes. None: the row is not
        there, or is of another version of the content; then what `scratch` holds is undefined."""
        ...

    def keep(self, index: int, version: Version, size: Size, row: np.ndarray) -> None:
        """Keep a row. Does nothing where it cannot be kept."""
        ...

    def are_marked(self, indices: np.ndarray) -> np.ndarray:
        """Which rows are there, probably: `(n,) bool`."""
        ...

    def will_need(self, indices: np.ndarray) -> None:
        """These rows are read next. Does not wait for them."""
        ...


class RowCache:
    """The rows `0 <= i < n_rows` of one file. Each process opens it when it first needs it; a fork opens it again.

    Arguments:
        path: of the file. key: 32 bytes that tell what its rows are. row_bytes: of each row. n_rows: how many there are.
        max_bytes: rows that would end beyond are not written.

    Raises:
        ConfigError: the file cannot be made, or is none of this key.
    """

    def __init__(self, path: str, key: bytes, row_bytes: int, n_rows: int, max_bytes: int) -> None:
        self.path, self._key, self._row_bytes = path, key, row_bytes
        self._record_bytes = MARK.size + row_bytes
        self.all_bytes = HEADER_BYTES + n_rows * self._record_bytes
        self._n_rows = n_rows
        self._fd, self._pid, self._writes = -1, 0, True
        hash_function()  # an error now, if there is none
        self.limit("max_bytes", max_bytes)
        self._make()
        self._open()

    def limit(self, name: str, max_bytes: int) -> None:
        """Write no rows that would end beyond `max_bytes`, which the user knows by `name`.

        Raises:
            ConfigError: that is no row.
        """
        self.n_kept = max(0, min(self._n_rows, (max_bytes - HEADER_BYTES) // self._record_bytes))
        if not self.n_kept:
            raise ConfigError(f"{name}={max_bytes:,} has no room for a row, which takes {self._record_bytes:,} bytes: raise it")

    def open(self) -> None:
        """Open the file in this process, if it is still there."""
        self._own()

    def find(self, index: int, version: Version, scratch: np.ndarray) -> tuple[Size, np.ndarray] | None:
        """See `Rows`."""
        size = self.read(index, version, [scratch.data])
        return None if size is None else (size, scratch)

    def keep(self, index: int, version: Version, size: Size, row: np.ndarray) -> None:
        """See `Rows`."""
        self.write(index, version, size, [row.data])

    def read(self, index: int, version: Version, parts: Sequence[memoryview]) -> tuple[int, int] | None:
        """Read a row into `parts`, whose bytes are `row_bytes` in sum; (height, width) of its image. None: it is not there, or
        is of another version of the content; then what `parts` hold is undefined."""
        if not 0 <= index < self.n_kept:
            return None
        mark = bytearray(MARK.size)
        try:
            n_bytes = os.preadv(self._own(), [mark, *parts], self._start(index))
        except OSError:  # the file is gone, or its disk fails: the row is loaded
            return None
        if n_bytes != self._record_bytes:
            return None
        said = said_by(mark, index)
        if said is None or said[0] != version:
            return None
        return said[1] if said[2] == self._checksum(parts) else None

    def write(self, index: int, version: Version, size: tuple[int, int], parts: Sequence[memoryview]) -> None:
        """Keep a row; `size` is (height, width) of its image. Does nothing where it cannot be kept."""
        fd = self._own()
        if not (0 <= index < self.n_kept and self._writes and fd >= 0):
            return
        start = self._start(index)
        mark = mark_of(index, version, size, self._checksum(parts))
        try:
            self._writes = os.pwritev(fd, parts, start + MARK.size) == self._row_bytes and os.pwrite(fd, mark, start) == len(
                mark
            )
        except OSError:  # no space, a quota, a limit of file sizes, a disk that fails: the row is loaded each time
            self._writes = False

    def are_marked(self, indices: np.ndarray) -> np.ndarray:
        """Which rows have a mark: `(n,) bool`. They are probably there; their checksums are not computed."""
        return np.array([i < self.n_kept and self._is_marked(i) for i in indices.tolist()], bool)

    def _is_marked(self, index: int) -> bool:
        try:
            return os.pread(self._own(), 8, self._start(index)) == MARKED
        except OSError:
            return False

    def will_need(self, indices: np.ndarray) -> None:
        """Have the kernel read these rows, and do not wait for them."""
        for index in indices.tolist():
            with suppress(OSError):
                os.posix_fadvise(self._own(), self._start(index), self._record_bytes, os.POSIX_FADV_WILLNEED)

    def _start(self, index: int) -> int:
        return HEADER_BYTES + index * self._record_bytes

    def _checksum(self, parts: Sequence[memoryview]) -> int:
        made = 0
        for part in parts:
            made = int(hash_function()(part, seed=made))
        return made

    # -- the file -----------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        """Make the file, if there is none: whole at once, by a link, as another process may make it, too."""
        if os.path.exists(self.path):
            return
        new = f"{self.path}.new-{os.getpid()}-{id(self)}"
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            try:
                with open(new, "wb") as file:
                    file.write((MAGIC + self._key).ljust(HEADER_BYTES, b"\0"))
                with suppress(FileExistsError):
                    os.link(new, self.path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(new)
        except OSError as error:
            raise ConfigError(
                f"the cache {short(self.path)} cannot be made: {error.strerror}. Give a folder to write to"
            ) from error

    def _open(self) -> None:
        try:
            try:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:  # a cache that is only read is one, too
                self._fd, self._writes = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), False
            self._pid = os.getpid()
            head = os.pread(self._fd, HEADER_BYTES, 0)
        except OSError as error:
            raise ConfigError(f"the cache {short(self.path)} cannot be opened: {error.strerror}") from error
        if head != (MAGIC + self._key).ljust(HEADER_BYTES, b"\0"):
            os.close(self._fd)
            self._fd = -1
            raise ConfigError(f"{short(self.path)} is no cache of these rows, or is damaged: delete it")

    def _own(self) -> int:
        """The descriptor of this process; -1: the file is not there any more, and all rows are loaded."""
        if self._pid != os.getpid():
            if self._fd >= 0 and self._pid:
                os.close(self._fd)  # a fork's copy of its parent's
            self._fd, self._pid = -1, os.getpid()
            with suppress(ConfigError):
                self._open()
        return self._fd

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fd": -1, "_pid": 0, "_writes": True}

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0 and self._pid == os.getpid():
            os.close(self._fd)


def mark_of(index: int, version: Version, size: Size, checksum: int) -> bytes:
    """The mark of row `index`."""
    said = MARK.pack(int.from_bytes(MARKED, "little"), *version, size[0] << 32 | size[1], checksum, 0)
    return said[:-8] + _seal(index, said)


def said_by(mark: bytes | bytearray, index: int) -> tuple[Version, Size, int] | None:
    """(version of the content, size of the image, checksum of the row); None: this is no mark of row `index`."""
    if mark[:8] != MARKED or mark[-8:] != _seal(index, mark):
        return None
    _, n_bytes, time_ns, size, checksum, _ = MARK.unpack(mark)
    return (n_bytes, time_ns), (size >> 32, size & 0xFFFFFFFF), checksum


def _seal(index: int, mark: bytes | bytearray) -> bytes:
    return int(hash_function()(SEAL.pack(*MARK.unpack(mark)[:5], index))).to_bytes(8, "little")


@cache
def hash_function() -> Any:
    """XXH3, 64 bits."""
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError as error:
        raise missing("a cache", "xxhash", error) from error
    return xxh3_64_intdigest
