"""The two steps (see `cached.TwoSteps`) of a part of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.fields import Row, Worker
from ringload.sources.fingerprints import checksum

if TYPE_CHECKING:
    from ringload.sources.cached import TwoSteps


class PartSteps:
    """The steps of the samples `rows (n,)` of a source, whose own are `steps`."""

    def __init__(self, steps: TwoSteps, rows: np.ndarray) -> None:
        self._steps, self._rows, self.field = steps, rows, steps.field

    def key(self) -> Any:
        """See `cached.TwoSteps`."""
        return [self._steps.key(), checksum(self._rows)]

    def start(self, worker: Worker) -> None:
        """See `cached.TwoSteps`."""
        self._steps.start(worker)

    def version(self, index: int) -> tuple[int, int]:
        """See `cached.TwoSteps`."""
        return self._steps.version(int(self._rows[index]))

    def load(self, index: int, out: np.ndarray) -> tuple[int, int]:
        """See `cached.TwoSteps`."""
        return self._steps.load(int(self._rows[index]), out)

    def finish(self, index: int, kept: np.ndarray, size: tuple[int, int], rng: Any, out: Row) -> None:
        """See `cached.TwoSteps`."""
        self._steps.finish(int(self._rows[index]), kept, size, rng, out)
