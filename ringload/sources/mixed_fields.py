"""What the sources of a mix have to have in common, their fields and the numbers of their classes; and how rows are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ringload.checks import listed, named, short
from ringload.errors import ConfigError
from ringload.fields import Field, as_fields, write_exactly
from ringload.sources.bind import BoundSource

SOURCE = "source"  # the field that has the number of a sample's source


def refuse_unmixable(bound: BoundSource, what: str) -> None:
    """Refuse a source that has what a mix cannot pass on."""
    if bound.order is not None and not hasattr(bound.order, "of_rows"):  # groups are only slower in another order
        raise ConfigError(f"{what}: {named(bound.source)} has an order of its own, which a mix would not use")
    if bound.begin_task is not None or bound.load_again is not None:
        raise ConfigError(
            f"{what}: {named(bound.source)} has begin_task or load_again, which a mix cannot pass on: leave them out"
        )
    if SOURCE in bound.names:
        raise ConfigError(f"{what} has a field {SOURCE!r}, which the mix writes: rename it")


def common_fields(sources: dict[str, Any], missing: Any) -> tuple[dict[str, Field], list[dict[str, np.ndarray]]]:
    """The fields of a mix; and of each source, the values of those that it lacks."""
    if not isinstance(missing, Mapping):
        raise ConfigError(f"mix: missing is a dict, field -> fill value, not {short(missing)}")
    fields: dict[str, Field] = {}
    owner: dict[str, str] = {}
    own = {name: as_fields(source.fields) for name, source in sources.items()}
    for name, of_source in own.items():
        for field, kind in of_source.items():
            if fields.setdefault(field, kind) != kind:
                raise ConfigError(
                    f"mix: the field {field!r} is {fields[field]} in {owner[field]!r} and {kind} in {name!r}: give both the "
                    "same shape and dtype, or other names"
                )
            _same_classes(field, owner.setdefault(field, name), name, sources)
    if unknown := [field for field in missing if field not in fields]:
        raise ConfigError(f"mix: missing= names the field {short(unknown[0])}; the fields are {listed(list(fields))}")
    values = {field: _filled(field, fields[field], value) for field, value in missing.items()}
    for name, of_source in own.items():
        if absent := [field for field in fields if field not in of_source and field not in values]:
            raise ConfigError(
                f"mix: the source {name!r} has no field {absent[0]!r}, which {owner[absent[0]]!r} has: give a value for it, "
                f"missing={{{absent[0]!r}: 0}}"
            )
    fills = [{field: value for field, value in values.items() if field not in of_source} for of_source in own.values()]
    return {**fields, SOURCE: Field((), np.int64)}, fills


def _filled(name: str, field: Field, value: Any) -> np.ndarray:
    """A fill value as a row of a field."""
    made = np.empty(field.shape, field.dtype)
    try:
        if np.ndim(value) == 0:
            cell = np.empty((), field.dtype)
            write_exactly(cell, value, name)
            made[...] = cell
        else:
            write_exactly(made, value, name)
    except ValueError as error:
        raise ConfigError(f"mix: missing={{{name!r}: {short(value)}}}: {error}") from error
    return made


def _same_classes(field: str, first: str, second: str, sources: dict[str, Any]) -> None:
    """Refuse two sources whose labels give one number to different classes."""
    one, other = (_class_names(sources[name], field) for name in (first, second))
    for number, (here, there) in enumerate(zip(one, other, strict=False)):
        if here != there:
            raise ConfigError(
                f"mix: in the field {field!r}, {number} is the class {short(here)} of {first!r} and {short(there)} of "
                f"{second!r}: give both sources the same classes=, or other names of the field"
            )


def _class_names(source: Any, field: str) -> Sequence[Any]:
    try:
        names: Sequence[Any] = source.class_names_of(field)
    except (AttributeError, ConfigError):  # it has no classes, or none in this field
        return ()
    return names


def load_into(bound: BoundSource, places: np.ndarray, within: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
    """Load the rows at some `places (m,)` of a task, which are samples of one source."""
    lie_together = places[-1] - places[0] == len(places) - 1
    if lie_together:
        views = {name: out[name][places[0] : places[-1] + 1] for name in bound.names}
    else:
        views = {name: np.empty((len(places), *out[name].shape[1:]), out[name].dtype) for name in bound.names}
    load_rows(bound, within[places], [rngs[place] for place in places.tolist()] if bound.random else rngs[: len(places)], views)
    if not lie_together:
        for name, view in views.items():
            out[name][places] = view


def load_rows(bound: BoundSource, indices: np.ndarray, rngs: Any, views: dict[str, np.ndarray]) -> None:
    """Load samples of one source into arrays of its fields."""
    assert bound.load_rows is not None
    out = dict(views)
    bound.load_rows(indices, rngs, out)
    for name, view in views.items():
        if out.get(name) is not view:  # assigned, instead of written to
            write_exactly(view, out[name], name)


def column_of_all(sources: Mapping[str, Any], name: str) -> np.ndarray:
    """The values `(N,)` of a column that all sources have, one source after another.

    Raises:
        ConfigError: a source has no such column.
    """
    found = []
    for own, source in sources.items():
        try:
            if not callable(ask := getattr(source, "column", None)):
                raise ConfigError(f"{named(source)} has no method column(name)")
            found.append(np.asarray(ask(name)))
        except ConfigError as error:
            raise ConfigError(f"mix: column {short(name)} of the source {own!r}: {error}") from error
    return np.concatenate(found)


def with_caches(self: Any, keep: Callable[[Any], Any]) -> Any:
    """The same mix, of `keep(source)` in place of each source. Raises ConfigError: `keep` raises one; it names the source."""
    kept = {}
    for name, source in self.sources.items():
        try:
            kept[name] = keep(source)
        except ConfigError as error:
            raise ConfigError(f"mix: source {name!r}: {error}") from error
    return self._with(kept)


def strata(sources: np.ndarray, values: Any) -> np.ndarray:
    """A number for each pair of the source of a sample and its value, `(N,)`. None: the sources alone."""
    if values is None:
        return sources
    import pandas as pd

    codes, found = pd.factorize(values, use_na_sentinel=False)
    made: np.ndarray = sources * len(found) + codes
    return made
