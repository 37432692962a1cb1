"""`shard="auto"`: which share of an epoch is whose, by torch.distributed or by the environment, and training on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ringload import ConfigError, Loader
from ringload.order.ranks import rank_and_world
from tests.helpers import Truth, run_quietly

ROOT = Path(__file__).parent.parent

TRAIN = """
import hashlib, json, os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import ringload, ringload.torch
from tests.helpers import Truth

class Few(Truth):
    '''Truth whose label can be learnt: how bright the upper half is.'''
    def load(self, index, rng, out):
        super().load(index, rng, out)
        out["draw"] = index
        out["label"] = out["image"][:4].sum() > out["image"][4:].sum()

torch.set_num_threads(1)
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
said = {"rank": rank}
for last in ("drop", "keep", "pad"):
    with ringload.Loader(Few(51), 8, workers=1, ram_budget="200MB", shard="auto", last=last, seed=3) as loader:
        assert (loader.order.rank, loader.order.world) == (rank, 2)
        torch.manual_seed(rank)  # so the parameters begin as rank 0 has them, by DDP alone
        model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 6 * 3, 2)))
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        epochs = []
        for epoch in range(2):
            samples, n_steps = [], 0
            for batch in ringload.torch.Batches(loader):
                valid = batch.get("valid", torch.ones(len(batch["label"]), dtype=torch.bool))
                losses = torch.nn.functional.cross_entropy(model(batch["image"] / 255), batch["label"], reduction="none")
                optimizer.zero_grad()
                (losses * valid).mean().backward()
                optimizer.step()
                samples += batch["draw"][valid].tolist()
                n_steps += 1
            epochs.append([n_steps, samples])
        assert len(loader) == n_steps
        weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        said[last] = {"epochs": epochs, "weights": hashlib.sha256(weights).hexdigest()}
dist.barrier()
dist.destroy_process_group()
print(json.dumps(said))
"""


def in_two_processes(code: str, folder: Path) -> list[dict[str, Any]]:
    """Run a script as ranks 0 and 1; what each says."""
    arguments = [sys.executable, "-W", "error::UserWarning:__main__", "-c", code]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen([*arguments, str(rank), str(folder / "meeting")], **options) for rank in (0, 1)]
    try:
        said = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, stderr) in zip(processes, said, strict=True):
        assert process.returncode == 0, stderr
    return [json.loads(stdout) for stdout, _ in said]


def test_two_ranks_train_one_model_in_equal_steps(tmp_path: Path) -> None:
    both = in_two_processes(TRAIN, tmp_path)
    assert [one["rank"] for one in both] == [0, 1]
    for last, n_steps, n_samples in (("drop", 3, 48), ("keep", 4, 52), ("pad", 4, 51)):
        first, second = (one[last] for one in both)
        assert first["weights"] == second["weights"]
        for epoch in range(2):
            (steps, samples), (steps_there, samples_there) = first["epochs"][epoch], second["epochs"][epoch]
            assert steps == steps_there == n_steps
            assert len(samples) + len(samples_there) == n_samples
            assert len({*samples, *samples_there}) == min(n_samples, 51)  # each once; by "keep", which fills up, one twice
        assert first["epochs"][0][1] != first["epochs"][1][1]


def test_the_environment_says_it_where_torch_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with Loader(Truth(40), 5, workers=0, shard="auto") as made, Loader(Truth(40), 5, workers=0, shard=(2, 4)) as twin:
        assert (made.order.rank, made.order.world) == (2, 4)
        assert [batch.index.tolist() for batch in made] == [batch.index.tolist() for batch in twin]
        assert made.state_dict()["step"] == 5 * 4


def test_nobody_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with Loader(Truth(40), 5, workers=0, shard="auto") as made:
        assert (made.order.rank, made.order.world) == (0, 1)
    with pytest.raises(ConfigError, match=r"shard is \(rank, world\) or 'auto', not 'automatic'"):
        Loader(Truth(40), 5, shard="automatic")


@pytest.mark.parametrize(
    ("rank", "world", "said"),
    [
        ("0", None, r"which has only RANK='0'"),
        (None, "2", r"which has only WORLD_SIZE='2'"),
        ("one", "2", r"RANK='one' and WORLD_SIZE='2' are not both numbers"),
        ("0", "", r"RANK='0' and WORLD_SIZE='' are not both numbers"),
        ("-1", "2", r"are not both numbers"),
        ("2", "2", r"a rank that is not below the world"),
    ],
)
def test_an_environment_that_makes_no_sense(
    rank: str | None, world: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{said}.*init_process_group first, or give shard="):
        rank_and_world()


def test_it_imports_no_framework() -> None:
    code = """
        import os, sys
        os.environ.update(RANK="1", WORLD_SIZE="2")
        import ringload
        from tests.helpers import Truth
        with ringload.Loader(Truth(20), 5, workers=1, ram_budget="200MB", shard="auto") as loader:
            print(len(loader), loader.order.rank, sorted({"torch", "jax", "tensorflow", "keras"} & set(sys.modules)))
    """
    assert run_quietly(code) == "2 1 []\n"
