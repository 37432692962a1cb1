"""`ringload.torch.DataLoader`: torch's DataLoader, on the ring. Change one import, keep the arguments.

    sampler --keys--> trainer lists them --> workers: dataset[key] -> rows of a slot --copied once--> the user's own batch
    IterableDataset: the trainer gives turns --> workers: batch_size samples, collated --> a row of a slot --> the same

What a user of torch's would notice:
1. All workers share a batch: the first one comes sooner, and a slow sample holds up one row. A `collate_fn`, or
   `__getitems__`, needs whole batches, so there a batch is one worker's.
2. What a sample draws from `random`, `numpy.random`, torch's global generator and generators of the dataset's own (such as
   `np.random.default_rng(0)`, or those of albumentations) depends on (base seed, epoch, its place in it): the same values for
   any number of workers, 0 included; other values than torch's.
3. A worker's death costs time, not the run.
4. Workers stay from epoch to epoch. Unless persistent_workers=True says that they shall not hear of changes, the dataset is
   compared with what they have at each `iter()`, and they begin anew with it if it was changed. What is set on the DataLoader
   itself (`collate_fn`, `num_workers`, `timeout`, ...) counts from the next `iter()` on in any case; torch refuses some of it.
   Workers are clean processes, which import what the dataset needs. They have the trainer's shared memory (tensors after
   `share_memory_()`, memory-mapped files, RawArrays), globals of the user's modules, and switches of libraries: see
   `ringload.packing.process_state` and `module_globals`. A dataset that has what can only be inherited (a lock, a
   multiprocessing.Value or Queue, an anonymous mmap), or whose code calls hash(), has workers that are forked, as torch's
   are; they begin anew for each `iter()`.
5. `state_dict` and `load_state_dict`, as torchdata's StatefulDataLoader has them, for any number of workers.
6. No pickle between processes but for the dataset itself. Beside plain values, arrays (structured ones and those of ml_dtypes,
   too) and dense tensors, Enums, defaultdicts of plain kinds, torch.Sizes, and objects of subclasses of int, float, str,
   tuple, list, dict, OrderedDict, defaultdict, UserDict, UserList (such as transformers' BatchEncoding) are sent, with their
   attributes; their `__reduce__` or `__getstate__` is not asked. The class is one at a module's top level, imported in the
   trainer, without `__slots__` and `__del__`. Others (dataclasses, sets, ranges, masked arrays, nested, sparse and quantized
   tensors, subclasses of tensors, classes inside functions) need allow_pickle=True.
7. The first batch may be loaded twice: again, with seeds, once anything was drawn (see `source`).
8. in_order=False keeps the order, too. `prepare` of accelerate makes a loader of torch's own class of this one, with a warning:
   `ringload.torch.prepare(accelerator, loader)` keeps it. accelerate.skip_first_batches does so without a warning, for that
   pass: `ringload.torch.skip_first_batches(prepared, n)` keeps it.
9. A StopIteration, SystemExit, KeyboardInterrupt or GeneratorExit that a sample raises in a worker is a RuntimeError of its
   batch. Without workers a StopIteration is one, too, and the others are what they are.
10. An IterableDataset is read as torch's workers read it: 1 and 2 do not hold, and the same numbers are drawn as with torch,
    but that persistent workers are seeded anew for each later pass. After a worker's death, and from a state, its dataset is
    read again up to its place, with the same numbers drawn; that is a RuntimeError if the dataset gives other samples then.
    What persistent workers' copies of the dataset have changed in themselves in earlier passes is lost by a death. A state is
    for the same number of workers. A batch that kills its worker twice (20 times, if by a signal) ends that worker's share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic

import torch
import torch.utils.data
from typing_extensions import TypeVar

from ringload.checks import in_our_words, short
from ringload.errors import ConfigError
from ringload.loader import Loader
from ringload.packing.installed import installed_modules
from ringload.packing.pack import ForkRequiredError
from ringload.torch.dataloader.errors import no_attribute
from ringload.torch.dataloader.feed import FeedSettings, begin_imports
from ringload.torch.dataloader.iterable import InProcessIterablePass, IterablePass
from ringload.torch.dataloader.iterable_ring import IterableWorkers
from ringload.torch.dataloader.iterators import InProcessPass, Pass, Progress, RingPass
from ringload.torch.dataloader.ring import RingSettings, RowLayout, TorchRing
from ringload.torch.dataloader.source import WorkerSpec
from ringload.torch.dataloader.state import Keys, check, first_state, set_generators
from ringload.workers.supervisor import StartMethod

STALL_S = 300.0  # for timeout=0
SENT = ("collate_fn", "worker_init_fn")  # to workers, with the dataset
T_co = TypeVar("T_co", covariant=True, default=Any)


class DataLoader(torch.utils.data.DataLoader[T_co], Generic[T_co]):
    """Feeds a training loop from a dataset of torch's; torch's DataLoader, on the ring.

        from ringload.torch import DataLoader

        loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=8, pin_memory=True)
        for images, labels in loader:
            step(images, labels)

    Batches are those of torch's DataLoader: in the same order for the same `generator` or `torch.manual_seed`, of the same
    types, dtypes and values, in memory of their own: keep as many as you like. An error in a batch is raised in its place, and
    the iteration may go on. See the module's text for what differs. As torch's it may be subscripted by what a dataset gives:
    `DataLoader[Tensor]`.

    Arguments, beside torch's:
        in_order: accepted; batches come in order in any case.
        multiprocessing_context: its start method is used; None for "forkserver", with a clean server, or for "fork", if the
            dataset has what can only be inherited (see 4 in the module's text).
        timeout: seconds without any progress; 0 for 300. The start of the workers, who import what the dataset needs and call
            `worker_init_fn`, does not count. A start has 300 s, or `timeout` if that is longer.
        strict: refuse samples with parts that have no fixed shape and dtype (strings, None, arrays of varying shapes), which
            else are encoded, which is slower.
        allow_pickle: send by pickle what is else refused, with a TypeError that names it (see 6 in the module's text).
        snapshot_every_n_steps: how often the state of a sampler that has one is taken.
        ram_budget, restarts, sample_timeout: as `ringload.Loader` has them.

    Raises:
        ValueError, TypeError: as torch's. ConfigError: a DataPipe; a dataset that cannot be sent to workers.
        While iterating: what the dataset raises; RuntimeError for a time-out, or for workers that died too often.
    """

    @in_our_words()
    def __init__(
        self,
        dataset: torch.utils.data.Dataset[T_co] | Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        batch_sampler: Any = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], Any] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        snapshot_every_n_steps: int = 1,
        strict: bool = False,
        allow_pickle: bool = False,
        ram_budget: int | float | str = "auto",
        restarts: int | None = 10,
        sample_timeout: float | None = None,
    ) -> None:
        if isinstance(dataset, Loader) or (hasattr(dataset, "fields") and not hasattr(dataset, "__getitem__")):
            raise ConfigError(
                f"dataset is a map-style dataset of torch's, dataset[index], not {short(dataset)}: for tensors of a source of "
                "ringload's use ringload.torch.Batches(ringload.Loader(source, batch_size))"
            )
        if isinstance(dataset, torch.utils.data.IterDataPipe | torch.utils.data.MapDataPipe):
            raise ConfigError(
                f"{type(dataset).__name__} is a DataPipe, which only torch.utils.data.DataLoader can seed and shard"
            )
        options: dict[str, Any] = {"pin_memory_device": pin_memory_device, "in_order": in_order}
        known = inspect.signature(torch.utils.data.DataLoader.__init__).parameters
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            **{name: value for name, value in options.items() if name in known},
        )
        if snapshot_every_n_steps < 1:
            raise ValueError(f"snapshot_every_n_steps is a positive integer, not {short(snapshot_every_n_steps)}")
        self.in_order = in_order
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.strict, self.allow_pickle = strict, allow_pickle
        self.ram_budget, self.restarts, self.sample_timeout = ram_budget, restarts, sample_timeout
        self._next_state: Mapping[str, Any] | None = None
        self._progress: Progress | None = None  # of the pass that was begun last
        self._ring: TorchRing | None = None  # that no pass uses now
        self._row_layout: RowLayout | None = None  # what was learned of rows by a ring that is gone
        self._kept: tuple[int, int] | None = None  # of persistent workers: the base seed, and the passes begun with it
        self._n_passes = 0
        self._iterable_workers = IterableWorkers()
        self._must_fork = False  # the dataset has what workers can only inherit
        self._installed = installed_modules(dataset, collate_fn, worker_init_fn) if num_workers else ()
        if num_workers:
            begin_imports(self.ring_settings().feed)

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch's, which refuses what may not change. What is set counts from the next iteration on, for persistent workers,
        too: then they begin anew."""
        is_new = name in SENT and value is not self.__dict__.get(name)
        super().__setattr__(name, value)
        if is_new:
            self.version = getattr(self, "version", 0) + 1

    if not TYPE_CHECKING:  # else a type checker would accept any attribute
        __getattr__ = no_attribute

    # -- iterating ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Any:
        """One pass over the dataset. Several at a time are possible; each of them has workers of its own."""
        if self.timeout and not self.num_workers:
            raise ValueError("timeout is for workers: leave it at 0 with num_workers=0")
        state, self._next_state = self._next_state, None
        is_kept = self.persistent_workers and self.num_workers > 0
        keys = Keys(self, self._kept if is_kept else None, self.snapshot_every_n_steps, state)
        self._kept = keys.base_seed, keys.n_before + 1
        if state is not None and state["_iterator_finished"]:
            return iter(self)  # the next one: `keys` went through the last
        begun: Pass
        if isinstance(self.dataset, torch.utils.data.IterableDataset):
            begun = IterablePass(self, keys, self._iterable_workers) if self.num_workers else InProcessIterablePass(self, keys)
        else:
            begun = RingPass(self, keys) if self.num_workers else InProcessPass(self, keys)
        self._progress = begun.progress
        return begun

    @property
    def is_whole(self) -> bool:
        """Whether batches are made by one call each: by the user's `collate_fn` or `__getitems__`, or for batch_size=None."""
        if not self._auto_collation or getattr(self.dataset, "__getitems__", None):
            return True
        return self.collate_fn is not torch.utils.data.default_collate

    def worker_spec(self, base_seed: int) -> WorkerSpec:
        """What workers need of the user's."""
        collate_fn = self.collate_fn if self.is_whole else None
        return WorkerSpec(self.dataset, collate_fn, self.worker_init_fn, self._auto_collation, base_seed)

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the last iteration is, as it was received; before the first, that there was none. JSON can hold it, if it can
        the states of sampler and dataset."""
        if self._progress is not None:
            return self._progress.state(self.dataset)
        return dict(self._next_state) if self._next_state is not None else first_state(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next `iter` goes on where the loader was that gave the state, with any number of workers; after the end of an
        epoch, with the next one. Later epochs are those of the uninterrupted run, too: for that, the global generators of
        Python, NumPy and torch (on the CPU), and the `generator` of this loader, are set to what they were when the state was
        taken. So load it last: what is drawn between this call and the training loop was not drawn there.

        Raises:
            ConfigError: it is no state, or of a loader with another batch size, drop_last, length of its dataset, or class of
            its samplers.
        """
        if state_dict:
            check(state_dict, self)
            set_generators(state_dict, self)
        self._progress = None
        self._next_state = state_dict or None

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which begins with no workers: the arguments, and where it was told to go on."""
        none = dict.fromkeys(("_progress", "_ring", "_row_layout", "_kept"))
        return self.__dict__ | none | {"_n_passes": 0, "_iterable_workers": IterableWorkers()}

    def close(self) -> None:
        """End the workers that no iteration uses. They end with the loader, too."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.feed.close()
        self._iterable_workers.close()

    # -- rings --------------------------------------------------------------------------------------------------------

    @property
    def n_ahead(self) -> int:
        """How many batches are produced ahead, at most."""
        each = 2 if self.prefetch_factor is None else int(self.prefetch_factor)
        return max(1, each * int(self.num_workers))

    def borrow(self, spec: WorkerSpec, keys: list[Any], number: int) -> tuple[TorchRing, int]:
        """A ring for a pass that begins with batch `number`, of the first of `keys`; and what its epoch is called. It is the
        one that is there, if nobody uses it and its workers have what `spec` has now."""
        self._n_passes += 1
        settings = self.ring_settings()
        ring, self._ring = self._ring, None
        if ring is not None and ring.settings == settings and ring.is_like(spec) and self._has_present(ring, spec):
            ring.begin(self._n_passes, number)
            return ring, self._n_passes
        if ring is not None:
            ring.feed.close()
            self._row_layout = ring.row_layout if ring.is_like(spec) and ring.settings.strict == self.strict else None
        try:
            ring = TorchRing(spec, settings, keys, (self._n_passes, number), self._row_layout, self.version)
        except ForkRequiredError:
            if not settings.may_fork:
                raise
            self._must_fork = True
            ring = TorchRing(spec, self.ring_settings(), keys, (self._n_passes, number), self._row_layout, self.version)
        if not self.persistent_workers:
            ring.note(spec)
        return ring, self._n_passes

    def _has_present(self, ring: TorchRing, spec: WorkerSpec) -> bool:
        """Whether a ring's workers have what `spec` has now, if need be after they were told. Persistent ones hear of nothing
        but what was set on this object."""
        return ring.version == self.version if self.persistent_workers else ring.renew(spec)

    def ring_settings(self) -> RingSettings:
        """What a ring depends on, of the arguments."""
        context = self.multiprocessing_context
        method: StartMethod = "fork" if self._must_fork else "forkserver"
        if context is not None:
            method = context.get_start_method() or "forkserver"
        feed = FeedSettings(
            workers=self.num_workers,
            ram_budget=self.ram_budget,
            start_method=method,
            stall_timeout=float(self.timeout) or STALL_S,
            sample_timeout=self.sample_timeout,
            restarts=self.restarts,
            preload=("ringload.torch.dataloader.iterable_source", *self._installed),
        )
        may_fork = context is None and not self._must_fork
        return RingSettings(feed, self.n_ahead, self.allow_pickle, self.strict, may_fork)

    def give_back(self, ring: TorchRing) -> None:
        """A pass has ended."""
        if self._ring is None:
            self._ring = ring
        else:
            ring.feed.close()
