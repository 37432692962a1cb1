"""What the tests of deaths and hangs share: ways to die, sources that die, and kills before any line.

It imports little: every worker that takes a dead one's place imports it anew, if its source lives here.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

from ringload import Batch, Loader, StallError
from tests.helpers import Truth, TruthRows, check, content

N = 60
METHODS = ["forkserver", "spawn", "fork"]


def kill_oneself(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def segfault() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def exit_in_a_thread() -> None:
    thread = threading.Thread(target=os._exit, args=(3,))
    thread.start()
    thread.join()


def interrupt() -> None:
    raise KeyboardInterrupt


def sleep_in_c() -> None:
    ctypes.PyDLL(None).sleep(1000)  # with the GIL: no signal handler, no thread of this process runs


WAYS: dict[str, tuple[Callable[[], Any], str]] = {  # name -> what a user's function does, what the message says of it
    "SIGKILL": (kill_oneself(signal.SIGKILL), "SIGKILL: "),
    "SIGTERM": (kill_oneself(signal.SIGTERM), "SIGTERM: somebody asked it to end"),
    "SIGSEGV": (segfault, "SIGSEGV: a crash in native code"),
    "SIGABRT": (os.abort, "SIGABRT: native code gave up"),
    "sys.exit": (lambda: sys.exit(5), "exit code 5"),
    "os._exit(0)": (lambda: os._exit(0), "exit code 0"),
    "os._exit in a thread": (exit_in_a_thread, "exit code 3"),
    "KeyboardInterrupt": (interrupt, "exit code 1"),
}


def wait_while(is_so: Any, timeout_s: float = 60) -> None:
    """Until it is not so any more."""
    until_s = time.monotonic() + timeout_s
    while is_so():
        assert time.monotonic() < until_s
        time.sleep(0.001)


def first_time(marker: Path) -> bool:
    """True once, whichever process asks."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Deadly(Truth):
    """Loading some samples ends the worker: always, or only the first time (what was done is a file in `folder`)."""

    def __init__(self, way: str, deadly: Iterable[int], folder: Path | None = None) -> None:
        super().__init__(N)
        self.way, self.deadly, self.folder = way, set(deadly), folder

    def strike(self, index: int) -> None:
        if index in self.deadly:
            if self.folder is not None and not first_time(self.folder / str(index)):
                return
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (what it says of its end is not this test's)
            WAYS[self.way][0]()

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        self.strike(index)


class DeadlyRows(Deadly, TruthRows):
    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        TruthRows.load_rows(self, indices, rngs, out)
        for index in indices:
            self.strike(int(index))

    load = None  # type: ignore[assignment]


class Slow(Truth):
    def __init__(self, n: int, seconds: float = 0.0005) -> None:
        super().__init__(n)
        self.seconds = seconds

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        time.sleep(self.seconds)


class SomeBad(Truth):
    """Some samples cannot be loaded; what comes next is asked for ahead. In `folder`, if any, some end the worker, once."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(N + 2)
        self.folder = folder

    def start(self, worker_id: Any) -> None:
        pass

    def prefetch(self, indices: np.ndarray) -> None:
        pass

    def forget(self, indices: np.ndarray) -> None:
        pass

    def is_ready(self, indices: np.ndarray) -> bool:
        return bool(indices[0] % 2)  # of the others, nothing is under way

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if self.folder is not None and index % 3 == 0 and first_time(self.folder / str(index)):
            WAYS["SIGKILL"][0]()
        if index % 11 == 5:
            raise ValueError("no such luck")


class SomeBadRows(SomeBad):
    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        TruthRows.load_rows(self, indices, rngs, out)
        if (indices % 11 == 5).any():
            raise ValueError("no such luck")

    load = None  # type: ignore[assignment]


class SomeBadThreads(SomeBad):
    """Loaded by threads, which begin with the next task while one is filled."""

    threads = 4
    prefetch = forget = is_ready = None  # type: ignore[assignment]


class Gated(Truth):
    """One sample waits for a file, and ends its worker then, once."""

    def __init__(self, gate: Path, n: int = N, index: int = 32) -> None:
        super().__init__(n)
        self.gate, self.index = gate, index

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index == self.index:
            while not self.gate.exists():
                time.sleep(0.002)
            if first_time(self.gate.with_name("done")):
                os.kill(os.getpid(), signal.SIGKILL)


def loader(source: Any, **options: Any) -> Loader:
    return Loader(source, 6, **{"workers": 2, "ram_budget": "600MB", "seed": 5, "restarts": None, **options})


def epochs(made: Loader, n: int) -> list[dict[str, bytes]]:
    found = []
    for _ in range(n):
        for batch in made:
            check(batch)
            found += content([batch])
    return found


def first(iterator: Iterator[Batch]) -> list[dict[str, bytes]]:
    """The next batch, however slowly they start."""
    while True:
        try:
            return content([next(iterator)])
        except StallError:
            continue


def rest(iterator: Iterator[Batch]) -> list[dict[str, bytes]]:
    """All batches that are left, however slowly they go on."""
    found = []
    while True:
        try:
            found += content([next(iterator)])
        except StallError:
            continue
        except StopIteration:
            return found


def stall(iterator: Iterator[Batch], said: str) -> tuple[list[dict[str, bytes]], str]:
    """Iterate until a stall says that. Returns the batches until then, and what was said. (A slow start is a stall, too.)"""
    found = []
    while True:
        try:
            found += content([next(iterator)])
        except StallError as error:
            if re.search(said, str(error)):
                return found, str(error)


def members(made: Loader) -> list[int]:
    """The pids of the server, if there is one now, and of its workers."""
    server = made._engine._state.workers._supervisor.server_pid
    try:
        return [server, *map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())]
    except OSError:
        return []


def kill_all(pids: Iterable[int], number: int = signal.SIGKILL) -> int:
    """Send them a signal, and wait until those are gone that it ends. Returns how many of them were alive."""
    pidfds = []
    for pid in pids:
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            if select.select([pidfd], [], [], 0)[0]:  # a zombie: of its death, the trainer has yet to learn
                os.close(pidfd)
                continue
            pidfds.append(pidfd)
            signal.pidfd_send_signal(pidfd, number)
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 20)[0], "it lives on"
        os.close(pidfd)
    return len(pidfds)


def lines_of(code: CodeType) -> set[int]:
    """The lines of a function that are executed when it is called."""
    return {line for _, _, line in code.co_lines() if line} - {code.co_firstlineno}


class Tripwire:
    """Calls `act(line)` just before a line of `function` is executed for the `nth` time in a process, once for each line.

    What the trainer forks while the wire is set, its server and that one's workers, have it too. `tripped` are the lines
    that were met; if `act` returns False, the line is met again.
    """

    def __init__(self, function: Any, folder: Path, act: Callable[[int], bool | None], nth: int = 1) -> None:
        self._code, self._folder, self._act, self._nth = function.__code__, folder, act, nth
        self._hits = dict.fromkeys(lines_of(self._code), 0)
        folder.mkdir(exist_ok=True)

    @property
    def tripped(self) -> set[int]:
        return {int(marker.name) for marker in self._folder.iterdir()}

    @property
    def untripped(self) -> set[int]:
        return set(self._hits) - self.tripped

    def __enter__(self) -> Tripwire:
        self._before = sys.gettrace()
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self._before)

    def _enter_frame(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._step if frame.f_code is self._code else None

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        line = frame.f_lineno
        if event == "line" and line in self._hits:
            self._hits[line] += 1
            marker = self._folder / str(line)
            if self._hits[line] >= self._nth and first_time(marker) and self._act(line) is False:
                marker.unlink()
        return self._step
