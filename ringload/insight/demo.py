"""The demo: trains a small Keras CNN on the user's images through the ring, and times a hand-written generator on the same
images."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ringload.loader import Loader
from ringload.ring.plan import human
from ringload.sources.image_folder import ImageFolder
from ringload.sources.image_table import ImageFrame

NO_KERAS = "Keras is not installed: pip install tensorflow, which installs Keras, too"


def run_demo(
    images: Path | None,
    frame: Path | None,
    columns: dict[str, Any],
    size: tuple[int, int],
    batch_size: int,
    epochs: int,
    ram_budget: str,
    workers: int | Literal["auto"],
) -> None:
    """Train for `epochs` on a folder of classes or a table of images, then print times, memory and accuracy.

    Arguments:
        columns: arguments of ImageFrame that name the table's columns and its root.

    Raises:
        ConfigError: the folder or table cannot be used. ImportError: Keras, or its backend, is not installed.
    """
    if find_spec("keras") is None:
        raise ImportError(NO_KERAS)
    console = Console()
    if images is not None:
        source = ImageFolder(images, size=size)
    else:
        assert frame is not None
        source = ImageFrame(frame, size=size, **columns)
    console.print(f"{len(source):,} images of {len(source.class_names)} classes; importing Keras ...")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import ringload.keras  # noqa: F401  (before any process is started, as Keras' backend may be missing)

    with Loader(source, batch_size, ram_budget=ram_budget, workers=workers, epochs=epochs) as loader:
        accuracy = _train(loader, len(source.class_names), epochs, console)
        stats, plan = loader.stats, loader.plan()
    console.print(
        f"now the same {epochs} epochs without training, by a hand-written generator (open, convert, resize, normalise, stack)"
    )
    by_hand_s = _time_by_hand(source, size, batch_size, epochs, console)

    table = Table(title=f"{epochs} epochs of {len(loader):,} batches of {batch_size}", show_header=False)
    table.add_row("training through the ring", f"{stats.elapsed_s:.1f} s, {stats.samples_per_s:,.0f} images/s")
    table.add_row("accuracy in the last epoch", f"{accuracy:.1%}")
    table.add_row("time that the trainer waited", f"{stats.stall_s:.1f} s, {stats.stall_share:.1%}")
    table.add_row("ring", f"{human(plan.ring_bytes)}: {plan.n_slots} slots of {human(plan.slot_bytes)}")
    table.add_row("workers", f"{loader.workers}; {stats.n_bad} bad samples, {stats.n_restarts} restarts")
    table.add_row("loading alone, hand-written generator", f"{by_hand_s:.1f} s, {stats.n_samples / by_hand_s:,.0f} images/s")
    console.print(table)


def _train(loader: Loader, n_classes: int, epochs: int, console: Console) -> float:
    """Train, and return the accuracy of the last epoch."""
    import keras

    from ringload.keras.py_dataset import dataset

    height, width, channels = loader.fields["image"].shape
    layers: list[Any] = [keras.layers.Input((height, width, channels), dtype="uint8"), keras.layers.Rescaling(1 / 127.5, -1)]
    for filters in (16, 32, 64):
        layers += [keras.layers.Conv2D(filters, 3, strides=2, activation="relu"), keras.layers.BatchNormalization()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(n_classes, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

    progress = _progress(console)
    task = progress.add_task("training", total=epochs * len(loader))

    class ShowProgress(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            progress.update(task, advance=1)

    with progress:
        history = model.fit(dataset(loader), epochs=epochs, verbose=0, callbacks=[ShowProgress()])
    return float(history.history["accuracy"][-1])


def _time_by_hand(source: ImageFrame, size: tuple[int, int], batch_size: int, epochs: int, console: Console) -> float:
    """Seconds that the hand-written generator takes to load the same epochs."""
    progress = _progress(console)
    n_batches = len(source) // batch_size
    begin_s = time.monotonic()
    with progress:
        task = progress.add_task("hand-written generator", total=epochs * n_batches)
        for _ in range(epochs):
            for _ in generator_by_hand(source.filepaths, source.labels, batch_size, size):
                progress.update(task, advance=1)
    return time.monotonic() - begin_s


def generator_by_hand(
    paths: list[str], labels: np.ndarray, batch_size: int, size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A typical hand-written generator: yields `(X, Y)` for one epoch, X `(B, H, W, 3) float32` in [-1, 1]."""
    order = np.random.default_rng(0).permutation(len(paths))
    height, width = size
    for start in range(0, len(paths) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        images = [
            np.asarray(Image.open(paths[i]).convert("RGB").resize((width, height)), dtype=np.float32) / 127.5 - 1
            for i in chosen
        ]
        yield np.array(images), labels[chosen]


def _progress(console: Console) -> Progress:
    counted = (MofNCompleteColumn(), TextColumn("batches"), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), BarColumn(), *counted, console=console)
