"""Orders that the trainer lists, and rings whose layout changes on the way."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import numpy as np
import pytest

from ringload import ConfigError, Field, WorkerDiedError
from ringload.engine.engine import Engine
from ringload.engine.lifecycle import State
from ringload.engine.state import Settings
from ringload.order.explicit import ExplicitOrder
from ringload.protocols import Job, Rows
from ringload.ring.layout import Layout
from ringload.ring.plan import Room
from ringload.system.segment import Segment
from ringload.torch.dataloader.feed import Feed, FeedSettings, Shape
from ringload.workers.inline import InlineWorkers
from tests.conftest import Injected, Times
from tests.deaths import kill_all
from tests.helpers import SHAPE, truth


class Pictures:
    """Rows of which the order gives `index` and `draw`; the picture is a function of both."""

    random = global_random = False

    def __init__(self, extra: int = 0, deadly: int = -100) -> None:
        self.fields = {"image": Field(SHAPE, "uint8"), "draw": Field((), "int64")}
        self.extra, self.deadly = extra, deadly
        if extra:
            self.fields["extra"] = Field(extra, "uint8")

    def __len__(self) -> int:
        return 1000

    def load(self, index: int, rng: None, out: Any) -> None:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index < 0:
            raise LookupError(f"no sample {index}")
        out["image"] = truth(index, int(out["draw"]))
        if self.extra:
            out["extra"][:] = index % 251


class Fed:
    """A feed, and what was listed of it: batches of 1 to 6 rows, drawn."""

    def __init__(self, workers: int = 3, n_slots: int = 4, restarts: int | None = None, deadly: int = -100) -> None:
        settings = FeedSettings(workers, "auto", "forkserver", 30.0, None, restarts)
        self.source, self.n_slots = Pictures(deadly=deadly), n_slots
        self.feed = Feed(self.source, None, Shape(self.source.fields, 6, n_slots), settings, ExplicitOrder(), (0, 0))
        self.rng = np.random.default_rng(7)
        self.listed: dict[int, np.ndarray] = {}
        self.n_received = 0

    def submit(self) -> None:
        """As far ahead as the ring can use."""
        while len(self.listed) <= self.n_slots:
            number = self.n_received + len(self.listed)
            indices = self.rng.integers(0, 1000, self.rng.integers(1, 7))
            self.listed[number] = indices
            self.feed.order.submit(number, Rows(indices, fields={"draw": indices * 3 + number}))
        self.feed.post()

    def receive(self) -> None:
        """The batch that is due, verified row by row."""
        self.submit()
        batch, bad = self.feed.next()
        assert (batch.number, bad) == (self.n_received, [])
        indices = self.listed[batch.number]
        np.testing.assert_array_equal(batch.index, indices)
        for row, index in enumerate(indices):
            np.testing.assert_array_equal(batch["image"][row], truth(int(index), int(index) * 3 + batch.number))
            assert "extra" not in batch or (batch["extra"][row] == index % 251).all()
        del self.listed[batch.number]
        self.n_received += 1
        self.feed.received(batch)

    def rebuild(self, extra: int) -> None:
        self.source = Pictures(extra)
        self.feed.rebuild(self.source, Shape(self.source.fields, 6, self.n_slots), 0, self.n_received)


def test_ragged_batches_come_in_the_order_listed() -> None:
    fed = Fed()
    for _ in range(60):
        fed.receive()
    fed.feed.begin(1, 0)  # what was listed and not received is forgotten
    fed.listed, fed.n_received = {}, 0
    for _ in range(10):
        fed.receive()
    fed.feed.close()


@pytest.mark.fault
def test_kills_and_layouts_at_random(times: Times, injected: Injected) -> None:
    fed, rng, n_kills = Fed(), random.Random(3), 0
    fed.receive()
    server = fed.feed._workers._supervisor.server_pid
    while n_kills < times(10, 300):  # each start of workers imports torch
        fed.receive()
        if rng.random() < 0.4 and (pids := fed.feed.pids):
            n_kills += kill_all([rng.choice(pids)])
        if rng.random() < 0.1:
            fed.rebuild(rng.choice([0, 100, 5_000, 70_000]))
    assert fed.feed._workers._supervisor.server_pid == server
    fed.feed.close()
    injected("a worker of listed batches is killed, while layouts change", n_kills)


def test_workers_are_not_started_anew_to_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an interruption came before the end: then nothing is known of what they have in hand."""
    fed = Fed()
    fed.receive()
    engine = fed.feed._engine
    monkeypatch.setattr(engine._state.workers, "start", lambda *arguments: pytest.fail("workers are started"))
    engine._life.state = State.INCONSISTENT
    engine.drain(5.0)
    fed.feed.close()


