"""Which number each class of a table has, and what is no class."""

from __future__ import annotations

import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ringload import ConfigError, ImageFrame
from ringload.sources.label_field import Label
from ringload.sources.labels import encode
from tests.helpers import run_quietly

ANIMALS = pd.DataFrame({"label": ["dog", "cat", "horse", "cat"]})


def numbers(values: Any, classes: Any = None, mode: str = "auto", dtype: Any = None) -> Label:
    (label,) = encode(pd.DataFrame({"label": pd.Series(values, dtype=dtype)}), "label", classes, mode)
    return label


# -- classes= ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes",
    [
        ["horse", "dog", "cat"],
        ("horse", "dog", "cat"),
        np.array(["horse", "dog", "cat"]),
        np.array(["horse", "dog", "cat"], object),
        pd.Index(["horse", "dog", "cat"]),
        pd.Series(["horse", "dog", "cat"], index=[5, 1, 3]),
        pd.Categorical(["horse", "dog", "cat"]),
        pd.array(["horse", "dog", "cat"], dtype="string"),
        {"cat": 2, "horse": 0, "dog": 1},
        {"cat": np.int64(2), "horse": np.uint8(0), "dog": 1},
    ],
    ids=lambda classes: type(classes).__name__,
)
def test_what_has_an_order_or_numbers_gives_them(classes: Any) -> None:
    (label,) = encode(ANIMALS, "label", classes, "auto")
    assert list(label.class_names) == ["horse", "dog", "cat"]
    assert all(type(name) is str for name in label.class_names)
    assert label.values.tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"horse", "dog", "cat"}, "classes is a set, which defines no order.*give a list, such as sorted"),
        (frozenset(["horse", "dog", "cat"]), "classes is a frozenset, which defines no order"),
        ({"cat": 2, "horse": 0, "dog": 1}.keys(), "classes is a dict_keys.*give the dict itself"),
        ({"cat": 2, "horse": 0, "dog": 1}.items(), "classes is a dict_items"),
        ({1: "cat"}.values(), "dict_values.*give a list of the classes in the order of their numbers"),
        ("cat", r"classes='cat' \(str\): give a list"),
        (b"cat", r"\(bytes\): give a list"),
        ((name for name in ("cat", "dog", "horse")), r"\(generator\): give a list"),
        (iter(["cat", "dog", "horse"]), r"\(list_iterator\): give a list"),
        (map(str, "abc"), r"\(map\): give a list"),
        (3, r"classes=3 \(int\): give a list"),
        (np.array([["cat", "dog", "horse"]]), "an array of 2 dimensions"),
        ([], "classes is empty"),
        ({}, "classes is empty"),
        ([["cat"], ["dog"]], "a class is a string, a number or a bool"),
        (["cat", "dog", "horse", "cat"], "names a class twice, 'cat'"),
        (ANIMALS["label"], "names a class twice, 'cat'; for a column, give its sorted unique values"),
        (["cat", "dog", "horse", None], "names None, a missing value"),
        (["cat", "dog", "horse", float("nan")], "names nan, a missing value"),
        ({"cat": 0, "dog": 1, "horse": 3}, r"the numbers \[0, 1, 3\]: give each of 0 to 2 once"),
        ({"cat": 1, "dog": 2, "horse": 3}, "each of 0 to 2"),
        ({"cat": 0, "dog": 0, "horse": 1}, "each of 0 to 2"),
        ({"cat": -1, "dog": 0, "horse": 1}, "each of 0 to 2"),
        ({"cat": 0.0, "dog": 1.0, "horse": 2.0}, "class -> number, an integer"),
        ({"cat": True, "dog": False}, "class -> number, an integer"),
        ({0: "cat", 1: "dog", 2: "horse"}, "swap them"),
        ({"cat": 0, "dog": 1}, r"has 'horse' in row 2, which is not among classes=\['cat', 'dog'\]"),
    ],
)
def test_classes_that_say_no_number_are_refused(classes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        encode(ANIMALS, "label", classes, "auto")


def test_a_long_list_of_classes_is_shortened_in_messages() -> None:
    with pytest.raises(ConfigError, match="9,980 others") as raised:
        numbers(["x"], [f"class {number}" for number in range(10_000)])
    assert len(str(raised.value)) < 1000


def test_a_dict_of_numbers_holds_for_lists_and_for_each_of_several_fields() -> None:
    table = pd.DataFrame({"tags": [["a"], ["b", "c"]], "kind": ["x", "y"]})
    label = {"t": "tags", "k": "kind"}
    tags, kind = encode(table, label, {"t": {"c": 0, "a": 1, "b": 2}, "k": {"y": 0, "x": 1}}, "auto")
    assert (tags.class_names, tags.values.tolist()) == (("c", "a", "b"), [1, 2, 0])
    assert (kind.class_names, kind.values.tolist()) == (("y", "x"), [1, 0])


@pytest.mark.parametrize(
    ("label", "mode", "said"),
    [
        (["a", "b"], "auto", "are the classes themselves"),
        ("a", "float", "have no classes"),
        ("v", "float", "have no classes"),
        (None, "auto", "classes= is given without label="),
    ],
)
def test_classes_where_there_are_none_are_refused(label: Any, mode: str, said: str) -> None:
    table = pd.DataFrame({"a": [0, 1], "b": [1, 0], "v": [[0.5], [1.5]]})
    with pytest.raises(ConfigError, match=said):
        encode(table, label, ["p", "q"], mode)


# -- integers and bools -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int64", "uint8", "Int16", "int32[pyarrow]", object, "category"], ids=str)
@pytest.mark.parametrize(("values", "n_classes"), [([0, 1, 2], 3), ([2, 0], 3), ([7, 0, 3], 8), ([0], 1)])
def test_integers_that_are_numbers_of_classes_keep_them(values: list[int], n_classes: int, dtype: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label = numbers(values, dtype=dtype)
        hot = numbers(values, mode="categorical", dtype=dtype)
    assert label.values.tolist() == values
    assert list(label.class_names) == list(range(n_classes))
    assert hot.field.shape == (n_classes,)


def test_a_validation_table_has_the_numbers_of_the_training_table() -> None:
    for train, validation in (([0, 1, 2, 3, 4], [0, 3]), ([[0, 1], [2], [3]], [[0], [3]])):
        first, second = numbers(train), numbers(validation)
        number_of = {name: number for number, name in enumerate(first.class_names)}
        flat = np.concatenate([np.atleast_1d(one) for one in validation])
        assert second.values.tolist() == [number_of[value] for value in flat]
    assert numbers(np.repeat([0, 4], 3), range(5)).class_names == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    "values", [[1, 2, 3], [2, 3, 4, 5], [-1, 1], [10, 20, 30], [2020, 2021], [0, 100_000], [0, 2**70], [5]], ids=str
)
def test_other_integers_are_numbered_by_size_and_a_warning_says_so(values: list[int]) -> None:
    with pytest.warns(UserWarning, match=r"numbered by size.*classes=first.class_names") as warned:
        label = numbers(values)
    assert warned[0].filename == __file__
    assert label.values.tolist() == list(range(len(values)))
    assert list(label.class_names) == values
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = numbers(values[-1:], list(label.class_names))
    assert again.values.tolist() == [len(values) - 1]


def test_as_many_classes_as_rows_can_have_are_numbers_too() -> None:
    values = np.arange(0, 300_000, 10)
    assert numbers(values).values.tolist() == values.tolist()
    with pytest.warns(UserWarning, match="numbered by size"):
        assert numbers(values[::2]).values.tolist() == list(range(15_000))


def test_two_classes_of_integers_are_the_same_in_each_table_of_two() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers([1, 2, 1], mode="binary").values.tolist() == [0, 1, 0]
        assert numbers([-1, 1], mode="binary").values.tolist() == [0, 1]
        assert numbers([1, 1], mode="binary").values.tolist() == [1, 1]
    with pytest.raises(ConfigError, match=r"takes two classes; column 'label' has \[2\]"):
        numbers([2, 2], mode="binary")


@pytest.mark.parametrize("dtype", [bool, "boolean", object], ids=str)
@pytest.mark.parametrize("mode", ["int", "categorical"])
def test_bools_are_0_and_1_whichever_occur(dtype: Any, mode: str) -> None:
    label = numbers([True, True], mode=mode, dtype=dtype)
    assert (list(label.class_names), label.values.tolist()) == ([False, True], [1, 1])


def test_whole_decimals_that_are_asked_to_be_classes_are_integers() -> None:
    label = numbers([2.0, 0.0], mode="int")
    assert (list(label.class_names), label.values.tolist()) == ([0, 1, 2], [2, 0])
    assert numbers([0.5, 2.0], mode="int").values.tolist() == [0, 1]


def test_a_set_gives_the_same_error_in_each_process() -> None:
    code = """
        import ringload, pandas as pd, warnings
        warnings.simplefilter("ignore")
        table = pd.DataFrame({"path": ["x.png"] * 2, "label": ["dog", "cat"]})
        try:
            ringload.ImageFrame(table, label="label", size=(8, 8), classes=set(table.label))
        except ringload.ConfigError as error:
            print(error)
        print(ringload.ImageFrame(table, label="label", size=(8, 8), classes={"dog": 1, "cat": 0}).class_indices)
    """
    said = run_quietly(code)
    assert "no order" in said
    assert "{'cat': 0, 'dog': 1}" in said


def test_class_names_of_a_frame_go_into_the_next_one() -> None:
    with pytest.warns(UserWarning, match="none of the first"):
        train = ImageFrame(pd.DataFrame({"path": ["a"] * 3, "y": [3, 1, 2]}), label="y", size=(8, 8), classes=[1, 2, 3])
    with pytest.warns(UserWarning, match="none of the first"):
        validation = ImageFrame(
            pd.DataFrame({"path": ["b"], "y": [3]}), label="y", size=(8, 8), classes=train.class_names, label_mode="categorical"
        )
    assert validation.class_indices == train.class_indices == {1: 0, 2: 1, 3: 2}
    assert validation.labels.tolist() == [[0, 0, 1]]
    assert train.labels.tolist() == [2, 0, 1]


# -- decimals, and what is no class -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.5, 2.0], "float64"),
        ([1.5, 2.0], "float32"),
        ([1.5, 2.0], "Float64"),
        ([1.5, 2.0], "double[pyarrow]"),
        ([1.5, 2.0], object),
        ([np.float32(1.5), np.float64(2)], object),
        ([1.5, 2], object),
        ([Decimal("1.5"), Decimal(2)], object),
        ([Decimal("1.5"), 2], object),
        ([Decimal("1.5"), Decimal(2)], pd.ArrowDtype(pa.decimal128(5, 2))),
        ([Fraction(3, 2), Fraction(2)], object),
    ],
    ids=str,
)
def test_decimals_are_no_classes(values: Any, dtype: Any) -> None:
    label = numbers(values, dtype=dtype)
    assert (label.field.dtype, label.field.shape, label.values.tolist()) == (np.float32, (), [1.5, 2.0])


