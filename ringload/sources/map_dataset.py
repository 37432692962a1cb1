"""Any map-style dataset as a source: an object with `__len__` and `__getitem__`, of torch or of none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ringload.checks import listed, named, short
from ringload.errors import ConfigError
from ringload.fields import Field, Row, as_fields, in_brief
from ringload.sources import parts, splits


class MapDataset:
    """What `ringload.from_dataset` returns. `names`: the fields, in the order of a tuple's values; None for dicts."""

    calls_user_code = True
    is_own = False  # its dataset's repr and items are the user's

    def __init__(self, dataset: Any, names: tuple[str, ...] | None, fields: Mapping[str, Field]) -> None:
        self.dataset, self.names, self.fields = dataset, names, dict(fields)
        self._n_samples = len(dataset)

    def __len__(self) -> int:
        return self._n_samples

    def __repr__(self) -> str:
        return in_brief(self, f"MapDataset of {type(self.dataset).__name__}")

    def load(self, index: int, rng: Any, out: Row) -> None:
        """Write the values of sample `index`.

        Raises:
            ValueError: it has other values than the first sample, or of another shape or dtype.
        """
        values = _values(self.dataset[index], self.names)
        if values.keys() != self.fields.keys():
            raise ValueError(
                f"the sample has the values {listed(list(values))}, and the first one has {listed(list(self.fields))}"
            )
        for name, value in values.items():
            array, field = np.asarray(value), self.fields[name]
            if (array.shape, array.dtype) != (field.shape, field.dtype):
                raise ValueError(
                    f"{name!r} is {array.shape} {array.dtype}, and in the first sample it is {field.shape} {field.dtype}: rows "
                    "have one shape and one dtype"
                )
            out[name][...] = array

    def describe(self, index: int) -> str:
        """A sample in words."""
        return f"item {index} of {type(self.dataset).__name__}"

    rows = property(parts.rows)
    subset, split, folds, plain = parts.subset, splits.split, splits.folds, splits.plain


def from_dataset(dataset: Any, names: Sequence[str] | None = None) -> MapDataset:
    """A map-style dataset: any object with `__len__` and `__getitem__(index)`, which returns a dict or a tuple of arrays,
    tensors or numbers; or one of these. Workers call it. No torch is needed.

    The fields are those of the first sample, which is loaded here: Python's int is int64, float is float64, bool is bool. A
    sample with other names, shapes or dtypes is a bad sample, which says how it differs.

    Arguments:
        dataset: the dataset. It is sent to the workers by cloudpickle.
        names: the fields for the values of a tuple, in their order: ("image", "label"). None: `x0`, `x1`, ... A dict has its
            own names; they must be identifiers.

    Raises:
        ConfigError: it is no such dataset, is empty, or its first sample has no fixed shape of numbers.

    Example: `ringload.from_dataset(dataset, ("image", "label"))`.
    """
    if not all(hasattr(dataset, name) for name in ("__len__", "__getitem__")) or isinstance(dataset, type | Mapping):
        raise ConfigError(
            f"from_dataset takes an object with __len__ and __getitem__(index), not {named(dataset)}: give the rows of an "
            "iterable to a ringload.Stream"
        )
    if len(dataset) == 0:
        raise ConfigError("the dataset has no samples")
    first = dataset[0]
    given: tuple[str, ...] | None = None
    if not isinstance(first, Mapping):
        n_values = len(first) if isinstance(first, tuple | list) else 1
        given = tuple(names) if names is not None and not isinstance(names, str) else tuple(f"x{n}" for n in range(n_values))
        if isinstance(names, str) or len(given) != n_values:
            raise ConfigError(f"names={short(names)}: the first sample has {n_values} values, and each needs one name")
    elif names is not None:
        raise ConfigError(
            f"names={short(names)} is for tuples; the first sample is a dict with the names {listed(list(first))}"
        )
    fields = {name: _field(name, value) for name, value in _values(first, given).items()}
    return MapDataset(dataset, given, as_fields(fields))


def _values(sample: Any, names: tuple[str, ...] | None) -> Mapping[str, Any]:
    """The values of a sample by name.

    Raises:
        ValueError: it is no dict, or no tuple of as many values as the first.
    """
    if names is None:
        if not isinstance(sample, Mapping):
            raise ValueError(f"the sample is {named(sample)}, and the first one is a dict")
        return sample
    values = sample if isinstance(sample, tuple | list) else (sample,)
    if len(values) != len(names):
        raise ValueError(f"the sample has {len(values)} values, and the first one has {len(names)}")
    return dict(zip(names, values, strict=True))


def _field(name: Any, value: Any) -> Field:
    try:
        array = np.asarray(value)
    except Exception as error:  # lists of different lengths, tensors on a device
        raise ConfigError(
            f"{short(name)} of the first sample is {named(value)}, of which NumPy makes no array: {error}"
        ) from error
    if array.dtype.hasobject or array.dtype.kind in "US" or 0 in array.shape:
        raise ConfigError(
            f"{short(name)} of the first sample is {short(value)}: a field is a number or an array of numbers of one shape; "
            "have __getitem__ convert it, or leave it out"
        )
    return Field(array.shape, array.dtype)
