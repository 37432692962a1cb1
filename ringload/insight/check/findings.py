"""What a check has found: one record a sample, and what follows from all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ringload.images.formats import FORMATS
from ringload.insight.check.verdict import OK, STATUSES
from ringload.sources.label_field import WEIGHT


@dataclass(frozen=True)
class CheckReport:
    """The result of `ringload.check`.

    Attributes: `source`, the ImageFrame; `records (N,)`, for each sample `status` (its place in `statuses`), `format` (its
    place in `formats`), `height` and `width` in pixels, `n_bytes`, `hash (2,) uint64`, `is_hashed` and `is_misnamed`, whether
    the suffix of its path is another format's; `reasons`, for each bad sample its reason; `n_resumed`, samples that an
    earlier, interrupted check had looked at.
    """

    source: Any
    records: np.ndarray
    reasons: Mapping[int, str]
    n_resumed: int = 0
    statuses: tuple[str, ...] = field(default=STATUSES, repr=False)
    formats: tuple[str, ...] = field(default=("", *FORMATS), repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"<CheckReport of {len(self):,} samples: {self.n_bad:,} are bad>"

    @cached_property
    def bad(self) -> np.ndarray:
        """The numbers of the bad samples, `(n_bad,) int64`."""
        return np.flatnonzero(self.records["status"] != OK)

    @property
    def good(self) -> np.ndarray:
        """The numbers of all other samples, for `source.subset`: those that the loader loads."""
        return np.flatnonzero(self.records["status"] == OK)

    @property
    def n_bad(self) -> int:
        """How many samples are bad."""
        return len(self.bad)

    @property
    def misnamed(self) -> np.ndarray:
        """The numbers of samples whose suffix is another format's."""
        return np.flatnonzero(self.records["is_misnamed"])

    @cached_property
    def duplicate_of(self) -> np.ndarray:
        """For each sample the first one with the same content, `(N,) int64`; -1 for that one itself, and where there is none
        or the content was not read."""
        found = np.full(len(self), -1, np.int64)
        hashed = np.flatnonzero(self.records["is_hashed"])
        low, high = self.records["hash"][hashed].T
        order = np.lexsort((low, high))  # stable: equal ones stay in the order of the samples
        is_same = np.zeros(len(order), bool)
        is_same[1:] = (low[order][1:] == low[order][:-1]) & (high[order][1:] == high[order][:-1])
        first = np.maximum.accumulate(np.where(is_same, 0, np.arange(len(order))))
        found[hashed[order[is_same]]] = hashed[order[first[is_same]]]
        return found

    @property
    def n_duplicates(self) -> int:
        """How many samples have the content of an earlier one."""
        return int(np.count_nonzero(self.duplicate_of >= 0))

    @cached_property
    def contradicting(self) -> np.ndarray:
        """The numbers of duplicates whose label is not that of the first one with the same content."""
        later = np.flatnonzero(self.duplicate_of >= 0)
        differs = np.zeros(len(later), bool)
        for label in self.source.label_fields:
            if label.name != WEIGHT:
                differs |= label.differ(later, self.duplicate_of[later])
        return later[differs]

    @property
    def status_counts(self) -> dict[str, int]:
        """Status -> how many samples, of those that occur."""
        return _counts(self.records["status"], self.statuses)

    @property
    def format_counts(self) -> dict[str, int]:
        """Format -> how many samples."""
        return {name: n for name, n in _counts(self.records["format"], self.formats).items() if name}

    @property
    def sizes(self) -> dict[str, tuple[int, float, int]]:
        """Of "width" and "height", in pixels, the least, the median and the largest; {} if no size is known."""
        known = self.records[self.records["width"] > 0]
        if not len(known):
            return {}
        return {
            name: (int(known[name].min()), float(np.median(known[name])), int(known[name].max()))
            for name in ("width", "height")
        }

    @property
    def class_counts(self) -> dict[str, dict[Any, int]]:
        """For each label field with classes: class -> how many samples, of good ones and bad ones."""
        labels = [label for label in self.source.label_fields if len(label.class_names) and label.name != WEIGHT]
        return {label.name: dict(zip(label.class_names, label.class_counts().tolist(), strict=True)) for label in labels}


def _counts(values: np.ndarray, names: tuple[str, ...]) -> dict[str, int]:
    return {name: n for name, n in zip(names, np.bincount(values, minlength=len(names)).tolist(), strict=True) if n}
