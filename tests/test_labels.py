from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ringload import ConfigError, Field
from ringload.sources.labels import encode

TABLE = pd.DataFrame(
    {
        "word": ["b", "a", "c", "a"],
        "number": [10, 2, 2, 1],
        "flag": [True, False, True, True],
        "bit": [1, 0, 0, 1],
        "ones": [1, 1, 1, 1],
        "real": [0.5, -1.0, 2.0, 3.25],
        "words": [["a", "b"], [], ["c"], ["b", "b"]],
        "vector": [[0.5, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]],
        "hot": [[0, 1, 1], [1, 0, 0], [0, 0, 0], [True, 1.0, 1]],
        "hot arrays": [np.uint8([0, 1]), np.uint8([1, 0]), np.uint8([0, 0]), np.uint8([1, 1])],
        "ids": [[0, 1], [0], [2, 7], [7]],
        "ids twice": [[0, 1], [0], [2, 2], [7]],
        "dicts": [{"a": 1}] * 4,
        "holes": ["a", None, "b", None],
        "mixed": ["a", 1, "b", 2],
        "category": pd.Categorical(["y", "x", "y", "x"], categories=["z", "y", "x"]),
    },
    index=[7, 8, 9, 7],
)


def written(label: Any) -> list[Any]:
    view = np.full(label.field.shape, 99, label.field.dtype)
    rows = []
    for index in range(4):
        label.write(index, view)
        rows.append(view.tolist())
    return rows


@pytest.mark.parametrize(
    ("column", "mode", "field", "rows", "names"),
    [
        ("word", "auto", Field((), "i8"), [1, 0, 2, 0], ("a", "b", "c")),
        ("number", "auto", Field((), "i8"), [2, 1, 1, 0], (1, 2, 10)),
        ("category", "auto", Field((), "i8"), [1, 0, 1, 0], ("x", "y")),
        ("flag", "auto", Field((), "f4"), [1, 0, 1, 1], (0, 1)),
        ("bit", "binary", Field((), "f4"), [1, 0, 0, 1], (0, 1)),
        ("ones", "binary", Field((), "f4"), [1, 1, 1, 1], (0, 1)),
        ("category", "binary", Field((), "f4"), [1, 0, 1, 0], ("x", "y")),
        ("real", "auto", Field((), "f4"), [0.5, -1, 2, 3.25], ()),
        ("number", "float", Field((), "f4"), [10, 2, 2, 1], ()),
        ("word", "categorical", Field((3,), "f4"), [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]], ("a", "b", "c")),
        ("words", "auto", Field((3,), "f4"), [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]], ("a", "b", "c")),
        ("vector", "auto", Field((2,), "f4"), [[0.5, 1], [2, 3], [4, 5], [6, 7]], ()),
        ("hot", "auto", Field((3,), "f4"), [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]], ()),
        ("hot arrays", "auto", Field((2,), "f4"), [[0, 1], [1, 0], [0, 0], [1, 1]], ()),
        (
            *("ids", "auto", Field((8,), "f4")),
            [[1, 1, 0, 0, 0, 0, 0, 0], [1, *[0] * 7], [0, 0, 1, 0, 0, 0, 0, 1], [*[0] * 7, 1]],
            range(8),
        ),
        (["flag", "bit"], "auto", Field((2,), "f4"), [[1, 1], [0, 0], [1, 0], [1, 1]], ("flag", "bit")),
        (["bit", "flag"], "float", Field((2,), "f4"), [[1, 1], [0, 0], [0, 1], [1, 1]], ()),
        (["real", "bit"], "auto", Field((2,), "f4"), [[0.5, 1], [-1, 0], [2, 0], [3.25, 1]], ()),
    ],
)
def test_columns_to_fields(column: Any, mode: Any, field: Field, rows: list[Any], names: Any) -> None:
    (label,) = encode(TABLE, column, None, mode)
    assert (label.name, label.field, label.class_names) == ("label", field, names)
    assert written(label) == rows
    part = label.take(np.array([2, 0]))
    view = np.empty(field.shape, field.dtype)
    for index, row in enumerate((2, 0)):
        part.write(index, view)
        assert view.tolist() == rows[row]


