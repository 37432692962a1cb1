"""The trainer ends, in every way: nothing of ringload is left within a second, and nothing is said on stderr.

Each script runs in an interpreter of its own. The fixture `nothing_left` looks for processes, orphans too, after each test.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ringload import Loader, LoaderClosedError
from tests.conftest import Injected, Times, mapped
from tests.helpers import Truth, check, run, run_quietly

BEGIN = """
import gc, os, signal, sys, threading, time
import ringload
from tests.helpers import Truth, check
def make(n=400, **options):
    return ringload.Loader(Truth(n), 4, workers=2, start_method=sys.argv[1], ram_budget="200MB", **options)
"""
pytestmark = pytest.mark.fault

METHODS = pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
PROMPT_S = 30  # of a whole script, on a machine with much else to do
ITERATING = """
class Gated(Truth):
    def load(self, index, rng, out):
        if index >= 8: threading.Event().wait()
        super().load(index, rng, out)
def begin(l):
    begun = threading.Event()
    def f():
        while True:
            for b in l: begun.set()
    threading.Thread(target=f, daemon=True).start(); begun.wait()
"""

ENDINGS = {
    "close": "l = make(); next(iter(l)); l.close()",
    "close before anything": "make().close()",
    "with": "with make() as l:\n    for b in l: check(b)",
    "break, no close": "l = make()\nfor b in l: break",
    "no close, nothing asked": "l = make()",
    "at the end of the last epoch": "l = make(epochs=1)\nfor b in l: check(b)",
    "del": "l = make(); next(iter(l)); del l; gc.collect()",
    "del in a cycle": "l = make(); loop = [l]; loop.append(loop); next(iter(l)); del l, loop; gc.collect()",
    "an iterator is kept": "it = iter(make()); next(it)",
    "a generator is kept": "def g():\n    with make() as l:\n        yield from l\nit = g(); next(it)",
    "a batch is kept": "l = make(); b = next(iter(l)); l.close(); check(b)",
    "an array is kept": "a = next(iter(make()))['image'][1:3]; gc.collect(); a.sum()",
    "sys.exit in the loop": "for b in make(): sys.exit(0)",
    "os._exit": "it = iter(make()); next(it); os._exit(0)",
    "a daemon thread iterates": (
        "l = make(restarts=None)\ndef f():\n    while True:\n        for b in l: pass\n"
        "t = threading.Thread(target=f, daemon=True); t.start(); time.sleep(0.2); l.close()"
    ),
    "a thread iterates to the end": "t = threading.Thread(target=lambda: [check(b) for b in make(epochs=1)]); t.start()",
    "two loaders": "a = make(); b = make(); next(iter(a)); next(iter(b))",
    "closed while collected": "import weakref; l = make(); next(iter(l)); weakref.finalize(l, print, end=''); l = None",
    "a module holds it": "import types; m = types.ModuleType('m'); sys.modules['m'] = m; m.l = make(); next(iter(m.l))",
    "stdout is closed": "l = make(); next(iter(l)); l.close(); sys.stdout.close()",
    "an exception that was caught is kept": "try:\n    for b in make(): raise ValueError\nexcept ValueError as e: kept = e",
    "a generator is left": "def g():\n    with make() as l:\n        yield from l\nit = g(); next(it); it.close()",
    "a finalizer closes": "class C:\n    def __del__(self): self.l.close()\nc = C(); c.l = make(); next(iter(c.l)); c.c = c",
    "an exit handler closes": "import atexit; l = make(); atexit.register(l.close); next(iter(l))",
    "an exit handler makes one": "import atexit; atexit.register(lambda: check(next(iter(make()))))",
    "os._exit in a thread": "it = iter(make()); next(it); threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(60)",
    "exec": "it = iter(make()); next(it); os.execv(sys.executable, [sys.executable, '-c', ''])",
    "the end while a daemon thread iterates": ITERATING + "l = make(restarts=None); begin(l)",
    "the end while a daemon thread waits in next()": ITERATING + "l = ringload.Loader(Gated(100), 4, workers=2, "
    "start_method=sys.argv[1], ram_budget='200MB', shuffle=False); begin(l)",
    "sys.exit while a daemon thread iterates": ITERATING + "l = make(); begin(l); sys.exit(0)",
    "a thread made it, and ended": (
        "made = []\nt = threading.Thread(target=lambda: made.append(make())); t.start(); t.join()\n"
        "for _ in range(2):\n    for b in made[0]: check(b)"
    ),
    "asyncio": (
        "import asyncio\nasync def f():\n    with make() as l:\n        it = iter(l)\n"
        "        for _ in range(150):\n            b = await asyncio.to_thread(next, it, None)\n            b and check(b)\n"
        "asyncio.run(f())"
    ),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ordinary_end_says_and_leaves_nothing(ending: str, times: Times, injected: Injected) -> None:
    others = ["spawn", "fork"]
    methods = ["forkserver", others[list(ENDINGS).index(ending) % 2], *(["forkserver", *others] * times(0, 4))]
    with ThreadPoolExecutor(2) as executor:  # as many as CPUs
        for _ in executor.map(lambda method: run_quietly(BEGIN + ENDINGS[ending], method, timeout=PROMPT_S), methods):
            pass
    assert not mapped()
    injected("ends of the trainer, of every kind", len(methods))


@METHODS
def test_an_exception_shows_its_own_traceback_and_nothing_else(method: str) -> None:
    done = run(BEGIN + "for b in make(): raise ValueError('mine')", method)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: mine")
    assert done.stderr.count("Traceback") == 1


@METHODS
def test_an_exit_inside_a_with_block_keeps_its_code(method: str) -> None:
    done = run(BEGIN + "with make() as l:\n    for b in l: sys.exit(7)", method)
    assert (done.returncode, done.stderr) == (7, "")


def start(code: str, method: str) -> subprocess.Popen[str]:
    """Start a script, and wait until it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + textwrap.dedent(code), method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


