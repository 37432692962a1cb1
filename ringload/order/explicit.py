"""An order that the trainer submits batch by batch, for a user's samplers, whose batches no formula gives.

The trainer submits each batch by its number before the engine posts the batch. Sizes may differ from batch to batch. Invariant:
a submitted batch stays until the trainer has received it (`forget`), so that it can be posted again after a death or an
interruption.
"""

from __future__ import annotations

from ringload.protocols import Rows

NO_END = 1 << 62  # batches: their number is not known before all are submitted, or before a stream ends
ENDLESS = 1 << 61  # positions of an epoch that never ends


class ExplicitOrder:
    """The batches of one epoch at a time. An `Order`."""

    by_part = False

    def __init__(self) -> None:
        self.epoch = 0
        self._batches: dict[int, Rows] = {}

    def begin(self, epoch: int) -> None:
        """Begin `epoch`, of which no batch is submitted yet."""
        self.epoch = epoch
        self._batches = {}

    def submit(self, number: int, rows: Rows) -> None:
        """Set the rows of batch `number`."""
        self._batches[number] = rows

    def forget(self, number: int) -> None:
        """Drop batch `number`, which was received."""
        self._batches.pop(number, None)

    def n_batches(self, epoch: int) -> int:
        """Not known: more than there can be."""
        return NO_END

    def rows(self, epoch: int, number: int) -> Rows | None:
        """The rows of a batch; None if it was not submitted."""
        return self._batches.get(number) if epoch == self.epoch else None
