"""Splitting: which rows of a table go to which part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.checks import checked_seed, one_of, short
from ringload.errors import ConfigError
from ringload.order.permutation import permute, round_keys

if TYPE_CHECKING:
    import pandas as pd

How = Literal["stratify", "group"]
SUM_TOLERANCE = 1e-6  # of fractions, which are to sum to 1


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
    limits = np.array([[0, *(round(end * int(count)) for end in ends)] for count in counts])  # (n_values, n_parts)
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
