"""Filling rows that the trainer listed: the counterpart of `filling` for a `ListedOrder`.

A source of listed rows is any object with
    fields                      as in `ringload.data.fields`; those that the trainer lists among them
    load_row(row, rows)         load one row: `rows` is field -> `(n, ...)` of the task, with `index` and what else is listed
and optionally
    again()                     called after a task: True, and all of its rows are loaded once more
    start(producer), scratch_bytes   as in `ringload.data.fields`
What a row holds must depend on what is listed for it alone, so that it may be loaded again after a death.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ringload.ring.ring import Bad
from ringload.workers.filling import reason_of, traceback_of


class ListedFiller:
    """Fills rows from a source of listed rows. `killers` and `wrap` as `Filler` has them.

    What a user's code raises is reported with its class in `where`: "producer module qualified.name".
    """

    def __init__(
        self,
        source: Any,
        killers: dict[int, str] | None = None,
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
        producer: int = 0,
    ) -> None:
        self._load_row = source.load_row
        self._again: Callable[[], bool] | None = getattr(source, "again", None)
        self._killers = killers or {}
        self._producer = producer
        self._fill = wrap(self._fill_rows)

    def indices(self, epoch: int, number: int, start: int, stop: int) -> np.ndarray:
        """None that are known before their task is read: nothing is asked for ahead."""
        return np.empty(0, np.int64)

    def fill(
        self,
        epoch: int,
        number: int,
        start: int,
        stop: int,
        slot: dict[str, np.ndarray],
        claim: Callable[[int, int, int], None] = lambda sample, start, stop: None,
        one_by_one: bool = False,
    ) -> list[Bad]:
        """Fill rows `start:stop`, one at a time, each claimed before it is begun. Returns what was bad."""
        rows = {name: array[start:stop] for name, array in slot.items()}
        bad: list[Bad] = self._fill(start, rows, claim)
        if self._again is not None and self._again():
            bad = self._fill(start, rows, claim)
        return bad

    def _fill_rows(self, start: int, rows: dict[str, np.ndarray], claim: Callable[[int, int, int], None]) -> list[Bad]:
        bad = []
        load_row, killers = self._load_row, self._killers
        for row, index in enumerate(rows["index"].tolist(), start):
            claim(index, row, row + 1)
            if killers and index in killers:
                bad.append(Bad(index, "", killers[index], ""))
                continue
            try:
                load_row(row - start, rows)
            except Exception as error:  # whatever a user's code raises: it belongs to this row
                kind = type(error)
                where = f"{self._producer} {kind.__module__} {kind.__qualname__}"
                bad.append(Bad(index, where, reason_of(error), traceback_of(error)))
        return bad
