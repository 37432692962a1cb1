"""Forks of the trainer: what belongs to the parent is dropped in the child.

A fork copies descriptors and the state of locks. The child must not keep the workers' lifeline open, wait for a lock whose
holder it does not have, or signal processes that are not its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from itertools import starmap
from typing import Protocol


class Droppable(Protocol):
    """`drop` is called in the child, where no other thread exists."""

    def drop(self) -> None: ...


_kept: weakref.WeakSet[Droppable] = weakref.WeakSet()
_forking = threading.local()  # `.spared`: whom the fork that this thread makes spares; another thread may fork at the same time
_registered = False


def keep(owner: Droppable) -> None:
    """From now on, call `owner.drop()` in every fork of this process, for as long as `owner` lives."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_child=_drop_all)
    _kept.add(owner)


def fork_for(owner: Droppable, pids: list[int]) -> None:
    """Fork; the child drops everything but `owner`. Appends the child's pid to `pids`, 0 in the child: forking and noting it
    are one step, so that no interruption leaves a child whose pid is unknown and that is never reaped."""
    _forking.spared = owner
    try:
        pids.extend(starmap(os.fork, ((),)))
    finally:
        _forking.spared = None


def _drop_all() -> None:
    spared = getattr(_forking, "spared", None)
    for owner in list(_kept):
        if owner is not spared:
            owner.drop()
