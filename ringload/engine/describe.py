"""What an engine says in messages: deaths, the work of workers, leases, and processes that cannot go on."""

from __future__ import annotations

import math
import time
from pathlib import Path

from ringload.ring.slots import InFlightBatch
from ringload.system.deaths import Death
from ringload.workers.current_work import WHOLE_TASK, CurrentWork

STATES = {  # of a process, as in proc(5): why it does nothing
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "D": "waits in the kernel, for a disk or a network perhaps",
    "Z": "is dead",
    "": "is gone",
}


# what a user should do who keeps arrays (adapters have other texts), and why an error comes at once
OF_ARRAYS = (
    "An array of a batch, or a view of one, is kept: keep copies (batch.copy(), or Loader(copy=True)), call batch.release()"
)
ALONE = "No other thread could give one back, so the loader does not wait"


def work_text(work: CurrentWork) -> str:
    """What was in hand, in words."""
    sample = f"rows {work.start} to {work.stop - 1}" if work.sample == WHOLE_TASK else f"sample {work.sample}"
    return f"{sample} of batch {work.number} of epoch {work.epoch}"


def death_text(death: Death) -> str:
    """A death, in words."""
    return f"worker {death.worker_id} (pid {death.pid}) died: {death.cause}" if death.pid >= 0 else death.cause


def stuck_text(current_work: dict[int, tuple[int, CurrentWork]], processes: dict[str, int]) -> str:
    """What each worker has in hand, and since when; and which of `processes`, name -> pid, cannot go on."""
    now_s = time.monotonic()
    stuck = [
        f"worker {worker_id} (pid {pid}) has had {work_text(work)} in hand for {now_s - work.since_s:.0f} s"
        if work.since_s < math.inf
        else f"worker {worker_id} (pid {pid}) waits for its turn with {work_text(work)}"
        for worker_id, (pid, work) in current_work.items()
    ] or ["no worker has anything in hand"]
    states = ((name, pid, state_of(pid)) for name, pid in processes.items())
    stuck += [f"{name} (pid {pid}) {STATES[state]}" for name, pid, state in states if state in STATES]
    return "; ".join(stuck)


def state_of(pid: int) -> str:
    """The letter of a process's state in proc(5); "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # IndexError: it ended while it was read
        return ""


def lent_text(lent: dict[int, InFlightBatch], advice: str, end: str) -> str:
    """Why there is no free slot, what to do, and how the wait ends."""
    now_s = time.monotonic()
    held = [
        f"batch {posted.number} of epoch {posted.epoch} for {now_s - posted.since_s:.0f} s"
        for posted in sorted(lent.values(), key=lambda posted: posted.since_s)
    ]
    shown = held[0] if len(held) == 1 else f"{held[0]}, ... and {held[-1]}, {len(held)} in all"
    return f"every slot of the ring is lent and none comes back: {shown}. {advice}, or raise ram_budget. {end}".rstrip(". ")
