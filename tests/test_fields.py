from __future__ import annotations

import numpy as np
import pytest

from ringload import ConfigError, Field
from ringload.fields import Row, as_fields, write_exactly


def test_a_field_has_a_shape_and_a_dtype() -> None:
    field = Field([224, 224, 3], "uint8")
    assert field == Field((224, 224, 3), np.uint8)
    assert (field.shape, field.dtype, field.row_bytes) == ((224, 224, 3), np.dtype(np.uint8), 150_528)
    assert Field(5, "f4").shape == (5,)
    assert Field((), "i8").row_bytes == 8


@pytest.mark.parametrize(
    ("shape", "dtype"), [((0,), "u1"), ((-1, 2), "u1"), ("ab", "u1"), ((2,), "object"), ((), "U"), ((), "nix")]
)
def test_what_has_no_fixed_size_is_refused(shape: object, dtype: str) -> None:
    with pytest.raises(ConfigError, match="field"):
        Field(shape, dtype)


def test_pairs_stand_for_fields() -> None:
    assert as_fields({"x": ((2, 3), "f4")}) == {"x": Field((2, 3), "f4")}


@pytest.mark.parametrize("fields", [{}, None, {"index": ((), "i8")}, {"valid": ((), "?")}, {"a b": ((), "i8")}, {"x": 3}])
def test_fields_that_cannot_be_are_refused(fields: object) -> None:
    with pytest.raises(ConfigError):
        as_fields(fields)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", np.float64([1, 2])),
        ("float32", np.int64([1, 2])),
        ("int64", np.uint8([1, 2])),
        ("uint8", [True, False]),
        ("S4", np.array([b"ab", b"abcd"])),
    ],
)
def test_what_loses_no_more_than_precision_is_written(dtype: str, value: object) -> None:
    view = np.zeros(2, dtype)
    write_exactly(view, value, "x")
    np.testing.assert_array_equal(view, np.asarray(value).astype(dtype))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", np.int64([1, 2])),
        ("int64", np.float32([1, 2])),
        ("float32", np.float32([1, 2, 3])),
        ("float32", np.float32([[1, 2]])),
        ("float32", np.float32(1)),
        ("bool", np.int64([1, 0])),
    ],
)
def test_what_would_lose_more_is_refused_with_both_sides_named(dtype: str, value: np.ndarray) -> None:
    view = np.zeros(2, dtype)
    with pytest.raises(ValueError, match=rf"'x' takes \(2,\) {dtype}, got .*{value.dtype}"):
        write_exactly(view, value, "x")
    assert not view.any()


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 256), ("uint8", -1), ("int64", 1.5), ("bool", 1)])
def test_a_bare_number_fits_or_is_refused(dtype: str, value: object) -> None:
    view = np.zeros((), dtype)
    with pytest.raises(ValueError, match="field 'x'"):
        write_exactly(view, value, "x")
    write_exactly(np.zeros((), "uint8"), 255, "x")


def test_a_row_knows_what_was_touched() -> None:
    row = Row({"a": np.zeros(2), "b": np.zeros(2), "c": np.zeros(())})
    row["a"] = [1, 2]
    row["b"][:] = 3
    assert row.untouched() == {"c"}
    row["c"] = 1
    assert row.untouched() == set()
    with pytest.raises(ValueError, match="no field 'd'"):
        row["d"] = 1
    with pytest.raises(KeyError):
        row["d"]
    with pytest.raises(TypeError):
        del row["a"]
    assert (list(row), len(row)) == (["a", "b", "c"], 3)
