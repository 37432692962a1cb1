"""Splitting: which rows of a table go to the second of two parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.data.sampler import permute, round_keys
from ringload.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

How = Literal["stratify", "group"]


def chosen_rows(n: int, fraction: float, seed: int, values: pd.Series[Any] | None, how: How) -> np.ndarray:
    """Which of `n` rows go to the second part, `(n,) bool`; the rule is that of `ImageFrame.split`.

    `values`: what to stratify or group by. Missing values are one more value.

    Raises:
        ConfigError: a part would be empty.
    """
    if how not in ("stratify", "group"):
        raise ConfigError(f"how is 'stratify' or 'group', not {how!r}")
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is a share in (0, 1) of the samples, not {fraction}")
    order = permute(np.arange(n), n, round_keys(seed, 0))
    chosen = np.zeros(n, bool)
    if values is None:
        chosen[order[: round(fraction * n)]] = True
    else:
        import pandas as pd

        codes, uniques = pd.factorize(values, use_na_sentinel=False)
        n_values = len(uniques)
        if how == "stratify":
            shuffled = order[np.argsort(codes[order], kind="stable")]  # value by value, at random within each
            counts = np.bincount(codes, minlength=n_values)
            rank = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)  # of a row among those of its value
            limit = np.array([round(fraction * int(count)) for count in counts])
            chosen[shuffled[rank < np.repeat(limit, counts)]] = True
        else:
            groups = permute(np.arange(n_values), n_values, round_keys(seed, 0))
            before = np.cumsum(np.bincount(codes)[groups]) - np.bincount(codes)[groups]  # samples of the groups before
            chosen = np.isin(codes, groups[before < fraction * n])
    if chosen.all() or not chosen.any():
        raise ConfigError(f"fraction={fraction} of {n} samples leaves a part empty")
    return chosen
