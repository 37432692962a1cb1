"""What follows on events: growth, deaths, and interruptions.

A death resets: all workers are ended and reaped, what they had reported is entered, the rest is posted again. Once all are
known to be gone nothing else can write, so that no row ever has two writers. Loading is idempotent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ringload.checks import warn
from ringload.engine.blame import samples_of
from ringload.engine.describe import death_text, work_text
from ringload.engine.schedule import Schedule
from ringload.engine.state import EngineState
from ringload.errors import WorkerDiedError
from ringload.protocols import Event
from ringload.ring.slots import InFlightBatch, Ring
from ringload.system.cgroups import OomKills
from ringload.system.deaths import Death
from ringload.workers.current_work import WHOLE_TASK, CurrentWork


class Recovery:
    """Acts on what workers and their supervisor tell."""

    def __init__(self, state: EngineState, schedule: Schedule) -> None:
        self._state, self._schedule = state, schedule
        self._oom_kills = OomKills()

    def start(self, unfinished: Iterable[InFlightBatch] = ()) -> None:
        """Start workers, and tell them which samples to leave out."""
        state = self._state
        state.n_starts += 1
        state.workers.start(state.blame.start(state.workers.n_workers, unfinished), state.n_reserved)

    def handle(self, event: Event) -> None:
        """Act on an event."""
        state = self._state
        before = state.n_reserved, state.goal
        if event.n_reserved is not None and event.n_reserved > state.n_reserved:
            self._schedule.grow(event.n_reserved)
        if event.goal is not None:
            state.goal = event.goal
        if (state.n_reserved, state.goal) != before:
            for observer in state.observers:
                observer.on_growth(state.n_reserved, state.goal)
        if event.short:
            warn(f"the ring stays at {state.n_reserved} slots: {event.short}", RuntimeWarning)
        if event.died or event.server_died:
            self.recover(event.died)

    def end_stuck_worker(self, timeout_s: float) -> None:
        """End a worker that takes too long for a sample."""
        now_s = time.monotonic()
        for worker_id, (pid, work) in self._state.workers.current_work().items():
            if now_s - work.since_s > timeout_s * (work.stop - work.start):
                self._state.workers.end(worker_id)
                self.recover([Death(worker_id, pid, 0, f"ended by ringload after sample_timeout={timeout_s:g} s")])
                return

    def recover(self, deaths: Sequence[Death]) -> None:
        """Some workers died, or their server did.

        1. End all workers: from here on nothing writes into slots.
        2. Find out what they died of, while the kernel's counts are fresh.
        3. Enter what was reported before the end, so that no task is done twice without need.
        4. Read what each was filling, before the table of it is cleared.
        5. Have workers and ring forget what was posted: cancelled slots are free.
        6. Act on the other events since then: slots that were reserved.
        7. Blame the samples that were being filled; raise where there were too many deaths.
        8. Bring each unfinished slot back to what the order says, once it has heard of the full ones: a worker may have put
           another sample into a row.
        9. Start workers, and tell them which samples to leave out; then post what is unfinished, oldest first, and what is due.
        """
        state = self._state
        heard = state.workers.clear()  # 1
        deaths = self._explained([*deaths, *heard.died])  # 2
        state.counters.deaths += deaths
        self._schedule.collect()  # 3
        if current_work := state.workers.current_work():  # 4
            state.n_starts = 0  # those that died had begun
        state.workers.forget(state.ring.in_flight)  # 5
        state.ring.forget()
        self.handle(Event([], heard.n_reserved, heard.goal, heard.short))  # 6
        unfinished = state.ring.unfinished()
        for death in deaths:  # 7
            if death.worker_id in current_work:
                state.blame.record_crash(death, current_work[death.worker_id][1], unfinished, state.order)
        self._tell_deaths(deaths, current_work)
        if state.blame.too_many(len(deaths)):
            raise self._died(deaths[-1], current_work)
        for batch in state.ring.in_flight:  # 8
            if not batch.undone:
                state.hear(batch, is_lent=False)
        for batch in unfinished:
            batch.bad = [(task, bad) for task, bad in batch.bad if batch.is_done(task)]
            self._write_again(batch)
        state.unposted = unfinished  # 9
        self.start(unfinished)
        for observer in state.observers:
            observer.on_restart(state.workers.n_workers, len(unfinished))
        self._schedule.post()

    def _write_again(self, batch: InFlightBatch) -> None:
        """Rows of tasks that are done keep the substitutes that are there."""
        state = self._state
        rows = state.order.rows(batch.epoch, batch.number)
        assert rows is not None, "an order goes on to say what it has said of a batch that is not received"
        for task, (start, stop) in enumerate(batch.split.bounds):
            if not batch.is_done(task):
                state.leases.write_rows(batch.slot, rows, start, stop)

    def _explained(self, deaths: list[Death]) -> list[Death]:
        oom = self._oom_kills.news()
        why = f": {oom}" if oom else ""
        deaths = deaths or [Death.of_server(f"the fork server was killed, and its workers with it{why}")]
        return [replace(death, oom=oom) for death in deaths] if oom else deaths

    def _tell_deaths(self, deaths: list[Death], current_work: dict[int, tuple[int, CurrentWork]]) -> None:
        for death in deaths:
            samples = self._samples(current_work.get(death.worker_id))
            for observer in self._state.observers:
                observer.on_death(death, samples)

    def _samples(self, current: tuple[int, CurrentWork] | None) -> list[int]:
        """What a worker was filling."""
        if current is None:
            return []
        _, work = current
        if work.sample != WHOLE_TASK:
            return [work.sample]
        return samples_of(self._state.order, work.epoch, work.number, work.start, work.stop)

    def _died(self, death: Death, current_work: dict[int, tuple[int, CurrentWork]]) -> WorkerDiedError:
        current = current_work.get(death.worker_id)
        at_work = f", while it had {work_text(current[1])} in hand" if current is not None else ""
        return WorkerDiedError(
            f"{death_text(death)}{at_work}. That is more than restarts={self._state.settings.restarts} deaths within a minute, "
            f"{len(self._state.counters.deaths)} in all",
            pid=death.pid,
            cause=death.cause,
            samples=tuple(self._samples(current)),
        )

    def start_over(self, once_cleared: Callable[[], None] = lambda: None) -> None:
        """Make the slot table anew: an interruption left it inconsistent, or workers are given another source.

        1. End all workers, and forget what was posted and reported.
        2. Do what has to be done while there are none.
        3. Act on the other events since then: slots that were reserved.
        4. Keep what the trainer has; all other slots are free.
        5. Post from the batch that is due, and start workers. Workers are started last, so that no later interruption has
           to end them again, and few batches are posted: a reset that takes longer than interruptions come never ends.
        """
        state = self._state
        heard = state.workers.clear()  # 1
        state.workers.collect()
        state.workers.forget(())
        once_cleared()  # 2
        self.handle(Event([], heard.n_reserved, heard.goal, heard.short))  # 3
        lent = {slot: batch for slot, batch in state.ring.lent.items() if state.leases.is_lent(slot, batch.serial)}  # 4
        for batch in lent.values():
            batch.undone = 0  # it was full: reports of it that nothing will read any more are not missed
        state.ring = Ring(state.n_reserved, lent)
        state.unposted = []
        state.leases.forget_prepared()
        self._schedule.post(1 + 2 * state.workers.n_workers)  # 5
        self.start()
