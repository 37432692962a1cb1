"""Workers that are threads of the trainer: an example of the protocol `ringload.Workers`, and what tests it.

Decoders release the GIL, so that threads of one process can fill a ring, too. Each thread has a copy of the source, as sources
need not be safe to call from several threads. A thread cannot be killed: where workers have to end, each finishes its task.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterable, Sequence
from queue import SimpleQueue

import numpy as np

from ringload import Worker, Workers
from ringload.protocols import Event, Job
from ringload.ring.layout import FLAG_DONE, FLAG_DONE_WITH_REPORTS
from ringload.ring.slots import InFlightBatch, TaskResult
from ringload.sources.bind import bind
from ringload.workers.fill import Filler
from ringload.workers.records import BAD, MAX_TEXT_BYTES, Task, WorkerReport


class ThreadWorkers(Workers):
    """`n_workers` threads that take tasks from one queue."""

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._tasks: SimpleQueue[tuple[InFlightBatch, int] | None] = SimpleQueue()
        self._news = threading.Event()  # a slot is full, or `wake` was called
        self._lock = threading.Lock()  # around the two lists
        self._reports: list[WorkerReport] = []
        self._done: list[TaskResult] = []
        self._threads: list[threading.Thread] = []

    def open(self, job: Job, memory: np.ndarray) -> None:
        self._job, self._arrays = job, job.layout.arrays(memory)
        self._source = pickle.dumps(job.source)

    def start(self, start: object, n_reserved: int) -> None:
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.n_workers)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        source = bind(pickle.loads(self._source))
        source.start(Worker(number, self.n_workers, source.scratch_bytes, threading.RLock))
        filler = Filler(self._job, source)
        while (taken := self._tasks.get()) is not None:
            batch, task = taken
            start, stop = batch.split.bounds[task]
            bad = filler.fill(batch.epoch, start, stop, {name: array[batch.slot] for name, array in self._arrays.items()})
            reports = [WorkerReport(BAD, number, batch.slot, task, one.index, one.pack(MAX_TEXT_BYTES)) for one in bad]
            with self._lock:
                self._reports += reports
                self._done.append((batch.slot, task, stop - start, 0.0, 0.0))
            self._set_flag(batch, task, FLAG_DONE_WITH_REPORTS if bad else FLAG_DONE)

    def _set_flag(self, batch: InFlightBatch, task: int, flag: int) -> None:
        """After the report: a batch whose flags are all set may be lent at once."""
        flags = batch.flags_now
        assert isinstance(flags, memoryview)
        flags[task] = flag
        if 0 not in bytes(flags):
            self._news.set()

    def post(self, batches: Sequence[InFlightBatch]) -> int:
        self.forget(batches)
        for batch in batches:
            for task in range(len(batch.split.bounds)):
                if not batch.is_done(task):
                    self._tasks.put((batch, task))
        return len(batches)

    def forget(self, batches: Iterable[InFlightBatch]) -> None:
        for batch in batches:
            batch.flags_now = memoryview(bytearray(batch.done_flags()))

    def collect(self) -> tuple[list[WorkerReport], list[TaskResult]]:
        with self._lock:
            reports, done = self._reports, self._done
            self._reports, self._done = [], []
        return reports, done

    def take_back(self) -> list[Task]:
        tasks = []
        while not self._tasks.empty():
            batch, task = self._tasks.get() or (None, 0)
            if batch is not None:
                self._set_flag(batch, task, FLAG_DONE)
                tasks.append(Task(batch.epoch, batch.number, batch.slot, *batch.split.bounds[task], task, 1))
        return tasks

    def wait(self, timeout_s: float) -> bool:
        is_news = self._news.wait(timeout_s)
        self._news.clear()
        return is_news

    def wake(self) -> None:
        self._news.set()

    def clear(self) -> Event:
        self.take_back()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        return Event([])

    def close(self) -> None:
        self.clear()
        self._arrays = {}
