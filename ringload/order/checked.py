"""Checks the results of an order that the user has written."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringload.checks import named, short
from ringload.errors import ConfigError
from ringload.protocols import Order, PositionOrder, Rows


def _state_of(order: Any, epoch: int, position: int, n_samples: int) -> dict[str, Any]:
    if callable(ask := getattr(order, "state_at", None)):
        return dict(ask(epoch, position))
    if callable(ask := getattr(order, "state", None)):
        return dict(ask())
    return {"kind": named(order), "n_samples": n_samples}


class CheckedPositions:
    """A `PositionOrder` around the user's.

    Raises:
        ConfigError: the order gives something else than samples of the source.
    """

    def __init__(self, order: PositionOrder, n_samples: int) -> None:
        self.order, self.n_samples = order, n_samples
        self.shuffle = bool(getattr(order, "shuffle", True))
        self.is_listed = bool(getattr(order, "is_listed", False))

    def n_positions(self, epoch: int) -> int:
        """Positions of an epoch."""
        return _count(self.order.n_positions(epoch), f"order.n_positions({epoch})")

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        """The samples at `positions`."""
        where = f"order.at({epoch}, positions)"
        rows = _checked(self.order.at(epoch, positions), where, self.n_samples)
        if len(rows.index) != len(positions):
            raise ConfigError(f"{where} has {len(rows.index):,} rows for {len(positions):,} positions: give one for each")
        return rows

    def state_at(self, epoch: int, position: int) -> dict[str, Any]:
        """What a loader's state says of this order at a position."""
        return _state_of(self.order, epoch, position, self.n_samples)


class CheckedOrder:
    """An `Order` around the user's. Batches may be shorter than `batch_size`.

    Raises:
        ConfigError: the order gives something else than a batch of the source's samples.
    """

    def __init__(self, order: Order, n_samples: int, batch_size: int) -> None:
        self.order, self.n_samples, self.batch_size = order, n_samples, batch_size
        self.shuffle = bool(getattr(order, "shuffle", False))
        self.is_listed = bool(getattr(order, "is_listed", False))

    def n_batches(self, epoch: int) -> int:
        """Batches of `epoch`."""
        return _count(self.order.n_batches(epoch), f"order.n_batches({epoch})")

    def rows(self, epoch: int, number: int) -> Rows | None:
        """The rows of batch `number` of `epoch`."""
        given = self.order.rows(epoch, number)
        if given is None:
            return None
        where = f"order.rows({epoch}, {number})"
        rows = _checked(given, where, self.n_samples)
        if not 1 <= len(rows.index) <= self.batch_size:
            raise ConfigError(f"{where} has {len(rows.index):,} rows: a batch has 1 to batch_size={self.batch_size:,}")
        return rows

    def state_at(self, epoch: int, position: int) -> dict[str, Any]:
        """What a loader's state says of this order at a position."""
        return _state_of(self.order, epoch, position, self.n_samples)


def _count(n: Any, where: str) -> int:
    if not isinstance(n, int | np.integer) or n < 1:
        raise ConfigError(f"{where} is {short(n)}: it has to be an integer, 1 or more")
    return int(n)


def _checked(given: Any, where: str, n_samples: int) -> Rows:
    rows = given if isinstance(given, Rows) else Rows(given)
    index = _integers(rows.index, where, "index", n_samples)
    key = None if rows.key is None else _integers(rows.key, where, "key", 1 << 63)
    if key is not None and len(key) != len(index):
        raise ConfigError(f"{where} has {len(index):,} indices and {len(key):,} keys: give one key for each index")
    return Rows(index, key, rows.fields)


def _integers(values: Any, where: str, name: str, below: int) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ConfigError(
            f"{where}: {name} is an array of integers (n,), not {short(values)}: return ringload.Rows(index, key), or index"
        )
    if len(array) and not (array.min() >= 0 and array.max() < below):
        raise ConfigError(f"{where}: {name} has {array.min()} to {array.max()}; it has to be from 0 to {below - 1:,}")
    return array.astype(np.int64, copy=False)
