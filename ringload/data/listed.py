"""An order that the trainer lists: for samplers of the user's own, whose batches no formula gives.

The trainer lists batches ahead of their posting, by number; each is a mapping of fields to what its rows hold: `index` (n,)
int64, and whatever else of a row only the trainer knows. When a batch is posted, these are written into its slot, and
producers read them there. Sizes may differ from batch to batch. The engine posts what is listed and nothing beyond.

Invariants:
1. What is listed stays listed until it was received (`forget`): after a death or an interruption it is posted again.
2. A batch's rows are in its slot before its tasks are posted, and nobody but the trainer writes there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class ListedOrder:
    """The batches of one epoch at a time. Producers get it empty: they read the slots."""

    seed = 0

    def __init__(self) -> None:
        self.epoch = 0
        self._batches: dict[int, Mapping[str, np.ndarray]] = {}

    def begin(self, epoch: int) -> None:
        """From now on `epoch` is listed, and nothing of it is yet."""
        self.epoch = epoch
        self._batches = {}

    def enlist(self, number: int, rows: Mapping[str, np.ndarray]) -> None:
        """Batch `number` holds these: field -> `(n, ...)`."""
        self._batches[number] = rows

    def forget(self, number: int) -> None:
        """Batch `number` was received."""
        self._batches.pop(number, None)

    def has(self, epoch: int, number: int) -> bool:
        """Whether a batch is listed."""
        return epoch == self.epoch and number in self._batches

    def rows(self, number: int) -> Mapping[str, np.ndarray]:
        """What is written into a batch's slot."""
        return self._batches[number]

    def n_rows(self, number: int) -> int:
        """Rows of batch `number`."""
        return len(self._batches[number]["index"])

    def indices(self, epoch: int, number: int, start: int, stop: int) -> np.ndarray:
        """The samples of rows `start:stop` of a batch."""
        return self.rows(number)["index"][start:stop] if self.has(epoch, number) else np.empty(0, np.int64)

    def after(self, epoch: int, number: int) -> tuple[int, int]:
        """What follows batch `number`: whether there is such a one is known when it is listed."""
        return epoch, number + 1

    def __reduce__(self) -> Any:
        return ListedOrder, ()
