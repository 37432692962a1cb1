"""Accelerate: gives ringload's loaders to an Accelerator. Only `ringload.torch.prepare` imports this module.

    Batches -> Feed (batch k by its number) -> Numbers (0, 1, ...) -> PreparedBatches, a DataLoaderShard of Accelerate

So Accelerate's own code counts batches, knows the last one, moves tensors to the device and skips batches; loading and sharding
stay ringload's. Accelerate asks for one batch ahead of the one that it gives to the trainer: `Feed.at` counts those given.
Its `skip_first_batches` makes a plain DataLoaderShard of the same Feed, with the numbers of the batches that are left. So
nothing is loaded for skipped batches, and numbers count from the beginning of the epoch, wherever a state was loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch.utils.data
from accelerate.data_loader import DataLoaderShard
from accelerate.data_loader import skip_first_batches as skip

from ringload.checks import short, warn
from ringload.errors import ConfigError
from ringload.loader import Loader
from ringload.order.batched import Batched
from ringload.order.loader_order import LoaderOrder
from ringload.torch.batches import Batches
from ringload.torch.dataloader.loader import DataLoader


def prepare(accelerator: Any, loader: Loader | Batches[Any] | DataLoader[Any]) -> Any:
    """See `ringload.torch.prepare`."""
    if isinstance(loader, DataLoader):
        return _prepare_drop_in(accelerator, loader)
    if isinstance(loader, Loader):
        loader = Batches(loader, accelerator.device if accelerator.device_placement else None)
    if not isinstance(loader, Batches):
        raise ConfigError(
            f"prepare() takes a ringload.Loader, a ringload.torch.Batches or a ringload.torch.DataLoader, not {short(loader)}: "
            "give other objects to accelerator.prepare()"
        )
    _check(accelerator, loader.loader.order)
    prepared = PreparedBatches(loader, accelerator.device if accelerator.device_placement else None)
    return accelerator.prepare_data_loader(prepared)


def _check(accelerator: Any, order: LoaderOrder) -> None:
    for name in ("split_batches", "dispatch_batches"):
        if getattr(accelerator, name, None):
            raise ConfigError(
                f"the Accelerator has {name}=True: ringload's batch_size is that of each rank, and each rank loads its own "
                f"share, so leave {name} out"
            )
    rank, world = accelerator.process_index, accelerator.num_processes
    has_mesh = getattr(accelerator, "torch_device_mesh", None) is not None  # then several ranks may get the same batches
    if (order.rank, order.world) != (rank, world) and not has_mesh:
        raise ConfigError(
            f"the loader has shard=({order.rank}, {order.world}), and the Accelerator is rank {rank} of {world}: make the "
            "loader after the Accelerator, with shard='auto'"
        )
    if n_twice(order) > 1:
        warn(
            f"with last='keep' and {order.world} ranks, {n_twice(order)} samples of an epoch come twice, and "
            "gather_for_metrics cannot leave them out. For metrics use last='pad', and leave out rows that are not valid"
        )


def n_twice(order: LoaderOrder, epoch: int = 0) -> int:
    """How many samples come twice in the last batch of an epoch, so that all ranks have as many rows."""
    if not isinstance(order, Batched) or order.last != "keep":
        return 0
    return (order.start(epoch) - order.n_positions(epoch)) % order.world


class Feed(torch.utils.data.Dataset[Any]):
    """The batches of one epoch by their numbers. `at` is (epoch, number) of the batch that the trainer receives next."""

    def __init__(self, batches: Batches[Any]) -> None:
        self.batches, self.loader = batches, batches.loader
        self.at = self.loader.epoch, self.loader.position
        self.epoch, self.first = self.at  # where the next pass begins
        self.begun = False  # a pass of this epoch has begun
        self.resumes = False  # the next pass begins with `first`, and not with batch 0
        self._pass: Iterator[Any] | None = None
        self._next = self._begin = 0  # the batch that `_pass` gives next, and the first one of the pass

    def __len__(self) -> int:
        """Samples of an epoch, of all ranks."""
        return self.loader.order.n_samples

    @property
    def total_dataset_length(self) -> int:
        """Accelerate cuts the last batch of all ranks to the remainder of this number, which is for duplicates at its end."""
        order = self.loader.order
        if n_twice(order, self.epoch) != 1:
            return 0
        return order.n_positions(self.epoch) - order.start(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is of `epoch`: from its beginning, or from where a state that was loaded goes on in it."""
        if epoch != self.epoch or self.begun:
            self.go_to(epoch, 0)

    def go_to(self, epoch: int, first: int) -> None:
        """The next pass begins with batch `first` of `epoch`."""
        self.at = self.epoch, self.first = epoch, first
        self.begun, self._pass = False, None

    def numbers(self) -> Iterator[list[int]]:
        """The numbers of a pass."""
        first, self.resumes, self.begun, self._pass = self.first if self.resumes else 0, False, True, None
        epoch = self.epoch
        for number in range(first, self.loader.order.n_batches(epoch)):
            yield [number]
        self.at = epoch + 1, 0

    def __getitems__(self, numbers: list[int]) -> Any:
        """The batch with this number, for torch's DataLoader, which has it from `numbers`."""
        (number,) = numbers
        if self._pass is None or number != self._next:
            self._seek(number)
        assert self._pass is not None
        self.at = self.epoch, max(self._begin, number - 1)  # as an error loses the batch before, too
        batch = next(self._pass)
        self.at, self._next = (self.epoch, number), number + 1
        return batch

    def _seek(self, number: int) -> None:
        self.batches.load_state_dict(self.loader.state_at(self.epoch, number))
        self._pass, self._begin = iter(self.batches), number


