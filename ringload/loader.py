"""The loader: what users hold. Checks what it is given, plans the memory, and hands out batches."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np

from ringload.data.fields import as_fields
from ringload.data.functions import FunctionSource
from ringload.data.ranks import rank_and_world
from ringload.data.sampler import Last, Order
from ringload.data.sharing import Packed, pack
from ringload.engine import Engine, Settings
from ringload.errors import ConfigError, RingloadError, SampleError, TooManyBad
from ringload.insight.stats import Stats
from ringload.ring.channel import Channel
from ringload.ring.lease import Batch
from ringload.ring.limits import Usable, usable_cpus, usable_memory
from ringload.ring.memory import Plan, make_plan, parse_bytes
from ringload.ring.ring import Bad
from ringload.ring.slots import Layout
from ringload.shared import Segment, refused
from ringload.workers.crew import Crew, InProcess, Producers
from ringload.workers.filling import OnError
from ringload.workers.pool import Pool, StartMethod
from ringload.workers.worker import Job

FIRST_BYTES = 64 << 20  # of the ring that are reserved before the first batch (15 ms); the server reserves the rest
MAX_BAD_NAMED = 1000  # bad samples that `bad` names; all are counted
STATE_VERSION = 1


class Loader:
    """Feeds a training loop: an iterable of batches, one pass an epoch, filled ahead by producer processes.

        with ringload.Loader(source, batch_size=256, ram_budget="48GB", seed=0) as loader:
            for epoch in range(90):
                for batch in loader:            # Mapping: field -> (B, ...) array that looks into the ring
                    step(batch["image"], batch["label"])

    Guarantees:
    1. Batches come in the order that (seed, epoch) gives, each sample as (seed, epoch, index) makes it: the same bytes for
       any number of workers, any start method, after any number of producers' deaths, and after resuming.
    2. A batch's memory is not written to while any of its arrays, or a view of one, is alive. Leases may end in any order.
    3. All memory beside the trainer's own stays within `ram_budget`; what does not fit is refused here.
    4. A producer's death costs time, never a sample; more than `restarts` a minute raise ProducerDied.
    5. No wait is without an end: an item, a death, a close, or after `stall_timeout` an error that names what is stuck.
    6. When the loader is closed or collected, or the trainer ends in any way, nothing of it is left.

    An iteration that is left before its end (`break`) ends its epoch: the next `for` begins the next one. To go on where one
    was left, keep its iterator. Only one iterates at a time: a new `iter(loader)` ends the one before.

    Attributes: `source`, `fields`, `batch_size`, `workers` (how many), `order`, `has_valid` (whether batches have that field).

    Arguments:
        source: an ImageFrame, ImageFolder or Arrays; any object of the protocol in `ringload.data.fields`; or a function
            `load(index, rng, out)`, with `fields` and `n_samples`.
        batch_size: samples a batch.
        workers: producer processes; "auto" for the CPUs that this process may use, less one; 0 to load in this process.
        ram_budget: bytes, "48GB", "48GiB", or a share of what this process may still use, for ring, index and producers
            together. "auto": a quarter of that, or 64 batches if this is less.
        shuffle: whether each epoch has an order of its own; else that of the source.
        seed: 0..2**64-1.
        last: what becomes of samples that do not fill a batch: "drop"; "keep" them as a shorter batch; "pad" the batch with
            rows of zeros, which the field `valid` `(B,) bool` tells from samples.
        shard: (rank, world): this loader's share of each epoch; every rank has the same number of batches. "auto" asks
            torch.distributed if it is initialized, else the environment's RANK and WORLD_SIZE; where neither says, (0, 1).
        on_error: what becomes of a bad sample: "raise" SampleError in place of its batch (the iteration may go on);
            "skip" it: its row is zeros, and False in the field `valid`; or "replace" it by another sample of the source,
            which `batch.index` then names.
        max_bad: how many samples may be skipped or replaced before TooManyBad is raised; None for one in a hundred, and at
            least 10.
        sample_timeout: seconds that loading one sample may take before its producer is ended, as if it had died.
        stall_timeout: seconds that `next()` waits while nothing is finished, and no lease ends, before it raises.
        restarts: deaths of producers within a minute that are made good; None for any number.
        start_method: "forkserver", "spawn" or "fork"; the latter copies the trainer with the state its threads are in.
        copy: batches are ordinary arrays, copied out of the ring.
        epochs: how many there will be; producers then stop ahead of the last one's end. None: they do not.
        fields, n_samples: for a function as a source.

    Raises:
        ConfigError: an argument or the source cannot be used. BudgetError: it does not fit.
        While iterating: SampleError, TooManyBad, ProducerDied, Stalled, Starved, Closed.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        workers: int | Literal["auto"] = "auto",
        ram_budget: int | float | str = "auto",
        shuffle: bool = True,
        seed: int = 0,
        last: Last = "drop",
        shard: tuple[int, int] | Literal["auto"] = (0, 1),
        on_error: OnError = "raise",
        max_bad: int | None = None,
        sample_timeout: float | None = None,
        stall_timeout: float = 300.0,
        restarts: int | None = 10,
        start_method: StartMethod = "forkserver",
        copy: bool = False,
        epochs: int | None = None,
        fields: Mapping[str, Any] | None = None,
        n_samples: int | None = None,
    ) -> None:
        self.source = source = _as_source(source, fields, n_samples)
        self.fields = as_fields(source.fields)
        self.batch_size = _integer("batch_size", batch_size, 1)
        self.workers = n_workers(workers)
        if isinstance(shard, str) and shard == "auto":
            shard = rank_and_world()
        if not isinstance(shard, list | tuple) or len(shard) != 2:
            raise ConfigError(f"shard is (rank, world) or 'auto', not {shard!r}")
        rank, world = _integer("rank", shard[0], 0), _integer("world", shard[1], 1)
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool):
            raise ConfigError(f"seed is an integer from 0 to 2**64 - 1, not {seed!r}")
        self.order = Order(len(source), self.batch_size, bool(shuffle), int(seed), last, rank, world)
        if on_error not in ("raise", "skip", "replace"):
            raise ConfigError(f"on_error is 'raise', 'skip' or 'replace', not {on_error!r}")
        if start_method not in ("forkserver", "spawn", "fork"):
            raise ConfigError(f"start_method is 'forkserver', 'spawn' or 'fork', not {start_method!r}")
        self._on_error: OnError = on_error
        self._max_bad = max(10, len(source) // 100) if max_bad is None else _integer("max_bad", max_bad, 0)
        self.has_valid = self.order.last == "pad" or on_error == "skip"
        self._copy = copy
        self._epochs = None if epochs is None else _integer("epochs", epochs, 0)
        settings = Settings(
            self._epochs,
            None if sample_timeout is None else _seconds("sample_timeout", sample_timeout),
            _seconds("stall_timeout", stall_timeout),
            None if restarts is None else _integer("restarts", restarts, 0),
        )
        usable = usable_memory()  # before anything is taken of it
        limit_bytes = usable.n_bytes if ram_budget == "auto" else parse_bytes(ram_budget, usable)
        packed = None if self.workers == 0 or start_method == "fork" else pack(source, limit_bytes)
        self._plan = self._make_plan(ram_budget, packed, usable)
        try:
            self._layout, self._engine = self._start(packed, settings, start_method)
        except OSError as error:
            if self.workers == 0 or isinstance(error, RingloadError):
                raise  # the source's own, or in the right words already
            raise refused("cannot start", error) from error
        self._iteration = 0  # the number of the present iteration
        self._begun = False  # an iteration of this epoch was begun: another begins the next epoch
        self._bad: list[Bad] = []
        self._n_bad = 0

    # -- setting up ---------------------------------------------------------------------------------------------------

    def _make_plan(self, ram_budget: int | float | str, packed: Packed | None, usable: Usable) -> Plan:
        return make_plan(
            self.fields,
            self.batch_size,
            self.workers,
            ram_budget,
            usable,
            index_bytes=packed.shared_bytes + len(packed.data) if packed is not None else 0,
            source_bytes=len(packed.data) if packed is not None else 0,
            max_sample_bytes=getattr(self.source, "scratch_bytes", 0),
            with_valid=self.has_valid,
            max_slots=2**62 if self._epochs is None else self._epochs * self.order.n_batches,
        )

    def _start(self, packed: Packed | None, settings: Settings, method: StartMethod) -> tuple[Layout, Engine]:
        """Reserve the first slots, start the producers, and post the first batches. Waits for none of them."""
        plan = self._plan
        layout = Layout(self.fields, self.batch_size, plan.n_slots, self.workers, self.has_valid)
        segment = Segment(layout.n_bytes)
        n_first = plan.n_slots
        if self.workers:
            n_first = min(n_first, max(3, FIRST_BYTES // layout.slot_bytes))
        segment.reserve(0, layout.slots_start + n_first * layout.slot_bytes)
        memory = segment.map()
        crew: Crew
        if self.workers == 0:
            crew = InProcess(self.source, self.order, layout, memory, self._on_error)
        else:
            crew = self._producers(packed, layout, segment, memory, method)
        with ExitStack() as on_error:
            on_error.callback(crew.close)
            engine = Engine(self.order, layout, memory, crew, settings, n_first)
            weakref.finalize(self, Engine.close, engine)  # before anything can come between
            on_error.pop_all()
            return layout, engine

    def _producers(
        self, packed: Packed | None, layout: Layout, segment: Segment, memory: np.ndarray, method: StartMethod
    ) -> Producers:
        with ExitStack() as on_error:
            channel = Channel()
            on_error.callback(channel.close)
            job = Job(
                source=packed.data if packed is not None else self.source,
                order=self.order,
                layout=layout,
                on_error=self._on_error,
                ring_fd=segment.fd,
                channel=channel.for_producers,
                scratch_bytes=self._plan.scratch_bytes,
            )
            segments = [segment, *([packed.segment] if packed is not None and packed.segment is not None else [])]
            crew = Producers(Pool(job, segments, method, preload(self.source)), channel, layout, memory)
            on_error.pop_all()
            return crew

    # -- iterating ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.order.n_batches

    def __iter__(self) -> Iterator[Batch]:
        """One pass over what is left of this epoch; over the next one, if this one was left before its end."""
        epoch, position = self._engine.due
        self._engine.seek(*((epoch + 1, 0) if self._begun and position else (epoch, position)))
        self._begun = True
        self._iteration += 1
        return _Pass(self)

    def _received(self, batch: Batch, bad: list[tuple[int, Bad]]) -> Batch:
        """A batch that was lent and needs a second look: bad samples, or a copy."""
        if bad:
            try:
                self._judge([one for _, one in sorted(bad, key=lambda pair: pair[0])])  # by rows, whoever was first to tell
            except SampleError:
                batch.release()
                raise
        if self._copy:
            lent, batch = batch, batch.copy()
            lent.release()
        return batch

    def _judge(self, bad: list[Bad]) -> None:
        """Count the bad samples of a batch, and raise what `on_error` and `max_bad` say."""
        for one in bad:
            self._n_bad += 1
            if len(self._bad) < MAX_BAD_NAMED:
                self._bad.append(one)
            if self._on_error == "raise" or (self._on_error == "replace" and one.replaced_by < 0):
                extra = "" if self._on_error == "raise" else "; of the samples tried in its place none could be loaded"
                raise _sample_error(SampleError, f"{_in_words(one)}{extra}", one)
            if self._n_bad > self._max_bad:
                text = f"{self._n_bad} samples were bad, more than max_bad={self._max_bad}; the last: {_in_words(one)}"
                raise _sample_error(TooManyBad, text, one)

    # -- state --------------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """The next `for` passes over `epoch`, from its beginning."""
        self._go_to(_integer("epoch", epoch, 0), 0)

    def _go_to(self, epoch: int, position: int) -> None:
        self._engine.seek(epoch, position)
        self._begun = False
        self._iteration += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: what it has received, never what was produced ahead. JSON can hold it."""
        order = self.order
        return {
            "version": STATE_VERSION,
            "seed": order.seed,
            "epoch": self.epoch,
            "position": self.position,
            "n_samples": order.n_samples,
            "batch_size": order.batch_size,
            "shuffle": order.shuffle,
            "last": order.last,
            "shard": [order.rank, order.world],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the loader was that gave `state`, with any number of workers. The next `for` passes over the rest
        of that epoch.

        Raises:
            ConfigError: the state is of an order other than this loader's; the message names what differs.
        """
        own = self.state_dict()
        if missing := own.keys() - state.keys():
            raise ConfigError(f"this is not a state of a ringload loader: it lacks {sorted(missing)}")
        if differing := [key for key in own.keys() - {"epoch", "position"} if _plain(state[key]) != own[key]]:
            told = ", ".join(f"{key}: {state[key]!r} there, {own[key]!r} here" for key in sorted(differing))
            raise ConfigError(f"the state belongs to another order ({told}); make the loader with the same arguments")
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position < len(self):
            raise ConfigError(f"epoch {epoch}, position {position}: an epoch has {len(self)} batches")
        self._go_to(epoch, position)

    @property
    def epoch(self) -> int:
        """The epoch of the batch that comes next."""
        return self._engine.due[0]

    @property
    def position(self) -> int:
        """How many batches of this epoch were received."""
        return self._engine.due[1]

    # -- insight ------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What is allocated for what."""
        return self._plan

    @property
    def stats(self) -> Stats:
        """What was counted so far."""
        self._engine.settle()
        counters = self._engine.counters
        return Stats(
            n_batches=counters.n_batches,
            n_samples=counters.n_samples,
            elapsed_s=counters.last_s - counters.first_s,
            stall_s=counters.wait_s,
            busy_s=counters.busy_s,
            idle_s=counters.idle_s,
            n_bad=self._n_bad,
            bad=tuple(self._bad),
            n_restarts=len(counters.deaths),
            n_full=self._engine.n_full,
            n_slots=self._plan.n_slots,
        )

    # -- for adapters -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the batch that comes next is there, so that `next()` neither waits nor raises for a bad sample."""
        return self._engine.ready

    @property
    def iteration(self) -> int:
        """A number that changes when another iteration begins, or the loader is sent elsewhere: the one before is over."""
        return self._iteration

    @property
    def memory(self) -> np.ndarray:
        """The ring's memory as far as it is reserved, `(n_bytes,) uint8`: for who registers it with a device. It begins on a
        page, ends with a slot, and is longer when more was reserved. An array keeps it mapped: drop it in `at_close`.

        Raises:
            Closed: the loader is.
        """
        return self._engine.memory

    def at_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the loader is closed or collected, after its producers have ended. It must not keep the
        loader alive."""
        self._engine.at_end(callback)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the producers and give the memory back, but for what lent arrays look into. Again is nothing."""
        self._engine.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("a loader cannot be pickled: it owns processes and memory; send its state_dict()")


class _Pass:
    """An iteration over one epoch. Goes on after a SampleError."""

    __slots__ = ("_epoch", "_iteration", "_loader")

    def __init__(self, loader: Loader) -> None:
        self._loader, self._epoch, self._iteration = loader, loader.epoch, loader._iteration

    def __iter__(self) -> _Pass:
        return self

    def __next__(self) -> Batch:
        loader = self._loader
        if loader._iteration != self._iteration:
            raise RuntimeError("another iter(loader) was made since, or it was sent elsewhere: one iterates at a time")
        engine = loader._engine
        if loader._epochs is not None and self._epoch >= loader._epochs:
            raise StopIteration
        received = engine.next_batch(self._epoch)
        if received is None:
            raise StopIteration
        batch, bad = received
        return loader._received(batch, bad) if bad or loader._copy else batch


def n_workers(workers: int | Literal["auto"]) -> int:
    """The number of producers that `workers` asks for."""
    if workers == "auto":
        return max(1, usable_cpus() - 1)
    if not isinstance(workers, int) or isinstance(workers, bool) or not 0 <= workers <= 4096:
        raise ConfigError(f"workers is 'auto' or an integer from 0 to 4096, not {workers!r}")
    return workers


def preload(source: Any) -> tuple[str, ...]:
    """What the server imports before it forks: the source's module, if it is ringload's own. A user's is imported by each
    producer, so that no file or connection that it opens is shared."""
    module = type(source).__module__
    return (module,) if module.startswith("ringload.") else ()


def _as_source(source: Any, fields: Mapping[str, Any] | None, n_samples: int | None) -> Any:
    if not hasattr(source, "fields"):
        if not callable(source):
            raise ConfigError(f"a source has `fields`, or is a function with fields=...; {source!r} is neither")
        return FunctionSource(source, fields, n_samples)
    if fields is not None or n_samples is not None:
        raise ConfigError("fields and n_samples are for a function as a source; this one has its own")
    if not (getattr(source, "load", None) or getattr(source, "load_rows", None)):
        raise ConfigError(f"{type(source).__name__} has neither load(index, rng, out) nor load_rows(indices, rngs, out)")
    if not hasattr(source, "__len__"):
        raise ConfigError(f"{type(source).__name__} has no __len__: how many samples there are")
    return source


def _integer(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is an integer from {least} on, not {value!r}")
    return int(value)


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, int | float | np.number) or not value > 0:
        raise ConfigError(f"{name} is a positive number of seconds, not {value!r}")
    return float(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _in_words(bad: Bad) -> str:
    where = f" ({bad.where})" if bad.where else ""
    text = f"\n{bad.traceback}" if bad.traceback else ""
    return f"sample {bad.index}{where}: {bad.reason}{text}"


def _sample_error(kind: type[SampleError], message: str, bad: Bad) -> SampleError:
    return kind(message, index=bad.index, where=bad.where, reason=bad.reason, traceback=bad.traceback)
