"""Turns (`Worker.exclusive`): who ends with the turn in hand, while others wait for it, keeps it from nobody."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Injected
from tests.deaths import Deadly, N, epochs, loader
from tests.helpers import Truth

pytestmark = pytest.mark.fault

DEADLY = {7, 13, 31, 50}


def someone_waits_for(pid: int) -> bool:
    """Whether a lock that `pid` holds is waited for, as proc_locks(5) tells."""
    blocks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = {words[0] for words in blocks if words[1] != "->" and words[4] == str(pid)}
    return any(words[1] == "->" and words[0] in held for words in blocks)


class InTurns(Deadly):
    """Every sample is loaded in a turn. Some end who has it, once, when another one waits for it."""

    def start(self, worker: Any) -> None:
        self.worker = worker

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        with self.worker.exclusive():
            super().load(index, rng, out)

    def strike(self, index: int) -> None:
        assert self.folder is not None
        if index in self.deadly and not (self.folder / str(index)).exists():
            while not someone_waits_for(os.getpid()):
                time.sleep(0.001)
        super().strike(index)


@pytest.mark.parametrize(
    ("way", "workers", "method"),
    [
        ("SIGKILL", 2, "forkserver"),
        ("SIGKILL", 5, "fork"),
        pytest.param("SIGKILL", 3, "spawn", marks=pytest.mark.stress),
        ("os._exit(0)", 3, "fork"),
    ],
)
def test_who_dies_with_the_turn_keeps_it_from_nobody(
    way: str, workers: int, method: Any, tmp_path: Path, injected: Injected
) -> None:
    with loader(Truth(N), workers=0) as made:
        expected = epochs(made, 3)
    source = InTurns(way, DEADLY, tmp_path)
    with loader(source, workers=workers, start_method=method, stall_timeout=20) as made:
        assert epochs(made, 3) == expected
        assert len(list(tmp_path.iterdir())) == len(DEADLY)
        assert 1 <= made.stats.n_restarts <= len(DEADLY)
    injected(f"a worker ends by {way} with the turn that others wait for", len(DEADLY))
