"""The order of what workers read from an IterableDataset: which worker each row belongs to, and where the worker goes on.

The trainer submits rows by their number, each for a worker. A worker's rows are filled one after another by that worker
(`Rows.part`). A full row has the worker's mark behind it, which is the mark before the worker's next row.

Invariant: a row is posted again only if all rows of its worker before it were filled, and the order has heard of them. So the
mark before it is known, and a new worker goes on exactly there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ringload.order.explicit import NO_END
from ringload.protocols import Rows
from ringload.torch.dataloader.iterable_source import Mark
from ringload.torch.dataloader.ring import EPOCHS, NUMBERS


class WorkerOrder:
    """The rows of one pass at a time. An `Order`, which hears of full rows."""

    by_part = True

    def __init__(self) -> None:
        self.epoch = 0
        self._start: tuple[Mark, ...] = ()
        self._n_passes_before = 0
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Begin `epoch`, of which no row is submitted yet."""
        self.epoch = epoch
        self._rows: dict[int, tuple[int, int]] = {}  # number -> worker, and how many rows of the worker were before
        self._after: dict[tuple[int, int], Mark] = {}  # the same -> the mark behind it, once it is full

    def start(self, marks: Sequence[Mark], n_passes_before: int) -> None:
        """Where each worker begins; and how many passes with the same base seed were before this one."""
        self._start, self._n_passes_before = tuple(marks), n_passes_before

    def submit(self, number: int, worker: int, n_before: int) -> None:
        """Row `number` is one of `worker`, which has `n_before` rows before it. Idempotent."""
        self._rows[number] = worker, n_before

    def forget(self, number: int) -> None:
        """Drop row `number`, which was received. Where its worker goes on stays known."""
        if (row := self._rows.pop(number, None)) is not None:
            self._after.pop((row[0], row[1] - 1), None)

    def n_batches(self, epoch: int) -> int:
        """Not known: more than there can be."""
        return NO_END

    def rows(self, epoch: int, number: int) -> Rows | None:
        """The row of this number; None if it was not submitted."""
        if epoch != self.epoch or number not in self._rows:
            return None
        worker, n_before = self._rows[number]
        before = self._start[worker] if not n_before else self._after.get((worker, n_before - 1))
        told = np.array([[epoch, self._n_passes_before, before is not None, *(before or Mark())]], np.int64)
        index = np.array([(epoch & EPOCHS) << 40 | (number & NUMBERS) << 16])
        return Rows(index, fields={"told": told}, part=worker)

    def heard(self, epoch: int, number: int, slot: Mapping[str, np.ndarray], is_lent: bool) -> int:
        """Note where a worker goes on. Returns how many rows there are."""
        if epoch == self.epoch and number in self._rows:
            self._after[self._rows[number]] = Mark(*slot["mark"][0].tolist())
        return 1
