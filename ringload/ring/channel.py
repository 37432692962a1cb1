"""Semaphores and records between the trainer and the producers: one eventfd and one pipe each way.

    trainer  --tasks pipe-->  producers       a TASK record for each task
             --free eventfd-> producers       a counting semaphore: tasks in the pipe
    producers --results pipe-> trainer        a RESULT record for each task, preceded by one with a text for each bad sample
              --filled eventfd-> trainer      a doorbell: some slot is full. Never read: its edges wake an epoll

The problem: any process may be killed at any instruction. A lock in shared memory stays locked by the dead. A pipe needs no
lock: the kernel writes up to PIPE_BUF bytes at once or not at all, so what is in a pipe is whole records, and a dead
producer takes with it what it had read and had not answered, no more. The trainer knows what it posted and what was
answered; the difference is posted again once all producers are dead.

Wake-ups: waking the trainer costs 20 to 50 us (measured, VM), so it is woken when a slot is full, not for every task; and
after a wait its caches are cold, so it reads the results of several batches at once, not those of one. Who sees the slot
complete rings. Each producer (1) writes the rows, (2) writes its record to the pipe, (3) sets its task's hint byte, (4) asks
`free` for its next token, (5) reads all hint bytes of the slot, and rings if all are set. Two that finish together pass
through the lock of the same eventfd in (4), so the later one sees in (5) what the earlier one did in (3): both may ring,
never neither. And who sees a hint set sees the rows: the lock of the pipe in (2) lies between them.

A pipe of results that is full (thousands of bad samples, or nobody asked for long) is no deadlock: who finds it full rings
until there is room, and a trainer that waits reads at each ring.

The trainer takes a batch for full when all its hints are set. Its books, which decide what is posted and what is posted
again, are made from the records alone, and are up to date whenever a slot is given back. A batch that was given up needs
both before its slot is used again: the record says that nobody writes to the rows, the hint that nobody will set it late.

This assumes: one trainer; records and texts below PIPE_BUF; who takes a token off `free` reads exactly one record; nobody
but producers writes to hint bytes (native code of a user's that scribbled over them could as well scribble over rows).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from ringload.ring.slots import HINT_DONE, HINT_WORDS, MAX_TASKS

READ_BYTES = 1 << 14
PIPE_BYTES = 1 << 20  # asked for; an unprivileged user may get less (/proc/sys/fs/pipe-user-pages-soft)

# epoch q, batch q, slot I, first row I, row after the last I, task H, tasks of its batch H; little-endian
TASK = struct.Struct("<qqIIIHH")
TASK_BEGIN = struct.Struct("<qqI")  # the same for all tasks of a batch
TASK_END = struct.Struct("<IIHH")
# kind B, pad, producer H, slot I, task H, bytes of text after the record H, rows I, busy f, idle f (seconds), sample q
RESULT = struct.Struct("<BxHIHHIffq")
MAX_TEXT_BYTES = select.PIPE_BUF - RESULT.size
RING_AGAIN_MS = 50  # how often a producer that finds the pipe full rings

DONE = 1  # the task's rows are written
BAD = 2  # one sample of the task is bad: the text says why; DONE follows
FAILED = 3  # the producer cannot work at all: the text says why; it ends

# of a DONE record: slot, task, rows, busy, idle
DONE_RESULT = struct.Struct("<4xIH2xIff8x")
ALL_DONE = bytes([DONE]) * (READ_BYTES // RESULT.size)

assert TASK.size == 32
assert TASK.size * MAX_TASKS <= select.PIPE_BUF  # what a batch's tasks take is written at once
assert RESULT.size == DONE_RESULT.size == 32


class Task(NamedTuple):
    """Fill rows `start:stop` of `slot` with those of batch `number` of `epoch`."""

    epoch: int
    number: int
    slot: int
    start: int
    stop: int
    task: int
    n_tasks: int


# A task's rows are written: (slot, task, rows, what that took, how long the producer had waited for the task; seconds)
Done = tuple[int, int, int, float, float]


class Word(NamedTuple):
    """What a producer says in words: that `sample` of a task is bad (`kind` BAD), or that it cannot work (FAILED)."""

    kind: int
    producer: int
    slot: int
    task: int
    sample: int
    text: str


@dataclass(frozen=True)
class ChannelFds:
    """The four descriptors that a producer needs."""

    tasks: int
    free: int
    results: int
    filled: int


class Channel:
    """The trainer's side: owns all descriptors of both directions."""

    def __init__(self) -> None:
        fds: list[int] = []
        self._closed = map(os.close, fds)  # each is taken and closed in one step, which nothing interrupts
        self._tasks_out, self._tasks_in = _pipe()
        fds += self._tasks_out, self._tasks_in
        self._results_out, self._results_in = _pipe()
        fds += self._results_out, self._results_in
        self._free = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        fds.append(self._free)
        self.filled = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        fds.append(self.filled)
        os.set_blocking(self._tasks_in, False)  # the write end is the trainer's alone: it never waits for producers
        os.set_blocking(self._results_out, False)
        os.set_blocking(self._results_in, False)  # a producer that finds it full rings first, then waits for room
        self._rest = b""  # the beginning of a record whose text was not read yet

    @property
    def for_producers(self) -> ChannelFds:
        return ChannelFds(self._tasks_out, self._free, self._results_in, self.filled)

    def post(self, records: bytes, n_tasks: int) -> bool:
        """Post the tasks of one batch, all or none. False: the pipe is full."""
        try:
            os.write(self._tasks_in, records)
        except BlockingIOError:
            return False
        os.eventfd_write(self._free, n_tasks)
        return True

    def take_back(self) -> list[Task]:
        """Take what is posted and not yet in a producer's hands. Safe while producers run: a token is a record."""
        tasks: list[Task] = []
        while True:
            try:
                os.eventfd_read(self._free)
            except BlockingIOError:
                return tasks
            tasks.append(Task._make(TASK.unpack(os.read(self._tasks_out, TASK.size))))

    def results(self) -> tuple[list[Word], list[Done]]:
        """All results there are, without waiting."""
        words: list[Word] = []
        done: list[Done] = []
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
                self._parse(self._rest + data, words, done)
        return words, done

    def _parse(self, data: bytes, words: list[Word], done: list[Done]) -> None:
        """Sort records, and the texts behind them, into `words` and `done`; keep the beginning of one that is not whole."""
        position = 0
        while position + RESULT.size <= len(data):
            kind, producer, slot, task, n_text, _, _, _, sample = RESULT.unpack_from(data, position)
            end = position + RESULT.size + n_text
            if end > len(data):
                break
            if kind == DONE:
                done.append(DONE_RESULT.unpack_from(data, position))
            else:
                words.append(Word(kind, producer, slot, task, sample, data[end - n_text : end].decode("utf-8", "replace")))
            position = end
        self._rest = data[position:]

    def ring(self) -> None:
        """Ring the trainer's own doorbell, from another thread or a finalizer."""
        os.eventfd_write(self.filled, 1)

    def empty(self) -> None:
        """Once all producers are dead and what they said is read: forget every task that is still posted, with and without a
        token, and a record that an interruption cut in two."""
        self._rest = b""
        os.set_blocking(self._tasks_out, False)
        try:
            for fd, n_bytes in ((self._free, 8), (self._tasks_out, READ_BYTES)):
                with suppress(BlockingIOError):
                    while True:
                        os.read(fd, n_bytes)
        finally:
            os.set_blocking(self._tasks_out, True)

    def close(self) -> None:
        """Close all descriptors. Again is nothing, or the rest, if it was interrupted."""
        for _ in self._closed:
            pass

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()


