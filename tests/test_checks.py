"""Integers and bools are asked for as such, wherever they are; and what is shown in a message is bounded."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ringload import Arrays, ConfigError, Field, ImageFrame, Loader
from ringload.checks import integer, listed, short

FIELDS = {"x": Field((2,), "float32")}
NO_INTEGERS: list[Any] = [
    10.0,
    10.7,
    np.float32(10),
    "10",
    None,
    True,
    Decimal(10),
    float("inf"),
    float("nan"),
    [10],
    10j,
    -1,
    0,
]
NO_BOOLS: list[Any] = ["yes", "", 1, 0, None, 1.0, [], np.int64(1)]


def load(index: int, rng: Any, out: Any) -> None:
    out["x"] = index


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_a_number_of_samples_is_an_integer(value: Any) -> None:
    said = "fields=.* and n_samples" if value is None else "n_samples is an integer from 1 on, not"
    with pytest.raises(ConfigError, match=said):
        Loader(load, 2, workers=0, fields=FIELDS, n_samples=value)


@pytest.mark.parametrize("value", [10, np.int32(10), np.uint64(10)])
def test_integers_of_numpys_are_some(value: Any) -> None:
    with Loader(load, value, workers=0, fields=FIELDS, n_samples=value) as loader:
        assert len(loader) == 1
    with pytest.warns(UserWarning, match="none of the first"):
        assert ImageFrame(pd.DataFrame({"path": ["a"]}), size=(value, value)).fields["image"].shape == (10, 10, 3)
    assert Field((value, 2), "u1").shape == (10, 2)


@pytest.mark.parametrize(
    "size",
    [
        (8.5, 8),
        (8.0, 8.0),
        (64.0, 64.0),
        (True, 8),
        ("8", "8"),
        (None, 8),
        (np.float64(8), 8),
        8,
        (8,),
        (8, 8, 3),
        "88",
        None,
        {8, 9},
    ],
    ids=repr,
)
def test_a_size_is_two_integers(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"size is \(height, width\) in pixels"):
        ImageFrame(pd.DataFrame({"path": ["a"]}), size=size)


@pytest.mark.parametrize("shape", [(8.5, 8), (8.0,), 8.5, ("8",), (None,)], ids=repr)
def test_the_shape_of_a_field_is_integers(shape: Any) -> None:
    with pytest.raises(ConfigError, match="a field has a shape and a dtype"):
        Field(shape, "u1")


@pytest.mark.parametrize("value", NO_BOOLS, ids=repr)
@pytest.mark.parametrize("name", ["shuffle", "copy", "flip", "exif"])
def test_a_bool_is_true_or_false(name: str, value: Any) -> None:
    make: Any = Loader
    options: dict[str, Any] = {"source": Arrays(x=np.zeros(4)), "batch_size": 2, "workers": 0}
    if name in ("flip", "exif"):
        make, options = ImageFrame, {"df": pd.DataFrame({"path": ["a"]}), "size": (8, 8)}
    if name == "shuffle" and value is None:
        return  # which leaves it to order=
    with pytest.raises(ConfigError, match=f"{name} is True or False, not"):
        make(**options, **{name: value})


def test_bools_of_numpys_are_some() -> None:
    with Loader(Arrays(x=np.arange(4)), 2, workers=0, shuffle=np.False_, copy=np.True_) as loader:
        assert [batch["x"].tolist() for batch in loader] == [[0, 1], [2, 3]]
        assert loader.state_dict()["order"]["kind"] == "sequence"


def test_what_is_shown_is_bounded() -> None:
    for large in (
        "x" * 10**6,
        list(range(10**6)),
        {str(k): "y" * 10**5 for k in range(9)},
        b"z" * 10**6,
        [["w" * 10**5] * 9] * 9,
    ):
        assert len(short(large)) <= 200
    assert listed(list(range(3))) == "[0, 1, 2]"
    assert listed(list(range(1000))).endswith("18, 19, ... and 980 others]")
    assert short(np.float64(1.5)) == "1.5"
    assert integer("n", 3, 3) == 3
