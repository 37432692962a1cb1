"""What one start of the workers adds to their job, and how the fork server is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Start:
    """What one start of the workers adds: what was learned from deaths before.

    `poison_samples`: (sample, how) of those that killed their worker twice. `one_by_one`: (epoch, number) of batches whose rows
    are loaded one at a time and not asked for ahead, because a worker died while it loaded several at once. `alone`: of those
    whose tasks a worker takes one at a time, because a worker died while it may have read for several.
    """

    n_workers: int
    poison_samples: tuple[tuple[int, str], ...] = ()
    one_by_one: tuple[tuple[int, int], ...] = ()
    alone: tuple[tuple[int, int], ...] = ()


def message_of(start: Start) -> dict[str, Any]:
    """A Start as it goes into JSON: what thousands of killers share is said once."""
    poison_samples: dict[str, list[int]] = {}
    for index, how in start.poison_samples:
        poison_samples.setdefault(how, []).append(index)
    return {"n_workers": start.n_workers, "killers": poison_samples, "careful": start.one_by_one, "alone": start.alone}


def start_of(message: dict[str, Any]) -> Start:
    """A Start as it comes out of JSON."""
    return Start(
        int(message["n_workers"]),
        tuple((int(index), str(how)) for how, indices in message["killers"].items() for index in indices),
        tuple((int(epoch), int(number)) for epoch, number in message["careful"]),
        tuple((int(epoch), int(number)) for epoch, number in message["alone"]),
    )
