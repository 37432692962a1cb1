"""A worker: takes tasks, reads, decodes, writes the rows in place, reports.

It ends with the trainer, however that ends: the kernel kills its whole process group when the trainer's end of the lifeline
closes (see `fork_server`). Until then it never ends by itself, so its end is a death, whatever the exit code.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import pickle
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ringload.bad_sample import end_of
from ringload.errors import BudgetError
from ringload.fields import Worker
from ringload.packing.generators import OwnGenerators, take_made
from ringload.packing.unpack import import_bytes, shared_import_bytes, unpack
from ringload.protocols import PAD, Job
from ringload.ring.layout import MAX_TASKS, Layout
from ringload.ring.plan import Room
from ringload.sources.bind import BoundSource, bind
from ringload.system.resource_tracker import share_tracker
from ringload.system.segment import anonymous_bytes, map_in, map_shared
from ringload.workers.channel import ChannelFds, WorkerChannel
from ringload.workers.current_work import WHOLE_TASK, CurrentWorkTable
from ringload.workers.fill import Filler
from ringload.workers.reading_ahead import ReadingAhead
from ringload.workers.records import MAX_TEXT_BYTES, Task
from ringload.workers.start import Start, start_of
from ringload.workers.tasks_ahead import Held, TasksAhead

LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class WorkerJob:
    """All that a worker process needs: what to fill, and by which descriptors. `workers_name` is what the user's API calls the
    number of workers."""

    job: Job
    ring_fd: int
    channel: ChannelFds
    room: Room
    workers_name: str = "workers"

    @property
    def layout(self) -> Layout:
        return self.job.layout

    def of_source(self, source: Any, **changes: Any) -> WorkerJob:
        """The same of another source."""
        return replace(self, job=self.job._replace(source=source, **changes))


def run(worker_job: WorkerJob, start: Start, worker_id: int) -> None:
    """Be worker number `worker`. Does not return but by an error that it has reported."""
    be_called(f"ringload:{worker_id}")
    if sys.breakpointhook is sys.__breakpointhook__ and not os.environ.get("PYTHONBREAKPOINT"):
        sys.breakpointhook = partial(_refuse_breakpoint, worker_job.workers_name)
    before_bytes = anonymous_bytes()
    job, layout = worker_job.job, worker_job.job.layout
    try:
        segment = map_shared(worker_job.ring_fd, layout.n_bytes)
    except BudgetError as error:
        WorkerChannel(worker_job.channel, worker_id, memoryview(b"")).failed(str(error))
        raise SystemExit(1) from None
    view = segment.data
    done_flags = view[layout.flags_start : layout.flags_start + layout.n_slots * MAX_TASKS]
    end, current_work = WorkerChannel(worker_job.channel, worker_id, done_flags), CurrentWorkTable(view)
    try:
        source, own = _source_of(job)
        bound = bind(source)
        turn = partial(_exclusive, worker_job.ring_fd, current_work, worker_id)
        _alone(bound.start)(Worker(worker_id, start.n_workers, job.scratch_bytes, turn, job.max_sample_bytes or None))
        filler = Filler(job, bound, dict(start.poison_samples), _alone, own)
        n_bytes, imported_bytes = anonymous_bytes() - before_bytes, import_bytes()
        current_work.started(worker_id, n_bytes - imported_bytes, imported_bytes + shared_import_bytes())
        tasks = TasksAhead(layout.n_slots, start.n_workers)
        work = _TaskLoop(start, worker_id, bound, filler, end, current_work, tasks)
        work.forever(layout.arrays(segment))
    except Exception:
        end.failed(end_of(traceback.format_exc(), MAX_TEXT_BYTES // 4))
        raise SystemExit(1) from None


def _refuse_breakpoint(name: str, *arguments: Any, **options: Any) -> None:
    """What breakpoint() calls: pdb would read the end of its input, in each sample."""
    raise RuntimeError(
        f"breakpoint() in a worker, which has no terminal: debug with {name}=0, which loads in the trainer's process"
    )


def _source_of(job: Job) -> tuple[Any, OwnGenerators]:
    """The source, and the generators that it has of its own."""
    if isinstance(job.source, bytes | memoryview):
        source = _alone(unpack)(job.source)
        return source, OwnGenerators(take_made())
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # the threads of OpenMP are not in a fork, and would be waited for
    if job.setup is not None:
        _alone(job.setup)()
    from ringload.packing.pack import generators_of  # not for other workers, which start sooner without

    return job.source, generators_of(job.source)


class _TaskLoop:
    """The loop of one worker."""

    def __init__(
        self,
        start: Start,
        worker_id: int,
        source: BoundSource,
        filler: Filler,
        end: WorkerChannel,
        current_work: CurrentWorkTable,
        tasks: TasksAhead,
    ) -> None:
        self._worker = worker_id
        self._one_by_one, self._alone = frozenset(start.one_by_one), frozenset(start.alone)
        self._prefetch = _alone(source.prefetch) if source.prefetch is not None else None
        self._is_ready = _alone(source.is_ready) if source.is_ready is not None else None
        self._forget = _alone(source.forget) if source.forget is not None else None
        self._poison_samples = [index for index, _ in start.poison_samples]
        self._filler, self._begins_ahead = filler, filler.begins_ahead
        self._end = end
        self._current_work = current_work
        self._tasks = tasks
        self._ahead = ReadingAhead(self._prefetch, self._is_ready)

    def forever(self, arrays: dict[str, Any]) -> None:
        """Task after task. While one is filled, the samples of others are read."""
        tasks = self._tasks
        while True:
            idle_from_s = time.monotonic()
            if not tasks:
                self._current_work.clear(self._worker)
                self._take_task(arrays, wait=True)
            begin_s = time.monotonic()
            while self._takes_more and self._take_task(arrays, wait=False):
                pass
            knows_ready = self._begins_ahead or (self._prefetch is not None and self._is_ready is not None)
            if knows_ready:
                self._note_whole(tasks.oldest)  # waiting for it may take long
            held = tasks.next(self._has_come if knows_ready else None)
            self._fill(held, {name: array[held.task.slot] for name, array in arrays.items()})
            if self._forget is not None:
                self._forget(held.samples)
            self._end.done(held.task, time.monotonic() - begin_s, begin_s - idle_from_s)

    @property
    def _takes_more(self) -> bool:
        """Whether another task is taken, so that its samples are read while those are filled that are held."""
        if (self._prefetch is None and not self._begins_ahead) or not self._tasks.wants_more:
            return False
        oldest = self._tasks.oldest
        return (oldest.epoch, oldest.number) not in self._alone

    def _take_task(self, arrays: dict[str, Any], wait: bool) -> bool:
        """Take a task, if there is one, and begin to read its samples."""
        task = self._end.take(wait)
        if task is None:
            return False
        samples = arrays["index"][task.slot, task.start : task.stop]
        samples = samples[samples != PAD]
        if self._poison_samples:  # which are not loaded
            samples = samples[~np.isin(samples, self._poison_samples)]
        begun = None
        if (task.epoch, task.number) not in self._one_by_one:
            if self._prefetch is not None:
                self._note_whole(task)  # it may hang, or end the process
                self._ahead.ask(samples)
            elif self._begins_ahead:
                self._note_whole(task)
                slot = {name: array[task.slot] for name, array in arrays.items()}
                map_in_rows(slot, task)
                begun = self._filler.begin(task.epoch, task.start, task.stop, slot)
        self._tasks.add(Held(task, samples, begun))
        return True

    def _note_whole(self, task: Task) -> None:
        """All samples of a task are in hand."""
        self._current_work.write(self._worker, task.epoch, task.number, WHOLE_TASK, task.start, task.stop)

    def _has_come(self, held: Held) -> bool:
        if self._is_ready is None:
            return all(future.done() for future in held.begun or ())
        try:
            return self._ahead.has_come(held.samples)
        except BaseException:  # which ends this process
            self._note_whole(held.task)
            raise

    def _fill(self, held: Held, slot: dict[str, Any]) -> None:
        task = held.task

        def note_work(sample: int, start: int, stop: int) -> None:
            self._end.check()  # or this row would be blamed for what the last one did
            self._current_work.write(self._worker, task.epoch, task.number, sample, start, stop)

        map_in_rows(slot, task)
        one_by_one = (task.epoch, task.number) in self._one_by_one
        for bad in self._filler.fill(task.epoch, task.start, task.stop, slot, note_work, one_by_one, held.begun):
            self._end.bad(task, bad.index, bad.pack(MAX_TEXT_BYTES))


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """What calls a user's code, which may fork: should the child come back from it, it ends, or there would be a second
    worker."""
    pid = os.getpid()

    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        finally:
            if os.getpid() != pid:
                os._exit(0)

    return called


def map_in_rows(slot: dict[str, Any], task: Task) -> None:
    """Have the kernel map the memory of a task's rows in one call, instead of by a fault for each page."""
    for array in slot.values():
        map_in(array[task.start : task.stop])


