"""The keys that the sampler of a torch DataLoader gives in a pass, and the state from which a pass resumes.

The sampler is called as torch calls it, with the same draws from the same generators, so that the same seed gives the same
batches: `iter(sampler)`, then the draw of a base seed, then batch after batch. Persistent workers keep their base seed, so
passes with the same base seed are counted, and `Keys.seed` is made from both.

A state has the keys of torchdata's StatefulDataLoader (in its single-process form, for any number of workers), and
`_base_seed`, `_pass`, `_order`. If the sampler or its iterator has `state_dict` and `load_state_dict`, their states are saved.
Otherwise the state holds the states of the generators before the pass (the loader's, and the global ones of Python, NumPy and
torch); to resume, the sampler begins again from these, and the batches that were received are skipped. The state also holds the
generators' states at the time when it was taken (`now`). `load_state_dict` sets them, so that later passes draw the same
numbers as in the first run.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, IterableDataset

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.torch.dataloader.source import Generators, array_of, seed_of_pass, text_of

NAMES = (
    "_index_sampler_state",
    "_sampler_iter_state",
    "_sampler_iter_yielded",
    "_num_yielded",
    "_iterator_finished",
    "_base_seed",
    "_pass",
    "_order",
    "_iterable",
    "_rng",
    "_snapshot_step",
    "dataset_state",
)
NAMES_OF_RNG = ("draws_base_seed", "global", "generators", "n_taken", "now")


@dataclass
class Snapshot:
    """The states of the sampler and its iterator when `number` batches had been taken."""

    number: int
    sampler: Any = None
    iterator: Any = None


class Sampling:
    """The parts of a loader on which its keys depend: the sampler, the part of it that has a state, and the user's
    generators."""

    def __init__(self, loader: Any) -> None:
        self.sampler = loader._index_sampler
        inner = getattr(self.sampler, "sampler", None)
        self.stateful = next((one for one in (self.sampler, inner) if _is_stateful(one)), None)
        generators = [getattr(one, "generator", None) for one in (loader, self.sampler, inner)]
        self.generators = list(dict.fromkeys(one for one in generators if isinstance(one, torch.Generator)))
        self.order = _order(loader)

    def now(self) -> dict[str, Any]:
        """The state of all generators, for JSON."""
        return {"global": Generators().text(), "generators": [text_of(one.get_state().numpy()) for one in self.generators]}

    def set(self, generators: list[str]) -> None:
        """Set the user's generators."""
        for generator, text in zip(self.generators, generators, strict=True):
            generator.set_state(torch.from_numpy(array_of(text, np.uint8)))

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ConfigError if the loader lacks a sampler or generator that a state needs."""
        if (n := len(state["_rng"]["generators"])) != len(self.generators):
            raise ConfigError(
                f"the state is of a DataLoader with {n} generators, but this one has {len(self.generators)}: make it with "
                "the same sampler and generator"
            )
        if state["_index_sampler_state"] is not None and self.stateful is None:
            raise ConfigError("the state holds its sampler's state, but this DataLoader's sampler has no load_state_dict")

    def state(
        self,
        dataset: Any,
        snapshot: Snapshot,
        before: Mapping[str, Any],
        base_seed: int | None,
        n_before: int,
        n_yielded: int,
        n_taken: int,
        is_finished: bool,
    ) -> dict[str, Any]:
        """The state after `n_yielded` batches were received, and `n_taken` were taken from the sampler. `before`: the result of
        `now` before the pass, and whether the pass drew its base seed."""
        return {
            "_index_sampler_state": snapshot.sampler,
            "_sampler_iter_state": snapshot.iterator,
            "_sampler_iter_yielded": n_yielded,
            "_num_yielded": n_yielded,
            "_IterableDataset_len_called": None,
            "_shared_seed": None,
            "fetcher_state": None,
            "_iterable": None,
            "dataset_state": dataset.state_dict() if _is_stateful(dataset) else None,
            "_iterator_finished": is_finished,
            "_base_seed": base_seed,
            "_pass": n_before,
            "_order": self.order,
            "_snapshot_step": snapshot.number,
            "_rng": {**before, "n_taken": n_taken, "now": self.now()},
        }


class Keys:
    """The keys of a pass, batch by batch, with a snapshot after each."""

    def __init__(self, loader: Any, kept: tuple[int, int] | None, every: int, state: Mapping[str, Any] | None = None) -> None:
        """Begin a pass. `kept`: the base seed, and how many passes have begun with it; None: draw one. With `state`, resume
        where it was taken."""
        self._every = every
        self.of_iterable = state["_iterable"] if state is not None else None  # see `iterable`
        self._sampling = sampling = Sampling(loader)
        self.number = 0  # of the next batch to take
        self._iterator: Iterator[Any]
        if state is not None:
            sampling.check(state)
            if state["dataset_state"] is not None and _is_stateful(loader.dataset):
                loader.dataset.load_state_dict(state["dataset_state"])
        if state is None or state["_base_seed"] is None:  # the state is of a loader that had not begun
            if state is not None and state["_index_sampler_state"] is not None and sampling.stateful is not None:
                sampling.stateful.load_state_dict(state["_index_sampler_state"])
            base_seed, self.n_before = kept if kept is not None and state is None else (None, 0)
            self._before = {"draws_base_seed": base_seed is None, **sampling.now()}
            self.base_seed = self._begin(loader, base_seed)
            self.snapshot = self._take_snapshot()
        else:
            self._go_on(loader, state)
        self.seed = seed_of_pass(self.base_seed, self.n_before)

    def _begin(self, loader: Any, base_seed: int | None) -> int:
        self._iterator = iter(self._sampling.sampler)
        if base_seed is not None:
            return base_seed
        return int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator).item())

    def next(self) -> tuple[Any, Snapshot]:
        """The next key or keys, and the snapshot that is valid once they are received. Raises what the sampler raises."""
        keys = next(self._iterator)
        self.number += 1
        if self.number % self._every == 0:
            self.snapshot = self._take_snapshot()
        return keys, self.snapshot

    def _take_snapshot(self) -> Snapshot:
        iterator = self._iterator.state_dict() if _is_stateful(self._iterator) else None  # type: ignore[attr-defined]
        return _snapshot(self._sampling, self.number, iterator)

    def state(
        self, snapshot: Snapshot, n_yielded: int, is_finished: bool, dataset: Any, of_iterable: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The state after `n_yielded` batches were received, the last of them with `snapshot`."""
        passes = self.base_seed, self.n_before
        state = self._sampling.state(dataset, snapshot, self._before, *passes, n_yielded, self.number, is_finished)
        return state | {"_iterable": of_iterable}

    def _go_on(self, loader: Any, state: Mapping[str, Any]) -> None:
        """Take the same keys from the sampler again, with the generators set as they were before that pass. Then set the
        generators back: `load_state_dict` has set them as they were when the state was taken, so that this pass and later ones
        draw the same numbers as in the first run."""
        rng, n_yielded = state["_rng"], int(state["_num_yielded"])
        self._before = {name: rng[name] for name in ("draws_base_seed", "global", "generators")}
        own, of_user = Generators(), self._sampling.now()["generators"]
        try:
            Generators.of_text(rng["global"]).restore()
            self._sampling.set(rng["generators"])
            n_skipped = self._restore(loader, state, n_yielded)
            is_iterable = isinstance(loader.dataset, IterableDataset)  # whose sampler gives None for each sample
            for _ in range(0 if is_iterable else n_skipped):
                next(self._iterator, None)
            is_stateful = state["_index_sampler_state"] is not None or state["_sampler_iter_state"] is not None
            n_ahead = 1 if is_stateful else rng["n_taken"] - n_yielded  # 1: so that its first draws happen here
            ahead = list(itertools.islice(self._iterator, 0 if is_iterable else n_ahead))
        finally:
            own.restore()
            self._sampling.set(of_user)
        self.base_seed, self.n_before, self.number = int(state["_base_seed"]), int(state["_pass"]), n_yielded
        self.snapshot = Snapshot(int(state["_snapshot_step"]), state["_index_sampler_state"], state["_sampler_iter_state"])
        if ahead:
            self._iterator = _Chained(ahead, self._iterator)

    def _restore(self, loader: Any, state: Mapping[str, Any], n_yielded: int) -> int:
        """Begin as the state's pass began. Returns how many batches to skip."""
        of_sampler, of_iterator = state["_index_sampler_state"], state["_sampler_iter_state"]
        if of_sampler is not None and self._sampling.stateful is not None:
            self._sampling.stateful.load_state_dict(of_sampler)
        self._begin(loader, None if self._before["draws_base_seed"] else 0)
        if of_iterator is not None:
            if not _is_stateful(self._iterator):
                raise ConfigError(
                    "the state holds a state of its sampler's iterator, but the iterator here has no load_state_dict"
                )
            self._iterator.load_state_dict(of_iterator)  # type: ignore[attr-defined]
        return n_yielded - int(state["_snapshot_step"]) if of_sampler is not None or of_iterator is not None else n_yielded


