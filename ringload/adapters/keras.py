"""Keras 3: a loader as a `PyDataset`, for `fit`, `evaluate` and `predict`, on TensorFlow, torch and JAX.

What is given are views of the ring, as the backend takes them without copying: NumPy arrays for TensorFlow, `torch.from_numpy`
of them, `jax.device_put` of them on a CPU. Keras and its backends read ahead and keep them for as long as they need; the slot
is used again when the last of them is gone (see `ring.lease`). Which batch is given when is `adapters.passes`' business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ringload.adapters.parts import Names, Parts, parts_of, refuse_unless
from ringload.adapters.passes import Passes
from ringload.errors import ConfigError
from ringload.loader import Loader

try:
    import keras
except ImportError as error:
    raise ImportError("ringload.keras needs Keras 3 and a backend: pip install 'ringload[tf]'") from error

ONE = "the loader has producers of its own, and its batches are in order: workers stays at 1, use_multiprocessing at False"


class RingDataset(keras.utils.PyDataset):
    """Batches of a loader as Keras takes them; made by `dataset`.

    `for x, y in data` is one pass, by hand. Attributes: `loader`.
    """

    def __init__(self, loader: Loader, parts: Parts, repeat: bool) -> None:
        super().__init__()
        self.loader = loader
        self._parts = parts
        self._passes = Passes(loader, repeat)
        self._leaf = _leaf_of(keras.backend.backend())

    def __len__(self) -> int:
        """Batches a pass."""
        return len(self.loader)

    def __getitem__(self, index: int) -> Any:
        """The next batch, whatever `index` is."""
        return self._parts.of(self._passes.batch(index, _asker()), self._leaf)

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        return (self._parts.of(batch, self._leaf) for batch in self.loader)

    @property
    def num_batches(self) -> int | None:
        """For Keras, which asks when a pass begins; `len` is for everybody."""
        return self._passes.n_batches()

    @property
    def workers(self) -> int:
        """1. For Keras, which asks when it is given the dataset."""
        self._passes.given(_asker())
        return 1

    @workers.setter
    def workers(self, value: int) -> None:
        if value not in (0, 1):
            raise ConfigError(f"workers={value!r}: {ONE}. More producers: ringload.Loader(..., workers={value!r})")

    @property
    def use_multiprocessing(self) -> bool:
        """False."""
        return False

    @use_multiprocessing.setter
    def use_multiprocessing(self, value: bool) -> None:
        if value:
            raise ConfigError(f"use_multiprocessing={value!r}: {ONE}")

    def on_epoch_begin(self) -> None:
        """Keras calls this before each epoch."""
        self._passes.begin_epoch()

    def on_epoch_end(self) -> None:
        """Keras calls this after each epoch, and before the first."""
        self._passes.end_epoch()


def dataset(
    loader: Loader,
    x: Names = "image",
    y: Names | None = "label",
    sample_weight: str | None = None,
    *,
    repeat: bool = False,
) -> RingDataset:
    """The loader as Keras takes it: `model.fit(ringload.keras.dataset(loader), epochs=3)`.

    Each epoch of Keras is the loader's next one, each sample in it once; `shuffle`, `seed` and `last` are the loader's. A
    fit that ends within a pass (steps_per_epoch, a stop) leaves it: the next fit begins the loader's next epoch. Where the
    loader was sent into the middle of an epoch (`load_state_dict`), the first epoch is the rest of that one, and Keras warns
    that it "ran out of data": it goes on nevertheless.

    Keras tells a dataset no epoch number. A fresh loader begins with its epoch 0, also with `initial_epoch=3`; for the
    loader's epochs to be those of Keras, call `loader.set_epoch(3)` before, or use `Checkpoint`, which does it.

    For `predict` and `evaluate`: a loader with shuffle=False, last="keep", which gives every row, in the source's order; the
    default one leaves out what does not fill a batch, and shuffles. Validation within a fit needs a loader and a dataset of
    its own.

    A ring of 3 slots, the least there is, is enough on each backend; TensorFlow reads ahead as many as are free. Not so under
    a strategy of tf.distribute's: with 2 replicas, all of a ring of 4 was lent to tf.data, and no step got a batch; 64 will do.

    On TensorFlow an interpreter that ends after a fit that raised may hang: TensorFlow's thread that reads ahead is within the
    dataset, and is waited for though Python has stopped it; so it is with Keras' own PyDataset (Keras 3.15, TensorFlow 2.21,
    Python 3.11). `os._exit` ends it, and the producers with it.

    Rows that hold no sample (the loader's `valid`: last="pad", on_error="skip") have the sample weight 0. So they teach
    nothing, and `compile(weighted_metrics=...)` leaves them out. But Keras counts them in `metrics=`, divides the loss by the
    number of all rows, predicts them, and takes no `class_weight` beside sample weights ("cannot specify both"). Where they
    are in the way: last="keep", and on_error="replace".

    Arguments:
        x, y: the field, or the fields (given as a dict), that are the inputs and the targets; y=None for none.
        sample_weight: the field of sample weights, and so of class weights; `weight`, if the source has it. Times
            `valid`, where the loader has that.
        repeat: passes follow each other without an end, also within an epoch of Keras: for a `steps_per_epoch` that does not
            divide a pass, or is longer than one. Without it, Keras cuts the epoch in which a pass ends.

    Raises:
        ConfigError: there is no such field, or Keras cannot take its dtype.
    """
    parts = parts_of(loader, x, y, sample_weight)
    refuse_unless(parts, "Keras", lambda dtype: dtype.kind in "biufc")
    return RingDataset(loader, parts, repeat)


def _asker() -> Any:
    """The adapter of Keras's that called the method which calls this."""
    asker = sys._getframe(2).f_locals.get("self")
    return asker if type(asker).__module__.startswith("keras.") else None


def _leaf_of(backend: str) -> Callable[[np.ndarray], Any]:
    """How an array becomes what the backend takes without copying it."""
    if backend == "torch":
        import torch

        leaf: Callable[[np.ndarray], Any] = torch.from_numpy
        return leaf
    if backend == "jax":
        import jax

        if jax.default_backend() == "cpu":  # elsewhere Keras itself sends the array to the device
            return lambda array: jax.device_put(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array
    return lambda array: array
