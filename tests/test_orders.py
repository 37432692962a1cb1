"""Orders: each sample as often as is promised; the same global sequence for any batch size, number of ranks, and resumes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ringload import Arrays, Balanced, Blocks, ConfigError, Explicit, Loader, Rows, Weighted
from ringload.order.loader_order import LoaderOrder
from ringload.order.permutation import permute_each, round_keys
from ringload.order.shares import by_shares
from ringload.order.state import read_state, state_of
from tests.deaths import kill_all, members
from tests.helpers import Truth, check, content, epoch_order, go_on, rows_of

LABELS = np.array(["a"] * 5 + ["b"] * 40 + ["c"] * 55)
OF_ALL: dict[str, Any] = {  # each sample once an epoch
    "shuffle": "shuffle",
    "sequence": "sequence",
    "blocks": Blocks(7, 3),
    "one block": Blocks(1000, 3),
    "blocks of one": Blocks(1, 1),
    "weighted once": Weighted(np.arange(1.0, 101.0), replacement=False),
    "listed": Explicit(lambda epoch: np.random.default_rng(epoch).permutation(100)),
}
REPEATED: dict[str, Any] = {  # some come several times
    "weighted": Weighted(np.arange(100.0)),
    "more": Weighted(np.ones(100), n=250),
    "balanced": Balanced(LABELS),
    "shares": Balanced(LABELS, weights={"a": 3, "c": 1.5}, n=130),
    "function": lambda epoch: Weighted(np.arange(100.0) ** epoch) if epoch % 2 else "sequence",
    "indices": lambda epoch: iter(np.random.default_rng(epoch).integers(0, 100, 90)),
}
ALL = OF_ALL | REPEATED


def sequence(given: Any, epoch: int, n: int) -> list[tuple[int, int]]:
    """(sample, key) at each position of an epoch."""
    order = epoch_order(100, 1, seed=5, last="keep", order=given)
    rows = [rows_of(order, epoch, number) for number in range(n)]
    return [(int(one.index[0]), int(one.index[0] if one.key is None else one.key[0])) for one in rows]


# -- what comes how often ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_ALL)
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_each_sample_comes_once(name: str, epoch: int) -> None:
    assert sorted(sample for sample, _ in sequence(OF_ALL[name], epoch, 100)) == list(range(100))
    if name != "sequence":
        assert sequence(OF_ALL[name], epoch, 100) != sequence(OF_ALL[name], epoch + 1, 100)


@pytest.mark.parametrize("name", REPEATED)
def test_where_a_sample_comes_twice_it_draws_anew(name: str) -> None:
    n = epoch_order(100, 1, order=REPEATED[name]).n_batches(1)
    drawn = sequence(REPEATED[name], 1, n)
    assert len({sample for sample, _ in drawn}) < n, "some come twice"
    assert len(set(drawn)) == n


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 12), st.integers(0, 3))
def test_blocks_stay_together(n: int, size: int, window: int, epoch: int) -> None:
    order = epoch_order(n, 1, seed=3, order=Blocks(size, window))
    samples = np.concatenate([rows_of(order, epoch, number).index for number in range(n)])
    assert sorted(samples.tolist()) == list(range(n))
    places = np.argsort(samples)
    for start in range(0, n // size * size, size):
        own = places[start : start + size]
        assert own.max() - own.min() < size * window + n % size


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 2**40))
def test_permutations_of_several_sizes_at_once(sizes: list[int], number: int) -> None:
    places = np.concatenate([np.arange(size) for size in sizes])
    of = np.repeat(sizes, sizes)
    images = permute_each(places, of, np.repeat(np.arange(len(sizes)), sizes) + number, round_keys(1, 2))
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        assert sorted(images[start:end].tolist()) == list(range(end - start))
    np.testing.assert_array_equal(images[:1], permute_each(places[:1], of[:1], np.array([number]), round_keys(1, 2)))


@pytest.mark.parametrize("replacement", [True, False])
def test_weights_are_frequencies(replacement: bool) -> None:
    """Within five standard deviations; without replacement, of the first position."""
    weights = np.array([0, 1, 2, 3, 0, 10, 0.5, 0])
    n = 4000
    if replacement:
        order = epoch_order(8, n, seed=9, order=Weighted(weights, n=n))
        drawn = rows_of(order, 3, 0).index
    else:
        drawn = np.concatenate(
            [
                rows_of(epoch_order(8, 1, seed=9, order=Weighted(weights, replacement=False)), epoch, 0).index
                for epoch in range(n)
            ]
        )
    counts = np.bincount(drawn, minlength=8)
    for count, share in zip(counts.tolist(), weights / weights.sum(), strict=True):
        assert abs(count - n * share) <= 5 * math.sqrt(n * share * (1 - share))


def test_without_replacement_samples_without_weight_do_not_come() -> None:
    weights = np.array([1.0, 0, 2, 0, 3])
    order = epoch_order(5, 1, order=Weighted(weights, replacement=False))
    assert order.n_batches() == 3
    assert {int(rows_of(order, 0, number).index[0]) for number in range(3)} == {0, 2, 4}


def test_the_last_sample_with_a_weight_is_the_last_that_is_drawn() -> None:
    order = epoch_order(1000, 1000, order=Weighted(np.r_[np.full(3, 1e-3), 1e300, np.zeros(996)]))
    assert set(rows_of(order, 0, 0).index.tolist()) == {3}


# -- shares -----------------------------------------------------------------------------------------------------------


def largest_error(shares: np.ndarray, n: int) -> float:
    part, within = by_shares(shares).at(np.arange(n))
    errors = [np.abs(np.cumsum(part == k) - np.arange(1, n + 1) * share).max() for k, share in enumerate(shares.tolist())]
    for k in range(len(shares)):
        np.testing.assert_array_equal(within[part == k], np.arange((part == k).sum()))
    np.testing.assert_array_equal(by_shares(shares).counts(n, len(shares)), np.bincount(part, minlength=len(shares)))
    return float(max(errors))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=4))
def test_counts_of_up_to_four_parts_are_within_one(weights: list[float]) -> None:
    assert largest_error(np.array(weights) / sum(weights), 3000) < 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=12).filter(any))
def test_counts_of_whole_units_are_within_one(units: list[int]) -> None:
    assert largest_error(np.array(units) / sum(units), 3000) < 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=5, max_size=40))
def test_counts_of_more_parts_are_nearly_within_one(weights: list[float]) -> None:
    assert largest_error(np.array(weights) / sum(weights), 3000) < 1.5


def test_positions_far_away_are_as_exact() -> None:
    shares = np.array([0.7, 0.2, 0.1])
    start = 20_000_000
    before = by_shares(shares).counts(start, 3)
    part, within = by_shares(shares).at(np.arange(start, start + 1000))
    for k in range(3):
        np.testing.assert_array_equal(within[part == k], before[k] + np.arange((part == k).sum()))
        assert abs(before[k] - start * shares[k]) < 1


@pytest.mark.parametrize("name", ["balanced", "shares"])
def test_classes_come_in_their_shares_and_go_through_their_samples(name: str) -> None:
    shares = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3} if name == "balanced" else {"a": 2 / 3, "b": 0, "c": 1 / 3}
    n = 100 if name == "balanced" else 130
    drawn = np.array([sample for epoch in range(6) for sample, _ in sequence(REPEATED[name], epoch, n)])
    for label, share in shares.items():
        own = drawn[LABELS[drawn] == label]
        assert abs(len(own) - share * len(drawn)) < 6
        size = int((label == LABELS).sum())
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size].tolist())) == size, "each sample once before any comes again"


# -- ranks, and resuming on others ------------------------------------------------------------------------------------


def received(orders: list[LoaderOrder], epoch: int, numbers: range) -> list[tuple[int, int]]:
    """(sample, key) of all ranks, in the order of their positions."""
    found = []
    for number in numbers:
        batches = [rows_of(order, epoch, number) for order in orders]
        for row in range(max(len(one.index) for one in batches)):
            has_row = [one for one in batches if row < len(one.index)]
            found += [(int(one.index[row]), int(one.index[row] if one.key is None else one.key[row])) for one in has_row]
    return found


@pytest.mark.parametrize("name", ALL)
def test_any_ranks_and_batch_sizes_make_one_sequence(name: str) -> None:
    """8 -> 6 -> 8 -> 3 ranks and more, resumed at any position, through JSON."""
    rng = np.random.default_rng(7)
    for epoch in (0, 1):
        state: dict[str, Any] = {}
        found: list[tuple[int, int]] = []
        n = 0
        for world in (8, 6, 8, 3, 1, 2):
            batch_size = int(rng.integers(1, 4))
            orders = [epoch_order(100, batch_size, True, 5, "drop", rank, world, ALL[name]) for rank in range(world)]
            n = orders[0].n_positions(epoch)
            number = 0
            if state:
                places = {go_on(order, read_state(json.loads(json.dumps(state)))) for order in orders}
                assert len(places) == 1
                now, number = places.pop()
                if now != epoch:
                    break
            taken = int(rng.integers(0, 3))
            stop = min(number + taken, orders[0].n_batches(epoch))
            found += received(orders, epoch, range(number, stop))
            if stop == orders[0].n_batches(epoch):
                break
            states = [state_of(order, 5, epoch, stop) for order in orders]
            assert all(one == states[0] for one in states)
            state = states[0]
        assert found == sequence(ALL[name], epoch, n)[: len(found)]
        assert len(found) > 20


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["shuffle", "blocks", "weighted", "balanced"]),
    st.sampled_from(["drop", "keep", "pad"]),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(0, 80),
)
@example("shuffle", "drop", 7, 12, 17)  # no batch is left
def test_the_rest_of_an_epoch_is_complete(name: str, last: Any, world: int, batch_size: int, start: int) -> None:
    try:
        orders = [epoch_order(100, batch_size, True, 5, last, rank, world, ALL[name]) for rank in range(world)]
    except ConfigError:
        return
    state = {"version": 2, "epoch": 2, "position": start, "step": 1, "grid": [-1, 0], "seed": 5, "order": {}}
    places = {go_on(order, state) for order in orders}
    assert len(places) == 1
    epoch, number = places.pop()
    if epoch == 3:
        assert last == "drop"
        assert 100 - start < world * batch_size
        return
    n_batches = {order.n_batches(2) for order in orders}
    assert len(n_batches) == 1
    assert number < max(n_batches)
    found = [one for one in received(orders, 2, range(number, n_batches.pop())) if one[0] >= 0]
    wanted = sequence(ALL[name], 2, 100)[start:]
    if last == "pad":
        assert found == wanted
    elif last == "drop":
        assert found == wanted[: len(found)]
        assert len(wanted) - len(found) < world * batch_size
    else:
        assert Counter(found) - Counter(wanted) == Counter(found[len(wanted) :])
        assert not Counter(wanted) - Counter(found)


@pytest.mark.parametrize("name", ["shuffle", "weighted", "balanced", "function"])
def test_a_resumed_epoch_is_followed_by_whole_ones(name: str) -> None:
    order = epoch_order(100, 7, seed=5, last="keep", order=ALL[name])
    state = {"version": 2, "epoch": 1, "position": 30, "step": 1, "grid": [-1, 0], "seed": 5, "order": {}}
    assert go_on(order, state) == (1, 4)
    for epoch in (2, 3, 0):
        assert received([order], epoch, range(order.n_batches(epoch))) == sequence(ALL[name], epoch, order.n_positions(epoch))


def test_batches_are_dealt_to_ranks_in_turn() -> None:
    batches = [[1, 2], [3], [4, 5], [6], [7, 8], [9, 10], [11]]
    for last, n in (("drop", 2), ("keep", 3), ("pad", 3)):
        orders = [epoch_order(20, 2, True, 5, last, rank, 3, Explicit(batches)) for rank in range(3)]
        assert {order.n_batches(0) for order in orders} == {n}
        got = [rows_of(orders[k % 3], 0, k // 3).index.tolist() for k in range(3 * n)]
        if last == "pad":
            assert got == [[1, 2], [3, -1], [4, 5], [6, -1], [7, 8], [9, 10], [11, -1], [-1, -1], [-1, -1]]
        else:
            assert got == (batches + batches[:2])[: 3 * n]


def test_padded_batches_have_padded_fields() -> None:
    """What an order has written into fields of its rows."""

    class Noted:
        def n_batches(self, epoch: int) -> int:
            return 3

        def rows(self, epoch: int, number: int) -> Rows:
            index = np.arange(number + 1)
            return Rows(index, fields={"label": np.stack([index, index], axis=1) + 7})

    orders = [epoch_order(20, 3, last="pad", rank=rank, world=2, order=Noted()) for rank in range(2)]
    whole, short = rows_of(orders[0], 0, 1), rows_of(orders[1], 0, 0)
    assert (whole.index.tolist(), whole.fields["label"].shape) == ([0, 1, 2], (3, 2))
    assert (short.index.tolist(), short.fields["label"].tolist()) == ([0, 1, -1], [[7, 7], [8, 8], [0, 0]])


def test_states_of_version_1_load() -> None:
    old: dict[str, Any] = {
        "version": 1,
        "epoch": 3,
        "position": 4,
        "seed": 5,
        "n_samples": 100,
        "batch_size": 4,
        "shuffle": True,
    }
    old |= {"last": "drop", "shard": [1, 2]}
    with Loader(Truth(100), 4, workers=0, seed=5, shard=(1, 2)) as loader:
        loader.load_state_dict(old)
        assert (loader.epoch, loader.position) == (3, 4)
    with Loader(Truth(100), 3, workers=0, seed=5, last="keep") as loader:
        loader.load_state_dict(old)
        indices = [int(index) for batch in loader for index in check(batch)]
        assert indices == [sample for sample, _ in sequence("shuffle", 3, 100)][32:]
    with (
        Loader(Truth(100), 3, workers=0, seed=5, shuffle=False) as loader,
        pytest.raises(ConfigError, match=r"kind: 'shuffle' there, 'sequence' here"),
    ):
        loader.load_state_dict(old)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["shuffle", "weighted"])
def test_batches_that_were_filled_ahead_are_those_of_the_grid(name: str, workers: int) -> None:
    """A resumed epoch begins at batch 0, as one that is passed as a whole does, with other samples."""
    options: dict[str, Any] = {"order": ALL[name], "seed": 5, "ram_budget": "200MB", "workers": workers}
    whole = [sample for sample, _ in sequence(ALL[name], 0, 100)]
    with Loader(Truth(100), 5, **options) as first:
        next(iter(first))
        state = first.state_dict()
    with Loader(Truth(100), 20, **options) as loader:
        loader.peek()  # they are filled
        loader.load_state_dict(state)
        assert (loader.epoch, loader.position) == (0, 0)
        assert [int(index) for batch in loader for index in check(batch)] == whole[5:85]
        assert (loader.epoch, loader.position) == (1, 0)
        loader.set_epoch(0)
        assert [int(index) for batch in loader for index in check(batch)] == whole
        loader.load_state_dict(state)
        loader.peek()
        loader.set_epoch(0)
        assert check(next(iter(loader))).tolist() == whole[:20]


def numbered(loader: Loader) -> Iterator[tuple[tuple[int, int], Any]]:
    while loader.epoch < 6:  # more than is filled ahead of the first kill
        for batch in loader:
            yield (batch.epoch, batch.number), batch


@pytest.mark.parametrize("name", ["blocks", "weighted", "balanced", "function", "indices"])
def test_deaths_and_workers_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringload.ring.plan.MAX_SLOTS", 4)  # or all batches were there when they are killed
    options: dict[str, Any] = {"order": ALL[name], "seed": 5, "restarts": None, "ram_budget": "200MB"}
    with Loader(Truth(100), 8, workers=0, **options) as alone:
        expected = {place: content([batch]) for place, batch in numbered(alone)}
    with Loader(Truth(100), 8, workers=2, **options) as loader:
        for count, (place, batch) in enumerate(numbered(loader)):
            assert content([batch]) == expected[place]
            if count % 24 == 2:
                kill_all(members(loader)[1:])
        assert loader.stats.n_restarts > 0


# -- weights that change ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_other_weights_are_in_force_from_the_next_batch_on(workers: int) -> None:
    first, second = np.r_[np.ones(50), np.zeros(50)], np.r_[np.zeros(50), np.ones(50)]
    with Loader(Truth(100), 5, workers=workers, order=Weighted(first), seed=5, ram_budget="200MB") as loader:
        iterator = iter(loader)
        before = [check(next(iterator)) for _ in range(3)]
        loader.reweight(second)
        state = json.loads(json.dumps(loader.state_dict()))
        after = [check(batch) for batch in iterator]
        assert (np.concatenate(before) < 50).all()
        assert (np.concatenate(after) >= 50).all()
        assert len(before) + len(after) == 20
        assert all((check(batch) >= 50).all() for batch in loader)
    with Loader(Truth(100), 5, workers=workers, order=Weighted(first), seed=5, ram_budget="200MB") as loader:
        loader.load_state_dict(state)
        for batch, expected in zip(loader, after, strict=True):
            np.testing.assert_array_equal(check(batch), expected)


def test_states_have_the_weights_that_are_in_force_there() -> None:
    first, second, third = np.ones(10), np.eye(10)[3], np.eye(10)[7]

    def make() -> Loader:
        return Loader(Truth(10), 2, workers=0, order=Weighted(first), seed=5)

    with make() as loader, make() as other:
        begin = loader.state_dict()
        by_first = [check(batch).tolist() for batch in loader]
        loader.reweight(second)
        assert all((check(batch) == 3).all() for batch in loader)
        before = loader.state_at(0, 2)  # of an adapter that is behind
        other.load_state_dict(before)
        assert [check(batch).tolist() for batch in other] == by_first[2:]
        loader.load_state_dict(begin)
        assert [check(batch).tolist() for batch in loader] == by_first
    with make() as loader, make() as other:
        loader.reweight(second)  # before the first batch
        state = loader.state_dict()
        other.load_state_dict(state)
        assert all((check(batch) == 3).all() for batch in other)
        iterator = iter(loader)
        next(iterator)
        loader.reweight(third)
        next(iterator)
        loader.reweight(second)
        loader.load_state_dict(state)
        assert all((check(batch) == 3).all() for batch in loader), "no weights from between"


def test_a_function_of_the_epoch_draws_the_same_on_each_rank() -> None:
    found: list[int] = []
    for rank in range(2):
        order = epoch_order(16, 2, rank=rank, world=2, order=lambda epoch: np.random.permutation(16))
        found += [int(index) for number in range(4) for index in rows_of(order, 0, number).index]
    assert sorted(found) == list(range(16))


def test_an_epoch_without_a_batch_is_refused() -> None:
    class Lists:
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            return iter(range(3 if self.epoch else 8))

    said = "3 samples of epoch 1 do not fill a batch of 4"
    with Loader(Truth(8), 4, workers=0, order=Lists()) as loader, pytest.raises(ConfigError, match=said):
        [check(batch) for _ in range(2) for batch in loader]


def test_states_say_which_sample_is_of_which_class() -> None:
    labels = np.repeat([0, 1], 8)
    with Loader(Truth(16), 4, workers=0, order=Balanced(labels)) as loader:
        state = loader.state_dict()
    other = Balanced(labels[::-1].copy())
    with Loader(Truth(16), 4, workers=0, order=other) as loader, pytest.raises(ConfigError, match="members: "):
        loader.load_state_dict(state)


def test_tiny_weights_have_their_order() -> None:
    order = epoch_order(4, 3, order=Weighted(np.array([0, 3e-311, 1e-311, 1]), replacement=False))
    assert sorted(rows_of(order, 0, 0).index.tolist()) == [1, 2, 3]


def test_classes_of_narrow_types() -> None:
    for classes in (
        np.array([-100, 100] * 8, "int8"),
        np.array([2**63, 2**63 + 1] * 8, "uint64"),
        np.array([200, 3] * 8, "u1"),
    ):
        order = epoch_order(16, 8, order=Balanced(classes, weights={int(classes[0]): 1}))
        assert set(classes[rows_of(order, 0, 0).index].tolist()) == {int(classes[0])}
    with pytest.raises(ConfigError, match="the classes cannot be sorted"):
        epoch_order(4, 2, order=Balanced(np.array(["a", None, 1, 2], object)))


def test_what_cannot_be_reweighted() -> None:
    for order in ("shuffle", Weighted(np.ones(20), replacement=False), Explicit([[1, 2]])):
        with (
            Loader(Truth(20), 4, workers=0, order=order) as loader,
            pytest.raises(ConfigError, match=r"reweight\(\) is for a loader with order=ringload.Weighted"),
        ):
            loader.reweight(np.ones(20))
    with (
        Loader(Truth(20), 4, workers=0, order=Weighted(np.ones(20))) as loader,
        pytest.raises(ConfigError, match=r"reweight: there are 20 samples, and .* shape \(3,\)"),
    ):
        loader.reweight([1, 2, 3])


# -- what others have written -----------------------------------------------------------------------------------------


def test_torchs_samplers() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedRandomSampler

    data = list(range(100))
    for sampler in (
        RandomSampler(data),
        SequentialSampler(data),
        WeightedRandomSampler(torch.arange(100.0), 100),
        DistributedSampler(data, 2, 1, seed=3),
        BatchSampler(RandomSampler(data), 6, drop_last=False),
    ):
        before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist()
        got = []
        for workers in (0, 1):
            with Loader(Truth(100), 6, workers=workers, order=sampler, seed=5, last="keep", ram_budget="200MB") as loader:
                got.append([check(batch).tolist() for _ in range(2) for batch in loader])
        assert got[0] == got[1], "the same again, as the global generators are seeded"
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[1]
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(1)
            assert [index for batch in got[0][len(got[0]) // 2 :] for index in batch] == list(sampler)
        elif not isinstance(sampler, SequentialSampler):
            assert got[0][: len(got[0]) // 2] != got[0][len(got[0]) // 2 :], "each epoch has an order of its own"


def generator(epoch: int) -> Iterator[np.ndarray]:
    for number in range(4 + epoch):
        yield np.arange(number, number + 5)


def test_a_generator_function_lists_batches_of_its_own() -> None:
    with Loader(Truth(100), 6, workers=1, order=generator, ram_budget="200MB") as loader:
        for epoch in range(3):
            assert len(loader) == 4 + epoch
            assert [check(batch).tolist() for batch in loader] == [list(range(n, n + 5)) for n in range(4 + epoch)]


def test_a_list_that_is_not_the_same_again_is_refused() -> None:
    rng = np.random.default_rng(0)
    with Loader(Truth(100), 5, workers=0, order=lambda epoch: rng.permutation(100).tolist()) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with (
        Loader(Truth(100), 5, workers=0, order=lambda epoch: rng.permutation(100).tolist()) as loader,
        pytest.raises(ConfigError, match=r"listed: .* there, .* here"),
    ):
        loader.load_state_dict(state)


class Short:
    def __len__(self) -> int:
        return 30

    def __iter__(self) -> Iterator[int]:
        return iter(range(20))


def raising(epoch: int) -> Iterator[int]:
    yield 1
    raise KeyError("no such luck")


class Positions:
    """An order by position that says what it is told to."""

    def __init__(self, rows: Any, n: Any = 20) -> None:
        self._rows, self._n = rows, n

    def n_positions(self, epoch: int) -> Any:
        return self._n

    def at(self, epoch: int, positions: np.ndarray) -> Any:
        return self._rows


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (Weighted(np.ones(19)), r"Weighted: there are 20 samples, and weights of shape \(19,\)"),
        (Weighted(np.r_[np.ones(19), -1]), r"Weighted: weights are finite and not negative; that of sample 19 is -1"),
        (Weighted(np.r_[np.ones(18), np.nan, 1]), "that of sample 18 is nan"),
        (Weighted(np.r_[np.inf, np.ones(19)]), "that of sample 0 is inf"),
        (Weighted(np.zeros(20)), "all weights are 0"),
        (Weighted(np.full(20, 1e308)), "the sum of the weights is not finite"),
        (Weighted(["x"] * 20), "weights are numbers, one for each sample"),
        (Weighted("weight"), r"names the column 'weight', and .* has no method column\(name\)"),
        (Weighted(np.ones(20), n=21, replacement=False), "n=21 samples without replacement, and 20 have a weight"),
        (Balanced(np.zeros(3)), r"Balanced: there are 20 samples, and classes of shape \(3,\)"),
        (Balanced(np.arange(20) % 2, weights={7: 1}), r"no sample is of the classes \[7\]: the classes are \[0, 1\]"),
        (Balanced(np.arange(20) % 2, weights={0: -1}), "weights are finite, not negative, and not all 0"),
        (Balanced(np.arange(20) % 2, weights=[1, 2]), "weights are a dict"),
        (Explicit([[1, 2], [3, 20]]), "lists the index 20, as number 3: the source has 20 samples"),
        (Explicit([-1, 2, 3, 4]), "lists the index -1, as number 0"),
        (Explicit([[1, 2, 3, 4, 5]]), r"item 0 is .*: a batch is an array of 1 to batch_size=4 indices"),
        (Explicit([[1], []]), "item 1 is"),
        (Explicit([0.5, 1.0]), "item 0 is 0.5"),
        (Explicit([]), "lists nothing"),
        (Explicit(7), "Explicit takes an iterable, or a function of the epoch"),
        (Short(), r"ends after 20 items, and its len\(\) is 30"),
        (raising, "epoch 0, raised after 1 items: KeyError: 'no such luck'"),
        (lambda epoch: 7, "order= is 'shuffle', 'sequence'"),
        (lambda epoch: generator, "returned a function for epoch 0: return an order"),
        (lambda: 7, "raised for epoch 0: TypeError"),
        (Positions(np.arange(3)), r"order.at\(0, positions\) has 3 rows for 8,192 positions"),
        (Positions(np.arange(8192) % 20 + 1), r"index has 1 to 20; it has to be from 0 to 19"),
        (Positions(np.arange(20), 0), r"order.n_positions\(0\) is 0"),
    ],
)
def test_orders_that_cannot_be_are_named(order: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said), Loader(Truth(20), 4, workers=0, order=order) as loader:
        next(iter(loader))


def test_arguments_that_cannot_be() -> None:
    for make, said in (
        (lambda: Blocks(0), "size"),
        (lambda: Blocks(3, 0), "window"),
        (lambda: Weighted([1], n=0), "n"),
        (lambda: Weighted([1], replacement=2), "replacement"),
        (lambda: Balanced([1], n=-1), "n"),
        (lambda: Loader(Truth(20), 4, workers=0, order="shuffle", shuffle=True), "shuffle= and order= both say"),
    ):
        with pytest.raises(ConfigError, match=said):
            make()


def test_an_iterator_is_read_once() -> None:
    with Loader(Truth(20), 4, workers=0, order=iter(range(20)), last="keep") as loader:
        assert [check(batch).tolist() for batch in loader] == [list(range(n, n + 4)) for n in range(0, 20, 4)]
        with pytest.raises(ConfigError, match="is an iterator, which can be read once"):
            list(loader)


def test_columns_of_sources() -> None:
    source = Arrays(x=np.arange(100), weight=np.r_[np.zeros(99), 1.0], label=LABELS == "a")
    with Loader(source, 10, workers=0, order=Weighted("weight")) as loader:
        assert (next(iter(loader))["x"] == 99).all()
    with Loader(source, 10, workers=0, order=Balanced("label")) as loader:
        assert next(iter(loader))["label"].sum() == 5
    with pytest.raises(ConfigError, match=r"wight.*weight"):
        Loader(source, 10, workers=0, order=Weighted("wight"))


def test_a_function_of_the_epoch_and_ranks() -> None:
    def curriculum(epoch: int) -> Any:
        return Weighted(np.r_[np.ones(10), np.zeros(90)]) if epoch == 0 else Rows  # not an order

    with Loader(Truth(100), 10, workers=0, order=curriculum) as loader:
        for batch in loader:
            assert (check(batch) < 10).all()
            if batch.number == 8:
                break
        with pytest.raises(ConfigError, match="order= is 'shuffle'"):
            list(loader)
