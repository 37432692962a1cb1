"""Parts of sources: some of their samples, for training and validation.

`Part` maps its samples to those of another source, whatever that is. `split` and `folds` are the methods of all sources of
ringload; `splits` has the arithmetic of which row goes where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.checks import fixed_once_made, in_our_words, integer, named, one_of, short, warn
from ringload.errors import ConfigError
from ringload.fields import Field, Worker, as_fields, in_brief
from ringload.protocols import PAD
from ringload.sources.bind import BoundSource, bind
from ringload.sources.fingerprints import Fingerprint, checksum, fingerprint_of
from ringload.sources.splits import How, chosen_rows, rows_of_parts

NOT_GIVEN = "not given"  # the default of eval_transform=
NO_TRANSFORM = (
    "split(): the parts after the first have no transform, as they have no flip and no random crops. If the transform also "
    "does what they need (such as normalising), give that, split(..., eval_transform=...); if it is augmentation alone, give "
    "eval_transform=None. augment='all' keeps transform, flip and random crops in each part"
)
Augment = Literal["first", "all"]


@in_our_words()
def split(
    self: Any,
    fraction: float | Sequence[float],
    seed: int = 0,
    by: Any = None,
    how: How = "stratify",
    *,
    augment: Augment = "first",
    eval_transform: Any = NOT_GIVEN,
) -> tuple[Any, ...]:
    """Two parts or more, for training and validation. All keep the source's order, and depend on `seed` alone.

    Without `by`, the second part has round(fraction * N) random samples. With `by` and how="stratify", it has
    round(fraction * n) of the n samples of each value. With how="group", it gets whole groups in random order until it has at
    least `fraction` of all samples; no value is in two parts. More parts are filled alike. Of a mix, each part has its share of
    each source, but with how="group".

    Only the first part of images is augmented: see `ImageFrame.split`. A function, or a source of your own, loads all its
    samples in the same way, unless it has a method `plain()`, which returns the source without augmentation.

    Arguments:
        fraction: the share of the second of two parts; or the shares of all parts, which sum to 1: (0.7, 0.2, 0.1).
        by: what to stratify or group by: values `(N,)`, or the name of a column; missing values are one value.
        augment, eval_transform: as in `ImageFrame.split`.

    Raises:
        ConfigError: an argument is not valid, or a part would be empty.
    """
    return in_parts(self, rows_of_parts(len(self), fraction, seed, values_of(self, by, how), how), augment, eval_transform)


@in_our_words()
def folds(
    self: Any,
    k: int,
    seed: int = 0,
    by: Any = None,
    how: How = "stratify",
    *,
    augment: Augment = "first",
    eval_transform: Any = NOT_GIVEN,
) -> list[tuple[Any, Any]]:
    """`k` pairs (train, validation), for cross-validation: each sample is in one of the `k` validation parts, which are those
    of `split` with `k` equal fractions.

    Arguments:
        k: 2 or more.
        seed, by, how, augment, eval_transform: as in `split`.

    Raises:
        ConfigError: an argument is not valid, or a part would be empty.
    """
    n = len(self)
    if integer("k", k, 2) > n:
        raise ConfigError(f"folds(k={k}): the source has {n:,} samples: give k={n} or less")
    parts = rows_of_parts(n, [1 / k] * k, seed, values_of(self, by, how), how)
    rest = [np.setdiff1d(np.arange(n), part, assume_unique=True) for part in parts]
    pairs = [in_parts(self, [train, part], augment, eval_transform) for train, part in zip(rest, parts, strict=True)]
    return [(train, validation) for train, validation in pairs]


def values_of(source: Any, by: Any, how: How) -> Any:
    """What to stratify or group by, `(N,)`; None for nothing.

    Raises:
        ConfigError: there is no such column, or there is not one value for each sample.
    """
    if by is None:
        if how == "group":
            raise ConfigError("how='group' needs by=, the column whose values are the groups")
        return None
    if not are_values(by, len(source)):
        if not callable(column := getattr(source, "column", None)):
            raise ConfigError(f"by={short(by)}: {named(source)} has no columns: give values `(N,)`, one for each sample")
        by = column(by)
    if isinstance(by, list):
        by = np.array(by, object)
    if np.shape(by) != (len(source),):
        raise ConfigError(f"by= has values of shape {np.shape(by)}, and there are {len(source):,} samples: give one for each")
    return by


def are_values(by: Any, n: int) -> bool:
    """Whether `by=` is values and not the name of a column."""
    return hasattr(by, "shape") or (isinstance(by, list) and len(by) == n)


def in_parts(source: Any, rows: Sequence[np.ndarray], augment: Augment, eval_transform: Any) -> tuple[Any, ...]:
    """The parts of a source that have these rows. Those after the first are not augmented, unless `augment` is "all".

    Raises:
        ConfigError: the arguments contradict each other.
    """
    if one_of("augment", augment, ("first", "all")) == "all" and eval_transform is not NOT_GIVEN:
        raise ConfigError(
            "augment='all' keeps transform in all parts, and eval_transform= replaces it in some: give one of both"
        )
    first, *others = (source.subset(of_part) for of_part in rows)
    if augment == "all":
        return (first, *others)
    plain = [part.plain(eval_transform) for part in others]
    before, after = (list(_transforms(getattr(one, "augmentation", {}))) for one in (others[0], plain[0]))
    if eval_transform is NOT_GIVEN and any(b is not None and a is None for b, a in zip(before, after, strict=True)):
        warn(NO_TRANSFORM)
    return (first, *plain)


def _transforms(augmentation: dict[str, Any]) -> Iterator[Any]:
    for name, value in augmentation.items():
        if isinstance(value, dict):  # of a source in a mix
            yield from _transforms(value)
        elif name == "transform":
            yield value


def plain(self: Any, transform: Any = NOT_GIVEN) -> Any:
    """The source itself: nothing in it is augmentation.

    Raises:
        ConfigError: a transform is given.
    """
    if transform is not NOT_GIVEN and transform is not None:
        raise ConfigError(
            f"eval_transform={short(transform)}: {named(self)} has no transform that it could replace: leave it out"
        )
    return self


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
        if self._bound.order is not None:
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
    def begin_task(self) -> Callable[[dict[str, np.ndarray]], None] | None:
        """Is told of rows, if the source is."""
        tell = self._bound.begin_task
        return None if tell is None else lambda rows: tell({**rows, "index": self._rows_or_pad(rows["index"])})

    def _rows_or_pad(self, index: np.ndarray) -> np.ndarray:
        return np.where(index < 0, PAD, self.rows[np.maximum(index, 0)])

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker."""
        self._bound.start(worker)

    def describe(self, index: int) -> str:
        """As the source does, or its number there."""
        row = int(self.rows[index])
        return self._bound.describe(row) or f"sample {row} of the whole source"

    load_again = property(lambda self: self._bound.load_again)
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
