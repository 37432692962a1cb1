"""The order of a mix: which source each position belongs to, and which of its samples is shown there.

With fixed weights this is `shares.InShares`. The number of samples that a source has of the first P positions of an epoch is
within one of its share of P (see shares.py for 5 sources or more).

With a schedule, weights are a function of the number of samples before. It is called at multiples of `BLOCK` positions, counted
through all epochs, and is in force for a block. At the end of each block, the count of a source is a whole number near the
integral of its shares: the largest remainders are rounded up. Within a block the counts are divided as fixed shares are. So
what was rounded in one block is made good in the next, and a count stays within two of the integral (three where several
weights fall to 0). Where an epoch begins is found by going through all blocks before, once: 10 us and 0.4 kB a block of 2
sources, 20 us and 1.1 kB of 12; so 1.2 to 2.4 s and 50 to 140 MB for a billion samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from ringload.checks import listed, nearest, one_of, short
from ringload.errors import ConfigError
from ringload.order.explicit import ENDLESS
from ringload.order.shares import InShares, Parts, Period, Tree, by_shares, checked_shares
from ringload.protocols import Binding, PositionOrder, Rows

Stop = Literal["first", "longest", "never"]
Weights = Mapping[str, float] | Callable[[int], Mapping[str, float]]

BLOCK = 8192  # positions with the same weights of a schedule
MOST_POSITIONS = 1 << 50  # of an epoch that ends: shares are exact up to there
MOST_BLOCKS = 1 << 17  # of an epoch that ends, with a schedule: a billion positions


@dataclass(frozen=True, eq=False)
class Mix:
    """The order that `ringload.mix` describes, of sources with these names and sizes.

    Raises:
        ConfigError: a weight is not valid.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    weights: Weights | None
    stop: Stop

    def __post_init__(self) -> None:
        one_of("stop", self.stop, ("first", "longest", "never"))
        self.shares(0)

    def shares(self, n_before: int) -> np.ndarray:
        """The share of each source after so many samples: `(K,) float64`, whose sum is 1."""
        given: Any = self.weights
        what = "mix"
        if given is None:
            given = dict(zip(self.names, self.sizes, strict=True))
        elif callable(given):
            what = f"mix: weights({n_before})"
            try:
                given = given(n_before)
            except Exception as error:
                raise ConfigError(f"{what} raised {type(error).__name__}: {error}") from error
        if not isinstance(given, Mapping):
            raise ConfigError(f"{what}: weights are a dict, name of a source -> its weight, not {short(given)}")
        if unknown := [name for name in given if name not in self.names]:
            close = nearest(unknown[0], self.names)
            raise ConfigError(f"{what}: there is no source {short(unknown[0])}; the sources are {listed(self.names)}{close}")
        if absent := [name for name in self.names if name not in given]:
            raise ConfigError(f"{what}: there is no weight for {listed(absent)}: give each source one, 0 to leave it out")
        shares = checked_shares([given[name] for name in self.names], what)
        made: np.ndarray = shares / shares.sum()
        return made

    def bind(self, to: Binding) -> PositionOrder:
        """The order of a loader."""
        parts = Parts(np.concatenate([[0], np.cumsum(self.sizes)]), None, to.seed)
        if callable(self.weights):
            return Scheduled(self, parts, to.shuffle)
        shares = self.shares(0)
        tree, is_over = by_shares(shares), self.is_over
        n, above = ENDLESS, 1
        if self.stop != "never":
            while not is_over(tree.counts(above, len(shares)), shares > 0):
                above *= 2
                if above > MOST_POSITIONS:
                    raise ConfigError(f"mix: an epoch with stop={self.stop!r} has no end: raise the least weight")
            n = _last(lambda n: is_over(tree.counts(n, len(shares)), shares > 0), above // 2, above) + (self.stop == "longest")
        return InShares(n, tree, parts, shares, to.shuffle, self.stop != "never")

    def is_over(self, counts: np.ndarray, comes: np.ndarray | bool = True) -> bool:
        """Whether an epoch with so many samples of each source is too long ("first"), or long enough ("longest"). `comes (K,)`:
        which sources come at all."""
        if self.stop == "first":
            return bool((counts > self.sizes).any())
        return bool(((counts >= self.sizes) | np.logical_not(comes)).all())


def _last(is_over: Callable[[int], bool], low: int, high: int) -> int:
    """The last number in low..high - 1 for which `is_over` is not true; it is true for `high`. `low`, if it is for all."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_over(middle) else (middle, high)
    return low


class Scheduled:
    """A mix whose weights are a function. Several threads may use it at once: each finds the same numbers."""

    def __init__(self, mix: Mix, parts: Parts, shuffle: bool) -> None:
        self._mix, self._parts, self.shuffle = mix, parts, shuffle
        none = [0] * len(mix.sizes)
        self._blocks: dict[int, tuple[list[int], list[float]]] = {0: (none, [0.0] * len(none))}  # -> counts, integral of shares
        self._begins = {0: 0}  # epoch -> the samples before it

    def n_positions(self, epoch: int) -> int:
        """From an epoch's begin to the next one's."""
        return ENDLESS if self._mix.stop == "never" else self._begin(epoch + 1) - self._begin(epoch)

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        """A sample may come again, so it draws by its position."""
        places = self._begin(epoch) + positions
        blocks = places // BLOCK
        part, draw = np.empty_like(places), np.empty_like(places)
        for block in np.unique(blocks).tolist():
            chosen = blocks == block
            part[chosen], within = self._tree(block).at(places[chosen] - block * BLOCK)
            draw[chosen] = self._before(block)[part[chosen]] + within
        is_endless = self._mix.stop == "never"
        return Rows(self._parts.samples(part, draw, self.shuffle, epoch if is_endless else 0), positions)

    def state_at(self, epoch: int, position: int) -> dict[str, Any]:
        """What a loader's state says: also what the schedule has led to before a position, and its weights there."""
        place = self._begin(epoch) + position
        return {
            "kind": "schedule" if self.shuffle else "schedule, in sequence",
            "stop": self._mix.stop,
            "sizes": list(self._mix.sizes),
            "before": self._counts(place).tolist(),
            "shares": self._mix.shares(place // BLOCK * BLOCK).tolist(),
        }

    def _before(self, block: int) -> np.ndarray:
        """How many samples of each source come before a block: `(K,) int64`."""
        if block not in self._blocks:  # lists: NumPy takes four times as long for a few numbers
            for known in range(len(self._blocks) - 1, block):
                counts, integral = self._blocks[known]
                shares = self._mix.shares(known * BLOCK).tolist()
                integral = [before + BLOCK * share for before, share in zip(integral, shares, strict=True)]
                wanted = [end - n for end, n in zip(integral, counts, strict=True)]
                counts = [n + more for n, more in zip(counts, apportioned(wanted, shares), strict=True)]
                self._blocks[known + 1] = counts, integral
        return np.array(self._blocks[block][0])

    def _tree(self, block: int) -> Tree | Period:
        return _tree_of(tuple((self._before(block + 1) - self._before(block)).tolist()))

    def _counts(self, place: int) -> np.ndarray:
        """How many of the first samples are of each source."""
        block, rest = divmod(place, BLOCK)
        return self._before(block) + (self._tree(block).counts(rest, len(self._mix.sizes)) if rest else 0)

    def _begin(self, epoch: int) -> int:
        if self._mix.stop == "never":
            return 0
        if epoch not in self._begins:
            for known in range(len(self._begins) - 1, epoch):
                self._begins[known + 1] = self._end(self._begins[known], known)
        return self._begins[epoch]

    def _end(self, begin: int, epoch: int) -> int:
        """Where an epoch ends that has begun there."""
        mix, before = self._mix, self._counts(begin)
        block = begin // BLOCK
        while not mix.is_over(self._before(block + 1) - before):
            block += 1
            if block - begin // BLOCK > MOST_BLOCKS:
                counts = dict(zip(mix.names, (self._before(block) - before).tolist(), strict=True))
                raise ConfigError(
                    f"mix: epoch {epoch} with stop={mix.stop!r} does not end: after {block * BLOCK - begin:,} samples it has "
                    f"{short(counts)}: raise the weights of those that come too seldom, or use stop='first' or 'never'"
                )
        low = max(begin, block * BLOCK)
        end = _last(lambda place: mix.is_over(self._counts(place) - before), low, (block + 1) * BLOCK)
        return end + (mix.stop == "longest")


@lru_cache(256)
def _tree_of(counts: tuple[int, ...]) -> Tree | Period:
    return by_shares(np.array(counts) / BLOCK)


def apportioned(wanted: Sequence[float], shares: Sequence[float]) -> list[int]:
    """Whole numbers near those that are wanted, from 0 on, whose sum is BLOCK; 0 where the share is 0."""
    comes = [number for number, share in enumerate(shares) if share]
    whole = [0] * len(shares)
    for number in comes:
        whole[number] = max(0, math.floor(wanted[number]))
    while rest := BLOCK - sum(whole):
        if rest > 0:
            whole[max(comes, key=lambda number: wanted[number] - whole[number])] += 1
        else:
            whole[min(filter(whole.__getitem__, comes), key=lambda number: wanted[number] - whole[number])] -= 1
    return whole
