"""`ringload.state.merge`, and going on with another number of ranks, in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringload
from ringload import Batch, ConfigError, Loader
from ringload.bridge.device_prefetch import DevicePrefetcher, PendingTransfers, state_of
from tests.helpers import Truth, order_of

ROOT = Path(__file__).parent.parent
OLD = {"version": 1, "epoch": 3, "position": 4, "seed": 5, "n_samples": 100, "batch_size": 4, "shuffle": True}


def states_of(n_received: list[int], **options: Any) -> list[dict[str, Any]]:
    """The states of ranks that have received so many batches."""
    states = []
    for rank, n in enumerate(n_received):
        with Loader(Truth(40), 2, workers=0, shard=(rank, len(n_received)), seed=3, **options) as loader:
            for _ in zip(range(n), loader, strict=False):
                pass
            states.append(json.loads(json.dumps(loader.state_dict())))
    return states


def test_ranks_that_agree_have_one_state() -> None:
    states = states_of([2, 2, 2])
    merged = ringload.state.merge(states)
    assert merged == states[0] == states[2]
    with Loader(Truth(40), 4, workers=0, seed=3) as one:
        whole = order_of(one, 0)
        one.load_state_dict(merged)
        assert [int(index) for batch in one for index in batch.index] == whole[2 * 2 * 3 :]


def test_ranks_that_differ_are_named() -> None:
    states = states_of([2, 3, 2])
    with pytest.raises(ConfigError, match=r"differ in position: 2 on rank 0 and 2, 3 on rank 1\. .*after the same batch"):
        ringload.state.merge(states)
    states[1] = states[0] | {"seed": 4, "order": {**states[0]["order"], "kind": "sequence"}}
    with pytest.raises(ConfigError, match=r"in seed: 3 on rank 0 and 2, 4 on rank 1; in order\.kind: .*'sequence' on rank 1"):
        ringload.state.merge(states)


def test_one_rank_with_another_table() -> None:
    states = []
    for rank in range(2):
        with Loader(ringload.Arrays(x=np.arange(40) + rank), 2, workers=0, shard=(rank, 2)) as loader:
            states.append(loader.state_dict())
    with pytest.raises(ConfigError, match="the states of the ranks differ in source: "):
        ringload.state.merge(states)


def test_states_of_version_1() -> None:
    merged = ringload.state.merge([OLD | {"shard": [rank, 5]} for rank in range(5)])
    assert (merged["version"], merged["epoch"], merged["position"], merged["step"]) == (2, 3, 4, 20)
    with pytest.raises(ConfigError, match=r"differ in position: 4 on rank 0, 5 on rank 1\. "):
        ringload.state.merge([OLD | {"shard": [0, 2]}, OLD | {"shard": [1, 2], "position": 5}])


@pytest.mark.parametrize("wrong", [[], {}, None, OLD, "state"])
def test_what_is_no_list_of_states(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="takes a list with the state of each rank, not "):
        ringload.state.merge(wrong)


def test_what_is_no_state() -> None:
    (state,) = states_of([1])
    for wrong, said in (
        ({"epoch": 1}, "it lacks"),
        (3, "this is not a state of a ringload.Loader, but 3"),
        (OLD, r"it lacks \['shard'\]"),
    ):
        with pytest.raises(ConfigError, match=f"^rank 1: .*{said}"):
            ringload.state.merge([state, wrong])


class Copied:
    """A copy that is done at once."""

    def __init__(self, batch: Batch) -> None:
        self.index = batch.index.tolist()

    def begin(self) -> None: ...

    def wait(self) -> None: ...

    def done(self) -> bool:
        return True

    def receive(self) -> list[int]:
        return self.index


def test_a_state_is_of_its_own_epoch_where_the_next_one_has_begun() -> None:
    """A batch is copied ahead: the loader is at the next epoch, which begins elsewhere, and lists other samples."""
    order = ringload.Explicit(lambda epoch: np.random.default_rng(epoch).permutation(20))
    with Loader(Truth(20), 3, workers=1, ram_budget="200MB", order=order) as loader:
        with Loader(Truth(20), 4, workers=0, order=order) as first:
            next(iter(first))
            loader.load_state_dict(first.state_dict())  # 16 samples are left: 5 batches
        ahead = DevicePrefetcher(loader, Copied, PendingTransfers())
        received: list[list[int]] = []
        stream = iter(ahead)
        while len(received) < 4:
            loader.poll()
            if len(received) < 3 or loader.ready:  # so that the last one is copied ahead
                received.append(next(stream))
        while loader.epoch == 0:
            while not loader.ready:
                loader.poll()
            ahead._fetch_ahead()
        state = state_of(loader, ahead)
        last = next(stream)
        loader.load_state_dict(state)
        assert [batch.index.tolist() for batch in loader] == [last]


RANK = """
import json, sys
from pathlib import Path
import ringload
from tests.helpers import Truth

rank, world, batch_size, n_batches, folder = *map(int, sys.argv[1:5]), Path(sys.argv[5])
saved = sorted(folder.glob("state-*.json"))
with ringload.Loader(Truth(96), batch_size, workers=1, ram_budget="200MB", shard=(rank, world), seed=7) as loader:
    if saved:
        loader.load_state_dict(ringload.state.merge([json.loads(path.read_text()) for path in saved]))
    received = [batch.index.tolist() for _, batch in zip(range(n_batches), loader)]
    (folder / f"received-{world}-{rank}.json").write_text(json.dumps(received))
    (folder / f"next-{rank}.json").write_text(json.dumps(loader.state_dict()))
"""


def run_ranks(world: int, batch_size: int, n_batches: int, folder: Path) -> list[int]:
    """The samples that the ranks of a run have received, in the global order. They save their states."""
    options: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    arguments = [[str(value) for value in (rank, world, batch_size, n_batches, folder)] for rank in range(world)]
    processes = [subprocess.Popen([sys.executable, "-c", RANK, *given], **options) for given in arguments]
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=100)
            assert process.returncode == 0, stderr
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for old in folder.glob("state-*.json"):
        old.unlink()
    for path in folder.glob("next-*.json"):
        path.rename(folder / path.name.replace("next", "state"))
    received = [json.loads((folder / f"received-{world}-{rank}.json").read_text()) for rank in range(world)]
    return [index for step in zip(*received, strict=True) for row in zip(*step, strict=True) for index in row]


def test_four_ranks_then_two_give_one_sequence(tmp_path: Path) -> None:
    """4 ranks in batches of 5, 2 ranks in batches of 7, then 1 rank: together an epoch of one rank, sample by sample."""
    received = run_ranks(4, 5, 2, tmp_path) + run_ranks(2, 7, 2, tmp_path) + run_ranks(1, 4, 7, tmp_path)
    with Loader(Truth(96), 8, workers=0, seed=7) as alone:
        assert received == order_of(alone, 0)
    assert sorted(received) == list(range(96))
