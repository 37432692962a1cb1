"""The records between the trainer and its workers, each of which is written to a pipe at once or not at all.

TASK      "fill rows a..b of slot s": 32 bytes; those of a batch are posted in one write
RESULT    a task is done, or what is bad about one of its samples: 32 bytes, and a text behind them
"""

from __future__ import annotations

import select
import struct
from functools import lru_cache
from typing import NamedTuple

from ringload.ring.layout import MAX_TASKS
from ringload.ring.slots import InFlightBatch, TaskSplit

# epoch q, batch q, slot I, first row I, row after the last I, task H, tasks of its batch H; little-endian
TASK = struct.Struct("<qqIIIHH")
TASK_BEGIN = struct.Struct("<qqI")  # the same for all tasks of a batch
TASK_END = struct.Struct("<IIHH")
# kind B, pad, worker H, slot I, task H, bytes of text after the record H, rows I, busy f, idle f (seconds), sample q
RESULT = struct.Struct("<BxHIHHIffq")
MAX_TEXT_BYTES = select.PIPE_BUF - RESULT.size

DONE = 1  # the task's rows are written
BAD = 2  # one sample of the task is bad: the text says why; DONE follows
FAILED = 3  # the worker cannot work at all: the text says why; it ends

# of a DONE record: slot, task, rows, busy, idle
DONE_RESULT = struct.Struct("<4xIH2xIff8x")

assert TASK.size == 32
assert TASK.size * MAX_TASKS <= select.PIPE_BUF  # what a batch's tasks take is written at once
assert RESULT.size == DONE_RESULT.size == 32


class Task(NamedTuple):
    """Fill rows `start:stop` of `slot` with those of batch `number` of `epoch`."""

    epoch: int
    number: int
    slot: int
    start: int
    stop: int
    task: int
    n_tasks: int


class WorkerReport(NamedTuple):
    """What a worker says in words: that `sample` of a task is bad (`kind` BAD), or that it cannot work (FAILED)."""

    kind: int
    worker_id: int
    slot: int
    task: int
    sample: int
    text: str


@lru_cache(maxsize=64)
def _endings(split: TaskSplit) -> tuple[bytes, ...]:
    """What each task's record ends in, after the part that all tasks of a batch share."""
    n_tasks = len(split.bounds)
    return tuple(TASK_END.pack(start, stop, task, n_tasks) for task, (start, stop) in enumerate(split.bounds))


def task_records(posted: InFlightBatch) -> bytes:
    """The TASK records of what is not done of a batch."""
    shared = TASK_BEGIN.pack(posted.epoch, posted.number, posted.slot)
    endings = _endings(posted.split)
    if posted.undone != (1 << len(endings)) - 1:
        endings = tuple(ending for task, ending in enumerate(endings) if posted.undone >> task & 1)
    return shared.join((b"", *endings))