FOREVER = """
l = make()
while True:
    for b in l:
        check(b)
        if l.epoch == 0 and b.number == 3: print("running", flush=True)
"""
IN_A_WAIT = """
class Slow(Truth):
    def load(self, index, rng, out):
        if index > 8: time.sleep(100)
        super().load(index, rng, out)
l = ringload.Loader(Slow(100), 4, workers=2, start_method=sys.argv[1], ram_budget="200MB", shuffle=False)
it = iter(l); next(it)
print("running", flush=True)
list(it)
"""


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=20)
    return said


@METHODS
@pytest.mark.parametrize("code", [FOREVER, IN_A_WAIT], ids=["busy", "waiting"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_trainer_is_killed(number: int, code: str, method: str) -> None:
    process = start(code, method)
    assert mapped()
    process.send_signal(number)
    assert finish(process) == ""
    assert process.returncode == -number
    deadline_s = time.monotonic() + 1.0
    while mapped():
        assert time.monotonic() < deadline_s, "something is left a second after the trainer's end"
        time.sleep(0.005)


@METHODS
@pytest.mark.parametrize("code", [FOREVER, IN_A_WAIT], ids=["busy", "waiting"])
def test_ctrl_c_ends_with_its_traceback_alone(code: str, method: str) -> None:
    """As a terminal sends it: to the whole process group."""
    process = start(code, method)
    os.killpg(process.pid, signal.SIGINT)
    said = finish(process)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1
    assert "fork_server" not in said
    assert process.returncode == -signal.SIGINT


@METHODS
@pytest.mark.timeout(600)
def test_the_trainer_is_killed_at_random_moments(method: str, times: Times, injected: Injected) -> None:
    """While it makes a loader, while the workers start, while it iterates, while it closes."""
    code = "print('running', flush=True)\nwhile True:\n    with make(40) as l:\n        for b in l: check(b)"
    n = times(4, 100)

    def kill(seed: int) -> str:
        process = start(code, method)
        time.sleep(random.Random(seed).uniform(0, 0.4))
        process.kill()
        return finish(process)

    with ThreadPoolExecutor(2) as executor:
        assert set(executor.map(kill, range(n))) == {""}
    injected("kill -9 of the trainer at a random moment", n)


NO_QUEUE = "import resource; resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))\n"


@pytest.mark.parametrize("limited", ["", NO_QUEUE], ids=["", "no signal can be queued"])
def test_the_trainer_is_killed_while_workers_are_stopped(limited: str, injected: Injected) -> None:
    """The lifeline is a signal."""
    process = start(limited + FOREVER, "forkserver")
    for entry in mapped():
        pid = int(entry.split()[0])
        if pid != process.pid:
            os.kill(pid, signal.SIGSTOP)
    process.kill()
    assert finish(process) == ""
    injected("RLIMIT_SIGPENDING" if limited else "kill -9 of the trainer while all its processes are stopped", 1)


# -- forks of the trainer ---------------------------------------------------------------------------------------------


@pytest.fixture
def loader() -> Iterator[Loader]:
    with Loader(Truth(100), 4, workers=2, ram_budget="200MB") as made:
        yield made


def in_a_fork(work: Any) -> int:
    """The exit status of a child that does `work`."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_of_the_trainer_cannot_use_the_loader(loader: Loader) -> None:
    iterator = iter(loader)
    batch = next(iterator)

    def work() -> int:
        check(batch)  # what it was lent is in its memory too
        for use in (lambda: next(iterator), lambda: iter(loader)):
            try:
                use()
                return 1
            except LoaderClosedError as error:
                if "fork" not in str(error):
                    return 2
        loader.close()
        return 0

    assert in_a_fork(work) == 0
    for batch in iterator:
        check(batch)


def test_the_exit_of_a_fork_ends_nothing(loader: Loader) -> None:
    iterator = iter(loader)
    next(iterator)

    def close() -> int:
        loader.close()
        return 0

    for ending in (lambda: 0, close):
        assert in_a_fork(ending) == 0

    def use_another() -> int:
        with Loader(Truth(20), 4, workers=1, ram_budget="200MB") as other:
            return 0 if len([check(batch) for batch in other]) == 5 else 1

    assert in_a_fork(use_another) == 0
    assert len([check(batch) for batch in iterator]) == 24


def test_a_fork_that_outlives_the_trainer_keeps_no_worker_alive() -> None:
    code = """
        l = make(); next(iter(l))
        pid = os.fork()
        if pid == 0:
            os.close(1); os.close(2)
            time.sleep(100)
        print(pid, flush=True)
        os._exit(0)
    """
    process = start("import builtins\n" + textwrap.dedent(code), "forkserver")
    finish(process)
    deadline_s = time.monotonic() + 1.0
    while [entry for entry in mapped() if "ringload:" in entry]:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    for entry in mapped():  # the fork itself maps the ring until it ends: it is the user's
        if (pid := int(entry.split()[0])) != os.getpid():
            os.kill(pid, signal.SIGKILL)
