"""One pass over a torch DataLoader: in this process, or from a ring."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch.utils.data import default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from ringload.adapters.torch_errors import raised
from ringload.adapters.torch_ring import OfBatch, TorchRing, own_copy, pinned_copy
from ringload.adapters.torch_source import Generators, fetch, seed_all, seeds
from ringload.adapters.torch_state import Keys, Snapshot
from ringload.errors import ProducerDied, Stalled
from ringload.ring.lease import Batch

if TYPE_CHECKING:
    from ringload.adapters.torch_loader import DataLoader


class Progress:
    """How far a pass is, as it was received."""

    def __init__(self, keys: Keys) -> None:
        self._keys, self._snapshot = keys, keys.snapshot
        self.number = keys.number  # of the batch that is received next
        self.is_finished = False

    def advance(self, snapshot: Snapshot) -> None:
        """One more was received."""
        self.number += 1
        self._snapshot = snapshot

    def state(self, dataset: Any) -> dict[str, Any]:
        """As `Keys.state`."""
        return self._keys.state(self._snapshot, self.number, self.is_finished, dataset)


class Pass:
    """What both kinds have. The iteration goes on after an error, with the next batch."""

    def __init__(self, loader: DataLoader, keys: Keys) -> None:
        self._loader, self._keys = loader, keys
        self.progress = Progress(keys)
        self._bundle = loader.bundle(keys.base_seed)
        self._is_pinned = loader.pin_memory and torch.cuda.is_available()
        if loader.pin_memory and not self._is_pinned:
            text = "pin_memory=True, and there is no CUDA device: memory is not pinned"
            warnings.warn(text, RuntimeWarning, stacklevel=5)

    def __iter__(self) -> Pass:
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        if self.progress.is_finished:
            raise StopIteration
        data = self._next()
        return pin_memory(data, "cuda") if self._is_pinned else data

    def _next(self) -> Any:
        raise NotImplementedError

    def _finish(self) -> NoReturn:
        self.progress.is_finished = True
        raise StopIteration

    def _n_seeds(self, keys: Any) -> int:
        return len(keys) if self._bundle.collate is None else 1

    def __reduce__(self) -> Any:
        raise NotImplementedError("an iterator of a DataLoader cannot be pickled; keep the loader's state_dict()")


class InProcessPass(Pass):
    """Loads in this process, a batch when it is asked for. What workers would have drawn is drawn, and the global generators
    are as before."""

    def __init__(self, loader: DataLoader, keys: Keys) -> None:
        super().__init__(loader, keys)
        self._seeding = False

    def _next(self) -> Any:
        try:
            keys, snapshot = self._keys.next()
        except StopIteration:
            self._finish()
        number = self.progress.number
        self.progress.advance(snapshot)
        before = Generators()
        if not self._seeding:
            result, error = self._try(keys, None)
            self._seeding = before.have_moved()  # the first thing was drawn: once more, and with seeds from now on
        if self._seeding:
            try:
                result, error = self._try(keys, seeds(self._keys.seed, number, self._n_seeds(keys)).tolist())
            finally:
                before.restore()
        if error is not None:
            raise error
        return result

    def _try(self, keys: Any, seeds_of_rows: list[int] | None) -> tuple[Any, Exception | None]:
        try:
            return self._fetch(keys, seeds_of_rows), None
        except Exception as error:  # whatever the user's code raises
            return None, error

    def _fetch(self, keys: Any, seeds_of_rows: list[int] | None) -> Any:
        dataset, collate = self._loader.dataset, self._loader.collate_fn
        assert collate is not None
        if self._bundle.collate is None:
            samples = []
            for row, key in enumerate(keys):
                if seeds_of_rows is not None:
                    seed_all(seeds_of_rows[row])
                samples.append(dataset[key])
            return collate(samples)
        if seeds_of_rows is not None:
            seed_all(seeds_of_rows[0])
        return collate(fetch(dataset, keys) if self._bundle.batched else dataset[keys])


class RingPass(Pass):
    """Lists batches for the producers, and takes them from the ring."""

    def __init__(self, loader: DataLoader, keys: Keys) -> None:
        super().__init__(loader, keys)
        self._ahead = max(1, (loader.prefetch_factor or 1) * loader.num_workers)
        self._listed: dict[int, tuple[Any, Snapshot]] = {}  # number -> its keys, and what holds once it was received
        self._end: BaseException | None = None  # what the sampler ended with
        self._own: Callable[[np.ndarray], np.ndarray] = pinned_copy if self._is_pinned else own_copy
        self._can_be_empty = loader.is_whole  # a batch without keys; else there is no row to post, and nothing to collate
        self._ring: TorchRing | None = None
        self._give_back: Any = None
        self._pull()
        if any(self._can_be_empty or len(of_batch) for of_batch, _ in self._listed.values()):
            self._begin()  # else with the first batch that is not empty

    def _pull(self) -> None:
        """Ask the sampler for what may be produced ahead, and for one more: to be posted when a slot is given back."""
        while self._end is None and len(self._listed) <= self._ahead:
            try:
                number = self._keys.number
                keys, snapshot = self._keys.next()
                self._listed[number] = list(keys) if type(keys) is list else keys, snapshot  # some samplers use it again
            except Exception as error:  # the end, or the user's: raised when what came before it was received
                self._end = error

    def _begin(self) -> None:
        """Have a ring filled. Producers that are there already are used."""
        keys = [of_batch for of_batch, _ in self._listed.values() if self._can_be_empty or len(of_batch)]
        self._ring, self._epoch = self._loader.borrow(self._keys.base_seed, keys, self.progress.number)
        self._give_back = weakref.finalize(self, _give_back, weakref.ref(self._loader), self._ring)
        self._give_back.atexit = False
        self._list()

    def _list(self) -> None:
        """Tell the ring what to produce."""
        assert self._ring is not None
        listed = {number: keys for number, (keys, _) in self._listed.items() if self._can_be_empty or len(keys)}
        self._ring.enlist(self._epoch, self.progress.number, listed, self._keys.seed)

    def _next(self) -> Any:
        number = self.progress.number
        self._pull()
        if number not in self._listed:
            self._stop()
        if not (self._can_be_empty or len(self._listed[number][0])):
            self.progress.advance(self._listed.pop(number)[1])
            return default_collate([])
        try:
            return self._of_ring(number)
        except OfBatch as one:
            self._advance(one.batch)
            raise one.error from None
        except Stalled as error:
            raise RuntimeError(f"DataLoader timed out: {error}") from error
        except ProducerDied as error:
            self._let_go()
            raise RuntimeError(f"DataLoader worker (pid {error.pid}) is killed or exited: {error}") from error
        except Exception:  # it cannot go on: memory that is not there, what strict=True refuses, a closed loader
            self._let_go()
            self.progress.is_finished = True
            raise
        except BaseException:  # an interruption: the batch is still to come
            if self._ring is not None and not self._ring.is_whole:
                self._let_go()
            raise

    def _of_ring(self, number: int) -> Any:
        while True:
            if self._ring is None:
                self._begin()
            else:
                self._list()
            assert self._ring is not None
            batch, bad = self._ring.next(number)
            if bad:
                raise OfBatch(batch, raised(bad[0]))
            received = self._ring.take(batch, self._own)
            if received is not None:
                self._advance(batch)
                return received[0]

    def _advance(self, batch: Batch) -> None:
        assert self._ring is not None
        _, snapshot = self._listed.pop(batch.number)
        self.progress.advance(snapshot)
        self._ring.feed.received(batch)

    def _stop(self) -> NoReturn:
        """The sampler's end was reached."""
        end, self._end = self._end, StopIteration()
        assert end is not None
        if not isinstance(end, StopIteration):
            raise end
        if self._give_back is not None:
            self._give_back()
        self._ring = None
        self._finish()

    def _let_go(self) -> None:
        """This ring cannot go on; the next batch begins with another."""
        if self._give_back is not None:
            self._give_back.detach()
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.feed.close()


def _give_back(loader: weakref.ref[DataLoader], ring: TorchRing) -> None:
    owner = loader()
    if owner is None:
        ring.feed.close()
    else:
        owner.give_back(ring)
