"""State of the whole process that is set while any thread decodes.

The first thread that enters `with hook():` sets the state, and the last that leaves undoes it. If each thread set it, the last
to leave could restore what belongs to a thread that is gone.

An interruption (Ctrl-C) may come after any call, here too. So each `with` has an object that holds the hook: it lets go of the
hook when the block is left, or else when the object is freed with the traceback of the interruption. A change can be undone
twice, and after it was set in part.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol

from ringload.system.interrupts import new_rlock


class Change(Protocol):
    """A change of state. `undo` may follow a `set` that was interrupted, or another `undo`. It keeps what other code has set
    meanwhile."""

    def set(self) -> None: ...

    def undo(self) -> None: ...


class Hook:
    """The change is set inside of `with hook():`."""

    def __init__(self, change: Change) -> None:
        self._change, self._is_set = change, False
        self._holders: dict[int, int] = {}  # id of a `_Held` -> its thread
        self._lock = new_rlock()
        os.register_at_fork(after_in_child=self._forget_others)

    def __call__(self) -> _Held:
        return _Held(self)

    def _forget_others(self) -> None:
        """In a fork, which has one thread. Another thread may have held the lock."""
        self._lock = new_rlock()
        me = threading.get_ident()
        self._holders = {key: thread for key, thread in self._holders.items() if thread == me}
        self._reconcile()

    def hold(self, key: int) -> None:
        with self._lock:
            self._holders[key] = threading.get_ident()
            self._reconcile()

    def leave(self, key: int) -> None:
        with self._lock:
            self._holders.pop(key, None)
            self._reconcile()

    def _reconcile(self) -> None:
        if self._holders and not self._is_set:
            self._is_set = True  # first: then an interrupted `set` is undone, too
            self._change.set()
        elif self._is_set and not self._holders:
            self._change.undo()
            self._is_set = False


class _Held:
    _hook: Hook | None = None  # until __init__ is done, which may be interrupted

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    def __enter__(self) -> None:
        assert self._hook is not None
        self._hook.hold(id(self))

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.leave(id(self))

    def __del__(self) -> None:
        self.__exit__()


class Attribute:
    """The change of an attribute."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value
        self._before = value

    def set(self) -> None:
        self._before = getattr(self._owner, self._name)
        setattr(self._owner, self._name, self._value)

    def undo(self) -> None:
        if getattr(self._owner, self._name) is self._value:
            setattr(self._owner, self._name, self._before)
