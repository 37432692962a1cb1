"""Ctrl-C at every moment of every call, and to the whole process group. Who catches it goes on with the right batch, or
closes, and nothing is left; who does not sees its traceback and no other.

Python delivers an interruption between two steps of whatever is being executed. One that comes while `next()` hands a batch
over takes that batch with it (as it would from any iterator): the loader has counted it, and `position` says so.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile

from ringload import Batch, ImageFolder, ImageFrame, Loader
from ringload.engine.engine import Engine
from ringload.engine.lifecycle import State
from ringload.engine.schedule import Schedule
from ringload.protocols import Event
from ringload.workers import templates
from ringload.workers.supervisor import WorkerSupervisor
from ringload.workers.templates import Template
from tests.conftest import Injected, Times, descriptors
from tests.deaths import kill_all, lines_of, members
from tests.helpers import Truth, check, content, order_of
from tests.moments import HOME, Moment, gone, interrupt, moments

pytestmark = pytest.mark.fault

METHODS = pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
N_SLOTS = 4


def make(n: int = 400, **options: Any) -> Loader:
    options = {"workers": 2, "ram_budget": "200MB", "start_method": "fork", "restarts": None, "seed": 3, **options}
    return Loader(Truth(n), 4, **options)


class Iterating:
    """Iterates a loader, whatever interrupts it, and verifies that each batch is the one that is due."""

    def __init__(self, made: Loader) -> None:
        self.made = made
        with make(len(made.source), workers=0) as alone:  # the truth
            self.order = [[batch.index.copy() for batch in alone] for _ in range(3)]
        self.due = (0, 0)
        self.n_lost = 0
        self.taken: Batch | None = None
        self.iterator: Iterator[Batch] = iter(made)
        self.goes_back = False  # to the beginning: an interruption may come before or after the loader is there

    def next(self) -> None:
        self.take()
        self.verify()

    def take(self) -> None:
        self.taken = None
        self.taken = next(self.iterator, None)
        if self.taken is None:
            self.iterator = iter(())  # an interruption within iter() may have ended the old one
            self.iterator = iter(self.made)
            self.taken = next(self.iterator)

    def verify(self) -> None:
        batch, self.taken = self.taken, None
        assert batch is not None
        assert (batch.epoch, batch.number) == self.due
        np.testing.assert_array_equal(check(batch), self.order[self.due[0]][self.due[1]])
        self.due = self.after()

    def after(self) -> tuple[int, int]:
        epoch, number = self.due
        return (epoch, number + 1) if number + 1 < len(self.made) else (epoch + 1, 0)

    def interrupted(self) -> None:
        """At most the batch that was being handed over is gone, and then the loader says so."""
        if self.taken is not None:  # the interruption came late, or not at all
            self.verify()
        if not self.goes_back:
            now = (self.made.epoch, self.made.position)
            assert now in (self.due, self.after())
            self.n_lost += now != self.due
            self.due = now
        if self.due[0] == 2:
            self.goes_back = True
        if self.goes_back:
            self.made.set_epoch(0)
            self.due = (0, 0)
            self.iterator = iter(self.made)
            self.goes_back = False


def interrupted_at(k: int, call: Callable[[], Any]) -> None:
    with suppress(KeyboardInterrupt), Moment(k, interrupt):
        call()


@pytest.mark.timeout(600)
def test_next_is_interrupted_at_every_moment(times: Times, injected: Injected) -> None:
    with make() as made:
        trial = Iterating(made)
        trial.next()
        at = list(moments(trial.take, 10_000)) * times(1, 10)
        trial.verify()
        for k in at:
            interrupted_at(k, trial.take)
            trial.interrupted()
            for _ in range(3):
                trial.next()
        assert trial.n_lost <= 2 * times(1, 10), trial.n_lost
    injected("Ctrl-C at every moment of next()", len(at))


def test_files_that_the_trainer_reads_are_closed_whatever_the_moment(photos: Path, injected: Injected) -> None:
    made = Loader(ImageFolder(photos, size=(8, 8)), 2, workers=0, ram_budget="200MB")

    def take() -> None:
        made.set_epoch(0)
        iterator = iter(made)
        next(iterator)  # there already, the first time
        next(iterator)

    with made:
        at = list(moments(take, 10_000))
        before = os.listdir("/proc/self/fd")
        for k in at:
            interrupted_at(k, take)
            assert os.listdir("/proc/self/fd") == before, f"after moment {k}"
        take()
    injected("Ctrl-C at every moment of loading images in the trainer", len(at))


def test_what_is_set_to_decode_images_is_undone_whatever_the_moment(tmp_path: Path, times: Times, injected: Injected) -> None:
    """Pillow's switches, what shows warnings, and who hears what is logged are the whole process's."""
    names = ["0.png", "1.tiff"]
    for name in names:
        Image.fromarray(np.full((9, 7), 9000, np.uint16)).save(tmp_path / name)
    source = ImageFrame(pd.DataFrame({"path": names}), root=tmp_path, size=(8, 8), truncated="pad", value_range=(0, 9000))
    made = Loader(source, len(names), workers=0, ram_budget="200MB")

    def take() -> None:
        made.set_epoch(0)
        next(iter(made))

    def state() -> list[Any]:
        loggers = [list(logging.getLogger(name).filters) for name in ("PIL.TiffImagePlugin", "tifffile")]
        return [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.showwarning, list(warnings.filters), loggers]

    with made:
        at = list(moments(take, times(400, 10_000)))
        before = state()
        for k in at:
            interrupted_at(k, take)
            if state() != before:
                gc.collect()  # its traceback, whose frames are in a cycle
            assert state() == before, f"after moment {k}"
        take()
    injected("Ctrl-C at every moment of loading images of all kinds in the trainer", len(at))


@pytest.mark.timeout(600)
def test_a_reset_is_interrupted_at_every_moment(times: Times, injected: Injected) -> None:
    """The call after an interruption, which starts the workers anew, and is interrupted too."""
    with make() as made:
        trial = Iterating(made)

        def twice() -> None:
            made._engine._state.life.state = State.INCONSISTENT  # as an interruption leaves it
            trial.take()

        at = list(moments(twice, times(40, 10_000)))
        trial.verify()
        for k in at:
            interrupted_at(k, twice)
            trial.interrupted()
            for _ in range(2):
                trial.next()
    injected("Ctrl-C at every moment of a reset", len(at))


@pytest.mark.timeout(600)
@METHODS
def test_the_replacement_of_a_server_is_interrupted_at_every_moment(method: str, times: Times, injected: Injected) -> None:
    with make(start_method=method) as made:
        trial = Iterating(made)
        pool = made._engine._state.workers._supervisor

        def replace() -> None:
            kill_all(pid for pid in [pool.server_pid] if pid > 0)  # it may have yet to be forked
            made._engine._state.life.state = State.INCONSISTENT  # or it would be missed only when it is needed
            trial.take()

        at = list(moments(replace, times(10, 100) if method == "spawn" else times(25, 10_000)))
        trial.verify()
        for k in at:
            interrupted_at(k, replace)
            trial.interrupted()
            for _ in range(2):
                trial.next()
    injected("Ctrl-C at every moment of replacing a server that was killed", len(at))


def once(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> None:
    """Have the next call of `place.name` call `function` instead."""
    real = getattr(place, name)

    def called(*arguments: Any) -> Any:
        monkeypatch.setattr(place, name, real)
        return function(*arguments)

    monkeypatch.setattr(place, name, called)


def test_a_killed_server_is_replaced_after_an_interruption(monkeypatch: pytest.MonkeyPatch, injected: Injected) -> None:
    """Which comes when the old one is gone, and a new one is not there yet."""
    monkeypatch.setattr("ringload.ring.plan.MAX_SLOTS", 4)  # or all batches were there when it is killed
    with make() as made:
        trial = Iterating(made)
        trial.next()
        kill_all(members(made))  # the workers, too, or they may fill two epochs before the server is missed
        once(lambda pool: interrupt(), monkeypatch, WorkerSupervisor, "_start_server")
        with suppress(KeyboardInterrupt):
            while trial.due[0] < 2:
                trial.next()
        assert trial.due[0] < 2
        trial.interrupted()
        for _ in range(90):
            trial.next()
    injected("Ctrl-C between the end of a killed server and the start of the next", 1)


STARTS = [
    pytest.param("forkserver", WorkerSupervisor._ask_for_server, id="forkserver"),
    pytest.param("forkserver", Template.start, id="a template"),
    pytest.param("spawn", WorkerSupervisor._exec_server, id="spawn"),
    pytest.param("fork", WorkerSupervisor._fork_server, id="fork"),
]


@pytest.mark.parametrize(("method", "function"), STARTS)
def test_an_interruption_before_any_line_of_starting_a_server(method: str, function: Any, injected: Injected) -> None:
    """Python heeds a signal that another thread took wherever it is, the main thread's mask or not."""
    before, trainer = descriptors(), os.getpid()
    place = function.__code__
    lines = sorted(lines_of(place))
    for line in lines:
        met: list[int] = []

        def trace(frame: Any, event: str, argument: Any, line: int = line, met: list[int] = met) -> Any:
            if frame.f_code is not place or os.getpid() != trainer:
                return None
            if event == "line" and frame.f_lineno == line and not met:
                met.append(line)
                raise KeyboardInterrupt
            return trace

        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        if function is Template.start:
            for template in templates.running():
                template.end()
        sys.settrace(trace)
        try:
            with suppress(KeyboardInterrupt):
                make(start_method=method).close()
        finally:
            sys.settrace(None)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # where its own restoring is what was interrupted
        assert not gone(), line
        assert descriptors() == before, line
        injected("Ctrl-C before any line of starting a server", len(met))
    assert len(lines) >= (3 if method == "spawn" else 5)


