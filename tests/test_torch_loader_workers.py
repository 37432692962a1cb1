"""`ringload.torch.DataLoader` and its processes: what runs in them, how they end, and what becomes of the run."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import Dataset  # noqa: E402

import ringload  # noqa: E402
from ringload.torch import DataLoader  # noqa: E402
from tests.conftest import Injected, Times  # noqa: E402
from tests.deaths import kill_all  # noqa: E402
from tests.helpers import run_quietly, truth  # noqa: E402

FORK: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}
T = TypeVar("T", covariant=True)


class Truths(Dataset):
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


def test_the_usual_way_in_a_script(times: Times) -> None:
    """The default start method, in a script with no main guard, whose classes are sent. Contexts by name, and objects."""
    code = """
    import multiprocessing, sys, torch
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
    seen = []
    for context in (None, "fork", multiprocessing.get_context("spawn"))[:int(sys.argv[1])]:
        torch.manual_seed(1)
        loader = DataLoader(Data(), 4, shuffle=True, num_workers=2, multiprocessing_context=context)
        seen.append(rows(loader) + rows(loader))
        assert type(next(iter(loader))) is Pair
    assert all(one == seen[0] for one in seen) and len(seen[0]) == 16
    print("done")
    """
    assert run_quietly(code, times(2, 3), timeout=110) == "done\n"


def test_several_passes_at_a_time() -> None:
    loader = DataLoader(Truths(), 4, shuffle=True, persistent_workers=True, **FORK)
    pairs = [(check(one), check(other)) for one, other in zip(loader, loader, strict=True)]
    for seen in zip(*pairs, strict=True):
        assert sorted(index for batch in seen for index in batch) == list(range(40))
    for batch in loader:  # left early: the next pass begins anew
        check(batch)
        break
    assert sorted(index for batch in loader for index in check(batch)) == list(range(40))


class Told(Dataset):
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
    for worker, seed, greeting in zip(ids, seeds, greetings, strict=True):
        assert (seed, greeting) == (seeds[0] - ids[0] + worker, f"hello {worker}")
    assert os.getpid() not in pids
    assert data.greeting == "none"
    assert torch.utils.data.get_worker_info() is None

    def fail(worker: int) -> None:
        raise LookupError("no greeting")

    batches = iter(DataLoader(Truths(), 4, worker_init_fn=fail, **FORK))
    for _ in range(10):
        with pytest.raises(LookupError, match="no greeting"):
            next(batches)


class Scaled(Dataset):
    """Changed between epochs, as `set_epoch` does."""

    def __init__(self, n: int) -> None:
        self.scale, self.table = 1, np.arange(n)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> list[int]:
        return [int(self.table[index]) * self.scale, os.getppid()]


@pytest.mark.parametrize(("n", "options"), [(40_000, FORK), (10, {"num_workers": 1})])
def test_a_changed_dataset_is_seen_by_the_next_epoch(n: int, options: Any) -> None:
    data = Scaled(n)
    loader = DataLoader(data, 3, **options)

    def epoch() -> tuple[list[int], set[int]]:
        values, servers = (torch.cat(part).tolist() for part in zip(*loader, strict=True))
        return values, set(servers)

    values, servers = epoch()
    assert values == [0, 1, 2, 3, 4, 5]
    data.scale = 10
    assert epoch()[0] == [0, 10, 20, 30, 40, 50]
    data.table[5] = 7  # inside an array
    values, last = epoch()
    assert values == [0, 10, 20, 30, 40, 70]
    assert (servers == last) == (options is not FORK), "what has no large arrays is sent to the server that is there"


def test_persistent_workers_keep_their_dataset() -> None:
    data = Scaled(10)
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
                faulthandler.disable()  # pytest's
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
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) is killed.*sample 2\b"):
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
                    killed += kill_all([rng.choice(pids)])
        torch.set_rng_state(generator_state)
        torch.rand(1)
        lost += 60 - len(set(seen)) + len(seen) - 60
    injected("a worker of torch.DataLoader is killed", killed, lost)


def _is_ours(folder: Path) -> bool:
    """A worker whose server is this process's child."""
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
    """Left early, left to the interpreter's end, with an error in the loop, with large indices, with few descriptors. Each in a
    fork of one interpreter, as importing torch takes longer than all of them."""
    code = """
    import os, resource, sys, tempfile, torch
    from ringload.torch import DataLoader
    class Data(torch.utils.data.Dataset):
        def __len__(self): return 10**9
        def __getitem__(self, i): return torch.full((100,), i), str(i)
    class Many:
        def __iter__(self): yield from ([i] * 5_000 for i in range(100))
    for how in ("persistent", "left", "few", "large", "error"):
        file = tempfile.TemporaryFile()
        if (pid := os.fork()) == 0:
            os.dup2(file.fileno(), 2)
            break
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        file.seek(0)
        said = file.read().decode()
        if how in ("large", "error"):
            assert status == 1 and said.endswith("ValueError: mine\\n") and said.count("Traceback") == 1, (how, said)
        else:
            assert status == 0 and not said, (how, said)
    if pid:
        print("done")
    else:
        loader = DataLoader(Data(), 2, num_workers=2, multiprocessing_context="fork", persistent_workers=how == "persistent")
        if how == "few":
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
            kept = [batch for _, batch in zip(range(300), loader)]
            assert [rows[0, 0].item() for rows, _ in kept] == list(range(0, 600, 2))
        elif how == "large":
            held = iter(DataLoader(Data(), batch_sampler=Many(), num_workers=1, multiprocessing_context="fork", collate_fn=len))
            next(held)
            raise ValueError("mine")
        elif how == "error":
            for batch in loader: raise ValueError("mine")
        else:
            held = iter(loader); next(held)
            for batch in loader: break
    """
    assert run_quietly(code, timeout=110) == "done\n"


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


