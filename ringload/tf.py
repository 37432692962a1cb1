"""TensorFlow: a loader as a `tf.data.Dataset` whose tensors are views of the ring.

`tf.data.Dataset.from_generator` uses an array at an address that is a multiple of 64 bytes, as all arrays of a slot are,
without copying it, and holds it until the tensor is gone. Then the slot is used again (see `ring.lease`). By default tf.data
reads ahead without a limit, and so holds slots; here it holds at most `prefetch` batches and one more.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from ringload.bridge.field_roles import Names, refuse_unless, roles_of
from ringload.checks import in_our_words, short
from ringload.errors import ConfigError, LoaderClosedError
from ringload.fields import Field
from ringload.loader import Loader
from ringload.order.explicit import NO_END
from ringload.order.position import is_endless

try:
    import tensorflow as tf
except ImportError as error:
    raise ImportError("ringload.tf needs TensorFlow: pip install tensorflow") from error


OF_TENSORS = "Tensors of batches are kept, perhaps by cache(), by shuffle() or in a list: make the Loader with copy=True"


@in_our_words()
def as_dataset(
    loader: Loader,
    x: Names | None = None,
    y: Names | None = None,
    sample_weight: str | None = None,
    *,
    prefetch: int = 1,
) -> tf.data.Dataset:
    """Make a `tf.data.Dataset` of a loader: `for batch in ringload.tf.as_dataset(loader): ...`, or `model.fit(dataset)`.

    Each `for`, and each epoch of `fit`, is the loader's next epoch. An iteration that ends early ends its epoch, as with the
    loader; only one iterates at a time. Shapes are static, except that the batch axis is None with last="keep". A field of
    bytes ('S20') becomes a tf.string, which is copied; other fields are not. The loader's errors are raised as TensorFlow's
    errors, with their class and message in the text. After any error, also a SampleError, the iterator is over
    (FailedPrecondition), and the next `for` is the next epoch.

    A loader that you do not close is closed when it, this dataset and all datasets made of it are collected.

    `repeat()`, `take`, `map`, `batch` and `unbatch` work as usual. `cache` and `shuffle` keep batches: with them, make the
    loader with copy=True.

    Restore the loader's state before you make the dataset: the dataset declares the number of batches of a whole epoch to
    Keras. A dataset that is made within an epoch declares no number. `loader.state_dict()` counts the batches that tf.data has
    read, up to `prefetch` + 1 more than your step has received. To save the step's position, count yourself: after n batches of
    an epoch, save `loader.state_at(epoch, n)`; at its end, `loader.state_at(epoch + 1, 0)`.

    With `tf.distribute`: `strategy.experimental_distribute_dataset(dataset)` divides each batch among the replicas of this
    process (the loader's batch is the global batch); it copies the parts, and drops or repeats no sample. With several
    processes (MultiWorkerMirroredStrategy), each makes a loader with `shard=(rank, world)` and calls
    `strategy.distribute_datasets_from_function(lambda context: ringload.tf.as_dataset(loader))`. tf.data's own sharding is off,
    because each process would load all samples and drop most of them. tf.data service, and TPUStrategy with remote hosts,
    cannot use the dataset, because its workers belong to this process.

    With `prefetch` + 2 slots, or more if you hold tensors, no part waits for a free slot. 3 slots are enough to run, except
    where each of several replicas of this process gets its own batches (`distribute_datasets_from_function`): 2 replicas needed
    4 slots, and raised AllSlotsLentError with 3.

    Arguments:
        x, y, sample_weight: the field, or a list of fields (then a dict), of inputs and of targets, and the field of weights.
            Elements are `(x,)`, `(x, y)` or `(x, y, weight)`, as with `ringload.keras.dataset`. x=None: a dict of all fields.
        prefetch: how many batches tf.data reads ahead.

    Raises:
        ConfigError: a field does not exist, or TensorFlow has no such dtype.
    """
    if not isinstance(prefetch, int) or isinstance(prefetch, bool) or prefetch < 0:
        raise ConfigError(f"prefetch is the number of batches to read ahead, an integer from 0 on, not {short(prefetch)}")
    parts = roles_of(loader, x, y, sample_weight)
    refuse_unless(parts, "TensorFlow", has)
    n_rows = loader.batch_size if loader.order.has_whole_batches else None

    def spec(field: Field) -> tf.TensorSpec:
        return tf.TensorSpec((n_rows, *field.shape), field.dtype)

    is_known = loader.order.n_batches(loader.epoch) < NO_END  # not of a stream without steps
    counted = is_known and (loader.position == 0 or loader._begun)

    kept = weakref.ref(loader)  # TensorFlow keeps every generator until the process ends; it must not keep the loader

    def one_pass() -> Iterator[Any]:
        loader = kept()
        if loader is None:
            raise LoaderClosedError(
                "the loader was collected: while you iterate, keep it, or the dataset that as_dataset returned"
            )
        if counted and loader.position and not loader._begun:
            raise ConfigError(
                f"the loader was set to batch {loader.position} of its epoch after this dataset was made, which declares "
                f"{len(loader)} batches a pass: make the dataset anew, with ringload.tf.as_dataset(loader)"
            )
        return (parts.of(batch) for batch in loader.iterate(OF_TENSORS))

    made = tf.data.Dataset.from_generator(one_pass, output_signature=parts.specs(spec))
    made._ringload_loader = loader  # datasets and iterators made of this one keep the loader alive
    if counted:
        n = tf.data.INFINITE_CARDINALITY if is_endless(loader.order, loader.epoch) else len(loader)
        made = made.apply(tf.data.experimental.assert_cardinality(n))
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return (made.prefetch(prefetch) if prefetch else made).with_options(options)


def has(dtype: Any) -> bool:
    """Whether TensorFlow and tf.data support a dtype. Some dtypes of ml_dtypes have a name in TensorFlow, but no kernels."""
    try:
        known = tf.as_dtype(dtype)
        if dtype.type.__module__ == "ml_dtypes":
            for _ in tf.data.Dataset.from_generator(lambda: (), output_signature=tf.TensorSpec((0,), known)):
                pass
    except (TypeError, tf.errors.UnimplementedError):
        return False
    return True
