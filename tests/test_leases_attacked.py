"""Leases under attack: kept, dropped, released, in any order, by anybody, at any moment; and the truth stays in what is kept.

All of it runs in the test mode, so a slot that is written to or used again while somebody looks into it shows as poison.
"""

from __future__ import annotations

import gc
import queue
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from ringload import AllSlotsLentError, Batch, Field, Loader
from ringload.ring.sanitizer import VARIABLE
from tests.conftest import Injected, Times
from tests.helpers import Truth, check, content, run_quietly, truth

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

N, BATCH = 140, 7  # rows whose fields end at no multiple of 64 bytes


@pytest.fixture(autouse=True)
def test_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")


def loader(source: Any = None, batch_size: int = BATCH, **options: Any) -> Loader:
    options = {"workers": 2, "ram_budget": "200MB", "seed": 3, "stall_timeout": 60, **options}
    return Loader(source if source is not None else Truth(N), batch_size, **options)


class Kept:
    """Something of a batch that is kept alive, with what it has to show."""

    WAYS: tuple[Callable[[np.ndarray], Any], ...] = (
        lambda array: array,
        lambda array: array[1:],
        lambda array: array.reshape(-1)[:100].view("i1"),
        lambda array: np.asarray(memoryview(array)[2:]),
        lambda array: np.lib.stride_tricks.as_strided(array, (len(array),), array.strides[:1]),
        lambda array: np.frombuffer(array, np.uint8)[::3],
        lambda array: np.asarray(memoryview(array[0]).cast("B")),
        lambda array: array.T[..., ::2].swapaxes(0, 1),
    )

    def __init__(self, batch: Batch, rng: random.Random) -> None:
        check(batch)
        expected = np.stack([truth(int(i), int(d)) for i, d in zip(batch.index, batch["draw"], strict=True)])
        way = rng.choice(self.WAYS)
        self.view, self.expected = way(batch["image"]), np.array(way(expected))

    def verify(self) -> None:
        np.testing.assert_array_equal(self.view, self.expected)


def in_a_cycle(kept: Any) -> None:
    """Only the collector will find it."""
    cycle: list[Any] = [kept]
    cycle.append(cycle)


class Finalized:
    """Releases what it has, and verifies something else, when it is collected."""

    def __init__(self, batch: Batch, kept: Kept | None = None) -> None:
        self.batch, self.kept, self.self = batch, kept, self

    def __del__(self) -> None:
        self.batch.release()


def test_leases_end_in_random_order_by_random_threads(times: Times, injected: Injected) -> None:
    n_leases, rng = times(500, 10_000), random.Random(1)
    todo: queue.SimpleQueue[tuple[Callable[[Any], None], Any] | None] = queue.SimpleQueue()
    errors: list[BaseException] = []

    def end_leases() -> None:
        while (one := todo.get()) is not None:
            try:
                one[0](one[1])
            except BaseException as error:
                errors.append(error)
            del one

    threads = [threading.Thread(target=end_leases) for _ in range(4)]
    for thread in threads:
        thread.start()
    with loader() as made:
        held: list[tuple[Batch | None, Kept]] = []
        n = n_max = 0
        while n < n_leases:
            for batch in made:
                n += 1
                held.append((batch if rng.random() < 0.5 else None, Kept(batch, rng)))
                while len(held) > rng.randrange(min(made.plan().n_slots - 4, 40)):
                    todo.put((end_one, (*held.pop(rng.randrange(len(held))), rng.random())))
                n_max = max(n_max, len(held))
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join()
        for _, kept in held:
            kept.verify()
        assert n_max > 3
    assert not errors, errors
    for _, kept in held:
        kept.verify()
    injected("lease that another thread ends, in random order", n)


def end_one(ending: tuple[Batch | None, Kept, float]) -> None:
    """Verify, then end a lease: by dropping the last view, by release() once or twice, or by the collector."""
    batch, kept, chance = ending
    kept.verify()
    if batch is None:
        if chance < 0.2:
            in_a_cycle(kept)
        if chance < 0.1:
            gc.collect()
    elif chance < 0.3:
        Finalized(batch)  # a cycle, too
    else:
        batch.release()
        if chance < 0.6:
            batch.release()