@pytest.mark.parametrize("values", [[[0.5, 1]], [[Decimal("0.5"), Decimal(1)]], [(np.float32(0.5), 1)]], ids=str)
def test_lists_with_decimals_are_vectors(values: Any) -> None:
    assert numbers(values).values.tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(
    ("values", "mode", "said"),
    [
        ([0.5, np.inf], "auto", "a label that is not finite in row 1: inf"),
        ([0.5, -np.inf], "float", "not finite in row 1: -inf"),
        ([1, float("inf")], "int", "inf in row 1, which is infinite: no class"),
        ([Decimal("Infinity"), Decimal(1)], "auto", "not finite in row 0"),
        ([1.0, 1e39], "auto", r"not finite in row 1: 1e\+39 \(float32 holds up to"),
        ([[0.5, 1.0], [np.inf, 1.0]], "auto", "a vector that is not finite in row 1"),
        ([[0.5, 1.0], [1.0, np.nan]], "auto", "a vector that is not finite in row 1"),
        ([["a"], ["a", None]], "auto", "None in row 1, which is a missing value"),
        ([np.zeros((2, 2))] * 2, "auto", r"an array of 2 dimensions, \(2, 2\), in row 0"),
        ([np.zeros(2), np.zeros((2, 2))], "auto", "an array of 2 dimensions.* in row 1"),
        ([np.array(3), np.array(4)], "auto", "an array of 0 dimensions"),
        ([[1], [[1, 2]]], "auto", "a list of lists in row 1"),
        ([["a", ("b",)]], "multi_hot", "a list of tuples in row 0"),
        ([["a"], "b"], "auto", "holds lists, but in row 1 'b'"),
        (["['a', 'b']", "['c']"], "auto", r"the string .* in row 0: a list as text"),
        (["cat", "['c']"], "int", "in row 1: a list as text"),
        (["[0 1 0]", "[1 0 0]"], "auto", "a list as text"),
        (["[0.5, 1]"], "float", "a list as text"),
        (['["a", "b"]'], "multi_hot", "a list as text"),
        ([object(), object()], "auto", "holds object, which have no order"),
    ],
)
def test_what_is_no_label_is_named(values: Any, mode: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        numbers(values, mode=mode, dtype=object)


def test_tensors_in_cells_are_arrays() -> None:
    torch = pytest.importorskip("torch")
    assert numbers([torch.tensor([0.5, 1.0]), torch.tensor([1.0, 2.0])]).values.tolist() == [[0.5, 1.0], [1.0, 2.0]]
    for cells in ([torch.tensor(1), torch.tensor(2)], [torch.zeros(2, 2)], [[torch.tensor(1)]]):
        with pytest.raises(ConfigError, match=r"dimensions|a list of Tensors"):
            numbers(cells)


def test_strings_that_only_look_like_lists_are_classes() -> None:
    assert numbers(["[UNK]", "cat"]).class_names == ("[UNK]", "cat")
    assert numbers(["red,blue", "red"]).class_names == ("red", "red,blue")
    assert numbers(["[1, 2]", "[3]"], ["[3]", "[1, 2]"]).values.tolist() == [1, 0]


# -- columns of several levels ----------------------------------------------------------------------------------------

LEVELS = pd.DataFrame(
    [["a.png", 1, "x", 0.5], ["b.png", 0, "y", 1.5]],
    columns=pd.MultiIndex.from_tuples([("file", ""), ("y", "n"), ("y", "kind"), ("y", "size")]),
    index=pd.MultiIndex.from_tuples([("site", 1), ("site", 2)]),
)


def test_a_tuple_names_a_column_of_several_levels() -> None:
    with pytest.warns(UserWarning, match="none of the first"):
        source = ImageFrame(LEVELS, ("file", ""), ("y", "kind"), weight=("y", "size"), size=(8, 8))
    assert (source.filenames, source.class_names) == (["a.png", "b.png"], ["x", "y"])
    (several,) = encode(LEVELS, [("y", "n"), ("y", "size")], None, "auto")
    assert several.values.tolist() == [[1, 0.5], [0, 1.5]]
    (one,) = encode(LEVELS, {"kind": ("y", "kind")}, None, "auto")
    assert one.class_names == ("x", "y")
    first, second = source.split(0.5, by=("y", "kind"), how="group")
    assert (len(first), len(second)) == (1, 1)
    (short,) = encode(LEVELS, "file", None, "auto")  # as pandas takes 'file' for ('file', '')
    assert short.class_names == ("a.png", "b.png")


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (("y", "nix"), r"no column \('y', 'nix'\); it has \[\('file', ''\), \('y', 'n'\)"),
        ("y", "no column 'y', and its columns have 2 levels: name one by a tuple; it has"),
        ("nix", "no column 'nix', and its columns have 2 levels"),
        ([("y", "kind"), ("y", "n")], r"column \('y', 'kind'\) holds 'x'"),
    ],
)
def test_columns_of_several_levels_that_are_not_there(label: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        encode(LEVELS, label, None, "auto")


def test_rows_of_several_levels_are_named() -> None:
    with pytest.raises(ConfigError, match=r"has 'y' in row \('site', 2\), which is not among"):
        encode(LEVELS, ("y", "kind"), ["x"], "auto")
    holes = pd.DataFrame({"z": [None, "a"], "path": ["", "a"]}, index=LEVELS.index)
    with pytest.raises(ConfigError, match=r"1 missing values \(NaN\), first in rows \('site', 1\)"):
        encode(holes, "z", None, "auto")
    with pytest.raises(ConfigError, match=r"column 'path', row \('site', 1\) is empty"):
        ImageFrame(holes, size=(8, 8))


def test_columns_of_one_name_are_refused_and_a_tuple_of_names_is_several() -> None:
    twice = pd.DataFrame([[0, 1, 2]], columns=["a", "a", "b"])
    with pytest.raises(ConfigError, match="2 columns 'a': rename all but one"):
        encode(twice, "a", None, "auto")
    (several,) = encode(pd.DataFrame({"a": [0, 1], "b": [1, 0]}), ("a", "b"), None, "auto")
    assert several.class_names == ("a", "b")
    of_tuples = pd.DataFrame({"a": [0, 1]})
    of_tuples[("b", "c")] = ["x", "y"]  # a flat index that holds a tuple
    (one,) = encode(of_tuples, ("b", "c"), None, "auto")
    assert one.class_names == ("x", "y")
