"""Workers that are held before a line of theirs while the trainer goes elsewhere: what they do later changes nothing."""

from __future__ import annotations

import os
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import Loader
from ringload.workers.channel import WorkerChannel
from ringload.workers.current_work import CurrentWorkTable
from ringload.workers.fill import Filler
from ringload.workers.worker import _TaskLoop
from tests.conftest import Injected
from tests.deaths import Tripwire, first_time, wait_while
from tests.helpers import Truth, content

pytestmark = pytest.mark.fault


class Behind(Truth):
    """Loading waits for as long as there is a file."""

    def __init__(self, gate: Path) -> None:
        super().__init__(40)
        self.gate = gate

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        wait_while(self.gate.exists)
        super().load(index, rng, out)


HELD = [
    _TaskLoop.forever,
    _TaskLoop._take_task,
    _TaskLoop._fill,
    Filler.fill,
    Filler._fill,
    Filler._load_row,
    CurrentWorkTable.write,
    CurrentWorkTable.clear,
]
HELD += [WorkerChannel.take, WorkerChannel._take_token, WorkerChannel.done, WorkerChannel._write]
UNREACHED = {  # how many of its lines no run gets to
    _TaskLoop.forever: 3,  # files that are asked for ahead, and waited for
    _TaskLoop._take_task: 8,  # these, samples that are known to kill, and rows that threads begin: in test_crash
    WorkerChannel.take: 1,
    _TaskLoop._fill: 1,  # bad samples
    Filler._load_row: 11,
    Filler.fill: 5,  # generators of the source itself, and a source that is told of its tasks
    Filler._fill: 19,  # these, a stream that ends, padding, several samples at once, and threads
    WorkerChannel._write: 3,  # a pipe that is full
}


@pytest.mark.parametrize("function", HELD, ids=lambda function: function.__qualname__)
def test_going_elsewhere_while_a_worker_is_held_before_any_line(
    function: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    """With one slot, so that what comes next goes where the late one may still write. Nobody fills it until it had time to."""
    monkeypatch.setattr("ringload.ring.plan.MIN_SLOTS", 1)
    monkeypatch.setattr("ringload.ring.plan.AUTO_SLOTS", 1)
    gate, held, go_on, trainer = tmp_path / "gate", tmp_path / "held", tmp_path / "go_on", os.getpid()

    def loader(workers: int) -> Loader:
        return Loader(Behind(gate), 1, workers=workers, ram_budget="auto", seed=5, start_method="fork", copy=True)

    def hold(line: int) -> bool:
        if os.getpid() == trainer or not first_time(held):  # one at a time
            return False
        wait_while(lambda: not go_on.exists())
        return True

    with loader(0) as made:
        made.set_epoch(1)
        expected = content(islice(made, 3))
    wire = Tripwire(function, tmp_path / "wire", hold)
    n_held = -1
    while n_held < len(wire.tripped):
        n_held = len(wire.tripped)
        with wire, loader(2) as made:
            wait_while(lambda: not held.exists() and made.stats.n_full == 0)
            assert made.stats.n_full <= 1  # what was reported is read
            gate.touch()
            made.set_epoch(1)
            go_on.touch()
            opening = threading.Timer(0.05, gate.unlink)
            opening.start()
            assert content(islice(made, 3)) == expected
            opening.join()
        held.unlink(missing_ok=True)
        go_on.unlink()
    assert len(wire.untripped) <= UNREACHED.get(function, 0), sorted(wire.untripped)
    injected("seek while a worker is held before a line of its code", n_held)
