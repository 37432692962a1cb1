"""The loader's own orders: a rank's batches of each epoch.

    Batched   cuts an order by position into batches          Shared   deals the batches of an order by batch to ranks

Both count steps: `step` positions (of samples, or of batches) are taken when each rank receives one batch. A state says how
many steps were taken from where. So a loader with another step can go on there, in the middle of one of its own steps: then the
`grid` of that epoch is moved. A chunk of entries is computed at once, and kept for the batches that follow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from ringload.checks import one_of
from ringload.errors import ConfigError
from ringload.order.checked import CheckedOrder, CheckedPositions
from ringload.order.loader_order import NO_GRID, Place, check_shard, order_in_words
from ringload.order.pieces import joined, padded, part_of
from ringload.protocols import PAD, Last, Rows

CHUNK_ROWS = 8192  # of an epoch, computed at once in 0.4 ms
NO_CHUNK = ((-1, -1, -1), Rows(np.empty(0, np.int64)))


class _Grid(ABC):
    """Steps of an epoch, which begin at `start`."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.grid = NO_GRID

    def __repr__(self) -> str:
        return order_in_words(self)  # type: ignore[arg-type]

    def step(self, epoch: int) -> int:
        return self._step

    def start(self, epoch: int) -> int:
        return self.grid[1] if self.grid[0] == epoch else 0

    def place(self, epoch: int, position: int) -> Place:
        """Where the batch that begins at `position` would be."""
        number, start = divmod(position, self._step)
        return Place(number, (epoch, start) if start else NO_GRID, self._n_batches(epoch, start))

    def n_batches(self, epoch: int = 0) -> int:
        """Batches of an epoch on each rank, 1 or more."""
        n = self._n_batches(epoch, self.start(epoch))
        if n == 0 and not self.start(epoch):
            raise ConfigError(f"{self._too_few(epoch)}: lower batch_size, or use last='keep' or last='pad'")
        return n

    @abstractmethod
    def _n_batches(self, epoch: int, start: int) -> int: ...

    @abstractmethod
    def _too_few(self, epoch: int) -> str: ...


