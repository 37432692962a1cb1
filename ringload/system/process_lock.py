"""A lock that a fork does not inherit: a thread of the parent's may hold it, and would never give it back."""

from __future__ import annotations

import os
import threading

from ringload.system.interrupts import new_rlock


class ProcessLock:
    """`with lock.here():` is entered by one thread of the process at a time."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._lock, self._pid = new_rlock(), os.getpid()

    def here(self) -> threading.RLock:
        """The lock of this process."""
        if self._pid != os.getpid():  # before a fork has threads
            self._renew()
        return self._lock
