"""Parts of the soak: how batches are compared, what has to be flat, and a second loader at the same time."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ringload import Batch, Loader
from tests.conftest import descriptors, leftovers, of_templates
from tests.helpers import Truth, check

METHODS: list[Any] = ["forkserver", "spawn", "fork", "fork"]


def say(text: str) -> None:
    print(text, flush=True)


def bytes_of(batch: Batch) -> dict[str, bytes]:
    return {"index": batch.index.tobytes()} | {name: array.tobytes() for name, array in batch.items()}


def compare(batch: Batch, expected: Any) -> None:
    found = bytes_of(batch)
    wrong = [name for name in expected if found.get(name) != expected[name]]
    assert not wrong, f"batch {batch.number} of epoch {batch.epoch} has other bytes in {wrong}"


def forever(loader: Loader) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from loader


def own_bytes(process: psutil.Process) -> int:
    """What a process has written, and shares with no other: without the ring, and without what it has of a fork."""
    n_bytes, in_ring = 0, False
    with suppress(OSError):  # it ended
        for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
            word, *words = line.split()
            if not word.endswith(":"):
                in_ring = "memfd:ringload" in line
            elif word == "Private_Dirty:" and not in_ring:
                n_bytes += int(words[0]) * 1024
    return n_bytes


def files() -> dict[str, str]:
    """What each descriptor of this process is, but for those of templates, which stay."""
    found = {}
    for fd in {*map(int, os.listdir("/proc/self/fd"))} - of_templates():
        with suppress(OSError):  # the one that listed them
            found[str(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def sample() -> dict[str, Any]:
    """What has to be flat, but for RSS exactly."""
    deadline_s = time.monotonic() + 2
    while (left := leftovers(set())) and time.monotonic() < deadline_s:
        gc.collect()
        time.sleep(0.005)
    shm = sorted(name for name in os.listdir("/dev/shm") if "mp-" not in name)  # multiprocessing's, of whom else runs here
    return {"left": left, "fds": files(), "ours": descriptors(), "shm": shm, "threads": threading.active_count()}


class Beside:
    """A second loader at the same time, which has the same faults, and its twin without workers."""

    def __init__(self, rng: random.Random) -> None:
        options: dict[str, Any] = {"seed": rng.randrange(1000), "stall_timeout": 60.0, "ram_budget": "600MB", "restarts": None}
        workers, method = rng.choice([1, 2]), rng.choice(METHODS)
        say(f"beside it, {workers} workers by {method}")
        self.loaders = [
            Loader(Truth(100), 10, workers=workers, start_method=method, **options),
            Loader(Truth(100), 10, workers=0, **options),
        ]
        self.batches = [forever(loader) for loader in self.loaders]

    def step(self) -> None:
        batch, twin = map(next, self.batches)
        check(batch)
        compare(batch, bytes_of(twin))

    def close(self) -> None:
        self.batches.clear()
        for loader in self.loaders:
            loader.close()
