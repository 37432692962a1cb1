"""Nothing hangs: who is stuck, stopped, or cannot be killed is ended or named, and who waits costs nothing."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import SampleError, StallError
from ringload.workers import supervisor as pool_module
from tests.conftest import Injected, Times
from tests.deaths import METHODS, Gated, N, Slow, epochs, first, first_time, kill_all, loader, members, rest, sleep_in_c, stall
from tests.helpers import Truth, TruthRows, check, content

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def expected() -> list[dict[str, bytes]]:
    with loader(Truth(N), workers=0) as made:
        return epochs(made, 3)


STUCK: dict[str, Callable[[], None]] = {"sleeps in C": sleep_in_c, "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP)}


class Stuck(Truth):
    """One sample does not come to an end: the first time, or always."""

    def __init__(self, way: str, marker: Path | None) -> None:
        super().__init__(N)
        self.way, self.marker = way, marker

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index == 13 and (self.marker is None or first_time(self.marker)):
            STUCK[self.way]()


class StuckRows(Stuck):
    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        TruthRows.load_rows(self, indices, rngs, out)
        if 13 in indices and (self.marker is None or first_time(self.marker)):
            STUCK[self.way]()

    load = None  # type: ignore[assignment]


KINDS = pytest.mark.parametrize("kind", [Stuck, StuckRows])
WAYS = pytest.mark.parametrize("way", STUCK)


@KINDS
@WAYS
def test_who_takes_too_long_once_changes_nothing(
    way: str, kind: Any, tmp_path: Path, expected: Any, injected: Injected
) -> None:
    with loader(kind(way, tmp_path / "stuck"), sample_timeout=0.3) as made:
        assert epochs(made, 3) == expected
        assert 1 <= made.stats.n_restarts <= 3  # on a busy machine others may take long, too
    injected(f"a worker {way} while it loads, with sample_timeout", 1)


@KINDS
@WAYS
def test_who_always_takes_too_long_is_bad(way: str, kind: Any, expected: Any, injected: Injected) -> None:
    for on_error in ("skip", "replace", "raise") if (kind, way) == (Stuck, "sleeps in C") else ("skip",):
        with loader(kind(way, None), sample_timeout=0.15, on_error=on_error, shuffle=False) as made:
            iterator, caught = iter(made), []
            while True:
                try:
                    seen = check(next(iterator))
                    assert 13 not in seen
                except SampleError as error:
                    caught.append(error)
                except StopIteration:
                    break
            if on_error == "raise":
                assert [error.index for error in caught] == [13]
                assert "ended by ringload after sample_timeout=0.15 s" in str(caught[0])
            else:
                assert not caught
            assert [bad.index for bad in made.stats.bad] == [13]
            assert 2 + (kind is StuckRows) <= made.stats.n_restarts <= 6
            injected(f"a worker {way} while it loads, with sample_timeout", made.stats.n_restarts)


@KINDS
@WAYS
def test_a_stall_names_who_is_stuck_on_what(way: str, kind: Any, tmp_path: Path, expected: Any, injected: Injected) -> None:
    """Nobody ends them without a time-out. A stopped one goes on when it is continued, and so does the run."""
    with loader(kind(way, tmp_path / "stuck"), stall_timeout=0.5) as made:
        iterator = iter(made)
        stuck = "sample 13" if kind is Stuck else r"rows \d+ to \d+"
        found, said = stall(iterator, rf"worker \d \(pid \d+\) has had {stuck} of batch \d of epoch 0 in hand for \d+ s")
        assert said.startswith("nothing was finished for 0.5 s: ")
        assert f"of batch {len(found)} of" in said
        assert bool(re.search(r"; worker \d \(pid \d+\) is stopped by a signal", said)) == (way == "is stopped")
        for pid in members(made)[1:]:
            os.kill(pid, signal.SIGCONT if way == "is stopped" else signal.SIGKILL)
        assert found + rest(iterator) == expected[:10]
        assert (made.stats.n_restarts == 0) == (way == "is stopped")
    injected(f"a worker {way} while it loads", 1)


# -- stopped from outside ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 3])
def test_stopped_workers_are_named_and_go_on_when_continued(
    workers: int, times: Times, injected: Injected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringload.ring.plan.AUTO_SLOTS", 3)  # or all batches might be there before they are stopped
    with loader(Slow(N), workers=workers, stall_timeout=0.3, ram_budget="auto") as made, loader(Truth(N), workers=0) as calm:
        for _ in range(times(2, 50)):
            batches = iter(made)
            found = first(batches)
            while len(pids := members(made)[1:]) < workers:
                time.sleep(0.002)
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            more, said = stall(batches, "is stopped")
            for pid in pids:
                assert f"(pid {pid}) is stopped by a signal" in said
                os.kill(pid, signal.SIGCONT)
            assert found + more + rest(batches) == content(calm)
            injected("SIGSTOP of all workers, then SIGCONT", len(pids))
        assert made.stats.n_restarts == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_server_is_named_and_goes_on_when_continued(
    method: Any, tmp_path: Path, expected: Any, injected: Injected
) -> None:
    """Nobody misses it until there is a death, of which it does not tell."""
    with loader(Gated(tmp_path / "gate"), workers=1, stall_timeout=0.5, start_method=method) as made:
        iterator = iter(made)
        found, _ = stall(iterator, "has had sample 32 of batch")
        server, worker = members(made)
        os.kill(server, signal.SIGSTOP)
        (tmp_path / "gate").touch()
        for _ in range(2):  # as often as one asks
            more, said = stall(iterator, rf"worker 0 \(pid {worker}\) is dead")
            assert not more
            assert f"the fork server (pid {server}) is stopped by a signal" in said
            assert "has had sample 32 of batch" in said
        os.kill(server, signal.SIGCONT)
        assert found + rest(iterator) == expected[:10]
        assert made.stats.n_restarts == 1
    injected("SIGSTOP of the server, and a death that it does not report", 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_server_that_stays_stopped_is_replaced_with_who_takes_too_long(
    method: Any, tmp_path: Path, expected: Any, injected: Injected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "END_S", 0.3)
    with loader(Gated(tmp_path / "gate"), workers=1, stall_timeout=0.5, start_method=method) as made:
        iterator = iter(made)
        found, _ = stall(iterator, "has had sample 32 of batch")
        os.kill(members(made)[0], signal.SIGSTOP)
        (tmp_path / "gate").touch()
        made._engine._state.settings = replace(made._engine._state.settings, sample_timeout=0.3, stall_timeout=20)
        assert found + rest(iterator) == expected[:10]
        assert made.stats.n_restarts == 1
    injected("SIGSTOP of the server, and a death that it does not report", 1)


# -- taking turns -----------------------------------------------------------------------------------------------------


class InTurn(Truth):
    """Samples are loaded by one worker at a time. One hangs when it is its turn, once, if `marker` is given."""

    def __init__(self, marker: Path | None = None) -> None:
        super().__init__(N)
        self.marker = marker

    def start(self, worker: Any) -> None:
        self.exclusive = worker.exclusive

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        with self.exclusive():
            super().load(index, rng, out)
            if index == 13 and self.marker is not None and first_time(self.marker):
                sleep_in_c()


class InTurnRows(InTurn):
    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        with self.exclusive():
            TruthRows.load_rows(self, indices, rngs, out)
            if 13 in indices and self.marker is not None and first_time(self.marker):
                sleep_in_c()

    load = None  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [InTurn, InTurnRows])
def test_who_waits_for_its_turn_takes_no_time_for_its_sample(
    kind: Any, tmp_path: Path, expected: Any, injected: Injected
) -> None:
    """It is no worker that has the turn here, but this process, until nothing was finished for long enough."""
    with loader(kind(), sample_timeout=0.1, stall_timeout=1.5) as made:
        ring = made._engine._state.workers._supervisor._job.ring_fd
        fcntl.lockf(ring, fcntl.LOCK_EX)
        iterator = iter(made)
        assert stall(iterator, r"worker \d \(pid \d+\)")[0] == []
        assert made.stats.n_restarts == 0
        fcntl.lockf(ring, fcntl.LOCK_UN)
        made._engine._state.settings = replace(made._engine._state.settings, sample_timeout=20, stall_timeout=20)
        assert rest(iterator) == expected[:10]
    injected("waiting for the exclusive turn, longer than sample_timeout", 1)
    with loader(kind(tmp_path / "stuck"), sample_timeout=0.3) as made:
        assert epochs(made, 3) == expected
        assert made.stats.n_restarts >= 1  # who has the turn is ended as any other
    injected("a worker sleeps in C while it loads, with sample_timeout", 1)


# -- the start --------------------------------------------------------------------------------------------------------


class SlowStart(Truth):
    """Its workers' start waits for a file."""

    def __init__(self, gate: Path) -> None:
        super().__init__(N)
        self.gate = gate

    def start(self, worker: Any) -> None:
        while not self.gate.exists():
            time.sleep(0.002)


