"""Measures the transfer of batches to a CUDA device, and its cost for a training step. Ratios are measured A B A B in one run.

    python bench/transfer.py [--rounds 9] [--workers 4]

It needs a CUDA device that torch finds. `--dry` runs the code on the CPU, to test it, and writes no result.

1. bandwidth    bytes/s of copying one batch repeatedly: from the page-locked ring; from the ring as ordinary memory; from a
                tensor of torch's pin_memory(). Workers are idle.
2. full ring    batches/s through `Batches` from a ring that is full when the time begins, page-locked and not.
3. end to end   samples/s through `Batches` while workers fill the ring, over samples/s of torch's DataLoader(pin_memory=True)
                with as many workers, both in their steady state, from the same array.
4. overlap      a training step whose computation takes as long as a copy: seconds a step with `Batches`, which copies ahead on
                its own stream, and with the same copies on the stream of the computation, over seconds of the computation
                alone. 1.0: the copy takes no extra time; 2.0: its full time.

A batch is 256 x 224 x 224 x 3 uint8, 38.5 MB. Every timed section ends with a synchronization of the device. The result is
appended, as one line of JSON, to bench/results/gpu/transfer.jsonl.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import ringload.torch
from ringload.torch.cuda import cuda_transfer_of

RESULTS = Path(__file__).parent / "results" / "gpu" / "transfer.jsonl"
SHAPE = (224, 224, 3)
WARM_UP = 3  # the first rounds of each figure, which do not count

Rates = dict[str, Callable[[], float]]


class Rows(Dataset[torch.Tensor]):
    """The same array, as a dataset of torch."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.array[index])


