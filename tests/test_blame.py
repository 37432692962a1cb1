from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload.engine.blame import (
    MAX_CRASHES_EXTERNAL,
    MAX_CRASHES_OOM,
    MAX_CRASHES_OWN,
    MAX_KNOWN,
    CrashBlame,
)
from ringload.engine.describe import lent_text, stuck_text
from ringload.ring.slots import InFlightBatch, Ring
from ringload.system.deaths import Death, oom_kills
from ringload.workers.current_work import WHOLE_TASK, CurrentWork
from tests.conftest import Injected
from tests.deaths import N, loader
from tests.helpers import Truth, check, epoch_order, rows_of

ORDER = epoch_order(1000, 8)


def posted(number: int = 5) -> InFlightBatch:
    return Ring(1).fill(3, number, 8, 2)


def claim(sample: int = 77, row: int = 4, stop: int = 5) -> CurrentWork:
    return CurrentWork(3, 5, sample, row, stop, 0.0)


def by(number: int, maybe_oom: bool = True) -> Death:
    return Death(0, 123, number, maybe_oom=maybe_oom)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (9, "SIGKILL: probably out of memory"),
        (11, "SIGSEGV: a crash in native code"),
        (7, "SIGBUS: a file that is mapped"),
        (15, "SIGTERM: somebody asked"),
        (0 << 8, "exit code 0: something in the user's functions"),
        (3 << 8, "exit code 3"),
        (10, "SIGUSR1"),
        (34, "SIGRTMIN"),
        (40, "signal 40"),
    ],
)
def test_causes_are_told(status: int, said: str) -> None:
    assert by(status).cause.startswith(said)
    assert Death(0, 1, status, "because").cause == "because"


def test_who_is_killed_while_the_kernel_kills_nobody_was_killed_by_hand() -> None:
    assert by(9, maybe_oom=False).cause.startswith("SIGKILL: killed by hand or by another program")
    assert by(11, maybe_oom=False).cause == by(11).cause


def test_the_kernel_counts_whom_it_kills_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, n in (("nr_free_pages 7\noom_kill 12\nx 1\n", 12), ("nr_free_pages 7\n", -1)):
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        assert oom_kills() == n


@pytest.mark.parametrize(
    ("status", "maybe_oom", "crashes"),
    [
        *((status, maybe_oom, MAX_CRASHES_OWN) for status in (signal.SIGSEGV, 0, 256) for maybe_oom in (False, True)),
        *((status, True, MAX_CRASHES_OOM) for status in (signal.SIGKILL, signal.SIGTERM)),
        *((status, False, MAX_CRASHES_EXTERNAL) for status in (signal.SIGKILL, signal.SIGTERM)),
    ],
)
def test_who_kills_in_a_row_is_a_killer(status: int, maybe_oom: bool, crashes: int) -> None:
    known, batch = CrashBlame(None), posted()
    for _ in range(1, crashes + 1):
        assert known.start(2, [batch]).poison_samples == ()
        known.record_crash(by(status, maybe_oom), claim(), [batch], ORDER)
        assert known.has_crashes
    ((sample, how),) = known.start(2, [batch]).poison_samples
    assert sample == 77
    assert how.startswith(f"killed its worker {crashes} times in a row (")


def test_a_kill_from_outside_is_no_death_of_its_own() -> None:
    known, batch = CrashBlame(None), posted()
    known.record_crash(by(signal.SIGKILL, False), claim(), [batch], ORDER)
    known.record_crash(by(signal.SIGSEGV, False), claim(), [batch], ORDER)
    assert known.start(2, [batch]).poison_samples == ()
    known.record_crash(by(signal.SIGSEGV, False), claim(), [batch], ORDER)
    assert [sample for sample, _ in known.start(2, [batch]).poison_samples] == [77]


def test_who_was_loaded_meanwhile_is_acquitted() -> None:
    known, batch = CrashBlame(None), posted()
    for _ in range(20):
        known.record_crash(by(11), claim(), [batch], ORDER)
        known.clear_task(batch, 2)  # rows 4 and 5
        assert not known.has_crashes
    assert known.start(1, [batch]).poison_samples == ()


def test_who_had_reported_before_the_end_is_not_accused() -> None:
    known, batch = CrashBlame(None), posted()
    batch.undone &= ~(1 << 2)
    known.record_crash(by(11), claim(), [batch], ORDER)
    known.record_crash(by(11), claim()._replace(number=6), [batch], ORDER)
    known.record_crash(by(11), claim(), [], ORDER)
    assert not known.has_crashes


