"""What is posted, in which tasks; and what is read of reports.

Cost: after a wait the trainer's caches are cold, and each line of Python costs five times what it does in a loop. So what can
be done for several batches at once is: reports are read, slots given back and batches posted `housekeeping_every` batches.
"""

from __future__ import annotations

import time

from ringload.bad_sample import Bad
from ringload.checks import warn
from ringload.engine.lifecycle import State
from ringload.engine.state import EngineState
from ringload.errors import BudgetError, ConfigError
from ringload.ring.plan import human
from ringload.workers.records import FAILED

FEW_TASKS = 16  # of a batch, or 4 a worker: more would share a batch no better, and each costs the trainer 1 us
FIRST_ROWS = 8  # rows a task, at most, before a sample's cost was measured
WHOLE_BATCH_S = 0.001  # a batch that costs less is one task
MAX_HOUSEKEEPING_EVERY = 16  # slots that are given back and posted at once, at most
UNUSABLE = "the source, or worker_setup, cannot be used in a worker:\n"


class Schedule:
    """Posts the batches that are due next into free slots, and enters what workers report of them."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self.housekeeping_every = 1  # batches

    def grow(self, n_reserved: int) -> None:
        """So many slots are reserved now."""
        state = self._state
        state.ring.add(range(state.n_reserved, n_reserved))
        state.n_reserved = n_reserved
        # several at once, if the ring is large enough not to miss them
        self.housekeeping_every = min(MAX_HOUSEKEEPING_EVERY, n_reserved // 4) or 1

    def post(self, at_most: int = MAX_HOUSEKEEPING_EVERY, is_waiting: bool = False) -> None:
        """Post batches into free slots, those first that were posted before a reset. Where the trainer itself fills what is
        posted, only the batch that it is waiting for."""
        state = self._state
        if not state.workers.n_workers and not is_waiting:
            return
        if state.unposted:
            del state.unposted[: state.workers.post(state.unposted)]
            if state.unposted:
                return
        ring, order = state.ring, state.order
        newest = ring.newest()
        epoch, number = state.due if newest is None else self.after(newest.epoch, newest.number)
        batches = []
        for _ in range(min(at_most, ring.n_free, state.workers.max_ahead - ring.n_in_flight)):
            if state.settings.epochs is not None and epoch >= state.settings.epochs:
                break
            if state.chooses:
                order.unfilled([one.part for one in ring.in_flight if one.undone])  # type: ignore[attr-defined]
            rows = order.rows(epoch, number)
            if rows is None:
                break
            n_rows = len(rows.index)
            batch = ring.fill(epoch, number, n_rows, self._rows_of_task(n_rows) if rows.part is None else n_rows)
            batch.part = rows.part or 0
            if state.sanitizer is not None:
                state.sanitizer.posting(batch.slot)
            state.leases.prepare(batch, rows)
            batches.append(batch)
            epoch, number = self.after(epoch, number)
        for _ in range(len(batches) - state.workers.post(batches)):
            ring.unfill()

    def after(self, epoch: int, number: int) -> tuple[int, int]:
        """What follows batch `number` of `epoch`."""
        return (epoch, number + 1) if number + 1 < self._state.order.n_batches(epoch) else (epoch + 1, 0)

    def _rows_of_task(self, n_rows: int) -> int:
        """How many rows a task holds: about `Workers.task_s` of work; all workers share a batch unless it is tiny."""
        state, workers = self._state, self._state.workers
        n_workers, row_s, least = workers.n_workers, state.row_s, state.settings.task_rows
        if n_workers == 0:
            return n_rows
        most = workers.most_rows(n_rows, state.n_reserved)
        if row_s == 0:
            return min(max(FIRST_ROWS, least), most)
        rows = max(least, round(workers.task_s / row_s), n_rows // max(FEW_TASKS, 4 * n_workers))
        return n_rows if n_rows * row_s < WHOLE_BATCH_S else min(rows, most)

    def collect(self) -> None:
        """Enter what workers have reported."""
        state = self._state
        reports, done = state.workers.collect()
        for report in reports:
            if report.kind == FAILED:
                raise ConfigError(f"{UNUSABLE}{report.text}")
            state.ring.bad(report.slot, report.task, Bad.unpack(report.text, report.sample, report.worker_id))
        if not done:
            return
        if state.blame.has_crashes:
            for slot, task, *_ in done:
                state.blame.clear_task(state.ring.of(slot), task)
        busy_s, idle_s, n_rows = state.ring.enter(done)
        state.counters.busy_s += busy_s
        state.counters.idle_s += idle_s
        if n_rows:
            state.row_s += (busy_s / n_rows - state.row_s) / (4 if state.row_s else 1)
        state.progress_s, state.n_starts = time.monotonic(), 0

    def give_back(self) -> None:
        """The slots of leases that have ended are free. Each batch of them has had all its reports by then: `collect` first."""
        state = self._state
        state.ring.free_cancelled()
        released = state.leases.released
        while not released.empty():
            end = released.get_nowait()
            slot = getattr(end, "slot", None)  # none, if its making was interrupted
            if end is not None and slot is not None:
                if state.ring.give_back(slot, end.serial) and state.sanitizer is not None:
                    state.sanitizer.freed(slot)
                state.leases.ended(end)

    def give_up(self) -> None:
        """Nothing that is in flight will be lent."""
        state = self._state
        self.collect()
        for task in state.workers.take_back():
            state.ring.take_back(task.slot, task.task)
        for batch in state.unposted:  # no worker has their open tasks
            batch.undone, batch.flags_now = 0, b""
        state.unposted = []
        state.ring.cancel()

    def give_up_beyond_end(self) -> None:
        """If the order has just heard where the epoch ends, give up the batches beyond."""
        first = self._state.ring.due()
        if first is not None and (first.epoch, first.number) != self._state.due:
            self.give_up()

    def measure(self) -> None:
        """Once a worker has its source, which is before the first batch: whether there is room for what all of them take."""
        state = self._state
        taken, room = state.workers.own_bytes(), state.settings.room
        if taken is None:
            return
        state.is_measured = True
        n_workers, (source_bytes, module_bytes) = state.workers.n_workers, taken
        if (missing := state.n_first - room.n_slots(state.layout.n_slots, source_bytes)) > 0:
            raise BudgetError(
                f"the source takes {human(source_bytes // n_workers)} in each of {n_workers} workers, and the plan has room "
                f"for {human(room.own_bytes // n_workers)}: raise ram_budget by {human(missing * room.slot_bytes)}, lower the "
                "number of workers, or keep the data in arrays or in files, which workers share"
            )
        state.n_room = room.n_slots(state.layout.n_slots, source_bytes + module_bytes)
        if (missing := state.n_first - state.n_room) > 0:
            self.warn(
                f"each of {n_workers} workers takes {human(module_bytes // n_workers)} for the modules that the source "
                f"imports, which is {human(missing * room.slot_bytes)} more in all than ram_budget has room for",
            )

    def warn(self, message: str) -> None:
        """Warn while the slot table is consistent: where warnings are errors, the loader goes on after this one."""
        life = self._state.life
        life.state, before = State.OPEN, life.state
        warn(message, RuntimeWarning)
        life.state = before
