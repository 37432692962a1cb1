"""Keras 3: a loader as a `PyDataset`, for `fit`, `evaluate` and `predict`.

Keras asks for batches by number, in an order of its own, and asks for some that it throws away: with TensorFlow two before
the first epoch begins, to learn their shapes; with torch and JAX one, in an epoch that it ends at once. So the number does not
say which batch is given, as the loader has its own order; and what was asked for outside an epoch, or in such a sham one, comes
again when the epoch begins. Each sample reaches the training step once. A number that was asked for before says that
Keras has begun anew, after a pass that it left early: then so does the loader.

The arrays are views of the ring. Keras and TensorFlow read ahead and keep them for as long as they need; the slot is used
again when the last of them is gone (see `ring.lease`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ringload.errors import ConfigError
from ringload.loader import Loader
from ringload.ring.lease import Batch

try:
    import keras
except ImportError as error:
    raise ImportError("ringload.keras needs Keras 3 and a backend: pip install 'ringload[tf]'") from error

SHAM_BATCHES = 1  # an epoch that Keras ends after so few batches was no epoch


class RingDataset(keras.utils.PyDataset):
    """`(x, y)` or `(x, y, sample_weight)` from a loader; made by `dataset`.

    It asks one loader, which runs ahead by itself, so `workers` and `use_multiprocessing` stay at 1 and False.
    """

    def __init__(self, loader: Loader, x: str | Sequence[str], y: str | Sequence[str] | None, weight: str | None) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        self._loader = loader
        self._x, self._y, self._weight = x, y, weight
        self._pass: Iterator[Batch] = iter(())
        self._asked: set[int] = set()  # the numbers that were asked for in this pass, and not to be given again
        self._again: deque[Any] = deque()  # what was given outside an epoch, to be given again inside
        self._given: deque[Any] = deque()  # what was given since the last epoch began, while it may yet be a sham
        self._within_epoch = False
        self._lock = threading.Lock()  # TensorFlow asks from several threads

    def __len__(self) -> int:
        return len(self._loader)

    def __getitem__(self, index: int) -> Any:
        """The next batch; `index` tells no more than where a pass begins."""
        with self._lock:
            item = self._again.popleft() if self._within_epoch and self._again else self._next(index)
            if not self._within_epoch:
                self._again.append(item)
                return item
            self._asked.add(index)
            if len(self._given) <= SHAM_BATCHES:
                self._given.append((index, item) if len(self._given) < SHAM_BATCHES else None)
            return item

    def on_epoch_begin(self) -> None:
        """Keras calls this before each epoch."""
        self._within_epoch = True
        self._given.clear()

    def on_epoch_end(self) -> None:
        """Keras calls this after each epoch, and before the first."""
        if self._within_epoch and len(self._given) <= SHAM_BATCHES < len(self):
            for index, item in reversed(self._given):
                self._again.appendleft(item)
                self._asked.discard(index)
        self._within_epoch = False
        self._given.clear()

    def _next(self, index: int) -> Any:
        batch = None
        if index not in self._asked:
            batch = next(self._pass, None)
        if batch is None:
            self._again.clear()
            self._asked.clear()
            self._pass = iter(self._loader)
            batch = next(self._pass)
        x = _pick(batch, self._x)
        if self._y is None:
            return (x,)
        weights = [batch[name] for name in (self._weight, "valid") if name is not None and name in batch]
        return (x, _pick(batch, self._y), *([np.prod(weights, axis=0, dtype=np.float32)] if weights else []))


def dataset(
    loader: Loader,
    x: str | Sequence[str] = "image",
    y: str | Sequence[str] | None = "label",
    sample_weight: str | None = None,
) -> RingDataset:
    """The loader as Keras takes it: `model.fit(ringload.keras.dataset(loader), epochs=3)`.

    Arguments:
        x, y: the field, or the fields (given as a dict), that are the inputs and the targets; y=None for none.
        sample_weight: the field of sample weights; `weight`, if the source has it. Rows that hold no sample (`valid`) weigh
            nothing.

    Raises:
        ConfigError: there is no such field.
    """
    names = [name for part in (x, y, sample_weight) if part is not None for name in ([part] if isinstance(part, str) else part)]
    if absent := [name for name in names if name not in loader.fields]:
        raise ConfigError(f"the source has no fields {absent}; it has {list(loader.fields)}")
    if sample_weight is None and y is not None and "weight" in loader.fields:
        sample_weight = "weight"
    return RingDataset(loader, x, y, sample_weight)


def _pick(batch: Batch, names: str | Sequence[str]) -> Any:
    return batch[names] if isinstance(names, str) else {name: batch[name] for name in names}
