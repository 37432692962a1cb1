"""From what a user gives as `order=` to the order of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ringload.checks import named, short
from ringload.errors import ConfigError
from ringload.order.batched import Batched, Shared
from ringload.order.checked import CheckedOrder, CheckedPositions
from ringload.order.given import Explicit, seeded
from ringload.order.loader_order import NO_GRID, LoaderOrder, Place, order_in_words
from ringload.order.positions import Sequential, Shuffled
from ringload.order.stream import StreamParts
from ringload.protocols import Binding, Rows

KINDS = (
    "'shuffle', 'sequence', an order of ringload (Weighted, Balanced, Blocks, Explicit, ...), a torch sampler, an iterable of "
    "index arrays, a function of the epoch that returns one of these, or an object that implements ringload.PositionOrder or "
    "ringload.Order"
)
N_KEPT = 4  # epochs


def loader_order(given: Any, to: Binding, rank: int = 0, world: int = 1) -> LoaderOrder:
    """The order of a loader.

    Raises:
        ConfigError: `given` is no order, or its arguments do not fit the source.
    """
    if _is_function(given):
        return ByEpoch(given, to, rank, world)
    bound = _bound(given, to)
    if isinstance(bound, StreamParts):
        return bound.for_rank(rank, world)
    if hasattr(bound, "at"):
        return Batched(CheckedPositions(bound, to.n_samples), to.batch_size, to.last, rank, world, to.epoch)
    return Shared(CheckedOrder(bound, to.n_samples, to.batch_size), to.last, rank, world, to.epoch)


def _is_function(given: Any) -> bool:
    is_order = any(hasattr(given, name) for name in ("bind", "at", "rows"))
    return callable(given) and not is_order and not isinstance(given, Iterable)


def _bound(given: Any, to: Binding) -> Any:
    if isinstance(given, str) and given in ("shuffle", "sequence"):
        return Shuffled(to.n_samples, to.seed) if given == "shuffle" else Sequential(to.n_samples)
    if not isinstance(given, type):
        if callable(bind := getattr(given, "bind", None)):
            return bind(to)
        if any(all(callable(getattr(given, name, None)) for name in names) for names in METHODS):
            return given
        if isinstance(given, Iterable) and not isinstance(given, str | bytes | dict):
            return Explicit(given).bind(to)
    raise ConfigError(f"order= is {KINDS}, not {short(given) if isinstance(given, str) else named(given)}")


METHODS = (("n_positions", "at"), ("n_batches", "rows"))


class ByEpoch:
    """An order that a function makes for each epoch. A `LoaderOrder`."""

    shuffle, is_arithmetic = True, False

    def __init__(self, make: Callable[[int], Any], to: Binding, rank: int, world: int) -> None:
        self._make, self._to = make, to
        self.n_samples, self.batch_size, self.last, self.rank, self.world = to.n_samples, to.batch_size, to.last, rank, world
        self._kept: dict[int, LoaderOrder] = {}
        self.grid = NO_GRID
        self.n_batches(to.epoch)

    def __repr__(self) -> str:
        return order_in_words(self)

    def of(self, epoch: int) -> LoaderOrder:
        """The order of an epoch."""
        found = self._kept.get(epoch)
        if found is None:
            try:
                with seeded(self._to.seed, epoch):
                    given = self._make(epoch)
            except Exception as error:
                what = f"order=: {named(self._make)} raised for epoch {epoch}: {type(error).__name__}: {error}"
                raise ConfigError(what) from error
            if _is_function(given) and not isinstance(given, type):
                raise ConfigError(f"order=: {named(self._make)} returned a function for epoch {epoch}: return an order")
            found = loader_order(given, replace(self._to, epoch=epoch), self.rank, self.world)
            self._kept = {**dict(list(self._kept.items())[1 - N_KEPT :]), epoch: found}
        found.grid = self.grid
        return found

    @property
    def has_whole_batches(self) -> bool:
        """Whether each batch of the first epoch has `batch_size` rows."""
        return self.of(self._to.epoch).has_whole_batches

    def n_left(self, epoch: int = 0) -> int:
        """How many positions of an epoch no rank has; below 0: how many rows of padding there are."""
        return self.of(epoch).n_left(epoch)

    def n_batches(self, epoch: int = 0) -> int:
        """Batches of an epoch on each rank."""
        return self.of(epoch).n_batches(epoch)

    def n_positions(self, epoch: int) -> int:
        """Positions of an epoch: samples, or batches for an order by batch."""
        return self.of(epoch).n_positions(epoch)

    def rows(self, epoch: int, number: int) -> Rows | None:
        """The rows of batch `number` of `epoch`."""
        return self.of(epoch).rows(epoch, number)

    def step(self, epoch: int) -> int:
        """Positions that a batch of each rank takes."""
        return self.of(epoch).step(epoch)

    def start(self, epoch: int) -> int:
        """The position where batch 0 of this epoch begins, or would begin."""
        return self.of(epoch).start(epoch)

    def place(self, epoch: int, position: int) -> Place:
        """Where the batch that begins at `position` would be."""
        return self.of(epoch).place(epoch, position)

    def state(self, epoch: int, position: int) -> dict[str, Any]:
        """What another order has to have in common to go on at a position of an epoch."""
        return self.of(epoch).state(epoch, position)


def column_of(source: Any) -> Callable[[str], np.ndarray]:
    """`Binding.column` of a source."""

    def column(name: str) -> np.ndarray:
        ask = getattr(source, "column", None)
        if not callable(ask):
            raise ConfigError(
                f"order= names the column {short(name)}, and {named(source)} has no method column(name): give an array `(N,)`"
            )
        return np.asarray(ask(name))

    return column
