"""Images/s where each read of a file waits: of ringload's ways to hide that, and of torch's DataLoader with threads.

    python -m bench.latency [--images data/photos] [--rounds 5]

All decode the same photographs with the same decoder, by as many worker processes, and read them by opening the file after a
sleep. Each figure is a median over rounds; in each round, all ways are measured one after another. "of no wait" compares the
way with itself where no read waits, in the same round.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

import ringload
from ringload.fields import Row, Worker
from ringload.images.decoder import ImageDecoder
from ringload.images.geometry import Geometry

SIZE = (224, 224)
N_THREADS = 64
SETTLE_S = 3.0


class Slow(ringload.ThreadedStorage):
    """Local files that take their time."""

    def __init__(self, latency_s: float) -> None:
        super().__init__(N_THREADS)
        self._latency_s = latency_s

    def fetch(self, key: str, max_bytes: int) -> bytes:
        """The file, after a wait."""
        path = key.removeprefix("slow://")
        time.sleep(self._latency_s)
        if (n_bytes := Path(path).stat().st_size) > max_bytes:
            raise ringload.ContentTooLargeError(n_bytes, max_bytes)
        return Path(path).read_bytes()


def read(path: str, latency_s: float) -> bytes:
    """A file's content, after a wait."""
    time.sleep(latency_s)
    return Path(path).read_bytes()


class Photos:
    """The photographs as samples of a class of one's own, or of a torch dataset."""

    random = False

    def __init__(self, paths: list[str], latency_s: float) -> None:
        self.paths, self._latency_s = paths, latency_s
        self._decoder = ImageDecoder(Geometry(*SIZE))
        self.fields = {"image": self._decoder.field}

    def __len__(self) -> int:
        return len(self.paths)

    def start(self, worker: Worker) -> None:
        """Decode by one thread."""
        self._decoder.start(worker)

    def decoded(self, content: bytes) -> np.ndarray:
        """The pixels of a file, by a decoder that one thread has."""
        image = np.empty(self._decoder.field.shape, np.uint8)
        self._decoder.copy_with().load(content, None, image)
        return image


class ByThreads(Photos):
    """`load` waits; several threads call it."""

    threads = N_THREADS

    def load(self, index: int, rng: Any, out: Row) -> None:
        """Read, and decode."""
        out["image"] = self.decoded(read(self.paths[index], self._latency_s))


class ByCoroutine(Photos):
    """`prefetch` waits, for all samples of a task at once."""

    scratch_bytes = 50_000_000  # to decode in: what a worker may use beside others

    def start(self, worker: Worker) -> None:
        """Nothing was read yet."""
        super().start(worker)
        self._contents: dict[int, bytes] = {}

    async def prefetch(self, indices: np.ndarray) -> None:
        """Read what is loaded next."""
        await asyncio.gather(*map(self._fetch, indices.tolist()))

    async def _fetch(self, index: int) -> None:
        await asyncio.sleep(self._latency_s)
        self._contents[index] = Path(self.paths[index]).read_bytes()

    def load(self, index: int, rng: Any, out: Row) -> None:
        """Decode what was read."""
        self._decoder.load(self._contents.pop(index), None, out["image"])


class OfTorch(Photos):
    """A torch dataset whose `__getitems__` reads by threads."""

    _threads: ThreadPoolExecutor | None = None

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.decoded(read(self.paths[index], self._latency_s)))

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(N_THREADS)
        contents = self._threads.map(read, [self.paths[index] for index in indices], [self._latency_s] * len(indices))
        return [torch.from_numpy(self.decoded(content)) for content in contents]


def rate(batches: Any, seconds: float) -> float:
    """Images/s, once it has settled."""
    begin_s = time.perf_counter()
    while time.perf_counter() - begin_s < SETTLE_S:
        next(batches)
    begin_s, n = time.perf_counter(), 0
    while time.perf_counter() - begin_s < seconds:
        n += len(next(batches))
    return n / (time.perf_counter() - begin_s)


def of_ringload(source: Any, batch_size: int, workers: int, seconds: float) -> float:
    """Images/s of a loader. Its ring has room for some 20 batches, as reads are hidden by batches that are filled meanwhile."""
    with ringload.Loader(source, batch_size, workers=workers, ram_budget="1.5GB") as loader:

        def forever() -> Any:
            while True:
                for batch in loader:
                    yield batch["image"]

        return rate(forever(), seconds)


def of_torch(dataset: Any, batch_size: int, workers: int, seconds: float) -> float:
    """Images/s of torch's DataLoader."""
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, prefetch_factor=4)
    batches = iter(loader)
    found = rate(batches, seconds)
    batches._shutdown_workers()
    return found


@click.command()
@click.option("--images", type=click.Path(path_type=Path), default=Path("data/photos"), show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="of each measurement")
@click.option("--workers", default=2, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
def main(images: Path, rounds: int, seconds: float, workers: int, batch_size: int) -> None:
    """Print images/s of each way, with 0, 20 and 50 ms a read."""
    torch.set_num_threads(1)
    root = images.resolve()
    names = [str(root / path) for path in pd.read_csv(images / "photos.csv")["path"]] * 20
    measure: dict[str, Any] = {
        "ImageFrame, by a storage": lambda latency_s: of_ringload(frame(names, latency_s), batch_size, workers, seconds),
        "a class with async prefetch": lambda latency_s: of_ringload(
            ByCoroutine(names, latency_s), batch_size, workers, seconds
        ),
        "a class with threads = 64": lambda latency_s: of_ringload(ByThreads(names, latency_s), batch_size, workers, seconds),
        "torch, __getitems__, 64 threads": lambda latency_s: of_torch(OfTorch(names, latency_s), batch_size, workers, seconds),
    }
    latencies = (0.0, 0.02, 0.05)
    found: dict[tuple[str, float], list[float]] = {(name, latency_s): [] for name in measure for latency_s in latencies}
    for _ in range(rounds):
        for name, latency_s in found:
            found[name, latency_s].append(measure[name](latency_s))
    table = Table(title=f"{workers} workers, batches of {batch_size}, {rounds} rounds, medians", title_justify="left")
    for column in ("images/s", "0 ms", "20 ms", "of no wait", "50 ms", "of no wait"):
        table.add_column(column)
    for name in measure:
        rates = [statistics.median(found[name, latency_s]) for latency_s in latencies]
        shares = [
            statistics.median(slow / plain for slow, plain in zip(found[name, latency_s], found[name, 0.0], strict=True))
            for latency_s in latencies
        ]
        table.add_row(
            name, *(f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{shares[1]:.2f}", f"{rates[2]:,.0f}", f"{shares[2]:.2f}")
        )
    Console(width=120).print(table)


def frame(names: list[str], latency_s: float) -> ringload.ImageFrame:
    """The photographs by a storage that waits."""
    ringload.register_storage("slow", partial(Slow, latency_s))
    return ringload.ImageFrame(pd.DataFrame({"path": ["slow://" + name for name in names]}), size=SIZE)


if __name__ == "__main__":
    main()
