"""LitData: chunks that were written once (data/bench/litdata, not timed), read by torch workers, decoded by Pillow.

Tuned as https://github.com/Lightning-AI/litData recommends: `optimize` once, then StreamingDataset and StreamingDataLoader. Its
epochs are passes over the chunks; if there are more samples than files, an epoch here is several passes. The web server is
given as S3, with an empty folder for what is downloaded.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from litdata import StreamingDataLoader, StreamingDataset, optimize
from litdata.streaming import downloader
from PIL import Image

from bench import data
from bench.peers import Stream
from bench.work import Photos, Work


def content(item: tuple[int, str]) -> dict[str, Any]:
    """The data of one file in a chunk."""
    return {"index": item[0], "jpg": Path(item[1]).read_bytes()}


def chunks(work: Photos, n_files: int) -> Path:
    """The folder of chunks, of the first `n_files` files."""
    folder = (data.ROOT / f"litdata-{work.folder.name}-{n_files}").absolute()
    if not (folder / "index.json").exists():
        inputs = list(enumerate(data.files(work.folder)[:n_files]))
        with ProcessPoolExecutor(1, get_context("spawn")) as other:  # what it leaves in its process is not measured
            made = partial(optimize, fn=content, inputs=inputs, output_dir=str(folder), chunk_bytes="16MB", num_workers=1)
            other.submit(made).result()
    return folder


class Decoded(StreamingDataset):
    """Decodes the samples of chunks."""

    size = 224

    def __getitem__(self, index: Any) -> tuple[np.ndarray, int]:
        sample = super().__getitem__(index)
        with Image.open(io.BytesIO(sample["jpg"])) as image:
            return np.asarray(image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)), sample["index"]


def open_stream(work: Work, workers: int) -> Stream:
    """Start its workers."""
    assert isinstance(work, Photos)
    n_files = min(work.n_samples, len(data.files(work.folder)[: work.n_files]) // work.batch_size * work.batch_size)
    folder = chunks(work, n_files)
    if work.url:
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # it has no option for that, and expects https
        secrets = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        dataset = Decoded(
            f"s3://{folder.parent.name}/{folder.name}",
            cache_dir=tempfile.mkdtemp(),
            storage_options={"endpoint_url": work.url, **secrets},
            shuffle=True,
            drop_last=False,
        )
    else:
        dataset = Decoded(str(folder), shuffle=True, drop_last=False)
    dataset.size = work.size
    loader = StreamingDataLoader(dataset, batch_size=work.batch_size, num_workers=workers, persistent_workers=True)
    passes = EpochTracker(n_files, work.n_samples // n_files)
    return Stream(_forever(loader), passes.arrays, lambda: None)


class EpochTracker:
    """Counts the passes: the samples of pass k begin at `k * n_files`, modulo the epoch."""

    def __init__(self, n_files: int, n_passes: int) -> None:
        self._n_files, self._n_passes, self._n_seen = n_files, n_passes, 0

    def arrays(self, batch: Any) -> tuple[np.ndarray, np.ndarray]:
        number = self._n_seen // self._n_files % self._n_passes
        self._n_seen += len(batch[1])
        return batch[1].numpy() + number * self._n_files, batch[0].numpy()


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
