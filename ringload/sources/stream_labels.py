"""Labels of rows that come one by one: what can be said of a row's value without those of the other rows.

label_mode     field          from
"int"          () int64       with `classes`, the number of a class; else an integer, as it is
"categorical"  (K,) float32   a class of `classes`, one-hot
"multi_hot"    (K,) float32   a list of classes of `classes`
"binary"       () float32     one of the two `classes`; else 0, 1 or a bool
"float"        () float32     a number
"auto"         "int", of `classes` or of members that are integers, such as .cls
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.checks import listed, one_of, short
from ringload.errors import ConfigError
from ringload.fields import Field
from ringload.sources.classes import Classes, given_classes
from ringload.sources.label_field import WEIGHT
from ringload.sources.labels import MODES


@dataclass(frozen=True)
class StreamLabel:
    """A field of labels, of the values of one column."""

    name: str
    column: str
    mode: str
    classes: Classes | None
    field: Field

    def value(self, given: Any) -> Any:
        """A row's value.

        Raises:
            ValueError: it is none of that kind.
        """
        if given is None:
            raise ValueError(f"it has no {self.column!r}")
        if self.mode == "multi_hot":
            if not isinstance(given, list | tuple):
                raise ValueError(f"{self.column!r} is {short(given)}, and no list of classes")
            return self._hot([self._number(one) for one in given])
        if self.mode == "categorical":
            return self._hot([self._number(given)])
        if self.classes is not None:
            return self._number(given)
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        if self.mode == "binary" and not (isinstance(given, bool) or (is_number and given in (0, 1))):
            raise ValueError(f"{self.column!r} is {short(given)}, and neither 0 nor 1: give classes= for two classes")
        if self.mode == "int" and (not isinstance(given, int) or isinstance(given, bool)):
            raise ValueError(f"{self.column!r} is {short(given)}, and no integer")
        if self.mode == "float" and (not is_number or not math.isfinite(given)):
            raise ValueError(f"{self.column!r} is {short(given)}, and no finite number")
        return given

    def _number(self, given: Any) -> int:
        assert self.classes is not None
        try:
            return self.classes.numbers[given]
        except (KeyError, TypeError):
            raise ValueError(f"{self.column!r} is {short(given)}, which is not among {listed(self.classes.names)}") from None

    def _hot(self, numbers: list[int]) -> np.ndarray:
        made = np.zeros(self.field.shape, np.float32)
        made[numbers] = 1
        return made


def labels_of(label: Any, classes: Any, mode: Any, weight: Any, integers: Sequence[str]) -> list[StreamLabel]:
    """The labels, and weights, of a stream. `integers`: the columns that are known to be integers.

    Raises:
        ConfigError: an argument is not valid, or a kind of label needs all rows.
    """
    if label is None and classes is not None:
        raise ConfigError("classes= is given without label=: name the column of the classes")
    several = label if isinstance(label, Mapping) else {} if label is None else {"label": label}
    if isinstance(label, Mapping):
        of_classes, modes = classes or {}, dict.fromkeys(label, mode) if isinstance(mode, str) else mode
    else:
        of_classes, modes = {"label": classes}, {"label": mode}
    for what, given in (("classes", of_classes), ("label_mode", modes)):
        if not isinstance(given, Mapping) or (several and given.keys() - several.keys()):
            raise ConfigError(f"with several label fields, {what} is a dict of {list(several)} (or some), not {short(given)}")
    made = [_label(name, column, of_classes.get(name), modes.get(name, "auto"), integers) for name, column in several.items()]
    if weight is not None:
        made.append(_label(WEIGHT, weight, None, "float", ()))
    return made


def _label(name: str, column: Any, classes: Any, mode: Any, integers: Sequence[str]) -> StreamLabel:
    one_of("label_mode", mode, MODES)
    if not isinstance(column, str):
        raise ConfigError(f"a label of a stream is the name of one column, not {short(column)}")
    known = None if classes is None else given_classes(classes)
    if mode == "auto" and known is None and column not in integers:
        raise ConfigError(
            f"the values of column {column!r} are known only when all rows were read, which a stream does not do before it "
            "begins: give classes=[...], the classes in the order of their numbers; or label_mode='int' or 'float', if they "
            "are such numbers"
        )
    mode = "int" if mode == "auto" else mode
    if known is None and mode in ("categorical", "multi_hot"):
        raise ConfigError(f"label_mode={mode!r} of a stream needs classes=[...], the classes in the order of their numbers")
    if known is not None and mode == "float":
        raise ConfigError("label_mode='float' takes numbers, which have no classes: leave out classes=")
    if known is not None and mode == "binary" and len(known.names) != 2:
        raise ConfigError(f"label_mode='binary' takes two classes; classes={listed(known.names)}")
    is_hot = mode in ("categorical", "multi_hot")
    shape = (len(known.names),) if is_hot and known is not None else ()
    return StreamLabel(name, column, mode, known, Field(shape, "int64" if mode == "int" else "float32"))
