"""Statistics of a loader: counters that the engine keeps, and the summary that users see."""

from __future__ import annotations

from dataclasses import dataclass, field

from ringload.bad_sample import Bad
from ringload.system.deaths import Death


@dataclass
class Counters:
    """Counters of an engine. Times in seconds; `busy_s` and `idle_s` are sums over all workers."""

    n_batches: int = 0
    n_samples: int = 0
    first_s: float = 0.0  # when the first batch was asked for
    last_s: float = 0.0  # when the last one was received
    wait_s: float = 0.0
    busy_s: float = 0.0
    idle_s: float = 0.0
    deaths: list[Death] = field(default_factory=list)

    def count(self, n_rows: int, asked_s: float, received_s: float) -> None:
        """Count a received batch."""
        if self.n_batches == 0:
            self.first_s = asked_s
        self.n_batches += 1
        self.n_samples += n_rows
        self.wait_s += received_s - asked_s
        self.last_s = received_s


@dataclass(frozen=True)
class Stats:
    """Counts since the first batch was asked for. Times in seconds; `busy_s` and `idle_s` are sums over all workers."""

    n_batches: int
    n_samples: int
    elapsed_s: float
    stall_s: float  # the trainer waited in next()
    busy_s: float  # workers filled rows
    idle_s: float  # workers waited for a free slot
    n_bad: int
    bad: tuple[Bad, ...]  # the first bad samples
    n_restarts: int
    n_full: int  # batches that are full now, and not lent
    n_slots: int

    @property
    def stall_share(self) -> float:
        """The share of the time in which the trainer waited for data."""
        return self.stall_s / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def samples_per_s(self) -> float:
        """Samples received a second."""
        return self.n_samples / self.elapsed_s if self.elapsed_s else 0.0

    def __str__(self) -> str:
        verdict = (
            "loading keeps up with training"
            if self.stall_share < 0.02
            else "training waits for loading: more workers, or cheaper samples, would help"
        )
        return (
            f"{self.n_samples:,} samples in {self.elapsed_s:.1f} s: {self.samples_per_s:,.0f} a second, "
            f"waited {self.stall_share:.1%} of the time; {self.n_full} of {self.n_slots} slots full; "
            f"{self.n_bad} bad, {self.n_restarts} restarts. {verdict}."
        )
