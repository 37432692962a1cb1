"""Reads that are under way in this process: what a worker waits for that has several tasks, and no bytes for any of them.

A read that is begun in another thread calls `begin`, and `end` once its bytes are there, or will not come. A worker looks for a
task that is ready, and if there is none it waits for the next end; each may have made a task ready, of whatever source.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Arrivals:
    """Counts reads that are under way, and notifies of each end. All methods may be called by any thread."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._changed, self._n_under_way, self.n_ended = threading.Condition(), 0, 0

    def forked(self) -> None:
        """This process is a fork, which has none of the threads that read."""
        self._reset()

    def begin(self) -> None:
        """A read is begun."""
        with self._changed:
            self._n_under_way += 1

    def end(self) -> None:
        """A read is over."""
        with self._changed:
            self._n_under_way -= 1
            self.n_ended += 1
            self._changed.notify_all()

    def follow(self, submit: Callable[..., Future[T]], *arguments: Any) -> Future[T]:
        """Begin a read that `submit(*arguments)` hands to another thread; it is over when its future is done."""
        self.begin()
        try:
            future = submit(*arguments)
        except BaseException:  # no thread can be started, say
            self.end()
            raise
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: Future[Any]) -> None:
        """Called for each future that is done, also for one that was cancelled."""
        self.end()

    def wait(self, n_ended: int) -> bool:
        """Wait until more reads than `n_ended` are over. False, at once: none is under way."""
        with self._changed:
            while self.n_ended == n_ended:
                if self._n_under_way <= 0:
                    return False
                self._changed.wait()
        return True


ARRIVALS = Arrivals()
os.register_at_fork(after_in_child=ARRIVALS.forked)
