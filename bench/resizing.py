"""Measures the cost and the quality of each filter of `interpolation=` on photographs.

    python -m bench.resizing [--images data/photos] [--photographs 200] [--rounds 5]

cost     CPU of one process for loading a photograph as 224 x 224 pixels: decoding, resizing, and the copy into its row.
quality  peak signal to noise in dB, compared with Pillow's `Image.open(path).resize((224, 224), BILINEAR)`. 45 dB is a mean
         difference of one level of 255. torchvision and tf.image antialias in the same way.

The filters take turns, photograph by photograph, so that changes of the machine's speed affect all of them.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from rich.table import Table

import ringload
from bench.machine import machine
from ringload.fields import Row

SIZE = (224, 224)
FILTERS = ("antialias", "fast", "linear", "area")


def pillows(path: Path) -> np.ndarray:
    """A photograph `(H, W, 3) uint8` as Pillow resizes it."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR))


def decibels(pixels: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal to noise of the pixels; 100 if they are equal."""
    mean_square = np.mean((pixels.astype(np.float64) - wanted) ** 2)
    return 100.0 if mean_square == 0 else float(10 * np.log10(255**2 / mean_square))


@click.command()
@click.option("--images", type=click.Path(path_type=Path), default=Path("data/photos"), show_default=True)
@click.option("--photographs", default=200, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(images: Path, photographs: int, rounds: int) -> None:
    """Print the cost of each filter, and its difference to Pillow's BILINEAR."""
    frame = pd.read_csv(images / "photos.csv").iloc[:photographs]
    sources = {name: ringload.ImageFrame(frame, root=images, size=SIZE, interpolation=name) for name in FILTERS}  # type: ignore[arg-type]
    row = Row({"image": np.empty((*SIZE, 3), np.uint8)})
    quality: dict[str, list[float]] = {name: [] for name in FILTERS}
    for index, path in enumerate(frame["path"]):
        wanted = pillows(images / path)
        for name, source in sources.items():
            source.load(index, None, row)
            quality[name].append(decibels(row["image"], wanted))
    costs: dict[str, list[float]] = {name: [] for name in FILTERS}  # ms, a round's mean
    for _ in range(rounds):
        taken = dict.fromkeys(FILTERS, 0)
        for index in range(len(frame)):
            for name, source in sources.items():
                begin_ns = time.process_time_ns()
                source.load(index, None, row)
                taken[name] += time.process_time_ns() - begin_ns
        for name, n_ns in taken.items():
            costs[name].append(n_ns / 1e6 / len(frame))
    table = Table(title=f"{len(frame)} photographs, {rounds} rounds; {machine()['cpu']}", title_justify="left")
    for name in ("interpolation", "CPU a photograph", "ratio to linear", "dB to Pillow's BILINEAR, median", "worst"):
        table.add_column(name)
    for name in FILTERS:
        ratio = statistics.median(a / b for a, b in zip(costs[name], costs["linear"], strict=True))
        row_of_table = [name, f"{statistics.median(costs[name]):.2f} ms", f"{ratio:.2f}"]
        table.add_row(*row_of_table, f"{statistics.median(quality[name]):.1f}", f"{min(quality[name]):.1f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
