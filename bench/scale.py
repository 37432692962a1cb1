"""What the trainer's process pays as workers grow: simulated ones (see `simulated`), and real processes where there is room.

    python -m bench.scale [--simulated 1,4,16,64,256] [--real 1,4,16] [--rounds 3]

Samples only sleep. All numbers of workers deliver the same `--rate` of samples/s, as a sample takes the longer the more workers
there are. So the trainer does the same work in each row, and only the number of workers differs. Each row is a median of
rounds; in each round all rows are measured one after another, each in a new process. Every batch is verified.

    tasks         of a batch, counted by the source
    CPU, waits    microseconds of CPU of the trainer's thread a batch, when the trainer waits for each batch
    CPU, ready    the same when the trainer is slower than workers, so that each batch is ready
    calls         read and write system calls of that thread a batch, /proc/thread-self/io (the trainer waits for each batch)
    blocked       how often the thread was blocked a batch
    first batch   seconds from making the loader to its first batch, less what a worker sleeps in that time; and the CPU of it
    memory        anonymous memory that the trainer's process has taken for the loader
    files         descriptors that it has open for the loader
    helpers       CPUs that were busy with all other processes
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import ringload
from bench.simulated import SimulatedWorkers
from bench.sleeping import SHAPE, Sleepers, payload
from bench.work import WrongPayloadError
from ringload.ring.plan import make_plan
from ringload.system.cgroups import Usable, usable_memory
from ringload.system.segment import anonymous_bytes

ROOT = Path(__file__).parents[1]
N_SLOTS = 64  # of the ring, as by default
SOURCE_BYTES = 4096  # more than the packed source has
SLOWER = 1.5  # a trainer for which batches are ready takes so many times as long as workers
LONGEST_S = 300  # one measurement may take: more means that it hangs
IN_A_PROCESS = "import json, sys; from bench.scale import measure; print(json.dumps(measure(**json.loads(sys.argv[1]))))"


@dataclass(frozen=True)
class Found:
    """What was measured of one loader. CPU is in microseconds a batch."""

    first_tasks: int
    tasks: float
    samples_per_s: float
    waiting_us: float
    ready_us: float
    calls: float
    blocked: float
    first_s: float
    first_cpu_ms: float
    memory_mb: float
    files: int
    helpers: float
    n_verified: int


class Cost:
    """CPU, system calls and waits of the thread that makes it, since then."""

    def __init__(self) -> None:
        self._begin = self._now()

    @staticmethod
    def _now() -> tuple[float, int, int]:
        lines = Path("/proc/thread-self/io").read_text().split()
        calls = int(lines[lines.index("syscr:") + 1]) + int(lines[lines.index("syscw:") + 1])
        return time.thread_time(), calls, resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

    def so_far(self) -> tuple[float, int, int]:
        """(CPU seconds, read and write calls, times blocked)."""
        cpu_s, calls, blocked = (now - begin for now, begin in zip(self._now(), self._begin, strict=True))
        return cpu_s, int(calls), int(blocked)


def budget_bytes(batch_size: int, n_batches: int, workers: int, is_real: bool) -> int:
    """What a loader of one epoch needs for a ring of `N_SLOTS`, by `ringload plan`'s arithmetic."""
    source_bytes = SOURCE_BYTES if is_real else 0
    plan = make_plan(
        {"x": ringload.Field(SHAPE, "int64")},
        batch_size,
        workers,
        1 << 50,
        Usable(1 << 60, "as much as is needed"),
        index_bytes=source_bytes,
        source_bytes=source_bytes,
        max_slots=n_in_all(n_batches),
    )
    return replace(plan, n_slots=N_SLOTS).total_bytes


def n_in_all(n_batches: int) -> int:
    """Batches of an epoch in which `n_batches` are measured twice: with what is taken first, and what is ahead at the end."""
    return 2 * n_batches + 4 * N_SLOTS


