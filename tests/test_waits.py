"""Who waits costs nothing and waits for nothing twice: an absent trainer, jumping clocks, pipes that are too small."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import Batch, Loader
from ringload.engine.schedule import MAX_HOUSEKEEPING_EVERY
from ringload.workers import channel as channel_module
from ringload.workers.records import TASK
from tests.conftest import Injected, Times
from tests.deaths import Gated, N, Slow, epochs, first_time, kill_all, loader, members, sleep_in_c
from tests.helpers import Truth, TruthRows, check, content, run_quietly

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def expected() -> list[dict[str, bytes]]:
    with loader(Truth(N), workers=0) as made:
        return epochs(made, 3)


class Sleepy(Truth):
    """One sample does not come to an end, the first time."""

    def __init__(self, marker: Path) -> None:
        super().__init__(N)
        self.marker = marker

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index == 13 and first_time(self.marker):
            sleep_in_c()


def cpu_s(pids: list[int]) -> float:
    """The CPU time that they have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def sizes(pids: list[int]) -> list[str]:
    """The memory that they have."""
    return [Path(f"/proc/{pid}/statm").read_text() for pid in pids]


def once_quiet(pids: list[int]) -> tuple[float, list[str]]:
    """Wait until all have started. Returns the CPU time that they have used, and the memory that they have."""
    used = (0.0, [""])
    for _ in range(100):
        if used == (used := (cpu_s(pids), sizes(pids))):
            return used
        time.sleep(0.2)
    raise AssertionError("they never come to rest")


def forever(made: Loader) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from made


