"""Makes the files that `work` loads, once, in data/bench.

From data/photos (made by bench/photos.py): a thumbnail of each file, for verification; a table of those with 500 pixels on the
long side, and copies of them as PNG and WebP; photographs of 12, and of 12 to 24 megapixels; tables of up to 30 million rows.
For array rows: random bytes; the first and the last 8 bytes of a row are its number. Each function makes its files if they do
not exist, and returns their path.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

SERVED = Path("data")  # by bench.webserver
PHOTOS = Path("data/photos")
ROOT = Path("data/bench")
N_LARGE = 48
LONG_SIDE = 500  # pixels, of ImageNet's photographs and most of data/photos
N_500 = 2496  # whole batches of 64; 2,550 of 3,000 photographs have this size
N_CONVERTED = 512  # PNG and WebP files: 0.2 GB
FOLDS = 3000  # rows of a table that share a folder: the number of photographs


def files(folder: Path) -> list[str]:
    """The absolute paths of a folder's files in the order of its table."""
    base = os.path.abspath(folder)
    return [f"{base}/{path}" for path in pd.read_csv(folder / "photos.csv")["path"]]


def truth(folder: Path, size: int) -> Path:
    """`(n_files, 8, 8, 3) int16`: every file decoded by Pillow, reduced by `work.glance`."""
    from bench.work import glance

    def make(path: Path) -> None:
        seen = []
        for name in files(folder):
            with Image.open(name) as image:
                image.draft("RGB", (2 * size, 2 * size))  # faster, and exact enough for so few pixels
                pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
            seen.append(glance(pixels[None])[0])
        np.save(path, np.stack(seen))

    return _made(ROOT / f"truth-{folder.name}-{size}.npy", make)


def large(least: float = 12, most: float = 24) -> Path:
    """A folder like data/photos, with `N_LARGE` photographs of `least` to `most` megapixels.

    They are enlarged, so a file of 12 megapixels has 0.8 MB, which is less than a camera's: with its noise, decoding would take
    all decoders longer, by about the same time.
    """

    def make(path: Path) -> None:
        path.mkdir()
        rows = []
        for number, name in enumerate(files(PHOTOS)[:N_LARGE]):
            megapixels = least + (most - least) * number / (N_LARGE - 1)
            with Image.open(name) as image:
                scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
                size = (round(image.width * scale), round(image.height * scale))
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(path / f"{number:03d}.jpg", quality=90)
            rows.append({"path": f"{number:03d}.jpg", "multi": number % 4})
        pd.DataFrame(rows).to_csv(path / "photos.csv", index=False)

    return _made(ROOT / ("large" if least != most else f"{least:g}mp"), make)


def of_500() -> Path:
    """A folder with a table of the first `N_500` photographs of `LONG_SIDE` pixels, which stay where they are."""

    def make(path: Path) -> None:
        path.mkdir()
        table = pd.read_csv(PHOTOS / "photos.csv")
        chosen = [number for number, name in enumerate(files(PHOTOS)) if max(size_of(name)) == LONG_SIDE][:N_500]
        if len(chosen) < N_500:
            raise ValueError(f"{PHOTOS} has {len(chosen)} photographs of {LONG_SIDE} pixels, not {N_500}")
        table = table.iloc[chosen]
        table["path"] = [os.path.relpath(PHOTOS / name, ROOT / path.name) for name in table["path"]]
        table.to_csv(path / "photos.csv", index=False)

    return _made(ROOT / "of-500", make)


def size_of(name: str) -> tuple[int, int]:
    """(width, height) of an image file."""
    with Image.open(name) as image:
        width, height = image.size
    return width, height


def converted(suffix: str) -> Path:
    """A folder like data/photos, with `N_CONVERTED` photographs of `LONG_SIDE` pixels as "png" or "webp" files."""

    def make(path: Path) -> None:
        path.mkdir()
        names = [f"{number:03d}.{suffix}" for number in range(N_CONVERTED)]
        for source, name in zip(files(of_500()), names, strict=False):
            with Image.open(source) as image:
                image.save(path / name, **SAVED[suffix])
        pd.DataFrame({"path": names, "multi": np.arange(N_CONVERTED) % 4}).to_csv(path / "photos.csv", index=False)

    return _made(ROOT / suffix, make)


SAVED: dict[str, dict[str, Any]] = {"png": {}, "webp": {"quality": 90}}  # Pillow's options


def parts(folder: Path) -> Path:
    """What `bench.parts` knows of each file of a folder, in one .npz file."""
    from bench.parts import known

    def make(path: Path) -> None:
        thumbnails, ratios, bounds = zip(*(known(name) for name in files(folder)), strict=True)
        with path.open("wb") as file:
            np.savez(file, thumbnails=np.stack(thumbnails), ratios=np.array(ratios), bounds=np.stack(bounds))

    return _made(ROOT / f"parts-{folder.name}.npz", make)


def table(n_rows: int) -> Path:
    """A Parquet table of `n_rows` different paths to the photographs. Every 3,000 rows use another folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = pd.read_csv(PHOTOS / "photos.csv")["path"].tolist()
    base = (ROOT / "folds").absolute()
    base.mkdir(parents=True, exist_ok=True)
    for fold in range(-(-n_rows // FOLDS)):
        link = base / f"{fold:05d}"
        if not link.is_symlink():
            link.symlink_to(PHOTOS.absolute())

    def make(path: Path) -> None:
        with pq.ParquetWriter(path, pa.schema([("path", pa.string()), ("index", pa.int64())])) as writer:
            for start in range(0, n_rows, FOLDS * 100):
                index = np.arange(start, min(start + FOLDS * 100, n_rows))
                paths = [f"{base}/{i // FOLDS:05d}/{names[i % FOLDS]}" for i in index.tolist()]
                writer.write_table(pa.table({"path": pa.array(paths, pa.string()), "index": index}))

    return _made(ROOT / f"rows-{n_rows}.parquet", make)


def marks(rows: np.ndarray) -> np.ndarray:
    """The first and the last 8 bytes of rows."""
    marked: np.ndarray = rows.astype(np.int64) * 1_000_003 + 17
    return marked


def rows(n_rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Path:
    """An array `(n_rows, *shape) dtype` of random bytes and marks."""

    def make(path: Path) -> None:
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        array = np.random.default_rng(0).integers(0, 256, (n_rows, n_bytes), np.uint8)
        array[:, :8] = array[:, -8:] = marks(np.arange(n_rows)).view(np.uint8).reshape(n_rows, 8)
        np.save(path, array.view(dtype).reshape(n_rows, *shape))

    return _made(ROOT / f"array-{n_rows}x{'x'.join(map(str, shape))}-{dtype}.npy", make)


def forget(paths: list[str]) -> None:
    """Drop files, and no others, from the page cache."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _made(path: Path, make: Any) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{os.getpid()}-{path.name}")
        make(unfinished)
        unfinished.rename(path)
    return path
