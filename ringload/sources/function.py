"""A plain function as a source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringload.checks import integer, short
from ringload.errors import ConfigError
from ringload.fields import as_fields, in_brief


class FunctionSource:
    """A function `load(index, rng, out)` with its fields and number of samples."""

    def __init__(self, load: Callable[..., Any], fields: Any, n_samples: int | None) -> None:
        if fields is None or n_samples is None:
            raise ConfigError("a function as a source needs fields={name: ringload.Field(shape, dtype)} and n_samples=...")
        self.fields = as_fields(fields)
        self.load = load
        self._n_samples = integer("n_samples", n_samples, 1)

    def __len__(self) -> int:
        return self._n_samples

    def __repr__(self) -> str:
        return in_brief(self, f"function {getattr(self.load, '__name__', short(self.load))}")
