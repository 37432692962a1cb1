"""A plain function as a source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringload.checks import integer, short
from ringload.errors import ConfigError
from ringload.fields import as_fields, in_brief
from ringload.sources import parts, splits


class FunctionSource:
    """A function `load(index, rng, out)` with its fields and number of samples, for `ringload.mix`, or to be split.

    Example: `train, validation = ringload.FunctionSource(load, {"x": ringload.Field((8,), "float32")}, 1000).split(0.2)`.

    Arguments:
        load: writes sample `index` into `out`, field -> its row; see `ringload.Source`.
        fields: name -> `ringload.Field(shape, dtype)`.
        n_samples: how many samples there are.
        threads: how many threads of each worker call `load` at once; for a `load` that waits for a network or a database.
            Then `load` draws from its `rng` alone: the global generators are not seeded.

    Attributes: `rows`, the numbers of the samples; `subset`, `split` and `folds` make parts.

    Raises:
        ConfigError: an argument is not valid.
    """

    def __init__(self, load: Callable[..., Any], fields: Any, n_samples: int | None, threads: int = 1) -> None:
        if fields is None or n_samples is None:
            raise ConfigError("a function as a source needs fields={name: ringload.Field(shape, dtype)} and n_samples=...")
        if not callable(load):
            raise ConfigError(f"FunctionSource: load is a function load(index, rng, out), not {short(load)}")
        self.fields = as_fields(fields)
        self.load = load
        self._n_samples = integer("n_samples", n_samples, 1)
        self.threads = integer("threads", threads, 1)

    def __len__(self) -> int:
        return self._n_samples

    def __repr__(self) -> str:
        return in_brief(self, f"function {getattr(self.load, '__name__', short(self.load))}")

    rows = property(parts.rows)
    subset, split, folds, plain = parts.subset, splits.split, splits.folds, splits.plain
