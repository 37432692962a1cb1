"""`ringload.torch.DataLoader` goes on where it was: states at any moment, for any number of workers."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import Dataset, DistributedSampler, RandomSampler, WeightedRandomSampler  # noqa: E402
from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402

import ringload  # noqa: E402
from ringload.torch import DataLoader  # noqa: E402

FORK: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}


class Drawing(Dataset):
    """`(index, a draw)`; has a state of its own."""

    def __init__(self) -> None:
        self.seen = 0

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> list[float]:
        return [index, torch.rand(1).item()]

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


class Countdown:
    """A sampler with a state."""

    def __init__(self) -> None:
        self.left = 20

    def __iter__(self) -> Iterator[int]:
        while self.left:
            self.left -= 1
            yield self.left
        self.left = 20

    def state_dict(self) -> dict[str, int]:
        return {"left": self.left}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.left = state["left"]


class Pairs:
    """A sampler of batches whose iterator has the state."""

    def __iter__(self) -> PairsIterator:
        return PairsIterator()


class PairsIterator:
    def __init__(self) -> None:
        self.n = 0

    def __iter__(self) -> PairsIterator:
        return self

    def __next__(self) -> list[int]:
        if self.n == 9:
            raise StopIteration
        self.n += 1
        return [self.n, 2 * self.n]

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n = state["n"]


def kinds() -> Iterator[dict[str, Any]]:
    yield {"batch_size": 4}
    yield {"batch_size": 4, "shuffle": True, "generator": torch.Generator().manual_seed(5)}
    yield {"batch_size": 4, "sampler": WeightedRandomSampler([1.0] * 23, 30, generator=torch.Generator().manual_seed(5))}
    yield {"batch_size": 4, "sampler": Countdown()}
    yield {"batch_sampler": Pairs(), "snapshot_every_n_steps": 4}
    yield {"batch_size": None, "shuffle": True, "generator": torch.Generator().manual_seed(5), "collate_fn": list}


def rows(batches: Any) -> list[Any]:
    return [[torch.as_tensor(part).tolist() for part in batch] for batch in batches]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("n_workers", [0, 2])
def test_resumes_anywhere(number: int, n_workers: int) -> None:
    """The rest of the epoch, and the next epoch, are as they would have been; with another number of workers."""
    torch.manual_seed(0)
    loader = DataLoader(Drawing(), **list(kinds())[number], **(FORK if n_workers else {}))
    loader.dataset.seen = 7
    states, whole = [loader.state_dict()], []
    for batch in loader:
        whole += rows([batch])
        states.append(loader.state_dict())
    states.append(loader.state_dict())
    following = rows(loader)
    n = len(whole)
    for k in [0, 1, n - 1, n, n + 1] if not n_workers else [0, 4, n + 1]:
        torch.manual_seed(123 + k)
        state = json.loads(json.dumps(states[k]))
        again = DataLoader(Drawing(), **list(kinds())[number], **({} if n_workers else FORK if k == 1 else {}))
        again.load_state_dict(state)
        if k <= n:
            assert rows(again) == whole[k:]
        assert again.dataset.seen == 7 or k > n
        torch.manual_seed(1)  # what the loader's own generator does not decide is torch's
        found = rows(again)
        assert [batch[0] for batch in found] == [batch[0] for batch in following]  # the indices
        assert found == following or number not in (1, 5)  # what is drawn too, if the loader's own generator decides it


def test_persistent_workers_draw_anew_in_each_epoch() -> None:
    """The same for any number of workers, and from a state in the middle of an epoch or at its end."""
    seen: list[Any] = []
    for n_workers in (2, 3):
        torch.manual_seed(1)
        loader = DataLoader(Drawing(), 4, persistent_workers=True, **FORK | {"num_workers": n_workers})
        states, epochs = [], []
        for _ in range(3):
            batches = iter(loader)
            epochs.append(rows([next(batches)]))
            states.append(loader.state_dict())
            epochs[-1] += rows(batches)
            states.append(loader.state_dict())
        seen.append(epochs)
    assert seen[0] == seen[1]
    draws = {draw for epoch in seen[0] for batch in epoch for draw in batch[1]}
    assert len(draws) == 3 * 23
    again = DataLoader(Drawing(), 4, persistent_workers=True, **FORK)
    again.load_state_dict(states[2])
    assert [rows(again), rows(again)] == [epochs[1][1:], epochs[2]]
    again.load_state_dict(states[1])
    assert rows(again) == epochs[1]
    in_process = DataLoader(Drawing(), 4)
    in_process.load_state_dict(states[2])
    assert rows(in_process) == epochs[1][1:]


def test_the_state_is_of_what_was_received() -> None:
    loader = DataLoader(Drawing(), 4, shuffle=True, **FORK)
    torch.manual_seed(3)
    batches = iter(loader)
    first = rows([next(batches)])
    state = loader.state_dict()
    assert state["_num_yielded"] == state["_sampler_iter_yielded"] == 1
    rest = rows(batches)
    assert loader.state_dict()["_iterator_finished"]
    loader.load_state_dict(state)
    assert loader.state_dict() == state  # to load and to ask is to have loaded
    assert rows(loader) == rest
    loader.load_state_dict({})
    assert len(rows(loader)) == len(first + rest)


def test_asking_before_the_first_batch_changes_nothing() -> None:
    seen = []
    for asks in (False, True):
        torch.manual_seed(3)
        loader = DataLoader(Drawing(), 4, shuffle=True)
        if asks:
            assert loader.state_dict()["_num_yielded"] == 0
        seen.append(rows(loader))
    assert seen[0] == seen[1]


def test_the_names_are_torchdatas() -> None:
    theirs = StatefulDataLoader(Drawing(), 4).state_dict()
    assert theirs.keys() <= DataLoader(Drawing(), 4).state_dict().keys()


def test_copies_have_workers_of_their_own() -> None:
    """After use, too: of a shallow copy, a deep one, and one that was pickled."""
    loader = DataLoader(Drawing(), 4, persistent_workers=True, **FORK)
    whole = list(range(23))
    assert indices(loader) == whole
    copies = copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))
    pairs = zip(loader, copies[0], strict=True)
    seen = list(zip(*[(rows([one])[0][0], rows([other])[0][0]) for one, other in pairs], strict=True))
    assert [[index for batch in batches for index in batch] for batches in seen] == [whole, whole]
    assert [indices(one) for one in (*copies, loader)] == [whole] * 4
    loader.load_state_dict(states_of(loader)[2])
    assert [indices(one) for one in (copy.copy(loader), loader)] == [whole[8:]] * 2  # it was told where to go on
    loader.load_state_dict(states_of(loader)[2])
    assert loader.state_dict()["_num_yielded"] == 2
    assert [indices(one) for one in (copy.copy(loader), loader)] == [whole[8:]] * 2


def indices(loader: Any) -> list[int]:
    return [index for batch in rows(loader) for index in batch[0]]


def states_of(loader: Any) -> list[Any]:
    """Of a pass, at its beginning and after each batch."""
    batches = iter(loader)
    return [loader.state_dict(), *(loader.state_dict() for _ in batches)]


class Shuffled:
    """A sampler that draws from Python's or NumPy's global generator."""

    def __init__(self, shuffle: Any, n: int = 23) -> None:
        self.shuffle, self.n = shuffle, n

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.n))
        self.shuffle(order)
        return iter(order)


@pytest.mark.parametrize("shuffle", [random.shuffle, np.random.shuffle])
def test_samplers_that_draw_from_other_generators(shuffle: Any) -> None:
    loader = DataLoader(Drawing(), 4, sampler=Shuffled(shuffle))
    batches = iter(loader)
    next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    rest = rows(batches)
    random.seed(9)
    np.random.seed(9)
    np.random.normal()  # keeps another for the next
    for options in ({}, FORK):
        again = DataLoader(Drawing(), 4, sampler=Shuffled(shuffle), **options)
        again.load_state_dict(state)
        before = random.getstate(), str(np.random.get_state())
        assert rows(again) == rest
        assert (random.getstate(), str(np.random.get_state())) == before


def test_states_of_other_orders_are_refused() -> None:
    state = json.loads(json.dumps(DataLoader(Drawing(), 4).state_dict()))
    for differing, told in (
        (DataLoader(Drawing(), 8), "batch_size: 4 there, 8 here"),
        (DataLoader(Drawing(), 4, drop_last=True), "drop_last: False there, True here"),
        (DataLoader(Drawing(), 4, shuffle=True), "sampler: 'SequentialSampler' there, 'RandomSampler' here"),
        (DataLoader(Drawing(), batch_sampler=[[1]]), "batch_sampler: 'BatchSampler' there, 'list' here"),
        (DataLoader(range(30), 4), "dataset_length: 23 there, 30 here"),
    ):
        with pytest.raises(ringload.ConfigError, match=told):
            differing.load_state_dict(state)
    again = DataLoader(Drawing(), 4, sampler=Unsized())
    again.load_state_dict(DataLoader(Drawing(), 4, sampler=Unsized()).state_dict())
    assert indices(again) == [1, 2]


class Unsized:
    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


def test_states_of_others_are_refused() -> None:
    loader = DataLoader(Drawing(), 4)
    with pytest.raises(ringload.ConfigError, match=r"lacks.*_num_yielded"):
        loader.load_state_dict({"_snapshot": {}})
    with pytest.raises(ringload.ConfigError, match="Countdown"):
        loader.load_state_dict(DataLoader(Drawing(), 4, sampler=Countdown()).state_dict())
    state = DataLoader(Drawing(), 4).state_dict()
    loader.load_state_dict(state | {"_index_sampler_state": {"left": 1}})
    with pytest.raises(ringload.ConfigError, match="load_state_dict"):
        iter(loader)
    loader.load_state_dict(DataLoader(Drawing(), 4, generator=torch.Generator()).state_dict())
    with pytest.raises(ringload.ConfigError, match="1 generators"):
        iter(loader)


class Plain(Dataset):
    """`(index, three draws)`, without a state."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> list[float]:
        return [index, random.random(), float(np.random.rand()), torch.rand(1).item()]


