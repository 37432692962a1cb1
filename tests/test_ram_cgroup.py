"""Memory that runs out while it runs, in a real cgroup with the real OOM killer: a smaller ring, or an error that says so.

What the kernel does (Linux 6.18, cgroup v1, measured): a limit cannot be lowered below what cannot be dropped (EBUSY; v2 would
kill at once). A reservation above the limit is no ENOSPC: a memfd knows no size but that of the machine, so the OOM killer
takes a process of the group while another one reserves.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import Loader, SampleError, WorkerDiedError
from tests.conftest import Injected, Times
from tests.deaths import kill_all, members
from tests.helpers import LOGGED, Truth, check
from tests.light import load_number
from tests.ram import Group, memory_group, reserved_bytes, run_in, started_in

pytestmark = pytest.mark.fault

LIMIT_BYTES = 600_000_000


@pytest.fixture
def group() -> Iterator[Group]:
    with memory_group(LIMIT_BYTES) as made:
        yield made


class Greedy(Truth):
    """Loading some samples takes more memory than there is."""

    def __init__(self, n: int, greedy: set[int], n_bytes: int = 1 << 30) -> None:
        super().__init__(n)
        self.greedy, self.n_bytes = greedy, n_bytes

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if index in self.greedy:
            np.ones(self.n_bytes, np.uint8)
        super().load(index, rng, out)


def large(**options: Any) -> Loader:
    """200 samples of a quarter of a megabyte, quickly made and verified. Workers import nothing for it."""
    return Loader(load_number, 10, workers=2, fields={"x": ((250_000,), "uint8")}, n_samples=200, **options)


def pass_over(made: Loader, n_epochs: int) -> None:
    """Receive and verify epochs of `large`, each sample once."""
    for _ in range(n_epochs):
        rows = []
        for batch in made:
            assert (batch["x"] == (batch.index + 1).astype(np.uint8)[:, None]).all()
            rows += batch.index.tolist()
        assert sorted(rows) == list(range(200))


PRELUDE = """
import sys
from pathlib import Path
from tests import test_ram_cgroup as t
from tests.ram import Group
group = Group(int(sys.argv[1]), Path(sys.argv[2]))
"""


def in_group(group: Group, call: str, *arguments: object) -> str:
    """Call a function of this module in an interpreter in the group. It has to succeed, and to say nothing on stderr."""
    out, err, exit_code = run_in(group.folder, PRELUDE + call, group.version, group.folder, *arguments)
    assert (LOGGED.sub("", err), exit_code) == ("", 0)
    return out


# -- a worker that the OOM killer takes ---------------------------------------------------------------------------------


def greedy_is_named(restarts: int | None) -> None:
    """A sample that takes too much: the death is told as what it was."""
    with Loader(Greedy(40, {17}), 4, workers=2, ram_budget=200_000_000, restarts=restarts, shuffle=False, epochs=1) as made:
        rows: list[int] = []
        batches = iter(made)
        while True:
            try:
                rows += check(next(batches)).tolist()
            except SampleError as error:
                print(error.index, error.reason)
            except WorkerDiedError as error:
                print(error.samples, error)
                return
            except StopIteration:
                break
        assert rows == [index for index in range(40) if not 16 <= index < 20]
        print(made.stats.n_restarts)


TAKEN = r"SIGKILL: out of memory: the OOM killer has ended [12] process(es)? of cgroup "  # the other worker too, at times


def test_who_was_taken_by_the_oom_killer_is_told_so(group: Group, injected: Injected) -> None:
    out = in_group(group, "t.greedy_is_named(0)")
    limit = f"{LIMIT_BYTES // 4096 * 4096:,}"
    said = rf"\(17,\) worker \d \(pid \d+\) died: {TAKEN}{group.folder}, whose memory limit is {limit} bytes, while it had "
    assert re.match(said, out)
    assert group.oom_kills
    injected("a worker that the OOM killer takes", group.oom_kills)


def test_a_sample_that_takes_too_much_is_found(group: Group, injected: Injected) -> None:
    named, n_restarts = in_group(group, "t.greedy_is_named(None)").splitlines()
    assert re.match(rf"17 killed its worker 5 times in a row \({TAKEN}", named)
    assert group.oom_kills >= int(n_restarts) >= 5
    injected("a worker that the OOM killer takes", group.oom_kills)


# -- memory that runs out -------------------------------------------------------------------------------------------------


def lowered_while_reserving(group: Group) -> None:
    """The limit comes down to little above what is used, while most of the ring is yet to be reserved."""
    catching = warnings.catch_warnings(record=True, action="always", category=RuntimeWarning)
    with catching as told, large(ram_budget=1_500_000_000) as made:
        half_bytes = made.plan().ring_bytes / 2
        next(iter(made)).release()
        while True:
            with suppress(OSError):  # the server was faster
                group.limit(group.own_bytes + 64_000_000)
                break
        while not told and reserved_bytes() < half_bytes:  # the server has yet to come to the limit
            pass_over(made, 10)
        assert made.plan().ring_bytes <= reserved_bytes() < half_bytes
        print(made.stats.n_restarts, *(one.message for one in told))


def test_a_limit_that_is_lowered_makes_a_smaller_ring(times: Times, injected: Injected) -> None:
    n = times(1, 5)
    for _ in range(n):
        with memory_group(2_000_000_000) as group:
            out = in_group(group, "t.lowered_while_reserving(group)")
            assert group.oom_kills == 0
        assert out.startswith("0 the ring stays at ")
        assert f"left of the memory limit of cgroup {group.folder}" in out
    injected("a cgroup's memory limit lowered while the ring is reserved", n)


def lowered_in_use(group: Group, victim: str) -> None:
    """The limit comes down to just above what is used, the whole ring, after somebody was killed, whose place costs memory."""
    with large(ram_budget=300_000_000, restarts=3) as made:
        while reserved_bytes() < made.plan().ring_bytes:
            pass_over(made, 1)
        pass_over(made, 5)  # more than the ring holds: all of it is mapped
        if victim:
            kill_all(members(made)[:1] if victim == "the server" else members(made)[1:])
        while True:
            with suppress(OSError):  # more is used by now
                group.limit(group.own_bytes + 2_000_000)
                break
        try:
            pass_over(made, 5)
            while victim and not made.stats.n_restarts:  # what the ring holds may last for a while
                for _ in made:  # faster than workers, as a trainer hears of a death when it waits
                    pass
            pass_over(made, 5)
            print("went on", made.stats.n_restarts)
        except WorkerDiedError as error:
            print("died:", error)


@pytest.mark.parametrize("victim", ["", "all workers", "the server"])
def test_a_limit_that_is_lowered_when_the_ring_is_in_use(victim: str, times: Times, injected: Injected) -> None:
    n = times(1, 5)
    for _ in range(n):
        with memory_group(2_000_000_000) as group:
            out = in_group(group, "t.lowered_in_use(group, sys.argv[3])", victim)
            print(out)
            assert re.match("went on [1-4]$|died: .*(OOM|out of memory)" if victim else "went on 0$|died: .*OOM", out), out
    injected("a cgroup's memory limit lowered when the whole ring is in use", n)


def beside_a_hog(group: Group, score: int) -> None:
    """Epochs until the OOM killer has come, and one more."""
    Path("/proc/self/oom_score_adj").write_text(str(score))
    with large(ram_budget=300_000_000, restarts=3) as made:
        try:
            while reserved_bytes() < made.plan().ring_bytes:
                pass_over(made, 1)
            pass_over(made, 5)  # more than the ring holds: all of it is mapped
            print("ready", flush=True)
            while not group.oom_kills:
                pass_over(made, 1)
            pass_over(made, 5)
            print("went on", made.stats.n_restarts)
        except WorkerDiedError as error:
            print("died:", error)


HOG = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from tests.ram import Group
    group = Group(int(sys.argv[1]), Path(sys.argv[2]))
    Path("/proc/self/oom_score_adj").write_text(sys.argv[3])
    kept = []
    while not group.oom_kills:
        kept.append(np.ones(4 << 20, np.uint8))
    sys.stdin.read()
"""


# The OOM killer takes who has the highest sum of score / 1000 and share of the limit: a trainer of 500 that maps the ring (0.9)
# after a worker that has just started (1.07), and before the hog (0.6). A death is noticed when a batch is waited for: one
# worker may do.
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("score", "hog_score"), [(500, 0), (0, 1000)])
def test_a_hog_beside_it_costs_a_worker_and_not_the_trainer(
    score: int, hog_score: int, times: Times, injected: Injected
) -> None:
    """The OOM killer is to take a worker, if not the hog: never the trainer, whose mapping of the ring is the largest."""
    code = f"{PRELUDE}t.beside_a_hog(group, int(sys.argv[3]))"
    n = times(1, 6)
    for _ in range(n):
        with (
            memory_group(LIMIT_BYTES) as group,
            started_in(group.folder, code, group.version, group.folder, score) as trainer,
        ):
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == "ready\n"
            with started_in(group.folder, HOG, group.version, group.folder, hog_score):
                out, err = trainer.communicate(timeout=60)
            assert (LOGGED.sub("", err), trainer.returncode) == ("", 0)
            assert re.match("went on [0-3]$|died: .*the OOM", out)
    injected("a process that takes all memory of the cgroup", n)
