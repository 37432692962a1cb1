"""A source's `prefetch` that is a coroutine: run by an event loop in a thread of its own, one for each process."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import numpy as np

from ringload.system.arrivals import ARRIVALS


class AsyncPrefetch:
    """Calls the coroutine, and knows for which samples it has ended."""

    def __init__(self, coroutine: Callable[[np.ndarray], Coroutine[Any, Any, Any]]) -> None:
        self._coroutine = coroutine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way: dict[bytes, deque[Future[Any]]] = {}  # the same samples may be asked for again, for the next epoch

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to read some samples."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="ringload-prefetch", daemon=True).start()
        ARRIVALS.begin()
        future = asyncio.run_coroutine_threadsafe(self._coroutine(indices), self._loop)
        future.add_done_callback(_arrived)
        self._under_way.setdefault(indices.tobytes(), deque()).append(future)

    def is_ready(self, indices: np.ndarray) -> bool:
        """Whether it has ended for these samples, which were asked for together. Raises what it has raised."""
        key = indices.tobytes()
        futures = self._under_way.get(key)
        if not futures:
            return True
        if not futures[0].done():
            return False
        future = futures.popleft()
        if not futures:
            del self._under_way[key]
        future.result()
        return True


def _arrived(_: Future[Any]) -> None:
    ARRIVALS.end()
