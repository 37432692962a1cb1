"""TensorFlow: a loader as a `tf.data.Dataset` whose tensors look into the ring.

`tf.data.Dataset.from_generator` takes an array that lies at a multiple of 64 bytes, as all of a slot do, without copying it,
and holds it until the tensor is gone; the slot is used again then (see `ring.lease`). tf.data would read ahead as far as it
likes, and so hold slots; here it reads `prefetch` batches ahead and one that it has in hand.
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

try:
    import tensorflow as tf
except ImportError as error:
    raise ImportError("ringload.tf needs TensorFlow: pip install tensorflow") from error


OF_TENSORS = "Tensors of batches are kept, by cache(), by shuffle() or in a list perhaps: make the loader with copy=True"


@in_our_words()
def as_dataset(
    loader: Loader,
    x: Names | None = None,
    y: Names | None = None,
    sample_weight: str | None = None,
    *,
    prefetch: int = 1,
) -> tf.data.Dataset:
    """The loader as a `tf.data.Dataset`: `for batch in ringload.tf.as_dataset(loader): ...`, or `model.fit` of it.

    Each `for`, and each epoch of `fit`, is the loader's next epoch. One that is left early is over, as with the loader; only
    one may iterate at a time. Shapes are exact; the batch axis is None with last="keep" alone. A field of bytes ('S20') is a
    tf.string, which is copied, as nothing else is. The loader's errors come as TensorFlow's, their name and message in it;
    after one, a SampleError too, that iterator is over (FailedPrecondition), and the next `for` is the next epoch.

    A loader that is not closed is closed when nobody has it, this dataset, or one made of it, any more.

    `repeat()`, `take`, `map`, `batch` and `unbatch` work as usual. `cache` and `shuffle` keep batches: make the loader with
    copy=True for them.

    Restore the loader's state before the dataset is made: it tells Keras how many batches a pass has, which the rest of an
    epoch has not; a dataset that is made in the middle of an epoch tells it nothing. What `loader.state_dict()` counts as
    received is what tf.data has read, up to `prefetch` + 1 batches more than your step was given. To save where the step is,
    count: after n batches of an epoch, `loader.state_dict() | {"epoch": epoch, "position": n}`; at its end, epoch + 1 and 0.

    With `tf.distribute`: `strategy.experimental_distribute_dataset(dataset)` divides each batch among the replicas of this
    process (the loader's batch is the global batch), copying the parts, and nothing is dropped or repeated. Where there are
    several processes (MultiWorkerMirroredStrategy), each makes a loader with `shard=(rank, world)` and gives
    `strategy.distribute_datasets_from_function(lambda context: ringload.tf.as_dataset(loader))`; tf.data's own sharding
    is off, because it would have each of them load everything and throw most of it away. tf.data's service, and a
    TPUStrategy with remote hosts, cannot use it: the workers are this process's.

    Slots: `prefetch` + 2, or more if you hold tensors, keep all busy. With fewer it waits more and is as right; 3 are enough,
    but not where each of several replicas of this process is given a batch of its own (`distribute_datasets_from_function`): 2
    replicas needed 4, and got AllSlotsLentError with 3.

    Arguments:
        x, y, sample_weight: the field or fields (as a dict) of inputs and targets, and the field of weights: elements are
            `(x,)`, `(x, y)` or `(x, y, weight)`, as `ringload.keras.dataset` has them. x=None: a dict of all fields.
        prefetch: how many batches tf.data reads ahead.

    Raises:
        ConfigError: there is no such field, or TensorFlow has no such dtype.
    """
    if not isinstance(prefetch, int) or isinstance(prefetch, bool) or prefetch < 0:
        raise ConfigError(f"prefetch is how many batches are read ahead, from 0 on, not {short(prefetch)}")
    parts = roles_of(loader, x, y, sample_weight)
    refuse_unless(parts, "TensorFlow", has)
    n_rows = None if loader.order.last == "keep" else loader.batch_size

    def spec(field: Field) -> tf.TensorSpec:
        return tf.TensorSpec((n_rows, *field.shape), field.dtype)

    counted = loader.position == 0 or loader._begun

    kept = weakref.ref(loader)  # TensorFlow never lets go of a generator, and with it of the loader and its workers

    def one_pass() -> Iterator[Any]:
        loader = kept()
        if loader is None:
            raise LoaderClosedError(
                "the loader was collected, since nobody has it, or the dataset that as_dataset made of it, any more"
            )
        if counted and loader.position and not loader._begun:
            raise ConfigError(
                f"the loader was sent to batch {loader.position} of its epoch after this dataset was made, which says that a "
                f"pass has {len(loader)}: make the dataset anew, with ringload.tf.as_dataset(loader)"
            )
        return (parts.of(batch) for batch in loader.iterate(OF_TENSORS))

    made = tf.data.Dataset.from_generator(one_pass, output_signature=parts.specs(spec))
    made._ringload_loader = loader  # datasets and iterators that are made of this one keep it
    if counted:
        made = made.apply(tf.data.experimental.assert_cardinality(len(loader)))
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return (made.prefetch(prefetch) if prefetch else made).with_options(options)


def has(dtype: Any) -> bool:
    """Whether TensorFlow has a dtype, and tf.data takes it: a dtype of ml_dtypes may have a name there and no more."""
    try:
        known = tf.as_dtype(dtype)
        if dtype.type.__module__ == "ml_dtypes":
            for _ in tf.data.Dataset.from_generator(lambda: (), output_signature=tf.TensorSpec((0,), known)):
                pass
    except (TypeError, tf.errors.UnimplementedError):
        return False
    return True
