"""Claims: what each producer has in hand, written by it into shared memory before it begins.

They serve messages ("who is stuck on what", "which samples were in hand") and the time-outs and suspicions that follow from
them. Nothing in the books rests on them: a user's code that scribbled here could at most accuse the wrong sample.
"""

from __future__ import annotations

import math
import struct
import time
from typing import NamedTuple

from ringload.ring.slots import CLAIM_BYTES

# epoch q, batch q, sample q (-1: all rows of the task), first row I, row after the last I, since d (time.monotonic)
CLAIM = struct.Struct("<qqqIId")
SINCE = struct.Struct("<d")
SINCE_OFFSET = CLAIM.size - SINCE.size
WHOLE_TASK = -1
NOTHING = -1  # for epoch: the producer waits for a task

assert CLAIM.size <= CLAIM_BYTES


class Claim(NamedTuple):
    """What a producer has in hand, since when; inf: it waits for its turn. CLOCK_MONOTONIC is the same in all processes of
    a machine."""

    epoch: int
    number: int
    sample: int
    start: int
    stop: int
    since_s: float


class Claims:
    """The claims area of the segment, `CLAIM_BYTES` a producer; either side's view of it."""

    def __init__(self, area: memoryview) -> None:
        self._area = area

    def write(self, producer: int, epoch: int, number: int, sample: int, start: int, stop: int) -> None:
        CLAIM.pack_into(self._area, producer * CLAIM_BYTES, epoch, number, sample, start, stop, time.monotonic())

    def wait(self, producer: int) -> None:
        """Until the next word it waits for its turn, and time does not count."""
        SINCE.pack_into(self._area, producer * CLAIM_BYTES + SINCE_OFFSET, math.inf)

    def go_on(self, producer: int) -> None:
        """Its turn has come: time counts from now on."""
        SINCE.pack_into(self._area, producer * CLAIM_BYTES + SINCE_OFFSET, time.monotonic())

    def release(self) -> None:
        """Let go of the memory."""
        self._area.release()

    def clear(self, producer: int) -> None:
        self.write(producer, NOTHING, 0, 0, 0, 0)

    def read(self, producer: int) -> Claim | None:
        """None if the producer has nothing in hand."""
        claim = Claim._make(CLAIM.unpack_from(self._area, producer * CLAIM_BYTES))
        return None if claim.epoch == NOTHING else claim
