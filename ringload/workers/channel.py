"""The channel between the trainer and its workers: two semaphores and two pipes.

    trainer  --tasks pipe-->    workers       a TASK record for each task
             --free eventfd-->  workers       a counting semaphore: how many tasks are in the pipe
             where the rows of a batch belong to a part of a stream, each worker has such a pair of its own: a queue
    workers  --results pipe-->  trainer       a RESULT record for each task; before it, one with a text for each bad sample
             --wake eventfd-->  trainer       notifies that some slot is full. It is never read: its edges wake an epoll

The problem: any process may be killed at any instruction, and a lock in shared memory stays locked by a dead process. A pipe
needs no lock: the kernel writes up to PIPE_BUF bytes at once or not at all. So a pipe holds whole records, and a dead worker
takes with it only the task that it had read and had not answered. The trainer knows which tasks it has posted and which were
answered. It posts the difference again, once all workers are dead.

Waking the trainer costs 20 to 50 us (measured, VM). So it is woken when a slot is full, not for each task. After a wait its
caches are cold, so it reads the results of several batches at once. A worker notifies the trainer if it sees that the slot is
complete. Each worker
    1. writes the rows,
    2. writes its record to the pipe,
    3. sets the done flag of its task,
    4. asks `free` for its next token,
    5. reads all done flags of the slot, and notifies if all are set.
Two workers that finish together pass through the lock of the same eventfd in step 4. So the later one sees in step 5 what the
earlier one did in step 3: both may notify, but never neither. A process that sees a done flag also sees the rows, as the lock
of the pipe in step 2 lies between them.

A full pipe of results (thousands of bad samples, or a trainer that has not read for long) is no deadlock: a worker that finds
it full notifies until there is room, and a trainer that waits reads whenever it is notified.

The trainer takes a batch for full when all its done flags are set. The slot table, which decides what is posted, and what is
posted again, is made from the records alone, and is up to date whenever a slot is given back. The slot of a cancelled batch is
used again only after both have come: the record says that no worker writes to its rows any more, the flag that no worker will
set the flag later.

This assumes: there is one trainer; records and texts are below PIPE_BUF; a process that takes a token off `free` reads exactly
one record; only workers write to done flags (native code of a user that overwrites them could as well overwrite rows).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from ringload.ring.layout import FLAG_DONE, FLAG_DONE_WITH_REPORTS, MAX_TASKS
from ringload.ring.slots import TaskResult
from ringload.system.interrupts import FdOwner
from ringload.workers.records import (
    BAD,
    DONE,
    DONE_RESULT,
    FAILED,
    MAX_TEXT_BYTES,
    RESULT,
    TASK,
    Task,
    WorkerReport,
)

READ_BYTES = 1 << 14
PIPE_BYTES = 1 << 20  # asked for; an unprivileged user may get less (/proc/sys/fs/pipe-user-pages-soft)
NOTIFY_AGAIN_MS = 50  # how often a worker that finds the pipe full notifies
ALL_DONE = bytes([DONE]) * (READ_BYTES // RESULT.size)


class Queue(NamedTuple):
    """The descriptors of a queue of tasks that workers need."""

    tasks: int
    free: int


@dataclass(frozen=True)
class ChannelFds:
    """The descriptors that workers need. There is one queue for all of them, or one for each."""

    queues: tuple[Queue, ...]
    results: int
    wake_fd: int

    @property
    def all(self) -> tuple[int, ...]:
        """All of them."""
        return (*chain(*self.queues), self.results, self.wake_fd)


class Channel(FdOwner):
    """The trainer's side: owns all descriptors of both directions."""

    def __init__(self, n_queues: int = 1) -> None:
        super().__init__()
        self.n_queues = n_queues
        pipes = [self._open_pipe() for _ in range(n_queues)]
        self._tasks_in = [tasks_in for _, tasks_in in pipes]
        self._results_out, self._results_in = self._open_pipe()
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE
        self._queues = tuple(Queue(tasks_out, self._open(os.eventfd, 0, flags)) for tasks_out, _ in pipes)
        self.wake_fd = self._open(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for pipe in (*self._tasks_in[:1], self._results_in):  # the batches of one worker are few
            _enlarge(pipe)
        for pipe in self._tasks_in:
            os.set_blocking(pipe, False)  # the write end is the trainer's alone: it never waits for workers
        os.set_blocking(self._results_out, False)
        os.set_blocking(self._results_in, False)  # a worker that finds it full notifies first, then waits for room
        self._rest = b""  # the beginning of a record whose text was not read yet

    @property
    def for_workers(self) -> ChannelFds:
        return ChannelFds(self._queues, self._results_in, self.wake_fd)

    def post(self, records: bytes, n_tasks: int, queue: int = 0) -> bool:
        """Post the tasks of some batches, all or none. False: the pipe is full."""
        try:
            os.write(self._tasks_in[queue], records)
        except BlockingIOError:
            return False
        os.eventfd_write(self._queues[queue].free, n_tasks)
        return True

    def take_back(self) -> list[Task]:
        """Take what is posted and not yet in a worker's hands. Safe while workers run: a token is a record."""
        tasks: list[Task] = []
        for queue in self._queues:
            with suppress(BlockingIOError):
                while True:
                    os.eventfd_read(queue.free)
                    tasks.append(Task._make(TASK.unpack(os.read(queue.tasks, TASK.size))))
        return tasks

    def results(self) -> tuple[list[WorkerReport], list[TaskResult]]:
        """All results there are, without waiting."""
        reports: list[WorkerReport] = []
        done: list[TaskResult] = []
        n_read = READ_BYTES
        while n_read == READ_BYTES:  # less than was asked for is all there is
            try:
                data = os.read(self._results_out, READ_BYTES)
            except BlockingIOError:
                break
            n_read = len(data)
            if not self._rest and data[:: RESULT.size] == ALL_DONE[: n_read // RESULT.size]:
                done += DONE_RESULT.iter_unpack(data)  # the usual case: no words between
            else:
                self._parse(self._rest + data, reports, done)
        return reports, done

    def _parse(self, data: bytes, reports: list[WorkerReport], done: list[TaskResult]) -> None:
        """Sort records, and the texts behind them, into `reports` and `done`; keep the beginning of one that is not whole."""
        position = 0
        while position + RESULT.size <= len(data):
            kind, worker_id, slot, task, n_text, _, _, _, sample = RESULT.unpack_from(data, position)
            end = position + RESULT.size + n_text
            if end > len(data):
                break
            if kind == DONE:
                done.append(DONE_RESULT.unpack_from(data, position))
            else:
                reports.append(
                    WorkerReport(kind, worker_id, slot, task, sample, data[end - n_text : end].decode("utf-8", "replace"))
                )
            position = end
        self._rest = data[position:]

    def notify(self) -> None:
        """Notify the trainer itself, from another thread or a finalizer."""
        os.eventfd_write(self.wake_fd, 1)

    def empty(self) -> None:
        """Once all workers are dead and what they said is read: forget every task that is still posted, with and without a
        token, and a record that an interruption cut in two."""
        self._rest = b""
        for queue in self._queues:
            os.set_blocking(queue.tasks, False)
            try:
                for fd, n_bytes in ((queue.free, 8), (queue.tasks, READ_BYTES)):
                    with suppress(BlockingIOError):
                        while True:
                            os.read(fd, n_bytes)
            finally:
                os.set_blocking(queue.tasks, True)


class WorkerChannel:
    """A worker's side of the channel, and of the done flags."""

    def __init__(self, fds: ChannelFds, worker_id: int, done_flags: memoryview) -> None:
        self._fds = fds
        self._queue = fds.queues[worker_id % len(fds.queues)]
        self._worker = worker_id
        self._done_flags = done_flags
        self._flag = FLAG_DONE
        self._has_token = False
        self._wait = select.poll()
        self._wait.register(self._queue.free, select.POLLIN)
        self._room = select.poll()
        self._room.register(fds.results, select.POLLOUT)

    def take(self, wait: bool) -> Task | None:
        """The next task; None if there is none and `wait` is False."""
        while not self._has_token and not self._take_token():
            if not wait:
                return None
            self._wait.poll()  # another may be faster to the token: then wait again
        # Died here: a token without its record, a record without its token. `Channel.empty` clears both.
        self._has_token = False
        return Task._make(TASK.unpack(os.read(self._queue.tasks, TASK.size)))

    def _take_token(self) -> bool:
        try:
            os.eventfd_read(self._queue.free)
        except BlockingIOError:
            return False
        return True

    def done(self, task: Task, busy_s: float, idle_s: float) -> None:
        """Report a task whose rows are written; notify if it was the last of its slot. Steps 2 to 5 of the module's text."""
        rows = task.stop - task.start
        self._write(RESULT.pack(DONE, self._worker, task.slot, task.task, 0, rows, busy_s, idle_s, 0))
        # Died here: the record counts, the flag is not set. The trainer writes the flags again at a reset.
        first = task.slot * MAX_TASKS
        self._done_flags[first + task.task] = self._flag
        self._flag = FLAG_DONE
        # Died here: no worker notifies. The trainer learns of the death.
        self._has_token = self._has_token or self._take_token()
        if 0 not in bytes(self._done_flags[first : first + task.n_tasks]):
            os.eventfd_write(self._fds.wake_fd, 1)

    def check(self) -> None:
        """Raise OSError if code of the user's closed the descriptors: at once, not in a later row's name."""
        if os.get_blocking(self._fds.results):
            raise OSError(errno.EBADF, "the descriptor of the results was replaced")

    def bad(self, task: Task, sample: int, text: str) -> None:
        """Report a sample of a task as bad; `done` for the task follows."""
        self._say(BAD, task.slot, task.task, sample, text)
        self._flag = FLAG_DONE_WITH_REPORTS

    def failed(self, text: str) -> None:
        """Report that this worker cannot work at all."""
        self._say(FAILED, 0, 0, 0, text)
        os.eventfd_write(self._fds.wake_fd, 1)

    def _say(self, kind: int, slot: int, task: int, sample: int, text: str) -> None:
        data = text.encode("utf-8", "replace")[:MAX_TEXT_BYTES]
        self._write(RESULT.pack(kind, self._worker, slot, task, len(data), 0, 0, 0, sample) + data)

    def _write(self, record: bytes) -> None:
        """Write a record, whole. If there is no room, ask the trainer to read, which it does not for every record."""
        self.check()
        while True:
            try:
                os.write(self._fds.results, record)
                return
            except BlockingIOError:
                os.eventfd_write(self._fds.wake_fd, 1)
                self._room.poll(NOTIFY_AGAIN_MS)  # that ring may have gone unheard, beside one for a full slot


def _enlarge(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise  # EPERM: this user's pipes are at their limit; the default size holds 2,048 records
