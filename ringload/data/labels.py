"""Labels: columns of a table become fields, and arrays that give each row's value.

    mode           field             from
    "int"          () int64          a column of classes: the number of the class
    "categorical"  (K,) float32      the same, one-hot
    "binary"       () float32        a column of two classes: 0 or 1
    "multi_hot"    (K,) float32      a column of lists of classes, or several columns of 0 and 1
    "float"        () or (K,) float32  a column of numbers, or of vectors of one length, or several columns
    "auto"         bool: binary; float: float; other classes: int; lists: float if they are vectors (of one length, of floats
                   or of nothing but 0 and 1), else multi_hot; several columns: multi_hot if all are 0 and 1, else float
Classes are sorted (numbers by size, strings alphabetically) unless their order is given, by `classes=` or by the column: an
ordered categorical has it, and classes that no row is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.data.fields import Field
from ringload.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

LabelMode = Literal["auto", "int", "categorical", "binary", "multi_hot", "float"]
MODES = ("auto", "int", "categorical", "binary", "multi_hot", "float")


@dataclass(frozen=True)
class Label:
    """One field of labels.

    `values` has the value of each row; with `hot`, the class that is 1 in its row; with `starts` and `lengths` `(N,)`,
    the classes `values[start : start + length]`.
    """

    name: str
    field: Field
    class_names: tuple[Any, ...]
    values: np.ndarray
    hot: bool = False
    starts: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def write(self, row: int, view: np.ndarray) -> None:
        """Write a row's value into its view."""
        if not self.hot:
            view[...] = self.values[row]
            return
        view[...] = 0
        if self.starts is None or self.lengths is None:
            view[self.values[row]] = 1
        else:
            start = int(self.starts[row])
            view[self.values[start : start + int(self.lengths[row])]] = 1

    def take(self, rows: np.ndarray) -> Label:
        """The labels of some rows."""
        if self.starts is None or self.lengths is None:
            return replace(self, values=self.values[rows])
        return replace(self, starts=self.starts[rows], lengths=self.lengths[rows])


def encode(table: pd.DataFrame, label: Any, classes: Any, mode: Any) -> list[Label]:
    """The labels of a table.

    Arguments:
        label: None; a column, or a list of columns: the field `label`; or a dict of field names to either.
        classes: the class names in their order, or None; for a dict, a dict of them.
        mode: as above; for a dict, a dict of them or one for all.

    Raises:
        ConfigError: the columns cannot be labels of that kind; the message names the column and the row.
    """
    if label is None:
        return []
    if not isinstance(label, dict):
        return [_encode(table, "label", label, classes, mode)]
    classes, modes = {} if classes is None else classes, dict.fromkeys(label, mode) if isinstance(mode, str) else mode
    for what, given in (("classes", classes), ("label_mode", modes)):
        if not isinstance(given, Mapping) or (unknown := sorted(given.keys() - label.keys(), key=str)):
            wrong = f"{unknown} are no label fields" if isinstance(given, Mapping) else f"it is {given!r}"
            raise ConfigError(f"with several label fields, {what} is a dict of {list(label)} (not of all, maybe): {wrong}")
    return [_encode(table, name, columns, classes.get(name), modes.get(name, "auto")) for name, columns in label.items()]


def _encode(table: pd.DataFrame, name: str, columns: Any, classes: Sequence[Any] | None, mode: str) -> Label:
    if mode not in MODES:
        raise ConfigError(f"label_mode is one of {', '.join(MODES)}, not {mode!r}")
    if isinstance(columns, list | tuple):
        return _several(table, name, list(columns), mode)
    column = present(table, columns)
    lists = _lists(column)
    if lists is not None:
        if mode == "float" or (mode == "auto" and classes is None and _are_vectors(lists)):
            return _vectors(name, column, lists)
        if mode in ("auto", "multi_hot"):
            return _multi_hot(name, column, lists, classes)
        raise ConfigError(f"column {columns!r} holds lists: label_mode={mode!r} takes one value a row")
    if mode == "multi_hot":
        raise ConfigError(f"label_mode='multi_hot' takes lists or several columns; column {columns!r} has one value a row")
    if mode == "auto" and classes is None:
        mode = {"b": "binary", "f": "float"}.get(getattr(column.dtype, "kind", "O"), "int")
    if mode == "float":
        return Label(name, Field((), "float32"), (), numbers(column))
    try:
        return _classes(name, column, classes, "int" if mode == "auto" else mode)
    except TypeError as error:  # not hashable
        kinds = " and ".join(sorted({type(value).__name__ for value in column}))
        raise ConfigError(f"column {columns!r} holds {kinds}: a class is a string, a number or a bool ({error})") from error