@pytest.mark.parametrize("method", METHODS)
def test_a_slow_start_is_no_samples_fault(method: Any, tmp_path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it count for stall_timeout: it has a limit of its own."""
    monkeypatch.setattr("ringload.engine.waiting.START_S", 1.0)
    options: dict[str, Any] = {"start_method": method, "stall_timeout": 0.3, "sample_timeout": 0.3}
    with loader(SlowStart(tmp_path / "gate"), **options) as made:
        iterator = iter(made)
        with pytest.raises(StallError, match=r"no worker has begun to load for 1 s: no worker has anything in hand"):
            next(iterator)
        assert made.stats.n_restarts == 0
        (tmp_path / "gate").touch()
        assert rest(iterator) == expected[:10]


def test_a_kill_during_a_slow_start_costs_no_more_than_that(expected: Any, tmp_path: Path, injected: Injected) -> None:
    """Those that are started then have the same time to start as the first."""
    with loader(SlowStart(tmp_path / "gate"), stall_timeout=0.3) as made:

        def kill_twice() -> None:
            for _ in range(2):
                while len(there := members(made)) < 3:
                    time.sleep(0.001)
                kill_all(there[1:])
                time.sleep(0.7)
            (tmp_path / "gate").touch()

        killing = threading.Thread(target=kill_twice)
        killing.start()
        assert content(made) == expected[:10]
        killing.join()
        assert made.stats.n_restarts >= 2
    injected("kill -9 of all workers at once", 1)


class StuckAhead(Truth):
    """Asking for a sample ahead does not come to an end, the first time."""

    def __init__(self, marker: Path) -> None:
        super().__init__(N)
        self.marker = marker

    def prefetch(self, indices: np.ndarray) -> None:
        if 13 in indices and first_time(self.marker):
            sleep_in_c()


def test_who_hangs_while_it_asks_ahead_is_named_or_ended(tmp_path: Path, expected: Any, injected: Injected) -> None:
    with loader(StuckAhead(tmp_path / "one"), stall_timeout=0.5) as made:
        stall(iter(made), r"\(pid \d+\) has had rows \d+ to \d+ of batch \d+ of epoch 0 in hand")
    with loader(StuckAhead(tmp_path / "two"), sample_timeout=0.1) as made:
        assert epochs(made, 3) == expected
        assert made.stats.n_restarts == 1
    injected("a worker sleeps in C while it asks for files ahead", 2)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_thousands_of_killers_are_told_to_who_starts(method: Any, expected: Any, injected: Injected) -> None:
    """Their message is longer than a packet of the server's was; and one argument holds it."""
    with loader(Truth(N), start_method=method, restarts=3, ram_budget="auto") as made:
        iterator = iter(made)
        found = first(iterator)
        how = "killed its worker 2 times in a row (SIGSEGV: a crash in native code)"
        made._engine._state.blame._poison_samples.update({1_000_000_000 + n: how for n in range(9000)})
        kill_all(members(made)[1:])
        for _ in range(6):
            for batch in made:
                check(batch)
        assert made.stats.n_restarts in (1, 2)
        assert found == expected[:1]
    injected("kill -9 of all workers at once", 2)
