"""Users' functions that a loader should survive: one table of what they do, and what is said of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import SHAPE, Truth, TruthRows

MANY_FDS = 4096


class UnpicklableError(Exception):
    """Cannot be sent, and could not be made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("of two")
        self.function = lambda: (one, two)


class RudeError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class NotedError(Exception):
    """Whose notes cannot be read."""

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise ValueError("no notes")


class Fatal(BaseException):
    pass


def throws(kind: Any, *arguments: Any) -> Callable[[Any], None]:
    def attack(out: Any) -> None:
        raise kind(*arguments)

    return attack


def with_a_note(out: Any) -> None:
    error = ValueError("what happened")
    error.__notes__ = ["and a note"]  # add_note, from 3.11 on
    raise error


def in_a_circle(out: Any) -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    raise one


def endless(out: Any) -> None:
    endless(out)


def silence() -> None:
    """What it says of its end is not the test's."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def dies(out: Any) -> None:
    silence()
    raise Fatal


def closes_descriptors(out: Any) -> None:
    silence()
    os.closerange(3, MANY_FDS)


def replaces_descriptors(out: Any) -> None:
    silence()
    os.closerange(3, MANY_FDS)
    for _ in range(40):
        os.open(os.devnull, os.O_RDWR)


def forks(child: Callable[[], Any]) -> Callable[[Any], None]:
    def attack(out: Any) -> None:
        pid = os.fork()
        if pid == 0:
            child()

    return attack


def waits_for_its_child(out: Any) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def raise_in_child() -> None:
    raise ValueError("in a child")


def starts_threads(out: Any) -> None:
    for _ in range(5):
        threading.Thread(target=threading.Event().wait, daemon=True).start()


def sets_signals(out: Any) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:  # another attack waits for a child
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def prints(out: Any) -> None:
    print("x" * 1_000_000)


def changes_where_it_is(out: Any) -> None:
    os.chdir("/")
    os.umask(0o777)
    os.environ.clear()


def closes_its_streams(out: Any) -> None:
    sys.stdout, sys.stderr = None, None
    os.closerange(0, 3)


def set_to(value: Any) -> Callable[[Any], None]:
    def attack(out: Any) -> None:
        out["image"] = value

    return attack


def write_into(value: Any) -> Callable[[Any], None]:
    def attack(out: Any) -> None:
        out["image"][...] = value

    return attack


DIED = "killed its worker"
# name -> (what it does when its row is written, what the error says of it; "": nothing, and the sample is right)
ATTACKS: dict[str, tuple[Callable[[Any], None], str]] = {
    "a shape too small": (set_to(np.zeros(SHAPE[1:], np.uint8)), r"field 'image' takes \(8, 6, 3\) uint8, got \(6, 3\) uint8"),
    "a shape too large": (set_to(np.zeros((9, 6, 3), np.uint8)), r"takes \(8, 6, 3\) uint8, got \(9, 6, 3\) uint8"),
    "a batch of them": (set_to(np.zeros((3, *SHAPE), np.uint8)), r"takes \(8, 6, 3\) uint8, got \(3, 8, 6, 3\) uint8"),
    "another dtype": (set_to(np.zeros(SHAPE, np.float32)), r"takes \(8, 6, 3\) uint8, got \(8, 6, 3\) float32"),
    "objects": (set_to(np.full(SHAPE, None)), r"takes \(8, 6, 3\) uint8, got \(8, 6, 3\) object"),
    "a larger shape written into the view": (write_into(np.zeros((9, 6, 3))), "could not broadcast"),
    "an unpicklable exception": (throws(UnpicklableError, 1, 2), "UnpicklableError: of two"),
    "an exception whose __str__ raises": (throws(RudeError), r"RudeError: <exception str\(\) failed>"),
    "an exception whose notes raise": (throws(NotedError, "is told"), "NotedError: is told"),
    "an exception with a note": (with_a_note, "ValueError: what happened"),
    "a syntax error with odd attributes": (throws(SyntaxError, "odd", ("f", 1, 2, 3)), "SyntaxError: odd"),
    "a message of lines": (throws(ValueError, "one\ntwo"), "ValueError: one two"),
    "a message of 100 MB": (lambda out: throws(ValueError, "x" * 100_000_000)(out), r"ValueError: xxx.* \.\.\. xxx"),
    "a name of 1 MB": (lambda out: throws(type("X" * 1_000_000, (Exception,), {}))(out), r"XXX \.\.\. XXX"),
    "no message": (throws(ValueError), "^ValueError$|sample [0-9]+: ValueError"),
    "a circle of causes": (in_a_circle, "ValueError: one"),
    "StopIteration": (throws(StopIteration, 3), "StopIteration: 3"),
    "MemoryError": (throws(MemoryError), "MemoryError"),
    "recursion": (endless, "RecursionError"),
    "a BaseException": (dies, DIED),
    "closing descriptors": (closes_descriptors, DIED),
    "closing descriptors and opening others": (replaces_descriptors, DIED),
    "forking, and waiting": (waits_for_its_child, ""),
    "forking, and the child stays": (forks(signal.pause), ""),
    "forking, and the child goes on": (forks(lambda: None), ""),
    "forking, and the child raises": (forks(raise_in_child), ""),
    "starting threads": (starts_threads, ""),
    "setting signals": (sets_signals, ""),
    "printing 1 MB": (prints, ""),
    "changing the directory and the environment": (changes_where_it_is, ""),
    "closing its streams": (closes_its_streams, ""),
}
IN_A_PROCESS_OF_ITS_OWN = {  # what would harm the trainer, if it did it itself
    name for name in ATTACKS if name.startswith(("a BaseException", "closing", "forking", "setting", "changing", "printing"))
}


OF_A_ROW = {
    name for name in ATTACKS if "takes" in ATTACKS[name][1]
}  # what `load_rows` is given are arrays, which know no such error


class Attacked(Truth):
    """Good samples with one between each two that attacks."""

    def __init__(self, attacks: list[str]) -> None:
        super().__init__(3 * len(attacks))
        self.attacks = attacks

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index % 3 == 1:
            ATTACKS[self.attacks[index // 3]][0](out)


class AttackedRows(Attacked, TruthRows):
    """The same, several samples in one call."""

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        TruthRows.load_rows(self, indices, rngs, out)
        for row, index in enumerate(indices.tolist()):
            if index % 3 == 1:
                ATTACKS[self.attacks[index // 3]][0]({name: array[row] for name, array in out.items()})

    load = None  # type: ignore[assignment]


class SlowToStart(Truth):
    def start(self, worker: Any) -> None:
        time.sleep(0.5)  # as importing a framework does


class ForksAndWaits(Truth):
    """Its worker makes a fork of itself when it starts or first asks ahead, and waits for its end. Who loads is noted."""

    def __init__(self, where: str, folder: Path) -> None:
        super().__init__(40)
        self.where, self.folder, self.forked = where, folder, False

    def _fork(self, where: str) -> None:
        if where == self.where and not self.forked:
            self.forked = True
            if (pid := os.fork()) != 0:
                os.waitpid(pid, 0)

    def start(self, worker: Any) -> None:
        self._fork("start")

    def prefetch(self, indices: np.ndarray) -> None:
        self._fork("prefetch")

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        (self.folder / str(os.getpid())).touch()


class CannotAskAhead(Truth):
    def __init__(self, kind: type[Exception], *arguments: Any) -> None:
        super().__init__(40)
        self.kind, self.arguments = kind, arguments

    def prefetch(self, indices: np.ndarray) -> None:
        raise self.kind(*self.arguments)


class Refused(Truth):
    """Its start fails."""

    def start(self, worker: Any) -> None:
        raise ConnectionRefusedError(111, "the data set's server says no")
