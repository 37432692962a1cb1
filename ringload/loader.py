"""The loader: checks its arguments, plans the memory, starts an engine, and gives batches to the trainer."""

from __future__ import annotations

import os
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.bad_sample import Bad
from ringload.bad_samples import BadSamples
from ringload.checks import fixed_once_made, flag, in_our_words, integer, listed, named, warn
from ringload.engine.describe import OF_ARRAYS
from ringload.engine.engine import Engine
from ringload.engine.state import Settings
from ringload.errors import ConfigError, RingloadError, SampleError
from ringload.fields import Field, as_fields, in_brief
from ringload.log import LogObserver
from ringload.options import Options, as_source, check_stream, checked_shard, n_known, no_source, preload
from ringload.order.choose import column_of, loader_order
from ringload.order.explicit import NO_END
from ringload.order.loader_order import LoaderOrder
from ringload.order.position import following
from ringload.order.ranks import Ranks
from ringload.order.state import (
    Change,
    beginning,
    order_difference,
    position_of,
    read_state,
    resumed,
    reweighted,
    state_of,
    weights_there,
)
from ringload.order.stream import StreamOrder, StreamParts
from ringload.packing.pack import Packed, pack
from ringload.packing.watch import LATE, Watch
from ringload.protocols import PAD, Binding, Job, Last, Observer, Workers
from ringload.ring.layout import Layout
from ringload.ring.lease import Batch
from ringload.ring.plan import Plan, make_plan, parse_bytes, room_in
from ringload.sources.bind import bind
from ringload.sources.fingerprints import difference, fingerprint_of
from ringload.sources.given_cache import GivenCache
from ringload.stats import Stats
from ringload.system.cgroups import Usable, usable_memory
from ringload.system.interrupts import finalize
from ringload.system.segment import Segment, said_as_refused
from ringload.workers.fill import OnError
from ringload.workers.inline import InlineWorkers
from ringload.workers.processes import ProcessWorkers
from ringload.workers.supervisor import StartMethod

FIRST_BYTES = 64 << 20  # of the ring are reserved before the first batch (15 ms); the fork server reserves the rest
MAX_COUNTED = 1 << 16  # the most epochs whose batches are counted: these fill any ring
FOR_KERAS = " (for fit, evaluate and predict of Keras, give ringload.keras.dataset(loader))"
OVER = (
    "this pass over the loader is over: another was begun since, by a second `for`, iter(loader) or zip(loader, loader), or "
    "set_epoch or load_state_dict has moved the loader. A loader has one pass at a time: for two, make two loaders"
)
SPARE_INDEX_BYTES = 1 << 20  # a changed source may be larger by so much


