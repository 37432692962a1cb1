"""The order of what workers read from an IterableDataset: which worker each row belongs to, and where the worker goes on.

The trainer submits rows by their number, each for a worker. A worker's rows are filled one after another by that worker
(`Rows.part`). A full row has the worker's mark behind it, which is the mark before the worker's next row.

Invariant: a row is posted again only if all rows of its worker before it were filled, and the order has heard of them. So the
mark before it is known, and a new worker goes on exactly there.

What a row has is read in `heard`, while the engine lends it. So if an interruption comes before the trainer has noted the row,
it is here, and no worker that lives reads anything again: its copy of the dataset may have changed in itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.errors import without_frames
from ringload.order.explicit import NO_END
from ringload.protocols import Rows
from ringload.torch.dataloader.iterable_source import END, Mark
from ringload.torch.dataloader.ring import EPOCHS, NUMBERS
from ringload.torch.dataloader.values import decode


@dataclass(frozen=True)
class Lent:
    """What row `number` has: its mark and status, and a batch (`data`), a copied piece of one, or why it cannot be decoded."""

    number: int
    mark: Mark
    n_left: int
    data: Any = None
    piece: np.ndarray | None = None
    error: Exception | None = None


class WorkerOrder:
    """The rows of one pass at a time. An `Order`, which hears of full rows. `lent`: the row that was lent last."""

    by_part = True

    def __init__(self, allow_pickle: bool) -> None:
        self.epoch = 0
        self.lent: Lent | None = None
        self._allow_pickle = allow_pickle
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
        """Drop row `number`, which was received, and what it had. Where its worker goes on stays known."""
        self.lent = None
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
        """Note where a worker goes on, and what a row has that is lent. Returns how many rows there are."""
        if epoch == self.epoch and number in self._rows:
            mark = self._after[self._rows[number]] = Mark(*slot["mark"][0].tolist())
            if is_lent:
                self.lent = self._read(number, mark, int(slot["status"][0]), slot["encoded"][0])
        return 1

    def _read(self, number: int, mark: Mark, n_left: int, written: np.ndarray) -> Lent:
        if n_left == END or not mark.n_bytes:
            return Lent(number, mark, n_left)
        if n_left or mark.n_bytes > len(written):
            return Lent(number, mark, n_left, piece=written.copy())
        try:
            return Lent(number, mark, 0, decode(written, self._allow_pickle))
        except Exception as error:  # takes the place of the batch
            return Lent(number, mark, 0, error=without_frames(error))
