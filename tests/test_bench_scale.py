"""`bench.scale`: simulated workers fill what the schedule says, and wrong payloads end the measurement."""

from __future__ import annotations

import os
import signal
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import ringload
from bench import scale
from bench.scale import Trainer
from bench.simulated import SimulatedWorkers
from bench.sleeping import Sleepers
from bench.work import WrongPayloadError

N_BATCHES = 12


@pytest.mark.parametrize(
    ("n_workers", "batch_size", "cost_s", "first", "steady"),
    [
        (1, 16, 0.00005, 2, 1),  # the first tasks have 8 rows; a batch that takes less than a millisecond is one task
        (2, 64, 0.001, 8, 4),  # 16 ms a task
        (5, 16, 0.001, 4, 4),  # each worker has a part of each batch
        (40, 16, 0.01, 16, 16),
        (64, 300, 0.01, 60, 100),  # 2 rows a task would be more tasks than a batch may have
    ],
)
def test_simulated_workers_fill_what_the_schedule_says(
    n_workers: int, batch_size: int, cost_s: float, first: int, steady: int
) -> None:
    tasks = RawArray("q", n_workers * N_BATCHES)
    source = Sleepers(batch_size, N_BATCHES * batch_size, 0.0, tasks)
    workers = SimulatedWorkers(n_workers, lambda n_rows: n_rows * cost_s)
    workers.max_ahead = 4  # batches that are cut before a sample's cost is known
    with ringload.Loader(source, batch_size, workers=workers, ram_budget="2GB", shuffle=False, epochs=1) as loader:
        trainer = Trainer(loader)
        for _ in range(N_BATCHES):
            trainer.take()
        trainer.drop()
    counted = np.frombuffer(tasks, np.int64).reshape(n_workers, N_BATCHES).sum(axis=0).tolist()
    assert counted[0] == first
    assert counted[-1] == steady
    assert set(counted) == {first, steady}


def test_the_death_of_the_helper_is_that_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringload.ring.plan.AUTO_SLOTS", 4)  # so few that it has work to do when it dies
    source = Sleepers(4, N_BATCHES * 4, 0.0, RawArray("q", 3 * N_BATCHES))
    workers = SimulatedWorkers(3, lambda n_rows: n_rows * 0.002)
    with ringload.Loader(source, 4, workers=workers, shuffle=False, epochs=1) as loader:
        trainer = Trainer(loader)
        trainer.take()
        os.kill(workers.processes()["the fork server"], signal.SIGKILL)
        for _ in range(N_BATCHES - 1):
            trainer.take()
        trainer.drop()
        assert loader.stats.n_restarts == 1


class Wrong(Sleepers):
    """One sample does not carry its payload."""

    def load(self, index: int, rng: Any, out: Any) -> None:
        super().load(index if index != 9 else 8, rng, out)


def test_wrong_payload_ends_the_measurement() -> None:
    source = Wrong(4, N_BATCHES * 4, 0.0, RawArray("q", N_BATCHES))
    with ringload.Loader(source, 4, workers=0, shuffle=False) as loader:
        trainer = Trainer(loader)
        trainer.take()
        trainer.take()
        with pytest.raises(WrongPayloadError, match="batch 2 does not carry its payload"):
            trainer.take()
    shuffled = ringload.Loader(Sleepers(4, 80, 0.0, RawArray("q", 20)), 4, workers=0, seed=1)
    with shuffled as loader, pytest.raises(WrongPayloadError, match=r"\[0 1 2 3\] were due"):
        Trainer(loader).take()


@pytest.mark.slow  # each measurement is in a process of its own
def test_the_command_prints_simulated_and_real_workers() -> None:
    arguments = ["--simulated", "3", "--real", "2", "--rounds", "1", "--batches", "4", "--batch-size", "8", "--rate", "4000"]
    said = CliRunner().invoke(scale.main, arguments, catch_exceptions=False).output
    lines = [line.split() for line in said.splitlines() if "simulated" in line or "real" in line]
    assert [(words[1], words[3]) for words in lines] == [("simulated", "3"), ("real", "2")], said
    assert lines[0][5] == "3", "tasks of a batch of 8 for 3 workers"
    assert "batches were verified" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--real", "0"], "a number of workers is 1 or more"),
        (["--simulated", "1;4"], "integers with commas between them"),
        (["--real", "", "--simulated", ""], "there is nothing to measure"),
        (["--simulated", "100000"], "give smaller numbers of workers"),
    ],
)
def test_arguments_that_cannot_be_measured_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(scale.main, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", "").split())
