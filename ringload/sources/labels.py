"""Labels: columns of a table become fields, and arrays that give each row's value.

    mode           field             from
    "int"          () int64          a column of classes: the number of the class
    "categorical"  (K,) float32      the same, one-hot
    "binary"       () float32        a column of two classes: 0 or 1
    "multi_hot"    (K,) float32      a column of lists of classes, or several columns of 0 and 1
    "float"        () or (K,) float32  a column of numbers, or of vectors of one length, or several columns
    "auto"         bool: binary; numbers with decimals (float, Decimal): float; other classes: int; lists: float if they are
                   vectors (of one length, of decimals or only of 0 and 1), else multi_hot; several columns: multi_hot
                   if all are 0 and 1, else float
`ringload.sources.classes` says which number a class has. A string is one class: "red,blue" is not split. Make lists of such
strings by `df["colors"].str.split(",")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.checks import listed, one_of, short
from ringload.errors import ConfigError
from ringload.fields import Field
from ringload.log import logged_if_slow
from ringload.sources.classes import (
    Classes,
    found_classes,
    given_classes,
    have_decimals,
    is_list_as_text,
    is_ordered,
    lists_as_text,
    plain,
    refuse_odd_values,
    refuse_unknown_values,
)
from ringload.sources.columns import is_column, numbers, present, row_name
from ringload.sources.label_field import Label
from ringload.sources.list_labels import label_of_columns, label_of_lists, rows_of_lists

if TYPE_CHECKING:
    import pandas as pd

LabelMode = Literal["auto", "int", "categorical", "binary", "multi_hot", "float"]
MODES = ("auto", "int", "categorical", "binary", "multi_hot", "float")


def encode(table: pd.DataFrame, label: Any, classes: Any, mode: Any) -> list[Label]:
    """The labels of a table.

    Arguments:
        label: None; a column, or a list of columns: the field `label`; or a dict of field names to either.
        classes: the class names in their order, or None; for a dict, a dict of them.
        mode: as above; for a dict, a dict of them or one for all.

    Raises:
        ConfigError: the columns cannot be labels of that kind; the message names the column and the row.
    """
    with logged_if_slow(f"encoding the labels of {len(table):,} rows"):
        return _encode_all(table, label, classes, mode)


def _encode_all(table: pd.DataFrame, label: Any, classes: Any, mode: Any) -> list[Label]:
    if label is None:
        if classes is not None:
            raise ConfigError("classes= is given without label=: give the column of the classes")
        return []
    if not isinstance(label, dict):
        return [_encode(table, "label", label, classes, mode)]
    classes, modes = {} if classes is None else classes, dict.fromkeys(label, mode) if isinstance(mode, str) else mode
    for what, given in (("classes", classes), ("label_mode", modes)):
        if not isinstance(given, Mapping) or (unknown := sorted(given.keys() - label.keys(), key=str)):
            wrong = f"{unknown} are no label fields" if isinstance(given, Mapping) else f"it is {short(given)}"
            raise ConfigError(f"with several label fields, {what} is a dict of {list(label)} (or some of them): {wrong}")
    return [_encode(table, name, columns, classes.get(name), modes.get(name, "auto")) for name, columns in label.items()]


def _encode(table: pd.DataFrame, name: str, columns: Any, classes: Any, mode: str) -> Label:
    one_of("label_mode", mode, MODES)
    if _names_several(table, columns):
        return label_of_columns(table, name, list(columns), classes, mode)
    column = present(table, columns)
    lists = rows_of_lists(column)
    if lists is not None:
        return label_of_lists(name, column, lists, classes, mode)
    if mode == "multi_hot":
        _refuse_lists_as_text(column)
        raise ConfigError(f"label_mode='multi_hot' takes lists or several columns; column {short(columns)} has one value a row")
    if mode == "auto":
        mode = "int" if classes is not None else _mode_of(column)
    if mode == "float":
        if classes is not None:
            raise ConfigError(
                f"label_mode='float' takes numbers, which have no classes: column {short(columns)} has classes= too"
            )
        _refuse_lists_as_text(column)
        return Label(name, Field((), "float32"), (), numbers(column, "a label"))
    try:
        return _classes(name, column, classes, mode)
    except TypeError as error:  # not hashable
        kinds = " and ".join(sorted({type(value).__name__ for value in column}))
        raise ConfigError(
            f"column {short(columns)} holds {kinds}: a class is a string, a number or a bool ({error})"
        ) from error


def _names_several(table: pd.DataFrame, columns: Any) -> bool:
    import pandas as pd

    return isinstance(columns, list | tuple | np.ndarray | pd.Index) and not is_column(table, columns)


def _mode_of(column: pd.Series[Any]) -> str:
    """The mode that "auto" is for a column of one value a row."""
    import pandas as pd

    kind = getattr(column.dtype, "kind", "O")
    if kind != "O":
        return {"b": "binary", "f": "float"}.get(kind, "int")
    if isinstance(column.dtype, pd.CategoricalDtype) or isinstance(column.iloc[0], str):
        return "int"  # without checking millions of strings
    return "float" if have_decimals(set(map(type, column))) else "int"


def _classes(name: str, column: pd.Series[Any], given: Any, mode: str) -> Label:
    """One class a row."""
    import pandas as pd

    codes, uniques = pd.factorize(np.asarray(column) if column.dtype.kind != "O" else column)
    found = plain(uniques)

    def row_of(number: int) -> str:
        return row_name(column, int(np.flatnonzero(codes == number)[0]))

    refuse_odd_values(found, column, row_of)
    if given is not None:
        classes = given_classes(given)
    else:
        _refuse_lists_as_text(column, found, row_of)
        classes = _two_classes(found, column) if mode == "binary" else found_classes(found, column)
    refuse_unknown_values(found, classes, column, row_of)
    names, values = classes.names, np.array([classes.numbers[value] for value in found], np.int64)[codes]
    if mode == "binary":
        if len(names) != 2:
            raise ConfigError(f"label_mode='binary' takes two classes; classes={listed(names)}")
        return Label(name, Field((), "float32"), names, values.astype(np.float32))
    if mode == "categorical":
        return Label(name, Field((len(names),), "float32"), names, values, hot=True)
    return Label(name, Field((), "int64"), names, values)


def _two_classes(found: list[Any], column: pd.Series[Any]) -> Classes:
    """The classes of label_mode="binary". Both must occur, or be 0 and 1, so that a similar table has the same numbers."""
    if not set(found) - {0, 1} and not is_ordered(column):
        return Classes.of((0, 1))
    if len(found) != 2 and not is_ordered(column):
        raise ConfigError(
            f"label_mode='binary' takes two classes; column {short(column.name)} has {listed(sorted(found, key=str))}"
        )
    return found_classes(found, column, quiet=True)


def _refuse_lists_as_text(column: pd.Series[Any], found: list[Any] | None = None, row_of: Any = None) -> None:
    """`found`: the column's different values; None: its first value only, as the caller refuses any string."""
    if found is None:
        found, row_of = [column.iloc[0]], lambda _: row_name(column, 0)
    for number, value in enumerate(found):
        if is_list_as_text(value):
            raise lists_as_text(column, value, row_of(number))
