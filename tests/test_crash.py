"""Producers die: in every way, at every moment. The run goes on with the same bytes, or an error names what died of what."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ringload import Closed, Loader, ProducerDied, SampleError, TooManyBad
from ringload.ring.channel import ProducerEnd
from ringload.ring.claims import Claims
from ringload.workers.filling import Filler
from ringload.workers.worker import _Work
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


WAYS: dict[str, tuple[Callable[[], Any], str]] = {  # name -> what a user's function does, what the message says of it
    "SIGKILL": (kill_oneself(signal.SIGKILL), "SIGKILL: probably out of memory"),
    "SIGTERM": (kill_oneself(signal.SIGTERM), "SIGTERM: somebody asked it to end"),
    "SIGSEGV": (segfault, "SIGSEGV: a crash in native code"),
    "SIGABRT": (os.abort, "SIGABRT: native code gave up"),
    "sys.exit": (lambda: sys.exit(5), "exit code 5"),
    "os._exit(0)": (lambda: os._exit(0), "exit code 0"),
    "os._exit in a thread": (exit_in_a_thread, "exit code 3"),
    "KeyboardInterrupt": (interrupt, "exit code 1"),
}


def first_time(marker: Path) -> bool:
    """True once, whichever process asks."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Deadly(Truth):
    """Loading some samples ends the producer: always, or only the first time (what was done is a file in `folder`)."""

    def __init__(self, way: str, deadly: set[int], folder: Path | None = None) -> None:
        super().__init__(N)
        self.way, self.deadly, self.folder = way, deadly, folder

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


def loader(source: Any, **options: Any) -> Loader:
    return Loader(source, 6, **{"workers": 2, "ram_budget": "600MB", "seed": 5, "restarts": None, **options})


def epochs(made: Loader, n: int) -> list[dict[str, bytes]]:
    found = []
    for _ in range(n):
        for batch in made:
            check(batch)
            found += content([batch])
    return found


@pytest.fixture(scope="module")
def expected() -> list[dict[str, bytes]]:
    with loader(Truth(N), workers=0) as made:
        return epochs(made, 3)


@pytest.mark.parametrize("kind", [Deadly, DeadlyRows])
@pytest.mark.parametrize("way", WAYS)
def test_who_dies_once_changes_nothing(way: str, kind: Any, tmp_path: Path, expected: Any) -> None:
    with loader(kind(way, {0, 7, 31, 59}, tmp_path)) as made:
        assert epochs(made, 3) == expected
        assert len(list(tmp_path.iterdir())) == 4
        assert 1 <= made.stats.n_restarts <= 4  # one that dies while the others are ended is not told from them


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("workers", [1, 2, 5, 13])
def test_deaths_with_any_number_of_producers(workers: int, method: Any, tmp_path: Path, expected: Any) -> None:
    with loader(Deadly("SIGKILL", {3, 20, 40}, tmp_path), workers=workers, start_method=method) as made:
        assert epochs(made, 3) == expected
        assert 1 <= made.stats.n_restarts <= 3


@pytest.mark.parametrize("kind", [Deadly, DeadlyRows])
@pytest.mark.parametrize("way", WAYS)
def test_a_sample_that_always_kills_is_found_and_is_bad(way: str, kind: Any) -> None:
    with loader(kind(way, {7, 31}), on_error="skip", shuffle=False) as made:
        for _ in range(2):
            seen = np.concatenate([check(batch) for batch in made])
            assert sorted(seen.tolist()) == sorted(set(range(N)) - {7, 31})
        assert {bad.index for bad in made.stats.bad} == {7, 31}
        for bad in made.stats.bad:
            assert "killed its producer" in bad.reason
            assert WAYS[way][1] in bad.reason


def test_a_sample_that_kills_is_raised_or_replaced() -> None:
    with loader(Deadly("SIGSEGV", {7}), shuffle=False) as made:
        iterator = iter(made)
        next(iterator)
        with pytest.raises(SampleError, match=r"sample 7: killed its producer 2 times in a row .*SIGSEGV"):
            next(iterator)
        assert [batch.number for batch in iterator] == list(range(2, 10))
    with loader(Deadly("SIGSEGV", {7}), shuffle=False, on_error="replace") as made:
        assert sum(7 in check(batch) for batch in made) == 0


def test_too_many_deaths_are_an_error_that_names_the_last() -> None:
    with loader(Deadly("SIGKILL", set(range(N))), restarts=3) as made:
        with pytest.raises(ProducerDied, match=r"restarts=3 deaths within a minute") as caught:
            next(iter(made))
        assert caught.value.pid > 0
        assert caught.value.cause.startswith("SIGKILL")
        assert len(caught.value.samples) == 1
        assert f"pid {caught.value.pid}" in str(caught.value)
        assert f"sample {caught.value.samples[0]}" in str(caught.value)
        with pytest.raises(Closed):
            next(iter(made))


