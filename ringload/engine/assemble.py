"""From a plan to a running engine: memory, workers, and the engine that owns both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from ringload.engine.engine import Engine
from ringload.engine.state import Settings
from ringload.errors import RingloadError
from ringload.protocols import Job, Observer, Order, Workers
from ringload.ring.layout import Layout
from ringload.system.segment import Segment, refused


def lay_out(segment: Segment, layout: Layout, n_first: int) -> np.ndarray:
    """Reserve the first slots of a ring in a segment of its size. Returns the segment mapped, `(n_bytes,) uint8`."""
    segment.reserve(0, layout.slots_start + n_first * layout.slot_bytes)
    return segment.map()


def assemble(
    order: Order,
    job: Job,
    memory: np.ndarray,
    workers: Workers,
    settings: Settings,
    n_first: int,
    due: tuple[int, int] = (0, 0),
    observers: Sequence[Observer] = (),
) -> Engine:
    """Open the workers and start them, and post the first batches. Waits for none of them.

    Raises:
        ConfigError, BudgetError: as `Loader`.
    """
    with ExitStack() as on_error:
        workers.open(job, memory)
        on_error.callback(workers.close)
        engine = Engine(order, job.layout, memory, workers, settings, n_first, due, observers)
        on_error.pop_all()
        return engine


def said_as_refused(error: OSError) -> Exception:
    """What the system refuses at the start of processes, in ringload's words; ringload's own errors as they are."""
    return error if isinstance(error, RingloadError) else refused("cannot start", error)
