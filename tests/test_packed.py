"""Packed: each sample once, no row above its capacity, 95 % of it filled; the content of each sample as without packing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringload import Arrays, Batch, ConfigError, Field, Loader, Packed, SampleError
from ringload.order.loader_order import LoaderOrder
from ringload.order.packed import PackedRows
from ringload.order.randomness import Randomness
from ringload.order.state import read_state, state_of
from tests.deaths import kill_all, members
from tests.helpers import content, epoch_order, go_on, rows_of
from tests.test_buckets import lengths_of

MAX = 40
CAPACITY = 64
SEED = 5


class Text:
    """Tokens that are a function of the sample and of its random draws."""

    def __init__(self, n: int = 200, bad: Iterable[int] = ()) -> None:
        self.lengths = np.random.default_rng(1).integers(1, MAX + 1, n)
        self.bad = set(bad)
        self.fields = {"tokens": Field(MAX, "int32"), "pairs": Field((MAX, 2), "uint8"), "label": Field((), "int64")}

    def __len__(self) -> int:
        return len(self.lengths)

    def column(self, name: str) -> Any:
        return {"n_tokens": self.lengths}[name]

    def describe(self, index: int) -> str:
        return f"text {index}"

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if index in self.bad:
            raise ValueError("it is empty")
        n = self.lengths[index]
        out["tokens"][:n] = index * 100 + rng.integers(0, 100, n)
        out["pairs"][:n] = rng.integers(0, 100, (n, 2))
        out["label"] = index


class TextRows(Text):
    """The same, by `load_rows`; a field is assigned instead of written to."""

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        labels = out["label"]
        for row, index in enumerate(indices.tolist()):
            super().load(index, rngs[row], {name: values[row, ...] for name, values in out.items()})
        out["label"] = np.array(indices, labels.dtype)

    load = None  # type: ignore[assignment]


def packed(source: Any = None) -> Packed:
    return Packed(source or Text(), "n_tokens", CAPACITY, ("tokens", "pairs"))


def alone(source: Text, epoch: int, index: int) -> dict[str, Any]:
    """A sample as it is loaded without packing."""
    out: dict[str, Any] = {name: np.zeros(field.shape, field.dtype) for name, field in source.fields.items()}
    Text.load(source, index, Randomness(SEED).of(epoch, index), out)
    return out


def check(batch: Batch, source: Text) -> list[int]:
    """Verify every row of a batch. Returns its samples."""
    found = []
    for row, own in enumerate(batch["members"]):
        samples = own[own >= 0].tolist()
        lengths = source.lengths[samples]
        if "valid" in batch and not batch["valid"][row]:
            assert not batch["segment"][row].any()
            continue
        found += samples
        assert batch.index[row] == samples[0]
        assert (own[len(samples) :] == -1).all()
        assert lengths.sum() <= CAPACITY
        n = int(lengths.sum())
        np.testing.assert_array_equal(batch["segment"][row, :n], np.repeat(np.arange(len(samples)) + 1, lengths))
        np.testing.assert_array_equal(batch["position"][row, :n], np.concatenate([np.arange(length) for length in lengths]))
        expected = [alone(source, batch.epoch, sample) for sample in samples]
        for name in ("tokens", "pairs"):
            parts = [one[name][:length] for one, length in zip(expected, lengths, strict=True)]
            np.testing.assert_array_equal(batch[name][row, :n], np.concatenate(parts))
        for name in ("tokens", "pairs", "segment", "position"):
            assert not batch[name][row, n:].any()
        assert batch["label"][row].tolist() == samples + [0] * (len(own) - len(samples))
    return found


# -- the order --------------------------------------------------------------------------------------------------------


def rows_in(order: LoaderOrder, epoch: int) -> list[list[int]]:
    members = [rows_of(order, epoch, number).fields["members"] for number in range(order.n_batches(epoch))]
    return [row[row >= 0].tolist() for row in np.concatenate(members)]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.data(), st.integers(0, 3), st.one_of(st.none(), st.integers(1, 5)))
def test_each_sample_comes_once_and_no_row_is_above_its_capacity(
    capacity: int, data: Any, epoch: int, most: int | None
) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=200)), np.int32)
    made = PackedRows.of(lengths, capacity, most)
    rows = rows_in(epoch_order(len(lengths), 3, seed=4, last="keep", order=made), epoch)
    assert len(rows) == made.n_rows
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= capacity for row in rows)
    assert max(map(len, rows)) == made.most_samples <= (most or capacity)


@pytest.mark.parametrize(("n", "capacity"), [(1000, 2048), (20_000, 2048), (20_000, 8192), (200_000, 4096)])
def test_rows_are_filled(n: int, capacity: int) -> None:
    lengths = lengths_of(n, longest=capacity)
    assert PackedRows.of(lengths, capacity, None).n_rows * capacity * 0.95 <= lengths.sum()


def test_each_epoch_has_other_rows_in_another_order() -> None:
    order = epoch_order(20_000, 64, seed=1, order=PackedRows.of(lengths_of(20_000), 2048, None))
    first, second = ({frozenset(row) for row in rows_in(order, epoch)} for epoch in (0, 1))
    assert len(first & second) < len(first) / 10, "but for the longest, which are alone"
    assert rows_in(order, 0) != rows_in(order, 1)


def test_ranks_batch_sizes_and_resuming_give_one_sequence() -> None:
    made = PackedRows.of(lengths_of(600), 2048, None)
    expected = rows_in(epoch_order(600, 1, seed=SEED, last="keep", order=made), 1)
    rng = np.random.default_rng(3)
    for _ in range(6):
        state: dict[str, Any] = {}
        found: list[list[int]] = []
        for world in (8, 6, 3, 1):
            batch_size = int(rng.integers(1, 4))
            orders = [epoch_order(600, batch_size, True, SEED, "drop", rank, world, made) for rank in range(world)]
            number = 0
            if state:
                ((epoch, number),) = {go_on(order, read_state(json.loads(json.dumps(state)))) for order in orders}
                if epoch == 2:
                    break
            stop = min(number + int(rng.integers(0, 4)), orders[0].n_batches(1))
            for at in range(number, stop):
                batches = [rows_of(order, 1, at).fields["members"] for order in orders]
                found += [one[one >= 0].tolist() for row in range(batch_size) for one in (batch[row] for batch in batches)]
            state = state_of(orders[0], SEED, 1, stop)
        assert found == expected[: len(found)]


# -- the source -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Text, TextRows])
@pytest.mark.parametrize("last", ["keep", "pad"])
def test_content_is_as_without_packing(kind: type[Text], last: Any) -> None:
    source = kind()
    made = packed(source)
    assert made.fill > 0.9
    with Loader(made, 4, workers=0, seed=SEED, last=last) as loader:
        for _ in range(2):
            samples = [sample for batch in loader for sample in check(batch, source)]
            assert sorted(samples) == list(range(200))


def test_arrays_are_packed() -> None:
    lengths = np.arange(1, 9)
    tokens = np.arange(80).reshape(8, 10)
    with Loader(Packed(Arrays(tokens=tokens, n=lengths), "n", 10, "tokens"), 2, workers=0, last="keep") as loader:
        for batch in loader:
            for row, own in enumerate(batch["members"]):
                parts = [tokens[sample, : lengths[sample]] for sample in own[own >= 0]]
                n = sum(map(len, parts))
                np.testing.assert_array_equal(batch["tokens"][row, :n], np.concatenate(parts))
                np.testing.assert_array_equal(batch["n"][row, : len(parts)], lengths[own[own >= 0]])
        state = loader.state_dict()
    other = Packed(Arrays(tokens=tokens, n=lengths), "n", 11, "tokens")
    with Loader(other, 2, workers=0) as loader, pytest.raises(ConfigError, match="capacity: 10 there, 11 here"):
        loader.load_state_dict(state)


def test_deaths_and_workers_change_nothing() -> None:
    source = Text()
    with Loader(packed(source), 4, workers=0, seed=SEED) as one:
        expected = [batch for _ in range(3) for batch in content(one)]
    with Loader(packed(source), 4, workers=2, seed=SEED, restarts=None, ram_budget="200MB") as loader:
        found = []
        for count, batch in enumerate(batch for _ in range(3) for batch in loader):
            check(batch, source)
            found += content([batch])
            if count % 15 == 2:
                kill_all(members(loader)[1:])
        assert loader.stats.n_restarts > 0
    assert found == expected


def test_a_bad_sample_is_named_with_its_row() -> None:
    made = packed()
    rows = rows_in(epoch_order(200, 1, seed=SEED, order=made.default_order), 0)
    first, bad = next(row[:2] for row in rows if len(row) > 1)
    source = Text(bad=[bad])
    with Loader(packed(source), 4, workers=0, seed=SEED) as loader, pytest.raises(SampleError) as raised:
        list(loader)
    assert f"sample {first}" in str(raised.value)
    assert f"sample {bad} (text {bad}) of the same row: ValueError: it is empty" in str(raised.value)
    for on_error in ("skip", "replace"):
        with Loader(packed(source), 4, workers=0, seed=SEED, on_error=on_error, last="keep") as loader:
            samples = [sample for batch in loader for sample in check(batch, source)]  # substitutes are as without packing, too
        lost = next(row for row in rows if bad in row)
        assert set(range(200)) - set(samples) <= set(lost)
        assert bad not in samples
        assert [one.index for one in loader.stats.bad] == [first]


BAD: dict[str, tuple[Any, str]] = {
    "negative": (lambda: Packed(Text(3), [1, -2, 3], 64, "tokens"), r"Packed: lengths .* that of sample 1 is -2"),
    "zero": (lambda: Packed(Text(3), [1, 2, 0], 64, "tokens"), r"sample 2 has length 0"),
    "few": (lambda: Packed(Text(3), [1, 2], 64, "tokens"), r"3 samples, and lengths of shape \(2,\)"),
    "above": (lambda: Packed(Text(3), [1, 9, 3], 8, "tokens"), r"sample 1 has length 9: Packed has capacity=8: raise it"),
    "field too small": (lambda: Packed(Text(3), [1, 2, 41], 64, "tokens"), r"sample 2 .* field 'tokens' has room for 40"),
    "capacity": (lambda: Packed(Text(3), [1, 2, 3], 0, "tokens"), r"capacity is an integer from 1 on"),
    "most": (lambda: Packed(Text(3), [1, 2, 3], 64, "tokens", 0), r"max_samples is an integer from 1 on"),
    "no field": (lambda: Packed(Text(3), [1, 2, 3], 64, "token"), r"there is no field 'token'.*tokens"),
    "no fields": (lambda: Packed(Text(3), [1, 2, 3], 64, ()), r"at least one"),
    "number": (lambda: Packed(Text(3), [1, 2, 3], 64, "label"), r"field 'label' is one number a sample"),
    "again": (lambda: Packed(packed(), np.ones(200, int), 64, "tokens"), r"cannot be packed"),
    "own": (lambda: Packed(Arrays(segment=np.zeros((3, 4))), [1, 2, 3], 64, "segment"), r"adds the fields .*\['segment'\]"),
    "column": (lambda: Packed(object_without_columns(), "n", 64, "tokens"), r"names the column 'n', and .* no method column"),
    "order": (
        lambda: Loader(packed(), 4, order="sequence"),
        r"has its own order, .*\['members'\]: omit order= and shuffle=",
    ),
    "shuffle": (lambda: Loader(packed(), 4, shuffle=False), r"omit order= and shuffle="),
}


def object_without_columns() -> Any:
    class Bare:
        fields = Text().fields
        load = Text.load

        def __len__(self) -> int:
            return 3

    return Bare()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    make, said = BAD[name]
    with pytest.raises(ConfigError, match=said):
        make()
