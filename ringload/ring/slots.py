"""The slot table: which slot holds which batch, and whether the trainer has it.

    free -> in flight (filling, then full) -> lent -> free

A slot is in exactly one of: `_free`; `_in_flight`, in the order in which batches are due; `_cancelled`, for batches that a seek
has given up, while a worker still fills a task of them or will set a done flag; `_lent`.

Invariants:
1. A slot is posted only when it is free: that bounds memory.
2. A slot becomes free only when each of its tasks was reported or taken back, and its done flags are set. So no worker writes
   late into its rows, or sets a flag late.
3. Batches are lent in the order in which they were posted.
4. The slot that became free last is used first: its pages are in the caches, and pages of a ring that is never full are never
   touched.

The table has no part in processes or pipes. One thread at a time calls it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count

from ringload.bad_sample import Bad
from ringload.ring.layout import FLAG_DONE, FLAG_DONE_WITH_REPORTS, MAX_TASKS

SERIALS = count(1)  # of batches in flight, unique in this process
TaskResult = tuple[int, int, int, float, float]  # slot, task, rows written, seconds busy, seconds idle before it


@dataclass(frozen=True)
class TaskSplit:
    """How a batch of `n_rows` is cut into tasks: `bounds` has (first row, row after the last) of each."""

    bounds: tuple[tuple[int, int], ...]

    @cached_property
    def flags_full(self) -> bytes:
        """The done flags when all tasks are done, and nothing was bad."""
        return bytes([FLAG_DONE]) * len(self.bounds)


@lru_cache(maxsize=64)
def split_into_tasks(n_rows: int, rows_per_task: int) -> TaskSplit:
    """Tasks of `rows_per_task`, or more where they would be more than MAX_TASKS."""
    rows_per_task = max(rows_per_task, -(-n_rows // MAX_TASKS))
    return TaskSplit(tuple((start, min(start + rows_per_task, n_rows)) for start in range(0, n_rows, rows_per_task)))


@lru_cache(maxsize=2)
def _descending(n_slots: int) -> tuple[int, ...]:
    """All slots, the last first. Kept: a reset has to be fast, as interruptions may come each millisecond."""
    return tuple(reversed(range(n_slots)))


class InFlightBatch:
    """A batch in a slot, from its posting to the end of its lease. Its lease names it by (slot, serial).

    `undone` has a bit for each task that was not reported yet. `flags_now` shows the done flags of its tasks as they are: equal
    to `flags_full`, all are done and nothing was bad; else without a 0, all are done, and what was bad is to be collected.
    (Empty where there are no flags, as the trainer fills its batches itself.) `since_s` (time.monotonic) is when it was lent.
    `part`: see `protocols.Rows`.
    """

    __slots__ = (
        "bad",
        "epoch",
        "flags_full",
        "flags_now",
        "n_rows",
        "number",
        "part",
        "serial",
        "since_s",
        "slot",
        "split",
        "undone",
    )

    def __init__(self, epoch: int, number: int, n_rows: int, slot: int, serial: int, split: TaskSplit) -> None:
        self.epoch, self.number, self.n_rows, self.slot, self.serial, self.split = epoch, number, n_rows, slot, serial, split
        self.undone = (1 << len(split.bounds)) - 1
        self.flags_now: memoryview | bytes = b""
        self.flags_full = split.flags_full
        self.bad: list[tuple[int, Bad]] = []  # (task, what was bad)
        self.since_s = 0.0
        self.part = 0

    def is_done(self, task: int) -> bool:
        """Whether a task was reported."""
        return not self.undone >> task & 1

    @property
    def is_full(self) -> bool:
        """Whether all its tasks are done: they were reported, or their flags say so."""
        flags = bytes(self.flags_now)
        return not self.undone or (flags != b"" and 0 not in flags)

    @property
    def is_over(self) -> bool:
        """Whether no worker will write to its slot or its flags any more."""
        return not self.undone and 0 not in self.flags_now

    def done_flags(self) -> bytes:
        """The done flags that agree with the reports."""
        n_tasks = len(self.split.bounds)
        if self.undone == (1 << n_tasks) - 1:
            return bytes(n_tasks)
        with_reports = {task for task, _ in self.bad}
        full = {task: FLAG_DONE_WITH_REPORTS if task in with_reports else FLAG_DONE for task in range(n_tasks)}
        return bytes(flag if self.is_done(task) else 0 for task, flag in full.items())


class Ring:
    """The state of every slot. Slots are added as their memory is reserved; some may be lent already (see Engine)."""

    def __init__(self, n_slots: int, lent: dict[int, InFlightBatch] | None = None) -> None:
        self._lent: dict[int, InFlightBatch] = dict(lent or {})
        self._free = list(_descending(n_slots))
        for slot in sorted(self._lent):
            del self._free[n_slots - 1 - slot]
        self._in_flight: deque[InFlightBatch] = deque()
        self._cancelled: dict[int, InFlightBatch] = {}
        self._by_slot: dict[int, InFlightBatch] = {}  # whose tasks may still be reported: in flight, cancelled, or just lent

    def add(self, slots: range) -> None:
        """These slots are reserved and may be used."""
        self._free[:0] = reversed(slots)  # below those that were in use

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_in_flight(self) -> int:
        """Batches that are filling or full."""
        return len(self._in_flight)

    @property
    def n_cancelled(self) -> int:
        """Batches that were given up while workers still fill tasks of them."""
        return len(self._cancelled)

    @property
    def in_flight(self) -> Iterable[InFlightBatch]:
        """The batches that are filling or full, in the order in which they are due."""
        return self._in_flight

    @property
    def n_full(self) -> int:
        """Batches that are full, and are not lent yet. Any thread may ask."""
        return sum(posted.is_full for posted in list(self._in_flight))

    @property
    def lent(self) -> dict[int, InFlightBatch]:
        """Slot -> what is lent of it."""
        return self._lent

    def fill(self, epoch: int, number: int, n_rows: int, rows_per_task: int) -> InFlightBatch:
        """Take a free slot for a batch, and cut it into tasks."""
        split = split_into_tasks(n_rows, rows_per_task)
        posted = InFlightBatch(epoch, number, n_rows, self._free.pop(), next(SERIALS), split)
        self._by_slot[posted.slot] = posted
        self._in_flight.append(posted)
        return posted

    def unfill(self) -> None:
        """Undo the last `fill`: its tasks could not be posted."""
        posted = self._in_flight.pop()
        del self._by_slot[posted.slot]
        self._free.append(posted.slot)

    def bad(self, slot: int, task: int, bad: Bad) -> None:
        """A sample of a task was reported as bad; `done` for the task follows."""
        self._by_slot[slot].bad.append((task, bad))

    def of(self, slot: int) -> InFlightBatch:
        """The batch that a report on `slot` is about."""
        return self._by_slot[slot]

    def enter(self, done: Iterable[TaskResult]) -> tuple[float, float, int]:
        """Tasks were reported. Returns (seconds busy, seconds idle, rows), all together."""
        by_slot = self._by_slot
        busy_s = idle_s = 0.0
        n_rows = 0
        for slot, task, rows, task_busy_s, task_idle_s in done:
            by_slot[slot].undone &= ~(1 << task)
            busy_s += task_busy_s
            idle_s += task_idle_s
            n_rows += rows
        return busy_s, idle_s, n_rows

    def take_back(self, slot: int, task: int) -> None:
        """A task was taken back from the pipe: no worker will fill it."""
        self._by_slot[slot].undone &= ~(1 << task)

    def due(self) -> InFlightBatch | None:
        """The batch that is due next."""
        return self._in_flight[0] if self._in_flight else None

    def newest(self) -> InFlightBatch | None:
        """The batch that was posted last."""
        return self._in_flight[-1] if self._in_flight else None

    def lend(self) -> InFlightBatch:
        """Lend the batch that is due, which is full, though not all its reports may have been read."""
        posted = self._in_flight.popleft()
        self._lent[posted.slot] = posted
        return posted

    def give_back(self, slot: int, serial: int) -> bool:
        """A lease has ended. Its slot is free again, if it was lent and this is its first end; whether it was."""
        posted = self._lent.get(slot)
        if posted is None or posted.serial != serial:
            return False
        assert posted.undone == 0, "reports are read before leases end: a full batch has none left"
        del self._lent[slot]
        self._by_slot.pop(slot, None)
        self._free.append(slot)
        return True

    def cancel(self) -> None:
        """Nothing in flight will be lent. Full slots are free at once, the others as `free_cancelled` finds them."""
        self._cancelled.update((posted.slot, posted) for posted in self._in_flight)
        self._in_flight.clear()
        self.free_cancelled()

    def free_cancelled(self) -> None:
        """Cancelled slots that no worker writes to any more are free."""
        self._free_up([slot for slot, posted in self._cancelled.items() if posted.is_over])

    def _free_up(self, cancelled: list[int]) -> None:
        for slot in cancelled:
            del self._cancelled[slot]
            del self._by_slot[slot]
            self._free.append(slot)

    def forget(self) -> None:
        """Once all workers are dead: cancelled slots are free."""
        self._free_up(list(self._cancelled))

    def unfinished(self) -> list[InFlightBatch]:
        """The batches in flight that have tasks to be done, oldest first."""
        return [posted for posted in self._in_flight if posted.undone]

    @property
    def starving(self) -> bool:
        """Whether nothing is in flight, and no worker fills a task of a cancelled batch: only the end of a lease helps."""
        return not self._in_flight and not self._cancelled