def then_interrupt(call: Callable[..., Any], pool: WorkerSupervisor, *arguments: Any) -> None:
    """Interrupt when `start` is done, or in place of `_recv`."""
    if arguments:
        call(pool, *arguments)
    interrupt()


def test_no_answer_to_an_interrupted_clear_is_taken_for_another(monkeypatch: pytest.MonkeyPatch, injected: Injected) -> None:
    """When `clear` returns, no worker is left, also where answers to earlier ones are still to be read."""
    with make() as made:
        trial, engine = Iterating(made), made._engine
        for _ in range(5):
            trial.next()
            for name in ("_recv", "start"):  # with the answer on its way; when all are started again
                once(partial(then_interrupt, getattr(WorkerSupervisor, name)), monkeypatch, WorkerSupervisor, name)
                engine._state.life.state = State.INCONSISTENT  # as an interruption leaves it
                with pytest.raises(KeyboardInterrupt):
                    trial.take()
            while len(members(made)) < 3:
                time.sleep(0.002)
            engine._state.workers.clear()
            assert members(made)[1:] == []
            trial.interrupted()
        trial.next()
    injected("Ctrl-C between a question to the server and its answer", 5)


def test_a_reset_that_is_interrupted_ends_workers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it might never end, if an interruption comes each millisecond."""
    with make() as made:
        trial, engine = Iterating(made), made._engine
        trial.next()
        pool = engine._state.workers._supervisor
        engine._state.life.state = State.INCONSISTENT
        for _ in range(3):
            once(lambda *arguments: interrupt(), monkeypatch, Schedule, "post")
            with pytest.raises(KeyboardInterrupt):
                trial.take()
            assert members(made)[1:] == []
        n_clears = pool._n_clears
        trial.interrupted()
        trial.next()
        assert pool._n_clears == n_clears == 1


def test_one_reset_is_enough_where_the_epoch_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """`next()` finds that out after it, and gives no batch."""
    with make() as made:
        iterator = iter(made)
        for _ in range(len(made)):
            check(next(iterator))
        made._engine._state.life.state = State.INCONSISTENT  # as an interruption leaves it
        starts: list[int] = []
        start = WorkerSupervisor.start

        def counted(*arguments: Any) -> None:
            starts.append(1)
            start(*arguments)

        monkeypatch.setattr(WorkerSupervisor, "start", counted)
        assert next(iterator, None) is None
        assert len(starts) == 1


@pytest.mark.parametrize(
    "when", ["before it is read", "when it is read", "when it is heard", "when it is heard, and then the server is killed"]
)
def test_an_interruption_makes_no_ring_small(when: str, monkeypatch: pytest.MonkeyPatch, injected: Injected) -> None:
    """The server tells once that all slots are reserved."""
    monkeypatch.setattr("ringload.loader.FIRST_BYTES", 1)
    with make(ram_budget="250MB") as made:
        engine = made._engine
        n_slots = engine._state.layout.n_slots
        with monkeypatch.context() as deaf:
            deaf.setattr(engine._state.workers, "events", lambda: Event([]))
            trial = Iterating(made)
            while os.fstat(engine._state.workers._supervisor._job.ring_fd).st_blocks * 512 < engine._state.layout.n_bytes:
                time.sleep(0.002)
        assert engine._state.n_reserved < n_slots
        if when == "before it is read":
            engine._state.life.state = State.INCONSISTENT  # as an interruption leaves it
        else:
            really_heard, really_note = engine._state.workers.events, WorkerSupervisor._note

            def hear() -> Event:
                event = really_heard()
                if event.n_reserved == n_slots:
                    monkeypatch.undo()
                    raise KeyboardInterrupt
                return event

            def note(pool: WorkerSupervisor, message: dict[str, Any], event: Event) -> bool:
                if message.get("reserved") == n_slots:
                    monkeypatch.undo()
                    raise KeyboardInterrupt
                return really_note(pool, message, event)

            if when == "when it is read":
                monkeypatch.setattr(WorkerSupervisor, "_note", note)
            else:
                monkeypatch.setattr(engine._state.workers, "events", hear)
            with suppress(KeyboardInterrupt):
                while engine._state.n_reserved < n_slots:
                    trial.next()
                    if trial.due[0] == 2:
                        trial.interrupted()
            assert engine._state.n_reserved < n_slots
            if when.endswith("killed"):
                kill_all([engine._state.workers._supervisor.server_pid])
        trial.interrupted()
        for _ in range(90):
            trial.next()
        assert engine._state.n_reserved == n_slots
        assert not engine._state.is_growing
    injected("Ctrl-C when the server has reported that more is reserved", 1)


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="from 3.11 on, no signal is looked for there")
def test_no_interruption_leaves_the_lock_taken(times: Times, injected: Injected) -> None:
    with make(workers=0) as made:
        engine = made._engine
        codes = {function.__code__ for function in (type(engine).poll, type(engine).close)}
        rng, n = random.Random(5), 0

        def handler(number: int, frame: Any) -> None:
            nonlocal n
            if frame.f_code in codes:
                n += 1
                raise KeyboardInterrupt

        previous = signal.signal(signal.SIGALRM, handler)
        try:
            while n < times(1000, 10_000):
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-4))  # one at a time: a second may hit a `finally`
                with suppress(KeyboardInterrupt):
                    for _ in range(20):
                        engine.poll()
                assert not engine._state.life.lock.locked()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
    injected("Ctrl-C at a random moment of settle()", n)


def poll(made: Loader) -> None:
    """Which enters the end of a lease."""
    next(made._held)
    made.poll()


CALLS: dict[str, Callable[[Loader], Any]] = {
    "iter": iter,
    "poll": poll,
    "set_epoch": lambda made: made.set_epoch(1),
    "load_state_dict": lambda made: made.load_state_dict({**made.state_dict(), "epoch": 1, "position": 7}),
    "release": lambda made: next(made._held).release(),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CALLS)
def test_other_calls_are_interrupted_at_every_moment(
    name: str, times: Times, injected: Injected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringload.ring.plan.MAX_SLOTS", N_SLOTS)  # so few that what was lost of one is soon missed
    call = CALLS[name]
    with make() as made:
        trial = Iterating(made)

        def prepare() -> None:
            made._held = iter(())
            made.set_epoch(0)
            trial.iterator, trial.due = iter(made), (0, 0)
            made._held = iter([next(trial.iterator) for _ in range(2)])

        prepare()
        at = list(moments(lambda: call(made), times(40, 10_000)))
        for k in at:
            prepare()
            interrupted_at(k, lambda: call(made))
            made._held = iter(())
            trial.due = (made.epoch, made.position)
            trial.iterator = iter(made)
            trial.due = (made.epoch, made.position)
            for _ in range(3 * N_SLOTS):
                trial.next()
    injected(f"Ctrl-C at every moment of {name}", len(at))


def test_a_resume_within_a_batch_is_interrupted_before_any_line_of_seek(injected: Injected) -> None:
    """The order and the position move together, or not at all."""
    place = Engine.seek.__code__
    with make() as made:
        state = {**made.state_at(1, 7), "grid": [1, 2]}
        samples, before, after = order_of(made, 1), ((-1, 0), (1, 2)), ((1, 2), (1, 7))
        found = set()
        for line in sorted(lines_of(place)):
            made.set_epoch(1)
            iterator = iter(made)
            check(next(iterator))
            check(next(iterator))

            def trace(frame: Any, event: str, argument: Any, line: int = line) -> Any:
                if frame.f_code is not place:
                    return None
                if event == "line" and frame.f_lineno == line:
                    raise KeyboardInterrupt
                return trace

            sys.settrace(trace)
            try:
                with suppress(KeyboardInterrupt):
                    made.load_state_dict(state)
            finally:
                sys.settrace(None)
            now = made.order.grid, (made.epoch, made.position)
            assert now in (before, after), now
            start = now[0][1] + 4 * now[1][1]
            assert check(made.peek()).tolist() == samples[start : start + 4]
            found.add(now)
            injected("Ctrl-C before any line of seek() within a batch", 1)
        assert found == {before, after}


@pytest.mark.timeout(600)
@METHODS
def test_a_close_is_interrupted_at_every_moment_and_the_next_one_goes_on(method: str, times: Times, injected: Injected) -> None:
    def begun() -> Loader:
        made = make(start_method=method)
        check(next(iter(made)))
        return made

    begun().close()  # afterwards the template is there
    before = descriptors()
    at = list(moments(begun().close, times(10, 100) if method == "spawn" else times(25, 10_000)))
    for k in at:
        made = begun()
        interrupted_at(k, made.close)
        made.close()
        assert descriptors() == before
        del made
        assert not gone()
    injected("Ctrl-C at every moment of close()", len(at))


@pytest.mark.timeout(600)
def test_the_making_of_a_loader_is_interrupted_at_every_moment(times: Times, injected: Injected) -> None:
    """Nothing is left."""
    before, made = descriptors(), None

    def construct() -> None:
        nonlocal made
        made = make()

    at = list(moments(construct, times(50, 500)))
    for k in at:
        made = None
        interrupted_at(k, construct)
        made = None
        assert not gone()
        assert descriptors() == before, k
    injected("Ctrl-C at every moment of making a loader", len(at))


class Numbered:
    """A map-style dataset for the drop-in."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full(8, index)


