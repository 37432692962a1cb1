"""Mixes of sources: each as often as its share, each sample once before any comes again, and the same on any ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringload import Arrays, ConfigError, Field, FunctionSource, ImageFrame, Loader, Weighted, mix
from ringload.order.choose import loader_order
from ringload.order.loader_order import LoaderOrder
from ringload.order.mixed import BLOCK, MOST_BLOCKS, Mix, apportioned
from ringload.order.state import read_state, state_of
from ringload.protocols import Binding
from tests.deaths import kill_all, members
from tests.helpers import Truth, TruthRows, content, go_on, truth
from tests.test_orders import received

Sizes = list[int]


def order_of(
    sizes: Sizes, weights: Any, stop: Any, batch_size: int = 1, rank: int = 0, world: int = 1, shuffle: bool = True
) -> LoaderOrder:
    names = [str(number) for number in range(len(sizes))]
    by_name = weights if callable(weights) or weights is None else dict(zip(names, weights, strict=True))
    binding = Binding(sum(sizes), batch_size, 5, lambda name: np.empty(0), shuffle=shuffle)
    return loader_order(Mix(names, sizes, by_name, stop), binding, rank, world)


def samples_of(order: LoaderOrder, epoch: int, n: int) -> np.ndarray:
    """The samples of the first `n` batches, which are those of `rows`: another test compares them."""
    positions: Any = order
    made: np.ndarray = positions.by_position.at(epoch, np.arange(n * order.batch_size)).index
    return made


def fading(n: int) -> dict[str, float]:
    """The first source gives way to the second; the third is there at the beginning alone."""
    return {"0": max(0.0, 1 - n / 60_000), "1": 0.2 + n / 60_000, "2": float(n < 3 * BLOCK)}


mixes = st.lists(st.tuples(st.integers(1, 60), st.floats(0.02, 1)), min_size=1, max_size=4)
stops = st.sampled_from(["first", "longest"])


# -- counts -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(mixes, stops, st.booleans())
def test_counts_of_any_beginning_are_within_one_and_each_sample_comes_once_a_cycle(
    sources: list[tuple[int, float]], stop: str, shuffle: bool
) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    order = order_of(sizes, weights, stop, shuffle=shuffle)
    starts = np.cumsum([0, *sizes])
    drawn: list[list[int]] = [[] for _ in sizes]
    for epoch in range(3):
        samples = samples_of(order, epoch, order.n_batches(epoch))
        which = np.searchsorted(starts, samples, side="right") - 1
        counts = np.bincount(which, minlength=len(sizes))
        for number, weight in enumerate(weights):
            errors = np.cumsum(which == number) - np.arange(1, len(which) + 1) * weight / sum(weights)
            assert np.abs(errors).max() < 1
            drawn[number] += (samples[which == number] - starts[number]).tolist()
        if stop == "first":
            assert (counts <= sizes).all()
            assert (counts == sizes).any()
        else:
            assert (counts >= sizes).all()
            assert counts[which[-1]] == sizes[which[-1]], "it ends as soon as that is so"
    for own, size in zip(drawn, sizes, strict=True):
        for start in range(0, len(own) - size + 1, size):
            cycle = own[start : start + size]
            assert sorted(cycle) == list(range(size))
            assert shuffle or cycle == list(range(size))


def test_by_default_weights_are_sizes() -> None:
    samples = samples_of(order_of([30, 70], None, "first"), 0, 100)
    assert sorted(samples) == list(range(100))
    assert abs((samples[:50] < 30).sum() - 15) < 1


def test_a_source_without_weight_does_not_come_and_ends_no_epoch() -> None:
    for stop in ("first", "longest"):
        order = order_of([10, 3, 20], [1, 0, 1], stop)
        assert abs(order.n_batches(0) - (20 if stop == "first" else 40)) <= 1
        samples = samples_of(order, 0, order.n_batches(0))
        assert not ((samples >= 10) & (samples < 13)).any()


def test_an_endless_epoch_has_an_order_of_its_own_each_time() -> None:
    order = order_of([10, 30], [1, 1], "never", 4)
    assert order.n_batches(0) == 1 << 59
    first, second = (samples_of(order, epoch, 20) for epoch in (0, 1))
    assert first.tolist() != second.tolist()
    far = order.rows(0, 10**12)
    assert far is not None
    assert (far.index < 10).sum() == 2
    sequence = order_of([10, 30], [1, 1], "never", 4, shuffle=False)
    assert sorted(samples_of(sequence, 0, 1)) == sorted(samples_of(sequence, 7, 1)) == [0, 1, 10, 11]


# -- schedules --------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 5000), min_size=2, max_size=4),
    st.lists(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), min_size=1, max_size=6),
)
def test_counts_of_a_schedule_are_within_two_of_the_integral(sizes: Sizes, plan: list[list[float]]) -> None:
    def weights(n: int) -> dict[str, float]:
        now = plan[n // BLOCK % len(plan)]
        return {str(number): now[number] for number in range(len(sizes))}

    order = order_of(sizes, weights, "never", 1000)
    n = 45_000
    samples = samples_of(order, 0, n // 1000)
    starts = np.cumsum([0, *sizes])
    which = np.searchsorted(starts, samples, side="right") - 1
    shares = np.array([list(weights(place).values()) for place in range(0, n, BLOCK)]).repeat(BLOCK, 0)[:n]
    shares /= shares.sum(1, keepdims=True)
    for number, size in enumerate(sizes):
        assert np.abs(np.cumsum(which == number) - np.cumsum(shares[:, number])).max() < 2
        own = samples[which == number]
        for start in range(0, len(own) - size + 1, size):
            assert len(np.unique(own[start : start + size])) == size


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=9).filter(lambda one: one[0][1] > 0.01))
def test_what_is_apportioned_fills_the_block(given: list[tuple[float, float]]) -> None:
    shares = [share / sum(share for _, share in given) for _, share in given]
    wanted = [error + BLOCK * share for (error, _), share in zip(given, shares, strict=True)]
    got = apportioned(wanted, shares)
    assert sum(got) == BLOCK
    assert min(got) >= 0
    assert not any(count for count, share in zip(got, shares, strict=True) if not share)


@pytest.mark.parametrize("stop", ["first", "longest"])
def test_epochs_of_a_schedule_end_as_those_of_fixed_weights(stop: str) -> None:
    order = order_of([300, 9000, 70], fading, stop) if stop == "first" else order_of([300, 900, 70], fading, stop)
    sizes = [300, 9000, 70] if stop == "first" else [300, 900, 70]
    starts = np.cumsum([0, *sizes])
    for epoch in range(3):
        samples = samples_of(order, epoch, order.n_batches(epoch))
        counts = np.bincount(np.searchsorted(starts, samples, side="right") - 1, minlength=3)
        assert (counts <= sizes).all() if stop == "first" else (counts >= sizes).all()
        assert (counts == sizes).any()


def test_a_source_that_a_schedule_leaves_out_does_not_come() -> None:
    order = order_of([100, 100, 100], fading, "never", 1024)
    samples = samples_of(order, 0, 32)
    assert (samples[: 3 * BLOCK] >= 200).any()
    assert not (samples[3 * BLOCK :] >= 200).any()


def test_an_epoch_of_a_schedule_that_has_no_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_BLOCKS * BLOCK >= 10**9
    monkeypatch.setattr("ringload.order.mixed.MOST_BLOCKS", 3)
    with pytest.raises(ConfigError, match=r"epoch 0 with stop='longest' does not end: after 32,768 samples it has .*'1': 0"):
        order_of([10, 10], lambda n: {"0": 1, "1": 0}, "longest")


# -- ranks, and resuming on others ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["fixed", "sizes", "schedule"]),
    st.sampled_from(["first", "longest", "never"]),
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=6),
    st.integers(0, 2),
)
def test_any_ranks_and_batch_sizes_make_one_sequence(
    kind: str, stop: str, steps: list[tuple[int, int, int]], epoch: int
) -> None:
    sizes = [40, 90, 25]
    weights = {"fixed": [0.5, 0.3, 0.2], "sizes": None, "schedule": fading}[kind]
    found: list[tuple[int, int]] = []
    state: dict[str, Any] = {}
    for world, batch_size, n in steps:
        orders = [order_of(sizes, weights, stop, batch_size, rank, world) for rank in range(world)]
        number = 0
        if state:
            places = {go_on(order, read_state(json.loads(json.dumps(state)))) for order in orders}
            assert len(places) == 1
            now, number = places.pop()
            if now != epoch:
                break
        end = min(number + n, orders[0].n_batches(epoch))
        found += received(orders, epoch, range(number, end))
        state = state_of(orders[0], 5, epoch, end)
        assert all(state_of(order, 5, epoch, end) == state for order in orders)
    alone = order_of(sizes, weights, stop, 1)
    assert found == received([alone], epoch, range(len(found)))


# -- what is loaded ---------------------------------------------------------------------------------------------------


def load(index: int, rng: np.random.Generator, out: Any) -> None:
    draw = int(rng.integers(1 << 30))
    out["image"], out["label"], out["draw"] = truth(index, draw), index, draw


class Told(TruthRows):
    """Has all that a source may have."""

    scratch_bytes = 1000
    told = 0

    def start(self, worker: Any) -> None:
        self.told = 1

    def prefetch(self, indices: np.ndarray) -> None:
        assert (indices < self.n).all()

    def describe(self, index: int) -> str:
        return f"the {index}th of {self.n}"

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        assert self.told
        super().load_rows(indices, rngs, out)

    def column(self, name: str) -> np.ndarray:
        return np.arange(self.n) * 10


FIELDS = Truth().fields
SOURCES: dict[str, Callable[[], dict[str, Any]]] = {
    "load": lambda: {"a": Truth(50), "b": FunctionSource(load, FIELDS, 20), "c": Truth(10)},
    "load_rows": lambda: {"a": TruthRows(50), "b": Told(20)},
    "both": lambda: {"a": TruthRows(50), "b": Truth(20), "c": Told(9)},
}
SIZES = {"load": [50, 20, 10], "load_rows": [50, 20], "both": [50, 20, 9]}


def check_mix(batch: Any, sizes: Sizes) -> None:
    starts = np.cumsum([0, *sizes])
    which = np.searchsorted(starts, batch.index, side="right") - 1
    np.testing.assert_array_equal(batch["source"], which)
    np.testing.assert_array_equal(batch["label"], batch.index - starts[which])
    for image, label, draw in zip(batch["image"], batch["label"].tolist(), batch["draw"].tolist(), strict=True):
        np.testing.assert_array_equal(image, truth(label, draw))


@pytest.mark.parametrize("kind", SOURCES)
def test_bytes_are_the_same_for_any_workers_and_deaths(kind: str) -> None:
    options: dict[str, Any] = {"seed": 5, "restarts": None, "ram_budget": "300MB"}
    expected = {}
    with Loader(mix(SOURCES[kind](), stop="longest"), 7, workers=0, **options) as loader:
        for _ in range(6):  # more than is filled ahead of the first kill
            for batch in loader:
                check_mix(batch, SIZES[kind])
                expected[batch.epoch, batch.number] = content([batch])
    for workers in (1, 2):
        with Loader(mix(SOURCES[kind](), stop="longest"), 7, workers=workers, **options) as loader:
            for _ in range(6):  # more than is filled ahead of the first kill
                for batch in loader:
                    assert content([batch]) == expected[batch.epoch, batch.number]
                    if workers == 2 and batch.number == 2 and batch.epoch % 3 == 0:
                        kill_all(members(loader)[1:])
            assert workers == 1 or loader.stats.n_restarts > 0


def test_a_sample_that_comes_twice_draws_anew() -> None:
    with Loader(mix({"a": Truth(3), "b": Truth(30)}, {"a": 1, "b": 1}, "longest"), 60, workers=0) as loader:
        batch = next(iter(loader))
        own = batch["draw"][batch["source"] == 0]
        assert len(own) == 30
        assert len(np.unique(own)) == 30


def test_missing_fields_are_filled() -> None:
    one = Arrays(x=np.arange(40), box=np.ones((40, 4), np.float32))
    other = Arrays(x=np.arange(20), mask=np.ones((20, 2), np.uint8))
    source = mix({"a": one, "b": other}, missing={"box": -1, "mask": np.array([3, 4], np.uint8)})
    assert source.fields == {
        "x": Field((), "int64"),
        "box": Field((4,), "float32"),
        "mask": Field((2,), "uint8"),
        "source": Field((), "int64"),
    }
    for workers in (0, 1):
        with Loader(source, 12, workers=workers, ram_budget="200MB") as loader:
            for batch in loader:
                is_a = batch["source"] == 0
                np.testing.assert_array_equal(batch["x"], batch.index - 40 * batch["source"])
                np.testing.assert_array_equal(batch["box"], np.where(is_a, 1, -1)[:, None].repeat(4, 1))
                np.testing.assert_array_equal(batch["mask"], np.where(is_a[:, None], [3, 4], 1))


def test_large_rows_are_loaded_in_pieces() -> None:
    x = np.random.default_rng(0).integers(0, 255, (24, 700_000), np.uint8)
    with Loader(mix({"a": Arrays(x=x[:12]), "b": Arrays(x=x[12:])}), 24, workers=0, shuffle=False) as loader:
        for batch in loader:
            np.testing.assert_array_equal(batch["x"], x[batch.index])


@pytest.mark.parametrize("kind", SOURCES)
def test_bad_samples_are_named_with_their_source(kind: str) -> None:
    sources = SOURCES[kind]()
    for source in sources.values():
        if isinstance(source, TruthRows):
            source.__class__ = BadRows
        else:
            source.load = bad
    with Loader(mix(sources), 20, workers=0, on_error="skip", max_bad=100, last="keep") as loader:
        for batch in loader:
            _, rows = loader.batch_rows(batch)
            np.testing.assert_array_equal(~batch["valid"], rows == 4)
        said = {one.where for one in loader.stats.bad}
    assert {text.partition(":")[0] for text in said} == set(sources)


def bad(index: int, rng: np.random.Generator, out: Any) -> None:
    load(index, rng, out)
    if index == 4:
        raise ValueError("no such luck")


class BadRows(TruthRows):
    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        super().load_rows(indices, rngs, out)
        if (indices == 4).any():
            raise ValueError("no such luck")


def test_what_a_function_does_not_write_is_named() -> None:
    def forgets(index: int, rng: np.random.Generator, out: Any) -> None:
        out["x"] = 1

    def assigns_others(index: int, rng: np.random.Generator, out: Any) -> None:
        out["x"], out["z"] = 1, 2

    fields = {"x": Field((), "int64"), "y": Field((), "int64")}
    others = Arrays(x=np.arange(5), y=np.arange(5), z=np.arange(5))
    for function, said in ((forgets, r"did not write the fields \['y'\]"), (assigns_others, "there is no field 'z'")):
        source = mix({"a": FunctionSource(function, fields, 5), "b": others}, missing={"z": 0})
        with Loader(source, 10, workers=0) as loader, pytest.raises(Exception, match=said):
            next(iter(loader))


def test_everything_that_sources_say_is_passed_on() -> None:
    arrays = Arrays(x=np.arange(5))
    assert not mix({"a": arrays, "b": arrays}).random
    assert not mix({"a": arrays, "b": arrays}).calls_user_code
    source = mix({"a": TruthRows(7), "b": Told(20)})
    assert source.random
    assert source.global_random
    assert source.calls_user_code
    assert not source.is_own
    assert source.scratch_bytes == 1000
    assert (source.describe(3), source.describe(10)) == ("a: sample 3", "b: the 3th of 20")
    assert source.names == ["a", "b"]
    with pytest.raises(ConfigError, match=r"column 'x' of the source 'a': .* has no method column"):
        source.column("x")
    both = mix({"a": Told(3), "b": Told(2)})
    assert both.column("x").tolist() == [0, 10, 20, 0, 10]
    assert both.column("source").tolist() == [0, 0, 0, 1, 1]
    with Loader(both, 4, workers=0, order=Weighted(both.column("source"))) as loader:
        assert (next(iter(loader))["source"] == 1).all()
    with pytest.raises(AttributeError, match=r"Mixed.sources cannot be set"):
        both.sources = {}


def test_images_and_arrays(photos: Path) -> None:
    frame = ImageFrame(photos / "photos.csv", size=(8, 8), max_pixels=10**6, flip=True)
    noise = Arrays(image=np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), np.uint8))
    source = mix({"photos": frame, "noise": noise}, {"photos": 1, "noise": 3}, "longest")
    assert source.scratch_bytes == frame.scratch_bytes
    assert not source.refuses_large
    got = []
    for workers in (0, 2):
        with Loader(source, 8, workers=workers, ram_budget="400MB") as loader:
            got.append([one for batch in loader for one in content([batch])])
    assert got[0] == got[1]
    train, validation = source.split(0.4)
    assert train.augmentation["photos"]["flip"]
    assert not validation.augmentation["photos"]["flip"]
    assert validation.names == source.names


def test_sources_that_refuse_large_samples_and_those_that_do_not(photos: Path) -> None:
    table = photos / "photos.csv"
    refuses, does_not = ImageFrame(table, size=(8, 8)), ImageFrame(table, size=(8, 8), max_pixels=10**6)
    arrays = Arrays(image=np.zeros((3, 8, 8, 3), np.uint8))
    assert mix({"a": refuses, "b": arrays}).refuses_large
    assert not mix({"a": refuses, "b": does_not}).refuses_large


def test_the_state_of_a_mix_is_of_its_sources_and_weights() -> None:
    def made(n: int = 50, names: str = "ab", weights: Any = None, x: int = 0) -> Any:
        one, other = Arrays(x=np.arange(n) + x), Arrays(x=np.arange(20))
        return mix({names[0]: one, names[1]: other}, weights and dict(zip(names, weights, strict=True)))

    def loaded(source: Any, **options: Any) -> None:
        with Loader(source, 5, workers=0, **options) as loader:
            loader.load_state_dict(state)
            assert [batch.index.tolist() for batch in loader] == rest

    with Loader(made(), 5, workers=0) as loader:
        batches = iter(loader)
        next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
        rest = [batch.index.tolist() for batch in batches]
    loaded(made())
    for source, options, said in (
        (made(names="ba"), {}, r"sources and sizes \[\['a', 50\], \['b', 20\]\], this one"),
        (made(x=1), {}, r"source 'a' of the mix: the arrays \['x'\] have other content"),
        (made(weights=(1, 1)), {}, r"another order \(n: .*shares"),
        (made(), {"shuffle": False}, r"kind: 'shares' there, 'shares, in sequence' here"),
        (made(51), {}, "sizes"),
    ):
        with pytest.raises(ConfigError, match=said):
            loaded(source, **options)


def test_a_schedule_goes_on_after_resuming_and_another_one_is_refused() -> None:
    one, other = Arrays(x=np.arange(9000)), Arrays(x=np.arange(500))

    def loader(weights: Any) -> Loader:
        return Loader(mix({"a": one, "b": other}, weights), 100, workers=0, seed=3)

    def weights(n: int) -> dict[str, float]:
        return {"a": 1 + n / 8192, "b": 1}

    with loader(weights) as made:
        batches = [batch.index.tolist() for _ in range(3) for batch in made]
        made.set_epoch(2)
        next(iter(made))
        state = json.loads(json.dumps(made.state_dict()))
    with loader(weights) as made:
        made.load_state_dict(state)
        rest = [batch.index.tolist() for batch in made]
        assert rest == batches[-len(rest) :]
    with loader(lambda n: {"a": 2 + n / 8192, "b": 1}) as made, pytest.raises(ConfigError, match="belongs to another order"):
        made.load_state_dict(state)


# -- without an end ---------------------------------------------------------------------------------------------------


@pytest.mark.needs("tensorflow", "keras")
def test_an_endless_mix_in_keras_and_tensorflow() -> None:
    import keras
    import tensorflow as tf

    import ringload.keras
    import ringload.tf

    one = Arrays(x=np.zeros((20, 3), np.float32), y=np.zeros(20, np.float32))
    source = mix({"a": one, "b": one}, stop="never")
    with Loader(source, 4, workers=0, copy=True) as loader:
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile(loss="mse")
        history = model.fit(ringload.keras.dataset(loader, "x", "y"), steps_per_epoch=7, epochs=3, verbose=0)
        assert len(history.history["loss"]) == 3
        assert loader.epoch == 0
    with Loader(source, 4, workers=0, copy=True) as loader:
        made = ringload.tf.as_dataset(loader, "x", "y")
        assert made.cardinality() == tf.data.INFINITE_CARDINALITY
        assert len(list(made.take(30))) == 30


# -- bad input --------------------------------------------------------------------------------------------------------


class Ordered(Truth):
    default_order = "sequence"


class LoadsAgain(Truth):
    def load_again(self) -> bool:
        return False


X = Arrays(x=np.arange(4))
BOTH = {"a": X, "b": X}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mix([X, X]), "sources are a dict, name -> source"),
        (lambda: mix({}), "sources are a dict"),
        (
            lambda: mix({1: X}),  # type: ignore[dict-item]
            "sources are a dict",
        ),
        (lambda: mix({"a": load}), r"source 'a': .* is no source of samples: give ringload.FunctionSource\("),
        (lambda: mix({"a": np.zeros(3)}), r"source 'a': .*numpy.ndarray is no source.*ringload.Arrays"),
        (lambda: mix({"a": mix(BOTH)}), "source 'a' is a mix itself, whose weights would be lost"),
        (lambda: mix({"a": Ordered(3)}), "source 'a': .* has an order of its own"),
        (lambda: mix({"a": LoadsAgain(3)}), "source 'a': .* has begin_task or load_again"),
        (lambda: mix({"a": Truth(0)}), "has no samples"),
        (lambda: mix({"a": Arrays(source=np.arange(3))}), "source 'a' has a field 'source', which the mix writes"),
        (lambda: mix({"a": X, "b": Arrays(x=np.zeros(3))}), r"field 'x' is \(\) int64 in 'a' and \(\) float64 in 'b'"),
        (lambda: mix({"a": X, "b": Arrays(y=np.zeros(3))}), r"'a' has no field 'y', which 'b' has: .* missing=\{'y': 0\}"),
        (lambda: mix(BOTH, missing={"y": 0}), "missing= names the field 'y'"),
        (lambda: mix(BOTH, missing=["x"]), "missing is a dict"),
        (lambda: mix(BOTH, missing={"x": 0.5}), r"missing=\{'x': 0.5\}: field 'x' takes \(\) int64, got the float 0.5"),
        (lambda: mix(BOTH, missing={"x": [1, 2]}), r"missing=.*got \(2,\) int64"),
        (lambda: mix(BOTH, [1, 2]), "weights are a dict, name of a source -> its weight"),
        (lambda: mix(BOTH, {"a": 1}), r"no weight for \['b'\]"),
        (lambda: mix(BOTH, {"a": 1, "b": 1, "aa": 1}), "there is no source 'aa'; .* did you mean 'a'"),
        (lambda: mix(BOTH, {"a": 1, "b": -1}), "finite, not negative, and not all 0"),
        (lambda: mix(BOTH, {"a": 1, "b": float("nan")}), "finite"),
        (lambda: mix(BOTH, {"a": 0, "b": 0}), "not all 0"),
        (
            lambda: mix(BOTH, {"a": "x", "b": 0}),  # type: ignore[dict-item]
            "weights are numbers",
        ),
        (lambda: mix(BOTH, lambda n: 1 // n), r"weights\(0\) raised ZeroDivisionError"),
        (lambda: mix(BOTH, lambda n: {"a": -1, "b": 1}), r"weights\(0\): weights are finite"),
        (lambda: mix(BOTH, lambda n: 3), r"weights\(0\): weights are a dict"),
        (lambda: mix(BOTH, stop="last"), "stop is 'first', 'longest' or 'never', not 'last'"),
        (
            lambda: Loader(mix(BOTH, {"a": 1, "b": 1e-30}, "longest"), 4, workers=0),
            "stop='longest' has no end: raise the least",
        ),
        (lambda: mix(BOTH).subset([0, 1]), r"no samples of the sources \['b'\]"),
    ],
)
def test_bad_input_is_named(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_arguments_of_other_libraries_are_known() -> None:
    with pytest.raises(TypeError, match=r"mix\(\) has no argument 'probabilities': here it is called weights="):
        mix(BOTH, probabilities=[1, 2])  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"mix\(\) has no argument 'seed': it is an argument of ringload.Loader"):
        mix(BOTH, seed=2)  # type: ignore[call-arg]


@pytest.mark.filterwarnings("ignore:none of the first:UserWarning")
def test_labels_that_differ_in_their_classes_are_refused(photos: Path) -> None:
    table = pd.DataFrame({"path": [str(photos / f"{n}.jpg") for n in range(4)], "label": list("abab")})
    options: dict[str, Any] = {"label": "label", "size": (8, 8)}
    one = ImageFrame(table, **options)
    other = ImageFrame(table.assign(label=list("bcbc")), **options)
    with pytest.raises(ConfigError, match=r"in the field 'label', 0 is the class 'a' of 'one' and 'b' of 'other'"):
        mix({"one": one, "other": other})
    mix({"one": one, "other": ImageFrame(table.assign(label="a"), **options)})


def test_another_schedule_with_the_same_begin_is_noticed() -> None:
    """Also of an endless epoch, by what it has led to until the state's position."""

    def later(n: int) -> dict[str, float]:
        return {"a": 1, "b": 1 if n < BLOCK else 9}

    def always(n: int) -> dict[str, float]:
        return {"a": 1, "b": 1}

    def made(weights: Any, batch_size: int = 1000) -> Loader:
        source = mix({"a": Truth(5000), "b": Truth(5000)}, weights=weights, stop="never")
        return Loader(source, batch_size, workers=0, ram_budget="300MB")

    with made(later) as loader, made(always) as other, made(later, 300) as same:
        for number in (3, 20):
            state = loader.state_at(0, number)
            same.load_state_dict(state)
            assert same.epoch == 0
        with pytest.raises(ConfigError, match="before: "):
            other.load_state_dict(state)
