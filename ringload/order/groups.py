"""An order that keeps neighbours together whose reading costs most: row groups of Parquet, chunks of HDF5 and Zarr.

As `Blocks`, but the blocks are those in which the data are stored, of any sizes, and a source gives it by itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ringload.order.permutation import permute, permute_each, round_keys
from ringload.order.positions import Sequential
from ringload.protocols import Binding, PositionOrder, Rows


@dataclass(frozen=True, eq=False)
class Groups:
    """Each sample once an epoch: the groups are permuted, then the samples of each `window` groups are mixed.

    `edges (G + 1,) int64`: group g has the rows `edges[g]` to `edges[g + 1]` of the source. `rows (N,) int64`: those that are
    samples, of a part of the source. With `Loader(shuffle=False)` the order is that of the source.
    """

    edges: np.ndarray = field(repr=False)
    window: int
    rows: np.ndarray | None = field(default=None, repr=False)

    def of_rows(self, rows: np.ndarray) -> Groups:
        """The order of a part of the source, whose samples are `rows (n,)`."""
        return Groups(self.edges, self.window, rows if self.rows is None else self.rows[rows])

    def bind(self, to: Binding) -> PositionOrder:
        """The order of a loader's source."""
        if not to.shuffle:
            return Sequential(to.n_samples)
        if self.rows is None:
            return _Grouped(self.edges, self.window, None, to.seed)
        groups = np.searchsorted(self.edges, self.rows, "right") - 1
        counts = np.bincount(groups, minlength=len(self.edges) - 1)
        edges = np.concatenate([[0], np.cumsum(counts[counts > 0])])
        is_sorted = bool((np.diff(groups) >= 0).all())
        return _Grouped(edges, self.window, None if is_sorted else np.argsort(groups, kind="stable"), to.seed)


class _Grouped:
    """`samples (N,)`: those of the groups, one group after another; None: 0 to N - 1."""

    shuffle = True

    def __init__(self, edges: np.ndarray, window: int, samples: np.ndarray | None, seed: int) -> None:
        self._edges, self._window, self._samples, self._seed = edges, window, samples, seed
        self._of_epoch = lru_cache(maxsize=2)(self._permuted)  # 16 bytes a group

    def n_positions(self, epoch: int) -> int:
        """All samples."""
        return int(self._edges[-1])

    def _permuted(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The groups in the epoch's order; where each begins among the positions, and the last ends."""
        keys, n_groups = round_keys(self._seed, epoch), len(self._edges) - 1
        groups = permute(np.arange(n_groups), n_groups, keys)
        return keys, groups, np.concatenate([[0], np.cumsum(np.diff(self._edges)[groups])])

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        """The samples at these positions."""
        keys, groups, begins = self._of_epoch(epoch)
        which = (np.searchsorted(begins, positions, "right") - 1) // self._window
        first = begins[which * self._window]
        last = begins[np.minimum((which + 1) * self._window, len(groups))]
        mixed = first + permute_each(positions - first, last - first, which, keys)
        places = np.searchsorted(begins, mixed, "right") - 1
        found = self._edges[groups[places]] + mixed - begins[places]
        return Rows(found if self._samples is None else self._samples[found])

    def state(self) -> dict[str, Any]:
        """What a loader's state says of this order."""
        arrays = [self._edges, *([] if self._samples is None else [self._samples])]
        groups = hashlib.sha256(b"".join(np.asarray(array, "<i8").tobytes() for array in arrays)).hexdigest()[:32]
        return {"kind": "groups", "n_samples": int(self._edges[-1]), "window": self._window, "groups": groups}
