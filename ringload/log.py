"""Logs to `logging.getLogger("ringload")`: WARNING for deaths and for bad samples that are skipped or replaced, INFO for
growth, restarts, seeks, and steps over a large table that took more than a second. Without a handler, Python's logging prints
warnings to stderr."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ringload.bad_sample import Bad
from ringload.protocols import Observer
from ringload.system.deaths import Death

logger = logging.getLogger("ringload")

FIRST_BAD = 10  # so many bad samples are logged one by one; later ones, in one line every `BAD_EVERY_S`
BAD_EVERY_S = 60.0
MAX_SAMPLES = 8  # named in the line of one death
SLOW_S = 1.0  # a step that takes longer is logged


@contextmanager
def logged_if_slow(what: str) -> Iterator[None]:
    """Log how long a step took, if that was long."""
    begin_s = time.monotonic()
    yield
    if (took_s := time.monotonic() - begin_s) > SLOW_S:
        logger.info("%s took %.1f s", what, took_s)


class LogObserver(Observer):
    """Logs what happens to one loader."""

    def __init__(self) -> None:
        self._n_bad = self._n_unsaid = 0
        self._said_s = 0.0

    def on_bad(self, bad: Bad, outcome: str) -> None:
        if outcome == "raised":
            return  # the exception names the sample
        self._n_bad += 1
        self._n_unsaid += 1
        now_s = time.monotonic()
        if self._n_bad > FIRST_BAD and now_s - self._said_s < BAD_EVERY_S:
            return
        others = f"; {self._n_unsaid - 1} others since the last line" if self._n_unsaid > 1 else ""
        where = f" ({bad.where})" if bad.where else ""
        logger.warning("sample %d%s was %s: %s%s", bad.index, where, outcome, bad.reason, others)
        self._n_unsaid, self._said_s = 0, now_s

    def on_death(self, death: Death, samples: Sequence[int]) -> None:
        if death.pid < 0:
            logger.warning("%s", death.cause)
            return
        shown = ", ".join(map(str, samples[:MAX_SAMPLES])) + (", ..." if len(samples) > MAX_SAMPLES else "")
        at_work = f" while it was loading {'samples' if len(samples) > 1 else 'sample'} {shown}" if samples else ""
        logger.warning("worker %d (pid %d) died%s: %s", death.worker_id, death.pid, at_work, death.cause)

    def on_restart(self, n_workers: int, n_batches: int) -> None:
        logger.info("%d workers are started again; %d batches had unfinished tasks", n_workers, n_batches)

    def on_growth(self, n_slots: int, goal: int) -> None:
        logger.info("the ring has %d slots of %d", n_slots, goal)

    def on_seek(self, epoch: int, number: int) -> None:
        logger.info("the loader goes on at batch %d of epoch %d", number, epoch)