class Numbers(torch.utils.data.Sampler[list[int]]):
    """The numbers of a pass, as a batch sampler; with what Accelerate reads of one, or sets."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.batch_size, self.num_processes = feed.loader.batch_size, feed.loader.order.world
        self.drop_last, self.even_batches = False, True

    def __len__(self) -> int:
        return self._feed.loader.order.n_batches(self._feed.epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return self._feed.numbers()


class PreparedBatches(DataLoaderShard):
    """What `ringload.torch.prepare` makes of `Batches`: a DataLoaderShard of Accelerate."""

    def __init__(self, batches: Batches[Any], device: Any) -> None:
        self.feed = Feed(batches)
        super().__init__(
            self.feed, device=device, batch_sampler=Numbers(self.feed), collate_fn=_as_it_is, iteration=self.feed.epoch
        )
        self._is_accelerate_prepared = True  # so Accelerate takes it as it is
        self.use_stateful_dataloader = True  # so save_state and load_state ask it for its state

    def __iter__(self) -> Iterator[Any]:
        """One pass: over the rest of an epoch whose state was loaded, or over the next epoch."""
        if self.feed.begun:
            self.feed.go_to(self.feed.epoch + 1, 0)
        self.iteration, self.feed.resumes = self.feed.epoch, True
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """The position of the trainer, as `Batches.state_dict`. The same on all ranks."""
        return self.feed.loader.state_at(*self.feed.at)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume at a position, with any number of ranks and any batch size. See `Loader.load_state_dict`."""
        self.feed.batches.load_state_dict(state_dict)
        self.feed.go_to(self.feed.loader.epoch, self.feed.loader.position)
        self.iteration = self.feed.epoch


def _as_it_is(batch: Any) -> Any:
    return batch


def _prepare_drop_in(accelerator: Any, loader: DataLoader[Any]) -> Any:
    """Accelerate makes a loader of torch's class, with samplers for this rank; then ringload's loader takes its place."""
    if isinstance(loader.dataset, torch.utils.data.IterableDataset):
        raise ConfigError(
            f"Accelerate would read {type(loader.dataset).__name__}, an IterableDataset, with a loader of torch's: iterate "
            "over the DataLoader itself, and let the dataset give each rank its share (accelerator.process_index)"
        )
    vars(loader)["_is_accelerate_prepared"] = False  # else Accelerate is told that it would replace this loader
    prepared = _with_base(accelerator.prepare_data_loader(loader), loader)
    prepared._is_accelerate_prepared = True
    if prepared.use_stateful_dataloader:
        prepared.dl_state_dict = prepared.base_dataloader.state_dict()
    return prepared


def _with_base(prepared: Any, loader: DataLoader[Any]) -> Any:
    """Accelerate's loader, with one of ringload's in it, which has the samplers that Accelerate has made."""
    base = copy.copy(loader)
    vars(base).update({name: getattr(prepared.base_dataloader, name) for name in ("batch_sampler", "sampler")})
    prepared.base_dataloader = base
    return prepared


def skip_first_batches(prepared: Any, n_batches: int) -> Any:
    """See `ringload.torch.skip_first_batches`."""
    skipping = skip(prepared, n_batches)
    base = getattr(prepared, "base_dataloader", None)
    return _with_base(skipping, base) if isinstance(base, DataLoader) else skipping
