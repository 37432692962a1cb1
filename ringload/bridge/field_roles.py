"""Which fields of a batch are its inputs, its targets and its weights, for every framework.

A batch becomes a dict of all fields, or `(x,)`, `(x, y)` or `(x, y, weight)`; x and y are each an array or a dict of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.checks import named, no_field, short
from ringload.errors import ConfigError
from ringload.fields import Field
from ringload.loader import Loader
from ringload.ring.layout import VALID_FIELD

Names = str | Sequence[str]
WEIGHT = "weight"  # the field of sample weights, where a source has one
VALID = "valid"
WEIGHT_FIELD = Field((), "float32")


def as_it_is(name: str, array: np.ndarray) -> np.ndarray:
    """Return the array of a field unchanged."""
    return array


@dataclass(frozen=True)
class FieldRoles:
    """`x=None`: a dict of all `fields`. With targets, rows that hold no sample (`valid` is False) have the sample weight 0;
    a metric without weights still counts them."""

    fields: Mapping[str, Field]
    x: str | tuple[str, ...] | None
    y: str | tuple[str, ...] | None = None
    weights: tuple[str, ...] = ()  # the sample weight is the product of these fields

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are used."""
        if self.x is None:
            return tuple(self.fields)
        return tuple(dict.fromkeys((*_several(self.x), *_several(self.y), *self.weights)))

    def of(
        self,
        arrays: Mapping[str, np.ndarray],
        leaf: Callable[[np.ndarray], Any] = lambda array: array,
        fit: Callable[[str, np.ndarray], np.ndarray] = as_it_is,
    ) -> Any:
        """A batch's arrays `(B, ...)` in this structure. `fit(name, array)` converts each array first, `leaf` then wraps it."""
        return self._arranged(
            lambda name: leaf(fit(name, arrays[name])), lambda: leaf(_product([arrays[name] for name in self.weights]))
        )

    def specs(self, leaf: Callable[[Field], Any]) -> Any:
        """The same structure, with `leaf(field)` in place of each field."""
        return self._arranged(lambda name: leaf(self.fields[name]), lambda: leaf(WEIGHT_FIELD))

    def _arranged(self, named: Callable[[str], Any], weight: Callable[[], Any]) -> Any:
        if self.x is None:
            return {name: named(name) for name in self.fields}
        sides = [
            named(side) if isinstance(side, str) else {name: named(name) for name in side}
            for side in (self.x, self.y)
            if side is not None
        ]
        return (*sides, weight()) if self.weights else tuple(sides)


def roles_of(loader: Loader, x: Names | None, y: Names | None, sample_weight: str | None) -> FieldRoles:
    """Turn an adapter's arguments `x`, `y` and `sample_weight` into the roles of the loader's fields.

    Raises:
        ConfigError: a field does not exist, or the arguments contradict each other.
    """
    refuse_no_loader(loader)
    fields = {**loader.fields, **({VALID: VALID_FIELD} if loader.has_valid else {})}
    if x is None:
        if y is not None or sample_weight is not None:
            raise ConfigError("y and sample_weight need x: name the field or fields that are the inputs")
        return FieldRoles(fields, None)
    if absent := [name for name in (*_several(x), *_several(y), *_several(sample_weight)) if name not in fields]:
        raise ConfigError(no_field(absent[0], fields))
    if y is None and sample_weight is not None:
        raise ConfigError(f"sample_weight={short(sample_weight)} needs y: name the field or fields that are the targets")
    if sample_weight is None and WEIGHT in fields and WEIGHT not in (*_several(x), *_several(y)):
        sample_weight = WEIGHT
    weights = () if y is None else (*_several(sample_weight), *([VALID] if loader.has_valid else []))
    for name in weights:
        if fields[name].shape != () or fields[name].dtype.kind not in "biuf":
            raise ConfigError(f"sample weights are one number a sample; {name!r} is {fields[name].shape} {fields[name].dtype}")
    return FieldRoles(fields, _plain(x), None if y is None else _plain(y), weights)


def refuse_no_loader(given: Any) -> None:
    """Raise ConfigError if `given` is not a loader; the message says how to make a loader of it."""
    if isinstance(given, Loader):
        return
    if hasattr(given, "fields") and (hasattr(given, "load") or hasattr(given, "load_rows")):
        said = "make a loader of this source, ringload.Loader(source, batch_size)"
    else:
        from ringload.terms import of_source

        said = of_source(given)
    raise ConfigError(f"loader is a ringload.Loader, not {named(given)}: {said}")


def refuse_unless(parts: FieldRoles, framework: str, fits: Callable[[np.dtype[Any]], bool]) -> None:
    """Raise ConfigError for the first used field whose dtype the framework does not support."""
    for name in parts.names:
        if not fits(parts.fields[name].dtype):
            raise ConfigError(
                f"{framework} has no dtype {parts.fields[name].dtype}, the dtype of field {name!r}: choose other fields as x, y"
            )


def _product(weights: list[np.ndarray]) -> np.ndarray:
    """The product, `(B,) float32`. A single float32 array is returned itself."""
    if len(weights) == 1 and weights[0].dtype == np.float32:
        return weights[0]
    return np.asarray(np.prod(weights, axis=0, dtype=np.float32))


def _several(names: Names | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _plain(names: Names) -> str | tuple[str, ...]:
    return names if isinstance(names, str) else tuple(names)