def test_who_was_not_loaded_did_not_kill_but_one_before_it_in_its_task() -> None:
    known, batch = CrashBlame(None), Ring(1).fill(3, 5, 8, 4)  # rows 4 to 7 are a task
    samples = rows_of(ORDER, 3, 5).index[0:8].tolist()
    for n_known in range(1, 6):
        for _ in range(MAX_CRASHES_OWN):
            known.record_crash(by(11), claim(samples[7], 7, 8), [batch], ORDER)
        told = known.start(1, [batch]).poison_samples
        assert [sample for sample, _ in told] == samples[8 - min(n_known, 4) :][::-1]


def test_who_was_loaded_by_several_when_it_became_a_killer_harms_no_row_before_it() -> None:
    known, batch = CrashBlame(None), Ring(1).fill(3, 5, 8, 4)
    known.start(2, [batch])
    for row in (1, 1, 6):  # two deaths that are entered at once: the second had not been told
        known.record_crash(by(11), claim(77, row, row + 1), [batch], ORDER)
    assert known._crashes == {(3, 5, 1): [], (3, 5, 6): [False]}


def test_who_died_with_several_samples_in_hand_has_them_loaded_singly() -> None:
    known, batch = CrashBlame(None), posted()
    known.record_crash(by(11), claim(WHOLE_TASK, 4, 6), [batch], ORDER)
    assert known.start(2, [batch]).one_by_one == ((3, 5),)
    assert known.start(2, []).one_by_one == ()  # until its batch is finished


def test_after_a_death_by_its_own_doing_tasks_are_taken_one_at_a_time() -> None:
    batch, other = posted(), posted(number=6)
    known = CrashBlame(None)
    known.record_crash(by(signal.SIGKILL, False), claim(), [batch, other], ORDER)
    assert known.start(2, [batch, other]).alone == ()
    known.record_crash(by(11), claim(), [batch, other], ORDER)
    assert sorted(known.start(2, [batch, other]).alone) == [(3, 5), (3, 6)]
    assert known.start(2, [other]).alone == ((3, 6),)
    assert known.start(2, []).alone == ()


def test_of_very_many_killers_the_last_are_told() -> None:
    known, batch = CrashBlame(None), posted()
    for index in range(MAX_KNOWN + 5):
        for _ in range(MAX_CRASHES_OWN):
            known.record_crash(by(11), claim(index), [batch], ORDER)
    assert [index for index, _ in known.start(1, []).poison_samples] == list(range(5, MAX_KNOWN + 5))


class Hungry(Truth):
    """Loading one sample takes more memory than there is: the kernel kills the worker."""

    def __init__(self, cgroup: Path) -> None:
        super().__init__(N)
        self.cgroup = cgroup

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index == 7:
            (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
            np.ones(100 << 20, np.uint8)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Who joins it has 30 MB."""
    path = Path(f"/sys/fs/cgroup/memory/ringload-{os.getpid()}")
    try:
        path.mkdir()
    except OSError:
        pytest.skip("needs root and a memory cgroup of version 1")
    (path / "memory.limit_in_bytes").write_text("30000000")
    yield path
    path.rmdir()


@pytest.mark.fault
def test_a_sample_that_takes_all_memory_is_found(cgroup: Path, injected: Injected) -> None:
    n_before = oom_kills()
    with loader(Hungry(cgroup), on_error="skip", workers=1, restarts=10) as made:
        for _ in range(2):
            assert 7 not in np.concatenate([check(batch) for batch in made])
        assert {bad.index for bad in made.stats.bad} == {7}
        assert made.stats.bad[0].reason.startswith("killed its worker 5 times in a row (SIGKILL: probably out of memory")
        assert made.stats.n_restarts == MAX_CRASHES_OOM
    assert oom_kills() >= n_before + MAX_CRASHES_OOM
    injected("a worker is killed by the kernel for want of memory", MAX_CRASHES_OOM)


def test_the_rate_of_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    known = CrashBlame(3)
    assert [known.too_many(1) for _ in range(4)] == [False, False, False, True]
    now_s += 61
    assert not known.too_many(3)
    assert not CrashBlame(None).too_many(1000)
    assert CrashBlame(0).too_many(1)


def test_words() -> None:
    said = stuck_text({0: (11, claim()), 1: (12, claim(WHOLE_TASK, 2, 4))}, {})
    assert "worker 0 (pid 11) has had sample 77 of batch 5 of epoch 3 in hand for" in said
    assert "worker 1 (pid 12) has had rows 2 to 3 of batch 5 of epoch 3 in hand for" in said
    assert stuck_text({}, {}) == "no worker has anything in hand"
    stuck = stuck_text({}, {"worker 3": os.getpid(), "worker 4": 2**22 + 1})
    assert stuck == f"no worker has anything in hand; worker 4 (pid {2**22 + 1}) is gone"
    batch: Any = posted()
    assert "batch 5 of epoch 3 for" in lent_text({0: batch}, "Keep copies", "")
