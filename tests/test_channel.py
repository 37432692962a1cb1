"""The channel between real processes."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ringload.ring.layout import CURRENT_WORK_BYTES, FLAG_DONE_WITH_REPORTS, MAX_TASKS
from ringload.ring.slots import Ring, split_into_tasks
from ringload.workers.channel import Channel, WorkerChannel
from ringload.workers.current_work import CurrentWorkTable
from ringload.workers.records import BAD, FAILED, MAX_TEXT_BYTES, TASK, Task, task_records


@pytest.fixture
def channel() -> Iterator[Channel]:
    made = Channel()
    yield made
    made.close()
    made.close()


def records(slot: int, n_rows: int, rows_per_task: int, epoch: int = 3, number: int = 5) -> tuple[bytes, int]:
    ring = Ring(slot + 1)
    ring._free = [slot]
    posted = ring.fill(epoch, number, n_rows, rows_per_task)
    return task_records(posted), len(posted.split.bounds)


@contextmanager
def child(run: Callable[[], None]) -> Iterator[int]:
    """A forked process that runs a function and exits with 0, or 1 on an error."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    try:
        yield pid
        assert os.waitpid(pid, 0)[1] == 0
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def done_flags(n_slots: int = 4) -> memoryview:
    return memoryview(mmap.mmap(-1, n_slots * MAX_TASKS))


def test_tasks_arrive_whole_and_in_order(channel: Channel) -> None:
    end = WorkerChannel(channel.for_workers, 0, done_flags())
    assert end.take(wait=False) is None
    assert channel.post(*records(2, 10, 4))
    assert [end.take(wait=True) for _ in range(3)] == [
        Task(3, 5, 2, 0, 4, 0, 3),
        Task(3, 5, 2, 4, 8, 1, 3),
        Task(3, 5, 2, 8, 10, 2, 3),
    ]
    assert end.take(wait=False) is None


def test_a_full_pipe_posts_all_or_nothing(channel: Channel) -> None:
    one_batch, n_tasks = records(0, 1000, 1)
    assert n_tasks == MAX_TASKS - 3  # 125 tasks of 8 rows
    n_posted = 0
    while channel.post(one_batch, n_tasks):
        n_posted += 1
    assert n_posted >= 15  # of 64 KiB at least
    end = WorkerChannel(channel.for_workers, 0, done_flags())
    tasks = [end.take(wait=True) for _ in range(n_posted * n_tasks)]
    assert end.take(wait=False) is None
    assert [task.task for task in tasks if task] == list(range(n_tasks)) * n_posted


def test_what_was_posted_can_be_taken_back_while_others_claim(channel: Channel) -> None:
    def claim_some() -> None:
        end = WorkerChannel(channel.for_workers, 1, done_flags())
        for _ in range(7):
            assert end.take(wait=True)

    assert channel.post(*records(1, 20, 1))
    with child(claim_some):
        pass
    assert [task.task for task in channel.take_back()] == list(range(7, 20))
    assert channel.take_back() == []


def test_tokens_and_records_of_the_dead_are_forgotten(channel: Channel) -> None:
    channel.post(*records(0, 6, 1))
    os.eventfd_read(channel.for_workers.queues[0].free)  # died with a token and without its record
    os.read(channel.for_workers.queues[0].tasks, TASK.size)
    os.read(channel.for_workers.queues[0].tasks, TASK.size)
    channel.empty()
    assert channel.take_back() == []
    channel.post(*records(0, 2, 1, number=8))
    assert [task.number for task in channel.take_back()] == [8, 8]


