"""multiprocessing's resource tracker: a process that unlinks the shared memory which a process has left behind.

The problem: SharedMemory registers a segment also where it only attaches to it (but with track=False, from Python 3.13 on). A
worker would start a tracker of its own, which at the worker's end unlinks the user's segment, for everybody
(python/cpython#82300). Processes that multiprocessing starts have their parent's tracker; so have workers, where the trainer
has one. Where it has none, a worker's is told of what the worker has made, not of what it has attached to.
"""

from __future__ import annotations

import sys
from typing import Any

from ringload.system.after_import import after_import

TRACKER, SHARED_MEMORY = "multiprocessing.resource_tracker", "multiprocessing.shared_memory"


def tracker_fd() -> int:
    """The descriptor by which the trainer's tracker is told; -1 where it has none."""
    tracker = getattr(sys.modules.get(TRACKER), "_resource_tracker", None)
    fd = getattr(tracker, "_fd", None)
    return fd if isinstance(fd, int) else -1


def share_tracker(fd: int) -> None:
    """In a worker, or in what forks workers: tell the trainer's tracker, by `fd`; with -1, only of what is made here."""

    def use(module: Any) -> None:
        module._resource_tracker._fd = fd

    if fd >= 0:
        after_import(TRACKER, use)
    else:
        after_import(SHARED_MEMORY, _track_what_is_made)


class _Mute:
    """In place of the tracker."""

    @staticmethod
    def register(name: str, kind: str) -> None: ...


def _track_what_is_made(module: Any) -> None:
    attach, tracked = module.SharedMemory.__init__, module.resource_tracker

    def __init__(self: Any, name: str | None = None, create: bool = False, size: int = 0, **options: Any) -> None:  # noqa: N807
        module.resource_tracker = tracked if create else _Mute
        try:
            attach(self, name, create, size, **options)
        finally:
            module.resource_tracker = tracked

    module.SharedMemory.__init__ = __init__