def measure(workers: int, is_real: bool, batch_size: int, rate: float, n_batches: int) -> dict[str, Any]:
    """Measure one loader, in this process. Returns a `Found` as a dict.

    Raises:
        WrongPayloadError: a batch is not what it should be.
    """
    total = n_in_all(n_batches)
    cost_s = workers / rate
    source = Sleepers(batch_size, total * batch_size, cost_s if is_real else 0.0, tasks := RawArray("q", workers * total))
    before_bytes, before_files, before_s = anonymous_bytes(), n_files(), time.perf_counter()
    filling = workers if is_real else SimulatedWorkers(workers, lambda n_rows: n_rows * cost_s)
    budget = budget_bytes(batch_size, n_batches, workers, is_real)
    start, begin_s = Cost(), time.perf_counter()
    with ringload.Loader(source, batch_size, workers=filling, ram_budget=budget, shuffle=False, epochs=1) as loader:
        trainer = Trainer(loader)
        trainer.take()
        first_s, (first_cpu_s, _, _) = time.perf_counter() - begin_s, start.so_far()
        n_slots = loader.plan().n_slots
        for _ in range(n_slots + 8):  # those that were cut before a sample's cost was known
            trainer.take()
        cost, begin_s, trainer.cpu_s = Cost(), time.perf_counter(), 0.0
        for _ in range(n_batches):
            trainer.take()
        took_s, (_, calls, blocked) = time.perf_counter() - begin_s, cost.so_far()
        waiting_s = trainer.cpu_s
        while loader.poll().n_full < n_slots - 1:
            time.sleep(0.02)
        trainer.cpu_s, next_s = 0.0, time.perf_counter()
        for _ in range(n_batches):
            trainer.take()
            next_s += SLOWER * batch_size / rate
            time.sleep(max(0.0, next_s - time.perf_counter()))
        memory_bytes, files = anonymous_bytes() - before_bytes, n_files() - before_files
        trainer.drop()
    counted = np.frombuffer(tasks, np.int64).reshape(workers, total).sum(axis=0)
    first_tasks = int(counted[0])
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    # a worker's share of the first batch: tasks one after another, of the rows that tasks have before a cost is known
    slept_s = -(-first_tasks // workers) * -(-batch_size // first_tasks) * cost_s
    return asdict(
        Found(
            first_tasks=first_tasks,
            tasks=float(counted[n_slots + 9 : trainer.n_taken].mean()),
            samples_per_s=n_batches * batch_size / took_s,
            waiting_us=waiting_s / n_batches * 1e6,
            ready_us=trainer.cpu_s / n_batches * 1e6,
            calls=calls / n_batches,
            blocked=blocked / n_batches,
            first_s=first_s - slept_s,
            first_cpu_ms=first_cpu_s * 1e3,
            memory_mb=memory_bytes / 1e6,
            files=files,
            helpers=(others.ru_utime + others.ru_stime) / (time.perf_counter() - before_s),
            n_verified=trainer.n_taken,
        )
    )


class Trainer:
    """Takes batches, verifies each, and adds up the CPU seconds of taking: `cpu_s`, with the release of the one before."""

    def __init__(self, loader: ringload.Loader) -> None:
        self._batches: Iterator[ringload.Batch] = iter(loader)
        self._batch: ringload.Batch | None = None
        self._next = np.arange(loader.batch_size)  # the samples that are due
        self.cpu_s, self.n_taken = 0.0, 0

    def take(self) -> None:
        """Take a batch.

        Raises:
            WrongPayloadError: it does not have the samples that are due, or they do not carry what they should.
        """
        begin_s = time.thread_time()
        self._batch = next(self._batches)
        self.cpu_s += time.thread_time() - begin_s
        if not np.array_equal(self._batch.index, self._next):
            raise WrongPayloadError(f"batch {self.n_taken} has samples {self._batch.index}, and {self._next} were due")
        if not np.array_equal(self._batch["x"], payload(self._next)):
            raise WrongPayloadError(f"batch {self.n_taken} does not carry its payload")
        self._next += len(self._next)
        self.n_taken += 1

    def drop(self) -> None:
        """Release the last batch."""
        self._batch = None


def n_files() -> int:
    """Descriptors that this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Numbers(click.ParamType):
    """Numbers of workers: "1,4,16", or "" for none."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(one) for one in value.split(",") if one.strip())
        except ValueError:
            self.fail(
                f"numbers of workers are integers with commas between them, such as 1,4,16; not {value!r}", param, context
            )
        if any(number < 1 for number in numbers):
            self.fail(f"a number of workers is 1 or more, not {min(numbers)}", param, context)
        return numbers


def measured(**arguments: Any) -> Found:
    """`measure` in a new process.

    Raises:
        ClickException: it failed; with what it said.
    """
    process = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, json.dumps(arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )
    if process.returncode != 0:
        raise click.ClickException(f"{arguments} failed:\n{process.stderr}")
    return Found(**json.loads(process.stdout))


def row(name: str, workers: int, rounds: list[Found]) -> list[str]:
    """A row of the table."""

    def median(what: str) -> float:
        return float(statistics.median(getattr(one, what) for one in rounds))

    def spread(what: str) -> str:
        values = [getattr(one, what) for one in rounds]
        return f"{median(what):.0f} ({min(values):.0f} to {max(values):.0f})"

    return [
        *(name, str(workers), f"{median('tasks'):.0f}", f"{median('samples_per_s'):,.0f}"),
        *(spread("waiting_us"), spread("ready_us"), f"{median('calls'):.2f}", f"{median('blocked'):.2f}"),
        *(f"{median('first_s'):.3f} s", f"{median('first_cpu_ms'):.0f} ms", f"{median('memory_mb'):.1f} MB"),
        *(f"{median('files'):.0f}", f"{median('helpers'):.2f}"),
    ]


@click.command()
@click.option("--simulated", type=Numbers(), default="1,4,16,64,256", show_default=True, help="numbers of simulated workers")
@click.option("--real", type=Numbers(), default="1,4,16", show_default=True, help="numbers of worker processes")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--rate", type=click.FloatRange(1), default=3200.0, show_default=True, help="samples/s of all workers together")
@click.option("--batches", type=click.IntRange(1), default=100, show_default=True, help="that are measured, twice")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def main(simulated: tuple[int, ...], real: tuple[int, ...], batch_size: int, rate: float, batches: int, rounds: int) -> None:
    """Print what the trainer pays with each number of workers."""
    rows = sorted([*((number, False) for number in simulated), *((number, True) for number in real)], key=lambda one: one[::-1])
    if not rows:
        raise click.UsageError("--simulated and --real are both empty: there is nothing to measure")
    needed_bytes = max(budget_bytes(batch_size, batches, *one) for one in rows)
    if (there_bytes := usable_memory().n_bytes) < needed_bytes:
        raise click.UsageError(
            f"a loader of {max(rows)[0]} workers plans for {needed_bytes / 1e9:.1f} GB, also where they are simulated, and "
            f"there are {there_bytes / 1e9:.1f} GB: give smaller numbers of workers"
        )
    found: dict[tuple[int, bool], list[Found]] = {one: [] for one in rows}
    for _ in range(rounds):
        for (workers, is_real), results in found.items():
            results.append(measured(workers=workers, is_real=is_real, batch_size=batch_size, rate=rate, n_batches=batches))
    title = f"batches of {batch_size}, {rate:,.0f} samples/s, {rounds} rounds of {batches} batches: medians (spread)"
    table = Table(title=title, title_justify="left")
    names = ("workers", "", "tasks", "samples/s", "CPU us, waits", "CPU us, ready", "calls", "blocked")
    for name in (*names, "first batch", "its CPU", "memory", "files", "helpers"):
        table.add_column(name)
    for (workers, is_real), results in found.items():
        table.add_row(*row("real" if is_real else "simulated", workers, results))
    Console(width=160).print(table)
    n_verified = sum(one.n_verified for results in found.values() for one in results)
    print(f"{n_verified:,} batches were verified. {os.cpu_count()} CPUs, Linux {os.uname().release}, ", end="")
    print(f"Python {platform.python_version()} of {sys.base_prefix}, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
