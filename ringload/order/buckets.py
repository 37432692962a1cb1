"""Batches of samples with similar lengths.

A bucket is a range of lengths, and each batch is from one bucket. The samples are sorted by length when the loader is made. In
each epoch every bucket goes through its samples in a keyed permutation, and the batches of all buckets come in a keyed
permutation. So each epoch has the same number of batches, and a batch takes as long to compute at any position.

Why not sorted windows of a shuffled epoch: where `max_elements` is given, the number of batches would depend on what is in
each window. To know it, a whole epoch would have to be computed when it begins: for 30 million samples, that is 3 s each time.
Sorting that many takes 1.6 s once (`python -m bench.orders`, 2 busy cores, 29 November 2026), for the first batch as for any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.checks import integer, short
from ringload.errors import ConfigError
from ringload.order.lengths import checked_lengths, refuse_above, sorted_keys
from ringload.order.permutation import permute, round_keys
from ringload.order.shares import Parts
from ringload.order.weighted import checksum_of
from ringload.protocols import Binding, Order, Rows

CHUNK_ROWS = 8192  # computed at once


@dataclass(frozen=True, eq=False)
class Buckets:
    """Batches of samples with similar lengths, in random order; each sample once an epoch.

    Examples: `Loader(source, 64, order=ringload.Buckets("n_tokens"))`; up to 64 samples and 32,768 elements a batch, padding
    counted: `order=ringload.Buckets("n_tokens", max_elements=32768)`.

    The samples that come together are drawn anew in each epoch, from all samples of their bucket. One batch an epoch, the
    last, is shorter than others of its bucket; last="drop" leaves it out. Sorting the samples takes O(N log N) when the loader
    is made, and 4 bytes a sample. Batches are shared among ranks in turn. In one step the ranks receive batches of different
    lengths; where `max_elements` is given, all of them have nearly as many elements.

    Arguments:
        lengths: `(N,)` integers from 0 on, one of each sample; or the name of the source's column that has them.
        max_elements: the most elements of a batch: its rows times its longest length. None: each batch has `batch_size` rows.
        spread: how much longer the longest sample of a bucket may be than the shortest. A smaller spread means less padding,
            and fewer samples that may come together.
        least: batches that a bucket has at least, so that there is a choice of samples. Where few samples have similar
            lengths, a bucket has a larger spread.

    Raises:
        ConfigError: the lengths are negative, not one for each sample, or above `max_elements`, when the loader is made.
    """

    lengths: Any
    max_elements: int | None = None
    spread: float = 1.1
    least: int = 4

    def __post_init__(self) -> None:
        if self.max_elements is not None:
            integer("max_elements", self.max_elements, 1)
        integer("least", self.least, 1)
        spread = self.spread
        if not isinstance(spread, int | float | np.number) or isinstance(spread, bool) or not 1 <= spread < np.inf:
            raise ConfigError(f"spread is a number from 1 on, not {short(self.spread)}")

    def bind(self, to: Binding) -> Order:
        """The order of a loader's source."""
        lengths = checked_lengths(
            to.column(self.lengths) if isinstance(self.lengths, str) else self.lengths, to.n_samples, "Buckets"
        )
        if self.max_elements is not None:
            refuse_above(lengths, self.max_elements, f"Buckets has max_elements={self.max_elements:,}: raise it")
        keys = sorted_keys(lengths)
        starts, rows = self._cut(keys, to.batch_size)
        state = {
            "kind": "buckets",
            "n_samples": to.n_samples,
            "batch_size": to.batch_size,
            "max_elements": self.max_elements,
            "spread": float(self.spread),
            "least": self.least,
            "lengths": checksum_of(lengths),
        }
        parts = Parts(starts, keys.astype(np.uint32), to.seed)
        order = _Buckets(parts, rows, to, max(1, CHUNK_ROWS // to.batch_size), state)
        if order.n_batches(to.epoch) == 0:
            raise ConfigError(
                f"Buckets: {to.n_samples:,} samples do not fill a batch of {int(rows[0]):,}: lower batch_size, or use "
                "last='keep' or last='pad'"
            )
        return order

    def _cut(self, keys: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each bucket begins in the sorted samples, `(K + 1,)`, and how many rows its batches have, `(K,)`.

        It is cut from the longest samples on. All buckets have whole batches, but for that of the shortest samples.
        """
        starts, rows = [len(keys)], []
        while (stop := starts[-1]) > 0:
            longest = int(keys[stop - 1]) >> 32
            n_rows = batch_size if self.max_elements is None else min(batch_size, self.max_elements // max(1, longest))
            shortest = np.uint64(int(np.ceil(longest / self.spread)) << 32)
            n_similar = stop - int(np.searchsorted(keys[:stop], shortest))
            n = max(self.least, n_similar // n_rows) * n_rows
            starts.append(stop - n if stop - n >= self.least * n_rows else 0)
            rows.append(n_rows)
        return np.array(starts[::-1]), np.array(rows[::-1])


@dataclass(eq=False)
class _Buckets:
    """`rows (K,)`: of each bucket's batches. Bucket 0, of the shortest samples, may have a shorter batch: the epoch's last."""

    parts: Parts
    rows_of: np.ndarray
    to: Binding
    n_chunk: int  # batches computed at once
    fixed_state: dict[str, Any]
    shuffle = True

    def __post_init__(self) -> None:
        n_whole = self.parts.sizes // self.rows_of
        self._ends = np.cumsum(n_whole[::-1])  # of the whole batches of each bucket, the longest samples first
        self._n_whole = int(self._ends[-1])
        self._has_rest = bool(self.parts.sizes[0] % self.rows_of[0]) and self.to.last != "drop"
        self._chunk: tuple[tuple[int, int], np.ndarray, np.ndarray] = ((-1, -1), np.empty(0), np.empty(0))

    def n_batches(self, epoch: int) -> int:
        return self._n_whole + self._has_rest

    def rows(self, epoch: int, number: int) -> Rows:
        chunk, at = divmod(number, self.n_chunk)
        which, index, ends = self._chunk
        if which != (epoch, chunk):  # several threads may be here at once
            index, ends = self._compute(epoch, chunk)
            self._chunk = (epoch, chunk), index, ends
        return Rows(index[ends[at] : ends[at + 1]])

    def _compute(self, epoch: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of some batches, one after another, and where each batch ends, after a 0."""
        batches = np.arange(chunk * self.n_chunk, min((chunk + 1) * self.n_chunk, self.n_batches(epoch)))
        whole = batches < self._n_whole
        if self._n_whole:
            batches[whole] = permute(batches[whole], self._n_whole, round_keys(self.to.seed, epoch))
        place = np.minimum(np.searchsorted(self._ends, batches, side="right"), len(self._ends) - 1)
        bucket = len(self._ends) - 1 - place
        n_before = np.concatenate([[0], self._ends])[place]
        begins = (batches - n_before) * self.rows_of[bucket]
        counts = np.minimum(self.rows_of[bucket], self.parts.sizes[bucket] - begins)
        ends = np.concatenate([[0], np.cumsum(counts)])
        of_row = np.repeat(bucket, counts)
        within = np.arange(ends[-1]) - np.repeat(ends[:-1] - begins, counts)
        samples = self.parts.samples(of_row, within + epoch * self.parts.sizes[of_row])
        return samples.astype(np.int64), ends

    def state(self) -> dict[str, Any]:
        return self.fixed_state
