"""The cause of a worker's death, from its wait status and from the kernel's count of out-of-memory kills."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Death:
    """The end of a worker: its number, pid, and wait status; or `reason`, where ringload itself ended it.

    `maybe_oom`: whether the kernel may have killed it because memory was short. The kernel counts such kills, of all containers
    together, so False is certain. `oom`: what the OOM killer has done in this container (`cgroups.OomKills`), in words.
    """

    worker_id: int
    pid: int
    status: int
    reason: str = ""
    oom: str = ""
    maybe_oom: bool = field(default=True, compare=False)

    @classmethod
    def of_server(cls, reason: str) -> Death:
        """All workers at once: their server ended."""
        return cls(-1, -1, 0, reason)

    @property
    def cause(self) -> str:
        """How the worker died, and the usual reason for such a death."""
        if self.reason:
            return self.reason
        code = os.waitstatus_to_exitcode(self.status)
        if code >= 0:
            return f"exit code {code}: something in the user's functions ended the process"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if name == "SIGKILL" and self.oom:
            return f"{name}: {self.oom}"
        if name == "SIGKILL" and not self.maybe_oom:
            return f"{name}: killed by hand or by another program, not by the kernel for want of memory"
        return f"{name}{CAUSES.get(name, '')}"

    @property
    def maybe_external(self) -> bool:
        """Whether other programs send this signal, too. Then the sample that was being loaded may be innocent."""
        code = os.waitstatus_to_exitcode(self.status)
        return not self.reason and code < 0 and -code in FROM_OUTSIDE


MOST_OOM_SCORE = 1000  # of oom_score_adj (proc(5)): the OOM killer takes the process with the highest score
FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
CAUSES = {
    "SIGKILL": ": probably out of memory (the kernel's log, dmesg, says so), or killed by hand",
    "SIGSEGV": ": a crash in native code",
    "SIGABRT": ": native code gave up",
    "SIGBUS": ": a file that is mapped into memory was truncated, or memory could not be had",
    "SIGILL": ": native code for another CPU",
    "SIGFPE": ": a division by zero in native code",
    "SIGTERM": ": somebody asked it to end",
}


def be_taken_first(pid: int) -> None:
    """Have the OOM killer take this process of ringload's before the trainer. The death of a worker costs milliseconds, that of
    the trainer ends the run. By default the OOM killer takes the trainer, which has the most memory, since it maps the ring.

    The score is the highest there is. With half of it, a worker that has just started and maps nothing yet was not taken
    first where the ring was more than half of the memory. With the highest, too, a trainer whose own score is 700 is taken
    before such a worker, where the ring is a third of the limit (all measured). If another process in the container leaks,
    workers are killed before it is; their deaths then end the run with an error that says so. Raising a score needs no
    privilege, and child processes inherit it."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(MOST_OOM_SCORE))


def oom_kills() -> int:
    """How many processes the kernel has killed because the machine or a cgroup was out of memory; -1 where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return -1
