"""Workers that are the trainer itself, for workers=0: a batch is filled when it is posted."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Sequence

import numpy as np

from ringload.fields import Worker
from ringload.packing.pack import generators_of
from ringload.protocols import Job, Workers
from ringload.ring.slots import InFlightBatch, TaskResult
from ringload.sources.bind import bind
from ringload.system.interrupts import new_rlock
from ringload.workers.fill import Filler
from ringload.workers.records import BAD, MAX_TEXT_BYTES, WorkerReport


class InlineWorkers(Workers):
    """The trainer fills a batch itself when it asks for it.

    Sources need not be safe to call from several threads, and may be shared by several loaders, so one thread of the
    process at a time is inside any of them. The global generators are left as they were.
    """

    n_workers = 0
    max_ahead = 1
    keeps_parts = True
    _one_at_a_time = new_rlock()

    def open(self, job: Job, memory: np.ndarray) -> None:
        source = bind(job.source)
        self._own = generators_of(job.source)
        self._filler = Filler(job, source, own=self._own)
        self._arrays = job.layout.arrays(memory)
        self._reports: list[WorkerReport] = []
        self._done: list[TaskResult] = []
        self._saves_generators = source.global_random
        source.start(Worker(0, 0, source.scratch_bytes, threading.RLock, job.max_sample_bytes or None))

    def post(self, batches: Sequence[InFlightBatch]) -> int:
        for batch in batches:
            self._fill(batch)
        return len(batches)

    def _fill(self, batch: InFlightBatch) -> None:
        slot = {name: array[batch.slot] for name, array in self._arrays.items()}
        with self._one_at_a_time:
            states = (random.getstate(), np.random.get_state(), self._own.states()) if self._saves_generators else None
            try:
                bad = self._filler.fill(batch.epoch, 0, batch.n_rows, slot)
            finally:
                if states is not None:
                    random.setstate(states[0])
                    np.random.set_state(states[1])
                    self._own.restore(states[2])
        self._reports += [WorkerReport(BAD, 0, batch.slot, 0, one.index, one.pack(MAX_TEXT_BYTES)) for one in bad]
        self._done += [(batch.slot, task, 0, 0.0, 0.0) for task in range(len(batch.split.bounds))]

    def collect(self) -> tuple[list[WorkerReport], list[TaskResult]]:
        reports, done = self._reports, self._done
        self._reports, self._done = [], []
        return reports, done

    def wait(self, timeout_s: float) -> bool:
        return True

    def wake(self) -> None:
        pass

    def forget(self, batches: Iterable[InFlightBatch]) -> None:
        self.collect()

    def close(self) -> None:
        self._arrays = {}
