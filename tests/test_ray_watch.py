"""The watch of an actor, in interpreters of their own, which it ends."""

from __future__ import annotations

import pytest

from tests.helpers import run

pytestmark = pytest.mark.needs("ray")


@pytest.mark.parametrize(
    ("calls", "ends"),
    [
        ("watch.note(3, 0, 1)", True),
        ("watch.note(-1, 8, 16)", False),  # of 8 rows, which may take 8 times as long
        ("watch.note(3, 0, 1); watch.rest()", False),
        ("watch.note(3, 0, 1); watch.rest(); watch.note(4, 0, 1)", True),
        ("", False),
    ],
)
def test_it_ends_its_process_where_rows_take_too_long(calls: str, ends: bool) -> None:
    begin = "import time; from ringload.ray.sample_watch import SampleWatch; watch = SampleWatch(0.3)\n"
    done = run(f"{begin}{calls}\ntime.sleep(1.2)\nprint('there')")
    assert (done.returncode, done.stdout) == ((1, "") if ends else (0, "there\n"))


def test_without_a_limit_it_ends_nothing() -> None:
    done = run(
        "import threading; from ringload.ray.sample_watch import SampleWatch; watch = SampleWatch(None)\n"
        "watch.note(1, 0, 1); watch.rest(); print(threading.active_count())"
    )
    assert (done.returncode, done.stdout) == (0, "1\n")
