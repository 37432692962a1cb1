"""Measures tar shards beside the same photographs as files: images a second of a Loader, and the time of the index.

    python -m bench.tars [--images data/photos] [--rounds 5] [--workers 2]

The photographs are packed by `ringload pack` first. The two sources take turns, an epoch each, with files and shards in the
page cache; every batch's index and labels are compared. The index is built anew in each round, and taken from its file.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console

import ringload
from bench.machine import machine
from ringload.fields import Row
from ringload.insight.pack import Options, run_pack

SIZE, BATCH = (224, 224), 64


def rate(source: ringload.ImageFrame, workers: int, labels: np.ndarray) -> float:
    """Images a second, of an epoch whose first 5 batches are not timed."""
    n_images, begin_s = 0, 0.0
    with ringload.Loader(source, BATCH, workers=workers, ram_budget="2GB", seed=0, epochs=1) as loader:
        for number, batch in enumerate(loader):
            if not np.array_equal(batch["label"], labels[batch.index]):
                raise AssertionError("a label is not that of its sample")
            if number == 5:
                begin_s, n_images = time.monotonic(), 0
            n_images += len(batch.index)
        return n_images / (time.monotonic() - begin_s)


def cpu_us(source: ringload.ImageFrame, indices: range) -> float:
    """CPU of this process for loading an image, in microseconds."""
    row = Row({name: np.zeros(field.shape, field.dtype) for name, field in source.fields.items()})
    begin_s = time.process_time()
    for index in indices:
        source.load(index, None, row)
    return (time.process_time() - begin_s) / len(indices) * 1e6


@click.command()
@click.option("--images", type=click.Path(path_type=Path), default=Path("data/photos"), show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--workers", default=2, show_default=True)
def main(images: Path, rounds: int, workers: int) -> None:
    """Print images a second of files and of shards, and seconds for the index."""
    console = Console(width=120)
    files = ringload.ImageFrame(images / "photos.csv", label="multi", size=SIZE)
    costs: dict[str, list[float]] = {"files": [], "shards": []}
    rates: dict[str, list[float]] = {"files": [], "shards": []}
    index_s: dict[str, list[float]] = {"built": [], "from its file": []}
    with tempfile.TemporaryDirectory() as name:
        run_pack(images / "photos.csv", Path(name), {"label": "multi"}, Options(n_samples=300, n_threads=2))
        for _ in range(rounds):
            for path in Path(name).glob(".*.tarindex"):
                path.unlink()
            for times in index_s.values():
                begin_s = time.monotonic()
                shards = ringload.TarShards(name, label="cls", size=SIZE)
                times.append(time.monotonic() - begin_s)
            for kind, source in (("files", files), ("shards", shards)):
                rates[kind].append(rate(source, workers, np.asarray(files.labels)))
            for start in range(0, 1000, 100):
                for kind, source in (("files", files), ("shards", shards)):
                    costs[kind].append(cpu_us(source, range(start, start + 100)))
        n_shards, n_members = len(pd.unique(shards.column("__url__"))), 3 * len(shards)
    console.print(machine(), highlight=False)
    for kind, values in rates.items():
        console.print(f"{kind:<8} {statistics.median(values):8,.0f} images/s ({min(values):,.0f} to {max(values):,.0f})")
    for kind, values in costs.items():
        console.print(f"{kind:<8} {statistics.median(values):8,.0f} us of CPU an image, without transport")
    ratios = [a / b for a, b in zip(rates["shards"], rates["files"], strict=True)]
    console.print(f"shards / files {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    for how, values in index_s.items():
        console.print(f"index of {n_members:,} members in {n_shards} shards, {how}: {statistics.median(values):.3f} s")


if __name__ == "__main__":
    main()
