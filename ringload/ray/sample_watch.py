"""Ends an actor that takes too long for a sample. The trainer knows how long a call takes, and not which of its samples.

Then the trainer has the rows of the batch filled one by one. It sees itself which row takes too long, and this watch looks
away. A sample that does not release the GIL holds up this thread, too: then the trainer waits for as long as all rows of the
call may take.
"""

from __future__ import annotations

import os
import threading
import time

LONGEST_STEP_S = 1.0  # between two looks
STATUS = 1  # of the process; Ray does not tell it


class SampleWatch:
    """Call `note` before each step of filling rows, and `rest` after the last. `timeout_s`: for each row; None: no limit."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._until_s = float("inf")
        if timeout_s is not None:
            threading.Thread(target=self._look, args=(min(timeout_s / 4, LONGEST_STEP_S),), daemon=True).start()

    def note(self, sample: int, start: int, stop: int) -> None:
        """Rows `start:stop` are filled from now on."""
        if self._timeout_s is not None:
            self._until_s = time.monotonic() + self._timeout_s * (stop - start)

    def rest(self) -> None:
        """Nothing is filled."""
        self._until_s = float("inf")

    def _look(self, step_s: float) -> None:
        while time.monotonic() < self._until_s:
            time.sleep(step_s)
        os._exit(STATUS)
