"""tf.data: parallel map and prefetch, both with AUTOTUNE; rows are gathered a batch at a time.

Tuned as https://www.tensorflow.org/guide/data_performance recommends: shuffle paths, not pixels; map with num_parallel_calls;
vectorise cheap functions; prefetch last. AUTOTUNE chooses the number of threads; `workers` is ignored. Its resize interpolates
2 x 2 pixels, the default; all other peers antialias (ringload, Pillow, torchvision, DALI by default; SPDL by libswscale).
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from bench.peers import Stream
from bench.work import Photos, Rows, Work

SHUFFLED = 1_000_000  # the most paths in the shuffle buffer


def make_dataset(work: Photos | Rows) -> Any:
    """An endless dataset of batches `(payload, index)`."""
    shuffled = min(work.n_samples, SHUFFLED)
    if isinstance(work, Photos):
        size = (work.size, work.size)

        def decode(path: Any, index: Any) -> Any:
            image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
            return tf.cast(tf.image.resize(image, size), tf.uint8), index

        dataset = tf.data.Dataset.from_tensor_slices((work.paths, np.arange(work.n_samples)))
        dataset = dataset.shuffle(shuffled, seed=0).repeat().map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        return dataset.batch(work.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    rows = tf.constant(work.array)
    dataset = tf.data.Dataset.range(work.n_samples).shuffle(shuffled, seed=0).repeat()
    dataset = dataset.batch(work.batch_size, drop_remainder=True)
    gather = lambda index: (tf.gather(rows, index % work.n_rows), index)  # noqa: E731
    return dataset.map(gather, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def open_stream(work: Work, workers: int) -> Stream:
    """Start the stream. It ends with its process."""
    assert not isinstance(work, Photos | Rows) or work.n_samples % work.batch_size == 0
    batches: Iterator[Any] = iter(make_dataset(work))  # type: ignore[arg-type]
    # A view of the EagerTensor as a buffer, as .numpy() would copy.
    return Stream(batches, lambda batch: (np.asarray(memoryview(batch[1])), np.asarray(memoryview(batch[0]))), lambda: None)
