"""From an order to filled slots: posts what is due, waits for it, and lends it in order.

Threads: one at a time is inside an engine (`Lifecycle.lock`). A lease may end in any thread at any moment; it only puts itself
into a reentrant queue, which is read at the next call. What an interruption leaves, and how `close` comes from another thread
or from a signal handler, is said in `lifecycle`.

Cost: the way through `next_batch` is short. bench/roofline.py measures it, and what being woken takes by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from ringload.bad_sample import Bad
from ringload.engine.blame import CrashBlame
from ringload.engine.lifecycle import State
from ringload.engine.recovery import Recovery
from ringload.engine.schedule import Schedule
from ringload.engine.state import EngineState, Settings
from ringload.engine.waiting import Waiting
from ringload.errors import LoaderClosedError, RingloadError, without_frames
from ringload.protocols import Job, Observer, Order, Owner, Workers
from ringload.ring.layout import Layout
from ringload.ring.lease import Batch, LeaseEnd
from ringload.stats import Counters
from ringload.system import forks
from ringload.system.interrupts import acquire_now, set_together

OPEN, INCONSISTENT = State.OPEN, State.INCONSISTENT


class Engine:
    """Keeps workers busy with the batches that are due, and lends them in order. Owns the workers and the mapping."""

    def __init__(
        self,
        order: Order,
        layout: Layout,
        memory: np.ndarray,
        workers: Workers,
        settings: Settings,
        n_reserved: int,
        begin: tuple[int, int] = (0, 0),
        observers: Sequence[Observer] = (),
    ) -> None:
        self._state = EngineState(order, layout, memory, workers, settings, n_reserved, begin, observers, self.release)
        self._life = self._state.life
        self._schedule = Schedule(self._state)
        self._recovery = Recovery(self._state, self._schedule)
        self._waiting = Waiting(self._state, self._schedule, self._recovery)
        self._at_end: list[Callable[[], None]] = []  # what adapters do before the memory is let go of
        self._state.progress_s = time.monotonic()
        self._schedule.grow(n_reserved)
        forks.keep(self)

    def open(self, job: Job) -> None:
        """Open the workers, and begin. The caller has made sure before that `close` will be called in any case."""
        with self._life.lock, _Session(self):
            self._state.workers.open(job, self._state.leases.memory)
            self._begin()

    def begin(self) -> None:
        """The same with workers that another engine has opened, and retired from."""
        with self._life.lock, _Session(self):
            self._begin()

    def _begin(self) -> None:
        """Start the workers, and post the first batches. Waits for none of them."""
        self._recovery.start()
        self._schedule.post()

    # -- for the loader -----------------------------------------------------------------------------------------------

    def next_batch(self, epoch: int) -> tuple[Batch, list[tuple[int, Bad]]] | None:
        """Wait for the batch that is due, and lend it. With it comes what was bad in it: (task, bad). None if `epoch` is over.

        Raises:
            LoaderClosedError, ConfigError, WorkerDiedError, StallError, AllSlotsLentError: as `Loader` says.
        """
        begin_s = time.monotonic()
        state = self._state
        life = state.life
        try:
            with life.lock:
                if life.close_requested or life.state is INCONSISTENT:  # a session, by hand: each call costs a microsecond here
                    self._ensure_consistent()
                if state.due[0] != epoch:
                    return None
                life.state = INCONSISTENT
                try:
                    if state.leases.released.qsize() >= self._schedule.housekeeping_every:
                        self._waiting.housekeeping()
                    due = state.ring.due()
                    if due is None or due.flags_now != due.flags_full:
                        self._waiting.for_due(begin_s)
                    if not state.is_measured:
                        self._schedule.measure()
                    lent = state.ring.lend()
                    lent.since_s = now_s = time.monotonic()
                    batch = state.leases.lend(lent.slot)
                    if state.hears:
                        lent.n_rows = state.hear(lent, is_lent=True)
                        batch.cut(lent.n_rows)
                    state.counters.count(lent.n_rows, begin_s, now_s)
                    for on_batch in state.on_batch:
                        on_batch(lent.epoch, lent.number, lent.n_rows, now_s - begin_s)
                    state.due = self._schedule.after(lent.epoch, lent.number)  # last: what was interrupted before comes again
                    if state.hears:
                        self._schedule.give_up_beyond_end()
                except BaseException as error:
                    self._fail(error)
                    raise
                life.state = OPEN
                if life.close_requested:
                    self._take_down()
                return batch, lent.bad
        finally:
            self._carry_out_close()

    def peek(self) -> tuple[Batch, list[tuple[int, Bad]]] | None:
        """Wait for the batch that is due, and copy it; it stays due. None if there is none any more.

        Raises:
            As `next_batch`.
        """
        begin_s, state = time.monotonic(), self._state
        try:
            with self._life.lock, _Session(self):
                if state.settings.epochs is not None and state.due[0] >= state.settings.epochs:
                    return None
                self._waiting.housekeeping()
                self._waiting.for_due(begin_s)
                if not state.is_measured:
                    self._schedule.measure()
                due = state.ring.due()
                assert due is not None, "it was waited for"
                batch = state.leases.prepared(due.slot).copy()
                if state.hears:
                    batch.cut(state.hear(due, is_lent=False))
                return batch, due.bad
        finally:
            self._carry_out_close()

    def seek(self, epoch: int, number: int, changes: Sequence[tuple[object, str, Any]] = ()) -> None:
        """The next batch is `number` of `epoch`. What was filled ahead is lost, unless it is just that, and nothing `changes`:
        (object, name, value) of attributes of the order, which are set in one step with the position."""
        state = self._state
        try:
            with self._life.lock, _Session(self):
                if (epoch, number) != state.due:
                    for observer in state.observers:
                        observer.on_seek(epoch, number)
                # Without workers, nothing tells that the source has changed; a stream cannot be read again.
                if (epoch, number) != state.due or changes or not (state.workers.n_workers or state.hears):
                    self._schedule.give_up()
                    set_together(*changes, (state, "due", (epoch, number)))
                self._waiting.housekeeping()
        finally:
            self._carry_out_close()

    def renew(self, source: Any, setup: Callable[[], Any] | None, owners: Sequence[Owner]) -> None:
        """From now on workers load from this source (see `protocols.Job`), which needs the descriptors of `owners`. What was
        filled ahead is filled again."""
        state = self._state
        try:
            with self._life.lock, _Session(self):
                state.blame = CrashBlame(state.settings.restarts)
                state.is_measured = False
                self._recovery.start_over(partial(state.workers.renew, source, setup, owners))
        finally:
            self._carry_out_close()

    def release(self, end: LeaseEnd) -> None:
        """End a lease before its arrays are gone."""
        self._state.leases.released.put(end)
        self.poll()

    def poll(self) -> None:
        """Read reports, give slots back and post, unless another thread is inside."""
        if self._life.close_requested:
            return
        for _ in acquire_now(self._life.lock):
            try:
                with _Session(self):
                    self._waiting.housekeeping()
            except LoaderClosedError:
                pass
            except RingloadError as error:  # for the call that asks for the next batch, not for one that looks at statistics
                self._life.untold = without_frames(error)
            finally:
                self._life.lock.release()
                self._carry_out_close()

    def close(self) -> None:
        """End everything, or have it ended by the thread that is inside now. Idempotent."""
        life = self._life
        life.close_requested = True
        for _ in acquire_now(life.lock):
            try:
                self._take_down()
            finally:
                life.lock.release()
            return
        with life.wake_lock:
            if not life.is_closed:
                self._state.leases.released.put(None)
                self._state.workers.wake()

    def drain(self, limit_s: float) -> None:
        """Before workers are ended: give them nothing more to do, and wait until they have finished what they have in hand, or
        for so long. One that is killed while it holds a lock of the user's never gives it back."""
        until_s, state = time.monotonic() + limit_s, self._state
        with suppress(LoaderClosedError), self._life.lock:
            if self._life.state is not OPEN:  # nothing is known of what they have in hand; do not start them over to end them
                return
            with _Session(self):
                self._schedule.give_up()
                while state.ring.n_cancelled and (left_s := until_s - time.monotonic()) > 0:
                    if state.workers.wait(left_s) and (event := state.workers.events()) and (event.died or event.server_died):
                        break
                    self._schedule.collect()
                    state.ring.free_cancelled()

    def retire(self) -> None:
        """End everything but the workers, which have nothing to do any more: another engine, of another layout, goes on with
        them. After an interruption, `close` is all that can be done."""
        state = self._state
        with self._life.lock, _Session(self):
            state.workers.clear()
            state.workers.collect()
            state.workers.forget(())
            state.drop_memory()
        self._life.close_requested = True
        self._life.end_closing()  # workers go on

    def _carry_out_close(self) -> None:
        """Finish a close() that was requested after the session looked for it last, and before it released the lock."""
        if self._life.close_requested:
            self.close()

    def drop(self) -> None:
        """In a fork of the trainer: nothing of this engine is this process's."""
        self._life.fork()

    @property
    def due(self) -> tuple[int, int]:
        """(epoch, number) of the batch that is received next: where the trainer is."""
        return self._state.due

    @property
    def counters(self) -> Counters:
        return self._state.counters

    @property
    def n_slots(self) -> int:
        """How many slots there are, or will be once all are reserved."""
        state = self._state
        return min(state.goal, max(state.n_room, state.n_reserved))

    @property
    def n_full(self) -> int:
        """Batches that are full and not lent."""
        return self._state.ring.n_full

    @property
    def ready(self) -> bool:
        """Whether the batch that is due is full, and nothing was bad in it."""
        due = self._state.ring.due()
        return due is not None and due.flags_now == due.flags_full

    @property
    def memory(self) -> np.ndarray:
        """The part of the segment that is known to be reserved."""
        state = self._state
        return state.leases.memory[: state.layout.slots_start + state.n_reserved * state.layout.slot_bytes]

    def advise(self, advice: str) -> None:
        """What is said when every slot is lent: what is kept, and what to do."""
        self._waiting.advice = advice

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` when everything is taken down; at once, if it was."""
        self._at_end.append(callback)
        if self._life.state is State.CLOSED:
            self._call_back()

    def _call_back(self) -> None:
        while self._at_end:
            self._at_end.pop()()

    # -- sessions -----------------------------------------------------------------------------------------------------

    def _ensure_consistent(self) -> None:
        """Begin a session, where the one before did not end as it should."""
        if self._life.close_requested:
            self._take_down()
            self._life.refuse()
        if self._life.state is INCONSISTENT:
            self._recovery.start_over()
            self._life.state = OPEN

    def _fail(self, error: BaseException) -> None:
        self._life.fail(error)
        if self._life.close_requested:
            self._take_down()

    def _take_down(self) -> None:
        """If this is interrupted, the next call goes on: each step is idempotent."""
        if self._life.state is not State.CLOSED:
            self._life.begin_closing()
            self._state.drop_memory()
            self._state.workers.close()
            self._call_back()
            self._life.end_closing()


class _Session:
    """`with life.lock, _Session(engine):` around what touches the slot table, where it need not be fast."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._life = engine, engine._life

    def __enter__(self) -> None:
        self._engine._ensure_consistent()
        self._life.state = INCONSISTENT

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if error is not None:
            self._engine._fail(error)
            return
        self._life.state = OPEN
        if self._life.close_requested:
            self._engine._take_down()