@pytest.mark.timeout(600)
def test_the_drop_in_is_interrupted_at_every_moment_from_its_making_to_its_end(times: Times, injected: Injected) -> None:
    """Nothing is left, and nothing else is raised: not in a finalizer either, where Python only prints it."""
    from ringload.torch import DataLoader  # here, as not every environment has torch

    printed: list[type] = []

    def iterate() -> None:
        iterator = iter(DataLoader(Numbered(), batch_size=4, num_workers=1, multiprocessing_context="fork"))
        assert next(iterator)[:, 0].tolist() == [0, 1, 2, 3]

    iterate()
    before, hook, sys.unraisablehook = descriptors(), sys.unraisablehook, lambda one: printed.append(one.exc_type)
    try:
        at = list(moments(iterate, times(25, 500)))
        for k in at:
            interrupted_at(k, iterate)
            assert not gone()
            assert descriptors() == before, k
        assert set(printed) <= {KeyboardInterrupt}, printed
    finally:
        sys.unraisablehook = hook
    injected("Ctrl-C at every moment of the drop-in's", len(at))


def test_a_finalizer_that_is_interrupted_while_it_drains_does_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    from ringload.torch import DataLoader

    printed: list[type] = []
    drain, n_calls = Engine.drain, count(1)

    def interrupted(engine: Engine, limit_s: float) -> None:
        if next(n_calls) == 1:
            raise KeyboardInterrupt
        drain(engine, limit_s)

    before = descriptors()
    iterator = iter(DataLoader(Numbered(), batch_size=4, num_workers=1, multiprocessing_context="fork"))
    assert next(iterator)[:, 0].tolist() == [0, 1, 2, 3]
    monkeypatch.setattr(sys, "unraisablehook", lambda one: printed.append(one.exc_type))
    monkeypatch.setattr(Engine, "drain", interrupted)
    del iterator
    gc.collect()
    assert printed == [KeyboardInterrupt]
    assert not gone()
    assert descriptors() == before
    assert next(n_calls) > 1


