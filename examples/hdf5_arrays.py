"""Arrays in an HDF5 file with compressed chunks: workers read each chunk once an epoch.

python examples/hdf5_arrays.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import numpy as np

import ringload

N_IMAGES, EPOCHS, SIZE = 400, 4, 16


def train(loader: ringload.Loader) -> None:
    """Learn by the mean of each channel which class an image has: logistic regression in NumPy."""
    weights = np.zeros(4)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in loader:
            means = batch["image"].mean((1, 2)) / 127.5 - 1  # (B, 3) float64
            inputs = np.column_stack([means, np.ones(len(means))])  # (B, 4)
            chance = 1 / (1 + np.exp(-inputs @ weights))
            weights += 2 * inputs.T @ (batch["label"] - chance) / len(means)
            total -= np.log(np.where(batch["label"] == 1, chance, 1 - chance)).mean()
        print(f"epoch {epoch}: loss {total / len(loader):.4f}")
    print(loader.stats)


def main() -> None:
    rng, labels = np.random.default_rng(0), np.arange(N_IMAGES) % 2
    images = rng.normal(70 + 110 * labels[:, None, None, None], 30, (N_IMAGES, SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(Path(folder, "images.h5"), "w") as file:
            file.create_dataset("image", data=images, chunks=(20, SIZE, SIZE, 3), compression="gzip")
        with h5py.File(Path(folder, "images.h5"), "r") as file:
            source = ringload.Arrays(image=file["image"], label=labels)
        with ringload.Loader(source, batch_size=40, seed=0) as loader:
            train(loader)


if __name__ == "__main__":
    main()
