"""Buckets: each sample once, batches of similar length within a budget; the same batches for any ranks, and when resumed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringload import Arrays, Buckets, ConfigError, Loader
from ringload.order.loader_order import LoaderOrder
from ringload.order.state import read_state, state_of
from tests.deaths import kill_all, members
from tests.helpers import Truth, check, content, epoch_order, go_on, rows_of


def lengths_of(n: int, seed: int = 0, longest: int = 2048) -> np.ndarray:
    """Log-normal, as those of texts are."""
    return np.clip(np.random.default_rng(seed).lognormal(5.5, 0.9, n), 1, longest).astype(np.int32)


def batches_of(order: LoaderOrder, epoch: int) -> list[list[int]]:
    return [rows_of(order, epoch, number).index.tolist() for number in range(order.n_batches(epoch))]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=300),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(60, 400)),
    st.sampled_from([1, 1.1, 2.5, 100]),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_each_sample_comes_once_and_no_batch_is_above_the_budget(
    lengths: list[int], batch_size: int, most: int | None, spread: float, least: int, epoch: int
) -> None:
    buckets = Buckets(lengths, max_elements=most, spread=spread, least=least)
    order = epoch_order(len(lengths), batch_size, seed=3, last="keep", order=buckets)
    batches = batches_of(order, epoch)
    assert sorted(sample for batch in batches for sample in batch) == list(range(len(lengths)))
    longest = [max(lengths[sample] for sample in batch) for batch in batches]
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    if most is not None:
        assert all(len(batch) * length <= most for batch, length in zip(batches, longest, strict=True))
    else:
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        assert len(batches) == -(-len(lengths) // batch_size)
    if len(batches) > 1:
        dropped = batches_of(epoch_order(len(lengths), batch_size, seed=3, last="drop", order=buckets), epoch)
        assert dropped in (batches, batches[:-1])
        assert most is not None or all(len(batch) == batch_size for batch in dropped)


@pytest.mark.parametrize("most", [None, 16_384])
def test_lengths_in_a_batch_are_similar(most: int | None) -> None:
    lengths = lengths_of(20_000)
    order = epoch_order(20_000, 32, last="keep", order=Buckets(lengths, max_elements=most))
    padded = real = 0
    ratios = []
    for batch in batches_of(order, 0):
        padded += len(batch) * int(lengths[batch].max())
        real += int(lengths[batch].sum())
        ratios.append(lengths[batch].max() / lengths[batch].min())
    assert 1 - real / padded < 0.1
    assert np.median(ratios) <= 1.1


def test_each_epoch_has_other_batches_in_another_order() -> None:
    lengths = lengths_of(4000)
    order = epoch_order(4000, 16, order=Buckets(lengths))
    first, second = ([set(batch) for batch in batches_of(order, epoch)] for epoch in (0, 1))
    assert len(first) == len(second) == order.n_batches(7)
    assert sum(batch in second for batch in first) < 5
    means = [lengths[list(batch)].mean() for batch in first]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3, "long and short batches are mixed"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 30), st.sampled_from(["drop", "keep", "pad"]))
def test_ranks_and_resuming_give_one_sequence(world: int, other: int, taken: int, last: Any) -> None:
    def orders(world: int) -> list[LoaderOrder]:
        buckets = Buckets(lengths_of(400), max_elements=4096)
        return [epoch_order(400, 8, True, 5, last, rank, world, buckets) for rank in range(world)]

    def dealt(orders: list[LoaderOrder], start: int, stop: int) -> list[list[int]]:
        return [rows_of(order, 1, number).index.tolist() for number in range(start, stop) for order in orders]

    (alone,) = orders(1)
    expected = batches_of(alone, 1)
    first, then = orders(world), orders(other)
    taken = min(taken, first[0].n_batches(1) - 1)
    found = dealt(first, 0, taken)
    states = [json.loads(json.dumps(state_of(order, 5, 1, taken))) for order in first]
    assert all(state == states[0] for state in states)
    places = {go_on(order, read_state(states[0])) for order in then}
    assert len(places) == 1
    epoch, number = places.pop()
    if epoch == 1:
        found += dealt(then, number, then[0].n_batches(1))
    assert found[: len(expected)] == expected[: len(found)]
    assert last == "drop" or len(found) >= len(expected)
    assert last != "drop" or len(expected) - len(found) < other


@pytest.mark.parametrize("last", ["drop", "keep", "pad"])
def test_deaths_and_workers_change_nothing(last: Any) -> None:
    options: dict[str, Any] = {"order": Buckets(lengths_of(200), max_elements=6000), "seed": 5, "restarts": None, "last": last}
    with Loader(Truth(200), 8, workers=0, **options) as alone:
        expected = [one for _ in range(3) for one in content(alone)]
    with Loader(Truth(200), 8, workers=2, ram_budget="200MB", **options) as loader:
        found, samples = [], []
        for count, batch in enumerate(batch for _ in range(3) for batch in loader):
            samples += check(batch).tolist()
            found += content([batch])
            if count % 25 == 2:
                kill_all(members(loader)[1:])
        assert loader.stats.n_restarts > 0
    assert found == expected
    assert len(set(samples)) == 200


def test_lengths_by_a_column_and_a_state_of_others() -> None:
    source = Arrays(x=np.arange(50), n=np.arange(50) % 7)
    with Loader(source, 5, workers=0, order=Buckets("n", spread=2)) as loader:
        for batch in loader:
            assert len(batch["n"]) == 5
        state = loader.state_dict()
    for other, said in ((Buckets("n"), "spread: 2.0 there, 1.1 here"), (Buckets("x", spread=2), "lengths: ")):
        with Loader(source, 5, workers=0, order=other) as loader, pytest.raises(ConfigError, match=said):
            loader.load_state_dict(state)


def test_no_samples_of_any_length() -> None:
    """All lengths are 0: the budget is that of rows."""
    order = epoch_order(20, 4, order=Buckets(np.zeros(20, int), max_elements=3))
    assert {len(batch) for batch in batches_of(order, 0)} == {3}


BAD: dict[str, tuple[Any, str]] = {
    "negative": (lambda: Buckets([1, -2, 3]), r"that of sample 1 is -2"),
    "large": (lambda: Buckets(np.array([1, 2, 1 << 40])), r"from 0 to 2,147,483,647; that of sample 2 is"),
    "few": (lambda: Buckets([1, 2]), r"there are 3 samples, and lengths of shape \(2,\): give one for each"),
    "float": (lambda: Buckets(np.ones(3)), r"lengths are integers, not float64"),
    "ragged": (lambda: Buckets([[1], [1, 2], 3]), r"lengths are integers, one for each sample"),
    "above": (lambda: Buckets([1, 9, 10], max_elements=8), r"sample 1 has length 9, and 1 others have more.*max_elements=8"),
    "most": (lambda: Buckets([1, 2, 3], max_elements=0), r"max_elements is an integer from 1 on"),
    "spread": (lambda: Buckets([1, 2, 3], spread=0.5), r"spread is a number from 1 on, not 0.5"),
    "least": (lambda: Buckets([1, 2, 3], least=0), r"least is an integer from 1 on"),
    "column": (lambda: Buckets("n"), r"names the column 'n', and .*Truth has no method column"),
    "too few": (lambda: Buckets([1, 2, 3]), r"3 samples do not fill a batch of 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    make, said = BAD[name]
    with pytest.raises(ConfigError, match=said):
        Loader(Truth(3), 4, workers=0, order=make())
