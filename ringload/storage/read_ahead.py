"""Opens local files before they are needed, so that the latency of a disk or a network is hidden behind decoding.

`ReadAhead.ask` opens files and asks the kernel to read them (posix_fadvise WILLNEED, which returns at once); `take` returns
such a file. Where opening itself is slow (NFS, FUSE, a disk that sleeps), threads open the files.

Only regular files are read: a FIFO would block forever, and a device may have no end.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import starmap

MAX_OPEN = 256  # files that are open at once; many systems allow a process 1,024
SLOW_OPEN_S = 0.0005  # threads open files if the mean time is longer; on a local disk it is 0.00001
N_THREADS = 16
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}

Opened = tuple[int, int]  # descriptor, size in bytes


def open_regular(path: str, fds: list[int]) -> int:
    """Open a file for reading, and return its size in bytes. This waits for no other process.

    The descriptor is opened and appended to `fds` in one step, so that no interruption loses it. The caller closes all of
    `fds`, also if the file is refused.

    Raises:
        OSError: it cannot be opened. ValueError: it is no regular file, or empty.
    """
    fds.extend(starmap(os.open, ((path, FLAGS),)))
    status = os.fstat(fds[-1])
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise ValueError(f"not a regular file but {kind}: {path}")
    if status.st_size == 0:
        raise ValueError(f"an empty file: {path}")
    return status.st_size


class ReadAhead:
    """Files that are opened ahead, by their paths. Owns their descriptors until they are taken."""

    def __init__(self) -> None:
        self._ready: dict[str, Opened | Exception | Future[Opened]] = {}
        self._max_open = min(MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open_s = 0.0  # running mean of the time to open a file
        self._threads: ThreadPoolExecutor | None = None

    def ask(self, paths: Iterable[str]) -> None:
        """Have files opened and read. The error of a file that cannot be opened is raised when the file is taken."""
        begin_s, n_opened = time.monotonic(), 0
        for path in paths:
            if path in self._ready:
                continue
            if len(self._ready) >= self._max_open:
                break
            if self._open_s > SLOW_OPEN_S:
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(N_THREADS, "ringload-open")
                self._ready[path] = self._threads.submit(_open_ahead, path)
                continue
            try:
                self._ready[path] = _open_ahead(path)
            except (OSError, ValueError) as error:
                if is_full(error):
                    break
                self._ready[path] = error.with_traceback(None)  # the traceback's frames would keep this object alive
            n_opened += 1
        if n_opened:
            self._open_s += ((time.monotonic() - begin_s) / n_opened - self._open_s) * (1 - (7 / 8) ** n_opened)

    def open(self, path: str, fds: list[int]) -> int:
        """As `open_regular`, for a file that was opened ahead or is opened now."""
        opened = self.take(path)
        if opened is not None:
            fds.append(opened[0])
            return opened[1]
        try:
            return open_regular(path, fds)
        except OSError as error:
            if not is_full(error) or not self._ready:
                raise
        self.close()  # files that were opened ahead have used up the descriptors
        return open_regular(path, fds)

    def take(self, path: str) -> Opened | None:
        """A file that was opened ahead; the caller owns the descriptor. None if the file was not asked for, or if no descriptor
        was left for it.

        Raises:
            OSError, ValueError: as `open_regular`.
        """
        ready = self._ready.pop(path, None)
        try:
            if isinstance(ready, Future):
                return ready.result()
            if isinstance(ready, Exception):
                raise ready
            return ready
        except OSError as error:
            if is_full(error):
                return None
            raise
        finally:
            del ready  # an exception in it holds this frame: a reference cycle

    def close(self) -> None:
        """Close the files that were not taken. Idempotent."""
        for path in list(self._ready):
            try:
                opened = self.take(path)
            except (OSError, ValueError):
                continue  # it could not be opened: there is nothing to close
            if opened is not None:
                os.close(opened[0])
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


def is_full(error: Exception) -> bool:
    """Whether the error says that no descriptors are left, which is not the file's fault."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def _open_ahead(path: str) -> Opened:
    fds: list[int] = []
    try:
        n_bytes = open_regular(path, fds)
        os.posix_fadvise(fds[0], 0, 0, os.POSIX_FADV_WILLNEED)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds[0], n_bytes
