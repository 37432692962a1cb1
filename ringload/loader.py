"""The loader: what users hold. Checks what it is given, plans the memory, and hands out batches."""

from __future__ import annotations

import pickle
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.bad_sample import Bad
from ringload.bad_samples import BadSamples
from ringload.checks import fixed_once_made, flag, in_our_words, integer, short
from ringload.engine.describe import OF_ARRAYS
from ringload.engine.engine import Engine
from ringload.engine.state import Settings
from ringload.errors import ConfigError, RingloadError, SampleError
from ringload.fields import as_fields, in_brief
from ringload.log import LogObserver
from ringload.options import Options, as_source, checked_shard, no_source, preload
from ringload.order.checked import CheckedOrder
from ringload.order.epoch import EpochOrder, Last
from ringload.order.position import following
from ringload.order.ranks import Ranks
from ringload.packing.pack import Packed, pack
from ringload.packing.watch import LATE, Watch
from ringload.protocols import Job, Observer, Order, Workers
from ringload.ring.layout import Layout
from ringload.ring.lease import Batch
from ringload.ring.plan import Plan, make_plan, parse_bytes, room_in
from ringload.sources.bind import bind
from ringload.sources.fingerprints import difference, fingerprint_of
from ringload.stats import Stats
from ringload.system.cgroups import Usable, usable_memory
from ringload.system.segment import Segment, said_as_refused
from ringload.workers.fill import OnError
from ringload.workers.inline import InlineWorkers
from ringload.workers.processes import ProcessWorkers
from ringload.workers.supervisor import StartMethod

FIRST_BYTES = 64 << 20  # of the ring that are reserved before the first batch (15 ms); the server reserves the rest
MAX_COUNTED = 1 << 16  # epochs whose batches are counted: more of them fill any ring
STATE_VERSION = 1
FOR_KERAS = " (for fit, evaluate and predict of Keras give ringload.keras.dataset(loader))"
OVER = (
    "this pass over the loader is over: another was begun since, by a second `for`, iter(loader) or zip(loader, loader), or "
    "the loader was sent elsewhere, by set_epoch or load_state_dict. A loader has one pass at a time: for two, make two "
    "loaders of the source"
)
SPARE_INDEX_BYTES = 1 << 20  # by which a source may have grown when it was changed


