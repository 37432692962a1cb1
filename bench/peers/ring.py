"""ringload: `Loader` as its README has it; a sample is written where it is delivered from, nothing is tuned.

`ahead`: with room for so many batches, where a steady state is measured: each page of a ring is slower when it is used first.
`lean`: with the smallest budget that holds as many batches ahead as torch's default, 2 a worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import ringload
from bench.peers import Stream
from bench.work import Photos, Rows, Sleeps, Work
from ringload.ring.plan import OBJECT_FACTOR, WORKER_BYTES, make_plan


class Copies:
    """Rows as a source: many are copied in one call."""

    random = False

    def __init__(self, work: Rows) -> None:
        self._work = replace(work)  # without the array: workers map the file themselves
        self.fields = {"x": ringload.Field(work.shape, work.dtype)}

    def __len__(self) -> int:
        return self._work.n_samples

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        """Copy them."""
        np.take(self._work.array, indices % self._work.n_rows, axis=0, out=out["x"], mode="clip")


class Sleepers:
    """Sleeps as a source."""

    random = False

    def __init__(self, work: Sleeps) -> None:
        self._work = work
        self.fields = {"x": ringload.Field(work.shape, work.dtype)}

    def __len__(self) -> int:
        return self._work.n_samples

    def load(self, index: int, rng: Any, out: Any) -> None:
        """Sleep, and write it."""
        out["x"] = self._work[index]


def make_source(work: Work) -> Any:
    """What a user would write for this work."""
    if isinstance(work, Photos):
        return ringload.ImageFrame(work.frame, path="path", label=None, size=(work.size, work.size))
    return Copies(work) if isinstance(work, Rows) else Sleepers(work)


def open_stream(work: Work, workers: int, lean: bool = False, ahead: int = 0) -> Stream:
    """Start the loader, with room for `ahead` batches, or what `ram_budget` is by default."""
    source = make_source(work)
    if lean:
        ahead = 2 * workers + 1
    budget = budget_for(ahead, source, work.batch_size, workers) if ahead else "auto"
    loader = ringload.Loader(source, work.batch_size, workers=workers, ram_budget=budget)
    field = "image" if isinstance(work, Photos) else "x"
    stream = Stream(_forever(loader), lambda batch: (batch.index, batch[field]), loader.close)
    return replace(stream, settles_after=loader.plan().n_slots + 8) if ahead else stream


def budget_for(n_slots: int, source: Any, batch_size: int, workers: int) -> int:
    """A budget, found by bisection, with which there are so many slots, or hardly more.

    Raises:
        ValueError: that is more than by default.
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
