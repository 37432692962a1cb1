"""Images in an LMDB database, by key. With zip:// in place of lmdb:// it is a .zip file.

python examples/lmdb_images.py
"""

from __future__ import annotations

import io
import tempfile

import lmdb
import numpy as np
import pandas as pd
from PIL import Image

import ringload

N_IMAGES, EPOCHS, SIZE = 400, 4, 16


def encoded_images() -> list[bytes]:
    """PNG files of noise; every second one is bright."""
    rng, files = np.random.default_rng(0), []
    for number in range(N_IMAGES):
        pixels = rng.normal(180 if number % 2 else 70, 30, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        files.append(file.getvalue())
    return files


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
    table = pd.DataFrame({"key": [f"{n:06d}.png" for n in range(N_IMAGES)], "label": [n % 2 for n in range(N_IMAGES)]})
    with tempfile.TemporaryDirectory() as folder:
        with lmdb.open(f"{folder}/images.lmdb", map_size=1 << 26) as database, database.begin(write=True) as writing:
            for key, image in zip(table["key"], encoded_images(), strict=True):
                writing.put(key.encode(), image)
        source = ringload.ImageFrame(table, "key", "label", root=f"lmdb://{folder}/images.lmdb", size=(SIZE, SIZE))
        with ringload.Loader(source, batch_size=40, seed=0) as loader:
            train(loader)


if __name__ == "__main__":
    main()
