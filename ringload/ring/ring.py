"""The trainer's books: which slot holds what, and who has it.

    free -> in flight (filling, then full) -> lent -> free

A slot is in exactly one of: `_free`; `_in_flight`, in the order in which batches are due; `_cancelled`, the leftovers of a
seek of which a producer still has a task in hand, or a hint to set; `_lent`.

Invariants:
1. A slot is posted only when it is free: that bounds memory.
2. A slot becomes free only when every task of it was reported or taken back, and its hint is set: that keeps late writes
   out of it, and out of its hints, which a producer sets after its report.
3. Batches are lent in the order in which they were posted.
4. Free slots are used again last in, first out: their pages are in the caches, and those of a ring that is never full are
   never touched.

The ring knows batches and no processes; it is called by one thread at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ringload.ring.channel import TASK_BEGIN, TASK_END, Done
from ringload.ring.lease import Batch, LeaseEnd
from ringload.ring.slots import HINT_DONE, HINT_WORDS, MAX_TASKS


@dataclass
class Bad:
    """A bad sample of a batch, as its producer reported it."""

    index: int
    where: str
    reason: str
    traceback: str
    replaced_by: int = -1


@dataclass(frozen=True)
class Cut:
    """How a batch of `n_rows` is cut into tasks: `bounds` has (first row, row after the last) of each."""

    bounds: tuple[tuple[int, int], ...]

    @cached_property
    def hints_full(self) -> bytes:
        """The hint bytes when all tasks are done, and nothing was bad."""
        return bytes([HINT_DONE]) * len(self.bounds)

    @cached_property
    def endings(self) -> tuple[bytes, ...]:
        """What each task's record ends in, after the part that all tasks of a batch share."""
        n_tasks = len(self.bounds)
        return tuple(TASK_END.pack(start, stop, task, n_tasks) for task, (start, stop) in enumerate(self.bounds))


