"""`ringload.torch.DataLoader` over IterableDatasets: the batches of torch's own DataLoader, in its order; deaths; states."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import warnings
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader as TorchLoader  # noqa: E402
from torch.utils.data import Dataset, IterableDataset, get_worker_info  # noqa: E402

import ringload  # noqa: E402
from ringload.torch import DataLoader  # noqa: E402
from tests.conftest import Injected, Times  # noqa: E402
from tests.deaths import first_time, kill_all  # noqa: E402
from tests.moments import Moment, interrupt  # noqa: E402

FORK: dict[str, Any] = {"multiprocessing_context": "fork"}  # for torch's, too: else it imports this module in each worker
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Shares(IterableDataset):
    """Worker w of n has `lengths[w]` samples, each of which tells whose it is, and what was drawn for it. Some samples end
    their worker, once; some raise."""

    def __init__(self, lengths: list[int], size: int = 3, folder: Path | None = None, deadly: Any = (), bad: Any = ()) -> None:
        self.lengths, self.size, self.folder, self.deadly, self.bad = lengths, size, folder, set(deadly), set(bad)
        self.n_passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.n_passes += 1
        info = get_worker_info()
        worker = 0 if info is None else info.id
        seed = -1 if info is None else info.seed
        for at in range(self.lengths[worker]):
            if (worker, at) in self.deadly and first_time(self.folder / f"{worker}-{at}"):  # type: ignore[operator]
                os.kill(os.getpid(), signal.SIGKILL)
            if (worker, at) in self.bad:
                raise ArithmeticError(f"sample {at} of worker {worker}")
            drawn = (random.random(), np.random.random(), torch.rand(2))
            yield {
                "data": torch.full((self.size,), 100.0 * worker + at),
                "drawn": drawn,
                "text": f"{worker} {at} {self.n_passes}",
                "seed": seed,
            }


def plain(value: Any) -> Any:
    """A batch as what `==` compares."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.tolist())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def batches(loader: Any, seed: int = 3) -> list[Any]:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return [plain(batch) for batch in loader]


def texts(given: list[Any]) -> list[Any]:
    return [batch["text"] for batch in given]


def same_as_torch(dataset: Any, n_passes: int = 1, **options: Any) -> list[Any]:
    """What both give, which is the same."""
    ours, theirs = DataLoader(dataset, **options), TorchLoader(copy.deepcopy(dataset), **options)
    given: list[Any] = []
    for seed in range(n_passes):
        given = batches(ours, seed)
        assert given == batches(theirs, seed)
    ours.close()
    return given


