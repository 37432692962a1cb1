"""Locks whose `with` no interruption cuts: interruptions by a timer, at moments that no profile function is told of."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringload.system import interrupts
from tests.conftest import Injected, Times

pytestmark = pytest.mark.fault


class Interrupted(BaseException):
    """As KeyboardInterrupt, but pytest does not end for it."""


def use(lock: Any) -> None:
    """Take a lock and give it back, for ever."""
    while True:
        with lock:
            pass


@pytest.fixture
def interrupt_soon() -> Iterator[Callable[[float], None]]:
    """A function that has `Interrupted` raised in `use` after some seconds."""

    def interrupt(number: int, frame: Any) -> None:
        while frame is not None and frame.f_code is not use.__code__:
            frame = frame.f_back
        if frame is not None:
            raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds, 0.001) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


KINDS: dict[str, Callable[[], Any]] = {
    "lock": interrupts.new_lock,
    "rlock": interrupts.new_rlock,
    "as from 3.14 on": lambda: interrupts._OneStep(threading.Lock()),
}


def is_free(lock: Any) -> bool:
    """Whether another thread can take it."""
    taken = []

    def take() -> None:
        taken.append(lock.acquire(False))
        if taken[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(taken[0])


@pytest.mark.parametrize("kind", KINDS)
def test_no_interruption_keeps_a_lock(kind: str, interrupt_soon: Any, times: Times, injected: Injected) -> None:
    lock, rng, n = KINDS[kind](), random.Random(0), times(500, 10_000)
    for _ in range(n):
        interrupt_soon(rng.uniform(0.00002, 0.0002))
        with pytest.raises(Interrupted):
            use(lock)
        interrupt_soon(0)
        assert is_free(lock)
    injected("Ctrl-C while a lock is taken and given back", n)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_is_one(kind: str) -> None:
    lock = KINDS[kind]()
    with lock:
        assert not is_free(lock)
    with pytest.raises(ZeroDivisionError), lock:
        1 / 0  # noqa: B018
    assert is_free(lock)


def test_a_finalizer_goes_on_after_an_interruption() -> None:
    """And is not called again for another error."""
    calls: list[BaseException] = []

    def end(error: BaseException) -> None:
        calls.append(error)
        if len(calls) == 1:
            raise error

    with pytest.raises(KeyboardInterrupt):
        interrupts.finalize(lambda: end(KeyboardInterrupt()))
    assert len(calls) == 2
    calls.clear()
    with pytest.raises(OSError, match="once"):
        interrupts.finalize(lambda: end(OSError("once")))
    assert len(calls) == 1


def test_threads_wait_for_each_other() -> None:
    lock, inside, most = interrupts._OneStep(threading.Lock()), [0], [0]

    def work() -> None:
        for _ in range(200):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                sys.setswitchinterval(1e-6)
                inside[0] -= 1

    interval = sys.getswitchinterval()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert (most, inside) == ([1], [0])
