"""Waiting: for the batch that is due, and for a free slot. No wait is without an end.

Every wait ends by an item, a death, a close, or after `stall_timeout` by an error that names what is stuck. While a thread
waits the state is OPEN: most interruptions come here, and the slot table is consistent.
"""

from __future__ import annotations

import gc
import math
import time

from ringload.engine.describe import ALONE, OF_ARRAYS, death_text, lent_text, stuck_text
from ringload.engine.lifecycle import State
from ringload.engine.recovery import Recovery
from ringload.engine.schedule import Schedule
from ringload.engine.state import EngineState
from ringload.errors import AllSlotsLentError, LoaderClosedError, StallError

TICK_S = 10.0  # how often, at least, a wait looks at what no event tells: current work and time-outs
FIRST_PAUSE_S, MAX_PAUSE_S = 0.0001, 0.005  # how often it looks whether a lease has ended: the more seldom, the longer it waits
SOON_S = 0.02  # how often a wait for a free slot looks whether more were reserved; how long it lasts where no lease can end
WARN_S = 5.0  # a wait that is this long for want of a free slot is warned about
SLOW_STARTS = 5  # one after another may take their time; workers that die at each start are not waited for any longer
OTHERS_SHARE = 0.1  # of a CPU: threads that use more while a lease is waited for may be about to end one
LOOK_S = 1.0  # how often it looks whether another thread could still end a lease
START_S = 300.0  # how long a start of the workers may take, or `stall_timeout` if that is longer


