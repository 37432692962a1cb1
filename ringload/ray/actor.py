"""What runs in a Ray actor: takes rows to be filled, and returns them.

A call tells units, which are the rows of a task, or one row of it, and returns the rows of the oldest unit that was told and
not returned. So the samples of units that are told ahead are read meanwhile, and of each unit the trainer knows which call
returns it: after a death, the oldest was in hand.

Who owns what: an actor has its own copy of the source, whose large arrays are in the object store of its node, once for all
actors of the node. It has no part of the ring: nothing that it does, or fails to do, can harm a slot.
"""

from __future__ import annotations

import builtins
import os
import platform
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

import ringload
from ringload.bad_sample import MAX_REASON, Bad, bounded, end_of
from ringload.fields import Worker
from ringload.packing.generators import OwnGenerators, take_made
from ringload.packing.received import receive
from ringload.packing.unpack import unpack
from ringload.protocols import PAD, Job
from ringload.ray.sample_watch import SampleWatch
from ringload.ring.layout import KEY, Layout
from ringload.sources.bind import bind
from ringload.system.arrivals import ARRIVALS
from ringload.workers.fill import Filler
from ringload.workers.reading_ahead import ReadingAhead
from ringload.workers.records import MAX_TEXT_BYTES

MAX_ERROR = 4000  # characters of a traceback
PoisonSamples = Sequence[tuple[int, str]]


class UnitMessage(NamedTuple):
    """Rows to fill: `samples (n,) int64` and draw keys `(n,) int64`, as bytes, and what the order wrote into its
    fields: name -> `(n, *shape)`. `one_by_one`: one row, for which nothing is read ahead, and no substitute is tried."""

    epoch: int
    samples: bytes
    keys: bytes
    ordered: dict[str, np.ndarray]
    one_by_one: bool


class Filled(NamedTuple):
    """Rows: the bytes of a slot that has room for so many (`rows_layout`), what was bad: (sample, `Bad.pack`), and seconds."""

    rows: np.ndarray
    bad: list[tuple[int, str]]
    busy_s: float
    idle_s: float


class Hello(NamedTuple):
    """Who an actor is."""

    ringload: str
    python: str
    pid: int
    node_id: str
    node: str
    raylet_host: str
    raylet_port: int


def rows_layout(layout: Layout, n_rows: int) -> Layout:
    """How the rows of a unit lie in the bytes that an actor returns: as those of a slot for `n_rows`."""
    return replace(layout, batch_size=n_rows, n_slots=1, n_workers=0)


def versions() -> tuple[str, str]:
    """Of ringload and Python. Both have to be the trainer's, as the same seed has to give the same bytes."""
    return ringload.__version__, ".".join(platform.python_version_tuple()[:2])


