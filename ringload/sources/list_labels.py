"""Labels of several values a row: a column of lists, or several columns. `labels` and `classes` have the rules."""

from __future__ import annotations

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


def rows_of_lists(column: pd.Series[Any]) -> list[Any] | None:
    """The rows of a column of lists, else None."""
    if column.dtype.kind != "O" or not _holds_many(type(column.iloc[0])):
        return None
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
    kinds = {type(value) for one in lists for value in one}
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
    of_one_length = len({len(one) for one in lists}) == 1 and len(lists[0]) > 1
    return numbers_only and of_one_length and {value for one in lists for value in one} <= {0, 1}


def _multi_hot(name: str, column: pd.Series[Any], lists: list[Any], given: Any) -> Label:
    """A list of classes a row."""
    lengths = np.array([len(one) for one in lists], np.int64)
    flat = plain(value for one in lists for value in one)
    found = list(dict.fromkeys(flat))

    def row_of(number: int) -> str:
        return row_name(column, int(np.searchsorted(np.cumsum(lengths), flat.index(found[number]), side="right")))

    refuse_odd_values(found, column, row_of)
    if not found and given is None:
        raise ConfigError(f"column {short(column.name)} holds empty lists only: give the classes by classes=[...]")
    classes = found_classes(found, column) if given is None else given_classes(given)
    twice = next((row for row, one in enumerate(lists) if len(set(plain(one))) != len(one)), None)
    if twice is not None and all(isinstance(value, bool | int | float) for value in found):
        raise ConfigError(
            f"column {short(column.name)} names a class twice in row {row_name(column, twice)}: {short(list(lists[twice]))}. "
            "For vectors use label_mode='float'"
        )
    refuse_unknown_values(found, classes, column, row_of)
    values = np.array([classes.numbers[value] for value in flat], np.int64)
    starts = np.zeros(len(lists), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return Label(name, Field((len(classes.names),), "float32"), classes.names, values, True, starts, lengths)


def _vectors(name: str, column: pd.Series[Any], lists: list[Any]) -> Label:
    """A list of numbers a row."""
    sizes = sorted({len(one) for one in lists})
    if len(sizes) != 1 or sizes == [0]:
        raise ConfigError(
            f"column {short(column.name)} holds vectors of different lengths ({listed(sizes)}); a field has one shape"
        )
    try:
        values = np.array([list(one) for one in lists], np.float32)
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
