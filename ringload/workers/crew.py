"""Who fills the ring: producers, or for workers=0 the trainer itself. The engine calls either in the same way.

post(batches) -> int      have batches filled; returns how many of them, the others not now
collect() -> words, done  what was reported, without waiting
take_back() -> tasks      what is posted and in nobody's hands
wait(timeout_s) -> bool   until a slot is full, or there is something to be heard, or `wake` is called; False: the time is over
heard() -> Event          deaths, and memory that was reserved, without waiting
wake()                    end a wait, from another thread or a signal handler
clear() -> Event          end whoever may still write; what they had reported can still be collected
forget(batches)           after clear(): nothing is posted or in anybody's hands, and `batches` are as the books say
start(start)              begin, again
in_hand()                 (pid, claim) of each who has something in hand
processes()               who there is beside the trainer: name -> pid
close()                   for good
"""

from __future__ import annotations

import random
import select
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from select import PIPE_BUF
from typing import Any, Protocol

import numpy as np

from ringload.data.fields import Producer
from ringload.data.listed import ListedOrder
from ringload.data.sampler import Order
from ringload.ring.channel import BAD, Channel, Done, Task, Word
from ringload.ring.claims import Claim, Claims
from ringload.ring.ring import Posted
from ringload.ring.slots import CLAIM_BYTES, HINT_DONE, MAX_TASKS, Layout
from ringload.workers.filling import Filler, OnError
from ringload.workers.listing import ListedFiller
from ringload.workers.pool import Event, Pool
from ringload.workers.worker import Job, Start, as_text


class Crew(Protocol):
    """See the module's text. `max_ahead`: batches that may be posted and not taken."""

    max_ahead: int

    def post(self, batches: Sequence[Posted]) -> int: ...
    def collect(self) -> tuple[list[Word], list[Done]]: ...
    def take_back(self) -> list[Task]: ...
    def wait(self, timeout_s: float) -> bool: ...
    def heard(self) -> Event: ...
    def wake(self) -> None: ...
    def clear(self) -> Event: ...
    def forget(self, batches: Iterable[Posted]) -> None: ...
    def start(self, start: Start, n_reserved: int) -> None: ...
    def in_hand(self) -> dict[int, tuple[int, Claim]]: ...
    def processes(self) -> dict[str, int]: ...
    def close(self) -> None: ...


class Producers:
    """Producer processes. Owns the pool and the channel."""

    max_ahead = 1 << 30  # the ring's slots bound it

    def __init__(self, pool: Pool, channel: Channel, layout: Layout, memory: np.ndarray) -> None:
        self._pool, self._channel = pool, channel
        area = memory.data
        self._hints = area[layout.hints_start : layout.hints_start + layout.n_slots * MAX_TASKS]
        self._claims = Claims(area[: layout.n_producers * CLAIM_BYTES])
        self._n_producers = layout.n_producers
        self._clear_claims()  # zeros would say that they have sample 0 in hand since the machine was started
        self._epoll = select.epoll()
        self._epoll.register(channel.filled, select.EPOLLIN | select.EPOLLET)  # each ring wakes once, and none is read
        self._registered = -1

    def post(self, batches: Sequence[Posted]) -> int:
        """One write for as many batches as fit into it."""
        n_posted = 0
        while n_posted < len(batches):
            records, n_tasks, n_taken = b"", 0, 0
            for posted in batches[n_posted:]:
                of_one = posted.records()
                if len(records) + len(of_one) > PIPE_BUF:
                    break
                self._write_hints(posted)  # before the records: nobody writes here until they are read
                records += of_one
                n_tasks += posted.undone.bit_count()
                n_taken += 1
            if not self._channel.post(records, n_tasks):
                break
            n_posted += n_taken
        return n_posted

    def collect(self) -> tuple[list[Word], list[Done]]:
        return self._channel.results()

    def take_back(self) -> list[Task]:
        tasks = self._channel.take_back()
        for task in tasks:  # so that who finishes what else is in hand of the slot rings
            self._hints[task.slot * MAX_TASKS + task.task] = HINT_DONE
        return tasks

    def wait(self, timeout_s: float) -> bool:
        return bool(self._epoll.poll(timeout_s, 2))  # there are two descriptors; the default is room for 1,023

    def heard(self) -> Event:
        return self._pool.events()

    def wake(self) -> None:
        self._channel.ring()

    def clear(self) -> Event:
        """Raises Stalled if a process does not end."""
        self._unregister()  # the pool may replace its server, and with it the descriptor
        return self._pool.clear()

    def forget(self, batches: Iterable[Posted]) -> None:
        """Who died after its record and before its hint left a batch that is done, and does not look it."""
        self._channel.empty()
        for posted in batches:
            self._write_hints(posted)
        self._clear_claims()

    def rebuild(self, job: Job, memory: np.ndarray) -> None:
        """Once nobody works, and nothing is posted: the next start is of another job, whose ring is mapped as `memory`."""
        layout, area = job.layout, memory.data
        self._hints = area[layout.hints_start : layout.hints_start + layout.n_slots * MAX_TASKS]
        self._claims = Claims(area[: layout.n_producers * CLAIM_BYTES])
        self._clear_claims()
        self._unregister()
        self._pool.renew(job)

    def _clear_claims(self) -> None:
        for producer in range(self._n_producers):
            self._claims.clear(producer)

    def _write_hints(self, posted: Posted) -> None:
        first, hints = posted.slot * MAX_TASKS, posted.hints()
        self._hints[first : first + len(hints)] = hints
        posted.hints_now = self._hints[first : first + len(hints)]

    def start(self, start: Start, n_reserved: int) -> None:
        self._pool.start(start, n_reserved)
        self._unregister()
        self._registered = self._pool.fd
        self._epoll.register(self._registered, select.EPOLLIN)

    def in_hand(self) -> dict[int, tuple[int, Claim]]:
        """Producer -> (pid, claim)."""
        pids = self._pool.pids or [-1] * self._n_producers
        claims = ((producer, pid, self._claims.read(producer)) for producer, pid in enumerate(pids))
        return {producer: (pid, claim) for producer, pid, claim in claims if claim is not None}

    def processes(self) -> dict[str, int]:
        server = {"the server of the producers": self._pool.server_pid}
        return server | {f"producer {producer}": pid for producer, pid in enumerate(self._pool.pids)}

    def close(self) -> None:
        self._pool.close()
        self._channel.close()
        self._epoll.close()
        self._hints.release()
        self._claims.release()

    def _unregister(self) -> None:
        if self._registered >= 0:
            with suppress(OSError):  # an interruption came before it was registered, or after it was not any more
                self._epoll.unregister(self._registered)
            self._registered = -1


