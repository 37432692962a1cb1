"""tf.data: parallel map and prefetch, both with AUTOTUNE; rows are gathered a batch at a time.

Tuned as https://www.tensorflow.org/guide/data_performance recommends: shuffle paths, not pixels; map with num_parallel_calls;
vectorise cheap functions; prefetch last. AUTOTUNE chooses the number of threads; `workers` is ignored. Its resize interpolates
2 x 2 pixels, the default; ringload, Pillow, torchvision, DALI by default and SPDL by libswscale antialias.

For the recipe, only the random part is decoded, as https://www.tensorflow.org/api_docs/python/tf/io/decode_and_crop_jpeg and
https://www.tensorflow.org/api_docs/python/tf/image/sample_distorted_bounding_box describe. Its libjpeg has the fastest options,
for it and for photographs of 12 megapixels, which libjpeg scales by 1/8.

TensorFlow does not read http: URLs are read by urllib3 in a `numpy_function`, called by as many threads as torch has.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf
import urllib3

from bench.peers import Stream
from bench.work import AREA, RATIO, Photos, Rows, Work

SHUFFLED = 1_000_000  # the most paths in the shuffle buffer
N_DOWNLOADS = 128  # at once
TRIES = 10  # of a random part, as in torchvision's RandomResizedCrop
FASTEST = {"fancy_upscaling": False, "dct_method": "INTEGER_FAST"}


def random_part(content: Any) -> Any:
    """Decode a random part of a JPEG file."""
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(content),
        tf.zeros((1, 0, 4)),  # no objects that the part must show
        min_object_covered=0.0,
        aspect_ratio_range=RATIO,
        area_range=AREA,
        max_attempts=TRIES,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], 0)  # top, left, height, width
    return tf.io.decode_and_crop_jpeg(content, window, channels=3, **FASTEST)


DECODED: dict[str, Any] = {  # content of a file -> (h, w, 3) uint8
    "photos": lambda content: tf.io.decode_jpeg(content, channels=3),
    "recipe": random_part,
    "12mp": lambda content: tf.io.decode_jpeg(content, channels=3, ratio=8, **FASTEST),
    "png": lambda content: tf.io.decode_png(content, channels=3),
    "remote": lambda content: tf.io.decode_jpeg(content, channels=3),
    "webp": lambda content: tf.io.decode_webp(content, channels=3)[0],  # the first frame
}


@cache
def pool() -> urllib3.PoolManager:
    """The connections of this process."""
    return urllib3.PoolManager(maxsize=N_DOWNLOADS)


def downloaded(url: bytes) -> bytes:
    """The content of a URL."""
    answer = pool().request("GET", url.decode())
    if answer.status != 200:
        raise OSError(f"{url.decode()}: status {answer.status}")
    return answer.data


def make_dataset(work: Photos | Rows) -> Any:
    """An endless dataset of batches `(payload, index)`."""
    shuffled = min(work.n_samples, SHUFFLED)
    if isinstance(work, Photos):
        size, decoded = (work.size, work.size), DECODED[work.kind]

        def decode(content: Any, index: Any) -> Any:
            image = decoded(content)
            image = tf.cast(tf.image.resize(image, size), tf.uint8)
            return tf.image.random_flip_left_right(image) if work.is_recipe else image, index

        dataset = tf.data.Dataset.from_tensor_slices((work.paths, np.arange(work.n_samples)))
        dataset = dataset.shuffle(shuffled, seed=0).repeat()
        if work.url:
            contents = lambda path, index: (tf.numpy_function(downloaded, [path], tf.string), index)  # noqa: E731
            dataset = dataset.map(contents, num_parallel_calls=N_DOWNLOADS).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
            options = tf.data.Options()
            options.threading.private_threadpool_size = N_DOWNLOADS  # by default, as many as there are cores
            dataset = dataset.with_options(options)
        else:
            read = lambda path, index: decode(tf.io.read_file(path), index)  # noqa: E731
            dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)
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
