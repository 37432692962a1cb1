"""The tasks that a worker holds: the one that is filled next, and those whose samples are read meanwhile.

A source that tells which samples can be loaded without waiting (`is_ready`) has its tasks filled as their samples come, so
that slow reads of one task do not hold up another. How many tasks a worker holds grows whenever it has to wait, until
reading takes no longer than decoding; and falls again, one by one, while it does not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ringload.system.arrivals import ARRIVALS
from ringload.workers.fill import Begun
from ringload.workers.records import Task

N_LEAST = 2  # one is filled, one is read
N_MOST = 64
N_CALM = 256  # tasks without waiting, after which one less is held
SHARE = 2  # a worker holds its share of the tasks that the ring has room for, divided by this: the others need tasks, too


class Held(NamedTuple):
    """A task, the samples that were asked for, and its rows that threads load, if any (`Filler.begin`)."""

    task: Task
    samples: np.ndarray
    begun: Begun | None = None


IsReady = Callable[[Held], bool]


class TasksAhead:
    """The tasks of a worker, oldest first. `n_slots` and `n_workers` are those of the ring."""

    def __init__(self, n_slots: int, n_workers: int) -> None:
        self._slots_each = n_slots / n_workers / SHARE
        self._held: list[Held] = []
        self._n_wanted, self._n_calm = N_LEAST, 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def wants_more(self) -> bool:
        """Whether another task should be taken, if there is one."""
        return len(self._held) < self._n_wanted

    @property
    def oldest(self) -> Task:
        """The task that was taken first."""
        return self._held[0].task

    def add(self, held: Held) -> None:
        """Hold a task whose samples are read from now on."""
        self._held.append(held)

    def next(self, is_ready: IsReady | None) -> Held:
        """Take the first task that is ready; if none is, and none will be, the oldest."""
        if is_ready is None:
            return self._held.pop(0)
        has_waited = False
        while True:
            n_ended = ARRIVALS.n_ended  # before looking, so that no end is missed
            ready = next((place for place, held in enumerate(self._held) if is_ready(held)), None)
            if ready is not None or not ARRIVALS.wait(n_ended):
                break
            has_waited = True
        held = self._held.pop(ready or 0)
        self._adapt(has_waited, held.task)
        return held

    def _adapt(self, has_waited: bool, task: Task) -> None:
        if has_waited:
            most = min(N_MOST, max(N_LEAST, int(self._slots_each * task.n_tasks)))
            self._n_wanted, self._n_calm = min(self._n_wanted + 1, most), 0
            return
        self._n_calm += 1
        if self._n_calm >= N_CALM:
            self._n_wanted, self._n_calm = max(N_LEAST, self._n_wanted - 1), 0
