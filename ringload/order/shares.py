"""Several parts in given shares: which part each position belongs to, and which of its samples is shown there.

Among the first P positions, part k has P * share_k positions, but for an error below 1. There are two ways:

    Tree      the parts are the leaves of a binary tree. Of the first i positions of a node, its left child has
              floor(i * r + 1/2), where r is the left child's share of the node. A node adds an error of 1/2 at most, and a
              child inherits r times the error of its node. So the error is below 1 for up to 4 parts. Of more, the halves are
              chosen for the least error: of 400 random shares each for 5, 6, 8 and 12 parts, 2 to 12 % have an error above 1
              at some position, 1.12 at most; the largest that a search has found is 1.28.
    Period    for 5 parts or more, if the shares are multiples of 1/n with n up to 4,096: a table of one period of n
              positions, by earliest deadline. The error is below 1 for any number of parts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from ringload.checks import integer, listed, short
from ringload.errors import ConfigError
from ringload.order.permutation import permute_each, round_keys
from ringload.protocols import Binding, PositionOrder, Rows

MOST_SEARCHED = 12  # parts: the best tree of more is not searched for, they are halved by their shares
MOST_PERIOD = 4096  # positions
MOST_CODES = 1 << 20
STEPS = 32  # of an error of 1, in that search


def by_shares(shares: np.ndarray) -> Tree | Period:
    """The parts of positions, by shares that sum to 1."""
    fractions = [Fraction(share).limit_denominator(MOST_PERIOD) for share in shares.tolist()]
    period = math.lcm(*(one.denominator for one in fractions))
    is_exact = sum(fractions) == 1 and np.allclose(shares, [float(one) for one in fractions], 0, 1e-12)
    if len(shares) < 5 or period > MOST_PERIOD or not is_exact:
        return Tree(shares)
    return Period([int(one * period) for one in fractions])


class Period:
    """The parts of positions 0, 1, 2, ..., by counts in each period. For the error to stay below 1, a part's j-th position in
    the period must be in a window. Of the parts whose window has begun, the one whose window ends first comes next."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._counts, n = np.array(counts, np.int64), sum(counts)
        self._parts, self._before = np.empty(n, np.int64), np.empty(n, np.int64)
        waiting = [(0, part, 0) for part, count in enumerate(counts) if count]  # (begin of the window, part, how many before)
        begun: list[tuple[int, int, int]] = []  # (end of the window, part, how many before)
        heapify(waiting)
        for position in range(n):
            while waiting and waiting[0][0] <= position:
                _, part, before = heappop(waiting)
                heappush(begun, (-(-(before + 1) * n // counts[part]), part, before))
            _, part, before = heappop(begun)
            self._parts[position], self._before[position] = part, before
            heappush(waiting, ((before + 1) * n // counts[part], part, before + 1))

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Tree.at`."""
        cycles, places = np.divmod(positions, len(self._parts))
        parts = self._parts[places]
        return parts, cycles * self._counts[parts] + self._before[places]

    def counts(self, n: int, n_parts: int) -> np.ndarray:
        """As `Tree.counts`."""
        cycles, rest = divmod(n, len(self._parts))
        return cycles * self._counts + np.bincount(self._parts[:rest], minlength=n_parts)


class Tree:
    """The parts of positions 0, 1, 2, ..., by shares that sum to 1. Parts without a share never come."""

    def __init__(self, shares: np.ndarray) -> None:
        order = np.argsort(-shares, kind="stable")
        order = order[shares[order] > 0]
        self._left: list[float] = []  # of each inner node: the share of its left child
        self._children: list[tuple[int, int]] = []  # nodes from 0 on are inner, part k is ~k
        ends = np.concatenate([[0.0], np.cumsum(shares[order])])
        choose = _best_halves(ends) if len(order) <= MOST_SEARCHED else _even_halves(ends)
        self._root = self._add(order, ends, choose, 0, len(order))
        self._ratio, self._next = np.array(self._left), np.array(self._children, np.int64).reshape(-1, 2)

    def _add(self, order: np.ndarray, ends: np.ndarray, choose: Any, start: int, stop: int) -> int:
        if stop - start == 1:
            return ~int(order[start])
        middle, node = choose(start, stop), len(self._left)
        self._left.append(float((ends[middle] - ends[start]) / (ends[stop] - ends[start])))
        self._children.append((0, 0))
        self._children[node] = self._add(order, ends, choose, start, middle), self._add(order, ends, choose, middle, stop)
        return node

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(part of each position, how many positions of that part are before it): two `(m,) int64`."""
        within, nodes = np.array(positions, np.int64), np.full(len(positions), self._root, np.int64)
        open_ = np.flatnonzero(nodes >= 0)
        while len(open_):
            node, i = nodes[open_], within[open_]
            ratio = self._ratio[node]
            before, after = _rounded(i * ratio), _rounded((i + 1) * ratio)
            goes_left = after > before
            within[open_] = np.where(goes_left, before, i - before)
            nodes[open_] = self._next[node, np.where(goes_left, 0, 1)]
            open_ = open_[nodes[open_] >= 0]
        return ~nodes, within

    def counts(self, n: int, n_parts: int) -> np.ndarray:
        """How many of the first `n` positions each part has: `(n_parts,) int64`."""
        found = np.zeros(n_parts, np.int64)
        nodes = [(self._root, n)]
        while nodes:
            node, i = nodes.pop()
            if node < 0:
                found[~node] = i
                continue
            left = int(_rounded(np.float64(i * self._left[node])))
            nodes += [(self._children[node][0], left), (self._children[node][1], i - left)]
        return found


def _rounded(values: Any) -> Any:
    return np.floor(values + 0.5).astype(np.int64)


def _best_halves(ends: np.ndarray) -> Any:
    """The cut of each run of parts for which the largest error of a part is least. It depends on the run's own error."""

    @cache
    def best(start: int, stop: int, error: int) -> tuple[float, int]:
        """(the largest error in the run, its cut); `error` is that of the run, in `STEPS` to a position, rounded up."""
        if stop - start == 1:
            return error / STEPS, start
        found = []
        for middle in range(start + 1, stop):
            ratio = (ends[middle] - ends[start]) / (ends[stop] - ends[start])
            left, right = (math.ceil(share * error + STEPS / 2) for share in (ratio, 1 - ratio))
            found.append((max(best(start, middle, left)[0], best(middle, stop, right)[0]), middle))
        return min(found)

    errors = {(0, len(ends) - 1): 0}

    def choose(start: int, stop: int) -> int:
        error = errors[start, stop]
        middle = best(start, stop, error)[1]
        ratio = (ends[middle] - ends[start]) / (ends[stop] - ends[start])
        errors[start, middle] = math.ceil(ratio * error + STEPS / 2)
        errors[middle, stop] = math.ceil((1 - ratio) * error + STEPS / 2)
        return middle

    return choose


def _even_halves(ends: np.ndarray) -> Any:
    def choose(start: int, stop: int) -> int:
        half = (ends[start] + ends[stop]) / 2
        middle = int(np.searchsorted(ends, half, side="left"))
        if middle > start + 1 and half - ends[middle - 1] <= ends[min(middle, stop)] - half:
            middle -= 1
        return min(max(middle, start + 1), stop - 1)

    return choose


class Parts:
    """Groups of samples, each of which is gone through in its own permutation, again and again.

    `members`: the samples of all groups, one after another, `(N,) int64`; None if they are 0..N-1. `starts (K + 1,)`: where
    each group begins.
    """

    def __init__(self, starts: np.ndarray, members: np.ndarray | None, seed: int) -> None:
        self.starts, self.sizes, self._members, self._seed = starts, np.diff(starts), members, seed

    @cached_property
    def checksum(self) -> str | None:
        """The checksum of `members`."""
        return None if self._members is None else hashlib.blake2b(self._members.tobytes(), digest_size=16).hexdigest()

    def samples(self, group: np.ndarray, draw: np.ndarray, shuffle: bool = True, epoch: int = 0) -> Any:
        """The sample that is shown when a group is drawn from for the `draw`-th time, from 0 on: `(m,) int64`. `epoch`: where
        each epoch begins with draw 0, so that it has other permutations than the epoch before."""
        sizes = self.sizes[group]
        cycle, place = draw // sizes, draw % sizes
        if shuffle:
            place = permute_each(place, sizes, (cycle << np.int64(20)) + group, round_keys(self._seed, epoch))
        at = self.starts[group] + place
        return at if self._members is None else self._members[at]


@dataclass(frozen=True, eq=False)
class Balanced:
    """Each class equally often, or by `weights`. A class goes through its samples in random order, again and again.

    Example: `Loader(source, 64, order=ringload.Balanced("label"))`.

    Arguments:
        column: the name of the source's column of classes, or `(N,)` classes, one of each sample.
        weights: class -> its share, in proportion; a class that is not named does not come. By default all are alike.
        n: how many samples an epoch has; by default as many as the source.

    Raises:
        ConfigError: the classes are not one for each sample, or a weight is not valid, when the loader is made.
    """

    column: Any
    weights: Any = None
    n: int | None = None

    def __post_init__(self) -> None:
        if self.n is not None:
            integer("n", self.n, 1)

    def bind(self, to: Binding) -> PositionOrder:
        """The order of a loader's source."""
        classes = np.asarray(to.column(self.column) if isinstance(self.column, str) else self.column)
        if classes.shape != (to.n_samples,):
            raise ConfigError(
                f"Balanced: there are {to.n_samples:,} samples, and classes of shape {classes.shape}: give one for each"
            )
        names, codes = _coded(classes)
        shares = np.ones(len(names)) if self.weights is None else _shares_of(names.tolist(), self.weights)
        starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(names)))])
        members = np.argsort(codes.astype(np.min_scalar_type(len(names))), kind="stable")  # few bits are sorted in O(N)
        return InShares(self.n or to.n_samples, by_shares(shares / shares.sum()), Parts(starts, members, to.seed), shares)


def _coded(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes, sorted, and the number of each sample's class. Integers that are near each other are not sorted for it."""
    if classes.dtype.kind in "iu" and int(classes.max()) - int(classes.min()) < MOST_CODES:
        least = classes.min()
        codes = (classes - least).astype(np.int64) if classes.dtype.kind == "u" else classes.astype(np.int64) - int(least)
        is_there = np.bincount(codes) > 0
        return np.flatnonzero(is_there).astype(classes.dtype) + least, (np.cumsum(is_there) - 1)[codes]
    try:
        names, codes = np.unique(classes, return_inverse=True)
    except TypeError as error:
        raise ConfigError(f"Balanced: the classes cannot be sorted ({error}): give each sample a class of one type") from error
    return names, codes


def _shares_of(names: Sequence[Any], weights: Any) -> np.ndarray:
    if not isinstance(weights, dict) or not weights:
        raise ConfigError(f"Balanced: weights are a dict, class -> its share, not {short(weights)}")
    if unknown := [name for name in weights if name not in names]:
        raise ConfigError(f"Balanced: no sample is of the classes {listed(unknown)}: the classes are {listed(names)}")
    return checked_shares([weights.get(name, 0) for name in names], "Balanced")


def checked_shares(given: Sequence[Any], what: str) -> np.ndarray:
    """Weights of parts, `(K,) float64`."""
    try:
        shares = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: weights are numbers, not {short(given)}") from error
    if not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        raise ConfigError(f"{what}: weights are finite, not negative, and not all 0, not {short(given)}")
    return shares


@dataclass(eq=False)
class InShares:
    """An order of parts in shares. An epoch goes on in each part where the one before has ended; one without end does not."""

    n: int
    tree: Tree | Period
    parts: Parts
    shares: np.ndarray
    shuffle: bool = True
    has_end: bool = True

    @property
    def n_samples(self) -> int:
        """Of the source."""
        return int(self.parts.starts[-1])

    def n_positions(self, epoch: int) -> int:
        """`n`."""
        return self.n

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        """A sample may come again, so it draws by its position."""
        part, draw = self.tree.at(positions)
        if self.has_end:
            draw += (self.tree.counts(self.n, len(self.shares)) * epoch)[part]
        return Rows(self.parts.samples(part, draw, self.shuffle, 0 if self.has_end else epoch), positions)

    def state(self) -> dict[str, Any]:
        """What a loader's state says of this order."""
        sizes = self.parts.sizes.tolist()
        members = {} if self.parts.checksum is None else {"members": self.parts.checksum}
        shares = (self.shares / self.shares.sum()).tolist()
        kind = "shares" if self.shuffle else "shares, in sequence"
        return {"kind": kind, "n": self.n, "sizes": sizes, "shares": shares, **members}
