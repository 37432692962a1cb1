"""multiprocessing's resource tracker: a process that unlinks the shared memory which a process has left behind.

The problem: SharedMemory registers a segment also where it only attaches to it (but with track=False, from Python 3.13 on). A
worker would start another tracker, which unlinks the user's segment for all processes when the worker ends
(python/cpython#82300). Processes that multiprocessing starts share their parent's tracker. So do workers, if the trainer has
one. If it has none, a worker's tracker registers the segments that the worker has created, not those that it has attached to.
"""

from __future__ import annotations

import sys
from typing import Any

from ringload.system.after_import import after_import

TRACKER, SHARED_MEMORY = "multiprocessing.resource_tracker", "multiprocessing.shared_memory"


def tracker_fd() -> int:
    """The descriptor of the trainer's tracker; -1 if the trainer has none."""
    tracker = getattr(sys.modules.get(TRACKER), "_resource_tracker", None)
    fd = getattr(tracker, "_fd", None)
    return fd if isinstance(fd, int) else -1


def share_tracker(fd: int) -> None:
    """In a worker, or in the process that forks workers: use the trainer's tracker, by its descriptor. With -1, register only
    segments that this process creates."""

    def use(module: Any) -> None:
        module._resource_tracker._fd = fd

    if fd >= 0:
        after_import(TRACKER, use)
    else:
        after_import(SHARED_MEMORY, _track_what_is_made)


class _Mute:
    """A tracker that registers nothing."""

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
