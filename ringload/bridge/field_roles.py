"""Which fields of a batch are its inputs, its targets and its weights: the same for every framework.

What comes out is a dict of all fields, or `(x,)`, `(x, y)`, `(x, y, weight)`; x and y are an array, or a dict of several.
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
    """The array of a field."""
    return array


@dataclass(frozen=True)
class FieldRoles:
    """`x` None: all `fields`, as a dict. If there are targets, rows that hold no sample (`valid`) have the sample weight 0:
    what a framework does not weight counts them nevertheless."""

    fields: Mapping[str, Field]
    x: str | tuple[str, ...] | None
    y: str | tuple[str, ...] | None = None
    weights: tuple[str, ...] = ()  # their product is the sample weight

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
        """A batch's arrays `(B, ...)` in their places, each as `leaf` makes it of what `fit(name, array)` gives."""
        return self._arranged(
            lambda name: leaf(fit(name, arrays[name])), lambda: leaf(_product([arrays[name] for name in self.weights]))
        )

    def specs(self, leaf: Callable[[Field], Any]) -> Any:
        """The same places, with what `leaf` makes of the field that is there."""
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
    """What an adapter's arguments of these names mean, for the fields of a loader.

    Raises:
        ConfigError: there is no such field, or they contradict each other.
    """
    refuse_no_loader(loader)
    fields = {**loader.fields, **({VALID: VALID_FIELD} if loader.has_valid else {})}
    if x is None:
        if y is not None or sample_weight is not None:
            raise ConfigError("y and sample_weight are given without x: say which field, or fields, are the inputs")
        return FieldRoles(fields, None)
    if absent := [name for name in (*_several(x), *_several(y), *_several(sample_weight)) if name not in fields]:
        raise ConfigError(no_field(absent[0], fields))
    if y is None and sample_weight is not None:
        raise ConfigError(f"sample_weight={short(sample_weight)} is given without y: weights are those of targets")
    if sample_weight is None and WEIGHT in fields and WEIGHT not in (*_several(x), *_several(y)):
        sample_weight = WEIGHT
    weights = () if y is None else (*_several(sample_weight), *([VALID] if loader.has_valid else []))
    for name in weights:
        if fields[name].shape != () or fields[name].dtype.kind not in "biuf":
            raise ConfigError(f"sample weights are one number a sample; {name!r} is {fields[name].shape} {fields[name].dtype}")
    return FieldRoles(fields, _plain(x), None if y is None else _plain(y), weights)


def refuse_no_loader(given: Any) -> None:
    """Raise ConfigError, which says how a loader is made of it, if what an adapter is given is none."""
    if isinstance(given, Loader):
        return
    if hasattr(given, "fields") and (hasattr(given, "load") or hasattr(given, "load_rows")):
        said = "make one of this source, ringload.Loader(source, batch_size)"
    else:
        from ringload.terms import of_source

        said = of_source(given)
    raise ConfigError(f"loader is a ringload.Loader, not {named(given)}: {said}")


def refuse_unless(parts: FieldRoles, framework: str, fits: Callable[[np.dtype[Any]], bool]) -> None:
    """Raise ConfigError for the first field that is used and whose dtype the framework has not."""
    for name in parts.names:
        if not fits(parts.fields[name].dtype):
            raise ConfigError(
                f"{framework} has no dtype {parts.fields[name].dtype}, which field {name!r} is: choose others as x, y"
            )


def _product(weights: list[np.ndarray]) -> np.ndarray:
    """`(B,) float32`; the array itself if there is one, of that dtype."""
    if len(weights) == 1 and weights[0].dtype == np.float32:
        return weights[0]
    return np.asarray(np.prod(weights, axis=0, dtype=np.float32))


def _several(names: Names | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _plain(names: Names) -> str | tuple[str, ...]:
    return names if isinstance(names, str) else tuple(names)
