"""The test mode: freed slots are poisoned, and the bytes between arrays are looked at."""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import Batch, Field, Loader, LoaderClosedError, RingloadError
from ringload.engine.lifecycle import State
from ringload.ring.layout import Layout
from ringload.ring.sanitizer import POISON, VARIABLE, sanitizer_of
from ringload.ring.slots import Ring
from tests.conftest import Injected
from tests.helpers import SHAPE, Truth, check

pytestmark = pytest.mark.fault

BATCH = 7  # rows, so that fields end at no multiple of 64 bytes


@pytest.fixture(autouse=True)
def test_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")


def loader(source: Any = None, **options: Any) -> Loader:
    return Loader(source or Truth(140), BATCH, **{"workers": 2, "ram_budget": "200MB", **options})


def test_who_looks_into_a_released_batch_sees_poison(injected: Injected) -> None:
    for workers in (0, 2):
        with loader(epochs=1, workers=workers) as made:
            batches = list(made)  # nothing is posted after the last one
            views = [batch["image"][1:] for batch in batches]
            for batch in batches:
                batch.release()
            for view in views:
                assert (view == POISON).all()
            with pytest.raises(LoaderClosedError):
                check(batches[0])
    injected("view that is used after its release", 2 * len(views))


def release_all(batches: Iterable[Batch]) -> None:
    for batch in batches:
        check(batch)
        batch.release()


class Overrunning(Truth):
    """Writes beyond the end of its field, as native code may: not into another row, but behind the last."""

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index == 20:
            ctypes.memset(out["image"].ctypes.data + out["image"].nbytes, 7, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_who_writes_behind_an_array_is_found(workers: int, injected: Injected) -> None:
    with loader(Overrunning(21), shuffle=False, workers=workers) as made:
        said = r"slot \d+: 3 bytes behind the array 'image' were written to, the first 1 bytes beyond its end"
        with pytest.raises(RingloadError, match=said):
            release_all(itertools.chain(made, made))
    injected("write beyond the end of a field", 1)


class Held(Overrunning):
    """Writes beyond the end of its field, or waits while there is a file of that name."""

    def __init__(self, hold: Path | None) -> None:
        super().__init__(140)
        self.hold = hold

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if self.hold is None:
            super().load(index, rng, out)
            return
        while self.hold.exists():
            time.sleep(0.002)
        Truth.load(self, index, rng, out)


def until_full(made: Loader) -> Loader:
    """Wait until all slots are full, and none is lent."""
    while made.poll().n_full < made.stats.n_slots:
        time.sleep(0.002)
    return made


LEAVE: dict[str, Callable[[Loader], None]] = {
    "a seek": lambda made: made.set_epoch(5),
    "a resume": lambda made: made.load_state_dict({**made.state_dict(), "position": 7}),
    "an interruption": lambda made: setattr(made._engine._state.life, "state", State.INCONSISTENT),  # as one leaves it
}


def leave_and_go_on(made: Loader, how: str) -> None:
    LEAVE[how](made)
    next(iter(made))


@pytest.mark.parametrize("how", LEAVE)
def test_slots_that_were_never_lent_are_looked_at_and_poisoned(
    how: str, tmp_path: Path, injected: Injected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringload.ring.plan.AUTO_SLOTS", 4)
    options: dict[str, Any] = {"shuffle": False, "ram_budget": "auto", "start_method": "fork"}
    said = "3 bytes behind the array 'image' were written to"
    with until_full(loader(Held(None), **options)) as made, pytest.raises(RingloadError, match=said):
        leave_and_go_on(made, how)
    hold = tmp_path / "hold"
    with until_full(loader(Held(hold), **options)) as made:
        assert made._engine._state.sanitizer is not None
        hold.touch()
        LEAVE[how](made)
        made._engine.poll()
        slots = made._engine._state.sanitizer._slots
        for slot in slots:
            assert (made._engine._state.layout.slot_arrays(slot, BATCH)["image"] == POISON).all()
        n_slots = len(slots)
        del slot, slots
        hold.unlink()
        release_all(made)
    injected("slots that were filled and never lent", 2 * n_slots)


def test_slots_are_looked_at_when_they_are_new_and_when_they_are_used_again() -> None:
    layout = Layout({"image": Field(SHAPE, "u1"), "label": Field((), "i8")}, BATCH, 2, 1, False)
    memory = np.zeros(layout.n_bytes, np.uint8)
    guard, ring = sanitizer_of(memory, layout), Ring(2)
    assert guard is not None
    posted = ring.fill(0, 0, BATCH, BATCH)
    first = layout.slots_start + posted.slot * layout.slot_bytes
    guard.freed(posted.slot)
    assert (memory[first : first + layout.slot_bytes] == POISON).all()
    assert not memory[:first].any()
    memory[first] = 1
    guard.freed(posted.slot)
    for at in (7 * 144, 1023, 1024 + 56, layout.slot_bytes - 1):
        memory[first + at] = 0
        with pytest.raises(RingloadError, match="slot 0: 1 bytes behind the array"):
            guard.freed(posted.slot)
        memory[first + at] = POISON


def test_without_the_test_mode_there_is_no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with loader(epochs=1) as made:
        assert made._engine._state.sanitizer is None
        (batch, *_) = list(made)
        view = batch["image"]
        batch.release()
        assert not (view == POISON).all()
