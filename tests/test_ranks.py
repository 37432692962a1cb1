"""Which share of an epoch is whose: what launchers say, where they contradict each other, the warning where nobody asked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from ringload import ConfigError, Loader
from ringload.order.ranks import rank_and_world
from tests.helpers import Truth

ROOT = Path(__file__).parent.parent
MARKS = ("RANK", "WORLD", "SLURM", "OMPI", "PMI", "MV2", "HOROVOD", "FLUX", "JSM", "TF_CONFIG")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if any(mark in name for mark in MARKS):
            monkeypatch.delenv(name)


def launched(monkeypatch: pytest.MonkeyPatch, **variables: Any) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def tf_config(kind: str, index: int, **cluster: int) -> str:
    hosts = {name: [f"host{k}:2222" for k in range(n)] for name, n in cluster.items()}
    return json.dumps({"cluster": hosts, "task": {"type": kind, "index": index}})


SRUN = {"SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 4}
BATCH = {"SLURM_JOB_ID": 7, "SLURM_PROCID": 0, "SLURM_NTASKS": 4}  # a script of sbatch --ntasks=4

KNOWN = [
    ({"RANK": 1, "WORLD_SIZE": 2}, (1, 2)),
    ({"RANK": 3, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 1}, (3, 8)),
    ({"LOCAL_RANK": 1, "NODE_RANK": 0, "WORLD_SIZE": 2}, (1, 2)),  # Lightning's second process
    ({"LOCAL_RANK": 0, "NODE_RANK": 0, "WORLD_SIZE": 2}, (0, 2)),
    ({"LOCAL_RANK": 1, "GROUP_RANK": 0, "WORLD_SIZE": 4}, (1, 4)),
    ({"LOCAL_RANK": 1, "NODE_RANK": 2, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 6}, (5, 6)),
    ({"OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 2}, (1, 2)),
    ({"PMI_RANK": 5, "PMI_SIZE": 6}, (5, 6)),
    ({"MV2_COMM_WORLD_RANK": 0, "MV2_COMM_WORLD_SIZE": 3}, (0, 3)),
    ({"HOROVOD_RANK": 2, "HOROVOD_SIZE": 3}, (2, 3)),
    ({"FLUX_TASK_RANK": 1, "FLUX_JOB_SIZE": 3}, (1, 3)),
    ({"JSM_NAMESPACE_RANK": 0, "JSM_NAMESPACE_SIZE": 2}, (0, 2)),
    ({**SRUN, "SLURM_PROCID": 0, "SLURM_NTASKS": 4}, (0, 4)),
    ({**SRUN, "SLURM_PROCID": 3, "SLURM_NTASKS": 4}, (3, 4)),
    ({**SRUN, "SLURM_PROCID": 3, "SLURM_NTASKS": 8}, (3, 4)),  # srun --ntasks=4 within a job of 8
    ({"SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0, "SLURM_PROCID": 1, "SLURM_NTASKS": 2}, (1, 2)),
    ({"SLURM_JOB_ID": 7, "SLURM_PROCID": 1, "SLURM_NTASKS": 2}, (1, 2)),  # no batch script has another number than 0
    ({"TF_CONFIG": tf_config("worker", 1, worker=3)}, (1, 3)),
    ({"TF_CONFIG": tf_config("chief", 0, chief=1, worker=3)}, (0, 4)),
    ({"TF_CONFIG": tf_config("worker", 2, chief=1, worker=3)}, (3, 4)),
    ({"TF_CONFIG": tf_config("worker", 0, master=1, worker=1)}, (1, 2)),
    # launchers within launchers
    ({**SRUN, "SLURM_PROCID": 1, "RANK": 11, "WORLD_SIZE": 32}, (11, 32)),  # torchrun of 8 on each of 4 nodes
    ({**SRUN, "SLURM_PROCID": 1, "OMPI_COMM_WORLD_RANK": 9, "OMPI_COMM_WORLD_SIZE": 32}, (9, 32)),
    ({**SRUN, "SLURM_PROCID": 1, "PMI_RANK": 1, "PMI_SIZE": 4}, (1, 4)),  # srun --mpi=pmi2
    ({**BATCH, "RANK": 2, "WORLD_SIZE": 4}, (2, 4)),  # torchrun in a batch script
    ({**BATCH, "OMPI_COMM_WORLD_RANK": 2, "OMPI_COMM_WORLD_SIZE": 4}, (2, 4)),
    ({"RANK": 1, "WORLD_SIZE": 2, "TF_CONFIG": "no JSON"}, (1, 2)),
]
ALONE: list[dict[str, Any]] = [
    {},
    {"WORLD_SIZE": 1},
    {"RANK": 0, "WORLD_SIZE": 1},
    {"LOCAL_RANK": 0},
    {"LOCAL_RANK": 0, "NODE_RANK": 0, "WORLD_SIZE": 1},
    {"OMPI_COMM_WORLD_RANK": 0, "OMPI_COMM_WORLD_SIZE": 1},
    {"PMI_SIZE": 1},
    {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 4},  # salloc
    {"SLURM_JOB_ID": 7, "SLURM_PROCID": 0, "SLURM_NTASKS": 1},
    {"SLURM_JOB_ID": 7, "SLURM_PROCID": 0, "SLURM_NTASKS": 4, "SLURM_STEP_ID": 4294967290},  # salloc's interactive step
    {"SLURM_JOB_ID": 7, "SLURM_PROCID": 0, "SLURM_NTASKS": 4, "SLURM_STEPID": 4294967291},
    {**SRUN, "SLURM_PROCID": 0, "SLURM_NTASKS": 4, "SLURM_STEP_NUM_TASKS": 1},
    {"TF_CONFIG": ""},
    {"TF_CONFIG": "{}"},
    {"TF_CONFIG": tf_config("worker", 0, worker=1)},
    {"TF_CONFIG": tf_config("evaluator", 0, chief=1, worker=2)},
]
REFUSED = [
    ({"OMPI_COMM_WORLD_SIZE": 2}, "OMPI_COMM_WORLD_SIZE='2' without OMPI_COMM_WORLD_RANK"),
    ({"PMI_RANK": "x", "PMI_SIZE": 2}, "not both numbers"),
    ({"PMI_RANK": 2, "PMI_SIZE": 2}, "a rank that is not below the world"),
    (BATCH, "are those of SLURM's batch script, which is one process, or of the first of several tasks"),
    ({"LOCAL_RANK": 1}, "LOCAL_RANK='1' without WORLD_SIZE"),
    ({"LOCAL_RANK": 1, "NODE_RANK": 1, "WORLD_SIZE": 4}, "do not give the rank"),
    ({"LOCAL_RANK": 4, "NODE_RANK": 0, "WORLD_SIZE": 4}, "a rank that is not below the world"),
    ({"TF_CONFIG": "no JSON"}, "TF_CONFIG='no JSON' cannot be read"),
    ({"TF_CONFIG": "[1]"}, "cannot be read"),
    ({"TF_CONFIG": tf_config("ps", 0, chief=1, worker=2, ps=1)}, "has a task of type 'ps', or parameter servers"),
    ({"TF_CONFIG": tf_config("worker", 0, chief=1, worker=2, ps=1)}, "parameter servers"),
    # contradictions
    (
        {"RANK": 0, "WORLD_SIZE": 2, "OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 2},
        "is rank 0 of 2, by .* it is rank 1 of 2",
    ),
    ({"RANK": 0, "WORLD_SIZE": 1, **SRUN, "SLURM_PROCID": 3}, "is rank 0 of 1, by .* it is rank 3 of 4: unset the variables"),
    ({"RANK": 0, "WORLD_SIZE": 2, "TF_CONFIG": tf_config("worker", 1, worker=3)}, "TF_CONFIG=.* it is rank 1 of 3"),
    ({"PMI_RANK": 0, "PMI_SIZE": 2, "MV2_COMM_WORLD_RANK": 1, "MV2_COMM_WORLD_SIZE": 2}, "it is rank 1 of 2"),
]


@pytest.mark.parametrize(("variables", "wanted"), KNOWN, ids=str)
def test_launchers_are_known(variables: dict[str, Any], wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, **variables)
    assert rank_and_world() == wanted
    with Loader(Truth(400), 5, workers=0, shard="auto") as made:
        assert (made.order.rank, made.order.world) == wanted
    with pytest.warns(UserWarning, match=rf"is rank {wanted[0]} of {wanted[1]}, and the loader was given no shard") as warned:
        made = Loader(Truth(40), 5, workers=0)
    assert (len(warned), warned[0].filename) == (1, __file__)
    with warnings.catch_warnings(), made:
        warnings.simplefilter("error")
        assert (made.order.rank, made.order.world) == (0, 1)
        assert len(list(made)) == len(list(made)) == 8  # it is said once
        with Loader(Truth(40), 5, workers=0, shard=(0, 1)) as meant:
            assert len(list(meant)) == 8


@pytest.mark.parametrize("variables", ALONE, ids=str)
def test_one_process_is_one_whatever_was_left_in_its_environment(
    variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, **variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rank_and_world() == (0, 1)
        with Loader(Truth(40), 5, workers=0) as made:
            assert len(list(made)) == 8


@pytest.mark.parametrize(("variables", "said"), REFUSED, ids=str)
def test_what_does_not_say_a_rank_is_refused(variables: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, **variables)
    with pytest.raises(ConfigError, match=f"shard='auto'.*{said}"):
        Loader(Truth(40), 5, workers=0, shard="auto")


def test_a_batch_script_alone_is_no_reason_to_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, **BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Loader(Truth(40), 5, workers=0):
            pass


# -- groups that are up -----------------------------------------------------------------------------------------------


def in_processes(code: str, *arguments: object, n: int = 2, timeout: float = 110) -> list[subprocess.CompletedProcess[str]]:
    """Run a script as ranks 0..n-1, which are its first argument."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), *map(str, arguments)], env=environment, **options)
        for rank in range(n)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [subprocess.CompletedProcess([], process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


TORCH = """
import sys, warnings
import torch.distributed as dist
import ringload
from tests.helpers import Truth
def made(**options): return ringload.Loader(Truth(40), 5, workers=0, **options)
rank = int(sys.argv[1])
with warnings.catch_warnings():
    warnings.simplefilter("error")
    before, silent, auto = made(), made(shard=(0, 1)), made(shard="auto")
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
for _ in range(2):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        list(before), list(silent)
    print(len(said), *[one.message for one in said])
try:
    list(auto)
except ringload.ConfigError as error:
    print(error)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    after = made(), made(shard="auto")
print(len(said), [one.order.rank for one in after], len(list(after[1])))
for one in (before, silent, auto, *after):
    one.close()
dist.destroy_process_group()
"""


def test_a_group_that_comes_up_later_is_seen_when_the_loader_is_iterated(tmp_path: Path) -> None:
    for rank, done in enumerate(in_processes(TORCH, tmp_path / "meeting")):
        assert done.returncode == 0, done.stderr
        first, second, error, after = done.stdout.splitlines()
        assert first.startswith(f"1 by torch.distributed this process is rank {rank} of 2, and the loader was given no shard")
        assert second == "0"
        assert f"is rank {rank} of 2; when the loader was made, shard='auto' found rank 0 of 1" in error
        assert after == f"1 [0, {rank}] 4"


JAX = """
import sys, warnings
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]))
import ringload
from jax._src import xla_bridge
from tests.helpers import Truth
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    with ringload.Loader(Truth(40), 5, workers=0, shard="auto") as auto, ringload.Loader(Truth(40), 5, workers=0) as default:
        print(auto.order.rank, auto.order.world, default.order.world, [str(one.message)[:23] for one in said])
        print(xla_bridge.backends_are_initialized(), len(list(auto)))
"""


def test_processes_of_jax_are_known_without_starting_its_devices() -> None:
    pytest.importorskip("jax")
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gRPC does: nobody else is given the port
        reserved.bind(("127.0.0.1", 0))
        for rank, done in enumerate(in_processes(JAX, reserved.getsockname()[1])):
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-2:] == [f"{rank} 2 1 ['by jax.distributed this']", "False 4"]


LIGHTNING = """
import sys, warnings
import lightning, torch
import ringload, ringload.torch
from tests.helpers import Truth

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, number):
        return self.layer(batch["label"][:, None].float()).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)
    def train_dataloader(self):
        return loader if loader is not None else ringload.torch.Batches(ringload.Loader(Truth(40), 5, workers=0, shard="auto"))

loader = None
if sys.argv[1] == "before":
    loader = ringload.torch.Batches(ringload.Loader(Truth(40), 5, workers=0, shard="auto"))
trainer = lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Model())
print("STEPS", trainer.global_step)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("when", ["before", "within"])
def test_lightning_before_it_has_begun_and_after(tmp_path: Path, when: str) -> None:
    """Its first process cannot know of the second before fit: so it is said, in fit, and not trained on other shares."""
    pytest.importorskip("lightning")
    script = tmp_path / "train.py"
    script.write_text(LIGHTNING)
    done = subprocess.run(
        [sys.executable, str(script), when],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    if when == "within":
        assert done.returncode == 0, done.stderr
        assert "STEPS 4" in done.stdout
    else:
        assert done.returncode != 0
        assert "is rank 0 of 2; when the loader was made, shard='auto' found rank 0 of 1: make the loader after" in done.stderr


def test_what_is_no_shard_is_refused() -> None:
    for wrong in ("automatic", 3, (0, 1, 2), (1.0, 2), ("0", "1"), (True, 2)):
        with pytest.raises(ConfigError, match=r"shard is|rank is|world is"):
            Loader(Truth(40), 5, shard=wrong)