def be_called(name: str) -> None:
    """What ps and top show."""
    with suppress(OSError), open("/proc/self/comm", "w") as comm:  # /proc may be read-only
        comm.write(name)


@contextmanager
def _exclusive(fd: int, current_work: CurrentWorkTable, worker_id: int) -> Iterator[None]:
    """Held by one process at a time. The kernel takes a record lock from the dead."""
    current_work.wait(worker_id)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    current_work.go_on(worker_id)
    try:
        yield
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)


def main() -> None:
    """The entry of a spawned worker: `argv` is (what, start as JSON, worker, job's descriptor, tracker's, *sys.path)."""
    for fd in os.listdir("/proc/self/fd"):
        if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}"):  # not the one that listed them
            os.set_inheritable(int(fd), False)
    start, worker_id, job_fd = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    share_tracker(int(sys.argv[4]))
    run(read_job(job_fd), start_of(start), worker_id)


def read_job(fd: int) -> WorkerJob:
    """The job that the trainer wrote (`written`); the packed source stays where it is."""
    data = memoryview(mmap.mmap(fd, os.fstat(fd).st_size, access=mmap.ACCESS_READ))
    (n_bytes,) = LENGTH.unpack_from(data)
    job: WorkerJob = pickle.loads(data[LENGTH.size : LENGTH.size + n_bytes])
    return job.of_source(data[LENGTH.size + n_bytes :])


def written(job: WorkerJob) -> bytes:
    """A job with a packed source, as bytes: the length of the pickle of what else there is, that, then the source."""
    data = pickle.dumps(job.of_source(None))
    return b"".join((LENGTH.pack(len(data)), data, job.job.source))