class InProcess:
    """The trainer fills a batch itself when it asks for it.

    Sources need not be safe to call from several threads, and may be shared by several loaders, so one thread of the
    process at a time is inside any of them. The global generators are left as they were.
    """

    max_ahead = 1
    _one_at_a_time = threading.RLock()

    def __init__(self, source: Any, order: Order | ListedOrder, layout: Layout, memory: np.ndarray, on_error: OnError) -> None:
        self._filler = ListedFiller(source) if isinstance(order, ListedOrder) else Filler(source, order, on_error)
        self._arrays = layout.arrays(memory)
        self._words: list[Word] = []
        self._done: list[Done] = []
        self._saves_generators = bool(getattr(source, "random", True) and getattr(source, "global_random", True))
        if hasattr(source, "start"):
            source.start(Producer(0, 0, getattr(source, "scratch_bytes", 0), threading.RLock))

    def post(self, batches: Sequence[Posted]) -> int:
        for posted in batches:
            self._fill(posted)
        return len(batches)

    def _fill(self, posted: Posted) -> None:
        slot = {name: array[posted.slot] for name, array in self._arrays.items()}
        with self._one_at_a_time:
            states = (random.getstate(), np.random.get_state()) if self._saves_generators else None
            try:
                bad = self._filler.fill(posted.epoch, posted.number, 0, posted.n_rows, slot)
            finally:
                if states is not None:
                    random.setstate(states[0])
                    np.random.set_state(states[1])
        self._words += [Word(BAD, 0, posted.slot, 0, one.index, as_text(one)) for one in bad]
        self._done += [(posted.slot, task, 0, 0.0, 0.0) for task in range(len(posted.cut.bounds))]

    def collect(self) -> tuple[list[Word], list[Done]]:
        words, done = self._words, self._done
        self._words, self._done = [], []
        return words, done

    def take_back(self) -> list[Task]:
        return []

    def wait(self, timeout_s: float) -> bool:
        return True

    def heard(self) -> Event:
        return Event([])

    def wake(self) -> None:
        pass

    def clear(self) -> Event:
        return Event([])

    def forget(self, batches: Iterable[Posted]) -> None:
        self.collect()

    def start(self, start: Start, n_reserved: int) -> None:
        pass

    def in_hand(self) -> dict[int, tuple[int, Claim]]:
        return {}

    def processes(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._arrays = {}
