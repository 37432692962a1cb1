"""Memory, limited and measured: cgroups with a real limit, the peak of a run, images whose pixels follow from their index."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from ringload.system.cgroups import LIMIT_FILES, USED_FILES

ROOT = Path(__file__).parent.parent
BLOCKS = 4  # along each side of an image
TOLERANCE = 12  # of a pixel: what JPEG may change


class Group:
    """A memory cgroup of the test's own, of version 1 or 2."""

    def __init__(self, version: int, folder: Path) -> None:
        self.version, self.folder = version, folder

    def limit(self, n_bytes: int) -> None:
        (self.folder / LIMIT_FILES[self.version]).write_text(str(n_bytes))

    @property
    def used_bytes(self) -> int:
        return int((self.folder / USED_FILES[self.version]).read_text())

    @property
    def own_bytes(self) -> int:
        """Without the page cache, which the kernel drops at need."""
        words = (self.folder / "memory.stat").read_text().split()
        stat = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        return self.used_bytes - stat["active_file"] - stat["inactive_file"]

    @property
    def oom_kills(self) -> int:
        words = (self.folder / ("memory.oom_control" if self.version == 1 else "memory.events")).read_text().split()
        return int(words[words.index("oom_kill") + 1])


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Group]:
    """A group with this limit; its processes have to be gone at the end. Skips where there is none to be had."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    controls = v2 / "cgroup.subtree_control"
    if os.access(v1, os.W_OK):
        group = Group(1, v1 / f"ringload-{os.getpid()}-{time.monotonic_ns()}")
    elif controls.exists() and "memory" in controls.read_text().split() and os.access(v2, os.W_OK):
        group = Group(2, v2 / f"ringload-{os.getpid()}-{time.monotonic_ns()}")
    else:
        pytest.skip("needs root and a memory cgroup that can be written to")
    group.folder.mkdir()
    try:
        group.limit(limit_bytes)
        yield group
    finally:
        deadline_s = time.monotonic() + 10
        while group.folder.exists():
            try:
                group.folder.rmdir()
            except OSError:  # what was killed is on its way out
                assert time.monotonic() < deadline_s, (group.folder / "cgroup.procs").read_text()
                time.sleep(0.01)


@contextmanager
def started_in(folder: Path, code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A script in an interpreter that is in a cgroup from its first byte on; killed at the end, if it still runs."""
    join = 'echo $$ > "$0"/cgroup.procs && exec "$@"'
    command = ["sh", "-c", join, str(folder), sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def run_in(folder: Path, code: str, *arguments: object, timeout_s: float = 100) -> tuple[str, str, int]:
    """Run it: (stdout, stderr, exit code)."""
    with started_in(folder, code, *arguments) as process:
        out, err = process.communicate(timeout=timeout_s)
        return out, err, process.returncode


def status_bytes(pid: int | str, key: str) -> int:
    """A number of /proc/PID/status, such as VmHWM or VmPTE."""
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index(f"{key}:") + 1]) * 1024


def reserved_bytes() -> int:
    """What is reserved of all segments that this process has open, touched or not: a segment counts once."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:ringload"):
                found[os.fstat(int(fd)).st_ino] = os.fstat(int(fd)).st_blocks * 512
    return sum(found.values())


def processes_bytes() -> int:
    """What the server and the workers have beside the segments, page tables included."""
    total_bytes = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(OSError, ValueError):  # it ended
            words = Path(f"/proc/{process.pid}/smaps_rollup").read_text().split()
            total_bytes += sum(int(words[words.index(key) + 1]) for key in ("Pss_Anon:", "Pss_File:")) * 1024
            total_bytes += status_bytes(process.pid, "VmPTE")
    return total_bytes


class Watch:
    """The peak of all of that, looked at every 20 ms."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, reserved_bytes() + processes_bytes())


def colours(index: int) -> np.ndarray:
    """`(BLOCKS, BLOCKS, 3) uint8`: those of the blocks of image `index`."""
    return np.random.default_rng(index).integers(0, 256, (BLOCKS, BLOCKS, 3)).astype(np.uint8)


def blocks(index: int, height: int, width: int) -> np.ndarray:
    """`(height, width, 3) uint8`: image `index`."""
    rows, columns = np.arange(height) * BLOCKS // height, np.arange(width) * BLOCKS // width
    return colours(index)[rows][:, columns]


def check_blocks(index: int, image: np.ndarray) -> None:
    """Whether `image (H, W, 3)` is image `index`, whatever size it had."""
    height, width = image.shape[0] // BLOCKS, image.shape[1] // BLOCKS
    middles = image[height // 2 :: height, width // 2 :: width].astype(int)
    assert abs(middles - colours(index)).max() <= TOLERANCE, f"sample {index} is not what it should be"


def save_blocks(folder: Path, n: int, n_pixels: int, mixed: bool) -> None:
    """Files of `n` images: of `n_pixels`, RGBA of 16 bits in one strip, which takes most memory; or mixed: of every kind, each
    third of `n_pixels`, the others small."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("jpg", {"quality": 95}),
        ("jpg", {"quality": 95, "progressive": True}),
        ("png", {"compress_level": 1}),
    ]
    for index in range(n):
        is_huge = not mixed or index % 3 == 0
        height = int((n_pixels * 2 / 3) ** 0.5) if is_huge else 90 + index
        width = n_pixels // height if is_huge else 130
        suffix, options = kinds[index // 3 % 3]
        if mixed:
            Image.fromarray(blocks(index, height, width)).save(folder / f"{index}.{suffix}", **options)
        else:
            pixels = np.dstack([blocks(index, height, width), np.full((height, width), 255, np.uint8)])
            options = {"photometric": "rgb", "extrasamples": ["unassalpha"], "rowsperstrip": height}
            tifffile.imwrite(folder / f"{index}.tif", pixels.astype(np.uint16) * 257, **options)
