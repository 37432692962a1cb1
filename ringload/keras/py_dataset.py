"""Keras 3: a loader as a `PyDataset`, for `fit`, `evaluate` and `predict`, on TensorFlow, torch and JAX.

Keras gets views of the ring in the form that its backend takes without copying: NumPy arrays for TensorFlow, `torch.from_numpy`
of them for torch, `jax.device_put` of them for JAX on a CPU. Keras and its backends read ahead and keep the views as long as
they need them. A slot is used again when the last view of it is gone (see `ring.lease`). `epochs` decides which batch is given.
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
from ringload.order.position import is_endless
from ringload.packing.tensors import looks_into
from ringload.ring.lease import Batch

OF_ARRAYS = (
    "Inputs or targets of batches are kept, perhaps by outputs of predict() that are views of them: keep copies "
    "(numpy.array(x)), or make the loader with copy=True"
)
ONE = "the Loader has its own workers, and gives batches in order: leave workers=1 and use_multiprocessing=False"


class _AdapterView:
    """The dataset as one adapter of Keras sees it: a proxy with a weak reference.

    TensorFlow keeps every generator that it was given, and with it Keras' adapter, until the process ends. If the adapter kept
    the dataset, the loader, its workers and its ring would also stay until then. While `fit`, `evaluate` or `predict` runs, its
    argument keeps the dataset alive.
    """

    workers, use_multiprocessing = 1, False

    def __init__(self, data: RingDataset, adapter: Any) -> None:
        self._data, self._adapter = weakref.ref(data), weakref.ref(adapter)

    def _dataset(self) -> RingDataset:
        data = self._data()
        if data is None:
            raise RuntimeError(
                "the ringload.keras.dataset that this iterator reads was collected: keep a reference to it while you iterate"
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
    """Batches of a loader in the form that Keras takes; made by `dataset`.

    `for x, y in data` makes one pass without Keras. Attributes: `loader`.
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
        """The next batch; `index` is ignored."""
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
        """For Keras, which reads it when a pass begins. Use `len` instead."""
        return self._passes.n_batches()

    @property
    def workers(self) -> int:
        """1. Keras reads it when it is given the dataset."""
        adapter = _calling_adapter()
        self._passes.given(adapter)
        if getattr(adapter, "py_dataset", None) is self:
            adapter.py_dataset = _AdapterView(self, adapter)
        if getattr(adapter, "shuffle", None) is False and not self._has_warned:
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
        """Keras passes shuffle=False to the adapter for `evaluate`, `predict` and validation, but also for
        `fit(shuffle=False)`."""
        order = self.loader.order
        n_left_out, n_padded = max(0, order.n_left()), max(0, -order.n_left())
        does = ["shuffles (shuffle=True)"] if order.shuffle else []
        does += [f"leaves {n_left_out} of {order.n_samples} samples out of each pass (last='drop')"] if n_left_out else []
        does += [f"adds {n_padded} rows of zeros to each pass (last='pad')"] if n_padded else []
        if not does:
            return
        self._has_warned = True
        warn(
            f"evaluate(), predict() and validation are for every sample, in the order of the source, but this loader "
            f"{' and '.join(does)}. Give them the dataset of another Loader, with shuffle=False and last='keep'. "
            "(If you called fit(shuffle=False), ignore this warning: Keras does not show a dataset which call it is used by.)",
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
    """Make a dataset for Keras of a loader: `model.fit(ringload.keras.dataset(loader), epochs=3)`.

    Each epoch of Keras is the next epoch of the loader, each sample in it once; the loader decides `shuffle`, `seed` and
    `last`. If a fit ends within a pass (steps_per_epoch, early stopping), the rest of the pass is dropped, and the next fit
    begins the loader's next epoch. If `load_state_dict` has set the loader within an epoch, Keras' first epoch is the rest of
    that one; Keras then warns that it "ran out of data", and goes on.

    Keras passes no epoch number to a dataset. A new loader begins with its epoch 0, also with `initial_epoch=3`. If the
    loader's epochs shall be those of Keras, call `loader.set_epoch(3)` first, or use `Checkpoint`, which does so.

    For `predict` and `evaluate`, make a loader with shuffle=False and last="keep": it gives every row, in the source's order.
    The default loader shuffles, and drops samples that do not fill a batch; a UserWarning says so once. Validation within a fit
    needs its own loader and dataset. (Keras passes only shuffle=False for these calls, so that `fit(shuffle=False)` is warned,
    too. `tf.data` passes nothing, so that evaluate(ringload.tf.as_dataset(loader)) is not warned.)

    A loader that you do not close is closed when it is collected: neither the model nor TensorFlow keeps the dataset.

    A ring of 3 slots, the minimum, is enough on each backend; TensorFlow reads ahead into all free slots. With a strategy of
    tf.distribute it needs more: with 2 replicas, tf.data held all 4 slots of a ring, and no step got a batch. 64 slots were
    enough.

    On TensorFlow, the interpreter may hang when it ends after a fit that raised: it waits for TensorFlow's thread that reads
    ahead, which Python has stopped inside the dataset. Keras' own PyDataset hangs in the same way (Keras 3.15, TensorFlow 2.21,
    Python 3.11). `os._exit` ends the process, and its workers.

    Rows that hold no sample (last="pad" or on_error="skip"; `valid` is False) have the sample weight 0. So the model does not
    learn from them, and `compile(weighted_metrics=...)` leaves them out. But Keras counts them in `metrics=`, divides the loss
    by the number of all rows, predicts them, and refuses `class_weight` together with sample weights ("cannot specify both").
    To have no such rows, use last="keep" and on_error="replace".

    Arguments:
        x, y: the field that is the input or the target; for several fields, a list of names: Keras gets a dict. y=None: no
            targets.
        sample_weight: the field of sample weights, which may be class weights. Default: the field `weight`, if the source has
            it. Multiplied by `valid`, if the loader has that field.
        repeat: passes follow each other without an end, also within an epoch of Keras. For a `steps_per_epoch` that does not
            divide a pass, or is longer than one. Without it, Keras' epoch ends where a pass ends. True for an order without an
            end, `ringload.mix(..., stop="never")`.

    Raises:
        ConfigError: a field does not exist, or Keras has no such dtype on its backend (strings and times; uint64 on torch).
            While iterating, on JAX without `jax_enable_x64`: an integer does not fit 32 bits.
    """
    parts = roles_of(loader, x, y, sample_weight)
    backend = keras.backend.backend()
    refuse_unless(parts, f"Keras on {backend}", lambda dtype: _has(backend, dtype))
    return RingDataset(loader, parts, repeat or is_endless(loader.order, loader.epoch))


def _calling_adapter() -> Any:
    """The adapter of Keras that called the caller of this function; None if there is none."""
    adapter = sys._getframe(2).f_locals.get("self")
    return adapter if type(adapter).__module__.startswith("keras.") else None


def _has(backend: str, dtype: np.dtype[Any]) -> bool:
    """Whether Keras and its backend support a dtype."""
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
    """A function that converts a field's array to a dtype of the backend. JAX itself would wrap integers that do not fit 32
    bits."""
    if backend == "jax":
        from ringload.jax import narrowed

        return narrowed
    return as_it_is


def _leaf_of(backend: str) -> Callable[[np.ndarray], Any]:
    """A function that wraps an array for the backend without copying it."""
    if backend == "torch":
        return lambda array: looks_into(array.dtype)(array)  # type: ignore[misc]  # `_has` has refused what gives None
    if backend == "jax":
        import jax

        if jax.default_backend() == "cpu":  # elsewhere Keras itself sends the array to the device
            put: Callable[[np.ndarray], Any] = jax.device_put
            return put
    return lambda array: array