def first_state(loader: Any) -> dict[str, Any]:
    """The state of a loader that has not begun. Draws nothing, and takes nothing from the sampler. A pass that resumes from it
    begins with the generators as they are now, and the sampler as it is then (`set_epoch` may be called in between)."""
    sampling = Sampling(loader)
    before = {"draws_base_seed": True, **sampling.now()}
    return sampling.state(loader.dataset, _snapshot(sampling, 0, None), before, None, 0, 0, 0, False)


def set_generators(state: Mapping[str, Any], loader: Any) -> None:
    """Set all generators to what they were when a state was taken."""
    sampling, now = Sampling(loader), state["_rng"]["now"]
    Generators.of_text(now["global"]).restore()
    if len(now["generators"]) == len(sampling.generators):  # else `Keys` refuses the state
        sampling.set(now["generators"])


def _snapshot(sampling: Sampling, number: int, iterator: Any) -> Snapshot:
    return Snapshot(number, sampling.stateful.state_dict() if sampling.stateful is not None else None, iterator)


def check(state: Mapping[str, Any], loader: Any) -> None:
    """Check that this loader can resume from `state`.

    Raises:
        ConfigError: it is not a state, or of a loader that gives other batches; the message names the differences.
    """
    absent = [name for name in NAMES if name not in state]
    absent += [f"_rng.{name}" for name in NAMES_OF_RNG if name not in state.get("_rng", NAMES_OF_RNG)]
    if absent:
        raise ConfigError(f"this is not a state of a ringload.torch.DataLoader: it lacks {absent}")
    there, here = state["_order"], _order(loader)
    if state["dataset_state"] is not None and _is_stateful(loader.dataset):
        del here["dataset_length"]  # loading the dataset's state may change it
    if differing := [name for name in here if there.get(name) != here[name]]:
        told = ", ".join(f"{name}: {short(there.get(name))} there, {short(here[name])} here" for name in differing)
        raise ConfigError(f"the state belongs to another order ({told}): make the DataLoader with the same arguments")