class ProducerEnd:
    """A producer's side of the channel, and of the hint bytes."""

    def __init__(self, fds: ChannelFds, producer: int, hints: memoryview) -> None:
        self._fds = fds
        self._producer = producer
        self._hints = hints
        self._hint = HINT_DONE
        self._has_token = False
        self._wait = select.poll()
        self._wait.register(fds.free, select.POLLIN)
        self._room = select.poll()
        self._room.register(fds.results, select.POLLOUT)

    def claim(self, wait: bool) -> Task | None:
        """The next task; None if there is none and `wait` is False."""
        while not self._has_token and not self._take_token():
            if not wait:
                return None
            self._wait.poll()  # another may be faster to the token: then wait again
        # Died here: a token without its record, a record without its token. `Channel.empty` clears both.
        self._has_token = False
        return Task._make(TASK.unpack(os.read(self._fds.tasks, TASK.size)))

    def _take_token(self) -> bool:
        try:
            os.eventfd_read(self._fds.free)
        except BlockingIOError:
            return False
        return True

    def done(self, task: Task, busy_s: float, idle_s: float) -> None:
        """Report a task whose rows are written, and ring if it was its slot's last. Steps 2 to 5 of the module's text."""
        rows = task.stop - task.start
        self._write(RESULT.pack(DONE, self._producer, task.slot, task.task, 0, rows, busy_s, idle_s, 0))
        # Died here: the record counts, the hint is not set. The trainer rewrites hints from its books at a reset.
        first = task.slot * MAX_TASKS
        self._hints[first + task.task] = self._hint
        self._hint = HINT_DONE
        # Died here: nobody rings. The trainer learns of the death.
        self._has_token = self._has_token or self._take_token()
        if 0 not in bytes(self._hints[first : first + task.n_tasks]):
            os.eventfd_write(self._fds.filled, 1)

    def check(self) -> None:
        """Raise OSError if code of the user's closed the descriptors: at once, not in a later row's name."""
        if os.get_blocking(self._fds.results):
            raise OSError(errno.EBADF, "the descriptor of the results was replaced")

    def bad(self, task: Task, sample: int, text: str) -> None:
        """Report a sample of a task as bad; `done` for the task follows."""
        self._say(BAD, task.slot, task.task, sample, text)
        self._hint = HINT_WORDS

    def failed(self, text: str) -> None:
        """Report that this producer cannot work at all."""
        self._say(FAILED, 0, 0, 0, text)
        os.eventfd_write(self._fds.filled, 1)

    def _say(self, kind: int, slot: int, task: int, sample: int, text: str) -> None:
        data = text.encode("utf-8", "replace")[:MAX_TEXT_BYTES]
        self._write(RESULT.pack(kind, self._producer, slot, task, len(data), 0, 0, 0, sample) + data)

    def _write(self, record: bytes) -> None:
        """Write a record, whole. If there is no room, ask the trainer to read, which it does not for every record."""
        self.check()
        while True:
            try:
                os.write(self._fds.results, record)
                return
            except BlockingIOError:
                os.eventfd_write(self._fds.filled, 1)
                self._room.poll(RING_AGAIN_MS)  # that ring may have gone unheard, beside one for a full slot


def _pipe() -> tuple[int, int]:
    out, into = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise  # EPERM: this user's pipes are at their limit; the default size holds 2,048 records
    return out, into
