"""Forks of the trainer: what belongs to the parent is dropped in the child.

A fork copies descriptors and the state of locks. The child must not keep the producers' lifeline open, wait for a lock whose
holder it does not have, or signal processes that are not its own.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Droppable(Protocol):
    """`drop` is called in the child, where no other thread exists."""

    def drop(self) -> None: ...


_kept: weakref.WeakSet[Droppable] = weakref.WeakSet()
_spared: Droppable | None = None
_registered = False


def keep(owner: Droppable) -> None:
    """From now on, call `owner.drop()` in every fork of this process, for as long as `owner` lives."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_child=_drop_all)
    _kept.add(owner)


def fork_for(owner: Droppable) -> int:
    """Fork; the child drops everything but `owner`. Returns the child's pid, 0 in the child."""
    global _spared
    _spared = owner
    try:
        return os.fork()
    finally:
        _spared = None


def _drop_all() -> None:
    for owner in list(_kept):
        if owner is not _spared:
            owner.drop()