class Actor:
    """A worker on Ray. The first call is `hello`, which has to stay as it is in all versions of ringload; then `open`."""

    def __init__(self, worker_id: int) -> None:
        self._id = worker_id
        self._node = ""
        self._units = deque[tuple[UnitMessage, np.ndarray]]()

    def hello(self) -> tuple[Any, ...]:
        """See `Hello`."""
        import ray

        self._node = ray.util.get_node_ip_address()
        node_id = ray.get_runtime_context().get_node_id()
        found = (node for node in ray.nodes() if node["NodeID"] == node_id)
        raylet = next(((node["NodeManagerAddress"], node["NodeManagerPort"]) for node in found), ("", 0))
        return *versions(), os.getpid(), node_id, self._node, *raylet

    def open(
        self,
        job: Job,
        n_workers: int,
        directory: str | None,
        path: list[str],
        data: np.ndarray,
        fds: list[int],
        *contents: np.ndarray,
    ) -> tuple[str, tuple[str, ...]]:
        """Get the source: its pickle `data (n,) uint8`, and the `contents (n_bytes,) uint8` of the descriptors `fds` that it
        names. Returns why it cannot be used, "" if it can; and the fields that its order writes."""
        try:
            if directory is not None:
                with suppress(OSError):  # another machine may not have it
                    os.chdir(directory)
            sys.path.extend(entry for entry in path if entry not in sys.path and os.path.exists(entry))
            receive(dict(zip(fds, contents, strict=True)))
            source = bind(unpack(data.data))
            self._own = OwnGenerators(take_made())
            source.start(Worker(self._id, n_workers, job.scratch_bytes, threading.RLock, job.max_sample_bytes or None))
        except Exception:  # whatever a user's class raises where it is unpickled
            return end_of(traceback.format_exc(), MAX_ERROR), ()
        self._job, self._source, self._ahead = job, source, ReadingAhead(source.prefetch, source.is_ready)
        self._layouts: dict[int, Layout] = {}
        self._watch = SampleWatch(job.sample_timeout)
        self.begin(0, ())
        return "", tuple(source.order_fields)

    def begin(self, generation: int, poison_samples: PoisonSamples) -> None:
        """Forget the units that were told before. These samples killed their worker, and are not loaded."""
        if self._source.forget is not None:
            for _, samples in self._units:
                self._source.forget(samples)
        self._units.clear()
        self._generation = generation
        self._poison_samples = dict(poison_samples)
        self._filler = Filler(self._job, self._source, self._poison_samples, own=self._own)
        # The trainer has to know which sample is tried in place of a bad one, as it may end this process.
        self._filler_of_one = Filler(self._job._replace(on_error="skip"), self._source, self._poison_samples, own=self._own)
        self._idle_from_s = time.monotonic()

    def fill(self, generation: int, units: list[tuple[Any, ...]]) -> Any:
        """Take these units, and fill the oldest of all (see `Filled`). None: it is of a generation that is over."""
        if generation != self._generation:
            return None
        begin_s = time.monotonic()
        for unit in units:
            self._take(UnitMessage(*unit))
        unit, samples = self._units.popleft()
        if self._reads_ahead(unit):
            self._watch.note(-1, 0, max(1, len(samples)))
            self._wait_for(samples)
        buffer, bad = self._fill(unit)
        self._watch.rest()
        if self._source.forget is not None:
            self._source.forget(samples)
        idle_s, self._idle_from_s = begin_s - self._idle_from_s, time.monotonic()
        return tuple(Filled(buffer, bad, self._idle_from_s - begin_s, idle_s))

    def _take(self, unit: UnitMessage) -> None:
        samples = np.frombuffer(unit.samples, np.int64)
        samples = samples[samples != PAD]
        if self._poison_samples:  # which are not loaded
            samples = samples[~np.isin(samples, list(self._poison_samples))]
        self._units.append((unit, samples))
        if self._reads_ahead(unit):
            self._ahead.ask(samples)

    def _reads_ahead(self, unit: UnitMessage) -> bool:
        return self._source.prefetch is not None and not unit.one_by_one

    def _wait_for(self, samples: np.ndarray) -> None:
        """Until a source that tells has read these samples, or will not."""
        while self._source.is_ready is not None:
            n_ended = ARRIVALS.n_ended  # before looking, so that no end is missed
            if self._ahead.has_come(samples) or not ARRIVALS.wait(n_ended):
                return

    def _fill(self, unit: UnitMessage) -> tuple[np.ndarray, list[tuple[int, str]]]:
        n_rows = len(unit.samples) // 8
        if n_rows not in self._layouts:
            self._layouts[n_rows] = rows_layout(self._job.layout, n_rows)
        layout = self._layouts[n_rows]
        buffer = np.empty(layout.slot_bytes, np.uint8)
        rows = layout.whole_slot(buffer)
        rows["index"][:] = np.frombuffer(unit.samples, np.int64)
        rows[KEY][:] = np.frombuffer(unit.keys, np.int64)
        for name, values in unit.ordered.items():
            rows[name][:] = values
        if unit.one_by_one:
            bad = self._filler_of_one.fill(unit.epoch, 0, n_rows, rows, one_by_one=True)
        else:
            bad = self._filler.fill(unit.epoch, 0, n_rows, rows, self._watch.note)
        return buffer, [(one.index, self._named(one).pack(MAX_TEXT_BYTES)) for one in bad]

    def _named(self, bad: Bad) -> Bad:
        """What cannot be read may be readable on other nodes."""
        module, name = bad.error_class or ("", "")
        kind = getattr(builtins, name, None) if module == "builtins" else None
        if isinstance(kind, type) and issubclass(kind, OSError):
            bad.reason = bounded(f"{bad.reason} (on node {self._node})", MAX_REASON)
        return bad
