"""Local files of which parts are read, such as archives: their descriptors are kept open, those of the last used files.

At most `MAX_KEPT` files are open at once, and a quarter of the descriptors that this process may have. The file that was not
used for the longest time is closed for another one. A file that was replaced (renamed over) stays the former one for as long
as it is kept; one that was written to shows it by its time: see `stat`.
"""

from __future__ import annotations

import errno
import os
import resource

from ringload.protocols import ByteRange, ContentStat
from ringload.storage.read_ahead import is_full, open_regular
from ringload.system.interrupts import FdOwner

MAX_KEPT = 64


class _File(FdOwner):
    """Owns the descriptor of one file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        try:
            open_regular(path, self._fds)
        except BaseException:
            self.close()  # now, and not when the traceback is collected
            raise
        self.fd = self._fds[0]


class KeptOpen:
    """Owns the last used files."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}  # path -> file; the last used one is last
        self._max_kept = max(1, min(MAX_KEPT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

    def stat(self, path: str) -> ContentStat:
        """The size of a file, and the time of its last change, in nanoseconds, as its version.

        Raises:
            OSError: it cannot be opened. ValueError: it is no regular file, or empty.
        """
        status = os.fstat(self._file(path).fd)
        return ContentStat(status.st_size, str(status.st_mtime_ns))

    def read(self, part: ByteRange, buffer: memoryview) -> memoryview:
        """Fill `buffer` with a part of a file.

        Raises:
            OSError: the file cannot be opened or read, or ends before the part does. ValueError: it is no regular file.
        """
        fd, n_read = self._file(part.key).fd, 0
        while n_read < len(buffer):
            n = os.preadv(fd, [buffer[n_read:]], part.start + n_read)
            if n == 0:
                text = f"the file ends at byte {part.start + n_read:,}, before byte {part.start + len(buffer):,}"
                raise OSError(errno.EIO, text, part.key)
            n_read += n
        return buffer

    def ask(self, part: ByteRange) -> None:
        """Have the kernel read a part of a file."""
        os.posix_fadvise(self._file(part.key).fd, part.start, part.n_bytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close all files. Idempotent."""
        while self._files:
            self._files.popitem()[1].close()

    def _file(self, path: str) -> _File:
        file = self._files.pop(path, None)
        if file is None:
            file = self._open(path)
        self._files[path] = file
        return file

    def _open(self, path: str) -> _File:
        while len(self._files) >= self._max_kept:
            self._files.pop(next(iter(self._files))).close()
        try:
            return _File(path)
        except OSError as error:
            if not is_full(error) or not self._files:
                raise
        self.close()  # the files that are kept have used up the descriptors
        return _File(path)