class Loader:
    """Feeds a training loop: an iterable of batches, one pass an epoch, filled ahead by worker processes.

        with ringload.Loader(source, batch_size=256, ram_budget="48GB", seed=0) as loader:
            for epoch in range(90):
                for batch in loader:            # Mapping: field -> (B, ...) array that looks into the ring
                    step(batch["image"], batch["label"])

    Guarantees:
    1. Batches come in the order that (seed, epoch) gives, each sample as (seed, epoch, index) makes it: the same bytes for
       any number of workers, any start method, after any number of workers' deaths, and after resuming.
    2. A batch's memory is not written to while any of its arrays, or a view of one, is alive. Leases may end in any order.
    3. All memory beside the trainer's own stays within `ram_budget`; what does not fit is refused here.
    4. A worker's death costs time, never a sample; more than `restarts` a minute raise WorkerDiedError.
    5. No wait is without an end: an item, a death, a close, or after `stall_timeout` an error that names what is stuck.
    6. When the loader is closed or collected, or the trainer ends in any way, nothing of it is left.

    An iteration that is left before its end (`break`) ends its epoch: the next `for` begins the next one. To go on where one
    was left, keep its iterator. Only one iterates at a time: a new `iter(loader)` ends the one before, whose `next()` then
    raises RingloadError.

    A loader stays what it was made: setting its attributes raises AttributeError.

    Attributes: `source`, `fields`, `batch_size`, `workers` (how many), `order`, `has_valid` (whether batches have that field).

    Arguments:
        source: an ImageFrame, ImageFolder or Arrays; any object of the protocol in `ringload.fields`; or a function
            `load(index, rng, out)`, with `fields` and `n_samples`.
        batch_size: samples a batch.
        workers: worker processes; "auto" for the CPUs that this process may use, less one; 0 to load in this process,
            as debuggers need; or `Workers` of your own.
        ram_budget: bytes, "48GB", "48GiB", or a share of what this process may still use (0.5, "50%"; 1.0 for all), for ring,
            index and workers together. "auto": a quarter of that, or 64 batches if this is less.
        shuffle: whether each epoch has an order of its own; else that of the source.
        seed: 0..2**64-1.
        last: what becomes of samples that do not fill a batch: "drop"; "keep" them as a shorter batch; "pad" the batch with
            rows of zeros, which the field `valid` `(B,) bool` tells from samples.
        shard: (rank, world): this loader's share of each epoch; every rank has the same number of batches. "auto" asks
            torch.distributed and JAX's distributed client, if they are up, else the environment: torchrun's variables,
            Lightning's, those of MPI, srun and TF_CONFIG; where none says, (0, 1). None: (0, 1), with a warning where any of
            these knows of several ranks, as each then loads all samples.
        on_error: what becomes of a bad sample: "raise" SampleError in place of its batch (the iteration may go on);
            "skip" it: its row is zeros, and False in the field `valid`; or "replace" it by another sample of the source,
            which `batch.index` then names.
        max_bad: how many samples may be skipped or replaced before TooManyBadSamplesError is raised; None for one in a hundred,
            and at least 10.
        sample_timeout: seconds that loading one sample may take before its worker is ended, as if it had died.
        stall_timeout: seconds that `next()` waits while nothing is finished, and no lease ends, before it raises. The start
            of workers, who import what the source needs, does not count; it may take 300 s, or `stall_timeout` if longer.
            Where every batch is kept, and no other thread could give one back, AllSlotsLentError is raised at once.
        restarts: deaths of workers within a minute that are made good; None for any number.
        start_method: "forkserver", "spawn" or "fork"; the latter copies the trainer with the state its threads are in.
        copy: batches are ordinary arrays, copied out of the ring.
        worker_setup: a function without arguments that each worker calls once, before it is given the source: for state of the
            process that samples depend on, beside what workers are given in any case (see `ringload.packing.process_state` and
            `module_globals`). With workers=0 nobody calls it: the trainer's own state counts.
        epochs: how many there will be; workers then stop ahead of the last one's end. None: they do not.
        order: an `Order` of your own, in place of `shuffle`, `last` and `shard`: which samples are in the rows of each batch.
        observers: of `Observer`: each is told of batches, deaths, restarts, growth and bad samples.
        fields, n_samples: for a function as a source.

    Raises:
        ConfigError: an argument or the source cannot be used. BudgetError: it does not fit.
        While iterating: SampleError, TooManyBadSamplesError, WorkerDiedError, StallError, AllSlotsLentError, Closed.
    """

    @in_our_words()
    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        workers: int | Literal["auto"] | Workers = "auto",
        ram_budget: int | float | str = "auto",
        shuffle: bool = True,
        seed: int = 0,
        last: Last = "drop",
        shard: tuple[int, int] | Literal["auto"] | None = None,
        on_error: OnError = "raise",
        max_bad: int | None = None,
        sample_timeout: float | None = None,
        stall_timeout: float = 300.0,
        restarts: int | None = 10,
        start_method: StartMethod = "forkserver",
        copy: bool = False,
        worker_setup: Callable[[], Any] | None = None,
        epochs: int | None = None,
        order: Order | None = None,
        observers: Sequence[Observer] = (),
        fields: Mapping[str, Any] | None = None,
        n_samples: int | None = None,
    ) -> None:
        if isinstance(source, Loader):
            raise no_source(source)
        self.source = source = as_source(source, fields, n_samples)
        self.fields = as_fields(source.fields)
        self._options = options = Options.checked(
            len(source), batch_size, workers, ram_budget, seed, on_error, max_bad, sample_timeout, stall_timeout, restarts,
            start_method, copy, worker_setup, epochs, observers,
        )  # fmt: skip
        self.batch_size, self.workers = options.batch_size, options.n_workers
        self._ranks = Ranks(shard)
        self.order = self._order(order, flag("shuffle", shuffle), last)
        self.has_valid = self.order.last == "pad" or on_error == "skip"
        usable = usable_memory()  # before anything is taken of it
        self._limit_bytes = usable.n_bytes if ram_budget == "auto" else parse_bytes(ram_budget, usable)
        packed = pack(source, self._limit_bytes, worker_setup) if self._needs_packed else None
        self._plan = self._make_plan(packed, usable)
        self._observers = (LogObserver(), *options.observers)
        try:
            self._engine = self._start(packed)
        except OSError as error:
            if self.workers == 0:
                raise  # the source's own
            raise said_as_refused(error) from error
        self._watch = self._watched(packed)
        self._iteration = 0  # the number of the present iteration
        self._begun = False  # an iteration of this epoch was begun: another begins the next epoch
        self._bad = BadSamples(options.on_error, options.max_bad, self._observers)
        self._fixed = ("source", "fields", "batch_size", "workers", "order", "has_valid")

    if not TYPE_CHECKING:  # or else a type checker would accept any attribute
        __setattr__ = fixed_once_made

    def __repr__(self) -> str:
        if "_fixed" not in vars(self):  # its constructor raised
            return object.__repr__(self)
        epoch, position = self._engine.due
        return (
            f"<Loader of {in_brief(self.source)}: {len(self):,} batches of {self.batch_size:,} an epoch, {self.workers} "
            f"workers, {self._engine.n_slots:,} slots; next: batch {position:,} of epoch {epoch:,}>"
        )

    def __str__(self) -> str:
        """Keras says this of a loader that `fit` is given."""
        return f"{self!r}{FOR_KERAS if 'keras' in sys.modules else ''}"

    # -- setting up ---------------------------------------------------------------------------------------------------

    def _order(self, order: Order | None, shuffle: bool, last: Last) -> EpochOrder | CheckedOrder:
        rank, world = checked_shard(self._ranks.shard)
        if order is None:
            return EpochOrder(len(self.source), self.batch_size, shuffle, self._options.seed, last, rank, world)
        if world > 1 or last != "drop":
            raise ConfigError("shard= and last= are for ringload's own order: an order= of your own says which rows there are")
        return CheckedOrder(order, len(self.source), self.batch_size, self._options.seed)

    @property
    def _needs_packed(self) -> bool:
        """Whether workers are given the source as bytes."""
        options = self._options
        if options.own_workers is not None:
            return options.own_workers.needs_packed
        return options.n_workers > 0 and options.start_method != "fork"

    def _make_plan(self, packed: Packed | None, usable: Usable) -> Plan:
        source, epochs = bind(self.source), self._options.epochs
        return make_plan(
            self.fields,
            self.batch_size,
            self.workers,
            self._options.ram_budget,
            usable,
            index_bytes=packed.shared_bytes + len(packed.data) if packed is not None else 0,
            source_bytes=len(packed.data) if packed is not None else 0,
            max_sample_bytes=source.scratch_bytes,
            refuses_large=source.refuses_large,
            with_valid=self.has_valid,
            max_slots=2**62 if epochs is None else sum(map(self.order.n_batches, range(min(epochs, MAX_COUNTED)))),
        )

    def _start(self, packed: Packed | None) -> Engine:
        """Reserve the first slots, start the workers, and post the first batches. Waits for none of them."""
        plan, options = self._plan, self._options
        layout = Layout(self.fields, self.batch_size, plan.n_slots, self.workers, self.has_valid)
        segment = Segment(layout.n_bytes)
        grows = self.workers and options.own_workers is None  # by the fork server
        n_first = min(plan.n_slots, max(3, FIRST_BYTES // layout.slot_bytes)) if grows else plan.n_slots
        segment.reserve(0, layout.slots_start + n_first * layout.slot_bytes)
        memory = segment.map()
        settings = Settings(options.epochs, options.sample_timeout, options.stall_timeout, options.restarts, room_in(plan))
        job = Job(
            packed.data if packed is not None else self.source,
            layout,
            options.seed,
            self.order.n_samples,
            options.on_error,
            plan.scratch_bytes,
            plan.max_sample_bytes,
            options.worker_setup if packed is None else None,
        )
        workers = self._make_workers(segment, packed)
        engine = Engine(self.order, layout, memory, workers, settings, n_first, observers=self._observers)
        # Before the workers start, so that an interruption leaves none of them running.
        weakref.finalize(self, Engine.close, engine)
        try:
            engine.open(job)
        except BaseException:
            engine.close()  # now, as a traceback may keep this loader alive
            raise
        return engine

    def _make_workers(self, segment: Segment, packed: Packed | None) -> Workers:
        options = self._options
        if options.own_workers is not None:
            return options.own_workers
        if self.workers == 0:
            return InlineWorkers()
        owners = packed.owners if packed is not None else ()
        room, preloaded = room_in(self._plan), preload(self.source)
        return ProcessWorkers(self.workers, options.start_method, segment, room, owners, preloaded)

    # -- iterating ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.order.n_batches(self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        """One pass over what is left of this epoch; over the next one, if this one was left before its end."""
        self._ranks.look_again()
        epoch, position = self._engine.due
        self._engine.seek(*((epoch + 1, 0) if self._begun and position else (epoch, position)))
        if self.workers:
            self._see_changes()
        self._begun = True
        self._iteration += 1
        self._engine.advise(OF_ARRAYS)
        return _Pass(self)

    def _watched(self, packed: Packed | None) -> Watch | None:
        """The source as it is now; None if it cannot be compared later: start_method="fork" takes what cannot be pickled."""
        if self.workers == 0:
            return None
        try:
            return Watch((self.source, self._options.worker_setup), packed)
        except Exception:
            if packed is not None:
                raise
            return None

    def _see_changes(self) -> None:
        """Give workers the source as it is now, if it was changed since they were given it."""
        change = "" if self._watch is None else self._watch.changed((self.source, self._options.worker_setup))
        if self._watch is not None and not change:
            return
        if as_fields(self.source.fields) != self.fields or len(self.source) != self.order.n_samples:
            raise ConfigError(
                f"the source was changed, and has other fields or another length now ({len(self.source)}, not "
                f"{self.order.n_samples}): make a new Loader"
            )
        if change == LATE:
            warnings.warn(f"the source: {change}", RuntimeWarning, stacklevel=3)
        setup, limit_bytes = self._options.worker_setup, self._plan.index_bytes + SPARE_INDEX_BYTES
        packed = pack(self.source, limit_bytes, setup) if self._needs_packed else None
        self._engine.renew(
            packed.data if packed is not None else self.source,
            setup if packed is None else None,
            packed.owners if packed is not None else [],
        )
        self._watch = self._watched(packed)

    def _received(self, batch: Batch, bad: list[tuple[int, Bad]]) -> Batch:
        """A batch that was lent and needs a second look: bad samples, or a copy."""
        if bad:
            try:
                self._bad.judge(bad)
            except SampleError:
                batch.release()
                raise
        if self._options.copy:
            lent, batch = batch, batch.copy()
            lent.release()
        return batch

    def peek(self) -> Batch:
        """A copy of the batch that comes next, for a look at it: `loader.peek()["image"].shape`. The loader stays where it is,
        so the next `for` begins with this batch. (`next(iter(loader))` takes it, and then the next `for` is the next epoch.)

        Returns a mapping as iterating gives it: field -> `(B, ...)` array of the field's dtype, with `epoch`, `number` and
        `index` `(B,) int64`; in memory of its own, so that it may be kept.

        While an iteration is under way, that is the batch which `next()` of this iteration gives. After a `break` it is still
        that one, and a new `for` begins with another: the first of the next epoch.

        Raises:
            ConfigError: all `epochs` are over. Else as while iterating. `stats` counts a bad sample when its batch is received.
        """
        self._ranks.look_again()
        if not (self._begun and self.position):
            if self.workers:
                self._see_changes()
            else:
                self._engine.seek(*self._engine.due)  # loads it again: the source may be another one now
        peeked = self._engine.peek()
        if peeked is None:
            raise ConfigError(f"there is no batch to peek at: all epochs={self._options.epochs} of the loader are over")
        batch, bad = peeked
        self._bad.refuse(bad)
        return batch

    # -- state --------------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """The next `for` passes over `epoch`, from its beginning."""
        self._go_to(integer("epoch", epoch, 0), 0)

    def _go_to(self, epoch: int, position: int) -> None:
        self._engine.seek(epoch, position)
        self._begun = False
        self._iteration += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: what it has received, never what was produced ahead. JSON can hold it. `source` is the
        source's fingerprint: of tables and arrays (which may take a second the first time), and of one with a `fingerprint()`.
        """
        fingerprint = fingerprint_of(self.source)
        return self._order_state() | ({} if fingerprint is None else {"source": fingerprint})

    def _order_state(self) -> dict[str, Any]:
        return {"version": STATE_VERSION, "epoch": self.epoch, "position": self.position} | self.order.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the loader was that gave `state`, with any number of workers. The next `for` passes over the rest
        of that epoch.

        Raises:
            ConfigError: the state is of an order other than this loader's, or of another source, or of the same table in
                another order; the message names what differs. States without a fingerprint are not asked for one.
        """
        own = self._order_state()
        if missing := own.keys() - state.keys():
            raise ConfigError(f"this is not a state of a ringload loader: it lacks {sorted(missing)}")
        if differing := [key for key in own.keys() - {"epoch", "position"} if _plain(state[key]) != own[key]]:
            told = ", ".join(f"{key}: {short(state[key])} there, {short(own[key])} here" for key in sorted(differing))
            raise ConfigError(f"the state belongs to another order ({told}); make the loader with the same arguments")
        there = state.get("source")
        if there is not None and (differs := difference(there, fingerprint_of(self.source), self.source)):
            raise ConfigError(f"{differs}. To go on with this source all the same: state.pop('source')")
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
        """What is allocated for what. Where the source takes more memory in its workers than was planned, slots are given up
        for it: from the first batch on they are no longer in the plan."""
        self._engine.poll()
        return replace(self._plan, n_slots=self._engine.n_slots)

    @property
    def stats(self) -> Stats:
        """What was counted so far."""
        self._engine.poll()
        counters = self._engine.counters
        return Stats(
            n_batches=counters.n_batches,
            n_samples=counters.n_samples,
            elapsed_s=counters.last_s - counters.first_s,
            stall_s=counters.wait_s,
            busy_s=counters.busy_s,
            idle_s=counters.idle_s,
            n_bad=self._bad.n,
            bad=tuple(self._bad.named),
            n_restarts=len(counters.deaths),
            n_full=self._engine.n_full,
            n_slots=self._engine.n_slots,
        )

    # -- for adapters -------------------------------------------------------------------------------------------------

    def iterate(self, advice: str) -> Iterator[Batch]:
        """`iter(loader)` where users hold something else than batches: `advice` says what is kept if every slot is lent, and
        what to do: "A tensor of a batch is kept: keep copies (tensor.clone())"."""
        begun = iter(self)
        self._engine.advise(advice)
        return begun

    def following(self, epoch: int, number: int) -> tuple[int, int]:
        """(epoch, number) of the batch that follows another."""
        return following(self.order, epoch, number)

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
            LoaderClosedError: the loader is.
        """
        return self._engine.memory

    def at_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the loader is closed or collected, after its workers have ended. It must not keep the
        loader alive."""
        self._engine.at_end(callback)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the workers and give the memory back, but for what lent arrays look into. Again is nothing."""
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
            raise RingloadError(OVER)
        engine = loader._engine
        if (epochs := loader._options.epochs) is not None and self._epoch >= epochs:
            raise StopIteration
        received = engine.next_batch(self._epoch)
        if received is None:
            raise StopIteration
        batch, bad = received
        return loader._received(batch, bad) if bad or loader._options.copy else batch


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