def test_what_is_kept_outlives_the_loader(times: Times, injected: Injected) -> None:
    rng, kept, watched = random.Random(2), [], []
    for number in range(times(3, 50)):
        made = loader(workers=number % 3)
        for batch in made:
            kept.append(Kept(batch, rng))
            if rng.random() < 0.5:  # the rest is used again, under what is kept
                kept.pop()
        watched.append(weakref.ref(made))
        if number % 2:
            made.close()
        del made, batch
        gc.collect()
        assert watched[-1]() is None
        for one in kept:
            one.verify()
        kept = kept[-100:]
    injected("loader that ends while arrays of it are kept", len(watched))


def test_finalizers_and_collections_within_next(times: Times, injected: Injected) -> None:
    """The collector runs at every few objects that are made: within `next`, too, and there finalizers release batches."""
    thresholds, rng, n = gc.get_threshold(), random.Random(3), 0
    gc.set_threshold(7, 2, 2)
    try:
        with loader() as made:
            for _ in range(times(3, 100)):
                for batch in made:
                    kept = Kept(batch, rng)
                    Finalized(batch, kept)
                    in_a_cycle(kept)
                    n += 1
                    del batch, kept
    finally:
        gc.set_threshold(*thresholds)
    injected("lease that ends within a finalizer", n)


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Have a function called by a signal handler, each millisecond."""
    before = signal.getsignal(signal.SIGALRM)

    def start(function: Callable[[], None]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: function())
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_leases_end_within_a_signal_handler(on_alarm: Any, times: Times, injected: Injected) -> None:
    held: list[Batch] = []
    n_released, rng = 0, random.Random(4)

    def release_some() -> None:
        nonlocal n_released
        while len(held) > 3:
            try:
                batch = held.pop(rng.randrange(3))
            except IndexError:  # this handler was interrupted by itself since the length was looked at
                return
            batch.release()  # any moment is one at which this handler interrupts itself
            n_released += 1

    with loader(ram_budget="150MB") as made:
        on_alarm(release_some)
        while n_released < times(100, 5000):
            for batch in made:
                check(batch)
                held.append(batch)
                del batch
        signal.setitimer(signal.ITIMER_REAL, 0)
        for batch in held:
            check(batch)
    injected("lease that ends within a signal handler", n_released)


class Wide(Truth):
    """Batches so large that there are few slots."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.fields["wide"] = Field((1 << 20,), "u1")

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        out["wide"][:] = index % 251


def in_a_cycle_that_is_collected(held: list[Batch]) -> None:
    in_a_cycle(held.pop())
    gc.collect()


def twice(held: list[Batch]) -> None:
    held[0].release()
    held.pop(0).release()


WAYS: tuple[Callable[[list[Batch]], Any], ...] = (
    lambda held: held.pop().release(),
    lambda held: held.pop(),
    lambda held: held.pop(0).release(),
    twice,
    in_a_cycle_that_is_collected,
)


def test_the_release_of_another_thread_ends_a_wait_in_next(times: Times, injected: Injected) -> None:
    """Every slot is lent, and `next` waits; each way of ending a lease in another thread wakes it."""
    with loader(Wide(300), ram_budget="170MB") as made:
        iterator = iter(made)
        held = [next(iterator) for _ in range(made.plan().n_slots)]
        n = times(20, 200)
        for number in range(n):
            thread = threading.Thread(target=end_when_waiting, args=(made, WAYS[number % len(WAYS)], held))
            thread.start()
            batch = next(iterator, None)
            if batch is None:
                iterator = iter(made)
                batch = next(iterator)
            thread.join()
            held.append(batch)
            del batch
            check_all(held)
    injected("lease whose end is waited for", n)


def check_all(held: list[Batch]) -> None:
    for batch in held:
        check(batch)
        assert (batch["wide"][:, 0] == batch.index % 251).all()


def end_when_waiting(made: Loader, way: Callable[[list[Batch]], Any], held: list[Batch]) -> None:
    while not made._engine._state.life.lock.locked():  # `next` has begun; whether it waits already makes no difference
        pass
    way(held)


def test_a_ring_that_is_lent_out_starves_until_a_batch_is_given_back(injected: Injected) -> None:
    """Cycles are none of what is held, though nobody collects them."""
    gc.disable()
    try:
        with loader(Wide(300), ram_budget="170MB") as made:
            iterator = iter(made)
            for _ in range(made.plan().n_slots):
                in_a_cycle(next(iterator)["image"])
            made._engine._state.settings = replace(made._engine._state.settings, stall_timeout=0.2)
            held = [next(iterator) for _ in range(made.plan().n_slots)]
            with pytest.raises(AllSlotsLentError, match="every slot of the ring is lent"):
                next(iterator)
            check_all(held)
            held.pop().release()
            assert len(check(next(iterator))) == BATCH
    finally:
        gc.enable()
    injected("ring that is lent out to the last slot", 1)