def trained(loader: Any, n: int, found: list[Any], draws: bool) -> None:
    """Receive `n` batches, over the ends of epochs; the trainer draws, too (dropout, say)."""
    while n:
        for batch in loader:
            found += rows([batch])
            if draws:
                random.random(), np.random.normal(), torch.rand(2)
            n -= 1
            if not n:
                break


class Drawn:
    """A sampler that draws as it goes."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(12):
            yield random.randrange(12)


ORDERS: dict[str, Any] = {
    "torch": ({"shuffle": True}, False),
    "torch, drawing": ({"shuffle": True}, True),
    "random": ({"sampler": Shuffled(random.shuffle, 12)}, False),
    "random, drawing": ({"sampler": Shuffled(random.shuffle, 12)}, True),
    "as it goes": ({"sampler": Drawn()}, False),
}


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(("options", "draws"), ORDERS.values(), ids=ORDERS)
def test_epochs_after_resumes_are_those_of_the_uninterrupted_run(options: Any, persistent: bool, draws: bool) -> None:
    """Order and augmentation, without a generator of the loader's own, over several resumes in a row, within epochs and
    between them, with other numbers of workers."""

    def make(n_workers: int) -> Any:
        kept = {"persistent_workers": True} if persistent and n_workers else {}
        return DataLoader(Plain(), 4, **options, **kept, **(FORK | {"num_workers": n_workers} if n_workers else {}))

    def run(n_workers: list[int], parts: list[int]) -> list[Any]:
        seed_all(7)
        found: list[Any] = []
        state: Any = None
        for n, part in zip(n_workers, parts, strict=True):
            loader = make(n)
            if state is not None:
                loader.load_state_dict(json.loads(state))
            trained(loader, part, found, draws)
            state = json.dumps(loader.state_dict())
            seed_all(part)  # in a fresh process
        return found

    whole = run([0], [15])
    orders = [tuple(index for batch in whole[i : i + 3] for index in batch[0]) for i in range(0, 15, 3)]
    assert len(set(orders)) == 5, "no two epochs are alike"
    if persistent:
        assert run([1, 2, 1, 2], [1, 3, 3, 8]) == run([2], [15])
    else:
        assert run([0, 2, 0, 1], [1, 3, 3, 8]) == whole
        assert run([1, 0, 2, 0], [2, 1, 4, 8]) == whole


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_torchdatas_goes_on_in_the_same_way(n_workers: int) -> None:
    """Both: the rest of an epoch and those behind it, in a process that is seeded otherwise."""
    workers = FORK | {"num_workers": n_workers} if n_workers else {}
    for kind in (StatefulDataLoader, DataLoader):
        torch.manual_seed(3)
        loader = kind(range(12), 4, shuffle=True, **workers)
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        whole = [[batch.tolist() for batch in batches], *([batch.tolist() for batch in loader] for _ in range(2))]
        torch.manual_seed(4)
        again = kind(range(12), 4, shuffle=True, **workers)
        again.load_state_dict(state)
        assert [[batch.tolist() for batch in again] for _ in range(3)] == whole, kind


@pytest.mark.parametrize("options", [FORK, {}], ids=["workers", "none"])
def test_set_epoch_after_a_state_was_asked_for(options: Any) -> None:
    """As accelerate does it, which asks when it is given the loader."""

    def epoch(number: int, asks: bool) -> list[Any]:
        sampler = DistributedSampler(range(20), 2, 0, seed=1)
        loader = DataLoader(range(20), 5, sampler=sampler, **options)
        if asks:
            assert loader.state_dict()["_num_yielded"] == 0
            loader.load_state_dict(loader.state_dict())
            loader.state_dict()
        sampler.set_epoch(number)
        return [batch.tolist() for batch in loader]

    assert epoch(3, True) == epoch(3, False) != epoch(0, False)


def test_a_state_before_the_first_batch_goes_on_with_what_is_drawn_then() -> None:
    """The first epoch is that of the loader that gave it; what is drawn before it is drawn again."""
    seen = []
    state: Any = None
    for n in range(2):
        seed_all(n)
        generator = torch.Generator().manual_seed(n)
        loader = DataLoader(Plain(), 4, sampler=RandomSampler(Plain(), generator=generator), **(FORK if n else {}))
        if n:
            loader.load_state_dict(json.loads(json.dumps(state)))
        else:
            state = loader.state_dict()
        seen.append([torch.rand(1).item(), rows(loader), rows(loader)])
    assert seen[0] == seen[1]
