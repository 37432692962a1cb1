"""Checks the results of an order that the user has written."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringload.checks import named, short
from ringload.errors import ConfigError
from ringload.protocols import Order, Rows


class CheckedOrder:
    """An `Order` around the user's, as rank 0 of 1. Batches may be shorter than `batch_size`.

    Raises:
        ConfigError: the user's order lacks a method, or gives something else than a batch of the source's samples.
    """

    rank, world, last, shuffle = 0, 1, "keep", False

    def __init__(self, order: Order, n_samples: int, batch_size: int, seed: int) -> None:
        for method in ("n_batches", "rows"):
            if not callable(getattr(order, method, None)) or isinstance(order, type):
                raise ConfigError(
                    "order= is an object with n_batches(epoch) and rows(epoch, number), as ringload.Order says, not "
                    f"{named(order)}"
                )
        self._order, self.n_samples, self.batch_size, self.seed = order, n_samples, batch_size, seed
        self.n_batches(0)

    def n_batches(self, epoch: int = 0) -> int:
        """Batches of `epoch`, by the user's order."""
        n = self._order.n_batches(epoch)
        if not isinstance(n, int | np.integer) or n < 1:
            raise ConfigError(f"order.n_batches({epoch}) is {short(n)}: it has to be an integer, 1 or more")
        return int(n)

    def rows(self, epoch: int, number: int) -> Rows | None:
        """The rows of batch `number` of `epoch`, by the user's order."""
        given: Any = self._order.rows(epoch, number)
        if given is None:
            return None
        rows = given if isinstance(given, Rows) else Rows(given)
        where = f"order.rows({epoch}, {number})"
        index = self._integers(rows.index, where, "index", self.n_samples)
        if not 1 <= len(index) <= self.batch_size:
            raise ConfigError(f"{where} has {len(index):,} rows: a batch has 1 to batch_size={self.batch_size:,}")
        key = None if rows.key is None else self._integers(rows.key, where, "key", 1 << 63)
        if key is not None and len(key) != len(index):
            raise ConfigError(f"{where} has {len(index):,} indices and {len(key):,} keys: give one key for each index")
        return Rows(index, key, rows.fields)

    def _integers(self, values: Any, where: str, name: str, below: int) -> np.ndarray:
        array = np.asarray(values)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ConfigError(
                f"{where}: {name} is an array of integers (n,), not {short(values)}: return ringload.Rows(index, key), or index"
            )
        if len(array) and not (array.min() >= 0 and array.max() < below):
            raise ConfigError(f"{where}: {name} has {array.min()} to {array.max()}; it has to be from 0 to {below - 1:,}")
        return array.astype(np.int64, copy=False)

    def state(self) -> dict[str, Any]:
        """The order's part of a loader's state."""
        return {"n_samples": self.n_samples, "batch_size": self.batch_size, "seed": self.seed, "order": named(self._order)}