def test_a_lease_whose_end_an_interruption_took_along_is_not_lent_for_ever(injected: Injected) -> None:
    """It came when the end was out of the queue, and its slot not given back yet."""
    with make() as made:
        for batch in made:
            check(batch)
            if batch.number == 5:
                break
        del batch
        engine = made._engine
        while not engine._state.leases.released.empty():
            engine._state.leases.released.get_nowait()
            engine._state.life.state = State.INCONSISTENT  # as an interruption leaves it
        assert engine._state.life.state is State.INCONSISTENT
        assert len([check(batch) for batch in made]) == 100
        assert made.stats.n_batches == 106
        made.poll()  # which enters the ends that there are
        assert engine._state.ring.lent == {}
        injected("Ctrl-C while ended leases are entered", 1)


def test_what_is_held_stays_through_an_interruption(injected: Injected) -> None:
    """The engine starts over, and what is lent is lent in its new books too."""
    with make() as made:
        trial, kept = Iterating(made), list[Batch]()
        for _ in range(3):
            kept += [next(trial.iterator) for _ in range(4)]
            before = content(kept)
            made._engine._state.life.state = State.INCONSISTENT  # as an interruption leaves it
            for _ in range(8):
                check(next(trial.iterator))
            assert content(kept) == before
        for batch in kept:
            check(batch)
    injected("Ctrl-C while batches are held", 3)


