"""Classes: the number of each class.

The first of these rules that applies is used, for a column of classes and for a column of lists of classes alike:
1. `classes=` gives the numbers: a sequence by its order, a dict by its values. Classes without rows count, too.
2. An ordered categorical has the order of its categories.
3. Bools: False is 0, True is 1.
4. Integers that are numbers of classes keep them, whichever of them occur: class n is number n, and there are
   `largest + 1` classes. They are such numbers if none is negative, 0 occurs, and the largest is below `KEPT_BELOW` or ten
   times the number of rows. So a validation table that lacks a class has the numbers of the training table.
5. Other integers (1..K, -1 and 1, years, ids) are numbered by size, with a warning: a table with other such integers is
   numbered differently.
6. All other values are numbered in sorted order.
By rules 5 and 6 the number of a class depends on which other classes occur. Give a second table that belongs to the first
`classes=first.class_names`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import listed, short, warn
from ringload.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

KEPT_BELOW = 100_000  # integers below it are numbers of classes, however few rows there are
DECIMAL = (float, np.floating, Decimal, Fraction)  # types of numbers that are classes only if the user says so
HOW_TO_GIVE = "give a list of the classes in the order of their numbers, or a dict of class -> number"
NUMBERS_ONLY = re.compile(r"\[[\s\d.eE+\-]*\]")  # how NumPy prints an array


@dataclass(frozen=True)
class Classes:
    """The classes in the order of their numbers, and the number of each that may occur."""

    names: Sequence[Any]
    numbers: Mapping[Any, int]

    @classmethod
    def of(cls, names: Sequence[Any]) -> Classes:
        """Classes that are numbered by their order."""
        return cls(tuple(names), {name: number for number, name in enumerate(names)})


def given_classes(classes: Any) -> Classes:
    """The classes of the argument `classes=`.

    Raises:
        ConfigError: it has no order, or its numbers are not 0..K-1.
    """
    names = _by_number(classes) if isinstance(classes, Mapping) else _in_order(classes)
    if not names:
        raise ConfigError("classes is empty: give at least one class, or classes=None for those that occur")
    try:
        n_different = len(set(names))
    except TypeError as error:
        raise ConfigError(f"classes={listed(names)}: a class is a string, a number or a bool ({error})") from error
    if n_different != len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ConfigError(
            f"classes={listed(names)} names a class twice, {short(twice)}; for a column, give its sorted unique values"
        )
    if missing := [name for name in names if _is_missing(name)]:
        raise ConfigError(f"classes={listed(names)} names {short(missing[0])}, a missing value, which is no class")
    return Classes.of(names)


def _in_order(classes: Any) -> list[Any]:
    import pandas as pd

    if isinstance(classes, Set):
        kind = type(classes).__name__
        own = "the dict itself, by its numbers, or " if kind.startswith("dict") else ""
        raise ConfigError(
            f"classes is a {kind}, which defines no order of classes (the order of a set differs between processes): give "
            f"{own}a list, such as sorted(classes)"
        )
    if isinstance(classes, np.ndarray) and classes.ndim != 1:
        raise ConfigError(f"classes is an array of {classes.ndim} dimensions: {HOW_TO_GIVE}")
    is_sequence = isinstance(classes, Sequence) and not isinstance(classes, str | bytes | bytearray)
    if not is_sequence and not isinstance(classes, np.ndarray | pd.Index | pd.Series | pd.api.extensions.ExtensionArray):
        raise ConfigError(f"classes={short(classes)} ({type(classes).__name__}): {HOW_TO_GIVE}")
    return plain(classes)


def _by_number(classes: Mapping[Any, Any]) -> list[Any]:
    """The classes of a dict of class -> number, in the order of their numbers."""
    numbers = list(classes.values())
    if not all(isinstance(number, int | np.integer) and not isinstance(number, bool) for number in numbers):
        turned = all(isinstance(name, int | np.integer) for name in classes) and bool(classes)
        remedy = ": swap them, {name: number for number, name in classes.items()}" if turned else ""
        raise ConfigError(f"classes as a dict is class -> number, an integer; its values are {listed(numbers)}{remedy}")
    names: list[Any] = [None] * len(classes)
    taken: set[int] = set()
    for name, number in classes.items():
        if not 0 <= number < len(classes) or int(number) in taken:
            raise ConfigError(
                f"classes as a dict gives {len(classes)} classes the numbers {listed(sorted(map(int, numbers)))}: give each "
                f"of 0 to {len(classes) - 1} once, and name classes without rows, too"
            )
        taken.add(int(number))
        names[int(number)] = name
    return plain(names)


def is_ordered(column: pd.Series[Any]) -> bool:
    """Whether a column is an ordered categorical."""
    import pandas as pd

    return isinstance(column.dtype, pd.CategoricalDtype) and bool(column.dtype.ordered)


def found_classes(found: list[Any], column: pd.Series[Any], quiet: bool = False) -> Classes:
    """The classes of a column by rules 2 to 6. `found`: its different values. `quiet`: without the warning.

    Raises:
        ConfigError: they have no order.
    """
    if is_ordered(column):
        return Classes.of(plain(column.cat.categories))
    if found and all(isinstance(value, bool) for value in found):
        return Classes.of((False, True))
    if found and all(_is_whole(value) for value in found):
        return _of_integers(found, column, quiet)
    try:
        return Classes.of(sorted(found))
    except TypeError:
        kinds = sorted({type(value).__name__ for value in found})
        raise ConfigError(
            f"column {short(column.name)} {'mixes' if len(kinds) > 1 else 'holds'} {' and '.join(kinds)}, which have no order: "
            "convert them to one type, or give classes=[...]"
        ) from None


def _of_integers(found: list[Any], column: pd.Series[Any], quiet: bool) -> Classes:
    names = sorted(int(value) for value in found)
    if names[0] == 0 and names[-1] < max(KEPT_BELOW, 10 * len(column)):
        return Classes(range(names[-1] + 1), {name: name for name in names})
    if quiet:
        return Classes.of(names)
    them = listed(names) if len(names) <= 10 else f"sorted(df[{short(column.name)}].unique())"
    warn(
        f"column {short(column.name)} holds integers from {names[0]} to {names[-1]} that are not numbers of classes (0 to "
        f"K - 1, including 0): they are numbered by size, {names[0]} is 0 and {names[-1]} is {len(names) - 1}. A second table "
        "with other integers is numbered differently: give it classes=first.class_names, where first is the source of this "
        f"table. classes={them} gives the same numbers without this warning"
    )
    return Classes.of(names)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType")


def have_decimals(kinds: set[type]) -> bool:
    """Whether values of these classes are numbers, and not all integers."""
    is_decimal = [issubclass(kind, DECIMAL) for kind in kinds]
    return any(is_decimal) and all(
        decimal or (issubclass(kind, int | np.integer) and kind is not bool)
        for kind, decimal in zip(kinds, is_decimal, strict=True)
    )


def refuse_odd_values(found: Iterable[Any], column: pd.Series[Any], row_of: Callable[[int], str]) -> None:
    """Refuse hashable values that are no classes. `row_of(i)` names a row of the i-th value.

    Raises:
        ConfigError: a value is missing, infinite or an array.
    """
    for number, value in enumerate(found):
        if _is_missing(value):
            reason = "which is a missing value: no class"
        elif isinstance(value, float) and math.isinf(value):
            reason = "which is infinite: no class"
        elif hasattr(type(value), "__array__") and not isinstance(value, np.generic):
            reason = f"a {type(value).__name__}: a class is a string, a number or a bool"
        else:
            continue
        raise ConfigError(f"column {short(column.name)} has {short(value)} in row {row_of(number)}, {reason}")


def refuse_unknown_values(found: Iterable[Any], classes: Classes, column: pd.Series[Any], row_of: Callable[[int], str]) -> None:
    """Raise ConfigError for a value that is none of `classes`. `row_of(i)` names a row of the i-th value."""
    for number, value in enumerate(found):
        if value not in classes.numbers:
            raise ConfigError(
                f"column {short(column.name)} has {short(value)} in row {row_of(number)}, which is not among "
                f"classes={listed(classes.names)}"
            )


def is_list_as_text(value: Any) -> bool:
    """Whether a string looks like a list from a .csv file: "['a', 'b']", "[1 0 1]"."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "(", "{"):
        return False
    if NUMBERS_ONLY.fullmatch(value.strip()):
        return True
    try:
        return isinstance(ast.literal_eval(value.strip()), list | tuple | set | dict)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def lists_as_text(column: pd.Series[Any], value: str, row: str) -> ConfigError:
    """The error for a column of such strings."""
    name = short(column.name)
    return ConfigError(
        f"column {name} has the string {short(value)} in row {row}: a list as text, as from a .csv file. "
        f"Convert each to a list, df[{name}] = df[{name}].map(ast.literal_eval) or json.loads; or give classes=[...] "
        "if each string is a class"
    )


def plain(values: Iterable[Any]) -> list[Any]:
    """The values, with Python objects for NumPy's numbers and strings."""
    return [value.item() if isinstance(value, np.number | np.bool_ | np.str_ | np.bytes_) else value for value in values]
