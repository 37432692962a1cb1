"""The test mode: a late writer to a slot, and a use after its release, show.

With RINGLOAD_SANITIZE=1 in the trainer's environment when a loader is made, each slot, when its lease has ended, or before
it is posted again if it was never lent (a seek cancelled it, or an interruption made the engine start over),
1. is looked at: the bytes that belong to no array (between the arrays of a slot, which begin at multiples of 64 bytes, and
   behind the last one, up to the page) are as they were left. If not, somebody wrote beyond an array, and that is an error.
   Between the rows of an array there are none: it is contiguous.
2. is filled with POISON: late readers of the slot see it, and so do readers of a row that was not written.
It costs a write of the whole slot, so it is for tests alone; otherwise there is no guard, and nothing but a look for one.
"""

from __future__ import annotations

import os

import numpy as np

from ringload.errors import RingloadError
from ringload.ring.layout import Layout

VARIABLE = "RINGLOAD_SANITIZE"
POISON = 0xA5


class SlotSanitizer:
    """Looks after the slots of one mapped segment."""

    def __init__(self, memory: np.ndarray, layout: Layout) -> None:
        self._slots = memory[layout.slots_start :].reshape(layout.n_slots, layout.slot_bytes)  # (n_slots, slot_bytes) uint8
        stops = [*(start for _, _, start in layout.places[1:]), layout.slot_bytes]
        ends = [start + field.row_bytes * layout.batch_size for _, field, start in layout.places]
        self._gaps = list(zip([name for name, _, _ in layout.places], ends, stops, strict=True))
        self._used: set[int] = set()  # posted, and not looked at since
        self._poisoned: set[int] = set()  # the others are as the system gave them: zeros
        self._interrupted: set[int] = set()  # an interruption came while they were poisoned

    def posting(self, slot: int) -> None:
        """A free slot will be posted. Raises RingloadError if something was written between its arrays since the last time."""
        if slot in self._used:
            self._look_and_poison(slot)
        self._used.add(slot)

    def freed(self, slot: int) -> None:
        """The lease of a slot has ended. Raises RingloadError if something was written between its arrays."""
        self._look_and_poison(slot)
        self._used.discard(slot)

    def _look_and_poison(self, slot: int) -> None:
        content = self._slots[slot]
        left = POISON if slot in self._poisoned else 0
        for name, start, stop in self._gaps if slot not in self._interrupted else ():
            if (changed := np.flatnonzero(content[start:stop] != left)).size:
                raise RingloadError(
                    f"slot {slot}: {changed.size} bytes behind the array {name!r} were written to, the first "
                    f"{changed[0] + 1} bytes beyond its end"
                )
        self._interrupted.add(slot)
        content[:] = POISON
        self._poisoned.add(slot)
        self._interrupted.discard(slot)


def sanitizer_of(memory: np.ndarray, layout: Layout) -> SlotSanitizer | None:
    """The guard of a segment in the test mode, else None."""
    return SlotSanitizer(memory, layout) if os.environ.get(VARIABLE) == "1" else None