def test_the_server_is_killed_after_a_rebuild() -> None:
    fed = Fed()
    fed.receive()
    fed.rebuild(300)
    fed.receive()
    os.kill(fed.feed._workers._supervisor.server_pid, signal.SIGKILL)
    for _ in range(12):
        fed.receive()
    fed.feed.close()


def test_a_batch_may_come_again() -> None:
    fed = Fed()
    fed.submit()
    for _ in range(2):
        batch, _ = fed.feed.next()
        batch.release()
        fed.feed.seek(0)
    for _ in range(12):
        fed.receive()
    fed.feed.close()


def test_what_is_bad_is_told_with_its_batch() -> None:
    fed = Fed()
    fed.feed.order.submit(0, Rows(np.array([3, -2, 4, -3]), fields={"draw": np.zeros(4, np.int64)}))
    fed.feed.order.submit(1, Rows(np.array([5]), fields={"draw": np.array([0])}))
    fed.feed.post()
    batch, bad = fed.feed.next()
    assert [one.index for one in bad] == [-2, -3]
    assert bad[0].error_class == ("builtins", "LookupError")
    assert "LookupError: no sample -2" in bad[0].reason
    assert "in load" in bad[0].traceback
    fed.feed.received(batch)
    batch, bad = fed.feed.next()
    assert not bad
    np.testing.assert_array_equal(batch["image"][0], truth(5))
    fed.feed.received(batch)
    fed.feed.close()


def test_too_many_deaths_name_the_sample() -> None:
    fed = Fed(restarts=0, deadly=11)
    fed.feed.order.submit(0, Rows(np.array([10, 11]), fields={"draw": np.zeros(2, np.int64)}))
    fed.feed.post()
    with pytest.raises(WorkerDiedError, match="sample 11 of batch 0") as caught:
        fed.feed.next()
    assert caught.value.samples == (11,)
    fed.feed.close()


def test_a_source_that_cannot_start() -> None:
    fed = Fed()

    class Failing(Pictures):
        def start(self, worker: Any) -> None:
            raise OSError("no such disk")

    fed.submit()
    fed.feed.rebuild(Failing(), fed.feed.shape, 0, 0)
    with pytest.raises(ConfigError, match="no such disk"):
        fed.feed.next()
    fed.feed.close()


def test_in_the_trainer_itself() -> None:
    """The engine without workers fills what is listed."""
    source, order = Pictures(), ExplicitOrder()
    layout = Layout(source.fields, 4, 3, 0, False)
    segment = Segment(layout.n_bytes)
    segment.reserve(0, layout.n_bytes)
    memory = segment.map()
    order.submit(0, Rows(np.array([1, 2, 3]), fields={"draw": np.array([4, 5, 6])}))
    order.submit(1, Rows(np.array([7]), fields={"draw": np.array([8])}))
    job = Job(source, layout, 0, 1000, "raise")
    engine = Engine(order, layout, memory, InlineWorkers(), Settings(None, None, 5.0, None, Room(1, 1)), 3)
    engine.open(job)
    for number, n in ((0, 3), (1, 1)):
        received = engine.next_batch(0)
        assert received is not None
        batch, bad = received
        assert (batch.number, len(batch["draw"]), bad) == (number, n, [])
        for row, index in enumerate(batch.index):
            np.testing.assert_array_equal(batch["image"][row], truth(int(index), int(batch["draw"][row])))
    engine.close()
