"""Compares ringload with the limits of the machine. Each figure is a median of ratios, measured A B A B within one run.

    python -m bench.roofline [--images data/photos] [--rounds 7]

1. decoding     images/s through the ring, over images/s of the same decoder in as many processes without transport
2. transport    bytes/s through the ring of batches that are only copied, over bytes/s of as many processes that copy into
                private buffers as large as the ring, in the steady state
3. trainer      CPU time of the trainer's thread a batch: when it waits for every batch, compared with a thread that is only
                woken as often while other processes decode; and when batches are ready
4. first batch  seconds from making a loader of 600,000 files to its first batch of 256, less the time of decoding 256 images
                divided by the workers
5. memory       peak PSS of all processes of ringload, including ring and index, over ram_budget

Both sides of a ratio are measured directly after each other, because the speed of such machines changes by a factor of 2 within
minutes. A loader is measured in its steady state: its whole ring has been reserved and used, and batches filled ahead are taken
before the time counts. While the other side is measured, the ring is full, and its workers are blocked.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import platform
import select
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pandas as pd
import psutil
from rich.console import Console
from rich.table import Table

import ringload
from ringload.engine.schedule import MAX_HOUSEKEEPING_EVERY
from ringload.fields import Row

MB = 1_000_000
SIZE = (224, 224)
COPY_SHAPE = (512, *SIZE, 3)  # the source of copies: 77 MB, more than the caches hold


def photos(images: Path) -> ringload.ImageFrame:
    table = pd.concat([pd.read_csv(images / "photos.csv")] * 200)  # epochs as long as a large dataset's
    return ringload.ImageFrame(table, label="multi", root=images, size=SIZE)


def in_processes(n: int, work: Callable[[int], float], meanwhile: Callable[[], None] = lambda: None) -> float:
    """The sum of the rates that `work` returns in each of `n` forked processes, which run side by side."""
    context = multiprocessing.get_context("fork")
    barrier, rates = context.Barrier(n), context.SimpleQueue()

    def run(number: int) -> None:
        cv2.setNumThreads(1)
        barrier.wait()
        rates.put(work(number))

    processes = [context.Process(target=run, args=(number,)) for number in range(n)]
    for process in processes:
        process.start()
    meanwhile()
    total: float = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def decode_roofline(source: ringload.ImageFrame, workers: int, seconds: float) -> float:
    """Images/s of the decoder alone."""

    def work(number: int) -> float:
        row = Row({name: np.empty(field.shape, field.dtype) for name, field in source.fields.items()})
        rng = np.random.default_rng(number)  # also of random crops and flips, if the source makes any
        order = rng.permutation(len(source))
        begin_s, n = time.perf_counter(), 0
        while time.perf_counter() - begin_s < seconds:
            source.load(int(order[n % len(order)]), rng, row)
            n += 1
        return n / (time.perf_counter() - begin_s)

    return in_processes(workers, work)


def samples_per_s(loader: ringload.Loader, seconds: float) -> float:
    """Samples/s of the workers, with no batches ahead. Ends with a full ring."""
    stream = forever(loader)
    for _ in range(loader.plan().n_slots + 8):
        next(stream)
    begin_s, n = time.perf_counter(), 0
    while time.perf_counter() - begin_s < seconds:
        n += len(next(stream).index)
    rate = n / (time.perf_counter() - begin_s)
    fill(loader)
    return rate


def fill(loader: ringload.Loader) -> None:
    """Wait until all slots are full: then all are reserved, and the workers are blocked."""
    while loader.poll().n_full < loader.plan().n_slots - 1:  # the iterator may still hold one
        time.sleep(0.02)


def forever(loader: ringload.Loader) -> Iterator[ringload.Batch]:
    while True:
        yield from loader


def copy_source() -> ringload.Arrays:
    array = np.random.default_rng(0).integers(0, 256, COPY_SHAPE, np.uint8)
    array.flags.writeable = False  # else each epoch of 2 batches begins with a check whether the array has changed
    return ringload.Arrays(image=array)


def copy_roofline(source: Any, ring_bytes: int, workers: int, seconds: float) -> float:
    """Samples/s of plain copies from a shared array into private memory as large as the ring. `source` has one field."""
    batch = 128  # rows a call, as many as in a task of the ring
    ((name, field),) = source.fields.items()

    def work(number: int) -> float:
        private = np.frombuffer(mmap.mmap(-1, ring_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        n_rows = ring_bytes // field.row_bytes
        rows = private[: n_rows * field.row_bytes].view(field.dtype).reshape(n_rows, *field.shape)
        private[:: mmap.PAGESIZE] = 1  # the steady state: all pages are allocated
        rng, begin_s, n = np.random.default_rng(number), time.perf_counter(), 0
        while time.perf_counter() - begin_s < seconds:
            start = n % (n_rows - batch)
            source.load_rows(rng.integers(0, len(source), batch), (), {name: rows[start : start + batch]})
            n += batch
        return n / (time.perf_counter() - begin_s)

    return in_processes(workers, work)


def trainer_cpu_us(loader: ringload.Loader, n: int, rounds: int, ready: bool) -> list[float]:
    """Microseconds of CPU time of the trainer's thread a batch, over `n` batches a round. `ready`: all were full before."""
    stream, found = iter(loader), []
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < 4.0:  # until the whole ring is reserved, as the start is not measured here
        next(stream)
    for _ in range(rounds):
        if ready:
            fill(loader)  # releases all slots, so as many batches are taken before the time counts
        total_s = 0.0
        for number in range(-n if ready else 0, n):
            begin_s = time.thread_time()
            next(stream)
            total_s += (time.thread_time() - begin_s) * (number >= 0)
        found.append(total_s / n * 1e6)
    return found


