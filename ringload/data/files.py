"""Reading files: opened before they are needed, so that the storage's latency is hidden behind decoding.

`ReadAhead.ask` opens files and asks the kernel to read them (posix_fadvise WILLNEED, which returns at once); `take` hands
over one that was asked for. Where opening is slow in itself (NFS, FUSE, a disk that sleeps), threads do it.

Nothing but regular files is opened for reading: a FIFO would block for good, a device may never end.
`read_table` reads the tables that samples are listed in.
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
from typing import TYPE_CHECKING, Any

from ringload.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

MAX_OPEN = 256  # files that are open at once; many systems allow a process 1,024
SLOW_OPEN_S = 0.0005  # mean time of opening a file from which on threads do it; on a local disk it takes 0.00001
N_THREADS = 16
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}

Path = str | bytes
Opened = tuple[int, int]  # descriptor, size in bytes


def read_table(df: Any) -> pd.DataFrame:
    """A DataFrame, or the .csv or .parquet file of one.

    Raises:
        ConfigError: it is neither, or cannot be read.
    """
    import pandas as pd

    if isinstance(df, pd.DataFrame):
        return df
    if not isinstance(df, str | os.PathLike):
        raise ConfigError(f"df is a DataFrame or the path of a .csv or .parquet file of one, not a {type(df).__name__}")
    path = os.fspath(df)
    if not path.endswith((".csv", ".parquet")):
        raise ConfigError(f"the table {path} is neither .csv nor .parquet")
    try:
        return pd.read_csv(path) if path.endswith(".csv") else pd.read_parquet(path)
    except ImportError as error:
        raise ConfigError(f"cannot read the table {path}: it needs pyarrow, pip install 'ringload[parquet]'") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the table {path}: {error}") from error


def open_regular(path: Path, fds: list[int]) -> int:
    """Open a file for reading, and return its size in bytes. Never waits for anybody.

    The descriptor is noted in `fds` in the step in which the kernel gives it, so that no interruption loses it; who has `fds`
    closes what is in there, also where the file is refused.

    Raises:
        OSError: it cannot be opened. ValueError: it is no regular file, or empty.
    """
    fds.extend(starmap(os.open, ((path, FLAGS),)))
    status = os.fstat(fds[-1])
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise ValueError(f"not a regular file but {kind}: {os.fsdecode(path)}")
    if status.st_size == 0:
        raise ValueError(f"an empty file: {os.fsdecode(path)}")
    return status.st_size


def read_whole(fd: int, n_bytes: int, buffer: bytearray) -> memoryview:
    """The content of a file of `n_bytes`, in `buffer` if it fits, else in memory of its own. Less, if the file shrank."""
    view = memoryview(buffer if n_bytes <= len(buffer) else bytearray(n_bytes))[:n_bytes]
    n_read = 0
    while n_read < n_bytes:
        n = os.preadv(fd, [view[n_read:]], n_read)
        if n == 0:
            break
        n_read += n
    return view[:n_read]


class ReadAhead:
    """Files that were asked for, by a key of the caller's. Owns their descriptors until they are taken."""

    def __init__(self) -> None:
        self._ready: dict[int, Opened | Exception | Future[Opened]] = {}
        self._max_open = min(MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open_s = 0.0  # running mean of what opening takes
        self._threads: ThreadPoolExecutor | None = None

    def ask(self, files: Iterable[tuple[int, Path]]) -> None:
        """Have files opened and read: (key, path). What cannot be opened says so when it is taken."""
        begin_s, n_opened = time.monotonic(), 0
        for key, path in files:
            if key in self._ready:
                continue
            if len(self._ready) >= self._max_open:
                break
            if self._open_s > SLOW_OPEN_S:
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(N_THREADS, "ringload-open")
                self._ready[key] = self._threads.submit(_open_ahead, path)
                continue
            try:
                self._ready[key] = _open_ahead(path)
            except (OSError, ValueError) as error:
                if is_full(error):
                    break
                self._ready[key] = error
            n_opened += 1
        if n_opened:
            self._open_s += ((time.monotonic() - begin_s) / n_opened - self._open_s) * (1 - (7 / 8) ** n_opened)

    def open(self, key: int, path: Path, fds: list[int]) -> int:
        """The file that was asked for by `key`, or else is opened now: as `open_regular`."""
        opened = self.take(key)
        if opened is not None:
            fds.append(opened[0])
            return opened[1]
        try:
            return open_regular(path, fds)
        except OSError as error:
            if not is_full(error) or not self._ready:
                raise
        self.close()  # those that were opened ahead have taken the descriptor that this one needs
        return open_regular(path, fds)

    def take(self, key: int) -> Opened | None:
        """A file that was asked for by `key`; the descriptor is the caller's. None if it was not asked for, or there was no
        descriptor for it then.

        Raises:
            OSError, ValueError: as `open_regular`.
        """
        ready = self._ready.pop(key, None)
        if isinstance(ready, Future):
            try:
                return ready.result()
            except OSError as error:
                if is_full(error):
                    return None
                raise
        if isinstance(ready, Exception):
            raise ready
        return ready

    def close(self) -> None:
        """Close what nobody took."""
        for key in list(self._ready):
            try:
                opened = self.take(key)
            except (OSError, ValueError):
                continue  # it could not be opened: there is nothing to close
            if opened is not None:
                os.close(opened[0])
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


def is_full(error: Exception) -> bool:
    """Whether it says that there are no descriptors left, which is no fault of the file's."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def _open_ahead(path: Path) -> Opened:
    fds: list[int] = []
    try:
        n_bytes = open_regular(path, fds)
        os.posix_fadvise(fds[0], 0, 0, os.POSIX_FADV_WILLNEED)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds[0], n_bytes
