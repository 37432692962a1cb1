"""DALI on the CPU: its file reader, decoder and resize, in C++ threads of the trainer's process.

Tuned as its documentation recommends, with `device_id=None` for no GPU, and a prefetch queue of 2:
https://docs.nvidia.com/deeplearning/dali/user-guide/docs/examples/getting_started.html
https://docs.nvidia.com/deeplearning/dali/user-guide/docs/advanced_topics_performance_tuning.html
A file's label is its index; the list is shuffled after every epoch. For the recipe, `image_random_crop` decodes the part, and
libjpeg-turbo has its fastest options (fancy upsampling is off by default):
https://docs.nvidia.com/deeplearning/dali/user-guide/docs/operations/nvidia.dali.fn.decoders.image_random_crop.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from bench.peers import Stream
from bench.work import AREA, RATIO, Photos, Work

TRIES = 10  # of a random part, as in torchvision's RandomResizedCrop


@pipeline_def  # type: ignore[untyped-decorator]
def images(paths: list[str], size: int, is_recipe: bool) -> Any:
    """Files -> `(size, size, 3) uint8` and their indices."""
    encoded, index = fn.readers.file(
        files=paths, labels=list(range(len(paths))), shuffle_after_epoch=True, name="reader", prefetch_queue_depth=2
    )
    if not is_recipe:
        decoded = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        return fn.resize(decoded, size=[size, size], interp_type=types.INTERP_LINEAR), index
    decoded = fn.decoders.image_random_crop(
        encoded,
        device="cpu",
        output_type=types.RGB,
        random_area=AREA,
        random_aspect_ratio=RATIO,
        num_attempts=TRIES,
        use_fast_idct=True,
    )
    resized = fn.resize(decoded, size=[size, size], interp_type=types.INTERP_LINEAR)
    return fn.flip(resized, horizontal=fn.random.coin_flip()), index


def open_stream(work: Work, workers: int) -> Stream:
    """Build the pipeline."""
    assert isinstance(work, Photos)
    pipeline = images(
        *(work.paths, work.size, work.is_recipe),
        batch_size=work.batch_size,
        num_threads=workers,
        device_id=None,
        seed=0,
        prefetch_queue_depth=2,
    )
    pipeline.build()
    return Stream(_forever(pipeline), _arrays, lambda: None)


def _forever(pipeline: Any) -> Iterator[Any]:
    while True:
        yield pipeline.run()


def _arrays(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(batch[1].as_tensor())[:, 0], np.asarray(batch[0].as_tensor())