def test_the_second_end_of_a_lease_ends_no_other(injected: Injected) -> None:
    """As when one thread is within release() while another drops the last view, and the slot was lent again in between."""
    with loader(Wide(300), ram_budget="170MB") as made:
        iterator = forever(made)
        batch = next(iterator)
        end, view = batch._end, batch["image"]
        assert end is not None
        slot = end.slot
        batch.release()
        held: list[Batch] = []
        while slot not in made._engine._state.ring.lent:
            held.append(next(iterator))
        del held[:-1], batch
        before = content(held)
        del view
        for _ in range(3 * made.plan().n_slots):
            check(next(iterator))
        assert content(held) == before
        del iterator, held
    injected("lease whose end comes twice", 1)


def forever(made: Loader) -> Iterator[Batch]:
    while True:
        yield from made


class Slow(Wide):
    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        time.sleep(0.01)  # long enough for tasks of one row


def test_going_elsewhere_with_one_slot_left_waits_no_longer_than_for_what_is_in_hand(
    monkeypatch: pytest.MonkeyPatch, times: Times, injected: Injected
) -> None:
    """The last slot is being filled when it is given up: some of its tasks are in hand, and the others are taken back."""
    n = times(3, 30)
    woken: list[bool] = []
    with loader(Slow(300), ram_budget="170MB") as made:
        wait, made._engine._waiting._tick_s = made._engine._state.workers.wait, 30.0

        def watched(timeout_s: float) -> bool:
            woken.append(wait(timeout_s))
            return woken[-1]

        monkeypatch.setattr(made._engine._state.workers, "wait", watched)
        for _ in range(n):
            iterator = iter(made)
            for _ in range(2 * made.plan().n_slots):  # until all tasks are of one row
                check(next(iterator))
            held = [next(iterator) for _ in range(made.plan().n_slots - 1)]
            check(next(iter(made)))
            check_all(held)
            del held
    assert all(woken), "a wait went on until it looked by itself"
    injected("seek while the only free slot is being filled", n)


def test_a_seek_leaves_nothing_to_the_garbage_collector(injected: Injected) -> None:
    """Who trains with gc.disable() or gc.freeze() has the ring's memory back, too."""
    gc.collect()
    gc.disable()
    try:
        made = loader()
        for epoch in (3, 1, 2):
            made.set_epoch(epoch)
            batch = next(iter(made))
            check(batch)
            del batch
        made.close()
        del made
        assert "memfd:ringload" not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()
    injected("seek, without a garbage collector", 3)


# -- the end of the interpreter ---------------------------------------------------------------------------------------

ENDINGS = {
    "a thread that goes on": """
        thread = threading.Thread(target=lambda: (threading.main_thread().join(), look(), held.pop().release(), held.clear()))
        thread.start()
    """,
    "a daemon": """
        iterator, begun = iter(loader), threading.Event()
        def forever():
            while True:
                held.append(next(iterator, None))
                held.pop(0)
                begun.set()
        threading.Thread(target=forever, daemon=True).start()
        begun.wait()
    """,
    "atexit": "atexit.register(lambda: (look(), held.pop().release(), held.clear()))",
    "a finalizer": "weakref.finalize(loader, lambda: held.pop().release())",
    "a cycle": "held.append(held); import ringload; ringload.held = held",
    "a module that is torn down": "import builtins; builtins.held = held; builtins.views = [one['image'][1:] for one in held]",
    "__del__": """
        class Last:
            def __del__(self, held=held, look=look):
                look()
                held.pop().release()
        import sys; sys.last = Last()
    """,
}


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_leases_end_with_the_interpreter(ending: str, closed: bool, injected: Injected) -> None:
    if closed and ending == "a daemon":
        pytest.skip("it would be told that the loader is closed")
    begin = """
        import atexit, threading, weakref
        from ringload import Loader
        from tests.helpers import Truth, check
        loader = Loader(Truth(1000), 7, workers=2, ram_budget="200MB")
        held = [batch for batch, _ in zip(loader, range(5))]
        def look(held=held, sums=[int(batch["image"].sum()) for batch in held]):
            assert [int(batch["image"].sum()) for batch in held] == sums
    """
    code = "\n".join(map(dedent, (begin, ENDINGS[ending], "loader.close()" if closed else "", "print('done')")))
    assert run_quietly(code) == "done\n"
    injected("lease that ends with the interpreter", 5)