def test_the_beginning_of_a_record_of_the_dead_is_forgotten(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringload.workers.channel.READ_BYTES", 96)
    end = WorkerChannel(channel.for_workers, 0, done_flags())
    channel.post(*records(0, 2, 1))
    tasks = [task for task in (end.take(True), end.take(True)) if task]
    end.bad(tasks[0], 7, "w" * 150)
    end.done(tasks[0], 0, 0)
    with monkeypatch.context() as interrupted:
        really, n = Channel._parse, iter(range(9))

        def parse(self: Channel, *arguments: Any) -> None:
            if next(n) == 1:  # a part of the text was read
                raise KeyboardInterrupt
            really(self, *arguments)

        interrupted.setattr(Channel, "_parse", parse)
        with pytest.raises(KeyboardInterrupt):
            channel.results()
    channel.results()
    channel.empty()
    end.done(tasks[1], 0.25, 0.5)
    assert channel.results() == ([], [(0, 1, 1, 0.25, 0.5)])


def test_done_rings_once_the_slot_is_complete(channel: Channel) -> None:
    shared = done_flags()
    ends = [WorkerChannel(channel.for_workers, number, shared) for number in (0, 1)]
    channel.post(*records(1, 4, 2))
    first, second = ends[0].take(True), ends[1].take(True)
    assert first
    assert second
    ends[1].done(second, 0.25, 0.5)
    assert channel.results() == ([], [(1, 1, 2, 0.25, 0.5)])
    assert not select.select([channel.wake_fd], [], [], 0)[0]
    ends[0].done(first, 1.0, 2.0)
    assert select.select([channel.wake_fd], [], [], 0)[0]
    assert channel.results() == ([], [(1, 0, 2, 1.0, 2.0)])
    assert channel.results() == ([], [])
    assert bytes(shared[MAX_TASKS : MAX_TASKS + 3]) == b"\1\1\0"


def test_words_come_before_the_task_they_are_about(channel: Channel) -> None:
    shared = done_flags()
    end = WorkerChannel(channel.for_workers, 7, shared)
    channel.post(*records(0, 3, 1))
    tasks = [end.take(True) for _ in range(3)]
    assert all(tasks)
    end.done(tasks[0], 0, 0)
    end.bad(tasks[1], 41, "größer als 0")
    end.bad(tasks[1], 42, "x" * 10_000)
    end.done(tasks[1], 0, 0)
    end.done(tasks[2], 0, 0)
    end.failed("no more")
    reports, done = channel.results()
    assert [(w.kind, w.worker_id, w.slot, w.task, w.sample) for w in reports] == [
        (BAD, 7, 0, 1, 41),
        (BAD, 7, 0, 1, 42),
        (FAILED, 7, 0, 0, 0),
    ]
    assert reports[0].text == "größer als 0"
    assert reports[1].text == "x" * MAX_TEXT_BYTES
    assert [task for _, task, *_ in done] == [0, 1, 2]
    assert bytes(shared[:3]) == bytes([1, FLAG_DONE_WITH_REPORTS, 1])


def test_words_across_reads(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringload.workers.channel.READ_BYTES", 96)
    end = WorkerChannel(channel.for_workers, 0, done_flags())
    channel.post(*records(0, 40, 1))
    for number in range(40):
        task = end.take(True)
        assert task
        if number % 3 == 0:
            end.bad(task, number, "w" * (number * 7))
        end.done(task, 0, 0)
    reports, done = channel.results()
    assert [(w.sample, len(w.text)) for w in reports] == [(n, n * 7) for n in range(0, 40, 3)]
    assert [task for _, task, *_ in done] == list(range(40))


def test_several_workers_lose_and_double_nothing(channel: Channel) -> None:
    """Records of three processes, mixed with words of any length, arrive whole."""
    shared = done_flags(64)

    def work(number: int) -> None:
        end = WorkerChannel(channel.for_workers, number, shared)
        while task := end.take(wait=False):
            if task.task % 5 == number:
                end.bad(task, task.slot * 1000 + task.task, "t" * (task.task * 29))
            end.done(task, 0.5, 0.25)

    batches = [records(slot, 100, 1, number=slot) for slot in range(60)]
    for batch in batches:
        assert channel.post(*batch)
    seen: list[tuple[int, int]] = []
    n_words = 0
    with child(lambda: work(0)), child(lambda: work(1)), child(lambda: work(2)):
        while len(seen) < 6000:
            reports, done = channel.results()
            seen += [(slot, task) for slot, task, *_ in done]
            for word in reports:
                assert word.text == "t" * (word.task * 29)
                assert word.sample == word.slot * 1000 + word.task
            n_words += len(reports)
    assert sorted(seen) == [(slot, task) for slot in range(60) for task in range(100)]
    assert n_words > 0
    assert os.eventfd_read(channel.wake_fd) >= 60  # each complete slot rang
    assert set(bytes(shared[: 60 * MAX_TASKS])) <= {0, 1, FLAG_DONE_WITH_REPORTS}


def test_a_smaller_pipe_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(1, "this user's pipes are at their limit")
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    small = Channel()
    batch = records(0, 100, 1)
    n = 0
    while small.post(*batch):
        n += 1
    assert n == 16  # 64 KiB, of which a batch of 3,200 bytes takes a page
    small.close()


def test_claims() -> None:
    claims = CurrentWorkTable(np.zeros(3 * CURRENT_WORK_BYTES, np.uint8).data)
    claims.write(1, 4, 5, 77, 10, 11)
    claims.clear(0)
    claims.clear(2)
    assert [claims.read(worker_id) for worker_id in (0, 2)] == [None, None]
    take = claims.read(1)
    assert take is not None
    assert take[:5] == (4, 5, 77, 10, 11)
    claims.clear(1)
    assert claims.read(1) is None


@pytest.mark.parametrize(("n_rows", "rows_per_task"), [(256, 8), (7, 3), (1, 1), (100_000, 1), (129, 1)])
def test_a_batch_is_cut_into_tasks_that_cover_it(n_rows: int, rows_per_task: int) -> None:
    bounds = split_into_tasks(n_rows, rows_per_task).bounds
    assert len(bounds) <= MAX_TASKS
    assert bounds[0][0] == 0
    assert bounds[-1][1] == n_rows
    assert all(stop == start for (_, stop), (start, _) in pairwise(bounds))