def wake_up_us(source: ringload.ImageFrame, batch_size: int, workers: int, n: int) -> float:
    """Microseconds of CPU time for waking a thread once a batch, while `workers` processes decode."""
    bell, over, share = os.eventfd(0), os.eventfd(0), max(1, batch_size // workers)
    taken: list[tuple[float, int]] = []

    def work(number: int) -> float:
        row = Row({name: np.empty(field.shape, field.dtype) for name, field in source.fields.items()})
        order = np.random.default_rng(number).permutation(len(source))
        try:
            for position in range((n + 1) * share):
                source.load(int(order[position % len(order)]), None, row)
                if number == 0 and (position + 1) % share == 0:
                    os.eventfd_write(bell, 1)
        finally:
            os.eventfd_write(over, 1)
        return 0.0

    def wait() -> None:
        with select.epoll() as epoll:
            for fd in (bell, over):
                epoll.register(fd, select.EPOLLIN | select.EPOLLET)
            epoll.poll()
            rang, n_woken, begin_s = [(bell, select.EPOLLIN)], 0, time.thread_time()
            while epoll.poll() == rang:
                n_woken += 1
            taken.append((time.thread_time() - begin_s, n_woken + 1))

    in_processes(workers, work, wait)
    for fd in (bell, over):
        os.close(fd)
    ((taken_s, n_woken),) = taken
    return taken_s / n_woken * 1e6


def first_batch_s(source: ringload.ImageFrame, workers: int) -> float:
    gc.collect()
    begin_s = time.perf_counter()
    with ringload.Loader(source, 256, workers=workers) as loader:
        next(iter(loader))
        return time.perf_counter() - begin_s


class Pss:
    """The peak PSS, in bytes, of ringload's processes and of the ring as the trainer maps it."""

    def __init__(self, loader: ringload.Loader) -> None:
        self.peak_bytes = 0
        self._loader = loader

    @contextmanager
    def watched(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _watch(self, stop: threading.Event) -> None:
        me = psutil.Process()
        while not stop.wait(0.02):
            ring = sum(m.pss for m in me.memory_maps(grouped=False) if "memfd:ringload" in m.path)
            processes = [p for p in me.children(recursive=True) if "ringload" in p.name()]
            self.peak_bytes = max(self.peak_bytes, ring + sum(pss_of(p) for p in processes))


def pss_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def ratios(a: Callable[[], float], b: Callable[[], float], rounds: int) -> tuple[list[float], float, float]:
    """The ratios a / b of interleaved rounds, and the medians of a and of b."""
    pairs = [(a(), b()) if number % 2 else (b(), a())[::-1] for number in range(rounds)]
    return [x / y for x, y in pairs], statistics.median(x for x, _ in pairs), statistics.median(y for _, y in pairs)


def spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


@click.command()
@click.option("--images", type=click.Path(path_type=Path), default=Path("data/photos"), show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="of each measurement")
@click.option("--workers", default=2, show_default=True)
def main(images: Path, rounds: int, seconds: float, workers: int) -> None:
    """Print ringload's figures and the limits of the machine."""
    table = Table(title=f"{workers} workers, {rounds} rounds of {seconds} s, medians", title_justify="left")
    for name in ("figure", "ring", "yardstick", "ratio", "spread", "goal"):
        table.add_column(name)
    source = photos(images)

    with ringload.Loader(source, 64, workers=workers) as loader:
        fill(loader)
        found, ring, roof = ratios(
            lambda: samples_per_s(loader, seconds), lambda: decode_roofline(source, workers, seconds), rounds
        )
    row = ["decoding, 224 x 224, batch 64", f"{ring:,.0f} images/s", f"{roof:,.0f} images/s"]
    table.add_row(*row, f"{statistics.median(found):.3f}", spread(found), ">= 0.97")

    arrays = copy_source()
    with ringload.Loader(arrays, 256, workers=workers, ram_budget=900 * MB) as loader:
        ring_bytes = loader.plan().ring_bytes
        fill(loader)
        found, ring, plain = ratios(
            lambda: samples_per_s(loader, seconds), lambda: copy_roofline(arrays, ring_bytes, workers, seconds), rounds
        )
    sample_gb = np.prod(SIZE) * 3 / 1e9
    row = ["transport, 38.5 MB batches", f"{ring * sample_gb:.1f} GB/s", f"{plain * sample_gb:.1f} GB/s"]
    table.add_row(*row, f"{statistics.median(found):.3f}", spread(found), ">= 0.75")

    for batch_size in (64, 256, 1024):
        with ringload.Loader(source, batch_size, workers=workers) as loader:
            n = min(MAX_HOUSEKEEPING_EVERY, loader.plan().n_slots // 4) or 1  # as many as are released at once
            waiting = trainer_cpu_us(loader, n, rounds, False)
            ready = trainer_cpu_us(loader, n, rounds, True)
        woken = statistics.median(wake_up_us(source, batch_size, workers, n) for _ in range(rounds))
        for how, values, bare in (("waiting", waiting, f"{woken:.0f} us"), ("ready", ready, "")):
            row = [f"trainer's CPU, batch {batch_size}, {how}", f"{statistics.median(values):.0f} us", bare, ""]
            table.add_row(*row, f"{min(values):.0f} to {max(values):.0f} us", "<= 100 us")

    extra = []
    for _ in range(rounds):
        decoding_s = 256 / decode_roofline(source, workers, 1.0)
        extra.append(first_batch_s(source, workers) - decoding_s)
    row = ["first batch of 256, beyond its decoding", f"{statistics.median(extra):.2f} s", "", ""]
    table.add_row(*row, f"{min(extra):.2f} to {max(extra):.2f} s", "<= 0.50 s")

    budget_bytes = 4000 * MB
    with ringload.Loader(source, 256, workers=workers, ram_budget=budget_bytes) as loader:
        pss = Pss(loader)
        with pss.watched():
            for _, batch in zip(range(2 * loader.plan().n_slots), forever(loader), strict=False):
                for array in batch.values():
                    array.max()
            while loader.poll().n_full < loader.plan().n_slots // 2:
                time.sleep(0.05)
    row = ["memory of all processes, peak PSS", f"{pss.peak_bytes / MB:,.0f} MB", f"{budget_bytes / MB:,.0f} MB"]
    table.add_row(*row, f"{pss.peak_bytes / budget_bytes:.3f}", "", "<= 1")
    Console(width=120).print(table)
    machine = f"{os.cpu_count()} CPUs, {psutil.virtual_memory().total / 1e9:.0f} GB, Linux {os.uname().release}"
    print(f"{machine}, Python {platform.python_version()} of {sys.base_prefix}, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
