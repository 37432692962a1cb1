"""The workers of an IterableDataset, and their ring: rows that are pieces of batches.

At first nothing is known of the batches, so the rows of all slots share `FIRST_BYTES`; a batch that is larger comes in pieces.
Later rings have rows for the largest batch that came. Each pass has new workers, as torch's has, so that each begins with a
copy of the dataset as the trainer has it; persistent workers stay, with their copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ringload.errors import BudgetError
from ringload.packing.pack import ForkRequiredError, pack
from ringload.torch.dataloader.feed import Feed, Shape
from ringload.torch.dataloader.iterable_order import WorkerOrder
from ringload.torch.dataloader.iterable_source import IterableSource, IterableSpec, Mark, fields
from ringload.torch.dataloader.ring import FIRST_BYTES, LEAST_BYTES, WORDS, RingSettings, with_margin

if TYPE_CHECKING:
    from ringload.torch.dataloader.loader import DataLoader


class IterableRing:
    """A `Feed`. `row_bytes`: the most that a piece may have; 0 where nothing is known of the batches."""

    def __init__(self, spec: IterableSpec, settings: RingSettings, version: int, row_bytes: int) -> None:
        self.settings, self.version = settings, version
        is_forked = settings.feed.start_method == "fork"
        packed = None if is_forked else pack(spec, words=WORDS, or_fork=settings.may_fork)
        of_workers = spec if packed is None else packed.data
        self.order = WorkerOrder(settings.allow_pickle)
        n_bytes = row_bytes or max(LEAST_BYTES, FIRST_BYTES * 2 // 3 // settings.n_slots // 64 * 64)
        while True:
            source = IterableSource(of_workers, n_bytes, settings.allow_pickle, settings.feed.workers)
            shape = Shape(fields(n_bytes), 1, settings.n_slots)
            try:
                self.feed = Feed(source, packed, shape, settings.feed, self.order, (0, 0))
                break
            except BudgetError:  # then in smaller pieces
                if n_bytes <= LEAST_BYTES:
                    raise
                n_bytes = max(LEAST_BYTES, n_bytes // 4 // 64 * 64)

    def begin(self, epoch: int, marks: Sequence[Mark], n_passes_before: int) -> None:
        """Begin a pass at these marks of the workers."""
        self.order.start(marks, n_passes_before)
        self.feed.begin(epoch, 0)


class IterableWorkers:
    """The ring of a DataLoader, while no pass uses it, and what was learned of its batches."""

    def __init__(self) -> None:
        self._ring: IterableRing | None = None
        self._must_fork = False  # the dataset has what workers can only inherit
        self._most_bytes = 0  # of a batch
        self._n_passes = 0

    def note(self, n_bytes: int) -> None:
        """A batch takes so many bytes."""
        self._most_bytes = max(self._most_bytes, n_bytes)

    def borrow(self, loader: DataLoader[Any], spec: IterableSpec) -> tuple[IterableRing, int]:
        """A ring for a pass, and what its epoch is called."""
        self._n_passes += 1
        settings, ring = loader.ring_settings(), self._ring
        if self._must_fork:
            settings = _forked(settings)
        self._ring = None
        if ring is not None:
            if ring.settings == settings and ring.version == loader.version:
                return ring, self._n_passes
            ring.feed.close()
        row_bytes = with_margin(self._most_bytes) if self._most_bytes else 0
        try:
            ring = IterableRing(spec, settings, loader.version, row_bytes)
        except ForkRequiredError:
            if not settings.may_fork:
                raise
            self._must_fork = True
            ring = IterableRing(spec, _forked(settings), loader.version, row_bytes)
        return ring, self._n_passes

    def give_back(self, ring: IterableRing) -> None:
        """A pass has ended, whose workers stay."""
        if self._ring is None:
            self._ring = ring
        else:
            ring.feed.close()

    def close(self) -> None:
        """End the workers that no pass uses."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.feed.close()


def _forked(settings: RingSettings) -> RingSettings:
    return replace(settings, feed=replace(settings.feed, start_method="fork"), may_fork=False)
