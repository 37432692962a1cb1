"""How much faster later epochs are with a cache: `python -m bench.caching [FOLDER]`.

The photographs of 500 pixels of data/photos, 224 x 224, batches of 64, in random order. CPU time of an image without a cache,
in the first epoch, and in later epochs: with a file in FOLDER (a temporary folder by default), and with cache="ram". One
process loads all, so that other work on the machine does not count. Beside them, what copying alone takes: a loader of the
same pixels as an array in memory, and np.copyto of its rows without a loader. The ways take turns; the least of all rounds is
shown. All images of an epoch are compared.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ringload import Arrays, ImageFrame, Loader

N_IMAGES = 4000
N_ROUNDS = 3
SIZE = (224, 224)
OPTIONS: dict[str, Any] = {"seed": 0, "ram_budget": "2GB", "last": "keep"}


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


def milliseconds(source: Any, n_epochs: int, **options: Any) -> list[float]:
    """CPU time of an image, for each epoch."""
    made = []
    with Loader(source, 64, workers=0, epochs=n_epochs, **OPTIONS, **options) as loader:
        for _ in range(n_epochs):
            begin_s = time.process_time()
            for batch in loader:
                assert batch["image"].shape[1:3] == SIZE
            made.append((time.process_time() - begin_s) / len(source) * 1000)
    return made


def copying(pixels: np.ndarray) -> float:
    """CPU time of copying an image, in random order, into batches."""
    batch = np.zeros((64, *pixels.shape[1:]), np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels)).tolist()
    begin_s = time.process_time()
    for number, index in enumerate(order):
        np.copyto(batch[number % 64], pixels[index])
    return (time.process_time() - begin_s) / len(pixels) * 1000


def images(source: Any, n_epochs: int = 1, **options: Any) -> list[np.ndarray]:
    """All images of the last of some epochs."""
    with Loader(source, 64, workers=2, epochs=n_epochs, **OPTIONS, **options) as loader:
        for _ in range(n_epochs):
            made = [batch["image"].copy() for batch in loader]
    return made


def main(folder: str) -> None:
    frame = ImageFrame(table(), size=SIZE)
    pixels = np.concatenate(images(frame, shuffle=False))
    names = ("no cache", "file, first", "file, later", "ram, first", "ram, later", "Arrays", "np.copyto")
    least = dict.fromkeys(names, np.inf)
    for number in range(N_ROUNDS):
        file_first, *file_later = milliseconds(frame, 3, cache=f"{folder}/{number}", cache_bytes="20GB")
        ram_first, *ram_later = milliseconds(frame, 3, cache="ram")
        arrays = min(milliseconds(Arrays(image=pixels), 3))
        plain, copied = milliseconds(frame, 1)[0], min(copying(pixels) for _ in range(3))
        now = (plain, file_first, min(file_later), ram_first, min(ram_later), arrays, copied)
        least = {name: min(least[name], value) for name, value in zip(names, now, strict=True)}
    print(f"{len(frame)} images; CPU time of one in ms: " + "; ".join(f"{name} {value:.4f}" for name, value in least.items()))
    for kind in ("file", "ram"):
        later = least[f"{kind}, later"]
        print(
            f"{kind}: an image of the first epoch takes {least[f'{kind}, first'] / later:.1f} times as long; "
            f"later ones come at {least['Arrays'] / later:.2f} of the speed of Arrays, "
            f"{least['np.copyto'] / later:.2f} of np.copyto"
        )
    flipped = ImageFrame(table(), size=SIZE, flip=True)
    expected = images(flipped, 2)
    for cache in (folder, "ram"):
        same = all(np.array_equal(a, b) for a, b in zip(expected, images(flipped, 2, cache=cache), strict=True))
        print(f"cache={'ram' if cache == 'ram' else 'folder'}: the images are the same: {same}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
