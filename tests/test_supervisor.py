"""Workers as processes: started, killed, reaped, under every start method. No batches here."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from ringload import Field, RingloadError
from ringload.packing.pack import pack
from ringload.protocols import Event, Job
from ringload.ring.layout import Layout
from ringload.ring.plan import Room
from ringload.system.deaths import Death
from ringload.system.segment import Segment
from ringload.workers import supervisor as pool_module
from ringload.workers.channel import Channel
from ringload.workers.fork_server import PAUSES, START_S, ForkServer
from ringload.workers.start import Start
from ringload.workers.supervisor import WorkerSupervisor
from ringload.workers.worker import WorkerJob
from tests.helpers import Truth

METHODS = ["forkserver", "spawn", "fork"]
ROOM = Room(1 << 40, 1)


class Setup:
    """A pool with all that it needs, of which 2 of 6 slots are reserved."""

    def __init__(self, method: Any, source: Any = None) -> None:
        self.source = source or Truth(20)
        self.layout = Layout(
            {"image": Field((8, 6, 3), "u1"), "label": Field((), "i8"), "draw": Field((), "i8")}, 4, 6, 2, False
        )
        self.ring = Segment(self.layout.n_bytes)
        self.ring.reserve(0, self.layout.slots_start + 2 * self.layout.slot_bytes)
        self.channel = Channel()
        packed = pack(self.source)
        data = self.source if method == "fork" else packed.data
        job = WorkerJob(Job(data, self.layout, 0, 20, "raise", 1 << 20), self.ring.fd, self.channel.for_workers, ROOM)
        self.pool = WorkerSupervisor(job, [self.ring], method, ())
        self.heard = Event([])

    def close(self) -> None:
        self.pool.close()
        self.channel.close()


@pytest.fixture(params=METHODS)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    made = Setup(request.param)
    made.pool.start(Start(2), 2)
    yield made
    made.close()


def hear(setup: Setup, enough: Any, timeout_s: float = 20) -> Event:
    """Listen until `enough` of what was heard so far is true."""
    heard, deadline_s = setup.heard, time.monotonic() + timeout_s
    while not enough(heard):
        assert time.monotonic() < deadline_s, f"heard only {heard}"
        select.select([setup.pool.fd], [], [], 1)
        event = setup.pool.events()
        heard.died += event.died
        heard.n_reserved = event.n_reserved or heard.n_reserved
        heard.server_died |= event.server_died
    return heard


def started(setup: Setup, n: int = 2) -> list[int]:
    hear(setup, lambda _: len(setup.pool.pids) == n)
    return setup.pool.pids


def alive(*pids: int) -> bool:
    """Whether any of them lives. One that has given up its memory and descriptors is given the moment until its end."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([pidfd], [], [], 1)[0]:
                return True
        finally:
            os.close(pidfd)
    return False


