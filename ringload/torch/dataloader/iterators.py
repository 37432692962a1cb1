"""One pass over a torch DataLoader: loaded in the trainer (`InProcessPass`), or by workers (`RingPass`)."""

from __future__ import annotations

import reprlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from ringload.checks import warn
from ringload.errors import StallError, WorkerDiedError, without_frames
from ringload.packing.generators import reached_from
from ringload.ring.lease import Batch
from ringload.torch.dataloader.errors import died, raised, timed_out, unusable_in_worker
from ringload.torch.dataloader.ring import MAX_ROW, BatchError, TorchRing, needs_keys, number_of, own_copy, pinned_copy
from ringload.torch.dataloader.source import Generators, fetch, places, seed_all, seed_of
from ringload.torch.dataloader.state import Keys, Snapshot

if TYPE_CHECKING:
    from ringload.torch.dataloader.loader import DataLoader


class Progress:
    """The position of a pass: how many batches the trainer has received."""

    def __init__(self, keys: Keys) -> None:
        self._keys, self._snapshot = keys, keys.snapshot
        self.number = keys.number  # of the next batch to receive
        self.is_finished = False
        self.of_iterable: dict[str, Any] | None = None  # see `iterable`

    def advance(self, snapshot: Snapshot) -> None:
        """One more batch was received."""
        self.number += 1
        self._snapshot = snapshot

    def state(self, dataset: Any) -> dict[str, Any]:
        """See `Keys.state`."""
        return self._keys.state(self._snapshot, self.number, self.is_finished, dataset, self.of_iterable)


END = object()  # stands for the end of the pass


class Pass:
    """The base class of both kinds. After an error, the iteration goes on with the next batch."""

    def __init__(self, loader: DataLoader, keys: Keys) -> None:
        self._loader, self._keys = loader, keys
        self.progress = Progress(keys)
        self._spec = loader.worker_spec(keys.base_seed)
        self._is_pinned = loader.pin_memory and torch.cuda.is_available()
        if loader.pin_memory and not self._is_pinned:
            warn("pin_memory=True has no effect, because there is no CUDA device", RuntimeWarning)

    def __iter__(self) -> Pass:
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        try:
            data = END if self.progress.is_finished else self._next()
            if self._is_pinned and data is not END:
                data = pin_memory(data, "cuda")
        except (StopIteration, StopAsyncIteration) as error:  # would end the iteration silently
            raise RuntimeError(
                f"{type(error).__name__} was raised by the dataset, or by collate_fn, for this batch: an iterator in it is "
                "exhausted"
            ) from error
        if data is END:
            self.progress.is_finished = True
            raise StopIteration
        return data

    def _next(self) -> Any:
        raise NotImplementedError

    def __reduce__(self) -> Any:
        raise NotImplementedError("an iterator of a DataLoader cannot be pickled: save the DataLoader's state_dict() instead")


class InProcessPass(Pass):
    """Loads each batch in the trainer when it is asked for. Samples draw the same numbers as in workers, and the trainer's
    global generators keep their states."""

    def __init__(self, loader: DataLoader, keys: Keys) -> None:
        super().__init__(loader, keys)
        self._seeding = False
        self._generators = Generators()
        self._own = reached_from((loader.dataset, loader.collate_fn))
        self._taken: tuple[Any, Snapshot] | None = None  # taken from the sampler, and not yet loaded: an interruption came

    def _next(self) -> Any:
        if self._taken is None:
            try:
                self._taken = self._keys.next()
            except StopIteration:
                return END
        keys, snapshot = self._taken
        try:
            data = self._load(keys)
        except Exception:  # takes the place of the batch; after an interruption, the batch is loaded again
            self._advance(snapshot)
            raise
        self._advance(snapshot)
        return data

    def _advance(self, snapshot: Snapshot) -> None:
        self._taken = None
        self.progress.advance(snapshot)

    def _load(self, keys: Any) -> Any:
        before, of_own = self._generators, self._own.states()
        if before.have_moved():  # the trainer has drawn
            before = self._generators = Generators()
        if not self._seeding:
            try:
                data = self._fetch(keys, None)
            except Exception:
                if not self._have_drawn(before):
                    raise
            else:
                if not self._have_drawn(before):
                    return data
            self._seeding = True  # the first draw: load the batch again, and seed from now on
        n_rows = len(keys) if self._spec.collate_fn is None else 1
        try:
            return self._fetch(keys, places(self._keys.seed, self.progress.number, n_rows).tolist())
        finally:
            before.restore()
            self._own.restore(of_own)

    def _have_drawn(self, before: Generators) -> bool:
        were_used = self._own.were_used((self._loader.dataset, self._loader.collate_fn))
        return before.have_moved() or were_used

    def _seed(self, place: int) -> None:
        seed = seed_of(place)
        seed_all(seed)
        self._own.set(seed)

    def _fetch(self, keys: Any, places_of_rows: list[int] | None) -> Any:
        dataset, collate = self._loader.dataset, self._loader.collate_fn
        assert collate is not None
        if self._spec.collate_fn is None:
            samples = []
            for row, key in enumerate(keys):
                if places_of_rows is not None:
                    self._seed(places_of_rows[row])
                samples.append(dataset[key])
            return collate(samples)
        if places_of_rows is not None:
            self._seed(places_of_rows[0])
        return collate(fetch(dataset, keys) if self._spec.batched else dataset[keys])


