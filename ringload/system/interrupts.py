"""What a signal must not split: the one mechanism, and why it works.

KeyboardInterrupt, and whatever else a signal handler raises, comes between two instructions of Python: after a call has
returned and before its result is bound, say. Then a lock is taken that nobody releases, or a descriptor is open that nobody
closes. No `try` helps, as it begins one instruction later.

The interpreter looks for signals when it goes from one instruction to the next, not inside of C code: when a function written
in Python begins, when a call of a function written in C has returned, and when a loop goes round. So what has to happen in
one step is done by one call into C that does both: an iterator of C (`map`, `filter`) that makes the system's call and hands
its result over, to a list (`extend`) or to a loop's `for`, whose step is no call.

`with lock:` is such a step up to Python 3.13, where `with` is one instruction. From 3.14 on it calls `__enter__`, and signals
are looked for when that has returned: of 3,000 interruptions of a loop of `with lock: pass`, 1,197 left the lock taken for
ever on 3.14.10, and none on 3.13.0 (29 November 2026). So from 3.14 on `new_lock` and `new_rlock` give locks whose
`__enter__` is written in Python: signals are not looked for when such a function returns (none of 3,000 interruptions left
the lock taken).
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, starmap
from typing import Any, cast

WITH_IS_ONE_STEP = sys.version_info < (3, 14)


class FdOwner:
    """Owns descriptors. Closes each of them once: by `close`, or when the object is collected."""

    _closed: Iterator[None] = iter(())  # of an object whose constructor was interrupted

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._closed = map(os.close, self._fds)  # takes a descriptor and closes it in one step

    def _open(self, call: Callable[..., int], *arguments: object) -> int:
        """The descriptor that a system call returns: opened and noted in one step."""
        self._fds.extend(starmap(call, (arguments,)))
        return self._fds[-1]

    def _open_pipe(self) -> tuple[int, int]:
        """The same of a pipe: (read end, write end)."""
        self._fds.extend(chain.from_iterable(map(os.pipe2, (os.O_CLOEXEC,))))
        return self._fds[-2], self._fds[-1]

    def close(self) -> None:
        """Close the descriptors. Idempotent; after an interruption the next call closes the rest."""
        for _ in self._closed:
            pass

    def __del__(self) -> None:
        self.close()


def acquire_now(lock: threading.Lock) -> Iterator[bool]:
    """`for _ in acquire_now(lock): try: ... finally: lock.release()` does this once, if the lock is free. No interruption comes
    between taking the lock and the `try`: a step of this loop is no call."""
    return filter(None, map(lock.acquire, (False,)))


def set_together(*changes: tuple[object, str, Any]) -> None:
    """Set attributes of objects, (object, name, value), in one step: an interruption leaves all or none of them set. Neither
    the attributes nor their objects' `__setattr__` are written in Python."""
    deque(starmap(setattr, changes), maxlen=0)


def finalize(end: Callable[[], None]) -> None:
    """What a finalizer calls to end something: Python calls a finalizer once, and only prints what it raises. So what an
    interruption cuts short is done again before that."""
    try:
        end()
    except KeyboardInterrupt:
        end()
        raise


def new_lock() -> threading.Lock:
    """A lock, of which `with` takes the lock and begins its body in one step."""
    return threading.Lock() if WITH_IS_ONE_STEP else cast(threading.Lock, _OneStep(threading.Lock()))


def new_rlock() -> threading.RLock:
    """The same that its thread may take several times."""
    return threading.RLock() if WITH_IS_ONE_STEP else cast(threading.RLock, _OneStep(threading.RLock()))


class _OneStep:
    """A lock with the methods of the one that it is made of."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.acquire, self.release = lock.acquire, lock.release
        self.locked = getattr(lock, "locked", None)  # an RLock has it from Python 3.14 on

    def __enter__(self) -> bool:
        for _ in map(self.acquire, (True,)):
            return True  # within the loop: signals are looked for when it goes round
        return False

    @property
    def __exit__(self) -> Any:
        """The lock's own, which the interpreter looks up before it enters. One written in Python could be interrupted as it
        begins, before the lock is released."""
        return self._lock.__exit__
