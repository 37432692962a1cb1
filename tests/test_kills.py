"""SIGKILL at random moments, of anybody: a worker, several at once, the server, whoever takes their place, the trainer."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ringload import Batch, Loader
from ringload.engine.recovery import Recovery
from ringload.workers.processes import ProcessWorkers
from ringload.workers.supervisor import WorkerSupervisor
from tests.conftest import Injected, Times, descriptors, mapped
from tests.deaths import METHODS, Gated, N, Slow, Tripwire, kill_all, loader, members
from tests.helpers import Truth, TruthRows, check, content

pytestmark = pytest.mark.fault
RSS_BYTES = 16 << 20  # how much more memory a trainer may have after a thousand deaths than after a few


def forever(made: Loader) -> Iterator[Batch]:
    while True:
        yield from made


@pytest.fixture(autouse=True)
def small_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few slots that the trainer soon needs those who were killed."""
    monkeypatch.setattr("ringload.ring.plan.AUTO_SLOTS", 6)


class Killer:
    """Kills processes of a loader's, at a random moment after it was told to."""

    def __init__(self, made: Loader, seed: int, at_once: int = 1) -> None:
        self._made, self._rng, self._at_once = made, random.Random(seed), at_once
        self.n_kills = 0
        self._told, self._end = threading.Event(), False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def tell(self) -> None:
        self._told.set()

    def stop(self) -> None:
        self._end = True
        self._told.set()
        self._thread.join()

    def _run(self) -> None:
        while self._told.wait() and not self._end:
            self._told.clear()
            time.sleep(self._rng.uniform(0, 0.02))  # the random moment
            pool = self._made._engine._state.workers._supervisor
            victims = sorted({*members(self._made), *pool.pids})  # a trainer that does not wait misses no server
            self.n_kills += kill_all(self._rng.sample(victims, min(self._at_once, len(victims))))


def run_under_fire(source: Any, method: Any, n_kills: int, at_once: int = 1, workers: int = 2) -> tuple[int, int]:
    """Iterate until so many were killed, each after some progress. Returns (kills, samples that were wrong)."""
    n_wrong, flat_from = 0, 0
    with (
        loader(Truth(len(source)), workers=0) as calm,
        loader(source, start_method=method, workers=workers, stall_timeout=60, ram_budget="auto") as made,
    ):
        killer = Killer(made, n_kills, at_once)
        try:
            for batch, right in zip(forever(made), forever(calm), strict=False):
                check(batch)
                n_wrong += 0 if content([batch]) == content([right]) else len(batch.index)
                if killer.n_kills >= n_kills:
                    break
                killer.tell()
                if not flat_from and killer.n_kills >= n_kills // 10:
                    gc.collect()
                    flat_from, fds = psutil.Process().memory_info().rss, descriptors()
        finally:
            killer.stop()
        check(next(iter(made)))  # it goes on when they have stopped
        assert made.stats.n_bad == 0  # who is killed from outside by chance makes no sample bad
        assert made.stats.n_restarts >= n_kills // 4  # several may hit one reset
        gc.collect()
        assert psutil.Process().memory_info().rss - flat_from < RSS_BYTES
        assert sum((descriptors() - fds).values()) <= 1  # of what is about to be freed
    return killer.n_kills, n_wrong


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Slow, TruthRows])
def test_kills_at_random_moments(kind: Any, method: Any, times: Times, injected: Injected) -> None:
    n = times(8, 20) if kind is TruthRows else times(25 if method != "spawn" else 8, 40)
    injected(f"kill -9 of a worker or the server at a random moment ({method})", *run_under_fire(kind(600), method, n))


@pytest.mark.stress
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("method", METHODS)
def test_a_thousand_kills_in_one_run(method: Any, injected: Injected) -> None:
    done = run_under_fire(Slow(600), method, 1000)
    injected(f"kill -9 of a worker or the server at a random moment ({method})", *done)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("at_once", [2, 3])
def test_several_are_killed_at_once(at_once: int, times: Times, injected: Injected) -> None:
    done = run_under_fire(Slow(600), "forkserver", times(10, 200), at_once, workers=4)
    injected("kill -9 of two or three processes at once", *done)


def test_all_die_while_nobody_asks(injected: Injected) -> None:
    with loader(Truth(N), workers=0) as made:
        expected = content(made)
    with loader(Truth(N), ram_budget="auto") as made:  # so few slots that those who died are missed
        iterator = iter(made)
        first = content([next(iterator)])
        for n_spared in (1, 0):  # the workers; then the server too
            injected("kill -9 of all workers at once", kill_all(members(made)[n_spared:]))
            first += content([next(iterator)])
        assert first + content(iterator) == expected


def test_the_lent_are_not_written_to_after_a_death(times: Times, injected: Injected) -> None:
    with loader(Truth(N * 20), restarts=None) as made:
        iterator, kept = iter(made), []
        for _ in range(times(3, 30)):
            kept += [next(iterator) for _ in range(4)]
            before = content(kept)
            injected("kill -9 of all workers at once", kill_all(members(made)))
            check(next(iterator))
            assert content(kept) == before
        for batch in kept:
            check(batch)