class Bench:
    """The state that all measurements share. `dry`: on the CPU, where the figures are meaningless."""

    def __init__(self, batch_size: int, n_slots: int, workers: int, rounds: int, seconds: float, dry: bool) -> None:
        self.device = torch.device("cpu") if dry else torch.device("cuda", torch.cuda.current_device())
        self.batch_size, self.n_slots, self.workers = batch_size, n_slots, workers
        self.rounds, self.seconds = rounds, seconds
        self.array = np.random.default_rng(0).integers(0, 256, (4 * batch_size, *SHAPE), np.uint8)
        self.batch_bytes = batch_size * int(np.prod(SHAPE))
        self.figures: dict[str, Any] = {}

    def loader(self) -> ringload.Loader:
        workers_bytes = 64_000_000 + self.workers * 40_000_000
        budget = int(1.01 * self.n_slots * self.batch_bytes) + workers_bytes + 50_000_000
        return ringload.Loader(ringload.Arrays(image=self.array), self.batch_size, workers=self.workers, ram_budget=budget)

    def poll(self) -> None:
        """Wait until the device has completed all work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], Any]) -> float:
        self.poll()
        begin_s = time.perf_counter()
        work()
        self.poll()
        return time.perf_counter() - begin_s

    def compare(self, figure: str, unit: str, rates: Rates) -> None:
        """Measure each by turns, forwards and backwards. Records the medians, and the ratios of the first to each other one."""
        found: dict[str, list[float]] = {name: [] for name in rates}
        for number in range(WARM_UP + self.rounds):
            for name in list(rates)[:: 1 if number % 2 else -1]:
                rate = rates[name]()
                if number >= WARM_UP:
                    found[name].append(rate)
        first, *others = rates
        medians = {name: statistics.median(values) for name, values in found.items()}
        ratios = {}
        for name in others:
            pairs = [a / b for a, b in zip(found[first], found[name], strict=True)]
            ratios[name] = {"median": statistics.median(pairs), "least": min(pairs), "most": max(pairs)}
        self.figures[figure] = {"unit": unit, "medians": medians, f"{first}, over": ratios}
        told = ", ".join(f"{name} {value:,.4g}" for name, value in medians.items())
        over = ", ".join(f"{one['median']:.2f} ({one['least']:.2f} to {one['most']:.2f}) over {n}" for n, one in ratios.items())
        print(f"{figure} [{unit}]: {told}; {first} is {over}", flush=True)


def forever(batches: Any) -> Iterator[Any]:
    """Batches of all epochs."""
    while True:
        yield from batches


def fill(loader: ringload.Loader) -> None:
    """Wait until all slots are full, except one that the measurement may hold."""
    cuda_transfer_of(loader).in_transit.wait()  # a copy holds its slot until it is waited for or polled
    while loader.poll().n_full < loader.plan().n_slots - 1:
        time.sleep(0.002)


def steady(bench: Bench, batches: ringload.torch.Batches, pin: bool) -> Iterator[torch.Tensor]:
    """Batches of a ring that is reserved, registered if it shall be, and full."""
    stream = forever(batches)
    loader = batches.loader
    n_bytes = loader.plan().ring_bytes
    while len(loader.memory) < n_bytes or (pin and bench.device.type == "cuda" and batches.pinned_bytes < n_bytes):
        next(stream)
    fill(loader)
    return stream


def bandwidth(bench: Bench, locked: ringload.Loader, ordinary: ringload.Loader) -> None:
    """GB/s of copying one batch, whose lease is held."""
    sources = {
        "page-locked ring": torch.from_numpy(next(iter(locked))["image"]),
        "ordinary ring": torch.from_numpy(next(iter(ordinary))["image"]),
    }
    tensor = torch.empty_like(sources["ordinary ring"]).copy_(sources["ordinary ring"])
    sources["torch's pin_memory()"] = tensor.pin_memory() if bench.device.type == "cuda" else tensor
    target = torch.empty_like(tensor, device=bench.device)
    n = max(3, int(2e9 / bench.batch_bytes))
    if bench.device.type == "cuda":
        locks = [source.is_pinned() for source in sources.values()]
        if locks != [True, False, True]:
            raise click.ClickException(f"page-locked, of {list(sources)}: {locks}; was registering refused?")

    def rate_of(source: torch.Tensor) -> Callable[[], float]:
        def copy() -> None:
            for _ in range(n):
                target.copy_(source, non_blocking=True)

        return lambda: n * bench.batch_bytes / bench.seconds_of(copy) / 1e9

    bench.compare("bandwidth", "GB/s", {name: rate_of(source) for name, source in sources.items()})


def full_ring(bench: Bench, streams: dict[str, tuple[ringload.Loader, Iterator[Any]]]) -> None:
    """Batches/s from a ring that is full at the start."""
    n = bench.n_slots - 4

    def rate_of(loader: ringload.Loader, stream: Iterator[Any]) -> Callable[[], float]:
        def run() -> None:
            for _ in islice(stream, n):
                pass

        def measure() -> float:
            fill(loader)
            return n / bench.seconds_of(run)

        return measure

    bench.compare("full ring", "batches/s", {name: rate_of(*one) for name, one in streams.items()})


def end_to_end(bench: Bench, loader: ringload.Loader, stream: Iterator[Any]) -> None:
    """Samples/s while workers fill the ring, compared with torch's DataLoader."""
    other = DataLoader(
        Rows(bench.array),
        bench.batch_size,
        shuffle=True,
        num_workers=bench.workers,
        pin_memory=bench.device.type == "cuda",
        persistent_workers=bench.workers > 0,
        drop_last=True,
        multiprocessing_context="forkserver" if bench.workers else None,
    )
    others = (batch.to(bench.device, non_blocking=True) for batch in forever(other))

    def rate_of(batches: Iterator[Any], n_ahead: int) -> Callable[[], float]:
        def measure() -> float:
            for _ in islice(batches, n_ahead):  # batches that were filled while the other one was measured
                pass
            bench.poll()
            begin_s, n = time.perf_counter(), 0
            while time.perf_counter() - begin_s < bench.seconds:
                next(batches)
                n += bench.batch_size
            bench.poll()
            return n / (time.perf_counter() - begin_s)

        return measure

    rates = {"ring": rate_of(stream, bench.n_slots + 4), "DataLoader": rate_of(others, 2 * bench.workers + 4)}
    bench.compare("end to end", "samples/s", rates)
    del others, other
    fill(loader)


