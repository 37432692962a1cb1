"""Local files as a storage: a key is a path.

Contents of up to `KEPT_BYTES` are read into one buffer, which is used again; a larger one gets new memory. Data read
ahead stays in the kernel's page cache. Files of which ranges are read (archives) stay open, a bounded number: `kept_open`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from ringload.errors import ContentTooLargeError
from ringload.protocols import ByteRange, ContentStat
from ringload.storage.kept_open import KeptOpen
from ringload.storage.read_ahead import ReadAhead

KEPT_BYTES = 4 << 20


class LocalStorage:
    """See `ringload.protocols.Storage`."""

    def __init__(self) -> None:
        self._ahead = ReadAhead()
        self._archives = KeptOpen()
        self._kept = bytearray()

    def prefetch(self, keys: Sequence[str], max_bytes: int) -> None:
        """Open the files, and have the kernel read them."""
        self._ahead.ask(keys)

    def read(self, key: str, max_bytes: int) -> memoryview:
        """The content of a file; shorter if the file has shrunk since it was opened.

        Raises:
            OSError: it cannot be opened or read. ValueError: it is no regular file, or empty. ContentTooLargeError: it is
            larger than `max_bytes`.
        """
        fds: list[int] = []
        closed = map(os.close, fds)  # each is taken and closed in one step, which nothing interrupts
        try:
            n_bytes = self._ahead.open(key, fds)
            if n_bytes > max_bytes:
                raise ContentTooLargeError(n_bytes, max_bytes)
            return _read_whole(fds[0], self._buffer(n_bytes))
        finally:
            for _ in closed:
                pass

    def stat(self, key: str) -> ContentStat:
        """The size of a file, and its version: the time of its last change.

        Raises:
            OSError: it cannot be opened. ValueError: it is no regular file, or empty.
        """
        return self._archives.stat(key)

    def read_range(self, range: ByteRange, max_bytes: int) -> memoryview:  # noqa: A002  (named in `Storage`)
        """Some bytes of a file.

        Raises:
            OSError: it cannot be opened or read, or it ends before the range does. ValueError: it is no regular file.
            ContentTooLargeError: the range is larger than `max_bytes`.
        """
        if range.n_bytes > max_bytes:
            raise ContentTooLargeError(range.n_bytes, max_bytes)
        return self._archives.read(range, self._buffer(range.n_bytes))

    def prefetch_ranges(self, ranges: Sequence[ByteRange], max_bytes: int) -> None:
        """Have the kernel read some ranges. `read_range` says what is wrong with a file."""
        for one in ranges:
            with suppress(OSError, ValueError):
                self._archives.ask(one)

    def close(self) -> None:
        """Close all files that are open. Idempotent."""
        self._ahead.close()
        self._archives.close()

    def _buffer(self, n_bytes: int) -> memoryview:
        if n_bytes > KEPT_BYTES:
            return np.empty(n_bytes, np.uint8).data  # in huge pages where possible, and not zeroed first
        if n_bytes > len(self._kept):
            self._kept = bytearray(min(n_bytes + n_bytes // 4, KEPT_BYTES))
        return memoryview(self._kept)[:n_bytes]


def _read_whole(fd: int, buffer: memoryview) -> memoryview:
    n_read = 0
    while n_read < len(buffer):
        n = os.preadv(fd, [buffer[n_read:]], n_read)
        if n == 0:
            break
        n_read += n
    return buffer[:n_read]
