"""Storages that read ranges of a content, for archives that are read in place; and a window that moves over a content."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Protocol, cast

from ringload.checks import named
from ringload.errors import ConfigError
from ringload.protocols import ByteRange, ContentStat, Storage

MAX_END_BYTES = 1 << 16  # of zeros after the end of an archive that are looked at; tar pads to 10,240 bytes
METHODS = ("stat", "read_range", "prefetch_ranges")


class RangedStorage(Storage, Protocol):
    """A storage that has the methods for archives: see `ringload.Storage`."""

    def stat(self, key: str) -> ContentStat: ...

    def read_range(self, range: ByteRange, max_bytes: int) -> bytes | bytearray | memoryview: ...  # noqa: A002

    def prefetch_ranges(self, ranges: Sequence[ByteRange], max_bytes: int) -> None: ...


def ranged(storage: Storage, scheme: str) -> RangedStorage:
    """The storage itself, if it reads ranges.

    Raises:
        ConfigError: it has not all of the methods.
    """
    if lacks := [name for name in METHODS if not callable(getattr(storage, name, None))]:
        raise ConfigError(
            f"the storage that is registered for {scheme}://, {named(storage)}, reads no ranges: it has no {', '.join(lacks)}. "
            "Add these methods (see help(ringload.Storage)), or copy the archives to this machine"
        )
    return cast(RangedStorage, storage)


def read_whole(storage: RangedStorage, part: ByteRange, max_bytes: int) -> bytes | bytearray | memoryview:
    """`storage.read_range`, and no other number of bytes.

    Raises:
        OSError: they cannot be read, or the storage has given fewer or more. ContentTooLargeError: they are too many.
    """
    content = storage.read_range(part, max_bytes)
    if len(content) != part.n_bytes:
        text = f"the storage gave {len(content):,} bytes of the {part.n_bytes:,} from byte {part.start:,} on"
        raise OSError(errno.EIO, text, part.key)
    return content


class Window:
    """Reads small parts of one content, in ascending order, by ranges of `window_bytes`."""

    def __init__(self, storage: RangedStorage, key: str, n_bytes: int, window_bytes: int) -> None:
        self.n_bytes = n_bytes
        self._storage, self._key, self._window_bytes = storage, key, window_bytes
        self._held, self._start = b"", 0

    def read(self, start: int, n_bytes: int) -> bytes:
        """The bytes from `start` on. The caller has checked that the content has them.

        Raises:
            OSError: they cannot be read.
        """
        if not n_bytes:
            return b""
        at = start - self._start
        if at < 0 or at + n_bytes > len(self._held):
            n_wanted = min(max(n_bytes, self._window_bytes), self.n_bytes - start)
            self._held = bytes(read_whole(self._storage, ByteRange(self._key, start, n_wanted), n_wanted))
            self._start, at = start, 0
        return self._held[at : at + n_bytes]

    def has_rest(self, start: int) -> bool:
        """Whether bytes other than 0 are among those that follow, as far as they are looked at."""
        return bool(self.read(start, min(self.n_bytes - start, MAX_END_BYTES)).strip(b"\0"))
