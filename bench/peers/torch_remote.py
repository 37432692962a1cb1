"""torch's DataLoader, whose workers read a batch by 64 threads each: its `__getitems__`, urllib3, and ringload's decoder.

`__getitems__` is what torch calls with all indices of a batch, if a dataset has it: https://docs.pytorch.org/docs/stable/data.html
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
import urllib3
from torch.utils.data import DataLoader, Dataset

from bench.decoders import own_decoder
from bench.peers import Stream
from bench.work import Photos, Work

N_THREADS = 64


class Remote(Dataset):
    """The images of URLs."""

    def __init__(self, work: Photos) -> None:
        self._urls, self._size = work.paths, work.size

    def __len__(self) -> int:
        return len(self._urls)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(N_THREADS)

    @cached_property
    def _pool(self) -> urllib3.PoolManager:
        return urllib3.PoolManager(maxsize=N_THREADS)

    def _read(self, index: int) -> bytes:
        answer = self._pool.request("GET", self._urls[index])
        if answer.status != 200:
            raise OSError(f"{self._urls[index]}: status {answer.status}")
        return answer.data

    def __getitems__(self, indices: list[int]) -> list[tuple[np.ndarray, int]]:
        samples = []
        for index, content in zip(indices, self._threads.map(self._read, indices), strict=True):
            image = np.empty((self._size, self._size, 3), np.uint8)
            own_decoder(self._size).load(content, None, image)
            samples.append((image, index))
        return samples


def open_stream(work: Work, workers: int) -> Stream:
    """Start the stream. It ends with its process: DataLoader has no close."""
    assert isinstance(work, Photos)
    torch.set_num_threads(1)  # the trainer does no work whose threads could be measured
    loader: Any = DataLoader(
        Remote(work), work.batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )
    return Stream(_forever(loader), lambda batch: (batch[1].numpy(), batch[0].numpy()), lambda: None)


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
