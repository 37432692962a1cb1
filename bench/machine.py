"""Describes the machine, the versions and the commit of a result; and measures the memory of a tree of processes."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

WATCHED = (
    *("ringload", "numpy", "opencv-python-headless", "simplejpeg", "pillow", "torch", "torchvision", "tensorflow", "keras"),
    *("grain", "spdl_core", "spdl_io", "nvidia-dali-cuda120", "webdataset", "litdata"),
)


def machine() -> dict[str, Any]:
    """CPUs, memory and kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the measured packages that are installed."""
    found = {}
    for name in WATCHED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the checkout, with a + if files have changed since; "unknown" outside of a checkout."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=10", "--dirty=+"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def tree_pss_mb(pid: int) -> float:
    """PSS of a process and all its descendants. Shared memory counts once."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in processes:
        try:
            total += pss_bytes(process.pid)
        except (OSError, ProcessLookupError):
            continue  # the process has ended
    return total / 1e6


def pss_bytes(pid: int) -> int:
    """PSS from smaps_rollup, which costs the kernel less than smaps."""
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        for line in lines:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


class Memory:
    """Samples the memory of a tree of processes until the context ends: `samples` of (seconds, MB)."""

    def __init__(self, pid: int, every_s: float = 0.1) -> None:
        self.samples: list[tuple[float, float]] = []
        self._pid, self._every_s, self._stop = pid, every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        begin_s = time.monotonic()
        while not self._stop.wait(self._every_s):
            if mb := tree_pss_mb(self._pid):
                self.samples.append((round(time.monotonic() - begin_s, 2), round(mb, 1)))
