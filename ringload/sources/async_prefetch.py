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
        # by sample, as it may be asked for again before it is loaded: for the next epoch, or in a weighted order
        self._under_way: dict[int, deque[Future[BaseException | None]]] = {}

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to read some samples."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="ringload-prefetch", daemon=True).start()
        coroutine = _guarded(self._coroutine(indices.copy()))
        future = ARRIVALS.follow(asyncio.run_coroutine_threadsafe, coroutine, self._loop)
        for index in indices.tolist():
            self._under_way.setdefault(index, deque()).append(future)

    def is_ready(self, indices: np.ndarray) -> bool:
        """Whether it has ended for these samples. Raises what it has raised."""
        futures = [queue[0] for queue in map(self._under_way.get, indices.tolist()) if queue]
        if not all(future.done() for future in futures):
            return False
        for future in futures:
            if (error := future.result()) is not None:
                raise error
        return True

    def forget(self, indices: np.ndarray) -> None:
        """A task of these samples is over: the next time that they are asked for counts."""
        for index in indices.tolist():
            if queue := self._under_way.get(index):
                queue.popleft()
                if not queue:
                    del self._under_way[index]


async def _guarded(coroutine: Coroutine[Any, Any, Any]) -> BaseException | None:
    """What a coroutine raises, to be raised in the worker's own thread: SystemExit would end the loop's without a word."""
    try:
        await coroutine
    except BaseException as error:
        return error
    return None
