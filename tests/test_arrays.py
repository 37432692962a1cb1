from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import Arrays, ConfigError, Field, Loader
from ringload.sources.function import FunctionSource


@pytest.mark.parametrize("kind", ["plain", "strided", "fortran", "big-endian", "memmap", "structured", "list"])
def test_rows_are_copied_whatever_the_layout(tmp_path: Path, kind: str) -> None:
    x: Any = np.random.default_rng(0).integers(0, 1000, (50, 4, 6))
    if kind == "strided":
        x = x[::-1, :, ::2]
    elif kind == "fortran":
        x = np.asfortranarray(x)
    elif kind == "big-endian":
        x = x.astype(">i2")
    elif kind == "memmap":
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "structured":
        x = np.ones(50, [("a", "i4"), ("b", "f8", (2,))])
    elif kind == "list":
        x = x.tolist()
    source = Arrays(x=x, y=np.arange(50))
    given = np.asarray(x)
    assert source.fields["x"] == Field(given.shape[1:], given.dtype)
    out = {"x": np.zeros((5, *given.shape[1:]), given.dtype), "y": np.zeros(5, np.int64)}
    indices = np.array([3, 49, 0, 3, 17])
    source.load_rows(indices, (), out)
    np.testing.assert_array_equal(out["x"], given[indices])
    np.testing.assert_array_equal(out["y"], indices)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "at least one array"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, r"different lengths: \{'x': 3, 'y': 4\}"),
        ({"x": np.float32(1)}, "single number"),
        ({"x": np.array(["a", None], object)}, "fixed size"),
        ({"index": np.zeros(3)}, "cannot name a field"),
        ({"x": np.zeros((3, 0))}, r"array 'x' is \(3, 0\): its rows are empty"),
    ],
)
def test_arrays_that_cannot_be(arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Arrays(**arrays)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="no samples"):
        Loader(Arrays(x=np.zeros((0, 3))), 1, workers=0)


def test_a_function_needs_fields_and_a_number() -> None:
    def load(index: int, rng: Any, out: Any) -> None:
        out["x"] = index

    source = FunctionSource(load, {"x": ((), "i8")}, 10)
    assert (len(source), source.fields) == (10, {"x": Field((), "i8")})
    for fields, n in ((None, 3), ({"x": ((), "i8")}, None), ({"x": ((), "i8")}, 0), ({}, 3)):
        with pytest.raises(ConfigError):
            FunctionSource(load, fields, n)


def test_masked_values_are_refused() -> None:
    whole = np.ma.masked_array(np.arange(6.0), mask=np.zeros(6, bool))
    assert len(Arrays(x=whole)) == 6
    with pytest.raises(ConfigError, match=r"array 'x' has 2 masked values.*filled"):
        Arrays(x=np.ma.masked_greater(np.arange(6.0), 3))
