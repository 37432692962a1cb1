"""The thread between the trainer and the actors: gives them units, and writes what they return into the slots.

    trainer --inbox--> units --calls--> actors --futures--> inbox --> rows copied into the slot --> report, flag, notify

All state here belongs to the thread, which sleeps until something is put into its inbox: by the trainer's methods, by the
futures of Ray, or by nobody for `PULSE_S`. A `SimpleQueue` may be put into from a signal handler, and an interruption of the
trainer cannot leave the state of this thread half changed.

Credits: an actor has `N_CALLS` calls outstanding at most, each of which returns the rows of one unit, and knows of `N_AHEAD`
units more, whose samples it reads. All rows that calls will return take `store_bytes` at most; the plan has them.

Deaths. Nothing but this thread writes into slots, so the engine's own recovery does for dead actors, and the living need not be
ended for it: `clear` begins another generation, and what calls of an earlier one return is dropped. Living actors go on with
the source that they have; a death costs the tasks in flight. Of a node that died, the actors died together: that is one death.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, ActorUnschedulableError

from ringload.errors import ConfigError, RingloadError, WorkerDiedError
from ringload.protocols import Job, Owner
from ringload.ray.actor import Filled, Hello, UnitMessage, rows_layout, versions
from ringload.ray.cluster import Cluster, answers
from ringload.ring.layout import FLAG_DONE, FLAG_DONE_WITH_REPORTS, KEY, MAX_TASKS, Layout
from ringload.ring.slots import InFlightBatch, TaskResult
from ringload.system.deaths import Death
from ringload.system.segment import map_shared
from ringload.workers.current_work import WHOLE_TASK, CurrentWork
from ringload.workers.records import BAD, Task, WorkerReport
from ringload.workers.worker import Start

N_CALLS = 2  # one is filled, the rows of the other are on their way
N_AHEAD = 2  # units whose samples are read meanwhile
PULSE_S = 1.0  # how often, at least, it looks whether the cluster is there
MAX_REASON = 300  # characters of Ray's on a death
DETAIL = re.compile(r"Worker exit detail: (.*?)(?: Some common causes|$)", re.DOTALL)


class ClusterLostError(WorkerDiedError):
    """The Ray cluster is gone, and with it all workers."""


@dataclass(eq=False)
class _Unit:
    """Rows `start:stop` of a batch, which are a task, or one row of it."""

    batch: InFlightBatch
    task: int
    start: int
    stop: int
    n_bytes: int
    generation: int
    one_by_one: bool = False


@dataclass(eq=False)
class _Actor:
    """An actor, and the units that it has, oldest first: of these, `n_calls` are being returned, and `unsent` not told yet."""

    number: int
    handle: Any
    hello: Hello | None = None
    raylet: tuple[str, int] = ("", 0)
    is_ready: bool = False
    units: deque[_Unit] = field(default_factory=deque)
    unsent: list[_Unit] = field(default_factory=list)
    n_calls: int = 0

    def forget(self) -> None:
        self.units.clear()
        self.unsent.clear()
        self.n_calls = 0


class Dispatcher(threading.Thread):
    """See the module. `notify` wakes the trainer."""

    def __init__(
        self,
        cluster: Cluster,
        numbers: range,
        job: Job,
        memory: np.ndarray,
        flags: memoryview,
        store_bytes: int,
        timeout_s: float,
        notify: Callable[[], None],
    ) -> None:
        super().__init__(name="ringload:ray", daemon=True)
        self.inbox: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.results: SimpleQueue[WorkerReport | TaskResult] = SimpleQueue()
        self.deaths: SimpleQueue[Death] = SimpleQueue()
        self.failure: RingloadError | None = None  # what the trainer is told
        self.is_lost, self.lost_text = False, ""
        self.work: dict[int, tuple[int, CurrentWork]] = {}  # worker -> (pid, what it has in hand); the trainer reads it
        self._cluster, self._numbers, self._notify, self._timeout_s = cluster, numbers, notify, timeout_s
        self._n = len(numbers)
        self._flags, self._store_bytes = flags, store_bytes
        self._arrays = job.layout.arrays(memory)
        self._layout: Layout = job.layout
        self._row_bytes = -(-job.layout.slot_bytes // job.layout.batch_size)
        self._directory = _directory()
        self._order_fields: Sequence[str] = ()
        self._with_bad: set[tuple[int, int]] = set()  # (serial, task) of those that are filled one by one
        self._actors: dict[int, _Actor] = {}
        self._pending: deque[_Unit] = deque()
        self._rows_left: dict[tuple[int, int], list[float]] = {}  # (serial, task) -> rows, busy and idle seconds so far
        self._bytes_flying = self._generation = 0
        self._is_stopped = True  # between `clear` and `start`
        self._start = Start(len(numbers))
        self._were_all_placed = False
        self._alone_s = time.monotonic()  # since when no actor, or not all, could be had
        self._ended: set[int] = set()
        self._source(job, job.owners[1:])

    # -- the trainer's side -------------------------------------------------------------------------------------------

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have the thread do something, and wait for its result. An interruption leaves it to be done."""
        answer: SimpleQueue[Any] = SimpleQueue()
        self.inbox.put((what, answer, *arguments))
        return answer.get()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        is_closed, pulse_s = False, 0.0
        while not is_closed:
            messages = [self._next()]
            while not self.inbox.empty():
                messages.append(self.inbox.get())
            if time.monotonic() > pulse_s:
                messages.append(("pulse",))
                pulse_s = time.monotonic() + PULSE_S
            for what, *arguments in messages:
                try:
                    result = self._act(what, arguments)
                except Exception as error:  # whatever Ray raises where its cluster falls apart
                    result = None
                    self._fail(ConfigError(f"Ray: {type(error).__name__}: {_short(str(error))}"), error)
                if what in ("clear", "take_back", "renew", "close", "forget"):
                    arguments[0].put(result)
                is_closed |= what == "close"
            if not is_closed and self.failure is None:
                try:
                    self._dispatch()
                except Exception as error:
                    self._fail(ConfigError(f"Ray: {type(error).__name__}: {_short(str(error))}"), error)

    def _next(self) -> tuple[Any, ...]:
        try:
            return self.inbox.get(timeout=PULSE_S)
        except Empty:
            return ("nothing",)

    def _act(self, what: str, arguments: list[Any]) -> Any:
        return getattr(self, f"_on_{what}")(*arguments)

    def _fail(self, failure: RingloadError, cause: BaseException | None = None) -> None:
        """Tell the trainer, once."""
        if self.failure is None:
            failure.__cause__ = cause
            self.failure = failure
        self._notify()

    def _on_nothing(self) -> None:
        pass

    def _on_pulse(self) -> None:
        if self.is_lost or self.failure is not None:
            return
        if self._cluster.is_lost():
            self._lose(self._cluster.lost_text())
            return
        self._look_at_placement()

    def _look_at_placement(self) -> None:
        """Actors that cannot be placed are waited for, but not for ever, unless others work meanwhile."""
        n_placed = sum(actor.hello is not None for actor in self._actors.values())
        self._were_all_placed |= n_placed == self._n
        if self._is_stopped or n_placed == self._n or (self._were_all_placed and n_placed):
            self._alone_s = time.monotonic()
        elif time.monotonic() - self._alone_s > self._timeout_s:
            missing = f"{self._n - n_placed} of {self._n} actors could not be placed within {self._timeout_s:g} s"
            text = f"{missing}: {self._cluster.lacking(n_placed)}"
            if self._were_all_placed:
                self._lose(f"the Ray cluster is lost, as no node is left that has room: {text}")
            else:
                self._fail(ConfigError(text))

    def _lose(self, text: str) -> None:
        self._on_clear()
        self._actors.clear()
        self._cluster.abandon()
        self.lost_text = text
        self.is_lost = True  # after its text: the trainer looks at once
        self._notify()

    # -- messages of the trainer --------------------------------------------------------------------------------------

    def _on_post(self, batches: Sequence[InFlightBatch]) -> None:
        for batch in batches:
            one_by_one = (batch.epoch, batch.number) in self._start.one_by_one
            for task, (start, stop) in enumerate(batch.split.bounds):
                if batch.is_done(task):
                    continue
                self._rows_left[batch.serial, task] = [stop - start, 0.0, 0.0]
                step = 1 if one_by_one else stop - start
                for first in range(start, stop, step):
                    n_bytes = self._row_bytes * step
                    self._pending.append(_Unit(batch, task, first, first + step, n_bytes, self._generation, one_by_one))

    def _on_start(self, start: Start) -> None:
        self._start, self._is_stopped = start, False
        for number in self._numbers:
            actor = self._actors.get(number)
            if actor is None:
                self._begin_actor(number)
            elif actor.is_ready:
                actor.handle.begin.remote(self._generation, start.poison_samples)

    def _on_clear(self, answer: Any = None) -> None:
        """From here on, nothing that was posted before is written."""
        self._generation += 1
        self._is_stopped = True
        self._pending.clear()
        self._rows_left.clear()
        self._with_bad.clear()
        for actor in self._actors.values():
            actor.forget()
        for number in self._ended:
            self._drop(number)
        self._ended.clear()

    def _on_forget(self, answer: Any) -> None:
        self.work.clear()

    def _on_end(self, number: int) -> None:
        self._ended.add(number)

    def _on_take_back(self, answer: Any) -> list[Task]:
        """What no actor was told of."""
        begun = {(u.batch.serial, u.task) for actor in self._actors.values() for u in actor.units}
        tasks, kept = {}, deque[_Unit]()
        for unit in self._pending:
            batch = unit.batch
            key = batch.serial, unit.task
            if key in begun or self._rows_left[key][0] < np.diff(batch.split.bounds[unit.task])[0]:
                kept.append(unit)
                continue
            tasks[key] = Task(
                batch.epoch, batch.number, batch.slot, *batch.split.bounds[unit.task], unit.task, len(batch.split.bounds)
            )
        self._pending = kept
        for serial, number in tasks:
            del self._rows_left[serial, number]
        for task in tasks.values():
            self._flags[task.slot * MAX_TASKS + task.task] = FLAG_DONE
        return list(tasks.values())

    def _on_renew(self, answer: Any, job: Job, owners: Sequence[Owner]) -> None:
        for number in list(self._actors):
            self._drop(number)
        self._source(job, owners)

    def _on_close(self, answer: Any) -> None:
        self._on_clear()
        for number in list(self._actors):
            self._drop(number)
        self._arrays = {}
        self._refs: list[Any] = []

    # -- actors -------------------------------------------------------------------------------------------------------

    def _source(self, job: Job, owners: Sequence[Owner]) -> None:
        """Put the source into the object store, from where each node takes it once."""
        contents = [(owner.fd, map_shared(owner.fd, n)) for owner in owners if (n := os.fstat(owner.fd).st_size)]
        self._refs = [ray.put(np.frombuffer(job.source, np.uint8)), *(ray.put(content) for _, content in contents)]
        self._fds = [fd for fd, _ in contents]
        self._job = job._replace(source=None, owners=(), setup=None)

    def _begin_actor(self, number: int) -> None:
        actor = self._actors[number] = _Actor(number, self._cluster.start_actor(number, number - self._numbers.start))
        self._when_done(actor.handle.hello.remote(), "hello", actor)

    def _when_done(self, ref: Any, what: str, *arguments: Any) -> None:
        future = ref.future()
        future.add_done_callback(lambda done: self.inbox.put((what, *arguments, done)))

    def _on_hello(self, actor: _Actor, future: Any) -> None:
        if self._actors.get(actor.number) is not actor:
            return
        try:
            actor.hello = hello = Hello(*future.result())
        except Exception as error:
            self._failed_at_start(actor, error)
            return
        actor.raylet = self._cluster.raylet_of(hello.node_id)
        ours = versions()
        if (hello.ringload, hello.python) != ours:
            self._fail(
                ConfigError(
                    f"node {hello.node} has ringload {hello.ringload} and Python {hello.python}, and the trainer ringload "
                    f"{ours[0]} and Python {ours[1]}: install the same versions on all nodes"
                )
            )
            return
        path = [entry for entry in sys.path if entry]
        opened = actor.handle.open.remote(
            self._job, self._start.n_workers, self._directory, path, self._refs[0], self._fds, *self._refs[1:]
        )
        self._when_done(opened, "opened", actor)

    def _on_opened(self, actor: _Actor, future: Any) -> None:
        if self._actors.get(actor.number) is not actor:
            return
        try:
            problem, self._order_fields = future.result()
        except Exception as error:
            self._died(actor, error)
            return
        assert actor.hello is not None
        if problem:
            self._fail(
                ConfigError(
                    f"the source, or worker_setup, cannot be used in an actor on node {actor.hello.node} (its files and "
                    f"modules have to be on every node):\n{problem}"
                )
            )
            return
        actor.is_ready = True
        actor.handle.begin.remote(self._generation, self._start.poison_samples)

    def _failed_at_start(self, actor: _Actor, error: Exception) -> None:
        init_failed = isinstance(error, ActorDiedError) and getattr(error, "_actor_init_failed", False)
        if init_failed or isinstance(error, ActorUnschedulableError):
            self._fail(ConfigError(f"an actor cannot be started: {_short(str(error), 1500)}"), error)
        elif "node has died" in str(error):  # before it began; of a node that Ray had not missed yet
            self._drop(actor.number)
            self._begin_actor(actor.number)
        else:
            self._died(actor, error)

    def _died(self, actor: _Actor, error: Exception) -> None:
        """An actor is of no more use: it died, or its node did."""
        node = actor.hello.node if actor.hello is not None else "?"
        if actor.raylet[1] and not answers(*actor.raylet):
            dead = [one for one in self._actors.values() if one.raylet == actor.raylet]
            death = Death.of_server(f"node {node} died, and {len(dead)} of ringload's actors with it")
        else:
            dead = [actor]
            pid = actor.hello.pid if actor.hello is not None else -1
            death = Death(actor.number, pid, 0, f"its process on node {node} ended: {_detail(error)}")
        for one in dead:
            self._drop(one.number)
        self.deaths.put(death)
        self._notify()

    def _drop(self, number: int) -> None:
        if (actor := self._actors.pop(number, None)) is not None and ray.is_initialized():
            ray.kill(actor.handle)

    # -- units --------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give out what is pending, to those first that have least."""
        if self._is_stopped:
            return
        ready = [actor for actor in self._actors.values() if actor.is_ready]
        while self._pending:
            unit = self._pending[0]
            takers = [actor for actor in ready if self._takes(actor, unit)]
            if not takers:
                break
            actor = min(takers, key=lambda one: len(one.units))
            actor.units.append(self._pending.popleft())
            actor.unsent.append(unit)
        for actor in ready:
            self._call(actor)

    def _takes(self, actor: _Actor, unit: _Unit) -> bool:
        if unit.one_by_one or (actor.units and actor.units[0].one_by_one):
            return not actor.units
        return len(actor.units) < N_CALLS + N_AHEAD

    def _call(self, actor: _Actor) -> None:
        while actor.n_calls < min(N_CALLS, len(actor.units)):
            unit = actor.units[actor.n_calls]
            if self._bytes_flying and self._bytes_flying + unit.n_bytes > self._store_bytes:
                return
            self._bytes_flying += unit.n_bytes
            messages, actor.unsent = [tuple(self._message(one)) for one in actor.unsent], []
            if actor.n_calls == 0:
                self._note_work(actor)
            actor.n_calls += 1
            self._when_done(actor.handle.fill.remote(self._generation, messages), "filled", actor, unit)

    def _message(self, unit: _Unit) -> UnitMessage:
        slot, rows = unit.batch.slot, slice(unit.start, unit.stop)
        index, keys = self._arrays["index"][slot][rows].tobytes(), self._arrays[KEY][slot][rows].tobytes()
        ordered = {name: self._arrays[name][slot][rows] for name in self._order_fields}
        return UnitMessage(unit.batch.epoch, index, keys, ordered, unit.one_by_one)

    def _note_work(self, actor: _Actor) -> None:
        """What the actor has in hand from now on."""
        assert actor.hello is not None
        unit = actor.units[0]
        sample = int(self._arrays["index"][unit.batch.slot][unit.start]) if unit.stop == unit.start + 1 else WHOLE_TASK
        work = CurrentWork(unit.batch.epoch, unit.batch.number, sample, unit.start, unit.stop, time.monotonic())
        self.work[actor.number] = actor.hello.pid, work

    def _on_filled(self, actor: _Actor, unit: _Unit, future: Any) -> None:
        self._bytes_flying -= unit.n_bytes
        if self._actors.get(actor.number) is not actor:
            return
        try:
            value = future.result()
        except Exception as error:  # a death, or what Ray made of one
            self._died(actor, error)
            return
        if unit.generation != self._generation or value is None:
            return
        assert actor.units[0] is unit, "calls of an actor end in their order"
        actor.units.popleft()
        actor.n_calls -= 1
        if actor.n_calls:
            self._note_work(actor)
        else:
            self.work.pop(actor.number, None)
        self._write(actor, unit, Filled(*value))

    def _write(self, actor: _Actor, unit: _Unit, filled: Filled) -> None:
        """Rows, then reports, then the flag: a batch whose flags are all set may be lent at once."""
        batch, n_rows = unit.batch, unit.stop - unit.start
        for name, rows in rows_layout(self._layout, n_rows).whole_slot(filled.rows).items():
            if name != KEY:
                self._arrays[name][batch.slot][unit.start : unit.stop] = rows
        for sample, text in filled.bad:
            self.results.put(WorkerReport(BAD, actor.number, batch.slot, unit.task, sample, text))
        left = self._rows_left[batch.serial, unit.task]
        left[0] -= n_rows
        left[1] += filled.busy_s
        left[2] += filled.idle_s
        flag_at = batch.slot * MAX_TASKS + unit.task
        had_bad = unit.one_by_one and (batch.serial, unit.task) in self._with_bad
        if filled.bad and left[0]:
            self._with_bad.add((batch.serial, unit.task))
        if left[0]:
            return
        del self._rows_left[batch.serial, unit.task]
        self._with_bad.discard((batch.serial, unit.task))
        first, last = batch.split.bounds[unit.task]
        self.results.put((batch.slot, unit.task, last - first, left[1], left[2]))
        self._flags[flag_at] = FLAG_DONE_WITH_REPORTS if filled.bad or had_bad else FLAG_DONE
        if 0 not in bytes(batch.flags_now):
            self._notify()


def _detail(error: Exception) -> str:
    """What Ray says of a death, in short."""
    found = DETAIL.search(str(error))
    text = found[1] if found is not None else f"{type(error).__name__}: {error}"
    if "connection error code" in text:
        return "it was killed, or crashed, or ended itself; Ray does not tell which"
    return _short(text)


def _short(text: str, n: int = MAX_REASON) -> str:
    return " ".join(text.split())[:n]


def _directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return None