def test_every_sample_kills_and_all_are_skipped() -> None:
    with loader(Deadly("os._exit(0)", set(range(N))), on_error="skip", max_bad=20) as made, pytest.raises(TooManyBad):
        list(made)


class SomeBad(Truth):
    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index % 11 == 5:
            raise ValueError("no such luck")


class Traced(SomeBad):
    """Ends a producer just before it executes a line of ringload's for the third time, once."""

    def __init__(self, code: Any, line: int, marker: Path) -> None:
        super().__init__(N)
        self.file, self.name, self.line, self.marker, self.n_hits = code.co_filename, code.co_name, line, marker, 0

    def start(self, producer: Any) -> None:
        sys.settrace(self.trace)

    def trace(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "line" and frame.f_lineno == self.line:
            self.n_hits += 1
            if self.n_hits == 3 and first_time(self.marker):
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace if frame.f_code.co_filename == self.file and frame.f_code.co_name == self.name else None


FUNCTIONS = [
    *(ProducerEnd.claim, ProducerEnd._take_token, ProducerEnd.done, ProducerEnd.bad, ProducerEnd._say),
    *(_Work.forever, _Work._claim, _Work._fill, Claims.write, Claims.clear),
    *(Filler.fill, Filler._fill_row, Filler._try, Filler._load_into),
]
LINES = [
    pytest.param(function.__code__, line, id=f"{function.__qualname__}+{line - function.__code__.co_firstlineno}")
    for function in FUNCTIONS
    for line in sorted({line for _, _, line in function.__code__.co_lines() if line})[1:]
]


@pytest.mark.parametrize(("code", "line"), LINES)
def test_a_kill_before_any_line_changes_nothing(code: Any, line: int, tmp_path: Path) -> None:
    source = Traced(code, line, tmp_path / "killed")
    with loader(SomeBad(N), workers=0, on_error="skip") as made:
        expected = epochs(made, 2)
    with loader(source, on_error="skip", start_method="fork", stall_timeout=20) as made:
        assert epochs(made, 2) == expected
        assert sorted(bad.index for bad in made.stats.bad) == sorted([*range(5, N, 11)] * 2)
        assert made.stats.n_restarts <= source.marker.exists()  # a death after the last batch is nobody's concern


def producers() -> list[psutil.Process]:
    """The server, if there is one yet, then the producers."""
    return psutil.Process().children(recursive=True)


def kill_all(victims: list[psutil.Process]) -> None:
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    psutil.wait_procs(victims, timeout=5)


class Slow(Truth):
    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        time.sleep(0.0005)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Slow, TruthRows])
def test_kills_from_outside_at_random_moments(kind: Any, method: Any) -> None:
    """The OOM killer's way: any of them, the server too, at any moment. Each of these kills follows some progress."""
    rng, killers = random.Random(1), []
    with loader(Truth(600), workers=0) as made:
        expected = epochs(made, 1)
    with loader(kind(600), start_method=method, epochs=1, on_error="skip", max_bad=5) as made:
        for number, batch in enumerate(made):
            if batch["valid"].all():  # five kills may have hit the same sample: then it was skipped, and named
                check(batch)
                assert content([batch])[0].items() >= expected[number].items()
            if rng.random() < 0.12 and (victims := producers()):
                killers.append(threading.Timer(rng.uniform(0, 0.02), kill_all, ([rng.choice(victims)],)))
                killers[-1].start()
        assert number == 99
        assert made.stats.n_restarts > 0
    for killer in killers:
        killer.join()


def test_all_die_while_nobody_asks(expected: Any) -> None:
    with loader(Truth(N)) as made:
        iterator = iter(made)
        first = content([next(iterator)])
        for victims in (producers()[1:], producers()):  # the producers; then the server too
            kill_all(victims)
            first += content([next(iterator)])
        assert first + content(iterator) == expected[:10]


def test_the_lent_are_not_written_to_after_a_death() -> None:
    with loader(Truth(N), restarts=None) as made:
        iterator = iter(made)
        kept = [next(iterator) for _ in range(4)]
        before = content(kept)
        kill_all(producers())
        rest = [check(batch) for batch in iterator]
        assert len(rest) == 6
        assert content(kept) == before


def test_deaths_are_counted_within_a_minute(tmp_path: Path) -> None:
    with loader(Deadly("SIGKILL", {0, 7, 31, 59}, tmp_path), restarts=4) as made:
        epochs(made, 2)
        assert made.stats.n_restarts <= 4
