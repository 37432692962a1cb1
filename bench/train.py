"""Trains a small CNN in Keras or torch, with 10 classes, on batches of ringload or of a peer in its native form.

The time begins when the loader is made, after importing the framework and building the model, and ends with the last epoch.
Without a GPU, model and loader share the CPUs. The training verifies the data: with wrong labels or pixels the accuracy stays
at one in ten; an accuracy below `LEARNT` raises WrongPayloadError.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from bench.peers import Peer
from bench.work import Photos, Work, WrongPayloadError

LEARNT = 0.2  # accuracy over the last epoch; chance is 0.1
FILTERS = (16, 32, 64)


def labels_of(work: Photos) -> np.ndarray:
    """`(n_samples,) int64`: the class of each index."""
    names = pd.read_csv(work.folder / "photos.csv")["multi"]
    codes = pd.Categorical(names).codes[: work.n_files].astype(np.int64)
    return np.resize(codes, work.n_samples)


def ring(work: Photos, workers: int, epochs: int) -> Any:
    """The loader of both frameworks."""
    import ringload

    frame = work.frame.assign(label=labels_of(work))
    source = ringload.ImageFrame(frame, path="path", label="label", size=(work.size, work.size))
    return ringload.Loader(source, work.batch_size, workers=workers, epochs=epochs)


def train(framework: str, peer: Peer, work: Work, workers: int, epochs: int) -> dict[str, Any]:
    """Train, and return samples/s over all epochs, including the start."""
    assert isinstance(work, Photos)
    fit = {"keras": with_keras, "torch": with_torch}[framework](peer.name, work, workers, epochs)
    begin_s = time.perf_counter()
    accuracy = fit()
    elapsed_s = time.perf_counter() - begin_s
    if accuracy < LEARNT:
        raise WrongPayloadError(f"the model learnt nothing: {accuracy:.0%} of 10 classes after {epochs} epochs")
    return {"samples_per_s": epochs * work.n_samples / elapsed_s, "elapsed_s": elapsed_s, "accuracy": accuracy}


def with_keras(name: str, work: Photos, workers: int, epochs: int) -> Callable[[], float]:
    """Train a Keras model on TensorFlow, and return the accuracy of the last epoch."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    labels = labels_of(work)
    layers: list[Any] = [keras.layers.Input(work.shape, dtype="uint8"), keras.layers.Rescaling(1 / 127.5, -1)]
    for filters in FILTERS:
        layers += [keras.layers.Conv2D(filters, 3, strides=2, activation="relu"), keras.layers.BatchNormalization()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

    def fit() -> float:
        steps = work.n_samples // work.batch_size
        options: dict[str, Any] = {}
        if name == "ringload":
            from ringload.keras.py_dataset import dataset

            data: Any = dataset(ring(work, workers, epochs))
        elif name == "keras":
            from bench.peers.keras_pydataset import Batches

            data = Batches(work, workers, labels)
        else:
            from bench.peers.tfdata import make_dataset

            table = tf.constant(labels)
            data = make_dataset(work).map(lambda image, index: (image, tf.gather(table, index)))
            options["steps_per_epoch"] = steps
        history = model.fit(data, epochs=epochs, verbose=0, **options)
        return float(history.history["accuracy"][-1])

    return fit


def with_torch(name: str, work: Photos, workers: int, epochs: int) -> Callable[[], float]:
    """Train a torch model, and return the accuracy of the last epoch."""
    import torch
    from torch import nn

    layers: list[Any] = []
    for n_in, n_out in zip((3, *FILTERS), FILTERS, strict=False):
        layers += [nn.Conv2d(n_in, n_out, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(n_out)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(FILTERS[-1], 10))
    optimizer, loss_of = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss()

    def batches() -> Iterator[Iterator[tuple[Any, Any]]]:
        """Epochs of (images (B, H, W, 3) uint8, labels (B,) int64)."""
        if name == "ringload":
            with ring(work, workers, epochs) as loader:
                for _ in range(epochs):
                    yield ((torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"])) for batch in loader)
        else:
            from bench.peers.torch_loader import make_loader

            labels = torch.from_numpy(labels_of(work))
            loader = make_loader(work, workers, "pillow" if name == "torch-pillow" else "own")
            for _ in range(epochs):
                yield ((images, labels[index]) for images, index in loader)

    def fit() -> float:
        right, seen = 0, 0
        for epoch in batches():
            right, seen = 0, 0
            for images, label in epoch:
                said = model(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
                optimizer.zero_grad()
                loss_of(said, label).backward()
                optimizer.step()
                right, seen = right + int((said.argmax(1) == label).sum()), seen + len(label)
        return right / seen

    return fit
