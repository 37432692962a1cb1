"""torch's DataLoader: persistent workers, its own collate into shared memory, its default prefetch.

Tuned as https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html recommends: num_workers > 0, and
persistent_workers, so that workers are started once. No pinning, as no GPU is measured. If the decoder uses OpenCV, it gets one
thread a worker, as torch limits its own threads. Random parts are drawn by Python's `random`, which torch seeds in each worker.

`as_numpy`: batches are NumPy arrays, stacked by the user's collate function, as is usual without a torch model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench.peers import Stream
from bench.peers.mapstyle import MapStyle
from bench.work import Work


class Samples(Dataset):
    """The map-style dataset; tensors are made by `default_collate`."""

    def __init__(self, work: Work, decoder: str) -> None:
        self._samples = MapStyle(work, decoder)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        payload, index = self._samples[index]
        return (payload if payload.flags.writeable else np.asarray(payload)), index


def stack(samples: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """A batch of NumPy arrays."""
    return np.stack([payload for payload, _ in samples]), np.array([index for _, index in samples])


def make_loader(work: Work, workers: int, decoder: str, as_numpy: bool = False) -> Any:
    """The DataLoader, tuned as above."""
    return DataLoader(
        Samples(work, decoder),
        batch_size=work.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=stack if as_numpy else None,
    )


def open_stream(work: Work, workers: int, decoder: str = "own", as_numpy: bool = False) -> Stream:
    """Start the stream. It ends with its process: DataLoader has no close."""
    torch.set_num_threads(1)  # the trainer does no work whose threads could be measured
    loader = make_loader(work, workers, decoder, as_numpy)
    if as_numpy:
        return Stream(_forever(loader), lambda batch: (batch[1], batch[0]), lambda: None)
    return Stream(_forever(loader), lambda batch: (batch[1].numpy(), batch[0].numpy()), lambda: None)


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
