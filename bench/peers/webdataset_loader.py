"""WebDataset: tar shards, read sequentially by torch workers, decoded by Pillow; shuffled by shard, and in a buffer.

From a web server, `curl` of each worker reads the shards, which is what WebDataset does with such URLs.

Tuned as https://github.com/webdataset/webdataset recommends: workers make batches; the trainer unbatches and batches them
again, so that none is short. The shards (in data/bench, with 64 photographs each) are made once, before any timing. Its epochs
are passes over the shards; if there are more samples than files, an epoch here is several passes, and the URL of a shard names
its pass.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image

from bench.peers import Stream
from bench.shards import PER_SHARD, shards_of
from bench.work import Photos, Work


def shards(work: Photos) -> list[str]:
    """The shards of all passes; each name ends in the index of its first sample."""
    return [f"{work.located(path)}#{number * PER_SHARD}" for number, path in enumerate(shards_of(work))]


def open_stream(work: Work, workers: int) -> Stream:
    """Start its workers."""
    assert isinstance(work, Photos)
    size = work.size

    def decode(sample: dict[str, Any]) -> tuple[np.ndarray, int]:
        with Image.open(io.BytesIO(sample["jpg"])) as image:
            pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        start = int(sample["__url__"].rpartition("#")[2])
        return pixels, start + int(sample["__key__"]) % PER_SHARD

    dataset = wds.WebDataset(shards(work), shardshuffle=len(shards(work)), handler=wds.reraise_exception)
    dataset = dataset.shuffle(256).map(decode).batched(work.batch_size, partial=True)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True)
    loader = loader.unbatched().batched(work.batch_size, partial=False)
    return Stream(_forever(loader), lambda batch: (np.asarray(batch[1]), np.asarray(batch[0])), lambda: None)


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
