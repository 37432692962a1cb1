"""Keras 3: a loader as a `PyDataset`, for `fit`, `evaluate` and `predict`, on TensorFlow, torch and JAX.

What is given are views of the ring, as the backend takes them without copying: NumPy arrays for TensorFlow, `torch.from_numpy`
of them, `jax.device_put` of them on a CPU. Keras and its backends read ahead and keep them for as long as they need; the slot
is used again when the last of them is gone (see `ring.lease`). Which batch is given when is `epochs`' business.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ringload.bridge.field_roles import FieldRoles, Names, as_it_is, refuse_unless, roles_of
from ringload.checks import fixed_once_made, in_our_words, short, warn
from ringload.errors import ConfigError
from ringload.keras.epochs import EpochTracker
from ringload.loader import Loader
from ringload.packing.tensors import looks_into
from ringload.ring.lease import Batch

OF_ARRAYS = (
    "Inputs or targets of batches are kept, by outputs of predict() that look into them perhaps: keep copies (numpy.array(x)), "
    "or make the loader with copy=True"
)
ONE = "the loader has workers of its own, and its batches are in order: workers stays at 1, use_multiprocessing at False"


class _Face:
    """A dataset as one adapter of Keras's asks it, in place of the dataset itself.

    It does not keep the dataset. TensorFlow never lets go of a generator that it was given, and so of the adapter: the loader,
    its workers and its ring would stay until the process ends. While `fit`, `evaluate` or `predict` runs, its argument keeps
    the dataset.
    """

    workers, use_multiprocessing = 1, False

    def __init__(self, data: RingDataset, adapter: Any) -> None:
        self._data, self._adapter = weakref.ref(data), weakref.ref(adapter)

    def _dataset(self) -> RingDataset:
        data = self._data()
        if data is None:
            raise RuntimeError(
                "nobody has the ringload.keras.dataset any more that this iterator reads: keep it while you iterate"
            )
        return data

    def __getitem__(self, index: int) -> Any:
        return self._dataset()._batch(index, self._adapter())

    @property
    def num_batches(self) -> int | None:
        return self._dataset().num_batches

    def on_epoch_begin(self) -> None:
        self._dataset().on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._dataset().on_epoch_end()


class RingDataset(keras.utils.PyDataset):
    """Batches of a loader as Keras takes them; made by `dataset`.

    `for x, y in data` is one pass, by hand. Attributes: `loader`.
    """

    def __init__(self, loader: Loader, parts: FieldRoles, repeat: bool) -> None:
        super().__init__()
        self.loader = loader
        self._parts = parts
        self._passes = EpochTracker(loader, repeat, OF_ARRAYS)
        self._leaf, self._fit = _leaf_of(keras.backend.backend()), _fit_of(keras.backend.backend())
        self._has_warned = False
        self._fixed = ("loader",)

    if not TYPE_CHECKING:
        __setattr__ = fixed_once_made

    def __repr__(self) -> str:
        return f"<ringload.keras.dataset of {self.loader!r}>"

    def __len__(self) -> int:
        """Batches a pass."""
        return len(self.loader)

    def __getitem__(self, index: int) -> Any:
        """The next batch, whatever `index` is."""
        return self._batch(index, None)

    def _batch(self, index: int, adapter: Any) -> Any:
        return self._made(self._passes.batch(index, adapter))

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        return map(self._made, self.loader.iterate(OF_ARRAYS))

    def _made(self, batch: Batch) -> Any:
        return self._parts.of(batch, self._leaf, self._fit)

    @property
    def num_batches(self) -> int | None:
        """For Keras, which asks when a pass begins; `len` is for everybody."""
        return self._passes.n_batches()

    @property
    def workers(self) -> int:
        """1. For Keras, which asks when it is given the dataset."""
        asker = _asker()
        self._passes.given(asker)
        if getattr(asker, "py_dataset", None) is self:
            asker.py_dataset = _Face(self, asker)
        if getattr(asker, "shuffle", None) is False and not self._has_warned:
            self._warn_if_not_every_sample_in_order()
        return 1

    @workers.setter
    def workers(self, value: int) -> None:
        if value not in (0, 1):
            raise ConfigError(f"workers={short(value)}: {ONE}. More workers: ringload.Loader(..., workers={short(value)})")

    @property
    def use_multiprocessing(self) -> bool:
        """False."""
        return False

    @use_multiprocessing.setter
    def use_multiprocessing(self, value: bool) -> None:
        if value:
            raise ConfigError(f"use_multiprocessing={short(value)}: {ONE}")

    def _warn_if_not_every_sample_in_order(self) -> None:
        """Keras tells a dataset that nothing is shuffled, not that this is `evaluate`, `predict`, validation or `fit`."""
        order = self.loader.order
        n_left_out = order.n_samples - order.n_batches() * order.batch_size * order.world if order.last == "drop" else 0
        does = ["shuffles (shuffle=True)"] if order.shuffle else []
        does += [f"leaves {n_left_out} of {order.n_samples} samples out of each pass (last='drop')"] if n_left_out else []
        n_padded = order.n_batches() * order.batch_size * order.world - order.n_samples if order.last == "pad" else 0
        does += [f"adds {n_padded} rows of zeros to each pass (last='pad')"] if n_padded else []
        if not does:
            return
        self._has_warned = True
        warn(
            f"evaluate(), predict() and validation are for every sample, in the order of the source, but this loader "
            f"{' and '.join(does)}. Give them the dataset of another Loader, with shuffle=False and last='keep'. "
            "(Keras does not tell them from fit(shuffle=False), where the loader's order counts, too, and nothing is wrong.)",
        )

    def on_epoch_begin(self) -> None:
        """Keras calls this before each epoch."""
        self._passes.begin_epoch()

    def on_epoch_end(self) -> None:
        """Keras calls this after each epoch, and before the first."""
        self._passes.end_epoch()


@in_our_words()
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
    default one leaves out what does not fill a batch, and shuffles, of which a UserWarning tells once. Validation within a fit
    needs a loader and a dataset of its own. (Keras tells a dataset no more than shuffle=False of these calls, so that
    `fit(shuffle=False)` is warned, too. `tf.data` tells nothing: evaluate(ringload.tf.as_dataset(loader)) is not warned.)

    A loader that is not closed is closed when nobody has it any more: neither the model nor TensorFlow keeps the dataset.

    A ring of 3 slots, the least there is, is enough on each backend; TensorFlow reads ahead as many as are free. Not so under
    a strategy of tf.distribute's: with 2 replicas, all of a ring of 4 was lent to tf.data, and no step got a batch; 64 will do.

    On TensorFlow an interpreter that ends after a fit that raised may hang: TensorFlow's thread that reads ahead is within the
    dataset, and is waited for though Python has stopped it; so it is with Keras' own PyDataset (Keras 3.15, TensorFlow 2.21,
    Python 3.11). `os._exit` ends it, and the workers with it.

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
        ConfigError: there is no such field, or Keras has no such dtype on its backend (strings and times; uint64 on torch). On
            JAX without `jax_enable_x64`, while iterating: an integer does not fit 32 bits.
    """
    parts = roles_of(loader, x, y, sample_weight)
    backend = keras.backend.backend()
    refuse_unless(parts, f"Keras on {backend}", lambda dtype: _has(backend, dtype))
    return RingDataset(loader, parts, repeat)


