"""From order to filled slots: the books and the crew together. The only module that knows both.

Threads: one at a time is inside an engine (`_lock`). A lease may end in any thread at any moment; it only puts itself into
a reentrant queue, which is entered into the books at the next call. `close` may come from another thread, or from a signal
handler that interrupts `next_batch`: it then leaves a flag and wakes whoever is inside, who takes everything down.

Interruptions: KeyboardInterrupt can come between any two instructions. While the books are touched, `_torn` is set; a
call that finds it set starts over: the crew is cleared, the books are made anew, and what was not received yet is posted
again. Loading is idempotent, so this costs time and nothing else.

Cost: after a wait the trainer's caches are cold, and each line of Python costs five times what it does in a loop. So what
can be done for several batches at once is (`_turn_over`: read reports, give slots back, post, make arrays), and the way
through `next_batch` is short. bench/roofline.py measures both, and what being woken takes by itself.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np

from ringload import forks
from ringload.data.listed import ListedOrder
from ringload.data.sampler import Order
from ringload.errors import Closed, ConfigError, ProducerDied, RingloadError, Stalled, Starved
from ringload.ring.channel import FAILED
from ringload.ring.claims import WHOLE_TASK, Claim
from ringload.ring.guard import guard_of
from ringload.ring.lease import Batch, LeaseEnd, Lender
from ringload.ring.limits import OomKills
from ringload.ring.ring import Bad, Posted, Ring
from ringload.ring.slots import Layout
from ringload.workers.crew import Crew
from ringload.workers.deaths import Death
from ringload.workers.pool import Event, Unending
from ringload.workers.suspects import Suspects, what, who_died, who_holds_what, who_is_at_what

TASK_S = 0.016  # what a task should take: long beside its overhead in both processes, short beside a batch
FEW_TASKS = 16  # of a batch, or 4 a producer: more would share a batch no better, and each costs the trainer 1 us
FIRST_ROWS = 8  # rows a task, at most, before a sample's cost was measured
WHOLE_BATCH_S = 0.001  # a batch that costs less is one task
MAX_LAG = 16  # slots that are given back and posted at once, at most
FORKED = "this process is a fork of the one that made the loader; make a loader of its own here"
TICK_S = 10.0  # how often, at least, a wait looks at what no event tells: claims and time-outs
GROWING_S = 0.02  # how often a wait for a free slot looks whether more were reserved
WARN_S = 5.0  # a wait that is this long for want of a free slot is warned about


@dataclass(frozen=True)
class Settings:
    """What an engine is told beside its order and layout. Times in seconds."""

    epochs: int | None
    sample_timeout: float | None
    stall_timeout: float
    restarts: int | None


@dataclass
class Counters:
    """What an engine has counted. Times in seconds; busy and idle are the producers', all together."""

    n_batches: int = 0
    n_samples: int = 0
    first_s: float = 0.0  # when the first batch was asked for
    last_s: float = 0.0  # when the last one was received
    wait_s: float = 0.0
    busy_s: float = 0.0
    idle_s: float = 0.0
    deaths: list[Death] = field(default_factory=list)

    def count(self, n_rows: int, asked_s: float, received_s: float) -> None:
        """A batch was received."""
        if self.n_batches == 0:
            self.first_s = asked_s
        self.n_batches += 1
        self.n_samples += n_rows
        self.wait_s += received_s - asked_s
        self.last_s = received_s