def _classes(name: str, column: pd.Series[Any], classes: Sequence[Any] | None, mode: str) -> Label:
    """One class a row."""
    import pandas as pd

    if classes is None and isinstance(column.dtype, pd.CategoricalDtype) and column.dtype.ordered:
        classes = _plain(column.dtype.categories)
    codes, uniques = pd.factorize(np.asarray(column) if column.dtype.kind != "O" else column)
    found = _plain(uniques)
    if mode == "binary" and classes is None:
        if not set(found) - {0, 1}:
            classes = (0, 1)
        elif len(found) != 2:
            raise ConfigError(f"label_mode='binary' takes two classes; column {column.name!r} has {_sorted(found, column)}")
    names = _sorted(found, column) if classes is None else _checked(classes)
    number_of = {value: number for number, value in enumerate(names)}
    unknown = np.array([value not in number_of for value in found])
    if unknown.any():
        row = int(np.flatnonzero(unknown[codes])[0])
        raise ConfigError(
            f"column {column.name!r} has {found[codes[row]]!r} in row {column.index[row]}, which is not among classes={names}"
        )
    values = np.array([number_of[value] for value in found], np.int64)[codes]
    if mode == "binary":
        if len(names) != 2:
            raise ConfigError(f"label_mode='binary' takes two classes; classes={names}")
        return Label(name, Field((), "float32"), tuple(names), values.astype(np.float32))
    if mode == "categorical":
        return Label(name, Field((len(names),), "float32"), tuple(names), values, hot=True)
    return Label(name, Field((), "int64"), tuple(names), values)


