"""A ring for batches that the trainer lists, whose layout can change on the way: what adapters build loaders on.

In: a source of listed rows (`workers.explicit_fill`), and batches listed by number. Out: each of them, lent in order. When a
row does not fit into its fields, the owner calls `rebuild` with other fields: the workers and their server stay (only the
server of start_method="fork" is made anew), the ring is laid out again, and what was listed and not received is filled again.

Who owns what: the feed owns the engine, which owns the workers. The caller decides what fields mean; the feed does not look.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ringload.bad_sample import Bad
from ringload.engine.engine import Engine
from ringload.engine.state import Settings
from ringload.fields import Field
from ringload.log import LogObserver
from ringload.packing.pack import Packed, pack
from ringload.protocols import Job, Rows
from ringload.ring.layout import Layout
from ringload.ring.lease import Batch
from ringload.ring.plan import make_plan, room_in
from ringload.system.cgroups import usable_memory
from ringload.system.deaths import Death
from ringload.system.interrupts import finalize
from ringload.system.segment import Segment, said_as_refused
from ringload.workers import templates
from ringload.workers.environment import Surroundings
from ringload.workers.processes import ProcessWorkers
from ringload.workers.supervisor import StartMethod

DRAIN_S = 5.0  # how long workers that were forked may take to finish what they have in hand; torch's have as long


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


def begin_imports(settings: FeedSettings) -> None:
    """Have the process started that imports what workers need, before there is a feed. Does not wait for it."""
    if settings.start_method == "forkserver":
        templates.find(Surroundings.of_this_process(), settings.preload)


@dataclass(frozen=True)
class Shape:
    """A ring's: the fields of a row, the most rows of a batch, and how many batches are ahead at most."""

    fields: Mapping[str, Field]
    batch_size: int
    n_slots: int


class ListedOrder(Protocol):
    """An `Order` of the batches of one epoch at a time, which its owner lists. `by_part`: see `protocols.Job`."""

    epoch: int
    by_part: bool

    def begin(self, epoch: int) -> None: ...

    def forget(self, number: int) -> None: ...

    def n_batches(self, epoch: int) -> int: ...

    def rows(self, epoch: int, number: int) -> Rows | None: ...


class Feed:
    """Workers and a ring. `packed` is a pickled part of the source, whose segment the workers need.

    Raises:
        ConfigError, BudgetError: as `Loader`.
    """

    def __init__(
        self,
        source: Any,
        packed: Packed | None,
        shape: Shape,
        settings: FeedSettings,
        order: ListedOrder,
        due: tuple[int, int],
    ) -> None:
        self.order = order
        self.order.begin(due[0])
        self._settings, self._packed = settings, packed
        self._engines: list[Engine] = []  # the present one, for what ends this feed when it is collected
        self._segment = Segment(0)
        with ExitStack() as on_error:
            on_error.callback(self._segment.close)  # with the workers, once they have it
            job, memory = self._lay_out(source, shape)
            owners = packed.owners if packed is not None else []
            self._workers = ProcessWorkers(
                settings.workers, settings.start_method, self._segment, self._room, owners, settings.preload, "num_workers"
            )
            self._make_engine(job, memory, *due)
            end = partial(_end, self._workers, self._engines, settings.start_method == "fork")
            weakref.finalize(self, finalize, end)
            on_error.callback(self._engine.close)
            try:
                self._engine.open(job)
            except OSError as error:
                raise said_as_refused(error) from error
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
        self._room = room_in(replace(plan, n_slots=n_slots))
        self._segment.resize(layout.n_bytes)
        self._segment.reserve(0, layout.n_bytes)
        memory = self._segment.map()
        return Job(data, layout, seed=0, n_samples=0, on_error="raise", by_part=self.order.by_part), memory

    @property
    def _engine_settings(self) -> Settings:
        settings = self._settings
        return Settings(None, settings.sample_timeout, settings.stall_timeout, settings.restarts, self._room)

    def rebuild(self, source: Any, shape: Shape, epoch: int, number: int) -> None:
        """Go on at batch `number` of `epoch` with rows of other fields. No batch may be looked into any more. After an error or
        an interruption, `close` is all that can be done."""
        self.order.epoch = epoch
        self._drain()
        self._engine.retire()
        job, memory = self._lay_out(source, shape)
        self._workers.reopen(job, memory, self._room)
        self._make_engine(job, memory, epoch, number)
        self._engine.begin()

    def _make_engine(self, job: Job, memory: np.ndarray, epoch: int, number: int) -> None:
        slots, due, observers = job.layout.n_slots, (epoch, number), [LogObserver()]
        self._engine = Engine(self.order, job.layout, memory, self._workers, self._engine_settings, slots, due, observers)
        self._engines[:] = [self._engine]

    # -- the way of a batch -------------------------------------------------------------------------------------------

    def begin(self, epoch: int, number: int) -> None:
        """What is due next is batch `number` of `epoch`, of which nothing is listed yet."""
        self.order.begin(epoch)
        self._engine.seek(epoch, number)

    def post(self) -> None:
        """Have posted what was listed, as far as there are free slots."""
        self._engine.poll()

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
            LoaderClosedError, ConfigError, WorkerDiedError, StallError: as `Loader` says.
        """
        epoch, number = self._engine.due
        assert self.order.rows(epoch, number) is not None, "what is not listed never comes"
        received = self._engine.next_batch(epoch)
        assert received is not None, "an epoch of listed batches has no end of its own"
        batch, bad = received
        return batch, [one for _, one in sorted(bad, key=lambda pair: pair[0])]

    def received(self, batch: Batch) -> None:
        """A batch was received, and its content copied: it is given back, and will not come again."""
        self.order.forget(batch.number)
        batch.release()

    @property
    def deaths(self) -> list[Death]:
        """Of workers, since the ring was laid out last."""
        return self._engine.counters.deaths

    @property
    def pids(self) -> list[int]:
        """The workers' processes."""
        return [pid for name, pid in self._workers.processes().items() if name.startswith("worker")]

    def close(self) -> None:
        """End the workers and give the memory back. Again is nothing."""
        self._drain()
        self._engine.close()
        self._workers.close()

    def _drain(self) -> None:
        """Workers that were forked may hold a lock that they share with the trainer."""
        if self._settings.start_method == "fork":
            self._engine.drain(DRAIN_S)


def _end(workers: ProcessWorkers, engines: list[Engine], are_forked: bool) -> None:
    """Of a feed that was collected: as `close`. It is called again after an interruption."""
    try:
        if are_forked:
            for engine in engines:
                engine.drain(DRAIN_S)
    finally:
        engines.clear()  # then the next call does not drain workers that are closed
        workers.close()
