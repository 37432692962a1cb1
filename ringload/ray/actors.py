"""The actors of a loader: started, greeted, given the source; and told apart when they die.

    start_actor --hello--> versions are compared --open--> has the source --> ready for units --> dead, and forgotten

What Ray asks the head for may wait for ever where the head has just died, so a thread of its own asks: to start actors, and to
kill them. What is told to an actor goes straight to it.

An actor is dead when one of its calls fails, for whatever reason: it is killed then, and another takes its place at the next
start. Where the raylet of its node does not answer, the node is dead, with all its actors.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, ActorUnschedulableError

from ringload.errors import ConfigError
from ringload.protocols import Job, Owner
from ringload.ray.actor import Hello, versions
from ringload.ray.cluster import Cluster, answers
from ringload.ray.slot_writer import Unit
from ringload.system.deaths import Death
from ringload.system.segment import map_shared
from ringload.workers.start import Start

OLD_S = 10.0  # how long an actor may take to end what it was doing when another generation began
MAX_REASON = 300  # characters of Ray's on a death
DETAIL = re.compile(r"Worker exit detail: (.*?)(?: Some common causes|$)", re.DOTALL)
END_S = 5.0  # how long the end waits until the head was asked to kill the actors; Ray does that anyway when the trainer ends
WhenDone = Callable[..., None]  # (future, what to tell the dispatcher then, *arguments)


@dataclass(eq=False)
class ActorState:
    """An actor, and the units that it has, oldest first: of these, `n_calls` are being returned, and `unsent` not told yet.
    `n_old`: calls of earlier generations that have not ended. Until then it has no units: it may die of a sample of these."""

    number: int
    handle: Any = None  # until it was started
    hello: Hello | None = None
    raylet: tuple[str, int] = ("", 0)
    is_ready: bool = False
    units: deque[Unit] = field(default_factory=deque)
    unsent: list[Unit] = field(default_factory=list)
    n_calls: int = 0
    n_old: int = 0
    old_from_s: float = 0.0  # since when there are such

    def forget(self) -> None:
        """Another generation begins: it has no units."""
        self.units.clear()
        self.unsent.clear()
        if not self.n_old:
            self.old_from_s = time.monotonic()
        self.n_old += self.n_calls
        self.n_calls = 0

    def takes(self, unit: Unit, n_most: int) -> bool:
        """Whether it takes one more unit, of `n_most`. Of those that are filled one by one, it has no other beside."""
        if unit.one_by_one or (self.units and self.units[0].one_by_one):
            return not self.units
        return len(self.units) < n_most


class Actors:
    """Worker -> its actor. `when_done` has the dispatcher act once a call has ended."""

    def __init__(self, cluster: Cluster, numbers: range, when_done: WhenDone) -> None:
        self.by_number: dict[int, ActorState] = {}
        self.order_fields: Sequence[str] = ()
        self._cluster, self._numbers, self._when_done = cluster, numbers, when_done
        self._directory = _directory()
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._caller: threading.Thread | None = None

    def begin_to_call(self) -> None:
        """Start the thread that asks the head."""
        self._caller = threading.Thread(target=self._call, name="ringload:ray-head", daemon=True)
        self._caller.start()

    @property
    def ready(self) -> list[ActorState]:
        """Those that have the source, and nothing of an earlier generation to do."""
        return [actor for actor in self.by_number.values() if actor.is_ready and not actor.n_old]

    @property
    def n_placed(self) -> int:
        """How many have answered."""
        return sum(actor.hello is not None for actor in self.by_number.values())

    def is_there(self, actor: ActorState) -> bool:
        """Whether an actor was not dropped."""
        return self.by_number.get(actor.number) is actor

    def give_source(self, job: Job, owners: Sequence[Owner]) -> None:
        """Put the source into the object store, from where each node takes it once. `owners`: of its descriptors."""
        contents = [(owner.fd, map_shared(owner.fd, n)) for owner in owners if (n := os.fstat(owner.fd).st_size)]
        self._refs = [ray.put(np.frombuffer(job.source, np.uint8)), *(ray.put(content) for _, content in contents)]
        self._fds = [fd for fd, _ in contents]
        self._job = job._replace(source=None, owners=(), setup=None)

    def begin(self, start: Start, generation: int) -> None:
        """Have those that are there begin a generation, and the others once they are. It needs no head."""
        self._start, self._generation = start, generation
        for actor in self.by_number.values():
            if actor.is_ready:
                actor.handle.begin.remote(generation, start.poison_samples)

    def start_missing(self) -> None:
        """Have those started that are not there."""
        for number in self._numbers:
            if number not in self.by_number:
                self._start_one(number)

    def drop_late(self) -> bool:
        """End those that have not ended what they did in an earlier generation: a sample may hang. Whether there was one."""
        now_s = time.monotonic()
        late = [actor.number for actor in self.by_number.values() if actor.n_old and now_s - actor.old_from_s > OLD_S]
        for number in late:
            self.drop(number)
        return bool(late)

    def _start_one(self, number: int) -> None:
        actor = self.by_number[number] = ActorState(number)
        self._calls.put(partial(self._begin, actor))

    def _begin(self, actor: ActorState) -> None:
        """In the thread of its own."""
        if not self.is_there(actor):  # it was dropped before it was started
            return
        try:
            actor.handle = self._cluster.start_actor(actor.number, actor.number - self._numbers.start)
            future = actor.handle.hello.remote().future()
        except Exception as error:  # whatever Ray raises: it is told where the actor would have answered
            future = Future[Any]()
            future.set_exception(error)
        self._when_done(future, "hello", actor)

    def _call(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def greeted(self, actor: ActorState, future: Any) -> Death | None:
        """It has answered, or it cannot. Returns its death.

        Raises:
            ConfigError: no actor can be started, or its node has other versions.
        """
        try:
            actor.hello = hello = Hello(*future.result())
        except Exception as error:
            if isinstance(error, ActorUnschedulableError) or (isinstance(error, ActorDiedError) and error._actor_init_failed):
                raise ConfigError(f"an actor cannot be started: {in_short(str(error), 1500)}") from error
            if "node has died" not in str(error):
                return self.died(actor, error)
            self.drop(actor.number)  # before it began; of a node that Ray had not missed yet
            self._start_one(actor.number)
            return None
        actor.raylet = hello.raylet_host, hello.raylet_port
        ours = versions()
        if (hello.ringload, hello.python) != ours:
            raise ConfigError(
                f"node {hello.node} has ringload {hello.ringload} and Python {hello.python}, and the trainer ringload "
                f"{ours[0]} and Python {ours[1]}: install the same versions on all nodes"
            )
        path = [entry for entry in sys.path if entry]
        job, n_workers = self._job, self._start.n_workers
        opened = actor.handle.open.remote(job, n_workers, self._directory, path, self._refs[0], self._fds, *self._refs[1:])
        self._when_done(opened.future(), "opened", actor)
        return None

    def opened(self, actor: ActorState, future: Any) -> Death | None:
        """It has the source, or cannot use it. Returns its death.

        Raises:
            ConfigError: it cannot use the source.
        """
        try:
            problem, self.order_fields = future.result()
        except Exception as error:
            return self.died(actor, error)
        assert actor.hello is not None
        if problem:
            raise ConfigError(
                f"the source, or worker_setup, cannot be used in an actor on node {actor.hello.node} (its files and modules "
                f"have to be on every node):\n{problem}"
            )
        actor.is_ready = True
        actor.handle.begin.remote(self._generation, self._start.poison_samples)
        return None

    def died(self, actor: ActorState, error: Exception) -> Death:
        """An actor is of no more use: it died, or its node did, with others."""
        node, pid = (actor.hello.node, actor.hello.pid) if actor.hello is not None else ("?", -1)
        if actor.raylet[1] and not answers(*actor.raylet):
            dead = [one for one in self.by_number.values() if one.raylet == actor.raylet]
            death = Death.of_server(f"node {node} died, and {len(dead)} of ringload's actors with it")
        else:
            dead = [actor]
            death = Death(actor.number, pid, 0, f"its process on node {node} ended: {_detail(error)}")
        for one in dead:
            self.drop(one.number)
        return death

    def drop(self, number: int) -> None:
        """End an actor, if it is there."""
        if (actor := self.by_number.pop(number, None)) is not None:
            self._calls.put(partial(_kill, actor))

    def drop_all(self) -> None:
        """End all actors, and let go of the source."""
        for number in list(self.by_number):
            self.drop(number)
        self._refs = []

    def end(self) -> None:
        """End all actors, and the thread."""
        self.drop_all()
        self._calls.put(None)
        if self._caller is not None:
            self._caller.join(END_S)


def _kill(actor: ActorState) -> None:
    """In the thread of its own, after its start. Without Ray, the actor has ended."""
    if actor.handle is not None and ray.is_initialized():
        with suppress(Exception):  # whatever Ray raises of an actor, or of a cluster, that is gone: this thread has to go on
            ray.kill(actor.handle)


def _detail(error: Exception) -> str:
    """What Ray says of a death, in short."""
    found = DETAIL.search(str(error))
    text = found[1] if found is not None else f"{type(error).__name__}: {error}"
    if "connection error code" in text:
        return "it was killed, or crashed, or ended itself; Ray does not tell which"
    return in_short(text)


def in_short(text: str, n: int = MAX_REASON) -> str:
    """The beginning of a text, in one line."""
    return " ".join(text.split())[:n]


def _directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return None
