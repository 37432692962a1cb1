from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from ringload import ConfigError
from ringload.order.batched import CHUNK_ROWS
from ringload.order.loader_order import LoaderOrder
from ringload.order.permutation import permute, round_keys
from ringload.order.position import following
from ringload.order.randomness import Randomness, substitutes
from ringload.protocols import PAD
from tests.helpers import epoch_order, rows_of


def epoch_of(order: LoaderOrder, epoch: int = 0) -> list[np.ndarray]:
    return [rows_of(order, epoch, number).index for number in range(order.n_batches())]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 10, 16, 1000, 65_537, 100_003])
def test_a_permutation_is_one(n: int) -> None:
    image = permute(np.arange(n), n, round_keys(7, 3))
    np.testing.assert_array_equal(np.sort(image), np.arange(n))


def test_a_permutation_can_be_computed_entry_by_entry() -> None:
    keys, n = round_keys(7, 3), 5000
    whole = permute(np.arange(n), n, keys)
    for some in ([0], [4999, 17], range(100, 200)):
        np.testing.assert_array_equal(permute(np.array(some), n, keys), whole[np.array(some)])


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_permutation_is_as_likely(n: int) -> None:
    n_keys = 6000
    counts = Counter(tuple(permute(np.arange(n), n, round_keys(seed, 0))) for seed in range(n_keys))
    expected = n_keys / math.factorial(n)
    chi2 = sum((counts[p] - expected) ** 2 / expected for p in itertools.permutations(range(n)))
    degrees = math.factorial(n) - 1
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)  # five standard deviations


def test_where_a_sample_goes_is_uniform() -> None:
    n, n_keys = 101, 4000
    counts = np.zeros((n, n))
    for seed in range(n_keys):
        counts[np.arange(n), permute(np.arange(n), n, round_keys(seed, 1))] += 1
    expected = n_keys / n
    chi2 = ((counts - expected) ** 2 / expected).sum()
    degrees = (n - 1) ** 2
    assert abs(chi2 - degrees) < 6 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("last", ["drop", "keep", "pad"])
@pytest.mark.parametrize(
    ("n", "batch_size", "world"), [(10, 3, 1), (10, 3, 2), (10, 3, 4), (12, 3, 2), (7, 7, 1), (5, 2, 5), (100, 8, 3)]
)
def test_shares_of_an_epoch(n: int, batch_size: int, world: int, last: str) -> None:
    try:
        orders = [epoch_order(n, batch_size, True, 5, last, rank, world) for rank in range(world)]
    except ConfigError:
        assert last == "drop"
        assert n < batch_size * world
        return
    epochs = [epoch_of(order, 2) for order in orders]
    assert len({len(batches) for batches in epochs}) == 1  # the same number of batches on each rank
    for order, batches in zip(orders, epochs, strict=True):
        assert [len(batch) for batch in batches] == [order.n_rows(2, number) for number in range(order.n_batches())]
    rows = np.concatenate([batch for batches in epochs for batch in batches])
    samples = Counter(rows[rows != PAD].tolist())
    if last == "drop":
        assert set(samples.values()) == {1}
        assert len(samples) == n // (batch_size * world) * batch_size * world
    elif last == "pad":
        assert samples == Counter(range(n))
        assert all(len(batch) == batch_size for batches in epochs for batch in batches)
    else:
        assert set(samples) == set(range(n))
        assert samples.total() - n < world  # at most world - 1 come twice
        assert PAD not in rows


def test_padding_is_at_the_end_of_a_batch() -> None:
    for rank in range(4):
        for batch in epoch_of(epoch_order(10, 4, True, 1, "pad", rank, 4)):
            present = batch != PAD
            assert not (np.diff(present.astype(int)) > 0).any()


def test_without_shuffling_the_order_is_the_sources() -> None:
    np.testing.assert_array_equal(np.concatenate(epoch_of(epoch_order(20, 4, shuffle=False))), np.arange(20))
    np.testing.assert_array_equal(np.concatenate(epoch_of(epoch_order(20, 4, False, 0, "drop", 1, 2))), np.arange(1, 17, 2))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(np.concatenate(epoch_of(epoch_order(50, 5, True, seed), epoch)))
        for seed in (0, 1, 2**64 - 1)
        for epoch in range(4)
    }
    assert len(orders) == 12


def test_rows_of_a_batch_across_chunks() -> None:
    n = CHUNK_ROWS * 2 + 100
    order = epoch_order(n, 100, True, 3)
    whole = permute(np.arange(n), n, round_keys(3, 1))
    number = CHUNK_ROWS // 100  # this batch lies in two chunks
    np.testing.assert_array_equal(rows_of(order, 1, number).index, whole[number * 100 : number * 100 + 100])


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_samples": 5, "batch_size": 6},
        {"batch_size": 0},
        {"rank": 2, "world": 2},
        {"rank": -1},
        {"last": "all"},
    ],
)
def test_orders_that_cannot_be(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        epoch_order(**{"n_samples": 100, "batch_size": 10, **arguments})


def test_what_follows_a_batch() -> None:
    order = epoch_order(10, 3)
    assert [following(order, 0, 0), following(order, 0, 2), following(order, 4, 2)] == [(0, 1), (1, 0), (5, 0)]


def test_a_samples_randomness_is_its_own() -> None:
    randomness = Randomness(5)
    first = randomness.of(1, 7).random(100)
    others = [randomness.of(epoch, index).random(100) for epoch, index in ((1, 8), (2, 7), (1, 2**40))]
    others.append(Randomness(6).of(1, 7).random(100))
    for other in others:
        assert not np.isin(first, other).any()
    halfway = randomness.of(1, 7)
    halfway.integers(10, dtype=np.uint32)  # leaves half a word in the generator's buffer
    np.testing.assert_array_equal(randomness.of(1, 7).random(100), first)


def test_substitutes_depend_on_the_sample_alone() -> None:
    np.testing.assert_array_equal(substitutes(3, 2, 5, 1000, 16), substitutes(3, 2, 5, 1000, 16))
    assert (substitutes(3, 2, 5, 1000, 16) != substitutes(3, 2, 6, 1000, 16)).any()
    assert ((substitutes(3, 2, 5, 1000, 16) >= 0) & (substitutes(3, 2, 5, 1000, 16) < 1000)).all()
