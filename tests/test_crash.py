"""Workers die: in every way, and before any line. The run goes on with the same bytes, or an error names what died of what.

Kills at random moments, and of the trainer, are in test_kills.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import Loader, LoaderClosedError, RingloadError, SampleError, StallError, TooManyBadSamplesError, WorkerDiedError
from ringload.bad_sample import Bad
from ringload.system.deaths import oom_kills
from ringload.workers import worker
from ringload.workers.channel import WorkerChannel
from ringload.workers.current_work import CurrentWorkTable
from ringload.workers.fill import Filler
from ringload.workers.fork_server import ForkServer, arm_lifeline, become_server
from ringload.workers.reading_ahead import ReadingAhead
from ringload.workers.tasks_ahead import TasksAhead
from ringload.workers.worker import _TaskLoop
from tests.conftest import Injected, Times
from tests.deaths import (
    METHODS,
    WAYS,
    Deadly,
    DeadlyRows,
    N,
    SomeBad,
    SomeBadRows,
    SomeBadThreads,
    Tripwire,
    epochs,
    first_time,
    kill_oneself,
    lines_of,
    loader,
)
from tests.helpers import Truth, TruthRows, check

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def expected() -> list[dict[str, bytes]]:
    with loader(Truth(N), workers=0) as made:
        return epochs(made, 3)


KINDS_AND_WAYS = [
    pytest.param(kind, way, marks=[pytest.mark.stress] if kind is DeadlyRows and way not in ("SIGKILL", "SIGSEGV") else [])
    for kind in (Deadly, DeadlyRows)
    for way in WAYS
]


@pytest.mark.parametrize(("kind", "way"), KINDS_AND_WAYS)
def test_who_dies_once_changes_nothing(way: str, kind: Any, tmp_path: Path, expected: Any, injected: Injected) -> None:
    with loader(kind(way, {0, 7, 31, 59}, tmp_path)) as made:
        assert epochs(made, 3) == expected
        assert len(list(tmp_path.iterdir())) == 4
        assert 1 <= made.stats.n_restarts <= 4  # one that dies while the others are ended is not told from them
    injected(f"a worker ends by {way} while it loads", 4)


CREWS = [
    pytest.param(workers, method, marks=[pytest.mark.stress] if workers * (method == "spawn") > 2 else [])
    for workers in (1, 2, 5, 13)
    for method in METHODS
]


@pytest.mark.parametrize(("workers", "method"), CREWS)
def test_deaths_with_any_number_of_workers(
    workers: int, method: Any, tmp_path: Path, expected: Any, injected: Injected
) -> None:
    with loader(Deadly("SIGKILL", {3, 20, 40}, tmp_path), workers=workers, start_method=method) as made:
        assert epochs(made, 3) == expected
        assert 1 <= made.stats.n_restarts <= 3
    injected("a worker ends by SIGKILL while it loads", 3)


# -- samples that kill ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "way"), KINDS_AND_WAYS)
def test_a_sample_that_always_kills_is_found_and_is_bad(way: str, kind: Any, injected: Injected) -> None:
    with loader(kind(way, {7, 31}), on_error="skip", shuffle=False) as made:
        for _ in range(2):
            seen = np.concatenate([check(batch) for batch in made])
            assert sorted(seen.tolist()) == sorted(set(range(N)) - {7, 31})
        assert {bad.index for bad in made.stats.bad} == {7, 31}
        for bad in made.stats.bad:
            assert "killed its worker" in bad.reason
            assert WAYS[way][1] in bad.reason
        injected(f"a worker ends by {way} while it loads", made.stats.n_restarts)


@pytest.mark.parametrize(("kind", "way"), [(Deadly, "SIGSEGV"), (DeadlyRows, "SIGSEGV"), (Deadly, "os._exit(0)")])
def test_a_sample_that_kills_is_raised_or_replaced(way: str, kind: Any, expected: Any, injected: Injected) -> None:
    with loader(kind(way, {7}), shuffle=False) as made:
        iterator = iter(made)
        next(iterator)
        with pytest.raises(SampleError, match=rf"sample 7: killed its worker 2 times in a row .*{WAYS[way][1]}") as caught:
            next(iterator)
        assert caught.value.index == 7
        assert [batch.number for batch in iterator] == list(range(2, 10))
        injected(f"a worker ends by {way} while it loads", made.stats.n_restarts)
    with loader(kind(way, {7}), on_error="replace") as made:
        found = epochs(made, 3)
        differing = [(batch, right) for batch, right in zip(found, expected, strict=True) if batch != right]
        for batch, right in differing:
            indices, rights = (np.frombuffer(one["index"], np.int64) for one in (batch, right))
            assert rights[indices != rights].tolist() == [7]
        assert [bad.index for bad in made.stats.bad] == [7] * len(differing) == [7] * 3
        injected(f"a worker ends by {way} while it loads", made.stats.n_restarts)


@pytest.mark.parametrize(("kind", "way"), [(Deadly, "SIGTERM"), (Deadly, "SIGKILL"), (DeadlyRows, "SIGKILL")])
def test_by_default_a_sample_that_kills_as_others_do_ends_the_run(way: str, kind: Any, injected: Injected) -> None:
    """It may be whoever sends the signals: so it is named as what was in hand, and not made bad."""
    for _ in range(5):
        n_before = oom_kills()
        with Loader(kind(way, {7}), 6, workers=1, ram_budget="600MB", shuffle=False) as made:  # two may be at it in two epochs
            iterator = iter(made)
            assert check(next(iterator)).tolist() == list(range(6))
            with pytest.raises(RingloadError) as caught:
                next(iterator)
        if oom_kills() == n_before:
            break
    else:
        pytest.skip("the kernel kills others for want of memory, again and again: then it is a suspect, too")
    error = caught.value
    assert isinstance(error, WorkerDiedError)
    assert error.samples == (7,)
    assert "while it had sample 7 of batch 1 of epoch 0 in hand. That is more than restarts=10 deaths" in str(error)
    assert error.cause.startswith(WAYS[way][1])
    assert made.stats.n_restarts == 11
    assert made.stats.n_bad == 0
    injected(f"a worker ends by {way} while it loads", 11)


class CountedRows(DeadlyRows):
    """Notes each call: how many samples it was for."""

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        assert self.folder is not None
        with open(self.folder / "calls", "a") as calls:
            calls.write(f"{len(indices)}\n")
        TruthRows.load_rows(self, indices, rngs, out)
        for index in self.deadly & set(indices.tolist()):
            WAYS[self.way][0]()
            raise AssertionError(f"sample {index} did not kill")


def test_isolating_a_sample_costs_three_deaths_and_one_batch(tmp_path: Path, injected: Injected) -> None:
    """The batch of a death in `load_rows` is loaded singly, no other; from then on only the task with the killer is."""
    with loader(CountedRows("SIGSEGV", {7}, tmp_path), workers=1, shuffle=False, on_error="skip", epochs=2) as made:
        for _ in range(2):
            assert sum(len(check(batch)) for batch in made) == N - 1
        assert made.stats.n_restarts == 3  # with several in hand, then twice alone
    calls = [int(line) for line in (tmp_path / "calls").read_text().split()]
    assert calls.count(1) <= 3 * 6 + 6  # three attempts at one batch at most; in the second epoch, the killer's task
    assert calls.count(6) >= 2 * 9  # all the other batches of both epochs, at once
    injected("a worker ends by SIGSEGV while it loads", 3)


def test_too_many_deaths_are_an_error_that_names_the_last(injected: Injected) -> None:
    with loader(Deadly("SIGKILL", range(N)), restarts=3) as made:
        with pytest.raises(WorkerDiedError, match=r"restarts=3 deaths within a minute, [45] in all") as caught:
            next(iter(made))
        assert caught.value.pid > 0
        assert caught.value.cause.startswith("SIGKILL: ")
        assert "killed by hand" in caught.value.cause
        assert len(caught.value.samples) == 1
        assert f"pid {caught.value.pid}" in str(caught.value)
        assert f"sample {caught.value.samples[0]}" in str(caught.value)
        with pytest.raises(LoaderClosedError, match=r"WorkerDiedError: worker \d"):
            next(iter(made))
    injected("a worker ends by SIGKILL while it loads", 4)


class DiesAheadOf(Truth):
    def __init__(self, n: int, index: int) -> None:
        super().__init__(n)
        self.index = index

    def prefetch(self, indices: np.ndarray) -> None:
        if self.index in indices:
            os.kill(os.getpid(), signal.SIGKILL)


class DiesInRows(DiesAheadOf):
    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        self.prefetch(indices)
        TruthRows.load_rows(self, indices, rngs, out)

    load = None  # type: ignore[assignment]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("kind", [DiesAheadOf, DiesInRows])
def test_the_samples_of_a_death_are_real(kind: Any, shuffle: bool, injected: Injected) -> None:
    """Also where several were in hand. The last batch, without shuffling that of the death, has padding."""
    options: dict[str, Any] = {"shuffle": shuffle, "last": "pad", "workers": 1}
    with loader(Truth(N + 2), **{**options, "workers": 0}) as made:
        (batch,) = ({*check(batch)} for batch in made if N + 1 in batch.index)
    with loader(kind(N + 2, N + 1), restarts=0, **options) as made:
        with pytest.raises(WorkerDiedError) as caught:
            list(made)
        assert N + 1 in caught.value.samples
        assert {*caught.value.samples} <= batch
        assert all(type(sample) is int for sample in caught.value.samples)
    injected("a worker ends by SIGKILL with several samples in hand", 1)


def test_deaths_are_counted_within_a_minute(tmp_path: Path) -> None:
    with loader(Deadly("SIGKILL", {0, 7, 31, 59}, tmp_path), restarts=4) as made:
        epochs(made, 2)
        assert made.stats.n_restarts <= 4


def test_every_sample_kills_and_all_are_skipped(injected: Injected) -> None:
    with loader(Deadly("os._exit(0)", range(N)), on_error="skip", max_bad=5) as made:
        with pytest.raises(TooManyBadSamplesError):
            list(made)
        injected("a worker ends by os._exit(0) while it loads", made.stats.n_restarts)


class DiesAtStart(Truth):
    """None of its workers survives its start."""

    def __init__(self, way: str) -> None:
        super().__init__(N)
        self.way = way

    def start(self, worker_id: Any) -> None:
        WAYS[self.way][0]()


@pytest.mark.parametrize("way", ["SIGKILL", "SIGSEGV", "os._exit(0)"])
def test_who_dies_at_its_start(way: str, injected: Injected) -> None:
    """Nothing was in hand: it ends in the limit of restarts, or without one in a stall, never in a hang."""
    with loader(DiesAtStart(way), restarts=3) as made, pytest.raises(WorkerDiedError) as caught:
        next(iter(made))
    assert caught.value.samples == ()
    assert WAYS[way][1] in str(caught.value)
    with loader(DiesAtStart(way), stall_timeout=0.5) as made:
        with pytest.raises(StallError, match="no worker has anything in hand"):
            next(iter(made))
        injected("a replacement dies at its start", made.stats.n_restarts)


class DiesWithReplacements(Deadly):
    """One sample ends its worker, once; so do, at their start, the next six."""

    def __init__(self, way: str, folder: Path) -> None:
        super().__init__(way, {7}, folder)

    def start(self, worker_id: Any) -> None:
        assert self.folder is not None
        if (self.folder / "7").exists() and any(first_time(self.folder / f"death {n}") for n in range(6)):
            WAYS[self.way][0]()


@pytest.mark.parametrize("way", ["SIGKILL", "SIGSEGV", "os._exit(0)"])
def test_replacements_die_at_their_start(way: str, tmp_path: Path, expected: Any, injected: Injected) -> None:
    with loader(DiesWithReplacements(way, tmp_path)) as made:
        assert epochs(made, 3) == expected
        assert 1 + 6 // 2 <= made.stats.n_restarts <= 1 + 6
        assert (tmp_path / "death 5").exists()
        injected("a replacement dies at its start", made.stats.n_restarts - 1)


class DiesLater(Truth):
    """Loading a sample makes its worker die when it is done with the task."""

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index == 7:
            WorkerChannel.done = lambda *arguments: os.abort()  # type: ignore[method-assign]


def test_who_dies_later_than_its_cause_is_found(injected: Injected, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those behind it in its task are bad too: nobody can tell them apart. There is no death without an end."""
    monkeypatch.setattr("ringload.engine.waiting.START_S", 0.0)  # so that deaths without an end are told after stall_timeout
    with loader(DiesLater(N), workers=1, on_error="skip", max_bad=9, shuffle=False, epochs=1, stall_timeout=20) as made:
        assert [int(index) for batch in made for index in check(batch)] == [*range(7), *range(12, N)]
        assert sorted(bad.index for bad in made.stats.bad) == [7, 8, 9, 10, 11]
        assert made.stats.n_restarts == 2 * 5
        injected("a worker dies when it has loaded what makes it die", made.stats.n_restarts)


