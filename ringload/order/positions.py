"""Orders by position: which sample is at each position of an epoch. See `protocols.PositionOrder`.

    Shuffled     a keyed permutation of all samples          Blocks     neighbours stay together, blocks are permuted
    Sequential   the order of the source                     Weighted   samples by weights; in weighted.py
                                                             Balanced, mixes: in shares.py

What a user gives to a loader is a description (`ringload.Blocks(64, 16)`). `bind` makes the order of it, once the source, the
seed and the batch size are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.checks import integer
from ringload.order.permutation import permute, permute_each, round_keys
from ringload.protocols import Binding, PositionOrder, Rows


@dataclass(frozen=True)
class Sequential:
    """The order of the source."""

    n_samples: int
    shuffle = False

    def n_positions(self, epoch: int) -> int:
        """All samples."""
        return self.n_samples

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        """Sample p is at position p."""
        return Rows(positions)

    def state(self) -> dict[str, Any]:
        """What a loader's state says of this order."""
        return {"kind": "sequence", "n_samples": self.n_samples}


@dataclass(frozen=True)
class Shuffled:
    """Each sample once an epoch, in random order."""

    n_samples: int
    seed: int
    shuffle = True

    def n_positions(self, epoch: int) -> int:
        """All samples."""
        return self.n_samples

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        """The entries of the epoch's permutation."""
        return Rows(permute(positions, self.n_samples, round_keys(self.seed, epoch)))

    def state(self) -> dict[str, Any]:
        """What a loader's state says of this order."""
        return {"kind": "shuffle", "n_samples": self.n_samples}


@dataclass(frozen=True)
class Blocks:
    """Each sample once an epoch; neighbours stay near each other, for disks, archives and chunked arrays.

    The samples are cut into blocks of `size` neighbours. The blocks are permuted; then the samples of each `window` blocks are
    mixed. So what is read at a time lies in `window` places. Samples that do not fill a block come last.

    Example: `Loader(source, 64, order=ringload.Blocks(1000, 16))`.

    Raises:
        ConfigError: `size` or `window` is not a positive integer.
    """

    size: int
    window: int = 16

    def __post_init__(self) -> None:
        integer("size", self.size, 1)
        integer("window", self.window, 1)

    def bind(self, to: Binding) -> PositionOrder:
        """The order of a loader's source."""
        return _Blocks(to.n_samples, to.seed, self.size, self.window)


@dataclass(frozen=True)
class _Blocks:
    n_samples: int
    seed: int
    size: int
    window: int
    shuffle = True

    def n_positions(self, epoch: int) -> int:
        return self.n_samples

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        keys, n_blocks, span = round_keys(self.seed, epoch), self.n_samples // self.size, self.size * self.window
        last = max(0, -(-n_blocks // self.window) - 1)  # the last window, which has also what does not fill a block
        which = np.minimum(positions // span, last)
        lengths = np.where(which < last, span, self.n_samples - last * span)
        mixed = which * span + permute_each(positions - which * span, lengths, which, keys)
        blocks, within = mixed // self.size, mixed % self.size
        whole = blocks < n_blocks
        blocks[whole] = permute(blocks[whole], n_blocks, keys) if n_blocks else blocks[whole]
        return Rows(blocks * self.size + within)

    def state(self) -> dict[str, Any]:
        return {"kind": "blocks", "n_samples": self.n_samples, "size": self.size, "window": self.window}
