"""close(): from everywhere, at any moment, as often as one likes. It returns at once, and within a second nothing is left.

Whoever is inside `next()` meanwhile gets Closed, or the batch that it was about to get, which stays right.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from ringload import Batch, Loader, LoaderClosedError
from tests.conftest import Injected, Times
from tests.helpers import Truth, check
from tests.moments import Moment, gone, moments

pytestmark = pytest.mark.fault

METHODS = pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
PROMPT_S = 8.0  # less than TICK_S, and than what the pool gives a process to end
TICK_S = 20.0  # no wait looks by itself before that, and sees that it is to end: it has to be woken


class Gated(Truth):
    """Samples from 8 on take for ever, unless the worker is ended."""

    def load(self, index: int, rng: Any, out: Any) -> None:
        if index >= 8:
            threading.Event().wait()
        super().load(index, rng, out)


def make(source: Any = None, **options: Any) -> Loader:
    options = {"workers": 2, "ram_budget": "150MB", "start_method": "fork", "restarts": None, **options}
    made = Loader(source or Truth(400), 4, **options)
    made._engine._waiting._tick_s = TICK_S
    return made


def go_on(made: Loader, kept: list[Batch], ends: list[BaseException], begun: threading.Event) -> None:
    """Iterate until that is over, and tell how it ended."""
    try:
        while True:
            for batch in made:
                check(batch)
                kept[:] = [batch]
                begun.set()
    except BaseException as error:
        ends.append(error)
    finally:
        begun.set()


@pytest.fixture
def iterating() -> Iterator[Callable[[Loader], tuple[threading.Thread, list[Batch], list[BaseException]]]]:
    """A function that has a thread of its own iterate a loader, and returns when it has its first batch."""
    threads = []

    def start(made: Loader) -> tuple[threading.Thread, list[Batch], list[BaseException]]:
        kept: list[Batch] = []
        ends: list[BaseException] = []
        begun = threading.Event()
        thread = threading.Thread(target=go_on, args=(made, kept, ends, begun), daemon=True)
        threads.append(thread)
        thread.start()
        assert begun.wait(60)
        return thread, kept, ends

    yield start
    for thread in threads:
        thread.join(PROMPT_S)
        assert not thread.is_alive(), "a thread still waits in next() of a closed loader"


@pytest.mark.timeout(600)
@METHODS
def test_four_threads_close_while_a_fifth_iterates(method: Any, iterating: Any, times: Times, injected: Injected) -> None:
    rng, n = random.Random(1), times(8, 150)
    for _ in range(n):
        made = make(start_method=method)
        iterator, kept, ends = iterating(made)
        together = threading.Barrier(4)
        errors: list[Any] = []

        def close(made: Loader = made, together: Any = together, errors: Any = errors, delay_s: float = 0.0) -> None:
            together.wait()
            time.sleep(delay_s)
            try:
                made.close()
            except BaseException:
                errors.append(sys.exc_info()[1])

        closers = [threading.Thread(target=close, kwargs={"delay_s": rng.choice([0, rng.uniform(0, 0.01)])}) for _ in range(4)]
        for closer in closers:
            closer.start()
        for thread in (*closers, iterator):
            thread.join(PROMPT_S)
            assert not thread.is_alive(), "close() or next() hangs"
        assert errors == []
        assert [type(error) for error in ends] == [LoaderClosedError]
        check(kept[0])
        with pytest.raises(LoaderClosedError):
            next(iter(made))
    injected("close() by four threads at once while a fifth is in next()", n)


@pytest.mark.parametrize("source", [Truth(400), Gated(400)], ids=["busy", "waiting"])
def test_a_signal_handler_closes_at_random_moments(source: Any, times: Times, injected: Injected) -> None:
    rng, n, n_within = random.Random(2), times(15, 200), 0
    made: Loader | None = None

    def close(number: int, frame: Any) -> None:
        if made is not None:
            made.close()

    previous = signal.signal(signal.SIGALRM, close)
    try:
        for _ in range(n):
            with make(source, shuffle=False) as made:
                begin_s = time.monotonic()
                try:
                    while True:
                        for batch in made:
                            check(batch)
                            if batch.number == 1:  # of `Gated`, there is no other
                                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.01))
                except LoaderClosedError:
                    n_within += 1
                assert time.monotonic() - begin_s < PROMPT_S  # it was woken, and did not wait to look
                made.close()
            made = None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert n_within == n
    injected("close() by a signal handler during next()", n)


def test_a_close_comes_at_every_moment_of_another(times: Times, injected: Injected) -> None:
    """As by a signal handler, or another thread: the first one may hold the lock, and half of it may be closed already."""

    def begun() -> Loader:
        made = make()
        check(next(iter(made)))
        return made

    at = list(moments(begun().close, times(40, 10_000)))
    for k in at:
        made = begun()
        with Moment(k, made.close):
            made.close()
        made.close()
        del made
        assert not gone()
    injected("close() at every moment of another close()", len(at))


class Lock:
    """An engine's lock. Something is done just before it is released, once."""

    def __init__(self, lock: threading.Lock, act: Callable[[], Any]) -> None:
        self.lock, self.act, self.acquire, self.locked = lock, act, lock.acquire, lock.locked

    def release(self) -> None:
        act, self.act = self.act, int
        act()
        self.lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()


@pytest.mark.parametrize(
    "call", [next, lambda iterator: iterator._loader.poll(), lambda iterator: iterator._loader.set_epoch(1)]
)
def test_a_close_comes_when_all_is_done_and_the_lock_is_still_held(call: Any, injected: Injected) -> None:
    made = make()
    iterator = iter(made)
    check(next(iterator))
    closer = threading.Thread(target=made.close)

    def close() -> None:
        closer.start()
        closer.join(PROMPT_S)
        assert not closer.is_alive(), "close() hangs"

    made._engine._state.life.lock = Lock(made._engine._state.life.lock, close)  # type: ignore[assignment]
    call(iterator)
    assert closer.ident is not None
    assert not gone()
    with pytest.raises(LoaderClosedError):
        next(iter(made))
    injected("close() just before the lock is released", 1)


class Holder:
    """An object of a user's whose finalizer closes a loader."""

    def __init__(self, made: Loader) -> None:
        self.made = made
        self.itself = self  # so that the garbage collector finalizes it, at a moment of its own

    def __del__(self) -> None:
        self.made.close()


@METHODS
def test_a_finalizer_closes(method: Any) -> None:
    holder = Holder(make(start_method=method))
    iterator = iter(holder.made)
    check(next(iterator))
    gone = weakref.ref(holder)
    del holder
    gc.collect()
    assert gone() is None
    with pytest.raises(LoaderClosedError):
        next(iterator)


def test_the_garbage_collector_closes_while_another_is_in_next(iterating: Any, times: Times, injected: Injected) -> None:
    """The loader is dropped by all but the thread that iterates: that goes on; then by it too: then it is closed."""
    n = times(3, 50)
    for _ in range(n):
        made = make()
        gone = weakref.ref(made)
        thread, _, ends = iterating(made)
        holder = Holder(made)
        del made, holder
        gc.collect()
        thread.join(PROMPT_S)
        assert [type(error) for error in ends] == [LoaderClosedError]
        ends.clear()  # their tracebacks hold it
        gc.collect()
        assert gone() is None
    injected("close() by the garbage collector while another thread is in next()", n)


def test_a_close_during_close_by_a_with_block() -> None:
    with suppress(LoaderClosedError), make() as made:
        iterator = iter(made)
        for _ in range(3):
            check(next(iterator))
            made.close()
            made.close()
