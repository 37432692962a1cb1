"""ringload: `Loader` as in its README, without tuning.

`ahead`: the budget allows for so many batches. Used to measure a steady state, as the first use of each page of a ring is slow.
`lean`: the smallest budget that allows for as many batches ahead as torch's default, 2 a worker.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import ringload
from bench.peers import Stream
from bench.work import AREA, RATIO, Photos, Rows, Sleeps, Work
from ringload.ring.plan import OBJECT_FACTOR, WORKER_BYTES, make_plan


class Copies:
    """A source for Rows, which copies many rows in one call."""

    random = False

    def __init__(self, work: Rows) -> None:
        self._work = replace(work)  # without the array: workers map the file themselves
        self.fields = {"x": ringload.Field(work.shape, work.dtype)}

    def __len__(self) -> int:
        return self._work.n_samples

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        """Copy rows."""
        np.take(self._work.array, indices % self._work.n_rows, axis=0, out=out["x"], mode="clip")


class Sleepers:
    """A source for Sleeps."""

    random = False

    def __init__(self, work: Sleeps) -> None:
        self._work = work
        self.fields = {"x": ringload.Field(work.shape, work.dtype)}

    def __len__(self) -> int:
        return self._work.n_samples

    def load(self, index: int, rng: Any, out: Any) -> None:
        """Sleep, then write the sample."""
        out["x"] = self._work[index]


def make_source(work: Work, shards: bool = False) -> Any:
    """The source that a user would write for this work: of photographs, as files or in tar shards."""
    if isinstance(work, Photos) and shards:
        from bench.shards import shards_of

        names = [work.located(path) for path in shards_of(work)]
        cache_dir = tempfile.mkdtemp()  # so that the index is built in each measurement
        return ringload.TarShards(names, size=(work.size, work.size), cache_dir=cache_dir)
    if isinstance(work, Photos):
        recipe: Any = {"resize": "random_crop", "crop_area": AREA, "crop_ratio": RATIO, "flip": True} if work.is_recipe else {}
        return ringload.ImageFrame(work.frame, path="path", label=None, size=(work.size, work.size), **recipe)
    return Copies(work) if isinstance(work, Rows) else Sleepers(work)


def open_stream(work: Work, workers: int, lean: bool = False, ahead: int = 0, shards: bool = False) -> Stream:
    """Start the loader, with memory for `ahead` batches, or with the default budget."""
    source = make_source(work, shards)
    if lean:
        ahead = 2 * workers + 1
    budget = budget_for(ahead, source, work.batch_size, workers) if ahead else "auto"
    loader = ringload.Loader(source, work.batch_size, workers=workers, ram_budget=budget)
    field = "image" if isinstance(work, Photos) else "x"
    stream = Stream(_forever(loader), lambda batch: (batch.index, batch[field]), loader.close)
    return replace(stream, settles_after=loader.plan().n_slots + 8) if ahead else stream


def budget_for(n_slots: int, source: Any, batch_size: int, workers: int) -> int:
    """A budget, found by bisection, with which the ring has so many slots, or a few more.

    Raises:
        ValueError: so many slots need more than the default budget.
    """
    with ringload.Loader(source, batch_size, workers=workers) as loader:
        plan, fields = loader.plan(), loader.fields
    if plan.n_slots < n_slots:
        raise ValueError(f"{n_slots} slots are asked for, and by default there are {plan.n_slots}")
    least, most = 0, plan.budget_bytes
    while most - least > 1:
        middle = (least + most) // 2
        try:
            found = make_plan(
                fields,
                batch_size,
                workers,
                middle,
                plan.usable,
                index_bytes=plan.index_bytes,
                source_bytes=(plan.worker_bytes - WORKER_BYTES) // OBJECT_FACTOR,
                max_sample_bytes=getattr(source, "scratch_bytes", 0),
                refuses_large=getattr(source, "refuses_large", False),
            ).n_slots
        except ringload.BudgetError:
            found = 0
        least, most = (least, middle) if found >= n_slots else (middle, most)
    return most


def _forever(loader: ringload.Loader) -> Iterator[ringload.Batch]:
    while True:
        yield from loader
