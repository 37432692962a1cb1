"""A plain function as a source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringload.data.fields import as_fields
from ringload.errors import ConfigError


class FunctionSource:
    """`load(index, rng, out)` with what it does not say of itself: its fields, and how many samples there are."""

    def __init__(self, load: Callable[..., Any], fields: Any, n_samples: int | None) -> None:
        if fields is None or n_samples is None:
            raise ConfigError("a function as a source needs fields={name: ringload.Field(shape, dtype)} and n_samples=...")
        if n_samples <= 0:
            raise ConfigError(f"the source has no samples: n_samples={n_samples}")
        self.fields = as_fields(fields)
        self.load = load
        self._n_samples = int(n_samples)

    def __len__(self) -> int:
        return self._n_samples
