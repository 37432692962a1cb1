"""The order of `ringload.Packed`: several samples a row, never more than `capacity` elements.

Lengths are rounded up to classes that differ by 1/64 at most. Rows are packed by classes: first fit decreasing says how many
samples of each class are in a row, and in how many rows. Such a pattern takes its samples from the classes, each of which is
gone through in a keyed permutation in every epoch; the rows come in a keyed permutation. So each epoch has the same number of
rows, the samples of a row are drawn anew in each, and a row takes as long to compute at any position.

Rounding wastes half a percent. In return a class has many samples that can take each other's place, and there are few patterns:
all are made when the source is, by the number of samples of each class alone.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ringload.order.lengths import sorted_keys
from ringload.order.permutation import permute, round_keys
from ringload.order.shares import Parts
from ringload.order.weighted import checksum_of
from ringload.protocols import PAD, Binding, PositionOrder, Rows

CLASS_BITS = 7  # that a length keeps, when it is rounded up


class Pattern(NamedTuple):
    """`n_rows` rows, each with `count` samples of each of these classes: `(class, count)`, the longest first."""

    n_rows: int
    taken: list[tuple[int, int]]


def class_sizes(capacity: int) -> np.ndarray:
    """The length to which each length from 0 to `capacity` is rounded up: `(capacity + 1,) int64`."""
    lengths = np.arange(capacity + 1)
    step = np.left_shift(1, np.maximum(0, np.frexp(lengths)[1] - CLASS_BITS))
    sizes: np.ndarray = np.minimum(-(-lengths // step) * step, capacity)
    return sizes


def patterns(sizes: list[int], counts: list[int], capacity: int, most: int) -> list[Pattern]:
    """Pack `counts` samples of each of `sizes` (ascending) into rows of `capacity`, with up to `most` samples each."""
    left, found = list(counts), []
    there = [number for number in range(len(sizes)) if left[number]]  # the classes that have samples left
    while there:
        room, free, at, taken = capacity, most, len(there), []
        while free and (at := bisect_right(there, room, 0, at, key=sizes.__getitem__) - 1) >= 0:
            number = there[at]
            count = min(room // sizes[number], left[number], free)
            taken.append((number, count))
            room, free = room - count * sizes[number], free - count
        n_rows = min(left[number] // count for number, count in taken)
        for number, count in taken:
            left[number] -= n_rows * count
        there = [number for number in there if left[number]]
        found.append(Pattern(n_rows, taken))
    return found


@dataclass(frozen=True, eq=False)
class PackedRows:
    """What `ringload.Packed` binds to a loader: `lengths (N,) int32`, from 1 to `capacity`."""

    lengths: np.ndarray
    capacity: int
    max_samples: int | None
    patterns: list[Pattern]
    class_of: np.ndarray  # of each length, (capacity + 1,) int32

    @classmethod
    def of(cls, lengths: np.ndarray, capacity: int, max_samples: int | None) -> PackedRows:
        """Pack these lengths."""
        sizes, class_of = np.unique(class_sizes(capacity), return_inverse=True)
        counts = np.bincount(class_of, np.bincount(lengths, minlength=capacity + 1), len(sizes)).astype(np.int64)
        made = patterns(sizes.tolist(), counts.tolist(), capacity, max_samples or capacity)
        return cls(lengths, capacity, max_samples, made, class_of.astype(np.int32))

    @property
    def n_rows(self) -> int:
        """Rows of an epoch."""
        return sum(pattern.n_rows for pattern in self.patterns)

    @property
    def most_samples(self) -> int:
        """The most samples of a row."""
        return max(sum(count for _, count in pattern.taken) for pattern in self.patterns)

    def bind(self, to: Binding) -> PositionOrder:
        """The order of a loader's source."""
        return _Packed(self, to.seed)


class _Packed:
    """Each position is a row. Its index is that of its first sample; the field `members` has all, `(n, most_samples) int64`."""

    shuffle = True

    def __init__(self, made: PackedRows, seed: int) -> None:
        self._made, self._seed = made, seed
        keys = sorted_keys(made.class_of[made.lengths])
        bounds = np.searchsorted(keys, np.arange(made.class_of[-1] + 2, dtype=np.uint64) << np.uint64(32))
        self._parts = Parts(bounds, keys.astype(np.uint32), seed)
        self._ends = np.cumsum([pattern.n_rows for pattern in made.patterns])  # of each pattern's rows
        # of each sample of each pattern, one after another: its class; its place there in the pattern's first row, and the
        # distance to that in the next row
        group: list[int] = []
        first: list[int] = []
        step: list[int] = []
        starts, used = [0], [0] * (int(made.class_of[-1]) + 1)
        for pattern in made.patterns:
            for number, count in pattern.taken:
                group += [number] * count
                first += range(used[number], used[number] + count)
                step += [count] * count
                used[number] += count * pattern.n_rows
            starts.append(len(group))
        self._group, self._first, self._step = np.array(group), np.array(first), np.array(step)
        self._starts = np.array(starts)  # of each pattern's samples
        self._state = {
            "kind": "packed",
            "n_samples": len(made.lengths),
            "capacity": made.capacity,
            "max_samples": made.max_samples,
            "lengths": checksum_of(made.lengths),
        }

    def n_positions(self, epoch: int) -> int:
        return int(self._ends[-1])

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        rows = permute(positions, int(self._ends[-1]), round_keys(self._seed, epoch))
        pattern = np.searchsorted(self._ends, rows, side="right")
        number = rows - np.concatenate([[0], self._ends])[pattern]  # among the rows of the pattern
        counts = np.diff(self._starts)[pattern]
        row = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        sample = self._starts[pattern][row] + within
        group = self._group[sample]
        place = self._first[sample] + self._step[sample] * number[row]
        members = np.full((len(rows), self._made.most_samples), PAD, np.int64)
        members[row, within] = self._parts.samples(group, place + epoch * self._parts.sizes[group])
        return Rows(members[:, 0].copy(), None, {"members": members})

    def state(self) -> dict[str, Any]:
        return self._state
