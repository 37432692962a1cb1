"""Current work: each worker writes into shared memory what it is about to load, before it loads it.

Error messages, time-outs and the blame for a crash use it. The slot table does not: if a user's native code overwrites it, the
worst result is that a wrong sample is blamed.
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
    """What a worker is loading, and since when (CLOCK_MONOTONIC, which all processes of a machine share). `since_s` is inf
    while the worker waits for another to end its exclusive part."""

    epoch: int
    number: int
    sample: int
    start: int
    stop: int
    since_s: float


class CurrentWorkTable:
    """The table of current work in the segment, `CURRENT_WORK_BYTES` a worker, as the trainer and workers use it."""

    def __init__(self, area: memoryview) -> None:
        self._area = area

    def write(self, worker_id: int, epoch: int, number: int, sample: int, start: int, stop: int) -> None:
        CURRENT_WORK.pack_into(self._area, worker_id * CURRENT_WORK_BYTES, epoch, number, sample, start, stop, time.monotonic())

    def wait(self, worker_id: int) -> None:
        """The worker waits for its turn: until `go_on`, its time does not count."""
        SINCE.pack_into(self._area, worker_id * CURRENT_WORK_BYTES + SINCE_OFFSET, math.inf)

    def go_on(self, worker_id: int) -> None:
        """The worker's turn has come: its time counts from now on."""
        SINCE.pack_into(self._area, worker_id * CURRENT_WORK_BYTES + SINCE_OFFSET, time.monotonic())

    def started(self, worker_id: int, own_bytes: int, import_bytes: int) -> None:
        """The worker has its source. It took so many bytes for the source, and for modules that the source imports."""
        OWN.pack_into(self._area, worker_id * CURRENT_WORK_BYTES + OWN_OFFSET, max(1, own_bytes), max(0, import_bytes))

    def release(self) -> None:
        """Release the view of the memory."""
        self._area.release()

    def clear(self, worker_id: int) -> None:
        self.write(worker_id, NOTHING, 0, 0, 0, 0)

    def clear_started(self, n_workers: int) -> None:
        """Forget that workers have started: new ones will be started."""
        for worker_id in range(n_workers):
            OWN.pack_into(self._area, worker_id * CURRENT_WORK_BYTES + OWN_OFFSET, 0, 0)

    def own_bytes(self, n_workers: int) -> tuple[int, int] | None:
        """Bytes that all workers take for the source, and for modules, from what those that have started take. None while
        none has."""
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