def test_a_seek_and_then_a_death_loses_no_slot(tmp_path: Path, injected: Injected) -> None:
    """Who had a task in hand of a slot that the seek gave up dies, and with it the report that would have freed the slot."""
    options: dict[str, Any] = {"workers": 1, "shuffle": False, "stall_timeout": 20, "ram_budget": "auto"}
    source = Gated(tmp_path / "gate", index=0)
    with loader(Truth(N), workers=0, shuffle=False) as calm, loader(source, **options) as made:
        while not made._engine._state.workers.current_work():
            time.sleep(0.002)
        made.set_epoch(1)
        calm.set_epoch(1)
        (tmp_path / "gate").touch()
        n_slots = made.plan().n_slots
        held = list(itertools.islice(made, n_slots))  # every slot at once
        assert content(held) == content(itertools.islice(calm, n_slots))
        assert made.stats.n_restarts == 1
    injected("a death with a task in hand of a slot that a seek gave up", 1)


# -- while the trainer is at it ---------------------------------------------------------------------------------------

WITH_WORKERS = [Recovery.recover, ProcessWorkers.clear, WorkerSupervisor.events, WorkerSupervisor.clear, WorkerSupervisor._note]
WITHOUT = [
    Recovery.handle,
    ProcessWorkers.forget,
    ProcessWorkers.start,
    WorkerSupervisor.start,
    WorkerSupervisor._start_server,
    WorkerSupervisor._end_server,
]
RESETTING = [
    *((who, function) for function in WITH_WORKERS for who in ("a worker", "all")),
    *(("the server", function) for function in WITHOUT),
]


@pytest.mark.parametrize(("who", "function"), RESETTING, ids=lambda value: getattr(value, "__qualname__", value))
def test_a_kill_during_a_reset(who: str, function: Any, tmp_path: Path, injected: Injected) -> None:
    """A death starts a reset; before a line of it that has not had its turn, others are killed too."""
    trainer, armed, n_kills = os.getpid(), False, 0

    def act(line: int) -> bool:
        nonlocal armed, n_kills
        if not armed or os.getpid() != trainer:
            return False
        found = members(made)
        victims = found if who == "all" else found[:1] if who == "the server" else found[1:2]
        if victims:
            n_kills += kill_all(victims)
            armed = False
        return bool(victims)

    wire = Tripwire(function, tmp_path / "wire", act)
    options: dict[str, Any] = {"start_method": "fork", "stall_timeout": 20, "ram_budget": "auto"}
    # Slow: a trainer that never waits hears of no death, and needs not.
    with loader(Truth(N), workers=0) as calm, loader(Slow(N, 0.003), **options) as made:
        pairs = zip(forever(made), forever(calm), strict=False)
        check(next(pairs)[0])
        n_idle = 0
        with wire:
            while wire.untripped and n_idle < 2:
                n_before = n_kills
                for deaths in (slice(1, 2), slice(0, 3)):  # a worker's, then the server's and its workers'
                    n_restarts, n_first, armed = made.stats.n_restarts, 0, True
                    while made.poll().n_restarts == n_restarts:
                        n_first = n_first or kill_all(members(made)[deaths])
                        batch, right = next(pairs)
                        check(batch)
                        assert content([batch]) == content([right])
                n_idle = n_idle + 1 if n_kills == n_before else 0
        assert len(wire.tripped) > 0
        for _ in range(20):
            batch, right = next(pairs)
            assert content([batch]) == content([right])
    injected("kill -9 of the server or new workers during a reset, before each line of it", n_kills)


# -- the trainer ------------------------------------------------------------------------------------------------------

TRAINER = """
import sys
from tests.deaths import Slow, loader
from tests.helpers import check
print("running", flush=True)
made = loader(Slow(600), start_method=sys.argv[1])
while True:
    for batch in made:
        check(batch)
"""


def start_trainer(method: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINER), method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS)
def test_the_trainer_is_killed_at_a_random_moment(method: str, times: Times, injected: Injected) -> None:
    """While it starts its server, while that starts workers, while it trains: nothing is left, nothing is said."""
    rng = random.Random(method)
    for n in range(times(2, 67)):
        process = start_trainer(method)
        time.sleep(rng.uniform(0, 0.8))  # the random moment
        if n % 2:
            for entry in mapped():
                if (pid := int(entry.split()[0])) != process.pid:
                    os.kill(pid, signal.SIGSTOP)  # also those that are stopped shall end
        process.kill()
        killed_s = time.monotonic()
        _, said = process.communicate(timeout=20)
        assert said == ""
        while left := mapped():
            assert time.monotonic() - killed_s < 1.0, f"left a second after the trainer's end: {left}"
            time.sleep(0.005)
        injected(f"kill -9 of the trainer at a random moment ({method})", 1)
