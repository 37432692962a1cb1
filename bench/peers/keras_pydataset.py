"""Keras' PyDataset, as `model.fit` would read it: worker processes, batches by index, Pillow.

Tuned as https://keras.io/api/utils/python_utils/#pydataset-class recommends: workers > 1 with use_multiprocessing, as the work
is done in Python; default max_queue_size. It is read by Keras' own adapter, of the TensorFlow backend.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

from bench.peers import Stream
from bench.peers.mapstyle import MapStyle
from bench.work import Work


class Batches(keras.utils.PyDataset):
    """Gives a batch by its number; with `labels`, if given, instead of indices."""

    def __init__(self, work: Work, workers: int, labels: np.ndarray | None = None) -> None:
        super().__init__(workers=workers, use_multiprocessing=workers > 1)
        self._samples, self._batch_size, self._labels = MapStyle(work, "pillow"), work.batch_size, labels
        self._order = np.random.default_rng(0).permutation(work.n_samples)

    def __len__(self) -> int:
        return len(self._order) // self._batch_size

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._order[number * self._batch_size : (number + 1) * self._batch_size]
        images = np.stack([self._samples[int(index)][0] for index in chosen])
        return images, chosen if self._labels is None else self._labels[chosen]


def open_stream(work: Work, workers: int) -> Stream:
    """Start its workers."""
    adapter = PyDatasetAdapter(Batches(work, workers), shuffle=True)
    return Stream(_forever(adapter), _arrays, lambda: None)


def _arrays(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(memoryview(batch[1])), np.asarray(memoryview(batch[0]))


def _forever(adapter: Any) -> Iterator[Any]:
    """Epochs, as Keras' EpochIterator runs them."""
    while True:
        dataset = adapter.get_tf_dataset()
        adapter.on_epoch_begin()
        for _, batch in zip(range(adapter.num_batches), dataset, strict=False):
            yield batch
            del batch
        adapter.on_epoch_end()