class Loader:
    """Feeds a training loop: an iterable of batches, one pass an epoch, filled ahead by worker processes.

        with ringload.Loader(source, batch_size=256, ram_budget="48GB", seed=0) as loader:
            for epoch in range(90):
                for batch in loader:            # Mapping: field -> (B, ...) array, a view of the ring
                    step(batch["image"], batch["label"])

    Guarantees:
    1. The order of batches depends on (seed, epoch), and the content of a sample on (seed, epoch, index): batches have the same
       bytes for any number of workers, any start method, any number of workers' deaths, and after resuming.
    2. No batch's memory is written to while one of its arrays, or a view of one, is alive. Leases may end in any order.
    3. All memory except the trainer's own stays within `ram_budget`; a loader that does not fit is refused here.
    4. A worker's death costs time, never a sample; more than `restarts` deaths a minute raise WorkerDiedError.
    5. Every wait ends: with a batch, a death, a close, or after `stall_timeout` with an error that names the stuck worker.
    6. When the loader is closed or collected, or the trainer ends in any way, no process or memory of it is left.

    An iteration that ends early (`break`) ends its epoch: the next `for` begins the next one. To continue it instead, keep its
    iterator. There is one iteration at a time: a new `iter(loader)` ends the previous one, whose `next()` then raises
    RingloadError.

    A loader is immutable: setting its attributes raises AttributeError.

    Attributes: `source`, `fields`, `batch_size`, `workers` (their number), `order`, `has_valid` (whether batches have the field
    `valid`).

    Arguments:
        source: an ImageFrame, ImageFolder or Arrays; an object that implements `ringload.Source`; or a function
            `load(index, rng, out)`, together with `fields` and `n_samples`.
        batch_size: samples a batch.
        workers: the number of worker processes; "auto": the CPUs that this process may use, less one; 0: load in this process,
            for use with a debugger; or an object that implements `Workers`.
        ram_budget: bytes, "48GB", "48GiB", or a share of the memory that this process may still use (0.5, "50%"; 1.0 for all),
            for ring, index and workers together. "auto": a quarter of that memory, or 64 batches if these take less.
        shuffle: whether each epoch has a new random order, which is the default. False: the order of the source.
        seed: 0..2**64-1.
        last: how to treat samples that do not fill a batch: "drop" them; "keep" them as a shorter batch; "pad" the batch with
            rows of zeros, whose `valid` `(B,) bool` is False.
        shard: (rank, world): this loader's share of each epoch; every rank has the same number of batches. "auto" takes them
            from torch.distributed or JAX's distributed client, if initialized; else from the environment: variables of
            torchrun, Lightning, MPI, srun, or TF_CONFIG; else (0, 1). None: (0, 1), with a warning if one of these shows
            several ranks, as then each rank loads all samples.
        on_error: how to treat a bad sample: "raise" SampleError in place of its batch (the iteration may go on); "skip" it: its
            row is zeros, and its `valid` is False; or "replace" it by another sample of the source, whose index is in
            `batch.index`.
        max_bad: how many samples may be skipped or replaced before TooManyBadSamplesError is raised; None: one in a hundred,
            and at least 10.
        sample_timeout: seconds that loading one sample may take; then its worker is killed, which counts as a death.
        stall_timeout: seconds that `next()` waits while no task is finished and no lease ends; then it raises. The start of
            workers, which import what the source needs, does not count; it may take 300 s, or `stall_timeout` if that is
            longer. If every batch is kept, and no other thread can release one, AllSlotsLentError is raised at once.
        restarts: how many deaths of workers within a minute are tolerated; None: any number.
        start_method: "forkserver", "spawn" or "fork"; "fork" copies the trainer, with locks that its threads may hold.
        copy: whether batches are ordinary arrays, copied out of the ring.
        worker_setup: a function without arguments that each worker calls once, before it gets the source. Use it to set process
            state on which samples depend, other than the state that workers are always given (see
            `ringload.packing.process_state` and `module_globals`). It is not called with workers=0.
        epochs: the number of epochs, if known: then workers do not fill batches beyond the last one.
        order: which samples come when, instead of `shuffle`: "shuffle" or "sequence"; `ringload.Weighted`, `Balanced`,
            `Blocks`, `Buckets` or `Explicit`; a torch Sampler or BatchSampler; an iterable of index arrays `(n,)`; a function
            of the epoch that returns one of these, or is a generator of index arrays; or an object that implements
            `PositionOrder` or `Order`.
        observers: `Observer` objects, whose methods are called for batches, deaths, restarts, growth and bad samples.
        cache: where decoded samples are kept, as they are before mirroring, `transform` and float32: a folder on a local disk,
            as by `source.cached(folder, cache_bytes, cache_size)`, which later runs and ranks read (see `ringload.Cached`); or
            "ram": memory that the workers of this loader share until it ends. Either is filled as the first epoch goes. What
            does not fit is loaded each time: which samples are kept depends on their number alone, and none is evicted. Each
            source of a mix has a cache; in a folder, a `Part` of a source has that of the whole.
        cache_bytes: the most that the cache takes, as a number or as "100GB". By default, in memory: what `ram_budget` leaves
            beside a ring of 64 batches, or a half of what it leaves if that is more. In a folder: 0.9 of the disk's free room.
        cache_size: (height, width) at which whole images are kept for resize="random_crop".
        fields, n_samples: only if the source is a function.
        threads: only if the source is a function: how many threads of each worker call it at once, see `FunctionSource`.

    Raises:
        ConfigError: an argument or the source cannot be used. BudgetError: the loader does not fit into memory.
        While iterating: SampleError, TooManyBadSamplesError, WorkerDiedError, StallError, AllSlotsLentError, LoaderClosedError.
    """

    @in_our_words()
    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        workers: int | Literal["auto"] | Workers = "auto",
        ram_budget: int | float | str = "auto",
        shuffle: bool | None = None,
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
        order: Any = None,
        observers: Sequence[Observer] = (),
        fields: Mapping[str, Any] | None = None,
        n_samples: int | None = None,
        threads: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | str | None = None,
        cache_size: tuple[int, int] | None = None,
    ) -> None:
        if isinstance(source, Loader):
            raise no_source(source)
        self._cache = GivenCache(as_source(source, fields, n_samples, threads), cache, cache_bytes, cache_size)
        self.source = source = self._cache.source
        self.fields = as_fields(source.fields)
        self._options = options = Options.checked(
            n_known(source), batch_size, workers, ram_budget, seed, on_error, max_bad, sample_timeout, stall_timeout, restarts,
            start_method, copy, worker_setup, epochs, observers,
        )  # fmt: skip
        self.batch_size, self.workers = options.batch_size, options.n_workers
        if self._cache.is_in_memory and options.own_workers is not None and not options.own_workers.shares_memory:
            raise ConfigError(f"cache='ram' is memory that workers share, and {named(workers)} has none that do: give a folder")
        self._ranks = Ranks(shard)
        self.order = self._order(order, None if shuffle is None else flag("shuffle", shuffle), last)
        self._stream = self.order if isinstance(self.order, StreamOrder) else None
        self.has_valid = self.order.last == "pad" or on_error == "skip"
        usable = usable_memory()  # before this loader uses any of it
        self._limit_bytes = usable.n_bytes if ram_budget == "auto" else parse_bytes(ram_budget, usable)
        packed = pack(source, self._limit_bytes, worker_setup) if self._needs_packed else None
        self._plan = self._make_plan(packed, usable)
        self._cache.allocate(self._plan.cache_bytes)
        self._observers = (LogObserver(), *options.observers)
        try:
            self._engine = self._start(packed)
        except OSError as error:
            if self.workers == 0:
                raise  # an error of the source
            raise said_as_refused(error) from error
        self._watch = self._watched(packed)
        self._iteration = 0  # the number of the present iteration
        self._begun = False  # an iteration of this epoch has begun, so that another one begins the next epoch
        self._bad = BadSamples(options.on_error, options.max_bad, self._observers)
        self._fixed = ("source", "fields", "batch_size", "workers", "order", "has_valid")

    if not TYPE_CHECKING:  # else a type checker would accept any attribute
        __setattr__ = fixed_once_made

    def __repr__(self) -> str:
        if "_fixed" not in vars(self):  # its constructor raised
            return object.__repr__(self)
        epoch, position = self._engine.due
        n_batches = self.order.n_batches(epoch)
        batches = "batches" if n_batches == NO_END else f"{n_batches:,} batches"
        return (
            f"<Loader of {in_brief(self.source)}: {batches} of {self.batch_size:,} an epoch, {self.workers} "
            f"workers, {self._engine.n_slots:,} slots; next: batch {position:,} of epoch {epoch:,}>"
        )

    def __str__(self) -> str:
        """Keras shows this text in its error when `fit` is given a loader."""
        return f"{self!r}{FOR_KERAS if 'keras' in sys.modules else ''}"

    # -- setting up ---------------------------------------------------------------------------------------------------

    def _order(self, order: Any, shuffle: bool | None, last: Last) -> LoaderOrder:
        if order is not None and shuffle is not None:
            raise ConfigError("shuffle= and order= both say in which order samples come: give one of them")
        if len(self.source) == 0:
            raise ConfigError("the source has no samples")
        if (names := bind(self.source).order_fields) and (order is not None or shuffle is not None):
            raise ConfigError(
                f"{named(self.source)} has its own order, which writes the fields {listed(names)}: omit order= and shuffle="
            )
        own = bind(self.source).order
        if order is None:
            order = own
        if order is None:
            order = "shuffle" if shuffle in (True, None) else "sequence"
        if isinstance(own, StreamParts):
            check_stream(self._options, order is own and not shuffle)
        columns, is_shuffled = column_of(self.source), shuffle in (True, None)
        binding = Binding(len(self.source), self.batch_size, self._options.seed, columns, last=last, shuffle=is_shuffled)
        return loader_order(order, binding, *checked_shard(self._ranks.shard))

    @property
    def _needs_packed(self) -> bool:
        """Whether the source is sent to workers as bytes."""
        options = self._options
        if options.own_workers is not None:
            return options.own_workers.needs_packed
        return options.n_workers > 0 and options.start_method != "fork"

    @property
    def _slot_fields(self) -> dict[str, Field]:
        """The source's fields, and those that batches do not show."""
        return self.fields | (self._stream.own_fields if self._stream is not None else {})

    def _make_plan(self, packed: Packed | None, usable: Usable) -> Plan:
        source, epochs, own = bind(self.source), self._options.epochs, self._options.own_workers
        kept_bytes = self._stream.kept_bytes if self._stream is not None else 0
        return make_plan(
            self._slot_fields,
            self.batch_size,
            self.workers,
            self._options.ram_budget,
            usable,
            index_bytes=kept_bytes + (packed.shared_bytes + len(packed.data) if packed is not None else 0),
            source_bytes=len(packed.data) if packed is not None else 0,
            max_sample_bytes=source.scratch_bytes,
            ahead_bytes=source.ahead_bytes,
            refuses_large=source.refuses_large,
            with_valid=self.has_valid,
            cache_bytes=self._cache.n_bytes,
            cache_all_bytes=self._cache.all_bytes,
            max_slots=2**62
            if epochs is None or not self.order.is_arithmetic
            else sum(map(self.order.n_batches, range(min(epochs, MAX_COUNTED)))),
            are_here=own is None or own.are_here,
            **({} if own is None else {"store_bytes": own.store_bytes}),
        )

    def _start(self, packed: Packed | None) -> Engine:
        """Reserve the first slots, start the workers, and post the first batches. Does not wait for them."""
        plan, options = self._plan, self._options
        layout = Layout(self._slot_fields, self.batch_size, plan.n_slots, self.workers, self.has_valid)
        segment = Segment(layout.n_bytes)
        grows = self.workers and options.own_workers is None  # the fork server reserves more slots
        n_first = min(plan.n_slots, max(3, FIRST_BYTES // layout.slot_bytes)) if grows else plan.n_slots
        segment.reserve(0, layout.slots_start + n_first * layout.slot_bytes)
        memory = segment.map()
        limits = options.epochs, options.sample_timeout, options.stall_timeout, options.restarts
        settings = Settings(*limits, room_in(plan), bind(self.source).threads)
        job = Job(
            packed.data if packed is not None else self.source,
            layout,
            options.seed,
            self.order.n_samples,
            options.on_error,
            plan.scratch_bytes,
            plan.max_sample_bytes,
            options.worker_setup if packed is None else None,
            self._stream is not None,
            () if options.own_workers is None else (segment, *(packed.owners if packed is not None else ())),
            options.sample_timeout,
        )
        workers = self._make_workers(segment, packed)
        engine = Engine(self.order, layout, memory, workers, settings, n_first, observers=self._observers)
        # Before the workers start, so that an interruption leaves none of them running.
        weakref.finalize(self, finalize, engine.close)
        engine.at_end(self._cache.close)
        try:
            engine.open(job)
        except BaseException:
            engine.close()  # at once, as a traceback may keep this loader alive
            raise
        return engine

    def _make_workers(self, segment: Segment, packed: Packed | None) -> Workers:
        options = self._options
        if options.own_workers is not None:
            return options.own_workers
        if self.workers == 0:
            return InlineWorkers()
        owners = [*(packed.owners if packed is not None else ()), *self._cache.owners]
        room, preloaded = room_in(self._plan), preload(self.source, options.worker_setup)
        return ProcessWorkers(self.workers, options.start_method, segment, room, owners, preloaded)

    # -- iterating ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches an epoch. Raises TypeError for a stream without `steps`: only its end tells."""
        if (n_batches := self.order.n_batches(self.epoch)) == NO_END:
            raise TypeError(
                "a loader of a Stream has no len(), as it is not known when the stream ends: give Stream(steps=...)"
            )
        return n_batches

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the rest of this epoch; over the next epoch, if an earlier iteration of this one has ended."""
        self._ranks.look_again()
        epoch, position = self._engine.due
        self._seek(*((epoch + 1, 0) if self._begun and position else (epoch, position)))
        self._see_changes()
        self._begun = True
        self._iteration += 1
        self._engine.advise(OF_ARRAYS)
        return _Pass(self)

    def _watched(self, packed: Packed | None) -> Watch | None:
        """The present state of the source, for comparing later. None: it cannot be pickled, which only start_method="fork"
        allows."""
        if not self._is_watched:
            return None
        try:
            return Watch((self.source, self._options.worker_setup), packed)
        except Exception:
            if packed is not None:
                raise
            return None

    @property
    def _is_watched(self) -> bool:
        """Whether something is made of the source that its changes make wrong: workers' copies, or samples in memory."""
        return self.workers > 0 or self._cache.is_in_memory

    def _see_changes(self) -> None:
        """If the source has changed since the workers got it, send it to them again."""
        if not self._is_watched:
            return
        change = "" if self._watch is None else self._watch.changed((self.source, self._options.worker_setup))
        if self._watch is not None and not change:
            return
        if as_fields(self.source.fields) != self.fields or len(self.source) != self.order.n_samples:
            raise ConfigError(
                f"the source was changed, and now has other fields or another length ({len(self.source)}, not "
                f"{self.order.n_samples}): make a new Loader"
            )
        if change == LATE:
            warn(f"the source: {change}", RuntimeWarning)
        self._cache.begin_anew()
        setup, limit_bytes = self._options.worker_setup, self._plan.index_bytes + SPARE_INDEX_BYTES
        packed = pack(self.source, limit_bytes, setup) if self._needs_packed else None
        self._engine.renew(
            packed.data if packed is not None else self.source,
            setup if packed is None else None,
            [*(packed.owners if packed is not None else []), *self._cache.owners],
        )
        self._watch = self._watched(packed)

    def _received(self, batch: Batch, bad: list[tuple[int, Bad]]) -> Batch:
        """Finish a lent batch that has bad samples or has to be copied."""
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
        """Return a copy of the next batch, for example to see `loader.peek()["image"].shape`. The position does not change: the
        next `for` begins with this batch. (`next(iter(loader))` instead receives it, and the next `for` is the next epoch.)

        Returns a mapping as iterating does: field -> `(B, ...)` array of the field's dtype, with `epoch`, `number` and `index`
        `(B,) int64`. The arrays are copies, which you may keep.

        During an iteration, this is the batch that `next()` of this iteration gives. After a `break` it still is; a new `for`
        however begins with the first batch of the next epoch.

        Raises:
            ConfigError: all `epochs` are over. Else as while iterating. `stats` counts a bad sample only when its batch is
            received.
        """
        self._ranks.look_again()
        if not (self._begun and self.position):
            self._see_changes()
            if not self.workers:
                self._engine.seek(*self._engine.due)  # loads the batch again, as the source may have changed
        while (peeked := self._engine.peek()) is not None and peeked[0].n_rows == 0:
            self._engine.next_batch(self.epoch)  # a part of a stream has ended
        if peeked is None:
            raise ConfigError(f"there is no batch to peek at: all epochs={self._options.epochs} of the loader are over")
        batch, bad = peeked
        self._bad.refuse(bad)
        return batch

    def batch_rows(self, batch: Batch | np.ndarray) -> Any:
        """The rows `(B,) int64` of the user's table or arrays that are in a batch, or in its `index (B,)`; -1 for padding. So
        `frame.iloc[loader.batch_rows(batch)]` is what the table says of the batch, also if the source is a part of the table.
        Of a mix: two arrays, the number of each row's source in the mix, and its row there.
        """
        index = np.asarray(batch.index if isinstance(batch, Batch) else batch)
        rows = bind(self.source).rows_of(np.maximum(index, 0))
        if isinstance(rows, tuple):
            return tuple(np.where(index < 0, PAD, one) for one in rows)
        return np.where(index < 0, PAD, rows)

    # -- state --------------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Let the next `for` pass over `epoch`, from its beginning."""
        self._go_to(integer("epoch", epoch, 0), 0, beginning(self.order))

    def _go_to(self, epoch: int, position: int, changes: Sequence[Change]) -> None:
        """With changes, batches of the same number have other rows than before."""
        self._seek(epoch, position, changes)
        self._begun = False
        self._iteration += 1

    def _seek(self, epoch: int, position: int, changes: Sequence[Change] = ()) -> None:
        if self._stream is not None and not changes and (epoch, position) != self._engine.due:
            changes = self._stream.moved(self._engine.due, (epoch, position))
        self._engine.seek(epoch, position, changes)

    def state_dict(self) -> dict[str, Any]:
        """The position of the trainer: batches that were received, not those filled ahead. Can be saved as JSON. All ranks have
        the same state, and any number of ranks can go on from it, with any batch size. (Of a `Stream`, each rank has its own
        state, for the same number of ranks.) `source` is the fingerprint of the source: of a table, of arrays (the first call
        may take a second), or of a source with `fingerprint()`.
        """
        return self.state_at(*self._engine.due)

    def state_at(self, epoch: int, position: int) -> dict[str, Any]:
        """The state of a trainer that has received `position` batches of `epoch`: for those that receive batches later than the
        loader gives them, such as a step behind tf.data's `prefetch`."""
        state, fingerprint = state_of(self.order, self._options.seed, epoch, position), fingerprint_of(self.source)
        return state | ({} if fingerprint is None else {"source": fingerprint})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at the position of `state`, with any number of workers and ranks, and any batch size. The next `for` passes
        over the rest of that epoch.

        The samples that all ranks have received are the first of the epoch; this loader goes on behind them. If its batch size
        or number of ranks differs, and what is left does not give each rank a batch, it goes on with the next epoch. An order
        by batch (`Order`, or a BatchSampler) counts batches instead of samples.

        Raises:
            ConfigError: the state is of another order, of another source, or of the same table with its rows in another order;
                the message names the difference. A state without a fingerprint is accepted.
        """
        state = read_state(state)
        own = {"seed": self._options.seed, "order": self.order.state(state["epoch"], position_of(state))}
        without = () if weights_there(self.order, state) is None else ("weights",)
        if told := order_difference(state, own, without):
            raise ConfigError(f"the state belongs to another order ({told}): make the Loader with the same arguments")
        there = state.get("source")
        if there is not None and (differs := difference(there, fingerprint_of(self.source), self.source)):
            raise ConfigError(f"{differs}. To go on with this source all the same: state.pop('source')")
        self._go_to(*resumed(self.order, state))

    def reweight(self, weights: Any) -> None:
        """Put other weights in force, from the next batch on; for order=Weighted(...) with replacement. Batches that were
        filled ahead are filled again. All ranks call it at the same batch. States that are saved later have the weights.

        Raises:
            ConfigError: the weights are not valid, as for `Weighted`, or the loader has another order.
        """
        epoch, position = self._engine.due
        self._engine.seek(epoch, position, reweighted(self.order, weights, epoch, position))

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._engine.due[0]

    @property
    def position(self) -> int:
        """How many batches of this epoch the trainer has received."""
        return self._engine.due[1]

    # -- insight ------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """The memory plan: how many bytes for which purpose. If workers turn out to need more memory for the source than
        planned, the ring gets fewer slots: from the first batch on, the plan shows this."""
        return replace(self._plan, n_slots=self._engine.n_slots)

    @property
    def stats(self) -> Stats:
        """The counts so far. This only reads: reports of workers are counted at the next `next()`, or by `poll()`."""
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

    def poll(self) -> Stats:
        """Do all that `next()` does, except taking a batch: read reports of workers, free slots whose arrays are gone, and post
        the next batches. Returns the statistics. Call it only if you take no batch for long, so that the ring fills
        meanwhile."""
        self._engine.poll()
        return self.stats

    # -- for adapters -------------------------------------------------------------------------------------------------

    def iterate(self, advice: str) -> Iterator[Batch]:
        """`iter(loader)` for adapters whose users hold other objects than batches. If every slot is lent, the error says
        `advice`: which objects are kept, and what to do, such as "A tensor of a batch is kept: keep copies
        (tensor.clone())"."""
        begun = iter(self)
        self._engine.advise(advice)
        return begun

    def following(self, epoch: int, number: int) -> tuple[int, int]:
        """(epoch, number) of the batch after the given one."""
        return following(self.order, epoch, number)

    @property
    def ready(self) -> bool:
        """Whether the next batch is full and has no bad sample, so that `next()` neither waits nor raises."""
        return self._engine.ready

    @property
    def iteration(self) -> int:
        """A number that changes when an iteration begins, or the position is set: earlier iterations are then over."""
        return self._iteration

    @property
    def memory(self) -> np.ndarray:
        """The reserved part of the ring's memory, `(n_bytes,) uint8`, for registering it with a device. It begins at a page,
        ends with a slot, and grows with the ring. The array keeps the memory mapped: drop it in a callback of `at_close`.

        Raises:
            LoaderClosedError: the loader is closed.
        """
        return self._engine.memory

    def at_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the loader is closed or collected, after its workers have ended. It must not keep the
        loader alive."""
        self._engine.at_end(callback)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the workers, and release the memory, except slots that lent arrays still use. Idempotent."""
        self._engine.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("a loader cannot be pickled, as it owns processes and memory: pickle its state_dict()")


class _Pass:
    """An iteration over one epoch. It may go on after a SampleError."""

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
        while loader._stream is not None and received is not None and received[0].n_rows == 0:  # a part has ended
            received[0].release()
            received = engine.next_batch(self._epoch)
        if received is None:
            engine.poll()  # so that `stats` counts the whole epoch
            raise StopIteration
        batch, bad = received
        return loader._received(batch, bad) if bad or loader._options.copy else batch
