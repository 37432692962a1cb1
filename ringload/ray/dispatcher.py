"""The thread between the trainer and the actors: gives them units, and writes what they return into the slots.

    trainer --inbox--> units --calls--> actors --futures--> inbox --> rows copied into the slot --> report, flag, notify

All state here belongs to the thread, which sleeps until something is put into its inbox: by the trainer's methods, by the
futures of Ray, or by nobody for `PULSE_S`. A `SimpleQueue` may be put into from a signal handler, and an interruption of the
trainer cannot leave the state of this thread half changed.

Credits: an actor has `N_CALLS` calls outstanding at most, each of which returns the rows of one unit, and knows of `N_AHEAD`
units more, whose samples it reads. All rows that calls will return take `store_bytes` at most; the plan has them.

Deaths. Nothing but this thread writes into slots, so the engine's own recovery does for dead actors, and the living need not be
ended for it: `clear` begins another generation, and what calls of an earlier one return is dropped. Living actors go on with
the source that they have, once these calls have ended; a death costs the tasks in flight. Of a node that died, the actors died
together: that is one death.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from ringload.errors import ClusterLostError, ConfigError, RingloadError
from ringload.protocols import Job, Owner
from ringload.ray.actor import Filled
from ringload.ray.actors import Actors, ActorState, in_short
from ringload.ray.cluster import Cluster
from ringload.ray.slot_writer import SlotWriter, Unit
from ringload.ring.slots import InFlightBatch
from ringload.system.deaths import Death
from ringload.workers.current_work import CurrentWork
from ringload.workers.records import Task
from ringload.workers.start import Start

N_CALLS = 2  # one is filled, the rows of the other are on their way
N_AHEAD = 2  # units whose samples are read meanwhile
PULSE_S = 1.0  # how often it looks whether the cluster is there
ANSWERED = ("clear", "forget", "take_back", "renew", "close")  # what the trainer waits for


class Dispatcher(threading.Thread):
    """See the module. `numbers` are those of the workers that are actors. `notify` wakes the trainer."""

    def __init__(
        self,
        cluster: Cluster,
        numbers: range,
        job: Job,
        writer: SlotWriter,
        store_bytes: int,
        timeout_s: float,
        notify: Callable[[], None],
    ) -> None:
        super().__init__(name="ringload:ray", daemon=True)
        self.inbox: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.deaths: SimpleQueue[Death] = SimpleQueue()
        self.failure: RingloadError | None = None  # what the trainer is told
        self.lost: ClusterLostError | None = None
        self.work: dict[int, tuple[int, CurrentWork]] = {}  # worker -> (pid, what it has in hand); the trainer reads it
        self.store_bytes = store_bytes
        self.actors = Actors(cluster, numbers, self._when_done)
        self._cluster, self._n, self._writer, self._notify, self._timeout_s = cluster, len(numbers), writer, notify, timeout_s
        self._pending: deque[Unit] = deque()
        self._calls: dict[int, tuple[str, tuple[Any, ...]]] = {}  # of Ray: what is done once they have ended
        self._numbers_of_calls = count()
        self._bytes_flying = self._generation = 0
        self._is_stopped, self._is_to_start = True, False  # between `clear` and `start`; there is one to do
        self._start = Start(self._n)
        self._were_all_placed = self._is_closed = False
        self._enough_s = time.monotonic()  # when there were enough actors last
        self._pulse_s = 0.0
        self._ended: set[int] = set()
        self.actors.give_source(job, job.owners[1:])

    def ask(self, what: str, *arguments: Any) -> Any:
        """For the trainer: have the thread do something, and wait. An interruption leaves it to be done. None: it has ended."""
        answer: SimpleQueue[Any] = SimpleQueue()
        self.inbox.put((what, answer, *arguments))
        while self.is_alive():
            try:
                return answer.get(timeout=PULSE_S)
            except Empty:
                continue
        return None

    def end(self) -> None:
        """End all actors, and this thread. After an interruption, call it again."""
        if self.ident is None or threading.current_thread() is self:  # never started; or here the garbage collector runs
            self._guarded(self._on_close)
        else:
            self.ask("close")
            self.join()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `close`."""
        self.actors.begin_to_call()
        while not self._is_closed:
            for what, *arguments in self._messages():
                answer = arguments.pop(0) if what in ANSWERED else None
                result = self._guarded(getattr(self, f"_on_{what}"), *arguments)
                if answer is not None:
                    answer.put(result)
            if not self._is_closed and self.failure is None:
                self._guarded(self._dispatch)

    def _messages(self) -> list[tuple[Any, ...]]:
        """Those that are there, once there is one, or it is time to look around."""
        messages = []
        try:
            messages.append(self.inbox.get(timeout=PULSE_S))
            while True:
                messages.append(self.inbox.get_nowait())
        except Empty:
            pass
        if time.monotonic() > self._pulse_s:
            messages.append(("pulse",))
            self._pulse_s = time.monotonic() + PULSE_S
        return messages

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A call whose error the trainer is told: this thread has to go on, and to answer."""
        try:
            return function(*arguments)
        except Exception as error:  # whatever Ray raises where its cluster falls apart
            if self.failure is None and self.lost is None:
                failure = error if isinstance(error, RingloadError) else ConfigError(f"Ray: {in_short(repr(error))}")
                failure.__cause__ = error.__cause__ if failure is error else error
                self.failure = failure
            self._notify()
            return None

    def _when_done(self, ended: Any, what: str, *arguments: Any) -> None:
        """Ray keeps the callback until the call has ended, which may be long after `close`: so it has nothing of the ring."""
        number, inbox = next(self._numbers_of_calls), self.inbox
        self._calls[number] = what, arguments
        ended.add_done_callback(lambda future: inbox.put(("done", number, future)))

    def _on_done(self, number: int, future: Any) -> None:
        what, arguments = self._calls.pop(number)
        getattr(self, f"_on_{what}")(*arguments, future)

    def _on_pulse(self) -> None:
        if self.lost is not None or self.failure is not None:
            return
        if self._cluster.is_lost():
            self._lose(self._cluster.lost_text())
            return
        if not self._is_stopped and self.actors.drop_late():
            self._is_to_start = True
        self._start_actors()
        n_placed = self.actors.n_placed
        self._were_all_placed |= n_placed == self._n
        if self._is_stopped or n_placed == self._n or (self._were_all_placed and n_placed):
            self._enough_s = time.monotonic()
        elif time.monotonic() - self._enough_s > self._timeout_s:
            missing = f"{self._n - n_placed} of {self._n} actors could not be placed within {self._timeout_s:g} s"
            text = f"{missing}: {self._cluster.lacking(n_placed)}"
            if not self._were_all_placed:
                raise ConfigError(text)
            self._lose(f"the Ray cluster is lost, as no node is left that has room: {text}")

    def _lose(self, text: str) -> None:
        self._on_clear()
        self.actors.by_number.clear()
        self._cluster.abandon()
        self.lost = ClusterLostError(text)
        self._notify()

    # -- messages of the trainer --------------------------------------------------------------------------------------

    def _on_post(self, batches: Sequence[InFlightBatch]) -> None:
        for batch in batches:
            one_by_one = (batch.epoch, batch.number) in self._start.one_by_one
            self._pending.extend(self._writer.units_of(batch, self._generation, one_by_one))

    def _on_start(self, start: Start) -> None:
        self._start, self._is_stopped, self._is_to_start = start, False, True
        self.actors.begin(start, self._generation)
        self._start_actors()

    def _start_actors(self) -> None:
        """Now, or once the head answers: Ray's calls that need it would wait, and not see that the cluster is lost."""
        if self._is_to_start and self.lost is None and self._cluster.answers():
            self._is_to_start = False
            self.actors.start_missing()

    def _on_clear(self) -> None:
        """From here on, nothing that was posted before is written."""
        self._generation += 1
        self._is_stopped, self._is_to_start = True, False
        self._pending.clear()
        self._writer.forget()
        for actor in self.actors.by_number.values():
            actor.forget()
        for number in self._ended:
            self.actors.drop(number)
        self._ended.clear()

    def _on_forget(self) -> None:
        self.work.clear()

    def _on_end(self, number: int) -> None:
        self._ended.add(number)

    def _on_take_back(self) -> list[Task]:
        begun = {unit.of_task for actor in self.actors.by_number.values() for unit in actor.units}
        return self._writer.take_back(self._pending, begun)

    def _on_renew(self, job: Job, owners: Sequence[Owner]) -> None:
        self.actors.drop_all()
        self.actors.give_source(job, owners)

    def _on_close(self) -> None:
        self._is_closed = True
        self._on_clear()
        self.actors.end()
        self._calls.clear()
        self._writer.drop()

    # -- messages of actors -------------------------------------------------------------------------------------------

    def _on_hello(self, actor: ActorState, future: Any) -> None:
        if self.actors.is_there(actor):
            self._tell(self.actors.greeted(actor, future))

    def _on_opened(self, actor: ActorState, future: Any) -> None:
        if self.actors.is_there(actor):
            self._tell(self.actors.opened(actor, future))
            self._writer.order_fields = self.actors.order_fields

    def _tell(self, death: Death | None) -> None:
        if death is not None:
            self.deaths.put(death)
            self._notify()

    def _on_filled(self, actor: ActorState, unit: Unit, future: Any) -> None:
        self._bytes_flying -= unit.n_bytes
        if not self.actors.is_there(actor):
            return
        try:
            value = future.result()
        except Exception as error:  # a death, or what Ray made of one
            self._tell(self.actors.died(actor, error))
            return
        if unit.generation != self._generation:
            actor.n_old -= 1
            return
        actor.units.remove(unit)  # mostly the first: calls end in their order, but what they return may arrive in another
        actor.n_calls -= 1
        self.work.pop(actor.number, None)
        if actor.n_calls:
            self._note_work(actor)
        filled = Filled(*value)
        if (other := self._writer.substitute_for(unit, filled)) is not None:
            self._pending.appendleft(other)
        elif self._writer.write(actor.number, unit, filled):
            self._notify()

    # -- units --------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give out what is pending, to those first that have least."""
        if self._is_stopped:
            return
        ready = self.actors.ready
        while self._pending:
            unit = self._pending[0]
            takers = [actor for actor in ready if actor.takes(unit, N_CALLS + N_AHEAD)]
            if not takers:
                break
            actor = min(takers, key=lambda one: len(one.units))
            actor.units.append(self._pending.popleft())
            actor.unsent.append(unit)
        for actor in ready:
            self._call(actor)

    def _call(self, actor: ActorState) -> None:
        while actor.n_calls < min(N_CALLS, len(actor.units)):
            unit = actor.units[actor.n_calls]
            if self._bytes_flying and self._bytes_flying + unit.n_bytes > self.store_bytes:
                return
            self._bytes_flying += unit.n_bytes
            messages, actor.unsent = [tuple(self._writer.message(one)) for one in actor.unsent], []
            actor.n_calls += 1
            if actor.n_calls == 1:
                self._note_work(actor)
            filled = actor.handle.fill.remote(self._generation, messages)
            self._when_done(filled.future(), "filled", actor, unit)

    def _note_work(self, actor: ActorState) -> None:
        """What the actor has in hand from now on."""
        assert actor.hello is not None
        self.work[actor.number] = actor.hello.pid, self._writer.work(actor.units[0], time.monotonic())
