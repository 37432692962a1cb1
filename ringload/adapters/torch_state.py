"""Where a pass over a torch DataLoader is: the keys that its sampler gives, and the state from which they can be given again.

The sampler is asked in the order in which torch asks it, with the same draws from the same generators, so that the same seed
gives the same batches: `iter(sampler)`, then a base seed, then batch after batch. Persistent workers keep their base seed, so
passes with it are counted, and `Keys.seed` is of both.

A state has the names of torchdata's StatefulDataLoader (those of its single-process form, whatever the number of workers), and
`_base_seed`, `_pass`, `_order`. A sampler, or its iterator, that has `state_dict` and `load_state_dict` is asked for them. For
others the state before the pass is kept of the loader's generators and of the global ones of Python, NumPy and torch: then the
sampler is asked again from the beginning, and what was received is skipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

from ringload.adapters.torch_source import Generators, array_of, seed_of_pass, text_of
from ringload.errors import ConfigError

NAMES = (
    "_index_sampler_state",
    "_sampler_iter_state",
    "_sampler_iter_yielded",
    "_num_yielded",
    "_iterator_finished",
    "_base_seed",
    "_pass",
    "_order",
    "_rng",
    "_snapshot_step",
    "dataset_state",
)


@dataclass
class Snapshot:
    """The sampler's states when `number` batches had been taken from it."""

    number: int
    sampler: Any = None
    iterator: Any = None


class Keys:
    """The keys of a pass, batch by batch, with a snapshot behind each."""

    def __init__(self, loader: Any, kept: tuple[int, int] | None, every: int, state: Mapping[str, Any] | None = None) -> None:
        """Begin a pass. `kept`: the base seed, and how many passes were begun with it; else one is drawn. With `state`, go on
        where that was taken."""
        base_seed, self.n_before = kept if kept is not None else (None, 0)
        self._every = every
        self._sampler = loader._index_sampler
        self._stateful = next(
            (one for one in (self._sampler, getattr(self._sampler, "sampler", None)) if _is_stateful(one)), None
        )
        generators = [
            getattr(one, "generator", None) for one in (loader, self._sampler, getattr(self._sampler, "sampler", None))
        ]
        self._generators = list(dict.fromkeys(one for one in generators if isinstance(one, torch.Generator)))
        self._order = _order(loader)
        self.number = 0  # of the batch that is taken next
        self._iterator: Iterator[Any]
        if state is None:
            self._before = (base_seed is None, Generators(), [generator.get_state() for generator in self._generators])
            self.base_seed = self._begin(loader, base_seed)
            self.snapshot = self._take_snapshot()
        else:
            self._go_on(loader, state)
        self.seed = seed_of_pass(self.base_seed, self.n_before)

    def _begin(self, loader: Any, base_seed: int | None) -> int:
        self._iterator = iter(self._sampler)
        if base_seed is not None:
            return base_seed
        return int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator).item())

    def next(self) -> tuple[Any, Snapshot]:
        """The next key or keys, and the snapshot that holds once they are received. Raises what the sampler does."""
        keys = next(self._iterator)
        self.number += 1
        if self.number % self._every == 0:
            self.snapshot = self._take_snapshot()
        return keys, self.snapshot

    def _take_snapshot(self) -> Snapshot:
        iterator = self._iterator.state_dict() if _is_stateful(self._iterator) else None  # type: ignore[attr-defined]
        return Snapshot(self.number, self._stateful.state_dict() if self._stateful is not None else None, iterator)

    def state(self, snapshot: Snapshot, n_yielded: int, is_finished: bool, dataset: Any) -> dict[str, Any]:
        """The state in which `n_yielded` batches were received, the last of them with `snapshot`."""
        draws, of_all, generators = self._before
        of_loader = [text_of(one.numpy()) for one in generators]
        return {
            "_index_sampler_state": snapshot.sampler,
            "_sampler_iter_state": snapshot.iterator,
            "_sampler_iter_yielded": n_yielded,
            "_num_yielded": n_yielded,
            "_IterableDataset_len_called": None,
            "_shared_seed": None,
            "fetcher_state": None,
            "dataset_state": dataset.state_dict() if _is_stateful(dataset) else None,
            "_iterator_finished": is_finished,
            "_base_seed": self.base_seed,
            "_pass": self.n_before,
            "_order": self._order,
            "_snapshot_step": snapshot.number,
            "_rng": {"draws_base_seed": draws, "global": of_all.text(), "generators": of_loader},
        }

    def _go_on(self, loader: Any, state: Mapping[str, Any]) -> None:
        rng, n_yielded = state["_rng"], int(state["_num_yielded"])
        if len(rng["generators"]) != len(self._generators):
            raise ConfigError(
                f"the state is of a DataLoader with {len(rng['generators'])} generators, this one has {len(self._generators)}: "
                "make it with the same sampler and generator"
            )
        if state["dataset_state"] is not None and _is_stateful(loader.dataset):
            loader.dataset.load_state_dict(state["dataset_state"])
        before = [torch.from_numpy(array_of(one, np.uint8)) for one in rng["generators"]]
        self._before = (bool(rng["draws_base_seed"]), Generators.of_text(rng["global"]), before)
        for generator, one in zip(self._generators, before, strict=True):
            generator.set_state(one)
        own = Generators()
        try:
            self._before[1].restore()
            skipped = self._restore(loader, state, n_yielded)
            for _ in range(skipped):
                next(self._iterator, None)
            first = list(itertools.islice(self._iterator, 1))  # so that what it draws when it begins is drawn here
        finally:
            own.restore()
        self.base_seed, self.n_before, self.number = int(state["_base_seed"]), int(state["_pass"]), n_yielded
        self.snapshot = Snapshot(int(state["_snapshot_step"]), state["_index_sampler_state"], state["_sampler_iter_state"])
        if first:
            self._iterator = _Chained(first[0], self._iterator)

    def _restore(self, loader: Any, state: Mapping[str, Any], n_yielded: int) -> int:
        """Begin as the state's pass began. Returns how many batches are to be skipped."""
        of_sampler, of_iterator = state["_index_sampler_state"], state["_sampler_iter_state"]
        if of_sampler is not None:
            if self._stateful is None:
                raise ConfigError("the state has one of its sampler, and this DataLoader's sampler has no load_state_dict")
            self._stateful.load_state_dict(of_sampler)
        self._begin(loader, None if self._before[0] else 0)
        if of_iterator is not None:
            if not _is_stateful(self._iterator):
                raise ConfigError("the state has one of its sampler's iterator, and this DataLoader's has no load_state_dict")
            self._iterator.load_state_dict(of_iterator)  # type: ignore[attr-defined]
        return n_yielded - int(state["_snapshot_step"]) if of_sampler is not None or of_iterator is not None else n_yielded


