"""Arrays and memory maps as a source: rows are copied, many in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringload.data.fields import Field, as_fields
from ringload.errors import ConfigError


class Arrays:
    """One field an argument: `Arrays(x=images, y=labels)` with arrays `(N, ...)` of one length N, memory maps included.

    Nothing is copied here. Producers share what is in memory, and map files again.

    Raises:
        ConfigError: there are none, their lengths differ, one has no rows of a fixed size, or values that are masked.
    """

    random = False

    def __init__(self, **arrays: Any) -> None:
        for name, array in arrays.items():
            if np.ma.is_masked(array):
                n_masked = int(np.count_nonzero(np.ma.getmask(array)))
                raise ConfigError(f"array {name!r} is masked in {n_masked} places: say what is there, array.filled(value)")
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        if not self._arrays:
            raise ConfigError("Arrays needs at least one array: Arrays(x=..., y=...)")
        for name, array in self._arrays.items():
            if array.ndim == 0:
                raise ConfigError(f"array {name!r} is a single number; arrays have one row a sample")
        lengths = {name: len(array) for name, array in self._arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"the arrays have different lengths: {lengths}")
        self._n_samples = next(iter(lengths.values()))
        self.fields = as_fields({name: Field(array.shape[1:], array.dtype) for name, array in self._arrays.items()})

    def __len__(self) -> int:
        return self._n_samples

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        """Copy the rows `indices (n,) int64` into `out`: field -> `(n, ...)`."""
        for name, array in self._arrays.items():
            if array.flags.c_contiguous and array.dtype.isnative:
                np.take(array, indices, axis=0, out=out[name], mode="clip")  # "raise" would go through a copy
            else:
                out[name][...] = array[indices]  # `take` would copy the whole array first
