"""Files that are cut short: whether Pillow fills in the missing pixels, as a setting of each thread.

Pillow reads `ImageFile.LOAD_TRUNCATED_IMAGES`, which all threads share. In the trainer's process other threads may load images
meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import ImageFile

from ringload.images.formats import Truncated
from ringload.images.hook import Hook


class _Thread(threading.local):
    pads: bool | None = None  # None: as the user has set `LOAD_TRUNCATED_IMAGES`


_thread = _Thread()


class _Switch:
    """Replaces `ImageFile.LOAD_TRUNCATED_IMAGES`: true as set for this thread, or else as the user has set it."""

    def __init__(self, others: Any) -> None:
        self.others = others

    def __bool__(self) -> bool:
        return bool(self.others) if _thread.pads is None else _thread.pads


class _Switched:
    _pillow: Any = ImageFile

    def set(self) -> None:
        others = self._pillow.LOAD_TRUNCATED_IMAGES
        self._pillow.LOAD_TRUNCATED_IMAGES = others if isinstance(others, _Switch) else _Switch(others)

    def undo(self) -> None:
        switch = self._pillow.LOAD_TRUNCATED_IMAGES
        if isinstance(switch, _Switch):
            self._pillow.LOAD_TRUNCATED_IMAGES = switch.others


switched = Hook(_Switched())


@contextmanager
def truncated(mode: Truncated | None) -> Iterator[None]:
    """Have Pillow fill in missing pixels, or refuse the file; None: as `ImageFile.LOAD_TRUNCATED_IMAGES` says."""
    if mode is None:
        yield
        return
    before, _thread.pads = _thread.pads, mode == "pad"
    try:
        with switched():
            yield
    finally:
        _thread.pads = before
