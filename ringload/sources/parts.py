"""Parts of sources: some of their samples, for training and validation.

`Part` maps its samples to those of another source, whatever that is. `rows`, `subset` and what is imported of `splits` are
methods of all sources of ringload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import fixed_once_made, named, short
from ringload.errors import ConfigError
from ringload.fields import Field, Worker, as_fields, in_brief
from ringload.protocols import PAD
from ringload.sources.bind import BoundSource, bind
from ringload.sources.fingerprints import Fingerprint, checksum, fingerprint_of
from ringload.sources.part_steps import PartSteps
from ringload.sources.splits import NOT_GIVEN, chosen_rows, folds, plain, split


def subset(self: Any, indices: Sequence[int] | np.ndarray) -> Part:
    """The samples `indices`, in that order; or those where a mask of bools is True.

    Raises:
        ConfigError: `indices` are empty, or not valid.
    """
    return Part(self, indices)


def rows(self: Any) -> np.ndarray:
    """The number of each sample: `(N,) int64`."""
    return np.arange(len(self))


class Part:
    """Some samples of another source, as a source. Randomness is keyed by the number of a sample in the part.

    Sources of ringload have `subset`, `split` and `folds`; `Part(source)` gives them to a source of your own.

    Example: `train, validation = ringload.Part(source).split(0.2)`.

    Arguments:
        source: any source.
        rows: which of its samples, in this order: indices `(n,)`, which may repeat; or a mask of bools; None: all.

    Attributes: `source`, `rows`, `fields`.

    Raises:
        ConfigError: it is no source, or a row is not valid.
    """

    def __init__(self, source: Any, rows: Sequence[int] | np.ndarray | None = None) -> None:
        self._bound = checked(source, "Part")
        if self._bound.order is not None and not hasattr(self._bound.order, "of_rows"):
            raise ConfigError(f"Part: {named(source)} has an order of its own, which a part cannot keep: use its subset()")
        n = len(source)
        self.source, self.rows = source, chosen_rows(np.arange(n) if rows is None else rows, n).astype(np.int64)
        self.rows.flags.writeable = False  # so it is not compared with the workers' copies
        self._rows_checksum = ""
        self._fixed = ("source", "rows")

    if not TYPE_CHECKING:
        __setattr__ = fixed_once_made

    def __repr__(self) -> str:
        return in_brief(self, f"Part of {type(self.source).__name__}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_bound", "_rows_checksum")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _bound=bind(state["source"]), _rows_checksum="")

    # -- loading: as the source does ----------------------------------------------------------------------------------

    @property
    def fields(self) -> dict[str, Field]:
        """Those of the source."""
        return as_fields(self.source.fields)

    @property
    def load(self) -> Callable[..., Any] | None:
        """Loads a sample, if the source does so."""
        return self._load if self._bound.load is not None else None

    def _load(self, index: int, rng: Any, out: Any) -> Any:
        assert self._bound.load is not None
        return self._bound.load(int(self.rows[index]), rng, out)

    @property
    def load_rows(self) -> Callable[..., None] | None:
        """Loads several samples, if the source does so."""
        return self._load_rows if self._bound.load_rows is not None else None

    def _load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        assert self._bound.load_rows is not None
        self._bound.load_rows(self.rows[indices], rngs, out)

    @property
    def prefetch(self) -> Callable[[np.ndarray], None] | None:
        """Begins to read, if the source does so."""
        ask = self._bound.prefetch
        return None if ask is None else lambda indices: ask(self.rows[indices])

    @property
    def is_ready(self) -> Callable[[np.ndarray], bool] | None:
        """Whether samples can be loaded without waiting, if the source tells."""
        ask = self._bound.is_ready
        return None if ask is None else lambda indices: ask(self.rows[indices])

    @property
    def forget(self) -> Callable[[np.ndarray], None] | None:
        """Lets go of what was read ahead, if the source does so."""
        tell = self._bound.forget
        return None if tell is None else lambda indices: tell(self.rows[indices])

    @property
    def begin_task(self) -> Callable[[dict[str, np.ndarray]], None] | None:
        """Is told of rows, if the source is."""
        tell = self._bound.begin_task
        return None if tell is None else lambda rows: tell({**rows, "index": self._rows_or_pad(rows["index"])})

    def _rows_or_pad(self, index: np.ndarray) -> np.ndarray:
        return np.where(index < 0, PAD, self.rows[np.maximum(index, 0)])

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker."""
        self._bound.start(worker)

    @property
    def two_steps(self) -> Callable[[Any], PartSteps] | None:
        """See `ringload.sources.cached.TwoSteps`; None if the source does not load in two steps."""
        ask = getattr(self.source, "two_steps", None)
        return None if ask is None else lambda size: PartSteps(ask(size), self.rows)

    def with_caches(self, keep: Callable[[Any], Any]) -> Part:
        """The same samples, of `keep(source)` in place of the source that they are a part of."""
        return Part(keep(self.source), self.rows)

    def describe(self, index: int) -> str:
        """As the source does, or its number there."""
        row = int(self.rows[index])
        return self._bound.describe(row) or f"sample {row} of the whole source"

    @property
    def default_order(self) -> Any:
        """That of the source, of these rows; None if it has none."""
        return None if self._bound.order is None else self._bound.order.of_rows(self.rows)

    load_again = property(lambda self: self._bound.load_again)
    threads = property(lambda self: self._bound.threads)
    scratch_bytes = property(lambda self: self._bound.scratch_bytes)
    ahead_bytes = property(lambda self: self._bound.ahead_bytes)
    refuses_large = property(lambda self: self._bound.refuses_large)
    random = property(lambda self: self._bound.random)
    global_random = property(lambda self: self._bound.global_random)
    calls_user_code = property(lambda self: self._bound.calls_user_code)
    is_own = property(lambda self: self._bound.is_own)

    # -- what is known of its samples ---------------------------------------------------------------------------------

    def rows_of(self, indices: np.ndarray) -> Any:
        """The rows of samples in what the user gave to the source."""
        return self._bound.rows_of(self.rows[indices])

    def column(self, name: str) -> np.ndarray:
        """The values `(N,)` of a column of the source.

        Raises:
            ConfigError: there is no such column.
        """
        if not callable(ask := getattr(self.source, "column", None)):
            raise ConfigError(f"there is no column {short(name)}: {named(self.source)} has no method column(name)")
        made: np.ndarray = np.asarray(ask(name))[self.rows]
        return made

    def fingerprint(self) -> Fingerprint:
        """This source in a loader's state: its rows, and the source."""
        self._rows_checksum = self._rows_checksum or checksum(self.rows)
        return {"kind": "part", "rows": self._rows_checksum, "of": fingerprint_of(self.source)}

    # -- parts of it --------------------------------------------------------------------------------------------------

    @property
    def augmentation(self) -> dict[str, Any]:
        """That of the source, if it says."""
        return getattr(self.source, "augmentation", {})

    def subset(self, indices: Sequence[int] | np.ndarray) -> Part:
        """The samples `indices` of this part, in that order; or those where a mask of bools is True."""
        return Part(self.source, self.rows[chosen_rows(indices, len(self))])

    def plain(self, transform: Any = NOT_GIVEN) -> Part:
        """The same samples without augmentation, if the source has a method `plain()`."""
        make = getattr(self.source, "plain", None)
        if make is None:
            return plain(self, transform)  # type: ignore[no-any-return]
        return Part(make() if transform is NOT_GIVEN else make(transform), self.rows)

    split, folds = split, folds


def checked(source: Any, what: str) -> BoundSource:
    """A source with at least one sample, bound.

    Raises:
        ConfigError: it is none.
    """
    if not hasattr(source, "fields") or isinstance(source, type) or not hasattr(source, "__len__"):
        from ringload.terms import of_source

        is_function = callable(source) and not isinstance(source, type)
        how = "give ringload.FunctionSource(load, fields, n_samples)" if is_function else of_source(source)
        raise ConfigError(f"{what}: {named(source)} is no source of samples: {how}")
    if len(source) == 0:
        raise ConfigError(f"{what}: {named(source)} has no samples")
    return bind(source)


def as_part(source: Any) -> Any:
    """The source, if it can be split; else all of it as a part."""
    return source if all(hasattr(source, name) for name in ("subset", "plain")) else Part(source)
