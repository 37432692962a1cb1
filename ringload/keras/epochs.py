"""Maps the calls that Keras makes on a `PyDataset` to passes over the loader. Imports no framework.

The problem: Keras asks for batches by number, in its own order (`shuffle=True` permutes the numbers). The loader has its own
order, too. So the number is ignored, and the loader's next batch is given. But some batches that Keras asks for reach no
training step, and Keras abandons passes without a call that says so:
    peeks       TensorFlow: two batches before the first epoch, to learn their shapes
    dry runs    a model that is not built: an epoch that ends after its first batch (on TensorFlow with a distribution strategy:
                after as many batches as tf.data has read ahead)
    abandoned   steps_per_epoch, or a fit that stops or fails: the rest of the pass is never asked for

These calls tell them apart, in this order (read in Keras 3.4 to 3.15, tried with 3.15):
    `workers` is read        fit, evaluate or predict was given the dataset: `EpochTracker.given`. An unfinished pass is
                             abandoned
    the first on_epoch_end   fit and evaluate: always before the first epoch. All batches given before it were peeks, or of a
                             dry run
    num_batches is read      within an epoch, before a batch: a pass begins. Directly before the first on_epoch_end: Keras
                             resets the dataset after a dry run
    on_epoch_begin, _end     around each epoch; if the pass has not ended, tf.data goes on reading between epochs

Guarantees:
1. The batches of epochs are the loader's, in the loader's order, each once. Batches of peeks and dry runs are given again.
2. An abandoned pass is not continued: the next pass is the next epoch of the loader.
3. At most two batches are held, and only until the first epoch. If a dry run was given more, the loader seeks back to its first
   batch; the batches filled ahead are filled again.
4. An iterator of an abandoned pass gets an error, and no batch. (Seen: the traceback of a failed fit keeps its tf.data iterator
   alive, and its thread reads ahead while another fit runs.) This assumes that each fit has its own adapter object, named
   `self` in the frame that reads `workers`. If Keras renames that variable, only this guarantee is lost.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ringload.errors import ConfigError
from ringload.loader import Loader
from ringload.ring.lease import Batch
from ringload.system.interrupts import new_rlock

N_HELD = 2  # TensorFlow peeks at two batches; in a dry run on an accelerator, JAX takes two


class EpochTracker:
    """Decides from Keras' calls which batch comes next. Thread-safe: TensorFlow calls from several threads."""

    def __init__(self, loader: Loader, repeat: bool, advice: str) -> None:
        self._loader, self.repeat, self._advice = loader, repeat, advice
        self._lock = new_rlock()
        self._pass: Iterator[Batch] | None = None
        self._iteration = -1  # the loader's number when `_pass` began; if it differs now, other code has moved the loader
        self._held: deque[Batch] = deque()  # received by peeks or a dry run; given first
        self._is_unfinished = False  # the pass has given batches to steps, and is not over
        self._within_epoch = False
        self._n_ended = 0  # calls of on_epoch_end since `given`; the first of them ends no epoch
        self._n_given = 0  # batches given in this epoch
        self._may_be_dry_run: list[Batch] = []  # the first batches of an epoch that may be a dry run
        self._first: tuple[int, int] | None = None  # (epoch, number) of the first of these
        self._pass_begins = False  # num_batches was read: the next batch begins a pass
        self._is_undone = False  # a dry run was undone, and the first epoch has not begun
        self.origin: tuple[int, int] | None = None  # (epoch, number) of the first batch for a step since `given`
        self._adapters: weakref.WeakSet[Any] = weakref.WeakSet()  # the adapters of all fits so far
        self._adapter: Callable[[], Any] = lambda: None  # a weak reference to the newest of them

    # -- calls that tell passes apart ---------------------------------------------------------------------------------

    def given(self, adapter: Any) -> None:
        """fit, evaluate or predict was given the dataset, and reads it through `adapter`."""
        with self._lock:
            if adapter is not None:
                self._adapters.add(adapter)
                self._adapter = weakref.ref(adapter)
            self._within_epoch = False
            self._n_ended = 0
            self._forget_epoch()
            self.origin = None
            if self._is_unfinished or self._was_moved():
                self._abandon()

    def n_batches(self) -> int | None:
        """The number of batches of a pass, as Keras counts them: fewer if `load_state_dict` has set the loader within an
        epoch."""
        with self._lock:
            if self._within_epoch:
                self._pass_begins = True
                if self._n_given == 0 and not self.repeat:
                    return len(self._loader) - self.next()[1]
            return None if self.repeat else len(self._loader)

    @property
    def _n_whole(self) -> int:
        """Batches of a pass; of a stream whose end is not known, more than there can be."""
        return self._loader.order.n_batches(self._loader.epoch)

    def begin_epoch(self) -> None:
        """An epoch begins, or a dry run."""
        with self._lock:
            self._within_epoch = True
            self._is_undone = False
            self._forget_epoch()

    def end_epoch(self) -> None:
        """An epoch ended, or Keras resets the dataset."""
        with self._lock:
            is_reset = self._n_ended == 0 and self._pass_begins and self._n_given > 0
            self._is_undone = is_reset
            if is_reset and self._n_given <= N_HELD:
                self._held.extendleft(reversed(self._may_be_dry_run))
                self._is_unfinished = False
            elif is_reset and self._n_given < self._n_whole and self._first is not None:
                epoch, number = self._first
                self._loader.load_state_dict(self._loader.state_at(epoch, number))
                self._abandon()
            self._within_epoch = False
            self._n_ended += 1
            self._forget_epoch()

    def _forget_epoch(self) -> None:
        self._n_given = 0
        self._may_be_dry_run = []
        self._first = None
        self._pass_begins = False

    # -- batches -----------------------------------------------------------------------------------------------------

    def batch(self, number: int, adapter: Any) -> Batch:
        """The next batch. `number` matters only before the first epoch."""
        with self._lock:
            if adapter is not None and (self._is_undone or (adapter in self._adapters and adapter is not self._adapter())):
                raise RuntimeError(
                    "this pass over the dataset is over: Keras has begun another one. Validation data need a loader and a "
                    "ringload.keras.dataset(loader) of their own"
                )
            if self._n_ended == 0 and not self._within_epoch:
                return self._peeked(number)
            if (self._pass_begins and self._is_unfinished) or ((self._pass_begins or adapter is None) and self._was_moved()):
                self._abandon()
            self._pass_begins = False
            self._n_given += 1
            is_first = self._n_ended == 0
            if self._n_given > N_HELD:
                self._may_be_dry_run = []  # before waiting for a batch, which may need one of their slots
            batch = self._held.popleft() if self._held else self._receive()
            self._is_unfinished = batch.number != self._n_whole - 1
            if is_first:
                self._first = self._first or (batch.epoch, batch.number)
                if self._n_given <= N_HELD:
                    self._may_be_dry_run.append(batch)
            elif self.origin is None:
                self.origin = (batch.epoch, batch.number)
            return batch

    def _peeked(self, number: int) -> Batch:
        """A batch before the first epoch. A caller that asks for more than two is not TensorFlow peeking, but user code."""
        if self._was_moved() or (number == 0 and self._is_unfinished):
            self._abandon()
        if number < N_HELD and number <= len(self._held) and not self._is_unfinished:
            if number == len(self._held):
                self._held.append(self._receive())
            return self._held[number]
        self._held.clear()
        batch = self._receive()
        self._is_unfinished = batch.number != self._n_whole - 1
        return batch

    def next(self) -> tuple[int, int]:
        """(epoch, number) of the first batch of a pass that begins now."""
        with self._lock:
            loader = self._loader
            if self._held and not self._was_moved():
                return self._held[0].epoch, self._held[0].number
            if loader.position and loader._begun:
                return loader.epoch + 1, 0
            return loader.epoch, loader.position

    # -- the loader --------------------------------------------------------------------------------------------------

    def _receive(self) -> Batch:
        batch = None if self._pass is None else next(self._pass, None)
        if batch is None:
            self._pass = self._loader.iterate(self._advice)
            self._iteration = self._loader._iteration
            batch = next(self._pass, None)
            if batch is None:
                raise ConfigError(
                    f"all epochs of the loader are over, and Keras asks for another batch: make the Loader with more than "
                    f"epochs={self._loader.epoch}, or without epochs"
                )
        return batch

    def _was_moved(self) -> bool:
        """Whether other code has moved the loader since this pass began."""
        return self._iteration != self._loader._iteration

    def _abandon(self) -> None:
        """Abandon the pass."""
        self._pass = None
        self._held.clear()
        self._is_unfinished = False
