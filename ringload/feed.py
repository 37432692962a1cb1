"""A ring for batches that the trainer lists, whose layout can change on the way: what adapters build loaders on.

In: a source of listed rows (`workers.listing`), and batches listed by number. Out: each of them, lent in order. When a row does
not fit into its fields, the owner calls `rebuild` with other fields: the producers and their server stay (only the server of
start_method="fork" is made anew), the ring is laid out again, and what was listed and not received is filled again.

Who owns what: the feed owns the engine, which owns the crew. Whoever lists decides what fields mean; the feed does not look.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.data.fields import Field
from ringload.data.listed import ListedOrder
from ringload.data.sharing import Packed, pack
from ringload.engine import Engine, Settings
from ringload.errors import RingloadError
from ringload.ring.channel import Channel
from ringload.ring.lease import Batch
from ringload.ring.limits import usable_memory
from ringload.ring.memory import make_plan
from ringload.ring.ring import Bad
from ringload.ring.slots import Layout
from ringload.shared import Segment, refused
from ringload.workers.crew import Producers
from ringload.workers.pool import Pool, StartMethod
from ringload.workers.worker import Job


@dataclass(frozen=True)
class FeedSettings:
    """What does not change with the layout. Times in seconds."""

    workers: int
    ram_budget: int | float | str
    start_method: StartMethod
    stall_timeout: float
    sample_timeout: float | None
    restarts: int | None
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """A ring's: the fields of a row, the most rows of a batch, and how many batches are ahead at most."""

    fields: Mapping[str, Field]
    batch_size: int
    n_slots: int


class Feed:
    """Producers and a ring. `packed` is a pickled part of the source, whose segment the producers need.

    Raises:
        ConfigError, BudgetError: as `Loader`.
    """

    def __init__(
        self, source: Any, packed: Packed | None, shape: Shape, settings: FeedSettings, epoch: int, number: int
    ) -> None:
        self.order = ListedOrder()
        self.order.begin(epoch)
        self._settings, self._packed = settings, packed
        self._segment = Segment(0)
        self._channel = Channel()
        with ExitStack() as on_error:
            on_error.callback(self._channel.close)
            on_error.callback(self._segment.close)
            job, memory = self._lay_out(source, shape)
            segments = [self._segment, *([packed.segment] if packed is not None and packed.segment is not None else [])]
            self._crew = Producers(
                Pool(job, segments, settings.start_method, settings.preload), self._channel, job.layout, memory
            )
            on_error.callback(self._crew.close)
            try:
                self._engine = self._make_engine(job, memory, (epoch, number))
            except OSError as error:
                if isinstance(error, RingloadError):
                    raise
                raise refused("cannot start", error) from error
            weakref.finalize(self, Producers.close, self._crew)
            on_error.pop_all()

    # -- the ring -----------------------------------------------------------------------------------------------------

    def _lay_out(self, source: Any, shape: Shape) -> tuple[Job, np.ndarray]:
        """Reserve a ring of this shape, or of as many slots as there is room for."""
        self.shape, settings = shape, self._settings
        data = source if settings.start_method == "fork" else pack(source).data
        plan = make_plan(
            shape.fields,
            shape.batch_size,
            settings.workers,
            settings.ram_budget,
            usable_memory(),
            index_bytes=self._packed.shared_bytes if self._packed is not None else 0,
            source_bytes=len(data) if isinstance(data, bytes) else 0,
            max_slots=shape.n_slots,
        )
        n_slots = min(plan.n_slots, shape.n_slots)
        layout = Layout(shape.fields, shape.batch_size, n_slots, settings.workers, False)
        self.n_slots = n_slots
        self._segment.resize(layout.n_bytes)
        self._segment.reserve(0, layout.n_bytes)
        job = Job(
            source=data,
            order=self.order,
            layout=layout,
            on_error="raise",
            ring_fd=self._segment.fd,
            channel=self._channel.for_producers,
            scratch_bytes=0,
        )
        return job, self._segment.map()

    def _make_engine(self, job: Job, memory: np.ndarray, due: tuple[int, int]) -> Engine:
        settings = self._settings
        told = Settings(None, settings.sample_timeout, settings.stall_timeout, settings.restarts)
        return Engine(self.order, job.layout, memory, self._crew, told, job.layout.n_slots, due)

    def rebuild(self, source: Any, shape: Shape, epoch: int, number: int) -> None:
        """Go on at batch `number` of `epoch` with rows of other fields. No batch may be looked into any more. After an error or
        an interruption, `close` is all that can be done."""
        self.order.epoch = epoch
        self._engine.retire()
        job, memory = self._lay_out(source, shape)
        self._crew.rebuild(job, memory)
        self._engine = self._make_engine(job, memory, (epoch, number))

    # -- the way of a batch -------------------------------------------------------------------------------------------

    def begin(self, epoch: int, number: int) -> None:
        """What is due next is batch `number` of `epoch`, of which nothing is listed yet."""
        self.order.begin(epoch)
        self._engine.seek(epoch, number)

    def post(self) -> None:
        """Have posted what was listed, as far as there are free slots."""
        self._engine.settle()

    def seek(self, number: int) -> None:
        """What is due next is batch `number`, which is listed."""
        self._engine.seek(self.order.epoch, number)

    @property
    def due(self) -> int:
        """The number of the batch that comes next."""
        return self._engine.due[1]

    def next(self) -> tuple[Batch, list[Bad]]:
        """Wait for the batch that is due, which must be listed. With it comes what was bad, by rows. Give it back by `release`.

        Raises:
            Closed, ConfigError, ProducerDied, Stalled: as `Loader` says.
        """
        epoch, number = self._engine.due
        assert self.order.has(epoch, number), "what is not listed never comes"
        received = self._engine.next_batch(epoch)
        assert received is not None, "an epoch of listed batches has no end of its own"
        batch, bad = received
        return batch, [one for _, one in sorted(bad, key=lambda pair: pair[0])]

    def received(self, batch: Batch) -> None:
        """A batch was received, and its content copied: it is given back, and will not come again."""
        self.order.forget(batch.number)
        batch.release()

    @property
    def n_restarts(self) -> int:
        """Deaths of producers that this ring's engine has made good."""
        return len(self._engine.counters.deaths)

    @property
    def pids(self) -> list[int]:
        """The producers' processes."""
        return [pid for name, pid in self._crew.processes().items() if name.startswith("producer")]

    def close(self) -> None:
        """End the producers and give the memory back. Again is nothing."""
        self._engine.close()
        self._crew.close()
