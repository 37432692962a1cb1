"""Simulated workers: one process that does to the trainer what many worker processes would do.

    trainer --tasks pipe, free eventfd-->  helper process     takes a task for each simulated worker that is idle
    trainer <--results pipe, flags, wake-- helper process     when the task's time is over: rows, RESULT record, done flag

The trainer's side is that of `ProcessWorkers`, with the same channel, epoll and socket. In the helper each simulated worker
has a `WorkerChannel` of its own, so it reads, writes and notifies by the code of real ones. Only the supervisor is another
one: nothing is started but the helper, and no death is handled.

A simulated worker has a task for the sum of its samples' sleeps, to the microsecond, and says so in its report. Rows are
filled at the end of that time by the source itself, which must not sleep then. What the helper cannot keep up with shows in
`samples/s`, which falls below the number of workers over a sample's cost.
"""

from __future__ import annotations

import heapq
import multiprocessing
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import numpy as np

from ringload.fields import Worker
from ringload.protocols import Event, Job
from ringload.ring.layout import MAX_TASKS
from ringload.sources.bind import bind
from ringload.system.deaths import Death
from ringload.workers.channel import ChannelFds, WorkerChannel
from ringload.workers.current_work import CurrentWorkTable
from ringload.workers.fill import Filler
from ringload.workers.processes import ProcessWorkers
from ringload.workers.records import Task
from ringload.workers.start import Start
from ringload.workers.supervisor import WorkerSupervisor


class SimulatedWorkers(ProcessWorkers):
    """`n_workers` that exist only in their channel. `cost_s`: how long a task takes, by its number of rows."""

    def __init__(self, n_workers: int, cost_s: Callable[[int], float]) -> None:
        self.n_workers, self.needs_packed, self.keeps_parts = n_workers, False, False
        self._cost_s = cost_s
        self._opened: list[Callable[[], None]] = []

    def _make_supervisor(self, job: Job, memory: np.ndarray) -> WorkerSupervisor:
        """Without a segment: the helper inherits the mapping."""
        return cast(WorkerSupervisor, _Helper(job, memory, self._channel.for_workers, self._cost_s))


class _Helper:
    """What `ProcessWorkers` needs of a supervisor: starts the helper, and kills it in place of all workers."""

    pids: tuple[int, ...] = ()  # no worker has one

    def __init__(self, job: Job, memory: np.ndarray, fds: ChannelFds, cost_s: Callable[[int], float]) -> None:
        self._arguments = (job, memory, fds, cost_s)
        self._process: multiprocessing.process.BaseProcess | None = None

    @property
    def fd(self) -> int:
        """Readable when the helper has ended."""
        return self._socket.fileno()

    @property
    def starting_pid(self) -> int:
        return (self._process.pid if self._process is not None else None) or -1

    def start(self, start: Start, n_reserved: int) -> None:
        """Fork the helper. It inherits the ring."""
        self.close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            context = multiprocessing.get_context("fork")
            self._process = context.Process(target=simulate, args=(*self._arguments, theirs), daemon=True)
            self._process.start()

    def events(self) -> Event:
        """One system call, as with real workers. The helper says nothing; it may end."""
        with suppress(BlockingIOError):
            self._socket.recv(1, socket.MSG_DONTWAIT)
            return Event([Death.of_server("the helper that simulates workers has ended")], server_died=True)
        return Event([])

    def clear(self) -> Event:
        """Kill the helper."""
        self.close()
        return Event([])

    def close(self) -> None:
        """Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
            self._socket.close()


def simulate(job: Job, memory: np.ndarray, fds: ChannelFds, cost_s: Callable[[int], float], tie: socket.socket) -> None:
    """Be all workers. Ends by a kill, or with the trainer. `tie` is held open until then."""
    layout, parent = job.layout, multiprocessing.parent_process()
    assert parent is not None
    (queue,) = fds.queues
    flags = memory.data[layout.flags_start : layout.flags_start + layout.n_slots * MAX_TASKS]
    ends = [WorkerChannel(fds, worker_id, flags) for worker_id in range(layout.n_workers)]
    filling = _Filling(job, memory)
    CurrentWorkTable(memory.data).started(0, 1, 0)  # so that the trainer measures what workers take, once, as it always does
    idle = list(range(layout.n_workers))
    busy: list[tuple[float, int, Task]] = []  # a heap: (when it ends, worker, task)
    while True:
        now_s = time.monotonic()
        while busy and busy[0][0] <= now_s:
            end_s, worker_id, task = heapq.heappop(busy)
            filling.fill(task)
            ends[worker_id].done(task, cost_s(task.stop - task.start), 0.0)
            following = ends[worker_id].take(wait=False)
            if following is None:
                idle.append(worker_id)
            else:  # it began when the one before ended, also where the helper is late
                heapq.heappush(busy, (end_s + cost_s(following.stop - following.start), worker_id, following))
        while idle and (taken := ends[idle[-1]].take(wait=False)) is not None:
            heapq.heappush(busy, (time.monotonic() + cost_s(taken.stop - taken.start), idle.pop(), taken))
        wait_s = max(0.0, busy[0][0] - time.monotonic()) if busy else None
        if parent.sentinel in select.select([parent.sentinel, *([queue.free] if idle else [])], [], [], wait_s)[0]:
            return


class _Filling:
    """Fills tasks as a worker does."""

    def __init__(self, job: Job, memory: np.ndarray) -> None:
        source = bind(job.source)
        source.start(Worker(0, job.layout.n_workers, job.scratch_bytes, multiprocessing.RLock))
        self._filler, self._arrays = Filler(job, source), job.layout.arrays(memory)

    def fill(self, task: Task) -> None:
        """Fill the rows of a task.

        Raises:
            RuntimeError: a sample was bad; the simulation has no reports of these.
        """
        slot = {name: array[task.slot] for name, array in self._arrays.items()}
        if bad := self._filler.fill(task.epoch, task.start, task.stop, slot):
            raise RuntimeError(f"sample {bad[0].index} was bad in process {os.getpid()}: {bad[0].reason}")