class Engine:
    """Keeps the crew busy with the batches that are due, and lends them in order. Owns the crew and the mapping."""

    def __init__(
        self,
        order: Order | ListedOrder,
        layout: Layout,
        memory: np.ndarray,
        crew: Crew,
        settings: Settings,
        n_reserved: int,
        begin: tuple[int, int] = (0, 0),
    ) -> None:
        self._order, self._layout, self._crew, self._settings = order, layout, crew, settings
        self._ring = Ring(0)
        self._n_reserved = 0
        self._lag = 1  # how many slots are given back and posted at once
        self._growing = False  # the server is reserving more slots
        self._grow(n_reserved)
        self._lender = Lender(memory, layout, self.release)
        self._guard = guard_of(memory, layout)  # none, but in the test mode
        self._unposted: list[Posted] = []  # batches to be posted again that the pipe had no room for
        self._suspects = Suspects(settings.restarts)
        self._oom_kills = OomKills()
        self._lock = threading.Lock()
        self._bell = threading.RLock()  # held while the crew is woken from outside: not once it is being closed
        self._torn = False
        self._closing = False
        self._ending = self._down = False
        self._forked = False
        self._why = ""  # what closed it, if no user did; not the error itself, whose traceback would keep the loader alive
        self._unsaid: RingloadError | None = None  # the error, if nobody was told yet
        self._at_end: list[Callable[[], None]] = []  # what adapters do before the memory is let go of
        self.due = begin  # (epoch, number) of the batch that is received next: where the trainer is
        self._tick_s = min(TICK_S, settings.stall_timeout / 4, (settings.sample_timeout or TICK_S) / 4)
        self._row_s = 0.0  # running mean of a sample's cost
        self._progress_s = time.monotonic()
        self.counters = Counters()
        forks.keep(self)
        with self._lock, _Books(self):
            crew.start(self._suspects.start(layout.n_producers, ()), n_reserved)
            self._post()

    # -- for the loader -----------------------------------------------------------------------------------------------

    def next_batch(self, epoch: int) -> tuple[Batch, list[tuple[int, Bad]]] | None:
        """Wait for the batch that is due, and lend it. With it comes what was bad in it: (task, bad). None if `epoch` is over.

        Raises:
            Closed, ConfigError, ProducerDied, Stalled, Starved: as `Loader` says.
        """
        begin_s = time.monotonic()
        try:
            with self._lock:
                if self._closing or self._torn:
                    self._mend()
                if self.due[0] != epoch:
                    return None
                self._torn = True
                try:
                    if self._lender.released.qsize() >= self._lag:
                        self._turn_over()
                    posted = self._ring.due()
                    if posted is None or posted.hints_now != posted.hints_full:
                        self._wait_for_due(begin_s)
                    posted = self._ring.lend()
                    posted.since_s = now_s = time.monotonic()
                    self.counters.count(posted.n_rows, begin_s, now_s)
                    batch, posted.batch = posted.batch, None
                    assert batch is not None, "a batch is lent once"
                    self.due = posted.after  # last: what was interrupted before comes again
                except BaseException as error:
                    self._leave(error)
                    raise
                self._torn = False
                if self._closing:
                    self._take_down()
                return batch, posted.bad
        finally:
            self._carry_out_close()

    def seek(self, epoch: int, number: int) -> None:
        """The next batch is `number` of `epoch`. What was filled ahead is lost, unless it is just that."""
        try:
            with self._lock, _Books(self):
                if (epoch, number) != self.due:
                    self._collect()
                    for task in self._crew.take_back():
                        self._ring.take_back(task.slot, task.task)
                    for posted in self._unposted:  # their open tasks are in nobody's hands
                        posted.undone, posted.hints_now = 0, b""
                    self._unposted = []
                    self._ring.cancel()
                    self.due = (epoch, number)
                self._turn_over()
        finally:
            self._carry_out_close()

    def release(self, end: LeaseEnd) -> None:
        """End a lease before its arrays are gone."""
        self._lender.released.put(end)
        self.settle()

    def settle(self) -> None:
        """Read reports, give slots back and post, unless somebody is at the books."""
        if self._closing:
            return
        for _ in _taken(self._lock):
            try:
                with _Books(self):
                    self._turn_over()
            except Closed:
                pass
            except RingloadError as error:  # for who asks for the next batch, not for who looks at statistics
                self._unsaid = error.with_traceback(None)
            finally:
                self._lock.release()
                self._carry_out_close()

    def close(self) -> None:
        """End everything, or have it ended by who is inside now. Again is nothing."""
        self._closing = True
        for _ in _taken(self._lock):
            try:
                self._take_down()
            finally:
                self._lock.release()
            return
        with self._bell:
            if not self._ending:
                self._lender.released.put(None)
                self._crew.wake()

    def retire(self) -> None:
        """End everything but the crew, of which nobody works any more: another engine, of another layout, goes on with it.
        After an interruption, `close` is all that can be done."""
        with self._lock, _Books(self):
            self._crew.clear()
            self._crew.collect()
            self._crew.forget(())
            self._ring.abandon()
            self._lender.drop()
            self._guard = None
            self._closing = self._down = True

    def _carry_out_close(self) -> None:
        """Of one that came between the last look for it and the lock's release."""
        if self._closing:
            self.close()

    def drop(self) -> None:
        """In a fork of the trainer: nothing of this engine is this process's."""
        self._lock, self._bell = threading.Lock(), threading.RLock()  # who held the others is not here to release them
        self._closing = self._forked = True

    @property
    def n_full(self) -> int:
        """Batches that are full and not lent."""
        return self._ring.n_full

    @property
    def ready(self) -> bool:
        """Whether the batch that is due is full, and nothing was bad in it."""
        posted = self._ring.due()
        return posted is not None and posted.hints_now == posted.hints_full

    @property
    def memory(self) -> np.ndarray:
        """The part of the segment that is known to be reserved."""
        return self._lender.memory[: self._layout.slots_start + self._n_reserved * self._layout.slot_bytes]

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` when everything is taken down; at once, if it was."""
        self._at_end.append(callback)
        if self._down:
            self._call_back()

    def _call_back(self) -> None:
        while self._at_end:
            self._at_end.pop()()

    # -- one at a time ------------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        """Begin, where the last one did not end as it should."""
        if self._closing:
            self._take_down()
            error, self._unsaid = self._unsaid, None
            if error is not None:
                raise error
            raise Closed(FORKED if self._forked else f"the loader is closed{self._why}")
        if self._torn:
            self._start_over()

    def _leave(self, error: BaseException) -> None:
        """End with an error. Closed, Stalled and Starved are raised while the books are whole; after any other the crew
        cannot work; after an interruption nobody knows (`_torn` stays set)."""
        if isinstance(error, Closed | Stalled | Starved) and not isinstance(error, Unending):
            self._torn = False
        elif isinstance(error, Exception):
            self._closing, self._why = True, f": it ended with {type(error).__name__}: {error}"
        if self._closing:
            self._take_down()

    def _take_down(self) -> None:
        if not self._down:
            with self._bell:
                self._ending = True
            self._ring.abandon()
            self._ring = Ring(0)
            self._lender.drop()
            self._guard = None
            self._crew.close()
            self._call_back()
            self._down = True  # last: if it was interrupted, the next one goes on

    def _start_over(self) -> None:
        """An interruption left the books torn: clear the crew and post anew what was not received."""
        heard = self._crew.clear()
        self._crew.collect()
        self._crew.forget(())
        self._heed(Event([], heard.n_reserved, heard.short))
        lent = {slot: posted for slot, posted in self._ring.lent.items() if _is_lent(posted)}
        for posted in lent.values():
            posted.undone = 0  # it was full: reports of it that nobody will read any more are not missed
        for posted in self._ring.in_flight:
            posted.part()
        self._ring = Ring(self._n_reserved, lent)
        self._unposted = []
        self._crew.start(self._suspects.start(self._layout.n_producers, ()), self._n_reserved)
        self._post()

    # -- the books ----------------------------------------------------------------------------------------------------

    def _turn_over(self) -> None:
        """Read reports, then give slots back (each has had all its reports by then), then post into them."""
        self._collect()
        self._ring.free_cancelled()
        released = self._lender.released
        while not released.empty():
            end = released.get_nowait()
            posted = getattr(end, "posted", None)  # none, if its making was interrupted
            if posted is not None:
                if self._guard is not None:
                    self._guard.freed(posted, self._ring.lent)
                self._ring.give_back(posted)
                posted.end = None  # they name each other: now none but the reference counts is needed to free them
        if self._growing:
            self._heed(self._crew.heard())
        self._post()

    def _collect(self) -> None:
        """Enter what was reported."""
        words, done = self._crew.collect()
        for word in words:
            if word.kind == FAILED:
                raise ConfigError(f"the source cannot be used in a producer:\n{word.text}")
            where, reason, traceback, replaced_by = json.loads(word.text)
            self._ring.bad(word.slot, word.task, Bad(word.sample, where, reason, traceback, replaced_by))
        if not done:
            return
        if self._suspects.any:
            for slot, task, *_ in done:
                self._suspects.acquit(self._ring.of(slot), task)
        busy_s, idle_s, n_rows = self._ring.enter(done)
        self.counters.busy_s += busy_s
        self.counters.idle_s += idle_s
        if n_rows:
            self._row_s += (busy_s / n_rows - self._row_s) / (4 if self._row_s else 1)
        self._progress_s = time.monotonic()

    def _grow(self, n_reserved: int) -> None:
        """So many slots are reserved now."""
        self._ring.add(range(self._n_reserved, n_reserved))
        self._n_reserved = n_reserved
        self._growing = n_reserved < self._layout.n_slots
        self._lag = min(MAX_LAG, n_reserved // 4) or 1  # several, if the ring is large enough not to miss them

    def _post(self) -> None:
        """Post batches into free slots, those first that were posted before a reset."""
        if self._unposted:
            del self._unposted[: self._crew.post(self._unposted)]
            if self._unposted:
                return
        ring, order = self._ring, self._order
        newest = ring.newest()
        epoch, number = self.due if newest is None else order.after(newest.epoch, newest.number)
        batches = []
        for _ in range(min(MAX_LAG, ring.n_free, self._crew.max_ahead - ring.n_in_flight)):
            if self._settings.epochs is not None and epoch >= self._settings.epochs:
                break
            if not order.has(epoch, number):
                break
            n_rows = order.n_rows(number)
            posted = ring.fill(epoch, number, n_rows, self._rows_of_task(n_rows))
            if self._guard is not None:
                self._guard.posting(posted.slot)
            self._lender.prepare(posted, order.rows(number))
            batches.append(posted)
            epoch, number = posted.after = order.after(epoch, number)
        for _ in range(len(batches) - self._crew.post(batches)):
            ring.unfill()

    def _rows_of_task(self, n_rows: int) -> int:
        """How many rows a task holds: about `TASK_S` of work; all producers share a batch unless it is tiny."""
        if self._layout.n_producers == 0:
            return n_rows
        share = -(-n_rows // self._layout.n_producers)
        if self._row_s == 0:
            return min(FIRST_ROWS, share)
        rows = max(1, round(TASK_S / self._row_s), n_rows // max(FEW_TASKS, 4 * self._layout.n_producers))
        return n_rows if n_rows * self._row_s < WHOLE_BATCH_S else min(rows, share)

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _wait_for_due(self, begin_s: float) -> None:
        """Until the batch that is due is full, and what was bad in it is known."""
        ring, crew = self._ring, self._crew
        self._progress_s = begin_s
        look_s = begin_s + self._tick_s
        while True:
            posted = ring.due()
            if posted is not None and 0 not in (hints := bytes(posted.hints_now)):
                break
            if posted is None or self._unposted:
                self._turn_over()
                if ring.starving:
                    self._wait_for_slot(begin_s)
                    continue
            self._torn = False  # the books are whole, and most interruptions come here
            woken = crew.wait(self._tick_s)
            self._torn = True
            if posted is not None and posted.hints_now == posted.hints_full:
                return  # the usual case; what else there is to hear can be heard at the next wait, too
            self._collect()  # who found the pipe of results full rang too, and waits for room
            if woken:
                self._heed(crew.heard())
            if time.monotonic() > look_s:
                self._look_for_stuck()
                look_s = time.monotonic() + self._tick_s
            if self._closing:
                raise Closed("the loader was closed while a batch was waited for")
        if hints != posted.hints_full:
            self._collect()

    def _look_for_stuck(self) -> None:
        """End who takes too long for a sample; raise if nothing was finished for too long."""
        if self._settings.sample_timeout is not None:
            self._end_who_is_stuck(self._settings.sample_timeout)
        if time.monotonic() - self._progress_s > self._settings.stall_timeout:
            stuck = who_is_at_what(self._crew.in_hand(), self._crew.processes())
            if deaths := self.counters.deaths:
                stuck += f"; deaths in all: {len(deaths)}, the last: {who_died(deaths[-1])}"
            raise Stalled(f"nothing was finished for {self._settings.stall_timeout:g} s: {stuck}")

    def _wait_for_slot(self, begin_s: float) -> None:
        """Every slot is lent: until a lease ends."""
        waited_s, limit_s = time.monotonic() - begin_s, self._settings.stall_timeout
        if waited_s > limit_s:
            raise Starved(who_holds_what(self._ring.lent))
        if self._growing:  # there may be slots in a moment
            self._heed(self._crew.heard())
            next_s = waited_s + GROWING_S
        else:
            next_s = WARN_S if waited_s < WARN_S < limit_s else limit_s
        if self._closing:
            raise Closed("the loader was closed while a slot was waited for")
        try:
            self._torn = False  # as in _wait_for_due
            end = self._lender.released.get(timeout=next_s - waited_s)
            self._torn = True
            self._lender.released.put(end)  # for `_turn_over`
        except queue.Empty:
            self._torn = True
            if next_s == WARN_S:
                warnings.warn(who_holds_what(self._ring.lent), RuntimeWarning, stacklevel=5)

    def _heed(self, event: Event) -> None:
        """Act on what the pool has told."""
        if event.n_reserved is not None and event.n_reserved > self._n_reserved:
            self._grow(event.n_reserved)
        if event.short:
            self._growing = False
            warnings.warn(f"the ring stays at {self._n_reserved} slots: {event.short}", RuntimeWarning, stacklevel=5)
        if event.died or event.server_died:
            self._recover(event.died)

    # -- deaths -------------------------------------------------------------------------------------------------------

    def _end_who_is_stuck(self, timeout_s: float) -> None:
        now_s = time.monotonic()
        for producer, (pid, claim) in self._crew.in_hand().items():
            if now_s - claim.since_s > timeout_s * (claim.stop - claim.start):
                self._recover([Death(producer, pid, 0, f"ended by ringload after sample_timeout={timeout_s:g} s")])
                return

    def _recover(self, deaths: list[Death]) -> None:
        """Somebody died: end all, enter what they had reported, and post the rest again.

        Once all are known to be gone nobody else can write, so no row ever has two writers.
        """
        heard = self._crew.clear()
        oom = self._oom_kills.news()
        why = f": {oom}" if oom else ""
        deaths = [*deaths, *heard.died] or [Death(-1, -1, 0, f"the server of the producers was killed, and they with it{why}")]
        deaths = [replace(death, oom=oom) for death in deaths] if oom else deaths
        self.counters.deaths += deaths
        self._collect()
        in_hand = self._crew.in_hand()
        self._crew.forget(self._ring.in_flight)
        self._ring.forget()
        self._heed(Event([], heard.n_reserved, heard.short))
        unfinished = self._ring.unfinished()
        for death in deaths:
            if death.producer in in_hand:
                self._suspects.accuse(death, in_hand[death.producer][1], unfinished, self._order)
        if self._suspects.too_many(len(deaths)):
            raise self._died(deaths[-1], in_hand)
        for posted in unfinished:
            posted.bad = [(task, bad) for task, bad in posted.bad if not posted.undone >> task & 1]
        self._unposted = unfinished
        self._crew.start(self._suspects.start(self._layout.n_producers, unfinished), self._n_reserved)
        self._post()

    def _died(self, death: Death, in_hand: dict[int, tuple[int, Claim]]) -> ProducerDied:
        _, claim = in_hand.get(death.producer, (-1, None))
        samples: tuple[int, ...] = ()
        if claim is not None:
            indices = self._order.indices(claim.epoch, claim.number, claim.start, claim.stop)
            samples = tuple(indices.tolist()) if claim.sample == WHOLE_TASK else (claim.sample,)
        return ProducerDied(
            f"{who_died(death)}{f', while it had {what(claim)} in hand' if claim else ''}. That is more than "
            f"restarts={self._settings.restarts} deaths within a minute, {len(self.counters.deaths)} in all",
            pid=death.pid,
            cause=death.cause,
            samples=samples,
        )


def _taken(lock: threading.Lock) -> Iterator[bool]:
    """`for _ in _taken(lock): try: ... finally: lock.release()` does this once, if the lock is free. No interruption comes
    between taking it and the `try`: the interpreter looks for signals after a call, and a step of this loop is none."""
    return filter(None, map(lock.acquire, (False,)))


def _is_lent(posted: Posted) -> bool:
    """Whether somebody has it: not if it got no further than the books, nor if its lease has ended and the interruption came
    between taking that from the queue and giving the slot back."""
    return posted.batch is None and posted.end is not None and posted.end() is not None


class _Books:
    """`with engine._lock, _Books(engine):` around what touches the books, where it need not be fast."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._engine._mend()
        self._engine._torn = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if error is not None:
            self._engine._leave(error)
        else:
            self._engine._torn = False
            if self._engine._closing:
                self._engine._take_down()
