"""What this process may use: memory and CPUs, with the limits of its control groups (cgroups v1 and v2) taken in.

A container's limit shows in no system call: inside a 64 MiB memory cgroup, psutil reports the host's 24 GB, and reserving
more than the limit gets the process killed, not refused (measured, Linux 6.18). So the limits are read before anything is
reserved: those of the process's group and of every group above it, since each limit holds for all groups below. They are read
again before each further part of the ring is reserved, since a limit may be lowered, and other processes use memory of the
same group. Versions 1 and 2 can be mounted side by side, so the files are looked for where /proc says they are.

If a process is killed in spite of this, the kernel's OOM killer leaves a count and no message: `OomKills` reads the count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ringload.errors import BudgetError

V1_UNLIMITED_BYTES = 1 << 62  # cgroup v1 says "no limit" as a number a little below 2**63
ROOM_BYTES = 16 << 20  # what the processes may come to take while the ring is reserved
LIMIT_FILES = {1: "memory.limit_in_bytes", 2: "memory.max"}
USED_FILES = {1: "memory.usage_in_bytes", 2: "memory.current"}
DROPPABLE = {1: "total_inactive_file", 2: "inactive_file"}  # of memory.stat: page cache, which the kernel drops at need


@dataclass(frozen=True)
class Usable:
    """How many bytes this process may still take, and what bounds it, in words."""

    n_bytes: int
    bound: str


def usable_memory(proc: Path = Path("/proc")) -> Usable:
    """The least of what the machine has available and what each memory cgroup of this process has left."""
    found = [Usable(_available_bytes(), "memory available on this machine")]
    for version, folder in _groups("memory", proc):
        limit_bytes = _limit(version, folder)
        if limit_bytes is not None and (used := _words(folder / USED_FILES[version])):
            left_bytes = limit_bytes - int(used[0]) + _number(folder / "memory.stat", DROPPABLE[version])
            found.append(Usable(max(0, left_bytes), f"left of the memory limit of cgroup {folder}"))
    return min(found, key=lambda usable: usable.n_bytes)


def _available_bytes() -> int:
    """Available memory, from /proc. psutil is asked only where /proc does not say: the fork server must not import it."""
    if number := _number(Path("/proc/meminfo"), "MemAvailable:"):
        return number * 1024
    try:
        import psutil

        return int(psutil.virtual_memory().available)
    except (ImportError, OSError):  # psutil, or much of /proc, is not there
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require(n_bytes: int) -> None:
    """Check before bytes are reserved: a process that takes more than its cgroup's limit is killed, not refused.

    Raises:
        BudgetError: less memory than that is left.
    """
    usable = usable_memory()
    if n_bytes + ROOM_BYTES > usable.n_bytes:
        raise BudgetError(f"{n_bytes:,} more bytes are needed, and {usable.n_bytes:,} are {usable.bound}")


class OomKills:
    """What the OOM killer has done in this process's memory cgroup, from now on.

    The kernel counts before it kills, so after a death the count includes it. The count does not say which process was killed:
    that is in the kernel's log, which a container cannot read.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._groups = list(_groups("memory", proc))
        self._seen = self._count()

    def news(self) -> str:
        """What the OOM killer has done since the last call, in words; "" if nothing, or if the kernel does not say."""
        before, self._seen = self._seen, self._count()
        if self._seen <= before:
            return ""
        processes = f"{self._seen - before} process{'es' if self._seen - before > 1 else ''}"
        limits = [(limit, folder) for version, folder in self._groups if (limit := _limit(version, folder)) is not None]
        limit_bytes, folder = min(limits, default=(0, Path()))
        bound = (
            f", whose memory limit is {limit_bytes:,} bytes" if limits else ", which has no memory limit: the machine was full"
        )
        return (
            f"out of memory: the OOM killer has ended {processes} of cgroup {folder if limits else self._groups[0][1]}{bound}"
        )

    def _count(self) -> int:
        """The own group's number, which for v2 counts those below it too."""
        for version, folder in self._groups[:1]:
            return _number(folder / ("memory.events" if version == 2 else "memory.oom_control"), "oom_kill")
        return 0


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


def _limit(version: int, folder: Path) -> int | None:
    """A group's memory limit in bytes; None without one."""
    words = _words(folder / LIMIT_FILES[version])
    if not words or words[0] == "max" or int(words[0]) >= V1_UNLIMITED_BYTES:
        return None
    return int(words[0])


def _number(path: Path, key: str) -> int:
    """The number that follows `key`; 0 if it is not there."""
    words = _words(path)
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
