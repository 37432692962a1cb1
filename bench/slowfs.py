"""Slow storage: mounts a folder so that each read takes `delay_ms` (slowfs.c, over /dev/fuse; needs Linux and root).

A new mount has an empty page cache, so each measurement mounts the folder again.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import data

SOURCE = Path(__file__).with_name("slowfs.c")
MNT_DETACH = 2


def refused() -> str:
    """The reason why slow storage is not available here, or ""."""
    if os.geteuid() != 0:
        return "slow storage is mounted by root"
    return "" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "there is no /dev/fuse"


def program() -> Path:
    """The path of slowfs, compiled once."""
    path = data.ROOT / "slowfs"
    if not path.exists() or path.stat().st_mtime < SOURCE.stat().st_mtime:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{os.getpid()}-slowfs")
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-pthread", "-o", unfinished, SOURCE], check=True)
        unfinished.rename(path)
    return path


@contextmanager
def mounted(folder: Path, delay_ms: float) -> Iterator[Path]:
    """Mount `folder`, with slow reads, at another path."""
    with tempfile.TemporaryDirectory(prefix="ringload-slow-") as place:
        server = subprocess.Popen([program().absolute(), folder, place, str(delay_ms)], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            if server.stdout.readline() != "mounted\n":
                raise OSError("slowfs did not mount; what it said is above")
            yield Path(place)
        finally:
            subprocess.run(["umount", "--lazy", place], check=False)
            server.stdout.close()
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:  # what a peer left running still holds files of it
                server.kill()
                server.wait()
