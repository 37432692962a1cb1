"""An order that the trainer submits, batch by batch: for samplers of the user's own, whose batches no formula gives.

The trainer submits batches ahead of their posting, by number. Sizes may differ from batch to batch. The engine posts what was
submitted and nothing beyond. Invariant: what was submitted stays until it was received (`forget`), so that after a death or an
interruption it is posted again.
"""

from __future__ import annotations

from ringload.protocols import Rows

NO_END = 1 << 62  # batches: whether there is another one is known when it is submitted


class ExplicitOrder:
    """The batches of one epoch at a time. An `Order`."""

    def __init__(self) -> None:
        self.epoch = 0
        self._batches: dict[int, Rows] = {}

    def begin(self, epoch: int) -> None:
        """From now on batches of `epoch` are submitted; there is none yet."""
        self.epoch = epoch
        self._batches = {}

    def submit(self, number: int, rows: Rows) -> None:
        """Batch `number` holds these."""
        self._batches[number] = rows

    def forget(self, number: int) -> None:
        """Batch `number` was received."""
        self._batches.pop(number, None)

    def n_batches(self, epoch: int) -> int:
        """Nobody knows."""
        return NO_END

    def rows(self, epoch: int, number: int) -> Rows | None:
        """What is in the rows of a batch; None if it was not submitted."""
        return self._batches.get(number) if epoch == self.epoch else None
