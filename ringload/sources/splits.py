"""Splitting: which samples go to which part. `split`, `folds` and `plain` are methods of all sources of ringload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.checks import checked_seed, in_our_words, integer, named, one_of, short, warn
from ringload.errors import ConfigError
from ringload.order.permutation import permute, round_keys

if TYPE_CHECKING:
    import pandas as pd

How = Literal["stratify", "group"]
Augment = Literal["first", "all"]
SUM_TOLERANCE = 1e-6  # of fractions, which are to sum to 1
NOT_GIVEN = "not given"  # the default of eval_transform=
NO_TRANSFORM = (
    "split(): the parts after the first have no transform, as they have no flip and no random crops. If the transform also "
    "does what they need (such as normalising), give that, split(..., eval_transform=...); if it is augmentation alone, give "
    "eval_transform=None. augment='all' keeps transform, flip and random crops in each part"
)


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
    made = [part.plain(eval_transform) for part in others]
    before, after = (list(_transforms(getattr(one, "augmentation", {}))) for one in (others[0], made[0]))
    if eval_transform is NOT_GIVEN and any(b is not None and a is None for b, a in zip(before, after, strict=True)):
        warn(NO_TRANSFORM)
    return (first, *made)


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


def rows_of_parts(n: int, fraction: Any, seed: Any, values: pd.Series[Any] | None, how: How) -> list[np.ndarray]:
    """The rows of each part of `n`, in the table's order; the rule and the arguments are those of `ImageFrame.split`.

    `values`: what to stratify or group by. Missing values are one more value.

    Raises:
        ConfigError: an argument is not valid, or a part would be empty.
    """
    fractions = _fractions(fraction)
    parts = _part_of_rows(n, fractions, seed, values, how)
    rows = [np.flatnonzero(parts == part) for part in range(len(fractions) + 1)]
    if empty := [part for part, of_part in enumerate(rows) if not len(of_part)]:
        raise ConfigError(f"fraction={short(fraction)} of {n} samples leaves a part empty: part {empty[0]}, counted from 0")
    return rows


def chosen_rows(indices: Any, n: int) -> np.ndarray:
    """The rows that `ImageFrame.subset` takes of `n`.

    Raises:
        ConfigError: there are no indices, or they are not valid.
    """
    chosen = np.asarray(indices)
    if chosen.dtype == bool and chosen.shape == (n,):
        chosen = np.flatnonzero(chosen)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or len(chosen) == 0:
        raise ConfigError(f"indices are integers, or one bool a sample, and at least one; not {chosen.shape} {chosen.dtype}")
    if chosen.min() < 0 or chosen.max() >= n:
        raise ConfigError(f"indices are from 0 to {n - 1}, not {chosen.min()} to {chosen.max()}")
    return chosen


def _fractions(fraction: Any) -> list[float]:
    """The shares of the parts after the first.

    Arguments:
        fraction: the share of the second of two parts; or the shares of all parts, including the first.

    Raises:
        ConfigError: they are not between 0 and 1, or do not sum to 1.
    """
    if isinstance(fraction, Sequence | np.ndarray) and not isinstance(fraction, str | bytes):
        shares = [_share(one) for one in fraction]
        if len(shares) < 2:
            raise ConfigError(f"give the fractions of two parts or more, including the first, not {short(fraction)}")
        if abs(sum(shares) - 1) > SUM_TOLERANCE:
            raise ConfigError(
                f"the fractions {short(fraction)} sum to {sum(shares):.6g}, not to 1: give those of all parts, with the first"
            )
        return shares[1:]
    return [_share(fraction)]


def _share(value: Any) -> float:
    if not isinstance(value, int | float | np.number) or isinstance(value, bool) or not 0 < value < 1:
        raise ConfigError(f"fraction is a share in (0, 1) of the samples, or one of each part, not {short(value)}")
    return float(value)


def _part_of_rows(n: int, fractions: list[float], seed: Any, values: pd.Series[Any] | None, how: How) -> np.ndarray:
    """Which part each of `n` rows goes to, `(n,) int64`. `fractions`: of the parts after the first."""
    one_of("how", how, ("stratify", "group"))
    seed = checked_seed(seed)
    order = permute(np.arange(n), n, round_keys(seed, 0))
    if values is None:
        return _by_rank(order, np.array([n]), fractions)
    import pandas as pd

    codes, uniques = pd.factorize(values, use_na_sentinel=False)
    counts = np.bincount(codes, minlength=len(uniques))
    if how == "group":
        return _by_group(counts, fractions, n, seed)[codes]
    by_value = np.argsort(codes[order], kind="stable")  # value by value, at random within each
    return _by_rank(order[by_value], counts, fractions)


def _by_rank(order: np.ndarray, counts: np.ndarray, fractions: list[float]) -> np.ndarray:
    """Of each value the first round(share * count) rows go to the second part, the next to the third, the rest to the first.

    `order (n,)` has the rows, value by value, of which each has `counts (n_values,)`.
    """
    parts = np.zeros(len(order), np.int64)
    ends = np.cumsum(fractions).tolist()
    starts = np.cumsum(counts) - counts  # of each value
    limits = np.rint(np.outer(counts, [0.0, *ends])).astype(np.int64)  # (n_values, n_parts); rounded as by round()
    for part in range(1, len(fractions) + 1):
        lengths = limits[:, part] - limits[:, part - 1]
        shifts = np.repeat(starts + limits[:, part - 1] - (np.cumsum(lengths) - lengths), lengths)
        parts[order[shifts + np.arange(len(shifts))]] = part
    return parts


def _by_group(counts: np.ndarray, fractions: list[float], n: int, seed: int) -> np.ndarray:
    """The part of each group. Groups go in random order to the second part until it has its share, then to the third; the
    rest go to the first."""
    groups = permute(np.arange(len(counts)), len(counts), round_keys(seed, 0))
    before = np.cumsum(counts[groups]) - counts[groups]  # samples of the groups before
    parts = np.zeros(len(counts), np.int64)
    start = 0
    for part, fraction in enumerate(fractions, 1):
        first = before[start] if start < len(before) else 0
        n_groups = int(np.searchsorted(before[start:] - first, fraction * n))
        parts[groups[start : start + n_groups]] = part
        start += n_groups
    return parts
