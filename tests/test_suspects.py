from __future__ import annotations

import signal
from typing import Any

import pytest

from ringload.ring.claims import WHOLE_TASK, Claim
from ringload.ring.ring import Posted, Ring
from ringload.workers.pool import Death
from ringload.workers.suspects import OUTSIDE, OWN, Suspects, who_holds_what, who_is_at_what


def posted() -> Posted:
    return Ring(1).fill(3, 5, 8, 2)


def claim(sample: int = 77, row: int = 4, stop: int = 5) -> Claim:
    return Claim(3, 5, sample, row, stop, 0.0)


def by(number: int) -> Death:
    return Death(0, 123, number)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (9, "SIGKILL: probably out of memory"),
        (11, "SIGSEGV: a crash in native code"),
        (7, "SIGBUS: a file that is mapped"),
        (15, "SIGTERM: somebody asked"),
        (0 << 8, "exit code 0: something in the user's functions"),
        (3 << 8, "exit code 3"),
        (10, "SIGUSR1"),
        (34, "SIGRTMIN"),
        (40, "signal 40"),
    ],
)
def test_causes_are_told(status: int, said: str) -> None:
    assert by(status).cause.startswith(said)
    assert Death(0, 1, status, "because").cause == "because"


@pytest.mark.parametrize(
    ("status", "strikes"), [(signal.SIGSEGV, OWN), (0, OWN), (256, OWN), (signal.SIGKILL, OUTSIDE), (signal.SIGTERM, OUTSIDE)]
)
def test_who_kills_in_a_row_is_a_killer(status: int, strikes: int) -> None:
    known, batch = Suspects(None), posted()
    for _ in range(1, strikes + 1):
        assert known.start(2, [batch]).killers == ()
        known.accuse(by(status), claim(), [batch])
        assert known.any
    ((sample, how),) = known.start(2, [batch]).killers
    assert sample == 77
    assert how.startswith(f"killed its producer {strikes} times in a row (")


def test_who_was_loaded_meanwhile_is_acquitted() -> None:
    known, batch = Suspects(None), posted()
    for _ in range(20):
        known.accuse(by(11), claim(), [batch])
        known.acquit(batch, 2)  # rows 4 and 5
        assert not known.any
    assert known.start(1, [batch]).killers == ()


def test_who_had_reported_before_the_end_is_not_accused() -> None:
    known, batch = Suspects(None), posted()
    batch.undone &= ~(1 << 2)
    known.accuse(by(11), claim(), [batch])
    known.accuse(by(11), claim()._replace(number=6), [batch])
    known.accuse(by(11), claim(), [])
    assert not known.any


def test_who_died_with_several_samples_in_hand_has_them_loaded_singly() -> None:
    known, batch = Suspects(None), posted()
    known.accuse(by(11), claim(WHOLE_TASK, 4, 6), [batch])
    assert known.start(2, [batch]).careful == ((3, 5),)
    assert known.start(2, []).careful == ()  # until its batch is finished


def test_the_rate_of_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    known = Suspects(3)
    assert [known.too_many(1) for _ in range(4)] == [False, False, False, True]
    now_s += 61
    assert not known.too_many(3)
    assert not Suspects(None).too_many(1000)
    assert Suspects(0).too_many(1)


def test_words() -> None:
    said = who_is_at_what({0: (11, claim()), 1: (12, claim(WHOLE_TASK, 2, 4))})
    assert "producer 0 (pid 11) has had sample 77 of batch 5 of epoch 3 in hand for" in said
    assert "producer 1 (pid 12) has had rows 2 to 3 of batch 5 of epoch 3 in hand for" in said
    assert who_is_at_what({}) == "no producer has anything in hand"
    batch: Any = posted()
    assert "batch 5 of epoch 3 for" in who_holds_what({0: batch})
