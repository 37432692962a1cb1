"""Order and randomness as arithmetic: which sample is in which row of which batch, and what it draws.

The order of an epoch is a keyed permutation of 0..N-1, computed entry by entry: nothing of size N is made, and any batch of
any epoch is as near as the first. It is a Feistel network over pairs (left, right) in Z_a x Z_b, a * b >= N (Black and
Rogaway, "Ciphers with Arbitrary Finite Domains", 2002); what falls outside 0..N-1 goes through it again until it does not.

A sample's randomness is Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011) keyed by (seed, epoch),
with the sample's index in the counter. So both depend on (seed, epoch, index) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ringload.errors import ConfigError

Last = Literal["drop", "keep", "pad"]

PAD = -1  # in place of a sample's index: the row holds none
CHUNK_ROWS = 8192  # of an epoch that are computed at once: 1 ms
N_ROUNDS = 12
_LOADING, _SUBSTITUTES = 0, 1  # what a stream of random numbers is for: a word of Philox's counter


def round_keys(seed: int, epoch: int) -> np.ndarray:
    """The keys of an epoch's permutation: `(N_ROUNDS,) uint64`."""
    words = [word for number in (seed, epoch) for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.SeedSequence(words).generate_state(N_ROUNDS, np.uint64)


def permute(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """The images of `positions` (each in 0..n-1) under the permutation of 0..n-1 that `keys` choose: `(m,) int64`."""
    n_left = np.uint64(math.isqrt(n - 1) + 1)
    n_right = np.uint64(-(-n // int(n_left)))
    images = np.asarray(positions, np.uint64)
    outside: Any = slice(None)
    walked = images
    while True:
        left, right = walked // n_right, walked % n_right
        for number in range(0, N_ROUNDS, 2):
            left = (left + _mix(right, keys[number])) % n_left
            right = (right + _mix(left, keys[number + 1])) % n_right
        walked = left * n_right + right
        if isinstance(outside, slice):
            images = walked.copy()
            outside = np.arange(len(images))
        else:
            images[outside] = walked
        beyond = walked >= n
        if not beyond.any():
            return images.astype(np.int64)
        outside, walked = outside[beyond], walked[beyond]


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """A hash of each value: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014). Less than 2**62, so that sums fit."""
    mixed = values + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(2))


@dataclass(frozen=True)
class Order:
    """Which samples an epoch consists of, cut into batches, and which share of them is this rank's.

    Rank r of `world` takes positions r, r + world, r + 2 * world, ... of the epoch. "drop": as many whole batches as every
    rank can have. "keep": every rank has ceil(N / world) samples, the last batch is shorter, and where N does not divide, up
    to world - 1 samples come twice. "pad": the same, with padding instead of both.

    Raises:
        ConfigError: there is no such order, or no batch in it.
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
        if not isinstance(self.seed, int | np.integer) or not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed is an integer from 0 to 2**64 - 1, not {self.seed!r}")
        if self.last not in ("drop", "keep", "pad"):
            raise ConfigError(f"last is 'drop', 'keep' or 'pad', not {self.last!r}")
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"shard is (rank, world) with 0 <= rank < world, not ({self.rank}, {self.world})")
        if self.n_batches == 0:
            shared = f" shared by {self.world} ranks" if self.world > 1 else ""
            raise ConfigError(
                f"{self.n_samples} samples{shared} do not fill a batch of {self.batch_size}: lower batch_size, or use "
                "last='keep' or last='pad'"
            )

    @cached_property
    def n_per_rank(self) -> int:
        """Samples an epoch that each rank gets, with padding."""
        if self.last == "drop":
            return self.n_samples // (self.batch_size * self.world) * self.batch_size
        return -(-self.n_samples // self.world)

    @cached_property
    def n_batches(self) -> int:
        """Batches an epoch, on each rank."""
        return -(-self.n_per_rank // self.batch_size)

    def n_rows(self, number: int) -> int:
        """Rows of batch `number`."""
        if self.last == "keep" and number == self.n_batches - 1:
            return self.n_per_rank - number * self.batch_size
        return self.batch_size

    def has(self, epoch: int, number: int) -> bool:
        """Whether a batch can be posted: of an order that is arithmetic, any."""
        return True

    def rows(self, number: int) -> None:
        """What the trainer writes into a batch's slot: nothing, as producers compute it."""

    def indices(self, epoch: int, number: int, start: int, stop: int) -> np.ndarray:
        """The samples of rows `start:stop` of a batch, without padding."""
        indices = Sampler(self).indices(epoch, number, start, stop)
        return np.asarray(indices[indices != PAD])

    def after(self, epoch: int, number: int) -> tuple[int, int]:
        """What follows batch `number` of `epoch`."""
        return (epoch, number + 1) if number + 1 < self.n_batches else (epoch + 1, 0)


class Sampler:
    """Computes an order, a chunk at a time."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._chunk: tuple[int, int] | None = None  # (epoch, number) of what `_samples` holds
        self._samples = np.empty(0, np.int64)

    def indices(self, epoch: int, number: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The samples of rows `start:stop` of a batch, PAD where there is none: `(stop - start,) int64`, not to be kept."""
        stop = self._order.n_rows(number) if stop is None else stop
        first, last = number * self._order.batch_size + start, number * self._order.batch_size + stop
        parts = []
        while first < last:
            chunk, skipped = divmod(first, CHUNK_ROWS)
            n = min(last - first, CHUNK_ROWS - skipped)
            parts.append(self._of_chunk(epoch, chunk)[skipped : skipped + n])
            first += n
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])

    def _of_chunk(self, epoch: int, chunk: int) -> np.ndarray:
        if self._chunk != (epoch, chunk):
            self._samples, self._chunk = self._compute(epoch, chunk), (epoch, chunk)
        return self._samples

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


class Randomness:
    """Generators that depend on (seed, epoch, index) alone. One generator is rewound for each sample: making a new one
    takes four times as long."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def of(self, epoch: int, index: int, purpose: int = _LOADING) -> np.random.Generator:
        """The generator of a sample; the one that was given before is the same object."""
        state = self._state
        state["state"]["key"][:] = self._seed, epoch
        state["state"]["counter"][:] = 0, 0, purpose, index
        state["buffer_pos"], state["has_uint32"], state["uinteger"] = 4, 0, 0
        self._bits.state = state
        return self._generator


def substitutes(order: Order, epoch: int, index: int, n: int) -> np.ndarray:
    """`n` samples to try in place of a bad one: `(n,) int64`."""
    return Randomness(order.seed).of(epoch, index, _SUBSTITUTES).integers(0, order.n_samples, n)