# -- what is changed between epochs -----------------------------------------------------------------------------------


def tripled(samples: list[Any]) -> list[int]:
    return [3 * sample for sample in samples]


def doubled(samples: list[Any]) -> list[int]:
    return [2 * sample for sample in samples]


class Indices(Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        return index


def one_epoch(loader: Any) -> list[list[int]]:
    return [torch.as_tensor(batch).tolist() for batch in loader]


CHANGES: list[Any] = [doubled, tripled, torch.utils.data.default_collate, list, doubled]


@pytest.mark.parametrize(
    "options",
    [{}, FORK, FORK | {"persistent_workers": True}, {"num_workers": 1}],
    ids=["none", "forked", "persistent", "forkserver"],
)
def test_a_changed_collate_fn_is_used(options: Any) -> None:
    loader = DataLoader(Indices(), 3, **options)
    assert one_epoch(loader) == [[0, 1, 2], [3, 4, 5]]
    for change in CHANGES if "num_workers" not in options or options is not FORK else CHANGES[:3]:
        loader.collate_fn = change
        factor = {doubled: 2, tripled: 3}.get(change, 1)
        assert one_epoch(loader) == [[0, factor, 2 * factor], [3 * factor, 4 * factor, 5 * factor]], change


class Greeting(Indices):
    greeting = 0

    def __getitem__(self, index: int) -> int:
        return self.greeting


def greet_by(number: int) -> Any:
    def init(worker: int) -> None:
        torch.utils.data.get_worker_info().dataset.greeting = number

    return init


@pytest.mark.parametrize("persistent", [False, True])
def test_a_changed_worker_init_fn_and_getitems_are_used(persistent: bool) -> None:
    loader = DataLoader(Greeting(), 3, worker_init_fn=greet_by(1), persistent_workers=persistent, **FORK)
    assert one_epoch(loader) == [[1] * 3] * 2
    loader.worker_init_fn = greet_by(2)
    assert one_epoch(loader) == [[2] * 3] * 2
    loader.dataset.__getitems__ = lambda keys: [len(keys)] * len(keys)
    assert one_epoch(loader) == [[3] * 3] * 2
    del loader.dataset.__getitems__
    assert one_epoch(loader) == [[2] * 3] * 2


@pytest.mark.parametrize("persistent", [False, True])
def test_what_is_set_on_a_loader_is_used(persistent: bool) -> None:
    values: list[Any] = [{1}, 2, 3]
    loader = DataLoader(values, 1, collate_fn=list, persistent_workers=persistent, **FORK)
    with pytest.raises(TypeError, match="allow_pickle=True"):
        list(loader)
    loader.allow_pickle = True
    assert list(loader) == [[{1}], [2], [3]]
    loader.num_workers, loader.prefetch_factor = 1, 3
    assert list(loader) == [[{1}], [2], [3]]
    assert loader._ring is not None
    assert len(loader._ring.feed.pids) <= 1
    assert (loader._ring.settings.feed.workers, loader._ring.settings.n_slots) == (1, 3)
    loader.timeout, loader.restarts = 5, 1
    list(loader)
    assert (loader._ring.settings.feed.stall_timeout, loader._ring.settings.feed.restarts) == (5, 1)
    loader.num_workers, loader.timeout = 0, 0
    assert list(loader) == [[{1}], [2], [3]]


def test_torch_refuses_the_same() -> None:
    """Attributes that may not be set once a DataLoader is there."""
    value: dict[str, Any] = {"multiprocessing_context": "no such", "collate_fn": list, "worker_init_fn": None}
    for n_workers in (0, 1):
        refused: list[set[str]] = []
        for kind in (torch.utils.data.DataLoader, DataLoader):
            names = [name for name in vars(torch.utils.data.DataLoader(Indices())) if not name.startswith("_DataLoader__init")]
            refused.append(set())
            for name in [*names, "multiprocessing_context"]:
                loader = kind(Indices(), num_workers=n_workers)
                try:
                    setattr(loader, name, value.get(name, 1))
                except ValueError:
                    refused[-1].add(name)
        assert refused[0] == refused[1] > {"batch_size", "dataset"}


# -- time-outs, deaths and errors in torch's words --------------------------------------------------------------------


def slow_start(worker: int) -> None:
    time.sleep(1.5)  # longer than the time-out, as importing what a dataset needs may be


class Unhurried(Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        time.sleep(0.08)  # a fifth of the time-out, so that the trainer looks while a sample is loaded
        return index


@pytest.mark.parametrize("persistent", [False, True])
def test_the_start_does_not_count_for_the_timeout(persistent: bool, tmp_path: Path) -> None:
    options = FORK | {"worker_init_fn": slow_start, "timeout": 0.4, "persistent_workers": persistent}
    assert [batch.tolist() for batch in DataLoader(Unhurried(), 4, **options)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    loader = DataLoader(Deadly(tmp_path, {17}), 4, **options)
    for _ in range(2):
        assert [index for batch in loader for index in check(batch)] == list(range(40))
    batches = iter(DataLoader(Stuck(), 4, **options))
    for _ in range(5):
        check(next(batches))
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0.4 seconds: .*worker \d \(pid \d+\) .*sample 21"):
        next(batches)


class StuckBatch(Stuck):
    def __len__(self) -> int:
        return 24


def test_a_stuck_batch_times_out_by_its_keys() -> None:
    loader = DataLoader(StuckBatch(), 12, timeout=1, collate_fn=list, **FORK)
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 1 seconds: .*the batch of samples \[12, 13, 14, 15, "):
        list(loader)


def endless_start(worker: int) -> None:
    signal.pause()


def test_a_start_that_never_ends_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringload.engine.waiting.START_S", 1.0)
    loader = DataLoader(Truths(), 4, timeout=0.3, worker_init_fn=endless_start, **FORK)
    told = r"DataLoader timed out after 1 seconds: no worker has begun to load for 1 s: .*worker_init_fn: one of these hangs"
    with pytest.raises(RuntimeError, match=told):
        next(iter(loader))


class Ending(Dataset):
    """Sample 3 ends the worker, by a signal or an exit status."""

    def __init__(self, how: int) -> None:
        self.how = how

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: Any) -> int:
        if key in (3, "three"):
            faulthandler.disable()
            os._exit(self.how) if self.how > 0 else os.kill(os.getpid(), -self.how)
        return 0


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (-signal.SIGSEGV, r"DataLoader worker \(pid \d+\) is killed by signal: Segmentation fault\."),
        (-signal.SIGABRT, r"DataLoader worker \(pid \d+\) is killed by signal: Aborted\."),
        (7, r"DataLoader worker \(pid\(s\) \d+\) exited unexpectedly with exit code 7\."),
    ],
)
def test_deaths_have_torchs_words(how: int, told: str) -> None:
    """Of a sample that always kills, and of too many deaths; a sample is called by its key."""
    batches = iter(DataLoader(Ending(how), 2, **FORK))
    next(batches)
    with pytest.raises(RuntimeError, match=rf"{told} sample 3 killed its worker"):
        next(batches)
    next(batches)
    batches = iter(DataLoader(Ending(how), 2, sampler=["one", "three"], restarts=0, **FORK))
    with pytest.raises(RuntimeError, match=rf"{told} It was loading sample 'three'"):
        next(batches)
    batches = iter(DataLoader(Ending(how), 2, collate_fn=list, **FORK))
    next(batches)
    with pytest.raises(RuntimeError, match=rf"{told} the batch of samples \[2, 3\] killed"):
        next(batches)


class Raising(Indices):
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __getitem__(self, index: int) -> int:
        if index == 2:
            raise self.kind("mine")
        return index


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("collate_fn", [None, list])
def test_what_ends_an_iteration_is_an_error_of_its_batch(kind: Any, collate_fn: Any) -> None:
    for options in (FORK, {}):
        is_left_alone = not options and not issubclass(kind, Exception)  # as with torch: nobody swallows an interruption
        batches = iter(DataLoader(Raising(kind), 2, collate_fn=collate_fn, **options))
        assert list(map(int, next(batches))) == [0, 1]
        with pytest.raises(kind if is_left_alone else RuntimeError, match="mine" if is_left_alone else kind.__name__):
            next(batches)
        if is_left_alone:  # and the batch is still to come
            batches._loader.dataset.kind = ValueError
            with pytest.raises(ValueError, match="mine"):
                next(batches)
        assert list(map(int, next(batches))) == [4, 5]
        with pytest.raises(StopIteration):
            next(batches)

    def collate(samples: list[Any]) -> Any:
        raise kind("mine")

    with pytest.raises(RuntimeError, match=kind.__name__):
        next(iter(DataLoader(Indices(), 2, collate_fn=collate, **FORK)))

    def init(worker: int) -> None:
        raise kind("mine")

    batches = iter(DataLoader(Indices(), 2, worker_init_fn=init, **FORK))
    lengths = set()
    for _ in range(3):
        with pytest.raises(RuntimeError, match=kind.__name__) as raised:
            next(batches)
        lengths.add(len(str(raised.value).splitlines()))
    assert len(lengths) == 1, "the traceback does not grow"


class Held:
    """Something that has what cannot be sent, somewhere in it."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


def in_words(data: Any, **options: Any) -> str:
    with pytest.raises(ringload.ConfigError) as raised:
        iter(DataLoader(data, num_workers=1, multiprocessing_context="forkserver", **options))
    text = str(raised.value)
    for word in ("WorkerSpec", "the source", "start(worker)", "load()"):
        assert word not in text
    assert 'multiprocessing_context="fork"' in text
    assert "worker_init_fn" in text
    assert "__getitem__" in text
    return text


def test_what_cannot_be_sent_is_named_in_the_users_words() -> None:
    data = Truths()
    data.transforms = [Held(), Held(), Held(lock=threading.Lock())]
    assert "dataset.transforms[2].lock is a lock" in in_words(data)
    data.transforms = (number for number in range(3))
    assert "dataset.transforms is a generator" in in_words(data)
    data.transforms = None
    lock = threading.Lock()
    assert "collate_fn -> variable 'lock' is a lock" in in_words(data, collate_fn=lambda samples: (lock, samples))
    held = Held(lock=lock)
    assert "worker_init_fn -> variable 'held'.lock is a lock" in in_words(data, worker_init_fn=lambda worker: held.lock)
    loader = DataLoader(data, 20, num_workers=1)
    list(loader)
    data.file = open(os.devnull)  # noqa: SIM115
    with data.file, pytest.raises(ringload.ConfigError, match=r"cannot be sent.*dataset.file is an open file"):
        iter(loader)


class Unmade(Indices):
    """Can be sent, and not made again."""

    size = 6

    def __init__(self) -> None:
        self.size = 7

    def __setstate__(self, state: Any) -> None:
        raise LookupError("not here")


def test_what_cannot_be_made_again_in_a_worker_is_said() -> None:
    with pytest.raises(
        ringload.ConfigError, match=r"dataset, the collate_fn or the worker_init_fn cannot be used in a DataLoader"
    ):
        next(iter(DataLoader(Unmade(), num_workers=1)))


class Mine(DataLoader[Any]):
    """A subclass of the generic class."""


def test_the_classes_may_be_subscripted() -> None:
    hint: DataLoader[int] = Mine(Indices(), 3)
    assert one_epoch(hint) == [[0, 1, 2], [3, 4, 5]]
    assert one_epoch(DataLoader[int](Indices(), 3)) == [[0, 1, 2], [3, 4, 5]]

    class Further(DataLoader[T]):
        def __len__(self) -> int:
            return 7

    assert len(Further[int](Indices())) == 7
    assert ringload.torch.Batches[dict[str, int]] is not None
