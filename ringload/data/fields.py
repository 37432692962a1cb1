"""Fields, and the protocol of a source.

A source is any object with
    fields                          name -> Field, or (shape, dtype): what a sample consists of
    __len__()                       how many samples there are
    load(index, rng, out)           write sample `index` into `out`, a `Row`: field -> the row's view `shape dtype`
and optionally
    load_rows(indices, rngs, out)   write several samples in one call: `indices (n,) int64`, `rngs` a sequence of n
                                    generators, `out` a dict: field -> `(n, *shape) dtype`. One of both is enough
    prefetch(indices)               they are loaded next: begin to read, and do not wait
    start(producer)                 called once in each producer, before anything else: see `Producer`
    describe(index)                 a sample in words (its path), for messages
    scratch_bytes                   the most memory that loading one sample may take, beside its row
    random = False                  loading draws nothing: `rng` is None
    global_random = False           loading draws nothing from `random` or `numpy.random`: they are not seeded for it
`rng` is valid during the call; what it gives depends on (seed, epoch, index) alone. The fields `index` and `valid` are the
ring's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ringload.errors import ConfigError

RESERVED = ("index", "valid")


@dataclass(frozen=True)
class Field:
    """One named array of a sample: `shape` (an int, or ints; () for a number) and `dtype`.

    Raises:
        ConfigError: a row of it has no fixed size.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __init__(self, shape: Any, dtype: Any) -> None:
        try:
            shape = (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(n) for n in shape)
            dtype = np.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"a field has a shape and a dtype, not ({shape!r}, {dtype!r}): {error}") from error
        if any(n <= 0 for n in shape):
            raise ConfigError(f"a field's shape has positive sizes, not {shape}")
        if dtype.hasobject or dtype.itemsize == 0:
            raise ConfigError(f"a field's dtype has a fixed size, and {dtype} has none: use numbers, or bytes such as 'S20'")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample's part."""
        return prod(self.shape) * self.dtype.itemsize


def as_fields(fields: Any) -> dict[str, Field]:
    """Fields from a mapping of names to Field or (shape, dtype).

    Raises:
        ConfigError: it is none, or a name cannot be a field's.
    """
    if not isinstance(fields, Mapping) or not fields:
        raise ConfigError(f"fields is a dict of names to ringload.Field(shape, dtype), with at least one, not {fields!r}")
    made = {}
    for name, field in fields.items():
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
            raise ConfigError(f"{name!r} cannot name a field: take an identifier other than {' and '.join(RESERVED)}")
        if not isinstance(field, Field):
            try:
                shape, dtype = field
            except (TypeError, ValueError) as error:
                raise ConfigError(f"field {name!r} is ringload.Field(shape, dtype), not {field!r}") from error
            field = Field(shape, dtype)
        made[name] = field
    return made


def write_exactly(view: np.ndarray, value: Any, name: str) -> None:
    """Write `value` into `view`, if it has its shape and loses no more than floating-point precision.

    Raises:
        ValueError: it does not; the message names both sides.
    """
    if type(value) in (bool, int, float):
        if view.shape != () or not _number_fits(value, view.dtype):
            raise ValueError(f"field {name!r} takes {view.shape} {view.dtype}, got the {type(value).__name__} {value!r}")
        view[...] = value
        return
    array = np.asarray(value)
    if array.shape != view.shape or not (array.dtype == view.dtype or _converts(array.dtype, view.dtype)):
        raise ValueError(f"field {name!r} takes {view.shape} {view.dtype}, got {array.shape} {array.dtype}")
    view[...] = array


def _converts(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    return np.can_cast(given, wanted, "same_kind" if wanted.kind in "fc" and given.kind in "buifc" else "safe")


def _number_fits(value: Any, dtype: np.dtype[Any]) -> bool:
    if dtype.kind in "fc":
        return True
    if dtype.kind in "iu" and not isinstance(value, float):
        limits = np.iinfo(dtype)
        return bool(limits.min <= value <= limits.max)
    return dtype.kind == "b" and isinstance(value, bool)


class Row(MutableMapping[str, np.ndarray]):
    """A sample's place in a slot: field -> its view. `row[name] = value` writes it, `row[name]` gives it, to be written to."""

    __slots__ = ("_touched", "_views")

    def __init__(self, views: dict[str, np.ndarray]) -> None:
        self._views = views
        self._touched: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        view = self._views[name]
        self._touched.add(name)
        return view

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._views:
            raise ValueError(f"there is no field {name!r}; the source's fields are {list(self._views)}")
        write_exactly(self._views[name], value, name)
        self._touched.add(name)

    def __delitem__(self, name: str) -> None:
        raise TypeError("the fields of a row are those of the source: none can be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def untouched(self) -> set[str]:
        """The fields that nobody has asked for or written."""
        return self._views.keys() - self._touched


@dataclass(frozen=True)
class Producer:
    """What a source's `start` is told: the producer's `id`, and how many there are (0: the trainer itself loads).

    `scratch_bytes` is what this producer may use at any time while it loads a sample; who needs more does it inside
    `with exclusive():`, which one producer at a time is let into.
    """

    id: int
    n_producers: int
    scratch_bytes: int
    exclusive: Callable[[], AbstractContextManager[Any]]