def test_workers_start_and_the_ring_is_reserved(setup: Setup) -> None:
    pids = started(setup)
    assert hear(setup, lambda heard: heard.n_reserved == 6).died == []
    assert all(psutil.Process(pid).ppid() == setup.pool.server_pid for pid in pids)
    assert os.fstat(setup.ring.fd).st_blocks * 512 == setup.layout.n_bytes
    assert os.getpgid(pids[0]) == setup.pool.server_pid != os.getpgid(0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_death_is_told_with_its_status(setup: Setup, number: int) -> None:
    pids = started(setup)
    os.kill(pids[1], number)
    event = hear(setup, lambda heard: heard.died)
    assert event.died == [Death(1, pids[1], number)]
    assert not event.server_died


def test_clear_leaves_nobody_and_start_begins_again(setup: Setup) -> None:
    for _ in range(3):
        pids = started(setup)
        os.kill(pids[0], signal.SIGSTOP)  # a stopped one dies too
        server = setup.pool.server_pid
        assert not setup.pool.clear().server_died
        assert not alive(*pids)
        assert setup.pool.server_pid == server
        setup.pool.start(Start(2), 6)


def test_the_servers_death_takes_all_with_it_and_clear_replaces_it(setup: Setup) -> None:
    pids, server = started(setup), setup.pool.server_pid
    os.kill(server, signal.SIGKILL)
    hear(setup, lambda heard: heard.server_died)
    setup.pool.clear()
    assert not alive(*pids)
    setup.pool.start(Start(2), 6)
    assert setup.pool.server_pid != server
    assert not set(started(setup)) & set(pids)


def test_a_stopped_server_is_replaced(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "END_S", 0.3)
    pids, server = started(setup), setup.pool.server_pid
    os.kill(server, signal.SIGSTOP)
    setup.pool.clear()
    assert not alive(*pids, server)


def test_close_is_quick_whatever_they_do(setup: Setup) -> None:
    pids = started(setup)
    os.kill(pids[0], signal.SIGSTOP)
    os.kill(setup.pool.server_pid, signal.SIGSTOP)
    server = setup.pool.server_pid
    setup.close()
    setup.pool.close()
    assert not alive(*pids, server)


def test_close_before_anything_has_started() -> None:
    for method in METHODS:
        made = Setup(method)
        made.close()
        made = Setup(method)
        made.pool.start(Start(2), 2)
        made.close()


def test_a_fork_of_the_trainer_lets_go(setup: Setup) -> None:
    """The child neither signals the workers nor keeps their lifeline open."""
    pids = started(setup)
    child = os.fork()
    if child == 0:
        setup.pool.close()
        signal.pause()
    assert alive(pids[0])
    assert alive(pids[1])
    setup.close()
    assert not alive(*pids)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


class BadStart(Truth):
    def start(self, worker_id: Any) -> None:
        raise RuntimeError(f"no luck in {worker_id.id} of {worker_id.n_workers}")


@pytest.mark.parametrize("method", METHODS)
def test_a_source_that_does_not_start_is_told_with_its_traceback(method: Any) -> None:
    made = Setup(method, BadStart(20))
    made.pool.start(Start(2), 6)
    event = hear(made, lambda heard: len(heard.died) == 2)
    assert {death.status for death in event.died} == {256}
    words, _ = made.channel.results()
    assert sorted(word.text.strip().splitlines()[-1] for word in words) == [
        f"RuntimeError: no luck in {n} of 2" for n in (0, 1)
    ]
    made.close()


def test_a_server_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    made = Setup("forkserver")
    made.pool._preload = ("ringload.nowhere",)
    made.pool.start(Start(2), 6)
    hear(made, lambda heard: heard.server_died)
    with pytest.raises(RingloadError, match="the fork server ended at its start"):
        made.pool.clear()
    assert "No module named 'ringload.nowhere'" in capfd.readouterr().err
    made.close()


def test_nobody_spins_while_there_is_nothing_to_do(setup: Setup) -> None:
    pids = started(setup)
    hear(setup, lambda heard: heard.n_reserved == 6)
    processes = [psutil.Process(pid) for pid in [*pids, setup.pool.server_pid]]

    def used_s() -> list[float]:
        return [sum(process.cpu_times()[:2]) for process in processes]

    deadline_s, before = time.monotonic() + 30, used_s()
    time.sleep(0.3)
    while before != (now := used_s()):  # they still import
        assert time.monotonic() < deadline_s
        before = now
        time.sleep(0.3)
    time.sleep(1.0)
    assert used_s() == before


def test_workers_are_told_by_their_names(setup: Setup) -> None:
    pids = started(setup)
    deadline_s = time.monotonic() + 20
    names = {"ringload:0", "ringload:1"}
    while {psutil.Process(pid).name() for pid in pids} != names:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert np.array(pids).min() > 0


def test_reserving_pauses_in_the_first_second_only() -> None:
    server = object.__new__(ForkServer)
    server._begin_s, server._took_s = time.monotonic(), 0.01
    assert server._pause_ms() == pytest.approx(PAUSES * 10)
    server._took_s = 100.0  # of slots of many gigabytes: no pause is longer than what is left
    assert 0 < server._pause_ms() <= START_S * 1000
    server._begin_s -= START_S
    assert server._pause_ms() == 0