# -- real signals, to the whole process group -------------------------------------------------------------------------

UNCAUGHT = """
import sys, os
def swallowed(args):  # Python itself swallows what is raised in a finalizer
    if args.exc_type is KeyboardInterrupt: os._exit(75)
    sys.__unraisablehook__(args)
sys.unraisablehook = swallowed
from ringload import Loader
from tests.helpers import Truth, check, content
print("begun", flush=True)
while True:
    with Loader(Truth(400), 4, workers=2, start_method=sys.argv[1], ram_budget="200MB") as made:
        for epoch in range(3):
            for batch in made: check(batch)
"""
CAUGHT = """
import gc, os, signal, sys
import ringload
from tests.moments import inside
from tests.test_interrupts import Iterating, make
effective = 0
def handler(number, frame):
    global effective
    if inside(frame):  # or the script would be interrupted where it catches
        effective += 1
        raise KeyboardInterrupt
sys.unraisablehook = lambda args: args.exc_type is KeyboardInterrupt or sys.__unraisablehook__(args)
made = make(start_method=sys.argv[1])
trial = Iterating(made)
signal.signal(signal.SIGINT, handler)
print("begun", flush=True)
while effective < int(sys.argv[2]):
    try:
        trial.next()
        if trial.due[0] == 2: raise KeyboardInterrupt  # from the beginning
    except KeyboardInterrupt:
        while True:
            try:
                trial.interrupted()
                break
            except KeyboardInterrupt:
                pass
signal.signal(signal.SIGINT, signal.SIG_IGN)
for _ in range(20): trial.next() if trial.due[0] < 2 else trial.interrupted()
made.close()
assert made.stats.n_samples
print(effective)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a script in a process group of its own, and wait until it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def interrupt_group(method: str, seed: int) -> tuple[int, str, int]:
    """One Ctrl-C, or two, at a random moment of a script that does not catch it: (exit status, stderr, how many)."""
    rng = random.Random(seed)
    process = start(UNCAUGHT, method)
    time.sleep(rng.uniform(0, 0.5))
    os.killpg(process.pid, signal.SIGINT)
    n = 1 + seed % 2
    if n == 2:
        time.sleep(rng.choice([0, rng.uniform(0, 0.01)]))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=9)  # less than any time-out of ringload's
    return process.returncode, said, n


OF_LOGGING = re.compile(  # what Python's logging was interrupted in at the interpreter's end
    r'Exception ignored in atexit callback: <function shutdown at \w+>\nTraceback .*\n(  File "[^"]*/logging/__init__\.py".*\n'
    r"(    .*\n)*)+\w+(: .*)?\n?"
)
HANDLING = "\nDuring handling of the above exception, another exception occurred:\n\n"


def of_ours(said: str) -> str:
    """Without what Python's own modules were handling when they were interrupted: a KeyError in `import`, say."""
    *handled, last = said.split(HANDLING)
    return HANDLING.join([*(one for one in handled if HOME in one), last])