def overlap(bench: Bench, ahead: tuple[ringload.Loader, Iterator[Any]], raw: ringload.Loader) -> None:
    """Seconds a step. `raw` gives views of page-locked memory, to be copied on the stream of the computation."""
    n = bench.n_slots - 4
    matrix = torch.randn(2048, 2048, device=bench.device, dtype=torch.float16 if bench.device.type == "cuda" else torch.float32)
    source = torch.from_numpy(next(iter(raw))["image"])
    if bench.device.type == "cuda" and not source.is_pinned():
        raise click.ClickException("the ring is not page-locked")
    target, n_copies = torch.empty_like(source, device=bench.device), 20

    def copy() -> None:
        for _ in range(n_copies):
            target.copy_(source, non_blocking=True)

    copy()
    copy_s = bench.seconds_of(copy) / n_copies

    def compute(times: int) -> torch.Tensor:
        result = matrix
        for _ in range(times):
            result = (result @ matrix).clamp_(-1, 1)
        return result

    compute(10)
    once_s = bench.seconds_of(lambda: compute(100)) / 100
    times = max(1, round(copy_s / once_s))
    views = forever(raw)  # `source` holds one slot
    held: list[Any] = []  # views that copies still read

    def step_copied_ahead() -> None:
        for _ in islice(ahead[1], n):
            compute(times)

    def step_copied_in_line() -> None:
        for batch in islice(views, n):
            held.append(batch)
            torch.from_numpy(batch["image"]).to(bench.device, non_blocking=True)
            compute(times)

    def step_alone() -> None:
        for _ in range(n):
            compute(times)

    def seconds_a_step(work: Callable[[], None], loader: ringload.Loader | None) -> Callable[[], float]:
        def measure() -> float:
            if loader is not None:
                fill(loader)
            seconds = bench.seconds_of(work) / n
            held.clear()
            return seconds * 1e3

        return measure

    rates = {
        "copied ahead": seconds_a_step(step_copied_ahead, ahead[0]),
        "computation alone": seconds_a_step(step_alone, None),
        "copied in line": seconds_a_step(step_copied_in_line, raw),
    }
    bench.compare("overlap", f"ms a step ({times} products of 2048 x 2048, a copy takes {copy_s * 1e3:.2f} ms)", rates)


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="of each measurement end to end")
@click.option("--workers", default=4, show_default=True)
@click.option("--batch", "batch_size", default=256, show_default=True)
@click.option("--slots", "n_slots", default=48, show_default=True)
@click.option("--dry", is_flag=True, help="run on the CPU, to see that it runs; writes no result")
def main(rounds: int, seconds: float, workers: int, batch_size: int, n_slots: int, dry: bool) -> None:
    """Measure the transfer of batches to a CUDA device."""
    if not dry and not torch.cuda.is_available():
        raise click.ClickException(
            f"this needs a CUDA device, and torch {torch.__version__} finds none (--dry runs without one)"
        )
    warnings.simplefilter("error", RuntimeWarning)  # such as the one of a refused registration
    bench = Bench(batch_size, n_slots, workers, rounds, seconds, dry)
    with bench.loader() as locked, bench.loader() as ordinary:
        streams = {}
        for name, loader, pin in (("page-locked", locked, True), ("ordinary", ordinary, False)):
            batches = ringload.torch.Batches(loader, bench.device, "image", pin=pin)
            streams[name] = loader, steady(bench, batches, pin)
        full_ring(bench, streams)
        end_to_end(bench, locked, streams["page-locked"][1])
        bandwidth(bench, locked, ordinary)
    with bench.loader() as ahead, bench.loader() as raw:
        stream = steady(bench, ringload.torch.Batches(ahead, bench.device, "image"), True)
        registers = ringload.torch.Batches(raw, bench.device, "image")
        steady(bench, registers, True)  # its ring is registered, too; its views are copied here
        overlap(bench, (ahead, stream), raw)
    if dry:
        return
    line = {
        "bench": "transfer",
        "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name(bench.device),
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} CPUs, Linux {os.uname().release}",
        "options": {"rounds": rounds, "seconds": seconds, "workers": workers, "batch": batch_size, "slots": n_slots},
        "batch_bytes": bench.batch_bytes,
        "figures": bench.figures,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
