"""Measures orders: the time to the first batch and to resume, and how much of the batches is padding.

    python -m bench.orders [--samples 30000000] [--padded 200000] [--loaded 20000]

start     from a description of the order, with its weights, classes or lengths as arrays, to the indices of the first batch
resume    the same, to those of the batch at position 20 million, or at two thirds of an epoch of fewer samples
batch     the mean of 200 batches that follow
padding   share of the elements of all batches, for log-normal lengths of 1 to 2,048 (median 245): batches of 64 samples, each
          padded to its longest, in random order and by `Buckets`; rows of 2,048 elements by `Packed`

loaded    samples a second of such lengths, loaded by 2 workers: with `Buckets`, with `Packed`, and with torch's DataLoader and
          a collate_fn that pads random samples to the longest; by turns, medians, ratios of the same round: see `bench.padded`

But for `loaded`, only the order is computed: nothing is loaded, and no process is started. Without `Packed`, whose rows have
several samples, a batch is 64 samples. `--samples 0`, `--padded 0` and `--loaded 0` leave a table out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import ringload
from bench.machine import machine
from ringload.order.choose import loader_order
from ringload.order.loader_order import LoaderOrder
from ringload.order.packed import PackedRows
from ringload.protocols import Binding

BATCH, LONGEST, N_MORE = 64, 2048, 200
BUDGET = 32_768  # elements


def lengths_of(n: int) -> np.ndarray:
    """Log-normal lengths, `(n,) int32`."""
    return np.clip(np.random.default_rng(0).lognormal(5.5, 0.9, n), 1, LONGEST).astype(np.int32)


def orders(n: int) -> dict[str, Callable[[], Any]]:
    """Name -> what makes the description. The arrays are made before."""
    lengths, weights = lengths_of(n), np.random.default_rng(1).random(n)
    classes = np.random.default_rng(2).integers(0, 1000, n)
    return {
        "shuffle": lambda: "shuffle",
        "sequence": lambda: "sequence",
        "Weighted": lambda: ringload.Weighted(weights),
        "Balanced": lambda: ringload.Balanced(classes),
        "Blocks": lambda: ringload.Blocks(1000, 16),
        "Buckets": lambda: ringload.Buckets(lengths),
        "Buckets, max_elements": lambda: ringload.Buckets(lengths, max_elements=BUDGET),
        "Packed": lambda: PackedRows.of(lengths, LONGEST, None),
    }


def bound(description: Any, n: int) -> LoaderOrder:
    """The order of a loader of one rank."""
    return loader_order(description, Binding(n, BATCH, 0, lambda name: np.empty(0), last="keep"))


def seconds(make: Callable[[], Any], n: int, position: int) -> tuple[float, float]:
    """Until a batch is computed; and for each that follows, the mean."""
    begin_s = time.perf_counter()
    order = bound(make(), n)
    number = min(position // BATCH, order.n_batches(0) * 2 // 3)
    order.rows(0, number)
    first_s = time.perf_counter()
    n_more = min(N_MORE, order.n_batches(0) - number)
    for more in range(n_more):
        order.rows(0, number + more)
    return first_s - begin_s, (time.perf_counter() - first_s) / n_more


def padding(description: Any, lengths: np.ndarray) -> float:
    """The share of an epoch that is padding, where each batch is padded to its longest sample."""
    order = bound(description, len(lengths))
    taken = [lengths[order.rows(0, number).index] for number in range(order.n_batches(0))]  # type: ignore[union-attr]
    return 1 - sum(int(one.sum()) for one in taken) / sum(len(one) * int(one.max()) for one in taken)


@click.command()
@click.option("--samples", default=30_000_000, show_default=True)
@click.option("--padded", default=200_000, show_default=True, help="Samples for the share of padding.")
@click.option("--loaded", default=20_000, show_default=True, help="Samples for the throughput.")
@click.option("--workers", default=2, show_default=True, help="Workers of each loader, for the throughput.")
@click.option("--rounds", default=5, show_default=True, help="Rounds, for the throughput.")
def main(samples: int, padded: int, loaded: int, workers: int, rounds: int) -> None:
    """Print the times of each order, the share of padding, and the throughput."""
    console = Console(width=120)
    if samples:
        print_times(console, samples)
    if padded:
        print_padding(console, padded)
    if loaded:
        print_throughput(console, loaded, workers, rounds)


def print_times(console: Console, samples: int) -> None:
    """The first table: until the first batch, and until one in the midst."""
    table = Table(title=f"{samples:,} samples, batches of {BATCH}; {machine()['cpu']}", title_justify="left")
    for name in ("order", "start", "resume", "batch", "start, to shuffle's"):
        table.add_column(name)
    for make in orders(100_000).values():  # to import and to warm up
        seconds(make, 100_000, 5000)
    usual = 0.0
    for name, make in orders(samples).items():
        start_s, batch_s = seconds(make, samples, 0)
        resume_s, _ = seconds(make, samples, 20_000_000)
        usual = usual or start_s
        table.add_row(name, f"{start_s:.4f} s", f"{resume_s:.4f} s", f"{batch_s * 1e6:.0f} us", f"{start_s / usual:.1f}")
    console.print(table)


def print_padding(console: Console, padded: int) -> None:
    """The second: how much of an epoch is padding."""
    lengths = lengths_of(padded)
    packed = PackedRows.of(lengths, LONGEST, None)
    table = Table(title=f"padding, {padded:,} samples of 1 to {LONGEST:,} elements", title_justify="left")
    table.add_column("batches")
    table.add_column("padding")
    for name, share in (
        (f"{BATCH} random samples, padded to the longest of all", 1 - lengths.mean() / lengths.max()),
        (f"{BATCH} random samples, padded to the longest of the batch", padding("shuffle", lengths)),
        (f"Buckets of {BATCH}", padding(ringload.Buckets(lengths), lengths)),
        (f"Buckets of up to {BUDGET:,} elements", padding(ringload.Buckets(lengths, max_elements=BUDGET), lengths)),
        (f"Packed rows of {LONGEST:,}", 1 - int(lengths.sum()) / (packed.n_rows * LONGEST)),
    ):
        table.add_row(name, f"{share:.1%}")
    console.print(table)


def print_throughput(console: Console, loaded: int, workers: int, rounds: int) -> None:
    """The third: samples that were loaded a second."""
    from bench.padded import measure  # imports torch

    lengths = lengths_of(loaded)
    title = f"{loaded:,} samples, {workers} workers, {rounds} rounds; {machine()['cpu']}"
    table = Table(title=title, title_justify="left")
    for name in ("loader", "samples/s", "padding", "rate, to torch's (least to most)"):
        table.add_column(name)
    results = measure(lengths, LONGEST, BATCH, BUDGET, workers, rounds)
    theirs = next(iter(results.values()))
    for name, one in results.items():
        ratios = sorted(their_s / own_s for their_s, own_s in zip(theirs.seconds, one.seconds, strict=True))
        shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        table.add_row(name, f"{one.rate(loaded):,.0f}", f"{1 - int(lengths.sum()) / one.n_elements:.1%}", shown)
    console.print(table)


if __name__ == "__main__":
    main()