def _multi_hot(name: str, column: pd.Series[Any], lists: list[Any], classes: Sequence[Any] | None) -> Label:
    """A list of classes a row."""
    lengths = np.array([len(one) for one in lists], np.int64)
    flat = _plain(value for one in lists for value in one)
    names = _sorted(list(dict.fromkeys(flat)), column) if classes is None else _checked(classes)
    if not names:
        raise ConfigError(f"column {column.name!r} holds empty lists only: give the classes by classes=[...]")
    twice = next((row for row, one in enumerate(lists) if len(set(_plain(one))) != len(one)), None)
    if twice is not None and all(isinstance(value, bool | int | float) for value in names):
        raise ConfigError(
            f"column {column.name!r} names a class twice in row {column.index[twice]}: {list(lists[twice])!r}. For vectors use "
            "label_mode='float'"
        )
    number_of = {value: number for number, value in enumerate(names)}
    try:
        values = np.array([number_of[value] for value in flat], np.int64)
    except KeyError as error:
        at = flat.index(error.args[0])
        row = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        raise ConfigError(
            f"column {column.name!r} has {error.args[0]!r} in row {column.index[row]}, which is not among classes={names}"
        ) from None
    starts = np.zeros(len(lists), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return Label(name, Field((len(names),), "float32"), tuple(names), values, True, starts, lengths)


def _vectors(name: str, column: pd.Series[Any], lists: list[Any]) -> Label:
    """A list of numbers a row."""
    sizes = sorted({len(one) for one in lists})
    if len(sizes) != 1 or sizes == [0]:
        raise ConfigError(f"column {column.name!r} holds vectors of different lengths ({sizes}); a field has one shape")
    try:
        values = np.array([list(one) for one in lists], np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"column {column.name!r} holds vectors of something other than numbers: {error}") from error
    if values.ndim != 2:
        raise ConfigError(
            f"column {column.name!r} holds arrays of {values.ndim - 1} dimensions; a label is a vector or a number"
        )
    return Label(name, Field((sizes[0],), "float32"), (), values)


def _several(table: pd.DataFrame, name: str, columns: list[Any], mode: str) -> Label:
    """One number a column."""
    if not columns:
        raise ConfigError("label is an empty list of columns; label=None is for no labels")
    values = np.stack([numbers(present(table, column)) for column in columns], axis=1)  # (N, K)
    binary = bool(np.isin(values, (0, 1)).all())
    if mode == "auto":
        mode = "multi_hot" if binary else "float"
    if mode not in ("multi_hot", "float") or (mode == "multi_hot" and not binary):
        raise ConfigError(f"several columns {columns} do not suit label_mode={mode!r}: 'multi_hot' takes 0 and 1, 'float' any")
    return Label(name, Field((len(columns),), "float32"), tuple(columns) if mode == "multi_hot" else (), values)


def present(table: pd.DataFrame, name: Any) -> pd.Series[Any]:
    """A column without missing values.

    Raises:
        ConfigError: there is none, or values are missing.
    """
    try:
        n_columns = int((table.columns == name).sum()) if np.ndim(name) == 0 else 0
    except TypeError:
        n_columns = 0
    if n_columns != 1:
        there = f"{n_columns} columns {name!r}" if n_columns else f"no column {name!r}"
        raise ConfigError(f"the table has {there}; it has {list(table.columns)}")
    column: pd.Series[Any] = table[name]
    missing = np.flatnonzero(column.isna())
    if len(missing):
        first = ", ".join(str(row) for row in column.index[missing[:5]])
        raise ConfigError(
            f"column {name!r} has {len(missing)} missing values (NaN), first in rows {first}; drop them: "
            f"df.dropna(subset=[{name!r}])"
        )
    return column


def numbers(column: pd.Series[Any]) -> np.ndarray:
    """A column of numbers as `(N,) float32`.

    Raises:
        ConfigError: it holds something else.
    """
    if column.dtype.kind in "buif":
        return column.to_numpy(np.float32)
    values = np.empty(len(column), np.float32)
    for row, value in enumerate(column):
        try:
            values[row] = value
        except (TypeError, ValueError):
            raise ConfigError(f"column {column.name!r} holds {value!r}, which is not a number") from None
    return values


def _lists(column: pd.Series[Any]) -> list[Any] | None:
    """The rows of a column of lists, else None."""
    if column.dtype.kind != "O" or not isinstance(column.iloc[0], list | tuple | set | frozenset | np.ndarray):
        return None
    rows = [sorted(row, key=str) if isinstance(row, set | frozenset) else row for row in column]
    for row, value in enumerate(rows):
        if not isinstance(value, list | tuple | np.ndarray):
            raise ConfigError(f"column {column.name!r} holds lists, but in row {column.index[row]} {value!r}")
    return rows


def _are_vectors(lists: list[Any]) -> bool:
    """Whether they are vectors, of floats or of 0 and 1, and not lists of classes."""
    kinds = {type(value) for one in lists for value in one}
    if kinds and all(issubclass(kind, float | np.floating) for kind in kinds):
        return True
    numbers_only = all(issubclass(kind, bool | int | float | np.generic) for kind in kinds)
    of_one_length = len({len(one) for one in lists}) == 1 and len(lists[0]) > 1
    return numbers_only and of_one_length and {value for one in lists for value in one} <= {0, 1}


def _sorted(values: list[Any], column: pd.Series[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        kinds = " and ".join(sorted({type(value).__name__ for value in values}))
        raise ConfigError(
            f"column {column.name!r} mixes {kinds}, which have no order: make them one type, or give classes=[...]"
        ) from None


def _checked(classes: Sequence[Any]) -> list[Any]:
    names = list(classes)
    if len(set(names)) != len(names):
        raise ConfigError(f"classes={names} names a class twice")
    return names


def _plain(values: Iterable[Any]) -> list[Any]:
    """Python's own objects for NumPy's scalars."""
    return [value.item() if isinstance(value, np.generic) else value for value in values]
