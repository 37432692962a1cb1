"""Labels of several values a row: a column of lists, or several columns. `labels` and `classes` have the rules.

A column may have 30 million lists. So what is done with each is done by C code: `map`, `chain`, NumPy. Only sets, tensors and
lists that are wrong are looked at one by one.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import listed, short
from ringload.errors import ConfigError
from ringload.fields import Field
from ringload.sources.classes import (
    found_classes,
    given_classes,
    have_decimals,
    plain,
    refuse_odd_values,
    refuse_unknown_values,
)
from ringload.sources.columns import numbers, present, row_name
from ringload.sources.label_field import Label

if TYPE_CHECKING:
    import pandas as pd

CONTAINERS = (list, tuple, set, frozenset, np.ndarray)
SIMPLE = "biufOU"  # kinds of arrays that tolist() turns into Python's numbers and strings


def rows_of_lists(column: pd.Series[Any]) -> list[Any] | None:
    """The rows of a column of lists, else None."""
    if column.dtype.kind != "O" or not _holds_many(type(column.iloc[0])):
        return None
    values = column.tolist()
    kinds = set(map(type, values))
    if kinds <= {list, tuple}:
        return values
    are_flat = kinds == {np.ndarray} and set(map(attrgetter("ndim"), values)) == {1}
    if are_flat and set(map(attrgetter("dtype.kind"), values)) <= set(SIMPLE):
        return list(map(np.ndarray.tolist, values))
    return _rows_one_by_one(column)


def _rows_one_by_one(column: pd.Series[Any]) -> list[Any]:
    """The rows of a column with sets, tensors, or values that are no lists."""
    rows = []
    for row, value in enumerate(column):
        if not _holds_many(type(value)):
            raise ConfigError(f"column {short(column.name)} holds lists, but in row {row_name(column, row)} {short(value)}")
        if hasattr(value, "__array__"):
            value = np.asarray(value)
            if value.ndim != 1:
                raise ConfigError(
                    f"column {short(column.name)} has an array of {value.ndim} dimensions, {value.shape}, in row "
                    f"{row_name(column, row)}: a label is a value or a list of them"
                )
        rows.append(sorted(value, key=str) if isinstance(value, set | frozenset) else value)
    return rows


def _holds_many(kind: type) -> bool:
    """Whether values of this class are lists or arrays, or can be converted to an array (tensors)."""
    return issubclass(kind, CONTAINERS) or (hasattr(kind, "__array__") and not issubclass(kind, np.generic))


def label_of_lists(name: str, column: pd.Series[Any], lists: list[Any], classes: Any, mode: str) -> Label:
    kinds = set(map(type, chain.from_iterable(lists)))
    if nested := [kind for kind in kinds if _holds_many(kind)]:
        row = next(row for row, one in enumerate(lists) if any(isinstance(value, tuple(nested)) for value in one))
        raise ConfigError(
            f"column {short(column.name)} has a list of {nested[0].__name__}s in row {row_name(column, row)}: "
            f"{short(lists[row])}. A label is a list of classes or of numbers"
        )
    if mode == "float" or (mode == "auto" and classes is None and _are_vectors(lists, kinds)):
        if classes is not None:
            raise ConfigError(
                f"label_mode='float' takes vectors, which have no classes: column {short(column.name)} has classes= too"
            )
        return _vectors(name, column, lists)
    if mode in ("auto", "multi_hot"):
        return _multi_hot(name, column, lists, classes)
    raise ConfigError(f"column {short(column.name)} holds lists: label_mode={short(mode)} takes one value a row")


def _are_vectors(lists: list[Any], kinds: set[type]) -> bool:
    """Whether the lists are vectors, of decimals or of 0 and 1, and not lists of classes."""
    if have_decimals(kinds):
        return True
    numbers_only = all(issubclass(kind, bool | int | float | np.generic) for kind in kinds)
    of_one_length = len(set(map(len, lists))) == 1 and len(lists[0]) > 1
    return numbers_only and of_one_length and set(chain.from_iterable(lists)) <= {0, 1}


def _multi_hot(name: str, column: pd.Series[Any], lists: list[Any], given: Any) -> Label:
    """A list of classes a row."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    flat = list(chain.from_iterable(lists))
    if any(issubclass(kind, np.generic) for kind in set(map(type, flat))):
        flat = plain(flat)
    found = list(dict.fromkeys(flat))

    def row_of(number: int) -> str:
        return row_name(column, int(np.searchsorted(np.cumsum(lengths), flat.index(found[number]), side="right")))

    refuse_odd_values(found, column, row_of)
    if not found and given is None:
        raise ConfigError(f"column {short(column.name)} holds empty lists only: give the classes by classes=[...]")
    classes = found_classes(found, column) if given is None else given_classes(given)
    are_numbers = all(isinstance(value, bool | int | float) for value in found)
    if are_numbers and (twice := _with_a_class_twice(flat, found, lengths)) is not None:
        raise ConfigError(
            f"column {short(column.name)} names a class twice in row {row_name(column, twice)}: {short(list(lists[twice]))}. "
            "For vectors use label_mode='float'"
        )
    refuse_unknown_values(found, classes, column, row_of)
    values = np.fromiter(map(classes.numbers.__getitem__, flat), np.int64, len(flat))
    starts = np.zeros(len(lists), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return Label(name, Field((len(classes.names),), "float32"), classes.names, values, True, starts, lengths)


def _with_a_class_twice(flat: list[Any], found: list[Any], lengths: np.ndarray) -> int | None:
    """The first row that names a class twice, of rows of `lengths` one after another; None if there is none."""
    places = {value: place for place, value in enumerate(found)}
    rows = np.repeat(np.arange(len(lengths)), lengths)
    keyed = np.sort(rows * max(1, len(found)) + np.fromiter(map(places.__getitem__, flat), np.int64, len(flat)))
    same = np.flatnonzero(keyed[1:] == keyed[:-1])
    return int(keyed[same[0]] // len(found)) if len(same) else None


def _vectors(name: str, column: pd.Series[Any], lists: list[Any]) -> Label:
    """A list of numbers a row."""
    sizes = sorted(set(map(len, lists)))
    if len(sizes) != 1 or sizes == [0]:
        raise ConfigError(
            f"column {short(column.name)} holds vectors of different lengths ({listed(sizes)}); a field has one shape"
        )
    try:
        values = np.array(list(map(list, lists)), np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"column {short(column.name)} holds vectors of something other than numbers: {error}") from error
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ConfigError(
            f"column {short(column.name)} has a vector that is not finite in row {row_name(column, row)}: "
            f"{short(list(lists[row]))}"
        )
    return Label(name, Field((sizes[0],), "float32"), (), values)


def label_of_columns(table: pd.DataFrame, name: str, columns: list[Any], classes: Any, mode: str) -> Label:
    """A field of one number for each column."""
    if not columns:
        raise ConfigError("label is an empty list of columns; label=None is for no labels")
    if classes is not None:
        raise ConfigError(f"several columns {listed(columns)} are the classes themselves: leave classes= out")
    values = np.stack([numbers(present(table, column), "a label") for column in columns], axis=1)  # (N, K)
    binary = bool(np.isin(values, (0, 1)).all())
    if mode == "auto":
        mode = "multi_hot" if binary else "float"
    if mode not in ("multi_hot", "float") or (mode == "multi_hot" and not binary):
        raise ConfigError(
            f"several columns {listed(columns)} do not suit label_mode={short(mode)}: 'multi_hot' takes 0 and 1, 'float' any"
        )
    return Label(name, Field((len(columns),), "float32"), tuple(columns) if mode == "multi_hot" else (), values)