class RingPass(Pass):
    """Submits batches to the workers, and receives them from the ring.

    No reference cycle contains a pass, so that a pass that is dropped returns its ring at once: see `errors.without_frames`.
    """

    def __init__(self, loader: DataLoader, keys: Keys) -> None:
        super().__init__(loader, keys)
        self._ahead = loader.n_ahead
        self._pending: dict[int, tuple[Any, Snapshot]] = {}  # number -> keys, and the snapshot once it was received
        self._is_exhausted = False  # the sampler has no more keys
        self._failure: Exception | None = None  # raised by the sampler; takes the place of a batch
        self._own: Callable[[np.ndarray], np.ndarray] = pinned_copy if self._is_pinned else own_copy
        self._can_be_empty = self._spec.collate_fn is not None  # whether batches without keys are sent to workers
        self._ring: TorchRing | None = None
        self._give_back: Any = None
        self._pull()
        if any(self._can_be_empty or len(of_batch) for of_batch, _ in self._pending.values()):
            self._begin()  # else the first batch that is not empty begins

    def _pull(self) -> None:
        """Take keys from the sampler for all batches that may be filled ahead, and for one more, posted when a slot is free."""
        while not self._is_exhausted and len(self._pending) <= self._ahead:
            number = self._keys.number
            try:
                keys, snapshot = self._keys.next()
            except StopIteration:
                self._is_exhausted = True
            except Exception as error:  # of the user's sampler: raised after the batches before it
                self._is_exhausted, self._failure = True, without_frames(error)
            else:
                # A copy, as some samplers reuse the list.
                self._pending[number] = list(keys) if type(keys) is list else keys, snapshot

    def _begin(self) -> None:
        """Borrow a ring, with its workers if there is one, and submit the first batches."""
        keys = [of_batch for of_batch, _ in self._pending.values() if self._can_be_empty or len(of_batch)]
        self._ring, self._epoch = self._loader.borrow(self._spec, keys, self.progress.number)
        self._give_back = weakref.finalize(self, _give_back, weakref.ref(self._loader), self._ring)
        self._give_back.atexit = False
        self._submit()

    def _submit(self) -> None:
        """Submit the batches that may be filled now."""
        assert self._ring is not None
        batches = {number: keys for number, (keys, _) in self._pending.items() if self._can_be_empty or len(keys)}
        self._ring.submit(self._epoch, self.progress.number, batches, self._keys.seed)

    def _next(self) -> Any:
        number = self.progress.number
        self._pull()
        if number not in self._pending:
            return self._stop()
        if not (self._can_be_empty or len(self._pending[number][0])):
            self.progress.advance(self._pending.pop(number)[1])
            return default_collate([])
        try:
            return self._of_ring(number)
        except BatchError as error:
            batch, batch_error = error.batch, error.error
        except StallError as error:
            raise timed_out(error, self._loader.timeout, self._name) from error
        except WorkerDiedError as error:
            deaths = self._ring.feed.deaths if self._ring is not None else []
            name = self._name(number_of(error.samples[0]), error.samples[0]) if error.samples else ""
            self._close_ring()
            raise died(error, name, deaths, self._loader.restarts) from error
        except Exception as error:  # the pass cannot go on: too little memory, refused by strict=True, or closed
            self._close_ring()
            self.progress.is_finished = True
            if (unusable := unusable_in_worker(error)) is not None:
                raise unusable from error
            raise
        except BaseException:  # an interruption: the batch comes next
            if self._ring is not None and not self._ring.is_whole:
                self._close_ring()
            raise
        self._advance(batch)
        try:
            raise batch_error
        finally:
            del batch_error  # breaks the cycle of error, traceback and frame

    def _of_ring(self, number: int) -> Any:
        while True:
            if self._ring is None:
                self._begin()
            else:
                self._submit()
            assert self._ring is not None
            batch, bad = self._ring.next(number)
            if bad:
                raise BatchError(batch, raised(bad[0], self._name(number, bad[0].index), self._ring.feed.deaths))
            received = self._ring.take(batch, self._own)
            if received is not None:
                self._advance(batch)
                return received[0]

    def _name(self, number: int, index: int) -> str:
        """The name of a row in messages."""
        keys, _ = self._pending.get(number, ([], None))
        if self._spec.collate_fn is not None and self._spec.batched:
            return f"the batch of samples {reprlib.repr(keys)}"
        of_rows: Any = keys if self._spec.collate_fn is None else [keys]
        row = index & MAX_ROW
        return f"sample {reprlib.repr(of_rows[row]) if needs_keys(of_rows) and row < len(of_rows) else index}"

    def _advance(self, batch: Batch) -> None:
        assert self._ring is not None
        _, snapshot = self._pending.pop(batch.number)
        self.progress.advance(snapshot)
        self._ring.feed.received(batch)
        if self._is_exhausted and not self._pending and self._failure is None:
            self._return_ring()  # now, as a loop that counts batches never asks for the end, and may keep this object

    def _stop(self) -> Any:
        """The sampler is exhausted: raise its error, if there was one, or return END."""
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure
        self._return_ring()
        return END

    def _return_ring(self) -> None:
        if self._give_back is not None:
            self._give_back()
        self._ring = None

    def _close_ring(self) -> None:
        """Close this ring, which cannot go on. The next batch makes another."""
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
