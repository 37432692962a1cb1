"""The trainer's side of a unit: what an actor is told of its rows, and how its rows get into the slot.

    slot --indices, draw keys, the order's fields--> UnitMessage --an actor--> Filled --> rows of the slot, report, done flag

A task is one unit, or one for each row where a worker died of one of them. One thread uses a `SlotWriter`; the trainer reads
`results`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from ringload.bad_sample import Bad
from ringload.order.randomness import substitutes
from ringload.protocols import Job
from ringload.ray.actor import Filled, UnitMessage, rows_layout
from ringload.ring.layout import FLAG_DONE, FLAG_DONE_WITH_REPORTS, KEY, MAX_TASKS, Layout
from ringload.ring.slots import InFlightBatch, TaskResult
from ringload.workers.current_work import WHOLE_TASK, CurrentWork
from ringload.workers.fill import N_SUBSTITUTES
from ringload.workers.records import BAD, MAX_TEXT_BYTES, Task, WorkerReport


class Substitute(NamedTuple):
    """A sample that is tried in place of a row's own, the `number`th; and what its own has returned."""

    sample: int
    number: int
    own: Filled


@dataclass(eq=False)
class Unit:
    """Rows `start:stop` of a batch, which are a task, or one row of it. `generation`: see `dispatcher`."""

    batch: InFlightBatch
    task: int
    start: int
    stop: int
    n_bytes: int
    generation: int
    one_by_one: bool = False
    substitute: Substitute | None = None

    @property
    def of_task(self) -> tuple[int, int]:
        """The task, by a name that no other has."""
        return self.batch.serial, self.task


@dataclass
class _Left:
    """What is left of a task, and what its units have told so far."""

    n_rows: int
    has_bad: bool = False
    busy_s: float = 0.0
    idle_s: float = 0.0


class SlotWriter:
    """Reads and writes rows of the ring's slots. `flags`: the done flags of all slots."""

    def __init__(self, job: Job, memory: np.ndarray, flags: memoryview) -> None:
        layout = job.layout
        self._seed, self._n_samples, self._replaces = job.seed, job.n_samples, job.on_error == "replace"
        self.results: SimpleQueue[WorkerReport | TaskResult] = SimpleQueue()
        self.order_fields: Sequence[str] = ()
        self._layout, self._flags, self._arrays = layout, flags, layout.arrays(memory)
        self._row_bytes = -(-layout.slot_bytes // layout.batch_size)
        self._left: dict[tuple[int, int], _Left] = {}
        self._layouts: dict[int, Layout] = {}  # of so many rows

    def units_of(self, batch: InFlightBatch, generation: int, one_by_one: bool) -> Iterable[Unit]:
        """The units of a batch's tasks that are not done."""
        for task, (start, stop) in enumerate(batch.split.bounds):
            if batch.is_done(task):
                continue
            self._left[batch.serial, task] = _Left(stop - start)
            step = 1 if one_by_one else stop - start
            for first in range(start, stop, step):
                yield Unit(batch, task, first, first + step, self._row_bytes * step, generation, one_by_one)

    def message(self, unit: Unit) -> UnitMessage:
        """What an actor is told of a unit."""
        slot, rows = unit.batch.slot, slice(unit.start, unit.stop)
        index, keys = self._arrays["index"][slot][rows].tobytes(), self._arrays[KEY][slot][rows].tobytes()
        if unit.substitute is not None:  # its own number is its draw key
            index = keys = np.int64(unit.substitute.sample).tobytes()
        ordered = {name: self._arrays[name][slot][rows] for name in self.order_fields}
        return UnitMessage(unit.batch.epoch, index, keys, ordered, unit.one_by_one)

    def work(self, unit: Unit, since_s: float) -> CurrentWork:
        """A unit as what a worker has in hand."""
        sample = WHOLE_TASK  # as samples of other units are read meanwhile
        if unit.one_by_one:
            index = self._arrays["index"][unit.batch.slot]
            sample = int(index[unit.start]) if unit.substitute is None else unit.substitute.sample
        return CurrentWork(unit.batch.epoch, unit.batch.number, sample, unit.start, unit.stop, since_s)

    def substitute_for(self, unit: Unit, filled: Filled) -> Unit | None:
        """A unit that tries another sample, where that of a unit of one row is bad; None: there is nothing to try."""
        if not (unit.one_by_one and filled.bad and self._replaces):
            return None
        key = int(self._arrays[KEY][unit.batch.slot][unit.start])
        others = substitutes(self._seed, unit.batch.epoch, key, self._n_samples, N_SUBSTITUTES)
        number, own = (0, filled) if unit.substitute is None else (unit.substitute.number + 1, unit.substitute.own)
        if number == len(others):
            return None
        return replace(unit, substitute=Substitute(int(others[number]), number, own))

    def _made_good(self, worker_id: int, unit: Unit, filled: Filled) -> Filled:
        """What is written of a row whose own sample is bad."""
        if unit.substitute is None:
            return filled
        if filled.bad:  # as all substitutes are
            return unit.substitute.own
        ((sample, text),) = unit.substitute.own.bad
        problem = Bad.unpack(text, sample, worker_id)
        problem.replaced_by = unit.substitute.sample
        return filled._replace(bad=[(sample, problem.pack(MAX_TEXT_BYTES))])

    def write(self, worker_id: int, unit: Unit, filled: Filled) -> bool:
        """Rows, then reports, then the flag, as a batch whose flags are all set may be lent at once: whether they are."""
        filled = self._made_good(worker_id, unit, filled)
        batch, n_rows = unit.batch, unit.stop - unit.start
        if n_rows not in self._layouts:
            self._layouts[n_rows] = rows_layout(self._layout, n_rows)
        for name, rows in self._layouts[n_rows].whole_slot(filled.rows).items():
            if name != KEY:
                self._arrays[name][batch.slot][unit.start : unit.stop] = rows
        for sample, text in filled.bad:
            self.results.put(WorkerReport(BAD, worker_id, batch.slot, unit.task, sample, text))
        left = self._left[unit.of_task]
        left.n_rows -= n_rows
        left.has_bad |= bool(filled.bad)
        left.busy_s += filled.busy_s
        left.idle_s += filled.idle_s
        if left.n_rows:
            return False
        del self._left[unit.of_task]
        start, stop = batch.split.bounds[unit.task]
        self.results.put((batch.slot, unit.task, stop - start, left.busy_s, left.idle_s))
        self._flags[batch.slot * MAX_TASKS + unit.task] = FLAG_DONE_WITH_REPORTS if left.has_bad else FLAG_DONE
        return 0 not in bytes(batch.flags_now)

    def take_back(self, pending: deque[Unit], begun: set[tuple[int, int]]) -> list[Task]:
        """Take those tasks out of `pending` of which no unit was begun, or is done."""
        taken: dict[tuple[int, int], Task] = {}
        for unit in list(pending):
            bounds = unit.batch.split.bounds
            start, stop = bounds[unit.task]
            if unit.of_task in begun or (unit.of_task not in taken and self._left[unit.of_task].n_rows < stop - start):
                continue
            pending.remove(unit)
            batch = unit.batch
            taken[unit.of_task] = Task(batch.epoch, batch.number, batch.slot, start, stop, unit.task, len(bounds))
        for of_task, task in taken.items():
            del self._left[of_task]
            self._flags[task.slot * MAX_TASKS + task.task] = FLAG_DONE
        return list(taken.values())

    def forget(self) -> None:
        """Nothing is posted."""
        self._left.clear()

    def drop(self) -> None:
        """Let go of the ring's memory."""
        self._arrays = {}
