"""Workers that are processes: the `Workers` of a loader, but for workers=0."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from select import PIPE_BUF
from typing import Any

import numpy as np

from ringload.protocols import Event, Job, Owner, Workers
from ringload.ring.layout import CURRENT_WORK_BYTES, FLAG_DONE, MAX_TASKS
from ringload.ring.plan import Room
from ringload.ring.slots import InFlightBatch, TaskResult
from ringload.system.segment import Segment
from ringload.workers.channel import Channel
from ringload.workers.current_work import CurrentWork, CurrentWorkTable
from ringload.workers.records import Task, WorkerReport, task_records
from ringload.workers.start import Start
from ringload.workers.supervisor import StartMethod, WorkerSupervisor
from ringload.workers.worker import WorkerJob


class ProcessWorkers(Workers):
    """Worker processes. Owns the pool and the channel."""

    keeps_parts = True

    def __init__(
        self,
        n_workers: int,
        method: StartMethod,
        segment: Segment,
        room: Room,
        owners: Sequence[Owner] = (),
        preload: tuple[str, ...] = (),
        workers_name: str = "workers",
    ) -> None:
        """`owners` are of the descriptors that the packed source refers to. They and `segment` are closed with the workers."""
        self.n_workers, self.needs_packed = n_workers, method != "fork"
        self._segment, self._owners, self._method, self._preload = segment, [segment, *owners], method, preload
        self._room, self._workers_name = room, workers_name
        self._opened: list[Callable[[], None]] = []  # what closes what `open` has made so far

    def open(self, job: Job, memory: np.ndarray) -> None:
        self._look_into(job, memory)
        self._opened.append(self._release_memory)
        self._registered = -1
        self._epoll = select.epoll()
        self._opened.append(self._epoll.close)
        self._channel = Channel(self.n_workers if job.by_part else 1)
        self._opened.append(self._channel.close)
        self._epoll.register(self._channel.wake_fd, select.EPOLLIN | select.EPOLLET)  # each wakes once, and none is read
        self._supervisor = self._make_supervisor(job, memory)
        self._opened.append(self._supervisor.close)

    def _make_supervisor(self, job: Job, memory: np.ndarray) -> WorkerSupervisor:
        return WorkerSupervisor(self._worker_job(job), self._owners, self._method, self._preload)

    def post(self, batches: Sequence[InFlightBatch]) -> int:
        """One write for as many batches of a queue as fit into it."""
        n_posted, n_queues = 0, self._channel.n_queues
        while n_posted < len(batches):
            records, n_tasks, n_taken, queue = b"", 0, 0, batches[n_posted].part % n_queues
            for posted in batches[n_posted:]:
                of_one = task_records(posted)
                if len(records) + len(of_one) > PIPE_BUF or posted.part % n_queues != queue:
                    break
                self._write_flags(posted)  # before the records: workers write here only after they have read them
                records += of_one
                n_tasks += posted.undone.bit_count()
                n_taken += 1
            if not self._channel.post(records, n_tasks, queue):
                break
            n_posted += n_taken
        return n_posted

    def collect(self) -> tuple[list[WorkerReport], list[TaskResult]]:
        return self._channel.results()

    def take_back(self) -> list[Task]:
        tasks = self._channel.take_back()
        for task in tasks:  # so that the worker that fills the slot's last task notifies
            self._done_flags[task.slot * MAX_TASKS + task.task] = FLAG_DONE
        return tasks

    def wait(self, timeout_s: float) -> bool:
        return bool(self._epoll.poll(timeout_s, 2))  # there are two descriptors; the default is room for 1,023

    @property
    def fd(self) -> int:
        """Readable when `wait` would end; once it was, call `wait(0)`."""
        return self._epoll.fileno()

    def events(self) -> Event:
        return self._supervisor.events()

    def wake(self) -> None:
        self._channel.notify()

    def clear(self) -> Event:
        """Raises StallError if a process does not end."""
        self._unregister()  # the pool may replace its server, and with it the descriptor
        return self._supervisor.clear()

    def forget(self, batches: Iterable[InFlightBatch]) -> None:
        """A worker that died after its record and before its flag left a batch that is done, and does not look done."""
        self._channel.empty()
        for posted in batches:
            self._write_flags(posted)
        self._clear_current_work()

    def reopen(self, job: Job, memory: np.ndarray, room: Room) -> None:
        """Once nothing is posted or being filled: the next start is of another job, whose ring is mapped as `memory`."""
        self._room = room
        self._look_into(job, memory)
        self._unregister()
        self._supervisor.renew(self._worker_job(job))

    def _worker_job(self, job: Job) -> WorkerJob:
        return WorkerJob(job, self._segment.fd, self._channel.for_workers, self._room, self._workers_name)

    def _look_into(self, job: Job, memory: np.ndarray) -> None:
        layout, area = job.layout, memory.data
        self._done_flags = area[layout.flags_start : layout.flags_start + layout.n_slots * MAX_TASKS]
        self._current_work = CurrentWorkTable(area[: layout.n_workers * CURRENT_WORK_BYTES])
        self._clear_current_work()  # zeros would say that they have sample 0 in hand since the machine was started

    def renew(self, source: Any, setup: Callable[[], Any] | None, owners: Sequence[Owner]) -> None:
        self._current_work.clear_started(self.n_workers)
        self._supervisor.renew_source(source, setup, owners)

    def _clear_current_work(self) -> None:
        for worker_id in range(self.n_workers):
            self._current_work.clear(worker_id)

    def _write_flags(self, posted: InFlightBatch) -> None:
        first, done_flags = posted.slot * MAX_TASKS, posted.done_flags()
        self._done_flags[first : first + len(done_flags)] = done_flags
        posted.flags_now = self._done_flags[first : first + len(done_flags)]

    def start(self, start: Start, n_reserved: int) -> None:
        self._supervisor.start(start, n_reserved)
        self._unregister()
        self._registered = self._supervisor.fd
        self._epoll.register(self._registered, select.EPOLLIN)

    def own_bytes(self) -> tuple[int, int] | None:
        return self._current_work.own_bytes(self.n_workers)

    def current_work(self) -> dict[int, tuple[int, CurrentWork]]:
        """Worker -> (pid, what it is filling)."""
        pids = self._supervisor.pids or [-1] * self.n_workers
        current_work = ((worker_id, pid, self._current_work.read(worker_id)) for worker_id, pid in enumerate(pids))
        return {worker_id: (pid, work) for worker_id, pid, work in current_work if work is not None}

    def processes(self) -> dict[str, int]:
        server = {"the fork server": self._supervisor.starting_pid}
        return server | {f"worker {worker_id}": pid for worker_id, pid in enumerate(self._supervisor.pids)}

    def close(self) -> None:
        while self._opened:  # the last first; what an interruption cuts short is done again
            self._opened[-1]()
            self._opened.pop()

    def _release_memory(self) -> None:
        self._done_flags.release()
        self._current_work.release()

    def _unregister(self) -> None:
        if self._registered >= 0:
            with suppress(OSError):  # an interruption came before it was registered, or after it was not any more
                self._epoll.unregister(self._registered)
            self._registered = -1
