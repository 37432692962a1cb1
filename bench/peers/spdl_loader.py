"""SPDL: a pipeline of threads in the trainer's process; its own decoder (FFmpeg) for files.

Built as https://facebookresearch.github.io/spdl/main/getting_started/stages.html recommends: a source of paths, a stage that
loads and decodes with `concurrency` threads, aggregate, a stage that makes the batch, a sink that buffers. For rows and sleeps,
its threads call Python functions. The order of the input is kept, as otherwise samples of one epoch would come in the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import spdl.io
from spdl.pipeline import PipelineBuilder

from bench.peers import Stream
from bench.peers.mapstyle import MapStyle
from bench.work import Photos, Work

AHEAD = 3  # batches that the sink holds


class Shuffled:
    """Indices, epoch after epoch."""

    def __init__(self, n_samples: int) -> None:
        self._n_samples = n_samples

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            yield from rng.permutation(self._n_samples).tolist()


def open_stream(work: Work, workers: int) -> Stream:
    """Start its threads."""
    samples = MapStyle(work, "own")
    builder = PipelineBuilder().add_source(Shuffled(work.n_samples))
    if isinstance(work, Photos):
        paths, size = work.paths, work.size
        scaled = spdl.io.get_video_filter_desc(
            scale_width=size, scale_height=size, scale_mode=None, scale_algo="bilinear", pix_fmt="rgb24"
        )

        spdl.io.demux_image(paths[0])  # imports its library, in which several threads at once hang now and then

        def decode(index: int) -> tuple[Any, int]:
            packets = spdl.io.demux_image(paths[index])
            return spdl.io.decode_packets(packets, filter_desc=scaled), index

        def batch(decoded: list[tuple[Any, int]]) -> tuple[np.ndarray, np.ndarray]:
            buffer = spdl.io.convert_frames([frames for frames, _ in decoded])
            return spdl.io.to_numpy(buffer), np.array([index for _, index in decoded])

    else:

        def decode(index: int) -> tuple[Any, int]:
            return samples[index]

        def batch(decoded: list[tuple[Any, int]]) -> tuple[np.ndarray, np.ndarray]:
            return np.stack([payload for payload, _ in decoded]), np.array([index for _, index in decoded])

    builder = (
        builder.pipe(decode, concurrency=workers, output_order="input").aggregate(work.batch_size, drop_last=True).pipe(batch)
    )
    pipeline = builder.add_sink(AHEAD).build(num_threads=workers + 1)
    pipeline.start()
    return Stream(pipeline.get_iterator(), lambda batch: (batch[1], batch[0]), pipeline.stop)
