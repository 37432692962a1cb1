"""Makes a JPEG dataset like photographs, for the demo and the benchmarks.

Input: the real photographs in the wheels of scikit-image and scikit-learn. Output: `n` JPEG files, one class for each
photograph, and `photos.csv` with the columns `object_id, bi, multi, path`. File i depends only on (SEED, i), so the same
command makes the same files on any number of cores.

Sizes follow ImageNet: most have 500 pixels on the long side, one in ten up to 1,024, one in twenty up to 3,000.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import click
import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance
from rich.progress import track

SEED = 0
SKIMAGE = {  # class name -> file in skimage/data
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "galaxy": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
SKLEARN = {"flower": "flower.jpg", "temple": "china.jpg"}  # class name -> file in sklearn/datasets/images
ALIVE = {"astronaut", "cat", "flower", "retina", "tissue"}  # the binary label: photographs of something alive
CLASSES = sorted(SKIMAGE | SKLEARN)


@cache
def photograph(name: str) -> Image.Image:
    """The original of class `name`, as an RGB image."""
    import skimage
    import sklearn

    if name in SKIMAGE:
        path = Path(skimage.__file__).parent / "data" / SKIMAGE[name]
    else:
        path = Path(sklearn.__file__).parent / "datasets" / "images" / SKLEARN[name]
    with Image.open(path) as image:
        original: Image.Image = image.convert("RGB")
    return original


def long_side(rng: np.random.Generator) -> int:
    """Pixels on the long side, distributed as described above."""
    kind = rng.random()
    if kind < 0.85:
        return 500
    return int(rng.integers(600, 1025)) if kind < 0.95 else int(rng.integers(1200, 3001))


def make_one(folder: Path, index: int) -> tuple[str, int, str, str]:
    """Write file `index`: a random cut of one photograph. Returns its row of the table."""
    rng = np.random.default_rng([SEED, index])
    name = CLASSES[index % len(CLASSES)]
    image = photograph(name)
    width, height = image.size
    share = rng.uniform(0.6, 1.0)  # of each side
    cut_width, cut_height = int(width * share), int(height * share * rng.uniform(0.75, 1.0))
    left, top = int(rng.integers(0, width - cut_width + 1)), int(rng.integers(0, height - cut_height + 1))
    image = image.crop((left, top, left + cut_width, top + cut_height))
    scale = long_side(rng) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))
    path = folder / name / f"{index:06d}.jpg"
    subsampling = "4:2:0" if rng.random() < 0.7 else "4:4:4"
    image.save(path, quality=int(rng.integers(85, 96)), subsampling=subsampling)
    return f"photo-{index:06d}", int(name in ALIVE), name, str(path.relative_to(folder))


def make_many(task: tuple[Path, range]) -> list[tuple[str, int, str, str]]:
    """Write the files of one range of indices."""
    folder, indices = task
    return [make_one(folder, index) for index in indices]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("data/photos"), show_default=True)
@click.option("-n", "--count", type=click.IntRange(min=1), default=3000, show_default=True, help="files to make")
def main(out: Path, count: int) -> None:
    """Make COUNT photo-like JPEG files and their table photos.csv below OUT; nothing is done where they exist."""
    table = out / "photos.csv"
    if table.exists() and len(pd.read_csv(table)) == count:
        click.echo(f"{table} has its {count} files already")
        return
    for name in CLASSES:
        (out / name).mkdir(parents=True, exist_ok=True)
    tasks = [(out, range(start, min(start + 50, count))) for start in range(0, count, 50)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        rows = [row for part in track(pool.map(make_many, tasks), "making photos", len(tasks)) for row in part]
    pd.DataFrame(rows, columns=["object_id", "bi", "multi", "path"]).to_csv(table, index=False)
    total_mb = sum(path.stat().st_size for path in out.rglob("*.jpg")) / 1e6
    click.echo(f"{count} files, {total_mb:.0f} MB, table {table}")


if __name__ == "__main__":
    main()
