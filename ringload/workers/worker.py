"""A producer: takes tasks, reads, decodes, writes the rows in place, reports.

It ends with the trainer, however that ends: the kernel kills its whole process group when the trainer's end of the lifeline
closes (see `server`). Until then it never ends by itself, so its end is a death, whatever the exit code.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ringload.data.fields import Producer
from ringload.data.listed import ListedOrder
from ringload.data.sampler import Order
from ringload.data.sharing import unpack
from ringload.errors import BudgetError
from ringload.ring.channel import MAX_TEXT_BYTES, ChannelFds, ProducerEnd, Task
from ringload.ring.claims import WHOLE_TASK, Claims
from ringload.ring.ring import Bad
from ringload.ring.slots import MAX_TASKS, Layout
from ringload.shared import map_in, map_shared
from ringload.workers.filling import Filler, OnError, reason_of
from ringload.workers.listing import ListedFiller


@dataclass(frozen=True)
class Job:
    """All that a producer needs. `source` is pickled (see `sharing`), or for start_method="fork" the object itself."""

    source: Any
    order: Order | ListedOrder
    layout: Layout
    on_error: OnError
    ring_fd: int
    channel: ChannelFds
    scratch_bytes: int


@dataclass(frozen=True)
class Start:
    """What one start of the producers adds: what was learned from deaths before.

    `killers`: (sample, how) of those that killed their producer twice. `careful`: (epoch, number) of batches whose rows are
    loaded one at a time and not asked for ahead, because a producer died while it loaded several at once.
    """

    n_producers: int
    killers: tuple[tuple[int, str], ...] = ()
    careful: tuple[tuple[int, int], ...] = ()


def run(job: Job, start: Start, producer: int) -> None:
    """Be producer number `producer`. Does not return but by an error that it has reported."""
    be_called(f"ringload:{producer}")
    try:
        segment = map_shared(job.ring_fd, job.layout.n_bytes)
    except BudgetError as error:
        ProducerEnd(job.channel, producer, memoryview(b"")).failed(str(error))
        raise SystemExit(1) from None
    view = segment.data
    layout = job.layout
    hints = view[layout.hints_start : layout.hints_start + layout.n_slots * MAX_TASKS]
    end, claims = ProducerEnd(job.channel, producer, hints), Claims(view)
    try:
        source = _alone(unpack)(job.source) if isinstance(job.source, bytes) else job.source
        if hasattr(source, "start"):
            turn = partial(_exclusive, job.ring_fd, claims, producer)
            _alone(source.start)(Producer(producer, start.n_producers, job.scratch_bytes, turn))
        filler: Filler | ListedFiller
        if isinstance(job.order, ListedOrder):
            filler = ListedFiller(source, dict(start.killers), _alone, producer)
        else:
            filler = Filler(source, job.order, job.on_error, dict(start.killers), _alone)
        work = _Work(start, producer, source, filler, end, claims)
        work.forever(layout.arrays(segment))
    except Exception:
        end.failed(traceback.format_exc()[-MAX_TEXT_BYTES // 4 :])
        raise SystemExit(1) from None


class _Work:
    """The loop of one producer."""

    def __init__(
        self, start: Start, producer: int, source: Any, filler: Filler | ListedFiller, end: ProducerEnd, claims: Claims
    ) -> None:
        self._producer = producer
        self._careful = frozenset(start.careful)
        self._prefetch = _alone(source.prefetch) if hasattr(source, "prefetch") else None
        self._filler = filler
        self._end = end
        self._claims = claims
        self._ahead: deque[Task] = deque()

    def forever(self, arrays: dict[str, Any]) -> None:
        """Task after task. While one is filled, the files of the next are asked for."""
        while True:
            idle_from_s = time.monotonic()
            if not self._ahead:
                self._claims.clear(self._producer)
                self._claim(wait=True)
            begin_s = time.monotonic()
            if self._prefetch is not None and len(self._ahead) < 2:
                self._claim(wait=False)
            task = self._ahead.popleft()
            self._fill(task, {name: array[task.slot] for name, array in arrays.items()})
            self._end.done(task, time.monotonic() - begin_s, begin_s - idle_from_s)

    def _claim(self, wait: bool) -> None:
        task = self._end.claim(wait)
        if task is not None:
            self._ahead.append(task)
            if self._prefetch is not None and (task.epoch, task.number) not in self._careful:
                # It may hang, or end the process: what it is about is in hand.
                self._claims.write(self._producer, task.epoch, task.number, WHOLE_TASK, task.start, task.stop)
                self._ask(self._filler.indices(task.epoch, task.number, task.start, task.stop))

    def _ask(self, indices: np.ndarray) -> None:
        """Have the source begin to read. Whether it can is no matter: what is wrong with a sample is said when it is loaded."""
        assert self._prefetch is not None
        try:
            self._prefetch(indices)
        except Exception as error:  # whatever a user's function raises
            self._prefetch = None
            warnings.warn(f"nothing is read ahead any more: prefetch() raised {reason_of(error)}", RuntimeWarning, stacklevel=1)

    def _fill(self, task: Task, slot: dict[str, Any]) -> None:
        def claim(sample: int, start: int, stop: int) -> None:
            self._end.check()  # or this row would be blamed for what the last one did
            self._claims.write(self._producer, task.epoch, task.number, sample, start, stop)

        for array in slot.values():
            map_in(array[task.start : task.stop])
        careful = (task.epoch, task.number) in self._careful
        for bad in self._filler.fill(task.epoch, task.number, task.start, task.stop, slot, claim, careful):
            self._end.bad(task, bad.index, as_text(bad))


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """What calls a user's code, which may fork: should the child come back from it, it ends, or there would be a second
    producer."""
    pid = os.getpid()

    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        finally:
            if os.getpid() != pid:
                os._exit(0)

    return called


def as_text(bad: Bad) -> str:
    """A bad sample as JSON that fits into one record; of texts that are too long, the end of the traceback is kept."""
    texts = [bad.traceback, bad.reason, bad.where]
    while True:
        text = json.dumps([texts[2], texts[1], texts[0], bad.replaced_by], ensure_ascii=False)
        if len(text.encode("utf-8", "replace")) <= MAX_TEXT_BYTES:
            return text
        longest = max(range(3), key=lambda which: len(texts[which]))
        texts[longest] = (
            texts[longest][len(texts[longest]) // 4 :] if longest == 0 else texts[longest][: -len(texts[longest]) // 4]
        )


def be_called(name: str) -> None:
    """What ps and top show."""
    with suppress(OSError), open("/proc/self/comm", "w") as comm:  # /proc may be read-only
        comm.write(name)


@contextmanager
def _exclusive(fd: int, claims: Claims, producer: int) -> Iterator[None]:
    """Held by one process at a time. The kernel takes a record lock from the dead."""
    claims.wait(producer)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    claims.go_on(producer)
    try:
        yield
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)


def main() -> None:
    """The entry of a producer that was spawned: `argv` is (what, start as JSON, producer, job's descriptor, *sys.path)."""
    for fd in os.listdir("/proc/self/fd"):
        if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}"):  # not the one that listed them
            os.set_inheritable(int(fd), False)
    start, producer, job_fd = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    run(read_job(job_fd), start_of(start), producer)


def read_job(fd: int) -> Job:
    """The job that the trainer wrote."""
    with mmap.mmap(fd, os.fstat(fd).st_size, access=mmap.ACCESS_READ) as data:
        job: Job = unpack(data[:])
    return job


def message_of(start: Start) -> dict[str, Any]:
    """A Start as it goes into JSON: what thousands of killers share is said once."""
    killers: dict[str, list[int]] = {}
    for index, how in start.killers:
        killers.setdefault(how, []).append(index)
    return {"n_producers": start.n_producers, "killers": killers, "careful": start.careful}


def start_of(message: dict[str, Any]) -> Start:
    """A Start as it comes out of JSON."""
    return Start(
        int(message["n_producers"]),
        tuple((int(index), str(how)) for how, indices in message["killers"].items() for index in indices),
        tuple((int(epoch), int(number)) for epoch, number in message["careful"]),
    )
