"""`ringload.torch.DataLoader` and its processes: what runs in them, how they end, and what becomes of the run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ringload  # noqa: E402
from ringload.torch import DataLoader  # noqa: E402
from tests.conftest import Injected, Times  # noqa: E402
from tests.helpers import run, run_quietly, truth  # noqa: E402

FORK: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}


class Truths(torch.utils.data.Dataset):
    """`(pixels, index, name)`; each tells whether it is right."""

    def __init__(self, n: int = 40) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        return torch.from_numpy(truth(index)), index, f"name {index}" * (1 + index % 7)


def check(batch: Any) -> list[int]:
    """Verify a batch of Truths. Returns its indices."""
    pixels, indices, names = batch
    for row, index in enumerate(indices.tolist()):
        np.testing.assert_array_equal(pixels[row].numpy(), truth(index))
        assert names[row] == f"name {index}" * (1 + index % 7)
    return list(indices.tolist())


def test_the_usual_way_in_a_script() -> None:
    """The default start method, in a script with no main guard, whose classes are sent. Contexts by name, and objects."""
    code = """
    import multiprocessing, os, random, signal, torch, numpy as np
    from collections import namedtuple
    from ringload.torch import DataLoader
    Pair = namedtuple("Pair", "x y")
    big = torch.arange(60_000.0).reshape(30, 2000)
    class Data(torch.utils.data.Dataset):
        def __init__(self): self.big, self.flipped = big, big.T.contiguous().T
        def __len__(self): return 30
        def __getitem__(self, i):
            assert torch.equal(self.big, self.flipped)
            return Pair({"row": self.big[i], "draw": torch.rand(())}, f"{i}")
    def rows(loader): return [(b.x["row"][:, 0].tolist(), b.x["draw"].tolist(), b.y) for b in loader]
    seen, first = [], None
    for context in (None, "fork", multiprocessing.get_context("spawn")):
        torch.manual_seed(1)
        loader = DataLoader(Data(), 4, shuffle=True, num_workers=2, multiprocessing_context=context)
        seen.append(rows(loader) + rows(loader))
        first = first or loader
    assert type(next(iter(first))) is Pair
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 16
    loader = first  # two passes at a time, and one left early
    ours = [(a.y, b.y) for a, b in zip(loader, loader)]
    assert len(ours) == 8 and sorted(i for a, _ in ours for i in a) == sorted(i for _, b in ours for i in b)
    for batch in loader: break
    held = iter(loader); next(held)
    print("done")
    """
    assert run_quietly(code, timeout=110) == "done\n"


class Told(torch.utils.data.Dataset):
    """What a sample finds in its process."""

    greeting = "none"

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> list[Any]:
        info = torch.utils.data.get_worker_info()
        assert info.dataset is self
        return [index, info.id, info.num_workers, info.seed, os.getpid(), len(os.sched_getaffinity(0)), self.greeting]


def greet(worker: int) -> None:
    info = torch.utils.data.get_worker_info()
    assert info.id == worker
    info.dataset.greeting = f"hello {worker}"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def test_init_fn_and_worker_info() -> None:
    data = Told()
    index, ids, n, seeds, pids, n_cpus, greetings = [
        list(part)
        for part in zip(
            *[row for batch in DataLoader(data, 2, collate_fn=list, worker_init_fn=greet, **FORK) for row in batch], strict=True
        )
    ]
    assert index == list(range(24))
    assert (set(ids) | {0, 1}, set(n), set(n_cpus)) == ({0, 1}, {2}, {1})
    assert all(
        (seed, pid, greeting) == (seeds[0] - ids[0] + i, pids[ids.index(i)], f"hello {i}")
        for i, seed, pid, greeting in zip(ids, seeds, pids, greetings, strict=True)
    )
    assert os.getpid() not in pids
    assert data.greeting == "none"
    assert torch.utils.data.get_worker_info() is None

    def fail(worker: int) -> None:
        raise LookupError("no greeting")

    batches = iter(DataLoader(Truths(), 4, worker_init_fn=fail, **FORK))
    for _ in range(10):
        with pytest.raises(LookupError, match="no greeting"):
            next(batches)


class Scaled(torch.utils.data.Dataset):
    """Changed between epochs, as `set_epoch` does."""

    def __init__(self) -> None:
        self.scale, self.table = 1, np.arange(40_000)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> list[int]:
        return [int(self.table[index]) * self.scale, os.getpid()]


@pytest.mark.parametrize("options", [FORK, {"num_workers": 1}])
def test_a_changed_dataset_is_seen_by_the_next_epoch(options: Any) -> None:
    data = Scaled()
    loader = DataLoader(data, 3, **options)

    def epoch() -> tuple[list[int], set[int]]:
        values, pids = (torch.cat(part).tolist() for part in zip(*loader, strict=True))
        return values, set(pids)

    first = epoch()
    assert first[0] == [0, 1, 2, 3, 4, 5]
    if "multiprocessing_context" not in options:
        assert epoch()[1] <= first[1], "workers stay while nothing changes"
    data.scale = 10
    assert epoch()[0] == [0, 10, 20, 30, 40, 50]
    data.table[5] = 7  # inside a large array
    assert epoch()[0] == [0, 10, 20, 30, 40, 70]


def test_persistent_workers_keep_their_dataset() -> None:
    data = Scaled()
    loader = DataLoader(data, 3, persistent_workers=True, **FORK)
    first = [part.tolist() for batch in loader for part in batch]
    data.scale = 10
    assert [part.tolist() for batch in loader for part in batch][::2] == first[::2]


class Deadly(Truths):
    """Some samples kill their worker: always, or only once."""

    def __init__(self, marks: Path | None, deadly: set[int]) -> None:
        super().__init__()
        self.marks, self.deadly = marks, deadly

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        if index in self.deadly:
            if self.marks is None:
                os.kill(os.getpid(), signal.SIGSEGV)
            elif not (mark := self.marks / str(index)).exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.parametrize("collate_fn", [None, torch.utils.data.default_collate, list])
def test_a_dead_worker_costs_nothing(collate_fn: Any, tmp_path: Path) -> None:
    loader = DataLoader(Deadly(tmp_path, {0, 5, 17, 39}), 4, collate_fn=collate_fn, **FORK)
    batches = list(loader)
    if collate_fn is list:
        batches = [torch.utils.data.default_collate(batch) for batch in batches]
    assert [index for batch in batches for index in check(batch)] == list(range(40))


def test_a_sample_that_always_kills_is_an_error_of_its_batch() -> None:
    batches = iter(DataLoader(Deadly(None, {9, 30}), 4, **FORK))
    seen, said = [], []
    for _ in range(10):
        try:
            seen += check(next(batches))
        except RuntimeError as error:
            said.append(str(error))
    assert next(batches, None) is None
    assert seen == [i for i in range(40) if i // 4 not in (2, 7)]
    assert [
        "killed by signal" in text and f"sample {i} " in text and "SIGSEGV" in text
        for text, i in zip(said, (9, 30), strict=True)
    ]


def test_workers_that_die_too_often() -> None:
    loader = DataLoader(Deadly(None, {2}), 4, restarts=0, **FORK)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) is killed.*sample 2 "):
        list(loader)


@pytest.mark.fault
def test_kills_at_random_while_listed_batches_come(times: Times, injected: Injected) -> None:
    """Rows beside the ring, and a ring that is laid out anew on the way, in an order that was drawn."""
    n_kills = times(12, 400)
    rng, killed, lost = random.Random(4), 0, 0
    data = Truths(60)
    loader = DataLoader(data, 3, shuffle=True, restarts=None, persistent_workers=True, **FORK)
    while killed < n_kills:
        generator_state = torch.get_rng_state()
        seen: list[int] = []
        for batch in loader:
            seen += check(batch)
            assert loader.state_dict()["_num_yielded"] * 3 == len(seen)
            if rng.random() < 0.3:
                pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _is_ours(folder)]
                if pids:
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    killed += 1
        torch.set_rng_state(generator_state)
        torch.rand(1)
        lost += 60 - len(set(seen)) + len(seen) - 60
    injected("a worker of torch.DataLoader is killed", killed, lost)


def _is_ours(folder: Path) -> bool:
    """A producer whose server is this process's child."""
    try:
        if not (folder / "comm").read_text().startswith(("ringload:0", "ringload:1")):
            return False
        server = Path("/proc") / (folder / "stat").read_text().rpartition(")")[2].split()[1]
        return int((server / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
    except (OSError, IndexError):
        return False


class Stuck(Truths):
    """One sample that never comes."""

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        while index == 21:
            signal.pause()
        return super().__getitem__(index)


def test_a_stuck_sample_times_out() -> None:
    batches = iter(DataLoader(Stuck(), 4, timeout=0.5, **FORK))
    for number in range(5):
        assert check(next(batches)) == list(range(number * 4, number * 4 + 4))
    with pytest.raises(RuntimeError, match=r"DataLoader timed out.*sample 21"):
        next(batches)


def test_slow_samples_do_not_change_the_order() -> None:
    """in_order=False promises less than it gives: the order is kept, and nothing is lost."""
    for in_order in (True, False):
        loader = DataLoader(Truths(), 4, in_order=in_order, prefetch_factor=3, **FORK)
        assert [index for batch in loader for index in check(batch)] == list(range(40))


def test_ends_with_its_script() -> None:
    """Left early, left to the interpreter's end, with an error in the loop, with large indices, with few descriptors."""
    code = """
    import resource, sys, torch
    from ringload.torch import DataLoader
    class Data(torch.utils.data.Dataset):
        def __len__(self): return 10**9
        def __getitem__(self, i): return torch.full((100,), i), str(i)
    is_kept = sys.argv[1] == "persistent"
    loader = DataLoader(Data(), 2, num_workers=2, multiprocessing_context="fork", persistent_workers=is_kept)
    if sys.argv[1] == "few":
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        kept = [batch for _, batch in zip(range(300), loader)]
        assert [rows[0, 0].item() for rows, _ in kept] == list(range(0, 600, 2))
    elif sys.argv[1] == "large":
        class Many:
            def __iter__(self): yield from ([i] * 50_000 for i in range(100))
        held = iter(DataLoader(Data(), batch_sampler=Many(), num_workers=1, multiprocessing_context="fork", collate_fn=len))
        next(held)
        raise ValueError("mine")
    elif sys.argv[1] == "error":
        for batch in loader: raise ValueError("mine")
    else:
        held = iter(loader); next(held)
        for batch in loader: break
    """
    for how in ("persistent", "left", "few"):
        run_quietly(code, how)
    for how in ("large", "error"):
        done = run(code, how)
        assert done.returncode == 1
        assert done.stderr.endswith("ValueError: mine\n")
        assert done.stderr.count("Traceback") == 1


def test_a_growing_dataset() -> None:
    data = Truths(8)
    for options in ({}, FORK):
        data.n = 8
        loader = DataLoader(data, 4, **options)
        assert len(list(loader)) == len(loader) == 2
        data.n = 20
        assert [index for batch in loader for index in check(batch)] == list(range(20))
        assert len(loader) == 5


def test_two_loaders_side_by_side() -> None:
    one, other = DataLoader(Truths(), 4, **FORK), DataLoader(Truths(20), 2, num_workers=0)
    seen = [(check(a), check(b)) for a, b in zip(one, other, strict=True)]
    assert [i for a, _ in seen for i in a] == list(range(40))
    assert [i for _, b in seen for i in b] == list(range(20))


def test_a_dataset_that_cannot_be_sent_is_named() -> None:
    data = Truths()
    data.file = open(os.devnull)  # noqa: SIM115
    with data.file, pytest.raises(ringload.ConfigError, match="file is an open file"):
        iter(DataLoader(data, num_workers=1))


class Waiting(Truths):
    """Sample 9 waits for a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        while index == 9 and not self.path.exists():
            time.sleep(0.001)
        return super().__getitem__(index)


def test_an_interruption_loses_no_batch(tmp_path: Path) -> None:
    batches = iter(DataLoader(Waiting(tmp_path / "go"), 4, **FORK))
    seen = check(next(batches)) + check(next(batches))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012  (it comes while the batch is waited for)
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                next(batches)
    finally:
        signal.signal(signal.SIGALRM, before)
    (tmp_path / "go").touch()
    for batch in batches:
        seen += check(batch)
    assert seen == list(range(40))