@pytest.mark.parametrize("lengths", [[11, 3, 0, 20], [8, 8], [1], [0, 0]])
@pytest.mark.parametrize("how", [{"batch_size": 4}, {"batch_size": 4, "drop_last": True}, {"batch_size": None}])
def test_batches_are_torchs(lengths: list[int], how: dict[str, Any]) -> None:
    """Workers that end early, shorter batches, what is drawn, `get_worker_info()`: all as with torch."""
    given = same_as_torch(Shares(lengths), num_workers=len(lengths), **how, **FORK)
    n = sum(length // 4 for length in lengths) if how.get("drop_last") else -1
    assert n in (-1, len(given))


@pytest.mark.parametrize("how", [{"batch_size": 4}, {"batch_size": 4, "drop_last": True}, {"batch_size": None}])
def test_batches_are_torchs_without_workers(how: dict[str, Any]) -> None:
    same_as_torch(Shares([11]), 2, **how)


def drawing(samples: list[Any]) -> Any:
    return [sample["text"] for sample in samples], torch.rand(3), np.random.random()


def shared_out(worker: int) -> None:
    """Torch's documentation configures the copy of a worker like that."""
    info = get_worker_info()
    info.dataset.lengths = [worker + 2] * info.num_workers
    torch.rand(1)


def test_functions_of_the_users_are_called_as_torch_calls_them() -> None:
    given = same_as_torch(Shares([9, 9]), 2, batch_size=2, num_workers=2, collate_fn=drawing, worker_init_fn=shared_out, **FORK)
    assert [text for text, *_ in given] == [["0 0 1", "0 1 1"], ["1 0 1", "1 1 1"], ["1 2 1"]]


def test_clean_workers_give_the_same() -> None:
    forked = batches(DataLoader(Shares([9, 5]), 2, num_workers=2, **FORK))
    assert batches(DataLoader(Shares([9, 5]), 2, num_workers=2)) == forked


def test_copies_of_persistent_workers_stay_and_others_are_new() -> None:
    dataset = Shares([3, 2])
    for persistent, wanted in ((True, ["1", "2", "3"]), (False, ["1", "1", "1"])):
        options = {"batch_size": 2, "num_workers": 2, "persistent_workers": persistent, **FORK}
        ours, theirs = DataLoader(dataset, **options), TorchLoader(dataset, **options)
        for number in wanted:
            given = texts(batches(ours))
            assert given == texts(batches(theirs))
            assert given == [[f"0 0 {number}", f"0 1 {number}"], [f"1 0 {number}", f"1 1 {number}"], [f"0 2 {number}"]]
        for _ in ours:
            break  # the next pass begins anew
        assert len(batches(ours)) == 3
        dataset.lengths = [1, 1]
        assert len(batches(ours)) == (3 if persistent else 2)
        dataset.lengths = [3, 2]
        ours.close()


def test_an_error_takes_the_place_of_its_batch() -> None:
    """A generator that has raised has ended, so its worker gives nothing more; the others go on."""
    for loader in (DataLoader, TorchLoader):
        torch.manual_seed(1)
        passing, said = iter(loader(Shares([7, 5], bad={(0, 3)}), 2, num_workers=2, **FORK)), []
        while True:
            try:
                said.append(next(passing)["text"])
            except StopIteration:
                break
            except ArithmeticError as error:
                said.append(str(error).splitlines()[-1])
        error_text = "ArithmeticError: sample 3 of worker 0"
        assert said == [["0 0 1", "0 1 1"], ["1 0 1", "1 1 1"], error_text, ["1 2 1", "1 3 1"], ["1 4 1"]], loader
    said = []
    passing = iter(DataLoader(Shares([7], bad={(0, 3)}), 2))
    for _ in range(2):
        try:
            said.append(next(passing)["text"])
        except ArithmeticError:
            said.append("error")
    assert said == [["0 0 1", "0 1 1"], "error"]
    assert list(passing) == []


def failing(worker: int) -> None:
    raise LookupError(f"no worker {worker}")


def exits(samples: list[Any]) -> Any:
    raise {"0 0 1": SystemExit, "0 2 1": StopIteration}.get(samples[0]["text"], KeyError)("said")


def test_what_ends_a_process_is_an_error_of_its_batch() -> None:
    passing = iter(DataLoader(Shares([5]), 2, num_workers=1, collate_fn=exits))
    for kind, said in ((RuntimeError, "SystemExit"), (RuntimeError, "StopIteration was raised by"), (KeyError, "said")):
        with pytest.raises(kind, match=said):
            next(passing)
    assert list(passing) == []
    passing = iter(DataLoader(Shares([5, 5]), 2, num_workers=2, worker_init_fn=failing))
    for worker in range(2):
        with pytest.raises(LookupError, match=f"no worker {worker}"):
            next(passing)
    assert list(passing) == []


def test_len_is_torchs_and_what_is_beyond_is_warned_about() -> None:
    class Sized(Shares):
        def __len__(self) -> int:
            return 3

    for workers in (0, 1):
        for kind in (DataLoader, TorchLoader):
            loader = kind(Sized([9]), 2, num_workers=workers, **(FORK if workers else {}))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert sum(1 for _ in loader) == 5  # list() would ask for its len()
            assert len(loader) == 2
            with pytest.warns(UserWarning, match="Length of IterableDataset .* was reported to be 3") as caught:
                list(loader)
            assert len([one for one in caught if "Length of" in str(one.message)]) == 2  # of batches 4 and 5
    with pytest.raises(TypeError):
        len(DataLoader(Shares([3])))


def test_what_torch_refuses_is_refused() -> None:
    for wrong in ({"shuffle": True}, {"sampler": [1, 2]}, {"batch_sampler": [[1]]}):
        with pytest.raises(ValueError, match="IterableDataset"):
            DataLoader(Shares([3]), **wrong)
    pipe = torch.utils.data.datapipes.iter.IterableWrapper([1, 2])
    with pytest.raises(ringload.ConfigError, match="IterableWrapperIterDataPipe is a DataPipe"):
        DataLoader(pipe)


class Endless(IterableDataset):
    """Arrays of varying sizes, some of which are larger than a row of the ring."""

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        at = 0
        while True:
            n = (1 << 20) if (at + info.id) % 3 == 1 else 10 + at
            yield torch.full((n,), at, dtype=torch.float64) + info.id / 4
            at += 1


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_that_are_larger_than_a_slot_come_in_pieces(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringload.torch.dataloader.iterable_ring.FIRST_BYTES", 3 << 20)
    loader = DataLoader(Endless(), None, num_workers=workers)
    for _ in range(2):  # the second time with rows for the largest
        passing, n_early = iter(loader), 0
        for number, value in zip(range(24), passing, strict=False):
            at, worker = divmod(number, workers)
            assert len(value) == ((1 << 20) if (at + worker) % 3 == 1 else 10 + at)
            assert (value == at + worker / 4).all()
            n_early = max(n_early, sum(map(len, passing._books.arrived.values())))
        assert n_early <= 2 * workers, "others do not run ahead of a worker whose batch has many pieces"


# -- deaths, interruptions, states ------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("persistent", [False, True])
def test_deaths_at_any_sample_change_nothing(persistent: bool, tmp_path: Path, times: Times, injected: Injected) -> None:
    wanted = batches(DataLoader(Shares([11, 4, 7]), 2, num_workers=3, collate_fn=list))
    for number in range(times(2, 40)):
        folder = tmp_path / f"{persistent}-{number}"
        folder.mkdir()
        chosen = random.Random(number)
        deadly = [(worker, at) for worker, n in enumerate([11, 4, 7]) for at in range(0, n, 2) if chosen.random() < 0.3]
        dataset = Shares([11, 4, 7], folder=folder, deadly=deadly)
        loader = DataLoader(dataset, 2, num_workers=3, collate_fn=list, persistent_workers=persistent, restarts=None)
        assert batches(loader) == wanted
        loader.close()
        injected("deaths of workers that read an IterableDataset", len(deadly))


def test_workers_that_are_killed_from_outside_change_nothing() -> None:
    loader = DataLoader(Shares([40, 40]), 2, num_workers=2, restarts=None)
    wanted = texts(batches(loader))
    passing = iter(loader)
    given = []
    for number, batch in enumerate(passing):
        given.append(batch["text"])
        if number % 13 == 3:
            kill_all(passing._ring.feed.pids)
    assert given == wanted
    assert len(given) == 40


class Other(IterableDataset):
    """Gives something else each time it is read."""

    def __init__(self, folder: Path, n_fewer: int) -> None:
        self.folder, self.n_fewer = folder, n_fewer

    def __iter__(self) -> Iterator[Any]:
        is_first = first_time(self.folder / "read")
        for at in range(9 if is_first else 9 - self.n_fewer):
            if at == 6 and is_first:
                os.kill(os.getpid(), signal.SIGKILL)
            yield at + (0 if is_first or self.n_fewer else 100)


@pytest.mark.parametrize("n_fewer", [0, 7])
def test_a_dataset_that_gives_other_samples_is_noticed(n_fewer: int, tmp_path: Path) -> None:
    passing = iter(DataLoader(Other(tmp_path, n_fewer), 2, num_workers=1))
    given: list[int] = []
    with pytest.raises(RuntimeError, match="was read again after its worker was ended, and gives other samples"):
        given.extend(at for batch in passing for at in batch.tolist())
    assert given == list(range(len(given)))
    assert list(passing) == []


def test_a_batch_that_always_kills_its_worker_is_named(tmp_path: Path) -> None:
    class Deadly(Shares):
        def __iter__(self) -> Iterator[Any]:
            for sample in super().__iter__():
                if sample["text"] == "0 2 1":
                    os._exit(3)
                yield sample

    passing = iter(DataLoader(Deadly([5, 5]), 2, num_workers=2))
    assert next(passing)["text"] == ["0 0 1", "0 1 1"]
    assert next(passing)["text"] == ["1 0 1", "1 1 1"]
    with pytest.raises(RuntimeError, match=r"exited unexpectedly with exit code 3\. a batch of worker 0"):
        next(passing)
    assert texts(list(passing)) == [["1 2 1", "1 3 1"], ["1 4 1"]]
    passing = iter(DataLoader(Deadly([5]), 2, num_workers=1, restarts=0))
    next(passing)
    with pytest.raises(RuntimeError, match="That is more than restarts=0"):
        next(passing)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resuming_anywhere(workers: int) -> None:
    """A state that went through JSON; in a loader that has drawn other numbers before."""
    lengths = [7, 3, 5][: max(1, workers)]

    def made(**options: Any) -> DataLoader[Any]:
        return DataLoader(Shares(lengths), 2, num_workers=workers, **({"collate_fn": drawing} | options))

    wanted = batches(made())
    every = range(len(wanted))
    for number in every if not workers else random.Random(workers).sample(every, 3):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        first = made()
        passing = iter(first)
        for _ in range(number):
            next(passing)
        state = json.loads(json.dumps(first.state_dict()))
        del passing
        torch.rand(3)
        second = made()
        second.load_state_dict(state)
        assert [plain(batch) for batch in second] == wanted[number:], number
    if workers:
        with pytest.raises(ringload.ConfigError, match=f"num_workers: {workers} there, 4 here"):
            DataLoader(Shares([1] * 4), 2, num_workers=4).load_state_dict(state)


def test_after_the_end_comes_the_next_pass() -> None:
    loader = DataLoader(Shares([3]), 2, num_workers=1)
    list(loader)
    state = loader.state_dict()
    again = DataLoader(Shares([3]), 2, num_workers=1)
    again.load_state_dict(state)
    assert len(list(again)) == 2


@pytest.mark.fault
def test_interruptions_lose_nothing(times: Times, injected: Injected) -> None:
    wanted = texts(batches(DataLoader(Shares([9, 9]), 2, num_workers=2)))
    chosen, n = random.Random(1), 0
    for _ in range(times(2, 60)):
        loader = DataLoader(Shares([9, 9]), 2, num_workers=2)
        passing = iter(loader)
        for number, one in enumerate(wanted):
            if number % 3 == 1:
                with suppress(KeyboardInterrupt), Moment(chosen.randrange(1, 200), interrupt):
                    assert next(passing)["text"] == one
                n += 1
                if loader.state_dict()["_num_yielded"] > number:  # it was given, or lost on the way from next()
                    continue
            assert next(passing)["text"] == one
        with pytest.raises(StopIteration):
            next(passing)
    injected("interruptions of a pass over an IterableDataset", n)


class Hangs(IterableDataset):
    """Waits before sample 2 for a pipe that nobody opens."""

    def __init__(self, pipe: Path) -> None:
        self.pipe = pipe

    def __iter__(self) -> Iterator[int]:
        yield from (0, 1)
        with open(self.pipe):
            yield 2


def test_a_dataset_that_hangs_is_a_time_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    passing = iter(DataLoader(Hangs(tmp_path / "pipe"), 2, num_workers=1, timeout=0.5))
    assert next(passing).tolist() == [0, 1]
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0\.5 seconds: .*a batch of worker 0"):
        next(passing)


def test_no_batch_is_kept() -> None:
    loader = DataLoader(Shares([5]), 2, num_workers=1, persistent_workers=True)
    passing = iter(loader)
    batch = weakref.ref(next(passing)["data"])
    assert batch() is None
    list(passing)
    loader.close()


def test_map_style_datasets_go_the_other_way() -> None:
    class Squares(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            return index**2

    assert [batch.tolist() for batch in DataLoader(Squares(), 3)] == [[0, 1, 4], [9]]
