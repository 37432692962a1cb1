"""What a worker died of, as far as its wait status and the kernel's count of kills for want of memory tell."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Death:
    """The end of a worker: its number, pid, and wait status; or `reason`, where ringload itself ended it.

    `maybe_oom`: whether the kernel may have killed it for want of memory. It counts whom it kills so, in all containers
    together: False is certain. `oom`: what the OOM killer is known to have done in this container (`cgroups.OomKills`).
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
        """How it died, and what usually lies behind that."""
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
        """Whether the signal is one that others send, too: then its sample need not be to blame."""
        code = os.waitstatus_to_exitcode(self.status)
        return not self.reason and code < 0 and -code in FROM_OUTSIDE


MOST_OOM_SCORE = 1000  # of oom_score_adj (proc(5)): who has it is taken before all who have less
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
    """Have the OOM killer prefer a process of ringload's, whose death costs milliseconds, to the trainer, whose death is the
    end: by itself it takes the trainer, which has the most memory, since it maps the ring (measured). Half a score does not
    do: who has just started maps nothing yet, and the ring may be more than half of all there is (measured). A process beside
    them that leaks goes after them: then their deaths end the run, with an error that says so. There is none higher: a trainer
    that was itself given 700 is taken before a worker that has just started, where the ring is a third of the limit
    (measured). Raising a score needs no privilege; who is started later inherits it."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(MOST_OOM_SCORE))


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, its own or a cgroup's; -1 where it does not tell."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return -1
