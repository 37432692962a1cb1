"""Claims: what each worker has in hand, written by it into shared memory before it begins.

They serve messages ("who is stuck on what", "which samples were in hand") and the time-outs and suspicions that follow from
them. The slot table does not rest on them: a user's code that overwrites them could at most blame the wrong sample.
"""

from __future__ import annotations

import math
import struct
import time
from typing import NamedTuple

from ringload.ring.layout import CURRENT_WORK_BYTES

# epoch q, batch q, sample q (-1: all rows of the task), first row I, row after the last I, since d (time.monotonic)
CURRENT_WORK = struct.Struct("<qqqIId")
SINCE = struct.Struct("<d")
SINCE_OFFSET = CURRENT_WORK.size - SINCE.size
WHOLE_TASK = -1
NOTHING = -1  # for epoch: the worker waits for a task
# behind the work: bytes of memory that the worker's source has taken (0: it has yet to start), and the modules it has imported
OWN = struct.Struct("<qq")
OWN_OFFSET = CURRENT_WORK.size

assert CURRENT_WORK.size + OWN.size <= CURRENT_WORK_BYTES


class CurrentWork(NamedTuple):
    """What a worker has in hand, since when; inf: it waits for its turn. CLOCK_MONOTONIC is the same in all processes of
    a machine."""

    epoch: int
    number: int
    sample: int
    start: int
    stop: int
    since_s: float


class CurrentWorkTable:
    """The table of current work in the segment, `CURRENT_WORK_BYTES` a worker; the view of either side."""

    def __init__(self, area: memoryview) -> None:
        self._area = area

    def write(self, worker_id: int, epoch: int, number: int, sample: int, start: int, stop: int) -> None:
        CURRENT_WORK.pack_into(self._area, worker_id * CURRENT_WORK_BYTES, epoch, number, sample, start, stop, time.monotonic())

    def wait(self, worker_id: int) -> None:
        """Until the next word it waits for its turn, and time does not count."""
        SINCE.pack_into(self._area, worker_id * CURRENT_WORK_BYTES + SINCE_OFFSET, math.inf)

    def go_on(self, worker_id: int) -> None:
        """Its turn has come: time counts from now on."""
        SINCE.pack_into(self._area, worker_id * CURRENT_WORK_BYTES + SINCE_OFFSET, time.monotonic())

    def started(self, worker_id: int, own_bytes: int, import_bytes: int) -> None:
        """It has its source, for which it has taken so much memory, and for the modules that the source imports."""
        OWN.pack_into(self._area, worker_id * CURRENT_WORK_BYTES + OWN_OFFSET, max(1, own_bytes), max(0, import_bytes))

    def release(self) -> None:
        """Let go of the memory."""
        self._area.release()

    def clear(self, worker_id: int) -> None:
        self.write(worker_id, NOTHING, 0, 0, 0, 0)

    def clear_started(self, n_workers: int) -> None:
        """Those that are started next have yet to start."""
        for worker_id in range(n_workers):
            OWN.pack_into(self._area, worker_id * CURRENT_WORK_BYTES + OWN_OFFSET, 0, 0)

    def own_bytes(self, n_workers: int) -> tuple[int, int] | None:
        """What all of them take for the source and for modules, by those that have started; None while none has."""
        return own_bytes(self._area, n_workers)

    def read(self, worker_id: int) -> CurrentWork | None:
        """None if the worker has nothing in hand."""
        work = CurrentWork._make(CURRENT_WORK.unpack_from(self._area, worker_id * CURRENT_WORK_BYTES))
        return None if work.epoch == NOTHING else work


def own_bytes(area: bytes | memoryview, n_workers: int) -> tuple[int, int] | None:
    """`CurrentWorkTable.own_bytes` of a table, or of a copy."""
    taken = [OWN.unpack_from(area, worker_id * CURRENT_WORK_BYTES + OWN_OFFSET) for worker_id in range(n_workers)]
    started = [one for one in taken if one[0]]
    return (n_workers * max(one[0] for one in started), n_workers * max(one[1] for one in started)) if started else None
