"""WebDataset: tar shards, read sequentially by torch workers, decoded by Pillow; shuffled by shard, and in a buffer.

Tuned as https://github.com/webdataset/webdataset recommends: workers make batches; the trainer unbatches and batches them
again, so that none is short. The shards (in data/bench, with 64 photographs each) are made once, before any timing. Its epochs
are passes over the shards; if there are more samples than files, an epoch here is several passes, and the URL of a shard names
its pass.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image

from bench import data
from bench.peers import Stream
from bench.work import Photos, Work

PER_SHARD = 64


def shards(work: Photos) -> list[str]:
    """The shards of all passes: `{pass}-{first index}.tar`."""
    names = data.files(work.folder)[: work.n_files]
    folder = (data.ROOT / f"shards-{work.folder.name}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for start in range(0, work.n_samples, PER_SHARD):
        first = start % len(names)
        path = folder / f"{first:06d}.tar"
        if first + PER_SHARD > len(names) or start + PER_SHARD > work.n_samples:
            raise ValueError("whole shards only")
        if not path.exists():
            _write(path, names, first)
        found.append(f"{path}#{start}")
    return found


def _write(path: Path, names: list[str], first: int) -> None:
    unfinished = path.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w") as tar:
        for index in range(first, first + PER_SHARD):
            content = Path(names[index]).read_bytes()
            member = tarfile.TarInfo(f"{index:09d}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    unfinished.rename(path)


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
