"""What the order of a loader has beside `protocols.Order`: where a state goes on, and what adapters need."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from ringload.errors import ConfigError
from ringload.protocols import Last, Order

NO_GRID = (-1, 0)  # no epoch was resumed between two of its batches


class Place(NamedTuple):
    """Where a batch would be: its number, if the order had this `grid`, and how many batches its epoch would have."""

    number: int
    grid: tuple[int, int]
    n_batches: int


class LoaderOrder(Order, Protocol):
    """The order of a loader, with what its state and the adapters need."""

    n_samples: int
    batch_size: int
    last: Last
    rank: int
    world: int
    grid: tuple[int, int]  # the epoch that was resumed, and the position where its batch 0 begins, or would begin

    @property
    def shuffle(self) -> bool:
        """Whether samples come in another order than that of the source."""
        ...

    @property
    def has_whole_batches(self) -> bool:
        """Whether each batch has `batch_size` rows."""
        ...

    def n_batches(self, epoch: int = 0) -> int: ...

    def n_left(self, epoch: int = 0) -> int:
        """How many positions of an epoch no rank has; below 0: how many rows of padding there are."""
        ...

    def n_positions(self, epoch: int) -> int:
        """Positions of an epoch: samples, or batches for an order by batch."""
        ...

    def step(self, epoch: int) -> int:
        """Positions that a batch of each rank takes."""
        ...

    def start(self, epoch: int) -> int:
        """The position where batch 0 of this epoch begins, or would begin."""
        ...

    def place(self, epoch: int, position: int) -> Place:
        """Where the batch that begins at `position` would be."""
        ...

    @property
    def is_arithmetic(self) -> bool:
        """Whether later epochs are known without running a user's function or sampler."""
        ...

    def state(self, epoch: int, position: int) -> dict[str, Any]:
        """What another order has to have in common to go on at a position of an epoch."""
        ...


def order_in_words(order: LoaderOrder) -> str:
    """The repr of a loader's order."""
    return (
        f"<order of {order.n_samples:,} samples: batch_size={order.batch_size}, shuffle={order.shuffle}, last={order.last!r}, "
        f"shard=({order.rank}, {order.world})>"
    )


def check_shard(rank: int, world: int) -> None:
    """Refuse a rank that is not below the world."""
    if not 0 <= rank < world:
        raise ConfigError(f"shard is (rank, world) with 0 <= rank < world, not ({rank}, {world})")
