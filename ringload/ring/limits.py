"""What this process may use: memory and CPUs, with the limits of its control groups (cgroups v1 and v2) taken in.

A container's limit shows in no system call: inside a 64 MiB memory cgroup, psutil reports the host's 24 GB, and reserving
more than the limit gets the process killed, not refused (measured, Linux 6.18). So the limits are read before anything is
reserved: those of the own group and of every group above it, since each holds for all below it. Version 1 and 2 can be
mounted side by side, so the files are looked for where /proc says they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

V1_UNLIMITED_BYTES = 1 << 62  # cgroup v1 says "no limit" as a number a little below 2**63


@dataclass(frozen=True)
class Usable:
    """How many bytes this process may still take, and what bounds it, in words."""

    n_bytes: int
    bound: str


def usable_memory(proc: Path = Path("/proc")) -> Usable:
    """The least of what the machine has available and what each memory cgroup of this process has left."""
    found = [Usable(psutil.virtual_memory().available, "memory available on this machine")]
    for version, folder in _groups("memory", proc):
        left = _left_in_v2(folder) if version == 2 else _left_in_v1(folder)
        if left is not None:
            found.append(Usable(max(0, left), f"left of the memory limit of cgroup {folder}"))
    return min(found, key=lambda usable: usable.n_bytes)


def usable_cpus(proc: Path = Path("/proc")) -> int:
    """CPUs that this process may run on: by its affinity, and whole ones by the quota of its cgroups. At least 1."""
    count = float(len(os.sched_getaffinity(0)))
    for version, folder in _groups("cpu", proc):
        if version == 2:
            words = _words(folder / "cpu.max")
        else:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0] not in ("max", "-1"):
            count = min(count, int(words[0]) / int(words[1]))
    return max(1, int(count))


def _left_in_v2(folder: Path) -> int | None:
    """Bytes below memory.max; None without one. Page cache that can be dropped counts as left."""
    limit, current = _words(folder / "memory.max"), _words(folder / "memory.current")
    if not limit or not current or limit[0] == "max":
        return None
    return int(limit[0]) - int(current[0]) + _stat(folder, "inactive_file")


def _left_in_v1(folder: Path) -> int | None:
    limit, current = _words(folder / "memory.limit_in_bytes"), _words(folder / "memory.usage_in_bytes")
    if not limit or not current or int(limit[0]) >= V1_UNLIMITED_BYTES:
        return None
    return int(limit[0]) - int(current[0]) + _stat(folder, "total_inactive_file")


def _stat(folder: Path, key: str) -> int:
    """One number of memory.stat; 0 if it is not there."""
    words = _words(folder / "memory.stat")
    return int(words[words.index(key) + 1]) if key in words else 0


def _words(path: Path) -> list[str]:
    """The words of a file; none if it is not there (a root group has no limits, an old kernel not all of them)."""
    try:
        return path.read_text().split()
    except OSError:
        return []


def _groups(controller: str, proc: Path) -> Iterator[tuple[int, Path]]:
    """(version, folder) of this process's group for one controller, then of each group above it."""
    mounts = list(_mounts(proc))
    for line in _lines(proc / "self" / "cgroup"):
        _, names, path = line.split(":", 2)
        version = 1 if names else 2
        for mounted_version, controllers, root, mounted in mounts:
            if mounted_version != version or (version == 1 and not {controller} <= controllers & set(names.split(","))):
                continue
            inside = os.path.relpath(path, root)
            folder = mounted if inside.startswith("..") else mounted / inside
            while True:
                yield version, folder
                if folder == mounted:
                    break
                folder = folder.parent
            break


def _mounts(proc: Path) -> Iterator[tuple[int, set[str], str, Path]]:
    """(version, controllers, root, mount point) of each cgroup file system (the columns are in proc(5), mountinfo)."""
    for line in _lines(proc / "self" / "mountinfo"):
        columns, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, mounted = (part.encode().decode("unicode_escape") for part in columns.split(" ")[3:5])  # \\040: a blank
            yield 1 if kind == "cgroup" else 2, set(options.split(",")), root, Path(mounted)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
