"""Fields: the named arrays that a sample consists of. `ringload.protocols.Source` says what a source is."""

from __future__ import annotations

import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ringload.checks import no_field, short
from ringload.errors import ConfigError, UnknownFieldError

RESERVED = ("index", "valid")
EXTENDED = re.compile("bfloat16|float[468]_[0-9a-z]+|u?int[1-4]")  # names of dtypes that ml_dtypes adds to NumPy


@dataclass(frozen=True)
class Field:
    """One named array of a sample: `shape` (an int, or ints; () for a number) and `dtype`, those of ml_dtypes ("bfloat16") too.

    Raises:
        ConfigError: a row of the field has no fixed size.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __init__(self, shape: Any, dtype: Any) -> None:
        try:
            shape = (int(shape),) if isinstance(shape, int | np.integer) else tuple(map(operator.index, shape))
            dtype = _dtype(dtype)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"a field has a shape and a dtype, not ({short(shape)}, {short(dtype)}): {error}") from error
        if any(n <= 0 for n in shape):
            raise ConfigError(f"a field's shape has positive sizes, not {shape}")
        if dtype.hasobject or dtype.itemsize == 0:
            raise ConfigError(f"a field's dtype has a fixed size, and {dtype} has none: use numbers, or bytes such as 'S20'")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", dtype)

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"

    @property
    def row_bytes(self) -> int:
        """Bytes of the field in one sample."""
        return prod(self.shape) * self.dtype.itemsize


def _dtype(dtype: Any) -> np.dtype[Any]:
    """A dtype from all that NumPy accepts, and from names of ml_dtypes, also before ml_dtypes is imported."""
    try:
        made: np.dtype[Any] = np.dtype(dtype)
        return made
    except TypeError:
        if not (isinstance(dtype, str) and EXTENDED.fullmatch(dtype)):
            raise
    try:
        import ml_dtypes
    except ImportError as error:
        raise TypeError(f"the dtype {dtype} needs ml_dtypes: pip install ml_dtypes") from error
    extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype, dtype))
    return extended


def as_fields(fields: Any) -> dict[str, Field]:
    """Fields from a mapping of names to Field or (shape, dtype).

    Raises:
        ConfigError: `fields` is no such mapping, or a name is not valid.
    """
    if not isinstance(fields, Mapping) or not fields:
        raise ConfigError(f"fields is a dict of names to ringload.Field(shape, dtype), with at least one, not {short(fields)}")
    made = {}
    for name, field in fields.items():
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
            raise ConfigError(f"{short(name)} cannot name a field: take an identifier other than {' and '.join(RESERVED)}")
        if not isinstance(field, Field):
            try:
                shape, dtype = field
            except (TypeError, ValueError) as error:
                raise ConfigError(f"field {name!r} is ringload.Field(shape, dtype), not {short(field)}") from error
            field = Field(shape, dtype)
        made[name] = field
    return made


def in_brief(source: Any, name: str = "") -> str:
    """A short text for a source: its class or `name`, number of samples and fields; or the repr that its class defines."""
    if not name and "__repr__" in {name for kind in type(source).__mro__[:-1] for name in vars(kind)}:
        return short(source)
    shown = ", ".join(f"{field} {kind}" for field, kind in as_fields(source.fields).items())
    return f"<{name or type(source).__name__} of {len(source):,} samples: {shown}>"


def write_exactly(view: np.ndarray, value: Any, name: str) -> None:
    """Write `value` into `view`, if both have the same shape and no more than floating-point precision is lost.

    Raises:
        ValueError: else; the message names both shapes and dtypes.
    """
    if type(value) in (bool, int, float):
        if view.shape != () or not _number_fits(value, view.dtype):
            raise ValueError(f"field {name!r} takes {view.shape} {view.dtype}, got the {type(value).__name__} {short(value)}")
        view[...] = value
        return
    array = np.asarray(value)
    if array.shape != view.shape or not (array.dtype == view.dtype or _converts(array.dtype, view.dtype)):
        raise ValueError(f"field {name!r} takes {view.shape} {view.dtype}, got {array.shape} {array.dtype}")
    view[...] = array


def _converts(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    return np.can_cast(given, wanted, "same_kind" if _kind(wanted) in "fc" and _kind(given) in "buifc" else "safe")


def _number_fits(value: Any, dtype: np.dtype[Any]) -> bool:
    kind = _kind(dtype)
    if kind in "fc":
        return True
    if kind in "iu" and not isinstance(value, float):
        limits = (np if kind == dtype.kind else sys.modules["ml_dtypes"]).iinfo(dtype)
        return bool(limits.min <= value <= limits.max)
    return kind == "b" and isinstance(value, bool)


def _kind(dtype: np.dtype[Any]) -> str:
    """NumPy's letter for the kind of a dtype. Most dtypes of ml_dtypes have "V" there: "f", "i" or "u" for them."""
    if dtype.kind != "V" or dtype.type.__module__ != "ml_dtypes":
        return dtype.kind
    return dtype.name[0] if dtype.name[0] in "iu" else "f"


class Row(MutableMapping[str, np.ndarray]):
    """A sample's place in a slot: field -> its view. `row[name] = value` writes a field, `row[name]` is its view to write to.

    Attributes: `number`, the number of the row in its task, from 0.
    """

    __slots__ = ("_touched", "_views", "number")

    def __init__(self, views: dict[str, np.ndarray], number: int = 0) -> None:
        self._views, self.number = views, number
        self._touched: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            view = self._views[name]
        except KeyError:
            raise UnknownFieldError(name, self._views) from None
        self._touched.add(name)
        return view

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._views:
            raise ValueError(no_field(name, self._views))
        write_exactly(self._views[name], value, name)
        self._touched.add(name)

    def __delitem__(self, name: str) -> None:
        raise TypeError("the fields of a row are those of the source: none can be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def written(self) -> None:
        """Note that all fields are written, by a function that does not use this object."""
        self._touched.update(self._views)

    def only(self, names: Iterable[str]) -> Row:
        """The same row with some of its fields. What is written there is written here."""
        row = Row({name: self._views[name] for name in names}, self.number)
        row._touched = self._touched
        return row

    def untouched(self) -> set[str]:
        """The fields that were neither written nor returned to be written to."""
        return self._views.keys() - self._touched


@dataclass(frozen=True)
class Worker:
    """The argument of a source's `start`: the worker's `id`, and the number of workers (0: the trainer itself loads).

    `scratch_bytes` is the memory that this worker may use at any time while it loads a sample. A source that needs more loads
    the sample inside of `with exclusive():`, which one worker at a time enters. `max_bytes` is the most memory for one sample:
    a source that needs more refuses the sample. None: no memory is reserved, as the source has not said what it needs.
    """

    id: int
    n_workers: int
    scratch_bytes: int
    exclusive: Callable[[], AbstractContextManager[Any]]
    max_bytes: int | None = None

    @property
    def n_producers(self) -> int:
        """The former name of `n_workers`."""
        text = "Worker.n_producers was renamed to n_workers; the old name will be removed in 0.2"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return self.n_workers