def test_no_label_and_several() -> None:
    assert encode(TABLE, None, None, "auto") == []
    kind, size = encode(TABLE, {"kind": "word", "size": "real"}, {"kind": ["c", "b", "a"]}, "auto")
    assert (kind.name, kind.class_names, written(kind)) == ("kind", ("c", "b", "a"), [1, 2, 0, 2])
    assert (size.name, size.field.dtype) == ("size", np.float32)


def test_given_classes_keep_their_order_and_may_be_more() -> None:
    (label,) = encode(TABLE, "word", ["c", "unused", "a", "b"], "int")
    assert written(label) == [3, 2, 0, 2]


@pytest.mark.parametrize(
    ("label", "classes", "mode", "said"),
    [
        ("nix", None, "auto", r"no column 'nix'; it has \['word'"),
        ("holes", None, "auto", r"'holes' has 2 missing values \(NaN\), first in rows 8, 7; .*dropna"),
        ("word", ["a", "b"], "auto", r"'word' has 'c' in row 9, which is not among classes=\['a', 'b'\]"),
        ("words", ["a", "b"], "auto", r"'words' has 'c' in row 9"),
        ("word", ["a", "a", "b"], "auto", "names a class twice"),
        ("mixed", None, "auto", "mixes int and str"),
        ("word", None, "binary", r"'binary' takes two classes; column 'word' has \['a', 'b', 'c'\]"),
        ("word", None, "float", "'b', which is not a number"),
        ("word", None, "multi_hot", "takes lists or several columns"),
        (["word", "bit"], None, "auto", "column 'word' holds 'b'"),
        (["real", "bit"], None, "multi_hot", "do not suit"),
        (["flag", "bit"], None, "binary", "do not suit"),
        ([], None, "auto", "empty list"),
        ("ids twice", None, "auto", r"names a class twice in row 9: \[2, 2\]"),
        ("dicts", None, "auto", "holds dict"),
        ("word", None, "nix", "label_mode is .auto., .int., .* or .float., not .nix."),
    ],
)
def test_labels_that_cannot_be_are_named(label: Any, classes: Any, mode: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        encode(TABLE, label, classes, mode)


def test_vectors_of_different_lengths_are_refused() -> None:
    table = pd.DataFrame({"v": [[0.5], [1.0, 2.0]]})
    with pytest.raises(ConfigError, match="vectors of different lengths"):
        encode(table, "v", None, "auto")


def test_many_labels_are_mapped_fast_and_right() -> None:
    n = 300_000
    numbers = np.random.default_rng(0).integers(0, 1000, n)
    (label,) = encode(pd.DataFrame({"c": [f"class-{k:04d}" for k in numbers]}), "c", None, "auto")
    np.testing.assert_array_equal(label.values, numbers)


def test_an_ordered_categorical_gives_the_order_of_the_classes() -> None:
    sizes = pd.DataFrame({"size": pd.Categorical(["m", "s", "m", "l"], categories=["s", "m", "l", "xl"], ordered=True)})
    (label,) = encode(sizes, "size", None, "auto")
    assert (label.class_names, written(label)) == (("s", "m", "l", "xl"), [1, 0, 1, 2])
    (label,) = encode(sizes, "size", ["l", "m", "s"], "auto")
    assert written(label) == [1, 2, 1, 0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": ["a", "b", "c"]}, r"classes is a dict of \['one', 'two'\].*it is \['a', 'b', 'c'\]"),
        ({"classes": {"three": ["a"]}}, r"\['three'\] are no label fields"),
        ({"mode": {"three": "int"}}, r"label_mode is a dict.*\['three'\] are no label fields"),
    ],
)
def test_options_of_several_fields_are_by_field(options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        encode(TABLE, {"one": "word", "two": "number"}, **{"classes": None, "mode": "auto", **options})