@METHODS
@pytest.mark.timeout(900)
def test_ctrl_c_at_random_moments_shows_one_traceback(method: str, times: Times, injected: Injected) -> None:
    with ThreadPoolExecutor(2) as executor:
        ends = list(executor.map(lambda seed: interrupt_group(method, seed), range(times(6, 200))))
    for status, said, n in ends:
        if status == 75 or "lost sys.stderr" in said:  # the script was at its end: Python itself could not show it
            continue
        assert status == -signal.SIGINT, said
        said = OF_LOGGING.sub("", said)
        # A second one that comes while Python shows the first spoils the last line; from 3.14 on pickle adds notes behind it.
        last = rf"^KeyboardInterrupt(: <exception str\(\) failed>){{0,{n - 1}}}$(\nwhen serializing .*)*\Z"
        assert re.search(last, said.rstrip(), re.MULTILINE), said
        said = of_ours(said)
        # The second one may come while the loader is closed for the first.
        assert 1 <= said.count("Traceback (most recent") <= n, said
        assert not re.search(r"workers/(server|worker)\.py|^\w*Error\b", said, re.MULTILINE), said
    for n in (1, 2):
        injected(f"Ctrl-C at a random moment, {('once', 'twice in quick succession')[n - 1]}", sum(end[2] == n for end in ends))


