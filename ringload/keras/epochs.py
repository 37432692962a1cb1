"""From what Keras asks of a `PyDataset` to passes of the loader. Knows no framework.

The problem. Keras asks for batches by number, in an order of its own (`shuffle=True` permutes the numbers), while the
loader has an order already; so the number does not say which batch is given, and what comes next is given. But Keras
also asks for batches that reach no step, and leaves passes without a word:
    peeks       TensorFlow: two batches before the first epoch, for their shapes
    a dry run   an unbuilt model: an epoch that is ended after its first batch (on TensorFlow, with a distribution strategy,
                after as many as tf.data has read ahead)
    left        steps_per_epoch, a stopped or failed fit: the rest of a pass is never asked for

What Keras does tell, in the order in which it does (versions 3.4 to 3.15 were read, and 3.15 was tried):
    `workers` read          fit, evaluate or predict was given the dataset: `EpochTracker.given`. What was left unfinished
                            is left
    on_epoch_end, first     fit and evaluate: always before the first epoch. What was asked for until then was a peek or a
                            dry run
    num_batches read        within an epoch, before a batch: a pass begins. Directly before the first on_epoch_end: Keras
                            resets, after a dry run
    on_epoch_begin, ..._end around each epoch; tf.data goes on reading between them, if the pass has not ended

Guarantees:
1. What is asked for in epochs are the loader's batches in the loader's order, each once; those of peeks and dry runs come
   again.
2. A pass that was left is not mixed with the next one: that begins the next epoch of the loader.
3. No more than two batches are held, and only until the first epoch. A dry run that was given more is undone by sending the
   loader back to where it was, which costs what was filled ahead.
4. Who asks for a pass that was left gets an error, and no batch. After a fit that failed, its traceback may keep its tf.data
   iterator alive, whose thread goes on reading ahead while another fit has begun (seen). Each fit has an adapter object of its
   own, `self` in the frame that reads `workers`; were it called otherwise, this guarantee would be lost, and no other.
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

N_HELD = 2  # batches that TensorFlow peeks at; as many as JAX takes in a dry run on an accelerator


class EpochTracker:
    """Which batch comes next, by what Keras has asked and told so far. Threads: TensorFlow asks from several."""

    def __init__(self, loader: Loader, repeat: bool, advice: str) -> None:
        self._loader, self.repeat, self._advice = loader, repeat, advice
        self._lock = new_rlock()
        self._pass: Iterator[Batch] | None = None
        self._iteration = -1  # of the loader, when `_pass` began: another one means that somebody else has moved it
        self._held: deque[Batch] = deque()  # received, and to be given before others
        self._left_open = False  # a pass has given batches that count, and has others
        self._within_epoch = False
        self._n_ended = 0  # epochs that ended since the dataset was given to Keras, the first being none
        self._n_given = 0  # in this epoch
        self._may_be_dry_run: list[Batch] = []  # the first of them, while the epoch may yet be a dry run
        self._first: tuple[int, int] | None = None  # (epoch, number) of the first of them
        self._pass_begins = False  # with the next batch that is asked for
        self._is_undone = False  # a dry run was, and the first epoch has not begun
        self.origin: tuple[int, int] | None = None  # (epoch, number) of the first batch for a step, since it was given
        self._askers: weakref.WeakSet[Any] = weakref.WeakSet()  # all that it was given to
        self._asker: Callable[[], Any] = lambda: None  # a weak reference to the last of them

    # -- what Keras tells ---------------------------------------------------------------------------------------------

    def given(self, asker: Any) -> None:
        """The dataset was given to another fit, evaluate or predict, which asks through `asker`."""
        with self._lock:
            if asker is not None:
                self._askers.add(asker)
                self._asker = weakref.ref(asker)
            self._within_epoch = False
            self._n_ended = 0
            self._forget_epoch()
            self.origin = None
            if self._left_open or self._is_elsewhere():
                self._fail()

    def n_batches(self) -> int | None:
        """What Keras takes as the number of batches of a pass: fewer in the rest of one that the loader was sent to."""
        with self._lock:
            n_whole = len(self._loader)
            if self._within_epoch:
                self._pass_begins = True
                if self._n_given == 0 and not self.repeat:
                    return n_whole - self.next()[1]
            return None if self.repeat else n_whole

    def begin_epoch(self) -> None:
        """An epoch begins, or a dry run."""
        with self._lock:
            self._within_epoch = True
            self._is_undone = False
            self._forget_epoch()

    def end_epoch(self) -> None:
        """An epoch ended, or Keras resets."""
        with self._lock:
            is_reset = self._n_ended == 0 and self._pass_begins and self._n_given > 0
            self._is_undone = is_reset
            if is_reset and self._n_given <= N_HELD:
                self._held.extendleft(reversed(self._may_be_dry_run))
                self._left_open = False
            elif is_reset and self._n_given < len(self._loader) and self._first is not None:
                epoch, number = self._first
                self._loader.load_state_dict(self._loader.state_dict() | {"epoch": epoch, "position": number})
                self._fail()
            self._within_epoch = False
            self._n_ended += 1
            self._forget_epoch()

    def _forget_epoch(self) -> None:
        self._n_given = 0
        self._may_be_dry_run = []
        self._first = None
        self._pass_begins = False

    # -- what Keras asks ----------------------------------------------------------------------------------------------

    def batch(self, number: int, asker: Any) -> Batch:
        """The batch that comes next; `number` matters before the first epoch alone."""
        with self._lock:
            if asker is not None and (self._is_undone or (asker in self._askers and asker is not self._asker())):
                raise RuntimeError(
                    "this pass was left: Keras has begun another one since. Validation needs a dataset of its own: "
                    "ringload.keras.dataset(...) of a loader of its own"
                )
            if self._n_ended == 0 and not self._within_epoch:
                return self._peeked(number)
            if (self._pass_begins and self._left_open) or ((self._pass_begins or asker is None) and self._is_elsewhere()):
                self._fail()
            self._pass_begins = False
            self._n_given += 1
            is_first = self._n_ended == 0
            if self._n_given > N_HELD:
                self._may_be_dry_run = []  # before the next is waited for: its slot may be needed
            batch = self._held.popleft() if self._held else self._receive()
            self._left_open = batch.number != len(self._loader) - 1
            if is_first:
                self._first = self._first or (batch.epoch, batch.number)
                if self._n_given <= N_HELD:
                    self._may_be_dry_run.append(batch)
            elif self.origin is None:
                self.origin = (batch.epoch, batch.number)
            return batch

    def _peeked(self, number: int) -> Batch:
        """Before the first epoch. Who asks for more than the first two takes them by hand."""
        if self._is_elsewhere() or (number == 0 and self._left_open):
            self._fail()
        if number < N_HELD and number <= len(self._held) and not self._left_open:
            if number == len(self._held):
                self._held.append(self._receive())
            return self._held[number]
        self._held.clear()
        batch = self._receive()
        self._left_open = batch.number != len(self._loader) - 1
        return batch

    def next(self) -> tuple[int, int]:
        """(epoch, number) of the batch that a pass would begin with now."""
        with self._lock:
            loader = self._loader
            if self._held and not self._is_elsewhere():
                return self._held[0].epoch, self._held[0].number
            if loader.position and loader._begun:
                return loader.epoch + 1, 0
            return loader.epoch, loader.position

    # -- the loader ---------------------------------------------------------------------------------------------------

    def _receive(self) -> Batch:
        batch = None if self._pass is None else next(self._pass, None)
        if batch is None:
            self._pass = self._loader.iterate(self._advice)
            self._iteration = self._loader._iteration
            batch = next(self._pass, None)
            if batch is None:
                raise ConfigError(
                    f"all epochs of the loader are over, and another batch is asked for: make it with more than "
                    f"epochs={self._loader.epoch}, or without"
                )
        return batch

    def _is_elsewhere(self) -> bool:
        """Whether somebody else has moved the loader since a pass was begun here."""
        return self._iteration != self._loader._iteration

    def _fail(self) -> None:
        """The rest of a pass is of no more use."""
        self._pass = None
        self._held.clear()
        self._left_open = False
