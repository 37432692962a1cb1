"""The order of an epoch as arithmetic: which sample is in which row of which batch.

The order is a keyed permutation of 0..N-1, or 0..N-1 itself, cut into batches. Any batch of any epoch takes the same time. A
chunk of entries is computed at once, and kept for the batches that follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ringload.checks import checked_seed, one_of
from ringload.errors import ConfigError
from ringload.order.permutation import permute, round_keys
from ringload.protocols import PAD, Rows

Last = Literal["drop", "keep", "pad"]

CHUNK_ROWS = 8192  # of an epoch, computed at once in 1 ms


@dataclass(frozen=True)
class EpochOrder:
    """The samples of an epoch, cut into batches, and this rank's share of them. An `Order`.

    Rank r of `world` takes positions r, r + world, r + 2 * world, ... of the epoch. "drop": every rank has the same
    number of whole batches. "keep": every rank has ceil(N / world) samples; the last batch may be shorter, and up to world - 1
    samples come twice. "pad": every rank has as many rows, with padding instead of repeated samples and of a shorter batch.

    Raises:
        ConfigError: an argument is not valid, or there is no batch.
    """

    n_samples: int
    batch_size: int
    shuffle: bool = True
    seed: int = 0
    last: Last = "drop"
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.n_samples <= 0:
            raise ConfigError("the source has no samples")
        if self.batch_size <= 0:
            raise ConfigError(f"batch_size is a positive integer, not {self.batch_size}")
        checked_seed(self.seed)
        one_of("last", self.last, ("drop", "keep", "pad"))
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"shard is (rank, world) with 0 <= rank < world, not ({self.rank}, {self.world})")
        if self.n_batches() == 0:
            shared = f" shared by {self.world} ranks" if self.world > 1 else ""
            raise ConfigError(
                f"{self.n_samples} samples{shared} do not fill a batch of {self.batch_size}: lower batch_size, or use "
                "last='keep' or last='pad'"
            )

    @cached_property
    def n_per_rank(self) -> int:
        """Samples of an epoch for each rank, with padding."""
        if self.last == "drop":
            return self.n_samples // (self.batch_size * self.world) * self.batch_size
        return -(-self.n_samples // self.world)

    def n_batches(self, epoch: int = 0) -> int:
        """Batches of each epoch on each rank."""
        return -(-self.n_per_rank // self.batch_size)

    def rows(self, epoch: int, number: int) -> Rows:
        """The rows of batch `number` of `epoch`."""
        return Rows(self.indices(epoch, number))

    def state(self) -> dict[str, Any]:
        """The order's part of a loader's state."""
        return {
            "seed": self.seed,
            "n_samples": self.n_samples,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "last": self.last,
            "shard": [self.rank, self.world],
        }

    def n_rows(self, number: int) -> int:
        """Rows of batch `number`."""
        if self.last == "keep" and number == self.n_batches() - 1:
            return self.n_per_rank - number * self.batch_size
        return self.batch_size

    def indices(self, epoch: int, number: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The samples of rows `start:stop` of a batch, PAD where there is none: `(stop - start,) int64`. Do not write to it."""
        stop = self.n_rows(number) if stop is None else stop
        first, last = number * self.batch_size + start, number * self.batch_size + stop
        parts = []
        while first < last:
            chunk, skipped = divmod(first, CHUNK_ROWS)
            n = min(last - first, CHUNK_ROWS - skipped)
            parts.append(self._chunks.of(epoch, chunk)[skipped : skipped + n])
            first += n
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])

    @cached_property
    def _chunks(self) -> _Chunks:
        return _Chunks(self)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_chunks"}


class _Chunks:
    """Computes an order chunk by chunk, and keeps the last one. Several threads may call it at once."""

    def __init__(self, order: EpochOrder) -> None:
        self._order = order
        self._kept: tuple[tuple[int, int], np.ndarray] = ((-1, -1), np.empty(0, np.int64))

    def of(self, epoch: int, chunk: int) -> np.ndarray:
        """Entries of chunk `chunk` of an epoch, `(CHUNK_ROWS,) int64`."""
        which, samples = self._kept
        if which != (epoch, chunk):
            samples = self._compute(epoch, chunk)
            self._kept = ((epoch, chunk), samples)
        return samples

    def _compute(self, epoch: int, chunk: int) -> np.ndarray:
        order = self._order
        own = np.arange(chunk * CHUNK_ROWS, (chunk + 1) * CHUNK_ROWS, dtype=np.int64)
        positions = own * order.world + order.rank
        samples = positions % order.n_samples
        if order.shuffle:
            samples = permute(samples, order.n_samples, round_keys(order.seed, epoch))
        if order.last == "pad":
            samples[positions >= order.n_samples] = PAD
        return samples