def _asker() -> Any:
    """The adapter of Keras's that called the method which calls this."""
    asker = sys._getframe(2).f_locals.get("self")
    return asker if type(asker).__module__.startswith("keras.") else None


def _has(backend: str, dtype: np.dtype[Any]) -> bool:
    """Whether Keras has a dtype, and its backend takes it."""
    try:
        keras.backend.standardize_dtype(dtype)
        if backend == "torch":
            keras.ops.zeros(0, dtype.name)
            return looks_into(dtype) is not None
    except (ValueError, KeyError):
        return False
    if backend == "jax":
        from ringload.jax import has as jax_has

        return jax_has(dtype)
    if backend == "tensorflow":
        from ringload.tf import has as tf_has

        return tf_has(dtype)
    return True


def _fit_of(backend: str) -> Callable[[str, np.ndarray], np.ndarray]:
    """What makes a field's array one of a dtype that the backend has now; JAX would wrap integers that do not fit 32 bits."""
    if backend == "jax":
        from ringload.jax import narrowed

        return narrowed
    return as_it_is


def _leaf_of(backend: str) -> Callable[[np.ndarray], Any]:
    """How an array becomes what the backend takes without copying it."""
    if backend == "torch":
        return lambda array: looks_into(array.dtype)(array)  # type: ignore[misc]  # `_has` has refused what gives None
    if backend == "jax":
        import jax

        if jax.default_backend() == "cpu":  # elsewhere Keras itself sends the array to the device
            put: Callable[[np.ndarray], Any] = jax.device_put
            return put
    return lambda array: array
