"""Fields of labels, with their values for each row of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ringload.checks import no_field
from ringload.errors import ConfigError
from ringload.fields import Field, Row

WEIGHT = "weight"  # the field of sample weights, which is no label


@dataclass(frozen=True)
class Label:
    """One field of labels.

    `values` has the value of each row; with `hot`, the class that is 1 in its row; with `starts` and `lengths` `(N,)`,
    the classes `values[start : start + length]`.
    """

    name: str
    field: Field
    class_names: Sequence[Any]
    values: np.ndarray
    hot: bool = False
    starts: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def __post_init__(self) -> None:
        for array in self.arrays:
            if array.flags.owndata:
                array.flags.writeable = False  # so it is not compared with the workers' copies

    @property
    def named_arrays(self) -> dict[str, np.ndarray]:
        """The arrays of its values: attribute -> array."""
        named = {"values": self.values, "starts": self.starts, "lengths": self.lengths}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def arrays(self) -> list[np.ndarray]:
        """The arrays of its values."""
        return list(self.named_arrays.values())

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

    def of_all(self, n_rows: int) -> np.ndarray:
        """The values of all rows: `(n_rows, *shape)`."""
        made = np.empty((n_rows, *self.field.shape), self.field.dtype)
        if not self.hot:
            made[...] = self.values
            return made
        made[...] = 0
        if self.starts is None or self.lengths is None:
            made[np.arange(n_rows), self.values] = 1
        else:
            made[np.repeat(np.arange(n_rows), self.lengths), self.values[_spans(self.starts, self.lengths)]] = 1
        return made

    def class_counts(self) -> np.ndarray:
        """How many rows have each class: `(n_classes,) int64`."""
        n_classes = len(self.class_names)
        if not self.hot:
            if self.values.ndim == 2:  # a column of 0 and 1 for each class
                return np.asarray(self.values.sum(axis=0, dtype=np.float64).astype(np.int64))
            return np.asarray(np.bincount(self.values.astype(np.int64), minlength=n_classes))
        if self.starts is None or self.lengths is None:
            return np.bincount(self.values, minlength=n_classes)
        return np.asarray(np.bincount(self.values[_spans(self.starts, self.lengths)], minlength=n_classes))

    def differ(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whether the values of `rows (n,)` are not those of `others (n,)`: `(n,) bool`."""
        if self.starts is None or self.lengths is None:
            differs = self.values[rows] != self.values[others]
            return np.asarray(differs.any(axis=1) if differs.ndim == 2 else differs)
        sums = np.zeros(len(rows), np.int64)
        differs = self.lengths[rows] != self.lengths[others]
        same = np.flatnonzero(~differs)
        lengths = self.lengths[rows[same]]
        one, other = (np.sort(self._keyed(which[same], lengths)) for which in (rows, others))  # a list has no order
        np.add.at(sums, np.repeat(same, lengths), one != other)
        return np.asarray(differs | (sums > 0))

    def _keyed(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The classes of some rows one after another, each with the number of its row before it."""
        assert self.starts is not None
        classes = self.values[_spans(self.starts[rows], lengths)]
        return np.asarray(np.repeat(np.arange(len(rows)), lengths) * (len(self.class_names) + 1) + classes)

    def take(self, rows: np.ndarray) -> Label:
        """The labels of some rows."""
        if self.starts is None or self.lengths is None:
            return replace(self, values=self.values[rows])
        return replace(self, starts=self.starts[rows], lengths=self.lengths[rows])


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, ..., start + length - 1 of each row, one row after another."""
    ends = np.cumsum(lengths)
    return np.asarray(np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0))


@dataclass(frozen=True)
class LabelFields:
    """All fields of labels of a table, and the one of weights."""

    fields: tuple[Label, ...]

    def __iter__(self) -> Iterator[Label]:
        return iter(self.fields)

    def write(self, row: int, out: Row) -> None:
        """Write a row's values."""
        for label in self.fields:
            label.write(row, out[label.name])

    def take(self, rows: np.ndarray) -> LabelFields:
        """The labels of some rows."""
        return LabelFields(tuple(label.take(rows) for label in self.fields))

    def only(self) -> Label:
        """The only field of labels; or of several, the only one of classes.

        Raises:
            ConfigError: there is no such field, or there are several.
        """
        labels = [label for label in self.fields if label.name != WEIGHT]
        if len(classes := [label for label in labels if label.class_names]) == 1:
            labels = classes
        if len(labels) != 1:
            raise ConfigError(f"there are {len(labels)} label fields: use class_names_of(field)")
        return labels[0]

    def named(self, name: str) -> Label:
        """A field of labels by its name.

        Raises:
            ConfigError: there is no such field.
        """
        for label in self.fields:
            if label.name == name:
                return label
        raise ConfigError(no_field(name, [label.name for label in self.fields], "label field"))