def _order(loader: Any) -> dict[str, Any]:
    """The properties of a loader on which its batches depend, except random numbers."""
    batches = loader.batch_sampler
    made_by = batches if isinstance(batches, BatchSampler) else loader
    sizes = {name: getattr(made_by, name, None) for name in ("batch_size", "drop_last")}
    try:
        n = len(loader.dataset)
    except (TypeError, NotImplementedError):  # no length, or a __len__ that raises
        n = None
    return {name: value if isinstance(value, int) else None for name, value in sizes.items()} | {
        "dataset_length": n,
        "num_workers": loader.num_workers if isinstance(loader.dataset, IterableDataset) else None,
        "sampler": type(getattr(made_by, "sampler", None)).__qualname__,
        "batch_sampler": type(batches).__qualname__,
    }


class _Chained:
    """An iterator with its first items put back. Its state is valid once these items were given."""

    def __init__(self, first: list[Any], rest: Any) -> None:
        self._first, self._rest = deque(first), rest
        if _is_stateful(rest):
            self.state_dict, self.load_state_dict = rest.state_dict, rest.load_state_dict

    def __iter__(self) -> _Chained:
        return self

    def __next__(self) -> Any:
        return self._first.popleft() if self._first else next(self._rest)


def _is_stateful(one: Any) -> bool:
    return callable(getattr(one, "state_dict", None)) and callable(getattr(one, "load_state_dict", None))
