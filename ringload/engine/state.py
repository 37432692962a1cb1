"""What the parts of an engine share: the slot table, what is lent, the workers, and what was counted.

EngineState <- Schedule <- Recovery <- Waiting <- Engine        each uses those to its left
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ringload.engine.blame import CrashBlame
from ringload.engine.lifecycle import Lifecycle
from ringload.protocols import Observer, Order, Workers
from ringload.ring.layout import Layout
from ringload.ring.lease import LeaseEnd, LeaseFactory
from ringload.ring.plan import Room
from ringload.ring.sanitizer import sanitizer_of
from ringload.ring.slots import InFlightBatch, Ring
from ringload.stats import Counters


@dataclass(frozen=True)
class Settings:
    """What an engine is given beside its order and layout. Times in seconds. `task_rows`: how many a task has at least, if
    all workers have as many."""

    epochs: int | None
    sample_timeout: float | None
    stall_timeout: float
    restarts: int | None
    room: Room
    task_rows: int = 1


class EngineState:
    """`due`: (epoch, number) of the batch that is received next: where the trainer is. `release` is what ends a lease early."""

    def __init__(
        self,
        order: Order,
        layout: Layout,
        memory: np.ndarray,
        workers: Workers,
        settings: Settings,
        n_reserved: int,
        due: tuple[int, int],
        observers: Sequence[Observer],
        release: Callable[[LeaseEnd], None],
    ) -> None:
        self.order, self.layout, self.workers, self.settings = order, layout, workers, settings
        self.observers = tuple(observers)
        # of those that do something for each batch: a call costs a microsecond there
        self.on_batch = tuple(one.on_batch for one in observers if type(one).on_batch is not Observer.on_batch)
        self.hears, self.chooses = hasattr(order, "heard"), bool(getattr(order, "chooses", False))
        self.due = due
        self.life = Lifecycle()
        self.ring = Ring(0)
        self.leases = LeaseFactory(memory, layout, release)
        self.sanitizer = sanitizer_of(memory, layout)  # none, but where tests ask for one
        self.blame = CrashBlame(settings.restarts)
        self.counters = Counters()
        self.unposted: list[InFlightBatch] = []  # batches to be posted again that the pipe had no room for
        self.n_reserved = 0  # slots
        self.goal = layout.n_slots  # how many there will be
        self.n_room = layout.n_slots  # for how many of them there is room beside what the sources of workers take
        self.n_first, self.is_measured = n_reserved, False  # what the sources of workers take
        self.row_s = 0.0  # running mean of a sample's cost
        self.n_starts = 0  # of the workers, since one of them has begun with a task
        self.progress_s = 0.0  # when something was finished last, or a wait began (time.monotonic)

    @property
    def is_growing(self) -> bool:
        """Whether more slots are being reserved."""
        return self.n_reserved < self.goal

    def hear(self, batch: InFlightBatch, is_lent: bool) -> int:
        """Have the order hear of a full batch, if it wants to. Returns how many rows the batch shows."""
        if not self.hears:
            return batch.n_rows
        slot = self.leases.whole_slot(batch.slot)
        n_rows: int = self.order.heard(batch.epoch, batch.number, slot, is_lent)  # type: ignore[attr-defined]
        return n_rows

    def drop_memory(self) -> None:
        """Let go of all that keeps the ring mapped, but for what is lent."""
        self.ring = Ring(0)
        self.unposted = []
        self.leases.drop()
        self.sanitizer = None
