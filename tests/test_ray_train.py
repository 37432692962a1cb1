"""Ray Train: shards by rank, positions in Ray's checkpoints, workers of a trainer that are killed, other numbers of workers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import run

pytestmark = [pytest.mark.needs("ray", "torch"), pytest.mark.slow]
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon a death is noticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "240",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(Path(__file__).parent.parent),
}

# What a "model" has seen is gathered from all ranks, and is part of the checkpoint, as weights are. So a sample that was
# trained after the last checkpoint, and was lost with its worker, does not count, and has to come again.
TRAIN = """
import json, os, signal, sys, tempfile
from pathlib import Path
import ray, ray.train
from ray.train.torch import TorchTrainer

folder, n_samples, n_epochs = Path(sys.argv[1]), 50, 2

def train(config):
    import torch.distributed as dist
    import ringload, ringload.ray
    from ringload.system.cgroups import usable_cpus
    from tests.helpers import Truth, check

    context, last = ray.train.get_context(), ray.train.get_checkpoint()
    rank, world = context.get_world_rank(), context.get_world_size()
    attempt = config["attempt"] + len([*folder.glob(f"began-*-{rank}.json")])
    seen = []
    if last is not None:
        with last.as_directory() as directory:
            seen = json.loads((Path(directory) / "seen.json").read_text())
        refused(last, rank)
    options = {"last": "pad", "seed": 3, "epochs": n_epochs, "ram_budget": "200MB"}
    with ringload.ray.train_loader(Truth(n_samples), 4, **options) as loader:
        assert loader.workers == max(1, usable_cpus() // world - 1)
        began = {"world": world, "shard": [loader.order.rank, loader.order.world], "at": [loader.epoch, loader.position]}
        began["seen"] = len([0 for epoch, _ in seen if epoch == loader.epoch])
        (folder / f"began-{attempt}-{rank}.json").write_text(json.dumps(began))
        for epoch in range(loader.epoch, n_epochs):
            for batch in loader:
                mine = [[epoch, index] for index in check(batch).tolist()]
                theirs = [None] * world
                dist.all_gather_object(theirs, mine)
                seen += [one for some in theirs for one in some]
                with tempfile.TemporaryDirectory() as directory:
                    checkpoint = None
                    if rank == 0:
                        (Path(directory) / "seen.json").write_text(json.dumps(seen))
                        ringload.ray.save_state(directory, loader)
                        checkpoint = ray.train.Checkpoint.from_directory(directory)
                    ray.train.report({}, checkpoint=checkpoint)
                if config["deaths"].get(f"{attempt}-{rank}") == [epoch, loader.position]:
                    assert ray.train.get_all_reported_checkpoints()  # waits until they are known
                    os.kill(os.getpid(), signal.SIGKILL)

def refused(last, rank):
    import ringload.ray
    from ringload import ConfigError
    from tests.helpers import Truth
    for options, said in (
        ({"shard": (0, 1)}, "leave out shard="),
        ({"checkpoint": 7}, "checkpoint is 'last', a ray.train.Checkpoint or None, not 7"),
        ({"name": "other"}, "has no ringload-other.json, the state of this loader: save it"),
        ({"seed": 4}, "the state belongs to another order (seed: 3 there, 4 here)"),
    ):
        try:
            ringload.ray.train_loader(Truth(n_samples), 4, workers=0, ram_budget="200MB", **options)
        except ConfigError as error:
            assert said in str(error), error
        else:
            raise AssertionError(f"{options} was not refused")

def fit(n_workers, attempt, deaths, max_failures):
    run = ray.train.RunConfig(
        name="run", storage_path=str(folder / "storage"), failure_config=ray.train.FailureConfig(max_failures=max_failures)
    )
    scaling = ray.train.ScalingConfig(num_workers=n_workers)
    config = {"attempt": attempt, "deaths": deaths}
    return TorchTrainer(train, train_loop_config=config, scaling_config=scaling, run_config=run).fit()

ray.init("local", include_dashboard=False, num_cpus=2, object_store_memory=80 << 20, logging_level="ERROR")
try:
    fit(2, 0, {"0-1": [0, 3], "1-0": [1, 2]}, max_failures=1)
except ray.train.TrainingFailedError:
    pass
else:
    raise AssertionError("both attempts were to fail")
result = fit(1, 0, {}, max_failures=0)
with result.checkpoint.as_directory() as directory:
    print((Path(directory) / "seen.json").read_text())
ray.shutdown()
"""


@pytest.mark.timeout(390)
def test_workers_that_are_killed_and_another_number_of_workers(tmp_path: Path) -> None:
    done = run(TRAIN, tmp_path, timeout=380, env=os.environ | QUIET)
    assert done.returncode == 0, done.stderr[-6000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    for epoch in (0, 1):
        assert sorted(index for at, index in seen if at == epoch) == list(range(50)), epoch
    began = [attempt_of(tmp_path, attempt) for attempt in range(3)]
    assert [one["world"] for one in began] == [2, 2, 1]
    assert [one["at"] for one in began] == [[0, 0], [0, 3], [1, 2 * 8 // 4]]
    assert [one["seen"] for one in began] == [0, 3 * 8, 2 * 8]


def attempt_of(folder: Path, attempt: int) -> dict[str, Any]:
    """What all ranks of an attempt say of its begin."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob(f"began-{attempt}-*.json"))]
    world = len(ranks)
    assert [one.pop("shard") for one in ranks] == [[rank, world] for rank in range(world)]
    assert all(one == ranks[0] for one in ranks)
    return ranks[0]


def test_outside_of_a_train_loop(tmp_path: Path) -> None:
    done = run(
        """
        import json, sys
        from pathlib import Path
        import ringload, ringload.ray, ringload.torch
        from tests.helpers import Truth
        for call, said in (
            (lambda: ringload.ray.train_loader(Truth(), 4), "train_loader() is for the train loop of a Ray Train worker"),
            (lambda: ringload.ray.save_state(".", Truth()), "save_state() takes a Loader, or the Batches of one, not"),
        ):
            try:
                call()
            except ringload.ConfigError as error:
                assert said in str(error), error
            else:
                raise AssertionError(said)

        folder = Path(sys.argv[1])
        stream = ringload.Stream(lambda part, n_parts, epoch: [{"x": part}] * 9, {"x": ringload.Field((), "int64")})
        with ringload.Loader(stream, 3, workers=0, shard=(1, 2)) as loader:  # a stream has a state for each rank
            next(iter(loader))
            ringload.ray.save_state(folder, loader)
            assert json.loads((folder / "ringload-train-rank-1.json").read_text()) == loader.state_dict()
        with ringload.Loader(Truth(), 4, workers=0) as loader:
            batches = ringload.torch.Batches(loader)
            next(iter(batches))
            ringload.ray.save_state(folder, batches, "val")
            assert json.loads((folder / "ringload-val.json").read_text()) == batches.state_dict()
        print("done")
        """,
        tmp_path,
        env=os.environ | QUIET,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