class Batched(_Grid):
    """A rank's share of an order by position, cut into batches. A `LoaderOrder`.

    "drop": every rank has the same number of whole batches. "keep": every rank has ceil(N / world) samples; the last batch may
    be shorter, and up to world - 1 samples come twice. "pad": every rank has as many rows, with padding instead of repeated
    samples and of a shorter batch.

    Raises:
        ConfigError: an argument is not valid, or the first epoch has no batch.
    """

    def __init__(
        self,
        order: CheckedPositions,
        batch_size: int,
        last: Last = "drop",
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
    ) -> None:
        if batch_size <= 0:
            raise ConfigError(f"batch_size is a positive integer, not {batch_size}")
        one_of("last", last, ("drop", "keep", "pad"))
        check_shard(rank, world)
        super().__init__(batch_size * world)
        self.by_position, self.n_samples, self.batch_size = order, order.n_samples, batch_size
        self.last, self.rank, self.world = last, rank, world
        self.chunk = NO_CHUNK
        self.n_batches(epoch)

    @property
    def shuffle(self) -> bool:
        """Whether samples come in another order than that of the source."""
        return self.by_position.shuffle

    @property
    def has_whole_batches(self) -> bool:
        """Whether each batch has `batch_size` rows."""
        return self.last != "keep"

    def n_left(self, epoch: int = 0) -> int:
        """How many positions of an epoch no rank has; below 0: how many rows of padding there are."""
        n = self.by_position.n_positions(epoch) - self.start(epoch)
        return 0 if self.last == "keep" else n - self.n_batches(epoch) * self._step

    def n_positions(self, epoch: int) -> int:
        """Samples of an epoch."""
        return self.by_position.n_positions(epoch)

    def _n_per_rank(self, epoch: int, start: int) -> int:
        """Rows of an epoch for each rank, with padding."""
        left = max(0, self.by_position.n_positions(epoch) - start)
        return left // self._step * self.batch_size if self.last == "drop" else -(-left // self.world)

    def _n_batches(self, epoch: int, start: int) -> int:
        return -(-self._n_per_rank(epoch, start) // self.batch_size)

    def _too_few(self, epoch: int) -> str:
        shared = f" shared by {self.world} ranks" if self.world > 1 else ""
        of_epoch = f" of epoch {epoch}" if epoch else ""
        return f"{self.by_position.n_positions(epoch)} samples{of_epoch}{shared} do not fill a batch of {self.batch_size}"

    def n_rows(self, epoch: int, number: int) -> int:
        """Rows of batch `number`."""
        if self.last == "keep":
            return min(self.batch_size, self._n_per_rank(epoch, self.start(epoch)) - number * self.batch_size)
        return self.batch_size

    def rows(self, epoch: int, number: int) -> Rows:
        """The rows of batch `number` of `epoch`. Do not write to them."""
        first = number * self.batch_size
        last = first + self.n_rows(epoch, number)
        parts = []
        while first < last:
            chunk, skipped = divmod(first, CHUNK_ROWS)
            n, rows = min(last - first, CHUNK_ROWS - skipped), self._of_chunk(epoch, chunk)
            parts.append(part_of(rows, slice(skipped, skipped + n)))
            first += n
        return parts[0] if len(parts) == 1 else joined(parts)

    def _of_chunk(self, epoch: int, chunk: int) -> Rows:
        """Several threads may call it at once."""
        which, rows = self.chunk
        if which != (epoch, chunk, self.start(epoch)):
            which = epoch, chunk, self.start(epoch)
            rows = self._compute(*which)
            self.chunk = which, rows
        return rows

    def _compute(self, epoch: int, chunk: int, start: int) -> Rows:
        own = np.arange(chunk * CHUNK_ROWS, (chunk + 1) * CHUNK_ROWS, dtype=np.int64)
        positions, n = start + own * self.world + self.rank, self.by_position.n_positions(epoch)
        rows = self.by_position.at(epoch, positions % n)
        if self.last != "pad":
            return rows
        return Rows(np.where(positions < n, rows.index, PAD), rows.key, rows.fields)

    @property
    def is_arithmetic(self) -> bool:
        """Whether later epochs are known without running a user's sampler."""
        return not self.by_position.is_listed

    def state(self, epoch: int, position: int) -> dict[str, Any]:
        """What another order has to have in common to go on at a position of an epoch."""
        return self.by_position.state_at(epoch, position)


class Shared(_Grid):
    """A rank's batches of an order by batch: rank r of `world` has batches r, r + world, ... A `LoaderOrder`.

    "drop": batches that are not one for each rank are dropped. "keep": the first batches of the epoch come again in their
    place. "pad": batches of padding; shorter batches are padded, too.

    Raises:
        ConfigError: an argument is not valid, or the first epoch has no batch.
    """

    def __init__(self, order: CheckedOrder, last: Last = "drop", rank: int = 0, world: int = 1, epoch: int = 0) -> None:
        one_of("last", last, ("drop", "keep", "pad"))
        check_shard(rank, world)
        super().__init__(world)
        self._order, self.n_samples, self.batch_size = order, order.n_samples, order.batch_size
        self.last, self.rank, self.world = last, rank, world
        self.n_batches(epoch)

    @property
    def shuffle(self) -> bool:
        """Whether samples come in another order than that of the source."""
        return self._order.shuffle

    @property
    def has_whole_batches(self) -> bool:
        """Whether each batch has `batch_size` rows."""
        return self.last == "pad"

    def n_left(self, epoch: int = 0) -> int:
        """0: it is not known which samples an order by batch leaves out."""
        return 0

    def _n_batches(self, epoch: int, start: int) -> int:
        left = max(0, self._order.n_batches(epoch) - start)
        return left // self.world if self.last == "drop" else -(-left // self.world)

    def _too_few(self, epoch: int) -> str:
        return f"the {self._order.n_batches(epoch)} batches of epoch {epoch} have none for each of {self.world} ranks"

    def n_positions(self, epoch: int) -> int:
        """Batches of an epoch, of all ranks together."""
        return self._order.n_batches(epoch)

    def rows(self, epoch: int, number: int) -> Rows | None:
        """The rows of batch `number` of `epoch`."""
        n, at = self._order.n_batches(epoch), self.start(epoch) + number * self.world + self.rank
        if at >= n and self.last == "pad":
            return Rows(np.full(self.batch_size, PAD, np.int64))
        rows = self._order.rows(epoch, at % n)
        if rows is None or self.last != "pad" or len(rows.index) == self.batch_size:
            return rows
        return padded(rows, self.batch_size)

    @property
    def is_arithmetic(self) -> bool:
        """Whether later epochs are known without running a user's sampler."""
        return not self._order.is_listed

    def state(self, epoch: int, position: int) -> dict[str, Any]:
        """What another order has to have in common to go on at a position of an epoch."""
        return self._order.state_at(epoch, position)
