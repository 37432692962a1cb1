"""How much faster later epochs are with a cache: `python -m bench.caching [FOLDER]`.

The photographs of 500 pixels of data/photos, 224 x 224, batches of 64: CPU time of an image without a cache, in the first
epoch, which fills a file in FOLDER (a temporary folder by default), and in later epochs, which read it. One process
loads all, so that other work on the machine does not count. All images of an epoch are compared.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ringload import ImageFrame, Loader

N_IMAGES = 4000


def table() -> pd.DataFrame:
    """The first photographs of 500 pixels on the long side."""
    paths = []
    for path in sorted(Path("data/photos").rglob("*.jpg")):
        with Image.open(path) as image:
            if max(image.size) == 500:
                paths.append(str(path.resolve()))
        if len(paths) == N_IMAGES:
            break
    return pd.DataFrame({"path": paths})


def milliseconds(source: object, n_images: int, n_epochs: int) -> list[float]:
    """CPU time of an image, for each epoch."""
    made = []
    with Loader(source, 64, workers=0, epochs=n_epochs, seed=0, ram_budget="600MB", last="keep") as loader:
        for _ in range(n_epochs):
            begin_s = time.process_time()
            for batch in loader:
                assert batch["image"].shape[1:] == (224, 224, 3)
            made.append((time.process_time() - begin_s) / n_images * 1000)
    return made


def images(source: object) -> list[np.ndarray]:
    """All images of an epoch."""
    with Loader(source, 64, workers=2, epochs=1, seed=0, ram_budget="600MB", last="keep") as loader:
        return [batch["image"].copy() for batch in loader]


def main(folder: str) -> None:
    frame = ImageFrame(table(), size=(224, 224), flip=True)
    cached = frame.cached(folder, "20GB")
    n = len(frame)
    plain = min(milliseconds(frame, n, 2))
    first, *later = milliseconds(cached, n, 4)
    same = all(np.array_equal(a, b) for a, b in zip(images(frame), images(cached), strict=True))
    print(f"{n} images; CPU time: {plain:.3f} ms without a cache; {first:.3f} in the first epoch, {min(later):.3f} later")
    print(f"an image of the first epoch takes {first / min(later):.1f} times as long; the images are the same: {same}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
