"""What a process on another machine got in place of the descriptors that a packed source names: their content.

a descriptor of the trainer -> `(n_bytes,) uint8`, which may be read-only and shared by all workers of a node
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_contents: dict[int, np.ndarray] = {}
_own: dict[int, np.ndarray] = {}
_is_far: list[bool] = []


def receive(contents: Mapping[int, np.ndarray]) -> None:
    """Have packed sources find these contents, and no descriptors."""
    _contents.clear()
    _own.clear()
    _contents.update(contents)
    _is_far[:] = [True]


def is_far() -> bool:
    """Whether this process may be on another machine than the trainer, where a file has another inode."""
    return bool(_is_far)


def content_of(fd: int) -> np.ndarray | None:
    """What was received for a descriptor; None: the descriptor itself is there."""
    return _contents.get(fd)


def own_content_of(fd: int) -> np.ndarray | None:
    """The same as memory of this process, which may be written to."""
    if fd not in _own and fd in _contents:
        _own[fd] = _contents[fd].copy()
    return _own.get(fd)