class DiesWhenDescribed(Deadly):
    def describe(self, index: int) -> str:
        self.strike(index)
        return str(index)


def test_who_kills_when_it_is_described_too_harms_no_other(injected: Injected) -> None:
    source = DiesWhenDescribed("os._exit(0)", {9})
    with loader(source, workers=1, on_error="skip", shuffle=False, epochs=1, stall_timeout=20) as made:
        assert [int(index) for batch in made for index in check(batch)] == [*range(9), *range(10, N)]
        assert [(bad.index, bad.where) for bad in made.stats.bad] == [(9, "")]
        injected("a sample that ends its worker when it is loaded, and when it is described", made.stats.n_restarts)


class DiesAhead(Truth):
    """Asking for a sample ahead ends the worker, loading it does not."""

    def prefetch(self, indices: np.ndarray) -> None:
        if 7 in indices:
            os.abort()


def test_who_dies_while_it_asks_for_samples_ahead(expected: Any, injected: Injected) -> None:
    with loader(DiesAhead(N)) as made:
        assert epochs(made, 3) == expected
        assert 3 <= made.stats.n_restarts < 8  # one an epoch: then its batch is not asked for ahead
        injected("a worker ends by SIGABRT while it asks for files ahead", made.stats.n_restarts)


def test_who_dies_between_its_record_and_its_flag(expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says that the only task of a batch is done, and the batch does not look full."""
    write = WorkerChannel._write

    def write_and_die_once(self: WorkerChannel, record: bytes) -> None:
        write(self, record)
        with suppress(FileExistsError):
            (tmp_path / "died").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(WorkerChannel, "_write", write_and_die_once)
    with loader(Truth(N), workers=1, start_method="fork", stall_timeout=20) as made:
        assert epochs(made, 3) == expected
        assert made.stats.n_restarts == 1


# -- before any line --------------------------------------------------------------------------------------------------

OF_WORKERS = [  # all between a task's claim and its report, and a worker's beginning
    *(worker.run, _TaskLoop.forever, _TaskLoop._take_task, ReadingAhead.ask, _TaskLoop._fill, Bad.pack, TasksAhead.next),
    *(
        WorkerChannel.take,
        WorkerChannel._take_token,
        WorkerChannel.done,
        WorkerChannel.bad,
        WorkerChannel._say,
        WorkerChannel._write,
    ),
    *(CurrentWorkTable.write, CurrentWorkTable.clear, CurrentWorkTable.started),
    *(
        Filler.fill,
        Filler._fill,
        Filler._any_poison,
        Filler._fill_at_once,
        Filler._load_rows_into,
        Filler._load_row,
    ),
    *(Filler._make_good, Filler._bad, Filler._where),
]
OF_SERVERS = [
    *(
        become_server,
        arm_lifeline,
        ForkServer.__init__,
        ForkServer.serve,
        ForkServer._serve,
        ForkServer._obey,
        ForkServer._start,
        ForkServer._start_one,
    ),
    *(ForkServer._fork, ForkServer._reap, ForkServer._send, ForkServer._reserve_some),
]
UNREACHED: dict[Any, int] = {  # how many of its lines no run of these gets to
    worker.run: 7,  # a ring that cannot be mapped, a source that does not start, one of listed rows
    ReadingAhead.ask: 3,  # a prefetch() that raises
    _TaskLoop._take_task: 1,  # a sample that is known to kill
    Bad.pack: 4,  # texts that are too long
    WorkerChannel._write: 3,  # a pipe that is full: in test_stalls
    TasksAhead.next: 2,  # a source without is_ready(); a wait for what is under way: in test_waiting_loads
    Filler._fill: 8,  # a source that is told of its tasks, a stream that ends, threads that have not begun before
    Filler.fill: 5,  # a source that has generators of its own, or is told of its tasks
    Filler._load_rows_into: 1,  # a load_rows() that assigns
    Filler._load_row: 5,  # a stream that ends, a sample that is known to kill, a load() that does not do what it should
    Filler._where: 2,  # a describe() that raises
    become_server: 1,  # what a fresh interpreter imports
    arm_lifeline: 1,  # the trainer was killed in between: in test_exit
    ForkServer._start: 3,  # no process can be started
    ForkServer._start_one: 4,
    ForkServer._fork: 5,  # BaseException in a user's function
    ForkServer._send: 2,  # a trainer that is gone
    ForkServer._reserve_some: 5,  # no more memory
}


@pytest.mark.parametrize("function", [*OF_WORKERS, *OF_SERVERS], ids=lambda function: function.__qualname__)
def test_a_kill_before_any_line_changes_nothing(
    function: Any, tmp_path: Path, times: Times, injected: Injected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nth time that a process comes to a line it ends instead. A run has as many deaths as the function has lines."""
    of_workers = function in OF_WORKERS
    options: dict[str, Any] = {"max_bad": 100, "stall_timeout": 20, "last": "pad", "ram_budget": "auto"}
    expected = {}
    for on_error in ("skip", "replace"):
        with loader(SomeBad(), workers=0, on_error=on_error, **options) as made:
            expected[on_error] = epochs(made, 3)
    monkeypatch.setattr("ringload.ring.plan.AUTO_SLOTS", 4)  # so few that workers wait for tasks
    if not of_workers:
        monkeypatch.setattr("ringload.loader.FIRST_BYTES", 1)  # the server has something to reserve
    for nth in range(1, 1 + times(1, 5)):
        reached: set[int] = set()
        for attempt, kind in enumerate((SomeBad, SomeBadRows, SomeBadThreads) * 2):
            on_error = "replace" if attempt % 2 else "skip"
            (deadly := tmp_path / f"{nth}-{attempt}").mkdir()
            wire = Tripwire(function, tmp_path / f"{kind.__name__}-{nth}", kill_if_not(os.getpid()), nth)
            n_before = len(wire.tripped)
            source = kind() if of_workers else kind(deadly)
            with wire, loader(source, start_method="fork", on_error=on_error, **options) as made:
                assert epochs(made, 3) == expected[on_error]
                assert sorted(bad.index for bad in made.stats.bad) == sorted([*range(5, N + 2, 11)] * 3)
            reached |= wire.tripped
            whose = "a worker" if of_workers else "the server"
            injected(f"kill -9 of {whose} before a line of its code", len(wire.tripped) - n_before)
            missed = sorted(line - function.__code__.co_firstlineno for line in lines_of(function.__code__) - reached)
            if attempt and len(missed) <= UNREACHED.get(function, 0):
                break
        assert nth > 1 or len(missed) <= UNREACHED.get(function, 0), f"{function.__qualname__} was not killed at {missed}"


def kill_if_not(trainer: int) -> Any:
    def act(line: int) -> bool:
        if os.getpid() == trainer:
            return False
        kill_oneself(signal.SIGKILL)()
        return True

    return act
