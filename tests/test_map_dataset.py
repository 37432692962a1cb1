"""Map-style datasets without torch."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import ConfigError, Field, Loader, SampleError, from_dataset
from tests.deaths import first_time

ROOM: dict[str, Any] = {"ram_budget": "400MB", "last": "keep"}


class Items:
    """`make(index)` for 0 to 39."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        assert isinstance(index, int)
        return self.make(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_dicts(workers: int, tmp_path: Path) -> None:
    def make(index: int) -> dict[str, Any]:
        if workers and index in (3, 31) and first_time(tmp_path / str(index)):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": np.full((2, 3), index, "f4"), "y": index, "z": index % 2 == 0, "w": [index, 0.5]}

    source = from_dataset(Items(make))
    assert source.fields == {"x": Field((2, 3), "f4"), "y": Field((), "i8"), "z": Field((), "bool"), "w": Field((2,), "f8")}
    train = source.subset(np.arange(40)[::-1])
    for one, rows in ((source, np.arange(40)), (train, np.arange(40)[::-1])):
        with Loader(one, 8, workers=workers, epochs=1, **ROOM) as made:
            seen = []
            for batch in made:
                number = rows[batch.index]
                np.testing.assert_array_equal(batch["x"], np.broadcast_to(number[:, None, None], (8, 2, 3)))
                np.testing.assert_array_equal(batch["y"], number)
                np.testing.assert_array_equal(batch["z"], number % 2 == 0)
                np.testing.assert_array_equal(batch["w"], np.stack([number, np.full(8, 0.5)], 1))
                seen += batch.index.tolist()
        assert sorted(seen) == list(range(40))


def test_tuples_and_single_values() -> None:
    assert list(from_dataset(Items(lambda index: (np.ones(2), index))).fields) == ["x0", "x1"]
    source = from_dataset(Items(lambda index: (np.full(2, index), index)), ("image", "label"))
    assert source.fields == {"image": Field((2,), "i8"), "label": Field((), "i8")}
    assert from_dataset(Items(np.float32)).fields == {"x0": Field((), "f4")}
    assert list(from_dataset([(1, 2), (3, 4)]).fields) == ["x0", "x1"]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"x": np.zeros(4, "f4")}, r"'x' is \(4,\) float32, and in the first sample it is \(3,\) float32"),
        ({"x": np.zeros(3)}, r"'x' is \(3,\) float64, and in the first sample it is \(3,\) float32"),
        ({"y": np.zeros(3, "f4")}, r"the sample has the values \['y'\], and the first one has \['x'\]"),
        ((np.zeros(3, "f4"),), "the sample is an object of class tuple, and the first one is a dict"),
    ],
)
def test_a_sample_that_is_not_as_the_first_is_a_bad_one(odd: Any, said: str) -> None:
    source = from_dataset(Items(lambda index: odd if index == 7 else {"x": np.full(3, index, "f4")}))
    with (
        Loader(source, 1, workers=0, shuffle=False, **ROOM) as made,
        pytest.raises(SampleError, match=rf"item 7 of Items.*{said}"),
    ):
        list(made)
    with Loader(source, 8, workers=0, on_error="skip", epochs=1, **ROOM) as made:
        assert sorted(int(i) for batch in made for i in batch.index[batch["valid"]]) == [i for i in range(40) if i != 7]


def test_what_is_no_dataset_is_said() -> None:
    for given, names, said in (
        (iter([1]), None, "takes an object with __len__ and __getitem__.*ringload.Stream"),
        ({0: 1}, None, "takes an object with __len__"),
        ([], None, "has no samples"),
        (Items(lambda index: "word"), None, "'x0' of the first sample is 'word': a field is a number"),
        (Items(lambda index: {"a b": 1}), None, "'a b' cannot name a field"),
        (Items(lambda index: (1, 2)), ("a",), "names=.*has 2 values"),
        (Items(lambda index: {"a": 1}), ("a",), "is for tuples"),
        (Items(lambda index: {"a": [[1], [1, 2]]}), None, "of which NumPy makes no array"),
    ):
        with pytest.raises(ConfigError, match=said):
            from_dataset(given, names)
