"""Parts of any source: which samples they have, that they are loaded as in the whole, and the way back to the user's rows."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringload import Arrays, ConfigError, FunctionSource, ImageFrame, Loader, Part, mix
from tests.deaths import kill_all, members
from tests.helpers import Truth, TruthRows, content, truth

N = 60
FIELDS = Truth().fields
VALUES = np.arange(N) % 7


def load(index: int, rng: np.random.Generator, out: Any) -> None:
    draw = int(rng.integers(1 << 30))
    out["image"], out["label"], out["draw"] = truth(index, draw), index, draw


def arrays(n: int = N) -> Arrays:
    return Arrays(label=np.arange(n), group=np.arange(n) % 7)


def mixed() -> Any:
    return mix({"a": arrays(40), "b": arrays(20)}, {"a": 1, "b": 3})


SOURCES: dict[str, Callable[[], Any]] = {
    "arrays": arrays,
    "function": lambda: FunctionSource(load, FIELDS, N),
    "load": lambda: Part(Truth(N)),
    "load_rows": lambda: Part(TruthRows(N)),
    "part of a part": lambda: Part(Truth(2 * N)).subset(np.arange(N)),
    "mix": mixed,
}


def samples(source: Any, **options: Any) -> list[Any]:
    """What the user's rows of all samples are, by the field `label` and, of a mix, `source`."""
    found: list[Any] = []
    with Loader(source, 7, workers=0, last="keep", order="sequence", **options) as loader:
        for batch in loader:
            own = (batch["source"], batch["label"]) if "source" in batch else batch["label"]
            np.testing.assert_array_equal(loader.batch_rows(batch), own)
            found += list(zip(*(one.tolist() for one in own), strict=True)) if isinstance(own, tuple) else own.tolist()
    return found


# -- which samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_parts_and_folds_are_partitions(name: str) -> None:
    source = SOURCES[name]()
    everything = samples(source)
    assert len(everything) == N
    for options in ({}, {"by": VALUES}, {"by": VALUES, "how": "group"}, {"by": VALUES.tolist(), "seed": 3}):
        parts = source.split((0.5, 0.3, 0.2), **options)
        assert Counter(one for part in parts for one in samples(part)) == Counter(everything)
        assert [samples(part) for part in source.split((0.5, 0.3, 0.2), **options)] == [samples(part) for part in parts]
    pairs = source.folds(3, seed=1)
    assert Counter(one for _, validation in pairs for one in samples(validation)) == Counter(everything)
    for train, validation in pairs:
        assert Counter(samples(train) + samples(validation)) == Counter(everything)
        assert not set(samples(train)) & set(samples(validation))


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 300), st.integers(2, 6), st.integers(0, 9), st.sampled_from(["plain", "stratify", "group"]))
def test_folds_have_equal_shares(n: int, k: int, seed: int, how: Any) -> None:
    values = np.arange(n) % 40 if how == "group" else np.arange(n) % 3
    options = {} if how == "plain" else {"by": values, "how": how}
    try:
        pairs = Arrays(x=np.arange(n)).folds(k, seed, **options)
    except ConfigError as error:
        assert "leaves a part empty" in str(error)  # noqa: PT017
        return
    for train, validation in pairs:
        assert sorted([*train.rows, *validation.rows]) == list(range(n))
        assert (np.diff(train.rows) > 0).all()
        if how == "group":
            assert not set(values[train.rows]) & set(values[validation.rows])
        elif how == "plain":
            assert abs(len(validation) - n / k) < k
        else:
            for value in range(3):
                assert abs((values[validation.rows] == value).sum() - (values == value).sum() / k) < k