@METHODS
@pytest.mark.timeout(600)
def test_who_catches_ctrl_c_goes_on_with_the_right_batch(method: str, times: Times, injected: Injected) -> None:
    rng, n = random.Random(4), times(30, 600)
    process = start(CAUGHT, method, n)
    while process.poll() is None:
        for _ in range(rng.choice([1, 1, 2])):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        time.sleep(rng.choice([rng.uniform(0, 0.002), rng.uniform(0, 0.06)]))
    effective, said = process.communicate(timeout=9)
    assert said == ""
    assert process.returncode == 0
    assert int(effective) >= n
    injected("Ctrl-C that is caught, at a random moment", int(effective))


INTO_FORK = """
import os, signal
from tests.test_interrupts import Iterating, make

leave, trainer = os.setsid, os.getpid()
def setsid():
    if os.getpid() != trainer: os.kill(os.getpid(), signal.SIGINT)  # it was sent to the group, which this process leaves
    leave()
os.setsid = setsid
print("begun", flush=True)
with make() as made:
    trial = Iterating(made)
    for _ in range(20): trial.next()
"""


def test_ctrl_c_that_meets_a_forked_server_in_the_trainers_group_is_the_trainers(injected: Injected) -> None:
    process = start(INTO_FORK)
    _, said = process.communicate(timeout=9)
    assert said == ""
    assert process.returncode == 0
    injected("Ctrl-C before a forked server has left the trainer's group", 1)
