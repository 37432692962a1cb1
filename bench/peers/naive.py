"""A hand-written generator (of ringload.insight.demo): one process, Pillow, normalised to float32.

For rows and sleeps the same loop without files: `np.array([dataset[i] for i in ...])`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.peers import Stream
from bench.peers.mapstyle import MapStyle
from bench.work import Photos, Work
from ringload.insight.demo import generator_by_hand


def open_stream(work: Work, workers: int) -> Stream:
    """Make the generator, which has no workers."""
    return Stream(_batches(work), lambda batch: (batch[1], batch[0]), lambda: None)


def _batches(work: Work) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if isinstance(work, Photos):
        paths, size = work.paths, (work.size, work.size)
        while True:
            yield from generator_by_hand(paths, np.arange(work.n_samples), work.batch_size, size)
    dataset = MapStyle(work, "pillow")
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(work.n_samples)
        for start in range(0, work.n_samples - work.batch_size + 1, work.batch_size):
            chosen = order[start : start + work.batch_size]
            yield np.array([dataset[int(i)][0] for i in chosen]), chosen