def test_parts_of_all_sources_are_those_of_a_table(photos: Path) -> None:
    frame = ImageFrame(photos / "photos.csv", label="multi", size=(8, 8))
    table = pd.read_csv(photos / "photos.csv")
    n = len(frame)
    by_name, by_values = frame.split(0.3, by="multi"), frame.split(0.3, by=table["multi"])
    others = Arrays(x=np.arange(n)).split(0.3, by=table["multi"]), FunctionSource(load, FIELDS, n).split(0.3, by=table["multi"])
    for parts in (by_values, *others):
        for one, other in zip(by_name, parts, strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
    train, validation = frame.folds(4, by="multi")[2]
    assert sorted([*train.rows, *validation.rows]) == list(range(n))


def test_columns_name_what_to_split_by() -> None:
    source = arrays()
    for parts in (source.split(0.4, by="group", how="group"), source.subset(np.arange(50)).split(0.4, by="group", how="group")):
        groups = [set(part.column("group")) for part in parts]
        assert not groups[0] & groups[1]
    train, validation = mixed().split(0.4, by="group", how="group")
    assert not set(train.column("group")) & set(validation.column("group"))


def test_parts_of_a_mix_have_their_share_of_each_source() -> None:
    for options in ({}, {"by": "group"}):
        train, validation = mixed().split(0.25, **options)
        sizes = {name: len(source) for name, source in validation.sources.items()}
        assert abs(sizes["a"] - 10) <= (3 if options else 0)
        assert abs(sizes["b"] - 5) <= (3 if options else 0)
        with Loader(train, 8, workers=0) as loader:
            assert abs((next(iter(loader))["source"] == 1).sum() - 6) <= 1


def test_the_second_part_is_plain_and_a_transform_that_is_lost_is_told(photos: Path) -> None:
    def transform(image: np.ndarray, rng: Any) -> np.ndarray:
        return image

    frame = ImageFrame(photos / "photos.csv", size=(8, 8), flip=True, transform=transform)
    other = Arrays(image=np.zeros((20, 8, 8, 3), np.uint8))
    source = mix({"photos": frame, "other": other})
    with pytest.warns(UserWarning, match="the parts after the first have no transform") as warned:
        train, validation = source.split(0.5)
    assert (len(warned), warned[0].filename) == (1, __file__)
    assert train.augmentation["photos"] == {"flip": True, "resize": "stretch", "transform": transform}
    assert validation.augmentation["photos"] == {"flip": False, "resize": "stretch", "transform": None}
    _, validation = source.split(0.5, eval_transform=transform)
    assert validation.augmentation["photos"] == {"flip": False, "resize": "stretch", "transform": transform}
    assert validation.split(0.5)[1].augmentation["photos"]["transform"] is transform
    train, validation = source.split(0.5, augment="all")
    assert validation.augmentation["photos"]["flip"]
    assert not frame.plain().augmentation["flip"]
    assert not source.plain().augmentation["photos"]["flip"]
    kept = frame.plain(transform)
    assert kept.plain() is kept
    _, validation = Part(frame).split(0.5, eval_transform=None)
    assert validation.augmentation == {"flip": False, "resize": "stretch", "transform": None}


class Augmented(Truth):
    def __init__(self, n: int, is_plain: bool = False) -> None:
        super().__init__(n)
        self.is_plain = is_plain

    def plain(self) -> Augmented:
        return Augmented(self.n, True)


def test_a_source_of_the_users_is_made_plain_by_its_own_method() -> None:
    train, validation = Part(Augmented(10)).split(0.5)
    assert (train.source.is_plain, validation.source.is_plain) == (False, True)


# -- what is loaded ---------------------------------------------------------------------------------------------------


class Told(TruthRows):
    """Has what a source may have; and says what it was told."""

    scratch_bytes = 1000
    refuses_large = True
    told = False

    def start(self, worker: Any) -> None:
        self.told = True

    def prefetch(self, indices: np.ndarray) -> None:
        assert (indices >= N // 2).all()

    def begin_task(self, rows: dict[str, np.ndarray]) -> None:
        present = rows["index"][rows["index"] >= 0]
        assert (present >= N // 2).all()

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:  # type: ignore[override]
        assert self.told
        load(index, rng, out)

    load_rows = None  # type: ignore[assignment]


OF_TRUTH: dict[str, Callable[[], Any]] = {
    "function": SOURCES["function"],
    "load": SOURCES["load"],
    "load_rows": SOURCES["load_rows"],
    "told": lambda: Part(Told(N)),
}


@pytest.mark.parametrize("name", OF_TRUTH)
def test_bytes_of_a_part_are_the_same_for_any_workers_and_deaths(name: str) -> None:
    options: dict[str, Any] = {"seed": 5, "restarts": None, "ram_budget": "200MB", "last": "pad"}
    rows = N - 1 - np.random.default_rng(0).permutation(N // 2)
    expected: dict[tuple[int, int], Any] = {}
    for workers in (0, 1, 2):
        part = OF_TRUTH[name]().subset(rows)
        with Loader(part, 7, workers=workers, **options) as loader:
            for _ in range(12):  # more than is filled ahead of the first kill
                for batch in loader:
                    got = loader.batch_rows(batch)
                    np.testing.assert_array_equal(got, np.where(batch["valid"], batch["label"], -1))
                    assert ((batch.index < 0) == (got == -1)).all()
                    for image, label, draw in zip(batch["image"], batch["label"].tolist(), batch["draw"].tolist(), strict=True):
                        assert label == 0 or (image == truth(label, draw)).all()
                    place = batch.epoch, batch.number
                    assert content([batch]) == expected.setdefault(place, content([batch]))
                    if workers == 2 and batch.number == 1 and batch.epoch % 4 == 0:
                        kill_all(members(loader)[1:])
            assert workers < 2 or loader.stats.n_restarts > 0


def test_everything_that_the_source_says_is_passed_on() -> None:
    part = Part(Told(N), [50, 40])
    assert (part.scratch_bytes, part.refuses_large, part.random, part.calls_user_code) == (1000, True, True, True)
    assert not part.is_own
    assert part.describe(1) == "sample 40 of the whole source"
    part = arrays().subset([5, 3])
    assert not part.random
    assert not part.calls_user_code
    assert part.column("label").tolist() == [5, 3]
    assert arrays().rows.tolist() == list(range(N))
    assert FunctionSource(load, FIELDS, 3).rows.tolist() == [0, 1, 2]
    with pytest.raises(AttributeError, match=r"Part.rows cannot be set, .*source.subset\(indices\)"):
        part.rows = np.arange(3)


def test_a_bad_sample_is_named_by_its_number_in_the_whole() -> None:
    def bad(index: int, rng: np.random.Generator, out: Any) -> None:
        load(index, rng, out)
        if index == 30:
            raise ValueError("no such luck")

    part = FunctionSource(bad, FIELDS, N).subset([10, 30, 50])
    with Loader(part, 3, workers=0) as loader, pytest.raises(Exception, match="sample 30 of the whole source"):
        next(iter(loader))


def test_the_way_back_to_a_table(photos: Path) -> None:
    table = pd.read_csv(photos / "photos.csv").sample(frac=1, random_state=1)
    table["object_id"] = [f"id {path}" for path in table["path"]]
    frame = ImageFrame(table, root=photos, size=(8, 8), max_pixels=10**6)
    _, part = frame.split(0.5, seed=2)
    with Loader(part.subset(np.arange(len(part))[::-1]), 5, workers=0, last="pad") as loader:
        for batch in loader:
            rows = loader.batch_rows(batch)
            assert (rows[~batch["valid"]] == -1).all()
            ids = table.iloc[rows[batch["valid"]]]["object_id"].tolist()
            paths = [loader.source.describe(int(index)) for index in batch.index[batch["valid"]]]
            assert [one.removeprefix("id ") for one in ids] == [str(Path(path).relative_to(photos)) for path in paths]
            np.testing.assert_array_equal(loader.batch_rows(batch.index), rows)
    with Loader(mix({"a": part, "b": frame}), 5, workers=0, last="pad") as loader:
        for batch in loader:
            which, rows = loader.batch_rows(batch)
            assert (which[batch["valid"]] == batch["source"][batch["valid"]]).all()
            assert (rows[~batch["valid"]] == -1).all()
            assert np.isin(rows[which == 0], part.rows).all()


def test_a_user_s_source_has_its_indices_as_rows() -> None:
    with Loader(Truth(10), 4, workers=0) as loader:
        batch = next(iter(loader))
        np.testing.assert_array_equal(loader.batch_rows(batch), batch.index)


# -- state ------------------------------------------------------------------------------------------------------------


def test_a_state_is_of_the_rows_and_of_the_whole() -> None:
    def loaded(part: Any) -> None:
        with Loader(part, 4, workers=0) as loader:
            loader.load_state_dict(state)

    train, validation = arrays().split(0.5)
    with Loader(train, 4, workers=0) as loader:
        state = json.loads(json.dumps(loader.state_dict()))
    loaded(train)
    loaded(pickle.loads(pickle.dumps(train)))
    for part, said in (
        (validation, "the source has other rows of the same whole"),
        (
            Arrays(label=np.arange(N) + 1, group=np.arange(N)).split(0.5)[0],
            r"the arrays \['label', 'group'\] have other content",
        ),
        (Part(Truth(N)).split(0.5)[0], "fingerprint"),
    ):
        with pytest.raises(ConfigError, match=said):
            loaded(part)


def test_a_state_does_not_change_a_part() -> None:
    part = Part(Truth(N)).split(0.5)[0]
    before = pickle.dumps(part)
    part.fingerprint()
    assert pickle.dumps(part) == before


# -- bad input --------------------------------------------------------------------------------------------------------


class Ordered(Truth):
    default_order = "sequence"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Part(load), r"Part: .* is no source of samples: give ringload.FunctionSource\("),
        (lambda: Part(np.zeros(3)), r"numpy.ndarray is no source"),
        (lambda: Part(Truth(0)), "has no samples"),
        (lambda: Part(mixed()), r"has an order of its own, which a part cannot keep: use its subset\(\)"),
        (lambda: Part(Ordered(4)), "has an order of its own"),
        (lambda: Part(Truth(4), [4]), "indices are from 0 to 3, not 4 to 4"),
        (lambda: Part(Truth(4), []), "at least one"),
        (lambda: Part(Truth(4), np.array([0.5])), "indices are integers"),
        (lambda: arrays().subset(np.zeros(N, bool)), "at least one"),
        (lambda: arrays().split(1.5), "fraction is a share"),
        (lambda: arrays().split(0.5, seed=-1), "seed is"),
        (lambda: arrays().split(0.5, how="by"), "how is 'stratify' or 'group'"),
        (lambda: arrays().split(0.5, how="group"), "how='group' needs by="),
        (lambda: arrays().split(0.5, by="grup"), "there is no column 'grup'; .* did you mean 'group'"),
        (lambda: arrays().split(0.5, by=np.arange(3)), r"by= has values of shape \(3,\), and there are 60 samples"),
        (lambda: Part(Truth(4)).split(0.5, by="x"), "there is no column 'x': .* has no method column"),
        (lambda: FunctionSource(load, FIELDS, 9).split(0.5, by="x"), "by='x': .*FunctionSource has no columns: give values"),
        (lambda: arrays().split(0.5, eval_transform=load), "has no transform that it could replace: leave it out"),
        (lambda: arrays().split(0.5, augment="all", eval_transform=None), "give one of both"),
        (lambda: arrays().split(0.5, augment="none"), "augment is 'first' or 'all'"),
        (lambda: arrays().folds(1), "k is an integer from 2 on"),
        (lambda: arrays(3).folds(4), r"folds\(k=4\): the source has 3 samples: give k=3 or less"),
        (lambda: arrays().folds(8, by="group", how="group"), "leaves a part empty"),
        (lambda: FunctionSource(3, FIELDS, 9), "load is a function"),
    ],
)
def test_bad_input_is_named(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_arguments_of_other_libraries_are_known() -> None:
    sources: list[Any] = [arrays(), FunctionSource(load, FIELDS, 9), Part(Truth(9)), mixed()]
    for source in sources:
        with pytest.raises(TypeError, match=r"split\(\) has no argument 'test_size': here it is called fraction="):
            source.split(test_size=0.2)
        with pytest.raises(TypeError, match=r"folds\(\) has no argument 'n_splits': here it is called k="):
            source.folds(n_splits=3)