def check(state: Mapping[str, Any], loader: Any) -> None:
    """See that this loader can go on at `state`.

    Raises:
        ConfigError: it is no state, or of a loader that gives other batches; the message names what differs.
    """
    if absent := [name for name in NAMES if name not in state]:
        raise ConfigError(f"this is not a state of a ringload.torch.DataLoader: it lacks {absent}")
    there, here = state["_order"], _order(loader)
    if state["dataset_state"] is not None and _is_stateful(loader.dataset):
        del here["dataset_length"]  # it may come with the dataset's state
    if differing := [name for name in here if there.get(name) != here[name]]:
        told = ", ".join(f"{name}: {there.get(name)!r} there, {here[name]!r} here" for name in differing)
        raise ConfigError(f"the state belongs to another order ({told}); make the DataLoader with the same arguments")


def _order(loader: Any) -> dict[str, Any]:
    """What decides on the batches, beside what is drawn."""
    batches = loader.batch_sampler
    made_by = batches if isinstance(batches, BatchSampler) else loader
    sizes = {name: getattr(made_by, name, None) for name in ("batch_size", "drop_last")}
    try:
        n = len(loader.dataset)
    except (TypeError, NotImplementedError):  # it has no length, or only a Dataset's that says so
        n = None
    return {name: value if isinstance(value, int) else None for name, value in sizes.items()} | {
        "dataset_length": n,
        "sampler": type(getattr(made_by, "sampler", None)).__qualname__,
        "batch_sampler": type(batches).__qualname__,
    }


class _Chained:
    """An iterator with its first item put back; its state is the iterator's once that was given."""

    def __init__(self, first: Any, rest: Any) -> None:
        self._first, self._rest = [first], rest
        if _is_stateful(rest):
            self.state_dict, self.load_state_dict = rest.state_dict, rest.load_state_dict

    def __iter__(self) -> _Chained:
        return self

    def __next__(self) -> Any:
        return self._first.pop() if self._first else next(self._rest)


def _is_stateful(one: Any) -> bool:
    return callable(getattr(one, "state_dict", None)) and callable(getattr(one, "load_state_dict", None))
