"""Groups of rows that are stored and compressed as one, and what a process keeps of them.

A process that needs a row reads its whole group: a row group of Parquet, a chunk of HDF5 or Zarr. With the source's own order
(`order.groups.Groups`) the rows of `window` groups come mixed, one window after another; so a process that keeps as many groups
reads each group once an epoch, or twice where a batch is of two windows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

MAX_WINDOW = 16  # groups
KEPT_BYTES = 64 << 20  # of groups that each process keeps, if one group is not larger
Group = TypeVar("Group")


def window_of(group_bytes: int) -> int:
    """How many groups a process keeps, by the size of the largest: as many as fit into KEPT_BYTES, 1 to MAX_WINDOW."""
    return max(1, min(MAX_WINDOW, KEPT_BYTES // max(1, group_bytes)))


class GroupCache(Generic[Group]):
    """The last `n_kept` groups that were used, by their numbers; 0: none. A fork and a copy have none of them."""

    def __init__(self, n_kept: int) -> None:
        self.n_kept = n_kept
        self._kept: dict[int, Group] = {}
        self._pid = 0  # of the process that has read them

    def __getstate__(self) -> dict[str, Any]:
        return {"n_kept": self.n_kept, "_kept": {}, "_pid": 0}

    def get(self, number: int, read: Callable[[int], Group]) -> Group:
        """A group; if it is not kept, `read(number)` after room was made for it."""
        if self._pid != os.getpid():
            self._kept, self._pid = {}, os.getpid()
        if number in self._kept:
            group = self._kept.pop(number)
        else:
            while len(self._kept) >= max(1, self.n_kept):
                del self._kept[next(iter(self._kept))]
            group = read(number)
        if self.n_kept:
            self._kept[number] = group  # the last of them
        return group


class GroupedRows:
    """Rows of an array on disk that are read by groups: `edges (G + 1,) int64` are the rows at which groups begin.

    The groups of an array can be made coarser, so that several arrays have the same.
    """

    def __init__(self, edges: np.ndarray, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self.set(edges, window_of(int(np.diff(edges).max()) * row_bytes))

    def set(self, edges: np.ndarray, n_kept: int) -> None:
        """Have these groups, and keep `n_kept` of them; 0: none."""
        edges.flags.writeable = False  # so it is not compared with the workers' copies
        self.edges, self._cache = edges, GroupCache[np.ndarray](n_kept)

    @property
    def group_bytes(self) -> int:
        """The size of the largest group."""
        return int(np.diff(self.edges).max()) * self.row_bytes

    @property
    def kept_bytes(self) -> int:
        """The most that the kept groups take."""
        return self._cache.n_kept * self.group_bytes

    def read(self, indices: np.ndarray, out: np.ndarray, read: Callable[..., np.ndarray]) -> None:
        """The rows `indices (n,)` into `out (n, ...)`. `read(group, first=, stop=)` gives the rows of a group."""
        groups = np.searchsorted(self.edges, indices, "right") - 1
        for group in np.unique(groups).tolist():
            first, stop = int(self.edges[group]), int(self.edges[group + 1])
            rows = self._cache.get(group, partial(read, first=first, stop=stop))
            here = groups == group
            out[here] = rows[indices[here] - first]

    def can_read(self, indices: np.ndarray, out: np.ndarray, read: Callable[..., np.ndarray]) -> bool:
        """The same; False if a group cannot be read. Then the caller reads the rows by themselves, which finds out the bad
        ones: a group has many chunks, and one that is damaged is no reason to lose the others."""
        try:
            self.read(indices, out, read)
        except Exception:  # each package has its own classes of errors
            return False
        return True