@pytest.mark.parametrize(("kind", "method"), [(Truth, "forkserver"), (TruthRows, "spawn"), (Truth, "fork")])
def test_an_absent_trainer_costs_no_cpu(
    kind: Any, method: Any, times: Times, injected: Injected, monkeypatch: pytest.MonkeyPatch, expected: Any
) -> None:
    monkeypatch.setattr("ringload.ring.plan.AUTO_SLOTS", 5)
    with loader(kind(N), ram_budget="auto", start_method=method) as made:
        iterator = iter(made)
        found = content([next(iterator)])
        while made.poll().n_full < 4:  # and the fifth was just lent
            time.sleep(0.002)
        pids, wait_s = members(made), times(3 if method == "forkserver" else 1, 30)
        used = once_quiet(pids)
        time.sleep(wait_s)
        assert cpu_s(pids) - used[0] < 0.05
        assert sizes(pids) == used[1]
        assert found + content(iterator) == expected[:10]
    injected("seconds without a trainer, the ring full", wait_s)
    assert made.stats.n_restarts == 0


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.stress), "fork"])
def test_a_slow_trainer_costs_no_more_cpu_than_its_batches(
    method: Any, times: Times, injected: Injected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the ring is full, who waits for a slot sleeps: a batch costs the workers what it costs, however late it comes."""
    monkeypatch.setattr("ringload.ring.plan.AUTO_SLOTS", 5)
    n_steps, used_s = times(8, 100), 0.0
    with loader(Truth(N), ram_budget="auto", start_method=method) as made, loader(Truth(N), workers=0) as calm:
        batches, twins = forever(made), forever(calm)
        for step in range(n_steps):
            assert content([next(batches)]) == content([next(twins)])  # nothing is lent any more
            while made.poll().n_full < 5:
                time.sleep(0.002)
            pids = members(made)
            before_s = once_quiet(pids)[0] if step == 0 else cpu_s(pids)
            time.sleep(0.1)  # what it is slow by
            used_s += cpu_s(pids) - before_s
        assert used_s < n_steps * 0.1 / 10  # who spins uses all of it
        assert made.stats.n_restarts == 0
        del batches, twins
    injected("steps of a slow trainer, the ring full", n_steps)


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, expected: Any, injected: Injected, monkeypatch: Any) -> None:
    jumps = iter(range(0, -(10**12), -86_400 * 365))
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, lambda: 1e9 + next(jumps))
    with loader(Sleepy(tmp_path / "stuck"), sample_timeout=0.3, stall_timeout=20, restarts=3) as made:
        assert epochs(made, 3) == expected
        assert made.stats.n_restarts == 1
    injected("a clock that jumps by years at each look", 1)


# -- pipes that are small ---------------------------------------------------------------------------------------------


@pytest.fixture
def one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipes of one page: the records of one batch of 128 tasks, no more."""
    monkeypatch.setattr(channel_module, "PIPE_BYTES", 4096)


class Wordy(Truth):
    """Every third sample is bad, and much is said about it."""

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index % 3 == 0:
            raise ValueError("so much to say " * 200)


@pytest.mark.usefixtures("one_page")
def test_more_is_said_than_the_pipe_holds_while_nobody_listens(injected: Injected) -> None:
    """Workers wait for room, and the trainer, which posts more meanwhile, does not wait for them."""
    options: dict[str, Any] = {"on_error": "skip", "max_bad": 10**6, "stall_timeout": 20}
    with loader(Wordy(2000), workers=0, **options) as calm, loader(Wordy(2000), **options) as made:
        for _ in range(2):
            assert epochs(made, 1) == epochs(calm, 1)
        assert made.stats.n_bad == calm.stats.n_bad
        injected("pipes of one page: reports of bad samples", made.stats.n_bad)


@pytest.mark.usefixtures("one_page")
@pytest.mark.timeout(300)
def test_more_tasks_than_the_pipe_holds_and_deaths(times: Times, injected: Injected) -> None:
    """After a reset more is to be posted again than there is room for: the rest is posted when there is."""
    options: dict[str, Any] = {"ram_budget": "1GB", "seed": 3, "stall_timeout": 10, "restarts": None, "shuffle": False}
    source = Slow(1024 * 12, 0.00002)
    n_kills = 0
    with Loader(Truth(len(source)), 1024, workers=0, seed=3, shuffle=False) as calm, Loader(source, 1024, **options) as made:
        for _ in range(times(2, 40)):
            for batch, right in zip(made, calm, strict=True):
                check(batch)
                assert content([batch]) == content([right])
                if batch.number % 6 == 1:
                    n_kills += kill_all(members(made)[1:])
    injected("pipes of one page: kill -9 of all workers at once", n_kills)


@pytest.mark.usefixtures("one_page")
def test_what_does_not_fit_again_is_posted_when_there_is_room(tmp_path: Path, injected: Injected) -> None:
    """The pipe is full, one more is in hand, and who has it dies: that is more than fits. The trainer gives nothing back."""
    n_posted = 2 * MAX_HOUSEKEEPING_EVERY  # at first, and by iter()
    source = Gated(tmp_path / "gate", 2000, 6 * n_posted - 1)  # the last sample of that
    options: dict[str, Any] = {"workers": 1, "shuffle": False, "stall_timeout": 10}
    with loader(source, **options) as made, loader(Truth(source.n), workers=0, shuffle=False) as calm:
        engine, iterator, n_before, n = made._engine, iter(made), -1, 0
        while not any(claim.sample == source.index for _, claim in engine._state.workers.current_work().values()):
            time.sleep(0.002)
        while n_before < n:  # until there is no room for more
            n_before, n = n, engine._state.ring.n_in_flight
            engine.poll()
        assert n == n_posted + channel_module.PIPE_BYTES // TASK.size
        (tmp_path / "gate").touch()
        kept = list(itertools.islice(iterator, n))
        assert len(engine.counters.deaths) == 1
        assert content(kept) == content(itertools.islice(calm, n))
    injected("pipes of one page: kill -9 of all workers at once", 1)


REFUSED = """
    import ctypes, fcntl, os
    import cv2, numpy.testing
    from tests.deaths import SomeBad, epochs, loader
    options = {"on_error": "skip", "max_bad": 1000, "stall_timeout": 20}
    with loader(SomeBad(), workers=0, **options) as made:
        expected = epochs(made, 20)
    with loader(SomeBad(), workers=1, start_method="fork", **options) as made:
        next(iter(made))  # all is imported that there is
    os.setgid(65534); os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: /proc/self is this user's again
    kept = []
    try:
        while True:
            kept.append(os.pipe())
            fcntl.fcntl(kept[-1][1], fcntl.F_SETPIPE_SZ, 1 << 20)
    except PermissionError:
        pass
    n_bytes = fcntl.fcntl(os.pipe()[1], fcntl.F_GETPIPE_SZ)
    with loader(SomeBad(), workers=2, start_method="fork", **options) as made:
        print(epochs(made, 20) == expected, n_bytes)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be a user whose pipes are at their limit")
def test_a_user_whose_pipes_are_at_their_limit(injected: Injected) -> None:
    is_right, n_bytes = run_quietly(REFUSED).split()
    assert is_right == "True"
    assert int(n_bytes) < 1 << 16
    injected("F_SETPIPE_SZ is refused", 1)
