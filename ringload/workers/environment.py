"""What a server of workers has of the trainer's process from its start: taken once, when the loader is made.

A server that is killed is replaced, perhaps hours later. By then the trainer may have another working directory, other
variables in its environment, other limits; and samples whose paths are relative would be bad from then on. So each server is
started in the surroundings of the first one.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
OF_STATUS = re.compile(r"Uid|Gid|Groups|SigBlk|SigIgn|Cap|NoNewPrivs|Seccomp:")  # lines of /proc/self/status


@dataclass(frozen=True)
class Surroundings:
    """Working directory (None: it was removed), umask (-1: unknown), CPUs and soft limits; environment and `sys.path`; the
    options of the interpreter, such as -O. `inherited`: what else a process has from the one that starts it."""

    directory: str | None
    umask: int
    cpus: tuple[int, ...]
    limits: tuple[int, ...]  # of LIMITS, in their order
    environment: dict[str, str]
    path: tuple[str, ...]
    options: tuple[str, ...]
    inherited: tuple[str, ...]

    @classmethod
    def of_this_process(cls) -> Surroundings:
        """As they are now."""
        import subprocess  # not for servers, which start sooner without

        try:
            directory = os.getcwd()
        except FileNotFoundError:
            directory = None
        return cls(
            directory,
            _umask(),
            tuple(sorted(os.sched_getaffinity(0))),
            tuple(resource.getrlimit(limit)[0] for limit in LIMITS),
            dict(os.environ),
            tuple(sys.path if directory is None else map(os.path.abspath, sys.path)),
            # what multiprocessing, too, gives to interpreters that it starts
            tuple(subprocess._args_from_interpreter_flags()),  # type: ignore[attr-defined]
            inherited(),
        )


def inherited() -> tuple[str, ...]:
    """What a process has from the one that starts it, and cannot be given later: user, groups, privileges, masks of signals,
    hard limits, priority, cgroups, namespaces, root. () if /proc does not tell."""
    try:
        status = Path("/proc/thread-self/status").read_text().splitlines()
        spaces = sorted(os.readlink(entry.path) for entry in os.scandir("/proc/self/ns"))
        cgroups, root = Path("/proc/self/cgroup").read_text(), os.readlink("/proc/self/root")
    except OSError:
        return ()
    limits = [resource.getrlimit(limit)[1] for limit in LIMITS]
    priority = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
    return (*filter(OF_STATUS.match, status), *spaces, cgroups, root, str(limits), str(priority))


def _umask() -> int:
    """Read where reading does not change it for a moment, for all threads."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return -1


def restore(directory: str | None, umask: int, cpus: tuple[int, ...], limits: tuple[int, ...]) -> None:
    """Give this process the surroundings that were taken. What the system does not allow any more stays as it is."""
    if directory is not None:
        os.chdir(directory)
    if umask >= 0:
        os.umask(umask)
    if set(cpus) != os.sched_getaffinity(0):
        with suppress(OSError):  # not one of them is there any more
            os.sched_setaffinity(0, cpus)
    for limit, soft in zip(LIMITS, limits, strict=True):
        now, hard = resource.getrlimit(limit)
        if soft != now:
            with suppress(OSError, ValueError):  # the hard limit was lowered
                resource.setrlimit(limit, (soft, hard))
