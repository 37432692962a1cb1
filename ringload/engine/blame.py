"""Which sample has killed its worker.

A death while a sample is loaded is a crash of that row, and counts until its task is done. A sample with `MAX_CRASHES_OWN`
crashes is a poison sample, if its worker ended by its own doing (a segfault, an exit). Where the signal may have come from
outside, more crashes are needed, as a good sample must not be called bad because workers are killed for other reasons:
`MAX_CRASHES_OOM` where the kernel may have killed for want of memory (a huge image would be the cause), `MAX_CRASHES_EXTERNAL`
for all other signals. If each kill, at a random moment, hits the row that the last kill hit with a probability of 1/2, that
many in a row happen once in 500 runs of 1,000 kills. It is also more than the default of `restarts`, which ends the run first,
with an error that names the sample.

A worker that died while it loaded several samples in one call blames its batch, whose rows are then loaded one by one. A worker
that reads for several tasks may die of another sample than the one that it is filling. So after a death by its own doing,
workers take their tasks one at a time, until the batches that were unfinished then are done. Where a death comes later than its
cause, the last rows of a task are blamed one after the other, until the one that caused it is found.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from ringload.protocols import PAD, Order
from ringload.ring.slots import InFlightBatch
from ringload.system.deaths import Death
from ringload.workers.current_work import WHOLE_TASK, CurrentWork
from ringload.workers.start import Start

MAX_CRASHES_OWN, MAX_CRASHES_OOM, MAX_CRASHES_EXTERNAL = 2, 5, 20
MAX_KNOWN = 8000  # poison samples that are kept, and sent to workers with 12 bytes each; older ones must be found again
RESTARTS_WITHIN_S = 60.0


class CrashBlame:
    """Crashes by row, poison samples, and the rate of deaths."""

    def __init__(self, restarts: int | None) -> None:
        self._restarts = restarts
        self._crashes: dict[tuple[int, int, int], list[bool]] = {}  # (epoch, number, row): whether each came from outside
        self._poison_samples: dict[int, str] = {}
        self._known_to_workers: dict[int, str] = {}  # the poison samples that the present workers do not load
        self._one_by_one: set[tuple[int, int]] = set()
        self._alone: set[tuple[int, int]] = set()
        self._deaths_s: deque[float] = deque()

    def too_many(self, n_deaths: int) -> bool:
        """Enter deaths that happened now. Whether they are more than `restarts` within a minute."""
        now_s = time.monotonic()
        self._deaths_s.extend([now_s] * n_deaths)
        while self._deaths_s and now_s - self._deaths_s[0] > RESTARTS_WITHIN_S:
            self._deaths_s.popleft()
        return self._restarts is not None and len(self._deaths_s) > self._restarts

    @property
    def has_crashes(self) -> bool:
        """Whether any row is suspected."""
        return bool(self._crashes)

    def record_crash(self, death: Death, work: CurrentWork, unfinished: Sequence[InFlightBatch], order: Order) -> None:
        """Enter a death during `work`, if that is part of a task that is not done. Else its report came before the death, and
        the worker was not filling anything."""
        first = next((start for posted in unfinished for start in _undone_with(posted, work)), None)
        if first is None:
            return
        if not death.maybe_external:
            self._alone |= {(posted.epoch, posted.number) for posted in unfinished}
        if work.sample == WHOLE_TASK:
            self._one_by_one.add((work.epoch, work.number))
            return
        row, sample = work.start, work.sample
        while sample in self._known_to_workers:  # it was not loaded this time, so an earlier row of the task is to blame
            row -= 1
            if row < first:
                return
            (sample,) = samples_of(order, work.epoch, work.number, row, row + 1)
        crashes = self._crashes.setdefault((work.epoch, work.number, row), [])
        crashes.append(death.maybe_external)
        if crashes.count(False) >= MAX_CRASHES_OWN or len(crashes) >= (
            MAX_CRASHES_OOM if death.maybe_oom else MAX_CRASHES_EXTERNAL
        ):
            self._poison_samples[sample] = f"killed its worker {len(crashes)} times in a row ({death.cause})"
            if len(self._poison_samples) > MAX_KNOWN:
                del self._poison_samples[next(iter(self._poison_samples))]
            crashes.clear()  # the sample that takes its place begins with none

    def clear_task(self, posted: InFlightBatch, task: int) -> None:
        """A task was done: nothing in its rows is suspected any more."""
        start, stop = posted.split.bounds[task]
        for row in range(start, stop):
            self._crashes.pop((posted.epoch, posted.number, row), None)

    def start(self, n_workers: int, unfinished: Iterable[InFlightBatch]) -> Start:
        """What the next workers are given: the samples that they must not load, and the batches to load row by row."""
        batches = {(posted.epoch, posted.number) for posted in unfinished}
        self._one_by_one &= batches
        self._alone &= batches
        self._known_to_workers = dict(self._poison_samples)
        alone = tuple(self._alone | self._one_by_one)
        return Start(n_workers, tuple(self._known_to_workers.items()), tuple(self._one_by_one), alone)


def _undone_with(posted: InFlightBatch, work: CurrentWork) -> Iterator[int]:
    """The first row of the task that `work` is part of, if it is a task of this batch that is not done."""
    if (posted.epoch, posted.number) == (work.epoch, work.number):
        for task, (start, stop) in enumerate(posted.split.bounds):
            if start <= work.start < stop and not posted.is_done(task):
                yield start


def samples_of(order: Order, epoch: int, number: int, start: int, stop: int) -> list[int]:
    """The samples of rows `start:stop` of a batch, without padding."""
    rows = order.rows(epoch, number)
    return [] if rows is None else [sample for sample in rows.index[start:stop].tolist() if sample != PAD]
