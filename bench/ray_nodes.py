"""Workers on Ray: how they scale over nodes, what the object store costs, and what the trainer pays a batch.

    python -m bench.ray_nodes [--images data/photos] [--rounds 3]

All nodes are Ray nodes of this machine, so they share its CPUs and the wire is memory: samples that sleep show what ringload
and Ray let scale, not what a network does. Each figure is a median over rounds.

    scaling    samples/s that sleep, with 4 actors a node, over 1, 2 and 4 nodes; of n times one node
    store      bytes/s of large rows through the loader, beside `ray.get` of the same arrays from as many actors, one ahead each
    first      seconds from making the loader to its first batch, on a cluster that is there
    trainer    CPU of the trainer's process a batch, on Ray, with local workers, and by Ray Data's iter_torch_batches
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

import ringload
import ringload.ray

SLEEP_S, PER_NODE, BATCH = 0.02, 4, 32
ROW_BYTES = 1 << 20
N_WARM, N_BATCHES = 20, 60  # of photographs
SIZE = (224, 224)
Measured = Callable[[], tuple[str, float]]


class Sleeps:
    """Samples that take their time, and no CPU."""

    fields: ClassVar = {"x": ringload.Field((64,), "uint8")}
    random = False

    def __len__(self) -> int:
        return 1 << 20

    def load(self, index: int, rng: Any, out: Any) -> None:
        """Sleep."""
        time.sleep(SLEEP_S)
        out["x"][:] = index % 251


class Large:
    """Rows of a mebibyte that cost little more than writing them."""

    fields: ClassVar = {"x": ringload.Field((ROW_BYTES,), "uint8")}
    random = False

    def __len__(self) -> int:
        return 1 << 20

    def load(self, index: int, rng: Any, out: Any) -> None:
        """One value."""
        out["x"][:] = index % 251


def rate(batches: Iterator[Any], n_warm: int, n: int) -> float:
    """Batches/s, after the first ones."""
    for _ in range(n_warm):
        next(batches)
    begin_s = time.monotonic()
    for _ in range(n):
        next(batches)
    return n / (time.monotonic() - begin_s)


def cpu_a_batch(batches: Iterator[Any], n_warm: int, n: int) -> float:
    """CPU milliseconds of this process a batch, all its threads together."""
    for _ in range(n_warm):
        next(batches)
    begin_s = time.process_time()
    for _ in range(n):
        next(batches)
    return 1000 * (time.process_time() - begin_s) / n


def scaling(n_nodes: int) -> float:
    """Samples/s of `PER_NODE` actors on each of so many nodes."""
    workers = ringload.ray.Workers(n_nodes * PER_NODE, per_node=PER_NODE)
    with ringload.Loader(Sleeps(), BATCH, workers=workers, ram_budget="2GB") as loader:
        return BATCH * rate(iter(loader), 8 * n_nodes, 20 * n_nodes)


def through_the_loader() -> float:
    """Bytes/s of large rows."""
    with ringload.Loader(Large(), 8, workers=ringload.ray.Workers(2), ram_budget="2GB", shuffle=False) as loader:
        n_bytes = 0
        batches = iter(loader)
        for _ in range(30):
            next(batches)
        begin_s = time.monotonic()
        for _ in range(60):
            n_bytes += next(batches)["x"].nbytes
        return n_bytes / (time.monotonic() - begin_s)


def by_ray_get() -> tuple[float, float]:
    """(bytes/s of the same arrays by `ray.get`, with two calls outstanding at each of two actors; CPU ms of a call)."""
    import ray

    class Maker:
        def make(self, number: int) -> np.ndarray:
            array = np.empty((4, ROW_BYTES), np.uint8)
            array[:] = number % 251
            return array

    makers = [ray.remote(num_cpus=1)(Maker).remote() for _ in range(2)]
    calls = [(maker, maker.make.remote(number)) for number in range(2) for maker in makers]
    n_bytes, begin_s, cpu_s = 0, 0.0, 0.0
    for number in range(180):
        if number == 60:
            n_bytes, begin_s, cpu_s = 0, time.monotonic(), time.process_time()
        maker, ref = calls.pop(0)
        n_bytes += ray.get(ref).nbytes
        calls.append((maker, maker.make.remote(number)))
    rate, cpu_ms = n_bytes / (time.monotonic() - begin_s), 1000 * (time.process_time() - cpu_s) / 120
    for maker in makers:
        ray.kill(maker)
    return rate, cpu_ms


def photos(folder: Path) -> pd.DataFrame:
    """The photographs, often enough for a few epochs of batches."""
    table = pd.read_csv(folder / "photos.csv")
    return pd.DataFrame({"path": [str(folder.absolute() / path) for path in table["path"]]})


def of_photos(table: pd.DataFrame, workers: Any) -> tuple[float, float]:
    """(seconds to the first batch, CPU ms of the trainer a batch)."""
    source = ringload.ImageFrame(table, path="path", size=SIZE)
    begin_s = time.monotonic()
    with ringload.Loader(source, BATCH, workers=workers, ram_budget="2GB") as loader:

        def batches() -> Iterator[Any]:
            while True:
                yield from loader

        endless = batches()
        next(endless)
        first_s = time.monotonic() - begin_s
        return first_s, cpu_a_batch(endless, N_WARM, N_BATCHES)


def of_ray_data(table: pd.DataFrame) -> float:
    """CPU ms of the trainer a batch, by Ray Data."""
    import ray.data

    paths = table["path"].tolist()
    dataset = ray.data.read_images(paths, size=SIZE, mode="RGB")

    def batches() -> Iterator[Any]:
        while True:
            yield from dataset.iter_torch_batches(batch_size=BATCH, drop_last=True)

    return cpu_a_batch(batches(), N_WARM, N_BATCHES)


@click.command()
@click.option("--images", type=click.Path(exists=True, path_type=Path), default=Path("data/photos"))
@click.option("--rounds", default=3)
@click.option("--only", default="", help="scaling, store, trainer")
def main(images: Path, rounds: int, only: str) -> None:
    """Measure, and print a table."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    import ray
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 400 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size})
    for _ in range(4):
        cluster.add_node(num_cpus=PER_NODE, **size)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    measures: dict[str, Callable[[], Any]] = {}
    if only in ("", "scaling"):
        measures |= {f"samples/s, {n} nodes": lambda n=n: scaling(n) for n in (1, 2, 4)}  # type: ignore[misc]
    if only in ("", "store"):
        measures |= {
            "MB/s through the loader": lambda: through_the_loader() / 1e6,
            "MB/s by ray.get": lambda: by_ray_get()[0] / 1e6,
            "CPU ms a call by ray.get": lambda: by_ray_get()[1],
        }
    table = photos(images)
    if only in ("", "trainer"):
        measures |= {
            "CPU ms a batch, on Ray": lambda: of_photos(table, ringload.ray.Workers(2))[1],
            "s to the first batch, on Ray": lambda: of_photos(table, ringload.ray.Workers(2))[0],
            "CPU ms a batch, local workers": lambda: of_photos(table, 2)[1],
            "s to the first batch, local workers": lambda: of_photos(table, 2)[0],
            "CPU ms a batch, Ray Data": lambda: of_ray_data(table),
        }
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            taken[name].append(measure())
    shown = Table("measure", "median", "rounds")
    for name, values in taken.items():
        shown.add_row(name, f"{statistics.median(values):,.2f}", ", ".join(f"{value:,.1f}" for value in values))
    Console().print(shown)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
