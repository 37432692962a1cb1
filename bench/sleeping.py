"""Samples that sleep, for `scale`. A module of its own: each worker process imports it, and nothing that it does not need."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ringload.fields import Field, Row, Worker

SHAPE = (16,)


class Sleepers:
    """`n_samples` that sleep `cost_s` each, and carry a function of their index.

    Counts tasks in `tasks`, shared memory with a number for each worker and batch, `(n_workers * n_batches,) int64`. For that,
    samples come in order.
    """

    random = False

    def __init__(self, batch_size: int, n_samples: int, cost_s: float, tasks: Any) -> None:
        self.batch_size, self._n_samples, self._cost_s, self._tasks = batch_size, n_samples, cost_s, tasks
        self.fields = {"x": Field(SHAPE, "int64")}

    def __len__(self) -> int:
        return self._n_samples

    def start(self, worker: Worker) -> None:
        """Note where this worker counts."""
        self._first = worker.id * (self._n_samples // self.batch_size)

    def begin_task(self, rows: dict[str, np.ndarray]) -> None:
        """Count the task."""
        self._tasks[self._first + int(rows["index"][0]) // self.batch_size] += 1

    def load(self, index: int, rng: Any, out: Row) -> None:
        """Sleep, then write the sample."""
        if self._cost_s:
            time.sleep(self._cost_s)
        out["x"] = payload(np.array([index]))[0]


def payload(index: np.ndarray) -> np.ndarray:
    """What samples `index (n,) int64` carry, `(n, *SHAPE) int64`."""
    made: np.ndarray = index[:, None] * 40503 + np.arange(SHAPE[0])
    return made
