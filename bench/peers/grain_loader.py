"""Grain: MapDataset, shuffled by index, batched in worker processes, whose batches come through its shared memory.

Tuned as https://google-grain.readthedocs.io/en/latest/tutorials/dataset_basic_tutorial.html recommends: batch last before
`mp_prefetch`, so that workers write batches straight into shared memory. For the recipe, a `random_map`, which has a generator
for each sample, decodes with simplejpeg and OpenCV.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from bench.decoders import recipe
from bench.peers import Stream
from bench.peers.mapstyle import MapStyle
from bench.work import Photos, Work


def open_stream(work: Work, workers: int) -> Stream:
    """Start the stream."""
    dataset: Any
    if isinstance(work, Photos) and work.is_recipe:
        paths, size = work.paths, work.size

        def load(index: int, rng: np.random.Generator) -> dict[str, Any]:
            return {"x": recipe("opencv", paths[index], size, rng.uniform), "index": np.int64(index)}

        dataset = grain.MapDataset.range(work.n_samples).seed(0).shuffle().random_map(load).repeat()
    else:
        samples = MapStyle(work, "own")

        def to_dict(sample: tuple[np.ndarray, int]) -> dict[str, Any]:
            return {"x": sample[0], "index": np.int64(sample[1])}

        dataset = grain.MapDataset.source(samples).seed(0).shuffle().map(to_dict).repeat()
    dataset = dataset.batch(work.batch_size, drop_remainder=True)
    reading = grain.ReadOptions(num_threads=1)  # in each worker; more threads help only with slow storage
    iterable = dataset.to_iter_dataset(reading)
    iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator: Iterator[Any] = iter(iterable)
    return Stream(iterator, lambda batch: (batch["index"], batch["x"]), getattr(iterator, "close", lambda: None))