class Waiting:
    """Waits in the trainer's thread, and keeps the ring going meanwhile."""

    def __init__(self, state: EngineState, schedule: Schedule, recovery: Recovery) -> None:
        self._state, self._schedule, self._recovery = state, schedule, recovery
        settings = state.settings
        self._tick_s = min(TICK_S, settings.stall_timeout / 4, (settings.sample_timeout or TICK_S) / 4)
        self._warned_s = 0.0  # when the wait for a slot began that was warned about
        self.advice = OF_ARRAYS  # what the user should do who keeps what is lent

    def housekeeping(self, is_waiting: bool = False) -> None:
        """Read reports, then give slots back, then post into them. `is_waiting`: for the batch that is due."""
        self._schedule.collect()
        self._schedule.give_back()
        if self._state.is_growing:
            self._recovery.handle(self._state.workers.events())
        self._schedule.post(is_waiting=is_waiting)

    def for_due(self, begin_s: float) -> None:
        """Until the batch that is due is full, and what was bad in it is known."""
        state, workers = self._state, self._state.workers
        state.progress_s = begin_s
        look_s = begin_s + self._tick_s
        while True:
            due = state.ring.due()
            if due is not None and 0 not in (flags := bytes(due.flags_now)):
                break
            if due is None or state.unposted:
                self.housekeeping(is_waiting=True)
                if state.ring.starving:
                    self._for_slot(begin_s)
                    continue
            state.life.state = State.OPEN
            woken = workers.wait(self._tick_s)
            state.life.state = State.INCONSISTENT
            if due is not None and due.flags_now == due.flags_full:
                return  # the usual case; what else there is to hear can be heard at the next wait, too
            self._schedule.collect()  # a worker that found the pipe of results full notifies, too, and waits for room
            if state.chooses:
                self._schedule.post()  # those that were filled meanwhile go on
            if woken:
                self._recovery.handle(workers.events())
            if time.monotonic() > look_s:
                self._look_for_stuck()
                look_s = time.monotonic() + self._tick_s
            if state.life.close_requested:
                raise LoaderClosedError("the loader was closed while a batch was waited for")
        if flags != due.flags_full:
            self._schedule.collect()

    def _look_for_stuck(self) -> None:
        """End a worker that takes too long for a sample; raise if nothing was finished for too long."""
        state = self._state
        if state.settings.sample_timeout is not None:
            self._recovery.end_stuck_worker(state.settings.sample_timeout)
        current_work = state.workers.current_work()
        limit_s, since_s = state.settings.stall_timeout, state.progress_s
        if current_work:
            state.n_starts = 0
        if 0 < state.n_starts <= SLOW_STARTS:  # time counts from the first task that is taken: until then, modules are imported
            limit_s = max(limit_s, START_S)
        elif begun := [work.since_s for _, work in current_work.values() if work.since_s < math.inf]:
            # It is progress, too, if all workers have begun another sample. But a worker that dies each time begins each time,
            # so this is accepted for `START_S` only.
            since_s = min(max(since_s, min(begun)), since_s + START_S)
        if time.monotonic() - since_s <= limit_s:
            return
        stuck = stuck_text(current_work, state.workers.processes())
        if deaths := state.counters.deaths:
            stuck += f"; deaths in all: {len(deaths)}, the last: {death_text(deaths[-1])}"
        what_is_not = "no worker has begun to load" if state.n_starts else "nothing was finished"
        raise StallError(f"{what_is_not} for {limit_s:g} s: {stuck}", limit_s=limit_s)

    def _for_slot(self, begin_s: float) -> None:
        """Every slot is lent: until a lease ends."""
        from ringload.engine.lease_holders import only_this_thread  # a trainer that gives batches back in time never needs it

        state, limit_s = self._state, self._state.settings.stall_timeout
        if state.is_growing:  # there may be slots in a moment
            self._recovery.handle(state.workers.events())
        if state.life.close_requested:
            raise LoaderClosedError("the loader was closed while a slot was waited for")
        is_alone = not state.is_growing and only_this_thread()
        # JAX lets go of what its threads have done with only when the interpreter's collector runs
        step_s = SOON_S if state.is_growing or is_alone or gc.callbacks else LOOK_S
        others_s = _other_threads_s()
        state.life.state = State.OPEN
        has_ended = self._for_end(min(time.monotonic() + step_s, begin_s + limit_s))
        state.life.state = State.INCONSISTENT
        if not has_ended:
            is_alone &= _other_threads_s() - others_s < OTHERS_SHARE * step_s  # threads of native code work without Python
            is_alone = is_alone and only_this_thread()  # again: a thread that just started is not seen at once
            self._look_at_lent(begin_s, is_alone)

    def _for_end(self, until_s: float) -> bool:
        """Until a lease has ended, or until then. `get(timeout=...)` of the queue would never return if a signal handler ran
        beyond that (CPython 3.10 to 3.12)."""
        pause_s, released = FIRST_PAUSE_S, self._state.leases.released
        while released.empty():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return True

    def _look_at_lent(self, begin_s: float, is_alone: bool) -> None:
        """No lease has ended for a while: warn once, and raise if none will, or after too long."""
        state = self._state
        waited_s, limit_s = time.monotonic() - begin_s, state.settings.stall_timeout
        is_last = is_alone or waited_s >= limit_s
        is_told = waited_s >= WARN_S and not state.is_growing and self._warned_s != begin_s
        self._collect_garbage(2 if is_last or is_told else 0)
        if not state.leases.released.empty():
            return
        if is_last:
            raise AllSlotsLentError(lent_text(state.ring.lent, self.advice, ALONE if is_alone else ""))
        if is_told:
            self._warned_s = begin_s
            until = f"The loader waits until one is given back, for {limit_s:g} s at most (stall_timeout)"
            self._schedule.warn(lent_text(state.ring.lent, self.advice, until))

    def _collect_garbage(self, generation: int = 2) -> None:
        """Batches in cycles: while this thread waits, the interpreter has no reason to collect them."""
        self._state.life.state = State.OPEN
        gc.collect(generation)
        self._state.life.state = State.INCONSISTENT


def _other_threads_s() -> float:
    """CPU that this process's threads have used, but for the one that asks."""
    return time.process_time() - time.thread_time()
