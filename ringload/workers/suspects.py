"""What deaths say about samples: a sample that kills its producer again and again is found, and named.

A death with a sample in hand is a strike against that row, until its task is done. `OWN` strikes make a killer of a sample
whose producer ended by its own doing (a segfault, an exit). Where the signal may as well have come from outside it takes
more, as a good sample must not be made bad by who is killed for other reasons: `HUNGRY` where the kernel may have killed for
want of memory (a huge image would be to blame), `OUTSIDE` for all others. If each kill, at a random moment, hits the row
that the last one hit with a probability of 1/2, then that many in a row happen once in 500 runs of 1,000 kills. And it is
more than the `restarts` that are the default: these end the run first, with the sample named as what was in hand.
A producer that died while it loaded several samples in one call accuses its batch, whose rows are then loaded singly.
Where a death comes later than its cause, the last rows of a task are accused one after the other, up to the one that did it.

Also here: deaths, claims and leases in words, for messages.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from ringload.data.listed import ListedOrder
from ringload.data.sampler import Order
from ringload.ring.claims import WHOLE_TASK, Claim
from ringload.ring.ring import Posted
from ringload.workers.deaths import Death
from ringload.workers.worker import Start

OWN, HUNGRY, OUTSIDE = 2, 5, 20
TOLD = 8000  # killers that are kept, and told to producers with 12 bytes each; older ones must be found again
RESTARTS_WITHIN_S = 60.0
STATES = {  # of a process, as in proc(5): why it does nothing
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "D": "waits in the kernel, for a disk or a network perhaps",
    "Z": "is dead",
    "": "is gone",
}


class Suspects:
    """Strikes, killers, and the rate of deaths."""

    def __init__(self, restarts: int | None) -> None:
        self._restarts = restarts
        self._strikes: dict[tuple[int, int, int], list[bool]] = {}  # (epoch, number, row): whether each came from outside
        self._killers: dict[int, str] = {}
        self._told: dict[int, str] = {}  # the killers that the present producers know, and do not load
        self._careful: set[tuple[int, int]] = set()
        self._deaths_s: deque[float] = deque()

    def too_many(self, n_deaths: int) -> bool:
        """Enter deaths that happened now. Whether they are more than `restarts` within a minute."""
        now_s = time.monotonic()
        self._deaths_s.extend([now_s] * n_deaths)
        while self._deaths_s and now_s - self._deaths_s[0] > RESTARTS_WITHIN_S:
            self._deaths_s.popleft()
        return self._restarts is not None and len(self._deaths_s) > self._restarts

    @property
    def any(self) -> bool:
        """Whether any row is suspected."""
        return bool(self._strikes)

    def accuse(self, death: Death, claim: Claim, unfinished: Iterable[Posted], order: Order | ListedOrder) -> None:
        """Enter a death with `claim` in hand, if it is among what the books say is not done: else its report came before
        its end, and it had nothing in hand."""
        first = next((start for posted in unfinished for start in _undone_with(posted, claim)), None)
        if first is None:
            return
        if claim.sample == WHOLE_TASK:
            self._careful.add((claim.epoch, claim.number))
            return
        row, sample = claim.start, claim.sample
        while sample in self._told:  # it was not loaded this time, so that it was the doing of one before it
            row -= 1
            if row < first:
                return
            (sample,) = order.indices(claim.epoch, claim.number, row, row + 1).tolist()
        strikes = self._strikes.setdefault((claim.epoch, claim.number, row), [])
        strikes.append(death.from_outside)
        if strikes.count(False) >= OWN or len(strikes) >= (HUNGRY if death.hungry else OUTSIDE):
            self._killers[sample] = f"killed its producer {len(strikes)} times in a row ({death.cause})"
            if len(self._killers) > TOLD:
                del self._killers[next(iter(self._killers))]
            strikes.clear()  # who is tried in its place has no part in them

    def acquit(self, posted: Posted, task: int) -> None:
        """A task was done: nothing in its rows is suspected any more."""
        start, stop = posted.cut.bounds[task]
        for row in range(start, stop):
            self._strikes.pop((posted.epoch, posted.number, row), None)

    def start(self, n_producers: int, unfinished: Iterable[Posted]) -> Start:
        """What the next producers are told."""
        self._careful &= {(posted.epoch, posted.number) for posted in unfinished}
        self._told = dict(self._killers)
        return Start(n_producers, tuple(self._told.items()), tuple(self._careful))


def _undone_with(posted: Posted, claim: Claim) -> Iterator[int]:
    """The first row of the task that a claim is about, if it is one of this batch's that was not done."""
    if (posted.epoch, posted.number) == (claim.epoch, claim.number):
        for task, (start, stop) in enumerate(posted.cut.bounds):
            if start <= claim.start < stop and posted.undone >> task & 1:
                yield start


def what(claim: Claim) -> str:
    """What was in hand, in words."""
    sample = f"rows {claim.start} to {claim.stop - 1}" if claim.sample == WHOLE_TASK else f"sample {claim.sample}"
    return f"{sample} of batch {claim.number} of epoch {claim.epoch}"


def who_died(death: Death) -> str:
    """A death, in words."""
    return f"producer {death.producer} (pid {death.pid}) died: {death.cause}" if death.pid >= 0 else death.cause


def who_is_at_what(in_hand: dict[int, tuple[int, Claim]], processes: dict[str, int]) -> str:
    """Which producers have what in hand, and since when; and who of `processes`, name -> pid, cannot go on."""
    now_s = time.monotonic()
    stuck = [
        f"producer {producer} (pid {pid}) has had {what(claim)} in hand for {now_s - claim.since_s:.0f} s"
        if claim.since_s < math.inf
        else f"producer {producer} (pid {pid}) waits for its turn with {what(claim)}"
        for producer, (pid, claim) in in_hand.items()
    ] or ["no producer has anything in hand"]
    states = ((name, pid, state_of(pid)) for name, pid in processes.items())
    stuck += [f"{name} (pid {pid}) {STATES[state]}" for name, pid, state in states if state in STATES]
    return "; ".join(stuck)


def state_of(pid: int) -> str:
    """The letter of a process's state in proc(5); "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # IndexError: it ended while it was read
        return ""


def who_holds_what(lent: dict[int, Posted]) -> str:
    """Why there is no free slot."""
    now_s = time.monotonic()
    held = [
        f"batch {posted.number} of epoch {posted.epoch} for {now_s - posted.since_s:.0f} s"
        for posted in sorted(lent.values(), key=lambda posted: posted.since_s)
    ]
    shown = "; ".join(held[:3]) + (f"; ... {len(held)} in all" if len(held) > 3 else "")
    return (
        f"every slot of the ring is lent and none comes back: {shown}. An array of a batch, or a view of one, is kept: "
        "keep copies (batch.copy(), or Loader(copy=True)), call batch.release(), or raise ram_budget"
    )
