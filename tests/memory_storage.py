"""A storage in memory that takes its time, as a remote one does: an example of `ringload.Storage`.

ringload.register_storage("memory", functools.partial(MemoryStorage, contents, latency_s=0.02))
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ringload import ContentTooLargeError


class MemoryStorage:
    """Contents by their keys.

    Threads fetch what was asked for ahead, in the order in which it was asked for, as far as it fits into the memory that
    there is for it. So the latency of all of them is waited for once.

    Arguments:
        contents: key -> bytes. latency_s: what fetching one takes.
        log: a file; each call adds a line to it.
    """

    def __init__(self, contents: Mapping[str, bytes], latency_s: float = 0.0, log: str = os.devnull) -> None:
        self._contents, self._latency_s = contents, latency_s
        self._log = open(log, "a", buffering=1)  # noqa: SIM115  (closed by `close`)
        self._threads = ThreadPoolExecutor(16)
        self._ahead: dict[str, Future[bytes]] = {}
        self._ahead_bytes = 0

    def prefetch(self, keys: Sequence[str], max_bytes: int) -> None:
        """Fetch ahead as many as fit; the others are fetched when they are read."""
        for key in keys:
            n_bytes = len(self._contents.get(key, b""))
            if key not in self._ahead and self._ahead_bytes + n_bytes <= max_bytes:
                self._log.write(f"prefetch {key}\n")
                self._ahead[key] = self._threads.submit(self._fetch, key)
                self._ahead_bytes += n_bytes

    def read(self, key: str, max_bytes: int) -> bytes:
        """A content, once it is there."""
        self._log.write(f"read {key}\n")
        n_bytes = len(self._contents.get(key, b""))
        ahead = self._ahead.pop(key, None)
        if ahead is not None:
            self._ahead_bytes -= n_bytes
        if n_bytes > max_bytes:
            raise ContentTooLargeError(n_bytes, max_bytes)
        return self._fetch(key) if ahead is None else ahead.result()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)
        self._ahead.clear()
        self._log.close()

    def _fetch(self, key: str) -> bytes:
        time.sleep(self._latency_s)
        if key not in self._contents:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return self._contents[key]
