"""Faults at every moment: something is done just after the k-th call that ringload makes, for every k.

Python handles signals when a function begins, when a call has returned, and when a loop goes round. A profile function is
told of the first two; so what it does there is what a signal handler could do there. Each place is hit, and none twice.
"""

from __future__ import annotations

import gc
import inspect
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ringload
from tests.conftest import leftovers

# Where Python alone can lose what is raised, or a descriptor that the kernel has just given.
UNTOUCHED = {"__del__", "pipe", "socketpair"}
WEAK = {"weakref", "_weakrefset"}  # whose callbacks are finalizers, too; they begin in a function of these modules
HOME = str(Path(ringload.__file__).parent)


def inside(frame: Any) -> bool:
    """Whether ringload's code is being executed, but not within a finalizer or a hook of fork(), where Python swallows what
    is raised."""
    innermost, found = frame, False
    if frame.f_globals["__name__"] in WEAK or (frame.f_back is not None and frame.f_back.f_globals["__name__"] in WEAK):
        return False
    while frame is not None:
        name = frame.f_code.co_name
        if name in UNTOUCHED or (name == "fork_for" and frame is not innermost):
            return False
        found = found or frame.f_code.co_filename.startswith(HOME)
        frame = frame.f_back
    return found


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


class Moment:
    """`with Moment(k, act):` calls `act` at the k-th moment inside."""

    def __init__(self, k: int, act: Callable[[], Any]) -> None:
        self.left, self.act = k, act
        self.pid = os.getpid()  # a fork of this process has the profile function too

    def __enter__(self) -> Moment:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)

    def _profile(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_flags & inspect.CO_GENERATOR:
            return  # perhaps one that is entered to be ended: Python swallows what is raised there
        if event not in ("call", "c_return") or os.getpid() != self.pid or not inside(frame):
            return
        if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
            return  # ringload has shut it out here
        self.left -= 1
        if self.left == 0:
            sys.setprofile(None)
            self.act()


def moments(operation: Callable[[], Any], n: int, seed: int = 0) -> Iterator[int]:
    """Up to `n` of the moments of an operation, which is done once to count them; all of them if they are no more."""
    count = Moment(-1, interrupt)
    with count:
        operation()
    total = -1 - count.left
    assert total > 0
    yield from sorted(random.Random(seed).sample(range(1, total + 1), min(n, total)))


def gone(within_s: float = 2.0) -> str:
    """What is left of all loaders when none is held any more: "" if nothing. Waits for what the kernel is about to end."""
    deadline_s = time.monotonic() + within_s
    while True:
        gc.collect()
        if not (left := leftovers(set())) or time.monotonic() > deadline_s:
            return left
        time.sleep(0.002)