@lru_cache(maxsize=64)
def cut(n_rows: int, rows_per_task: int) -> Cut:
    """Tasks of `rows_per_task`, or more where they would be more than MAX_TASKS."""
    rows_per_task = max(rows_per_task, -(-n_rows // MAX_TASKS))
    return Cut(tuple((start, min(start + rows_per_task, n_rows)) for start in range(0, n_rows, rows_per_task)))


class Posted:
    """A batch in a slot, from its posting to the end of its lease.

    `undone` has a bit for each task that was not reported yet. `hints_now` shows the hint bytes of its tasks as they are: equal
    to `hints_full`, all are done and nothing was bad; else without a 0, all are done, and what was bad is to be collected.
    (Empty where there are no hints, as the trainer fills its batches itself.) `batch` is what will be lent; `end` is its
    lease's end, a weak reference, which has to be kept to call back; `since_s` (time.monotonic) is when it was lent. `after`
    is the (epoch, number) that follows.
    """

    __slots__ = (
        "after",
        "bad",
        "batch",
        "cut",
        "end",
        "epoch",
        "hints_full",
        "hints_now",
        "n_rows",
        "number",
        "since_s",
        "slot",
        "undone",
    )

    def __init__(self, epoch: int, number: int, n_rows: int, slot: int, cut: Cut) -> None:
        self.epoch, self.number, self.n_rows, self.slot, self.cut = epoch, number, n_rows, slot, cut
        self.undone = (1 << len(cut.bounds)) - 1
        self.hints_now: memoryview | bytes = b""
        self.hints_full = cut.hints_full
        self.after = (epoch, number + 1)
        self.bad: list[tuple[int, Bad]] = []  # (task, what was bad)
        self.batch: Batch | None = None
        self.end: LeaseEnd | None = None
        self.since_s = 0.0

    def records(self) -> bytes:
        """The TASK records of what is not done."""
        shared = TASK_BEGIN.pack(self.epoch, self.number, self.slot)
        endings = self.cut.endings
        if self.undone != (1 << len(endings)) - 1:
            endings = tuple(ending for task, ending in enumerate(endings) if self.undone >> task & 1)
        return shared.join((b"", *endings))

    @property
    def is_over(self) -> bool:
        """Whether no producer will write to its slot or its hints any more."""
        return not self.undone and 0 not in self.hints_now

    def part(self) -> None:
        """It will not be lent, or nobody waits for its end: the two name each other, and with them the memory."""
        if self.end is not None:
            self.end.posted, self.end = None, None

    def hints(self) -> bytes:
        """The hint bytes that agree with the books."""
        n_tasks = len(self.cut.bounds)
        if self.undone == (1 << n_tasks) - 1:
            return bytes(n_tasks)
        with_words = {task for task, _ in self.bad}
        return bytes(
            0 if self.undone >> task & 1 else HINT_WORDS if task in with_words else HINT_DONE for task in range(n_tasks)
        )


class Ring:
    """The state of every slot. Slots are added as their memory is reserved; some may be lent already (see Engine)."""

    def __init__(self, n_slots: int, lent: dict[int, Posted] | None = None) -> None:
        self._lent: dict[int, Posted] = dict(lent or {})
        self._free = [slot for slot in reversed(range(n_slots)) if slot not in self._lent]
        self._in_flight: deque[Posted] = deque()
        self._cancelled: dict[int, Posted] = {}
        self._by_slot: dict[int, Posted] = {}  # whose tasks may still be reported: in flight, cancelled, or just lent

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
    def in_flight(self) -> Iterable[Posted]:
        """The batches that are filling or full, in the order in which they are due."""
        return self._in_flight

    @property
    def n_full(self) -> int:
        """Batches that were reported full, and are not lent yet."""
        return sum(posted.undone == 0 for posted in self._in_flight)

    @property
    def lent(self) -> dict[int, Posted]:
        """Slot -> what is lent of it."""
        return self._lent

    def fill(self, epoch: int, number: int, n_rows: int, rows_per_task: int) -> Posted:
        """Take a free slot for a batch, and cut it into tasks."""
        posted = Posted(epoch, number, n_rows, self._free.pop(), cut(n_rows, rows_per_task))
        self._by_slot[posted.slot] = posted
        self._in_flight.append(posted)
        return posted

    def unfill(self) -> None:
        """Undo the last `fill`: its tasks could not be posted."""
        posted = self._in_flight.pop()
        posted.part()
        del self._by_slot[posted.slot]
        self._free.append(posted.slot)

    def bad(self, slot: int, task: int, bad: Bad) -> None:
        """A sample of a task was reported as bad; `done` for the task follows."""
        self._by_slot[slot].bad.append((task, bad))

    def of(self, slot: int) -> Posted:
        """The batch that a report on `slot` is about."""
        return self._by_slot[slot]

    def enter(self, done: Iterable[Done]) -> tuple[float, float, int]:
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
        """A task is in nobody's hands any more."""
        self._by_slot[slot].undone &= ~(1 << task)

    def due(self) -> Posted | None:
        """The batch that is due next."""
        return self._in_flight[0] if self._in_flight else None

    def newest(self) -> Posted | None:
        """The batch that was posted last."""
        return self._in_flight[-1] if self._in_flight else None

    def lend(self) -> Posted:
        """Lend the batch that is due, which is full, though not all its reports may have been read."""
        posted = self._in_flight.popleft()
        self._lent[posted.slot] = posted
        return posted

    def give_back(self, posted: Posted) -> None:
        """A lease has ended: its slot is free again, if it was lent and this is its first end."""
        if self._lent.get(posted.slot) is posted:
            assert posted.undone == 0, "reports are read before leases end: a full batch has none left"
            del self._lent[posted.slot]
            self._by_slot.pop(posted.slot, None)
            self._free.append(posted.slot)

    def cancel(self) -> None:
        """Nothing in flight will be lent. Full slots are free at once, the others as `free_cancelled` finds them."""
        self._cancelled.update((posted.slot, posted) for posted in self._in_flight)
        self._in_flight.clear()
        self.free_cancelled()

    def free_cancelled(self) -> None:
        """Cancelled slots that no producer writes to any more are free."""
        self._free_up([slot for slot, posted in self._cancelled.items() if posted.is_over])

    def _free_up(self, cancelled: list[int]) -> None:
        for slot in cancelled:
            self._cancelled.pop(slot).part()
            del self._by_slot[slot]
            self._free.append(slot)

    def abandon(self) -> None:
        """The end: nobody waits for any lease's end. Only what is lent is kept."""
        for posted in (*self._in_flight, *self._cancelled.values(), *self._lent.values()):
            posted.part()
            posted.hints_now = b""

    def forget(self) -> None:
        """Once all producers are dead: cancelled slots are free."""
        self._free_up(list(self._cancelled))

    def unfinished(self) -> list[Posted]:
        """The batches in flight that have tasks to be done, oldest first."""
        return [posted for posted in self._in_flight if posted.undone]

    @property
    def starving(self) -> bool:
        """Nothing is in flight and nobody has a leftover in hand: only the end of a lease can change that."""
        return not self._in_flight and not self._cancelled
