"""Ray Train: the loader of a Ray Train worker, and its position in Ray's checkpoints.

    rank and world of ray.train.get_context() --train_loader--> Loader(shard=(rank, world))    its own local processes load
    position of the trainer --save_state--> a file in the directory that becomes a ray.train.Checkpoint
    that file of the last checkpoint --train_loader--> the position at which a restarted worker goes on

The state of a loader is the same in all Ray Train workers that have received as many batches, and any number of ranks can load
it (`order.state`). So one worker saves it, and training goes on with another number of workers. Only a Stream has a state, and
so a file, for each rank.

`ray.train.report` waits for all workers of the group. So the file that rank 0 has written before it reports is right for all
ranks if each rank reports after the same batch.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ray.train

from ringload.checks import named, short
from ringload.errors import ConfigError
from ringload.loader import Loader
from ringload.order.stream import StreamOrder
from ringload.system.cgroups import usable_cpus

SAVE = "save it there by ringload.ray.save_state(directory, loader)"


def train_loader(source: Any, batch_size: int, *, checkpoint: Any = "last", name: str = "train", **options: Any) -> Loader:
    """The loader of one Ray Train worker: it loads this worker's share of each epoch, by processes on this worker's machine.

        def train(config):                                       # train_loop_per_worker of a TorchTrainer
            with ringload.ray.train_loader(source, batch_size=256, epochs=90) as loader:
                for epoch in range(loader.epoch, 90):
                    for batch in ringload.torch.Batches(loader, device):
                        step(batch["image"], batch["label"])
                    with tempfile.TemporaryDirectory() as directory:
                        if ray.train.get_context().get_world_rank() == 0:
                            torch.save(model.state_dict(), f"{directory}/model.pt")
                            ringload.ray.save_state(directory, loader)
                        ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(directory))

    All workers have the same number of batches. After a failure (`ray.train.FailureConfig`), and after a restart with another
    number of workers, the loader goes on at the position of the last checkpoint, also within an epoch; then each sample of the
    epoch is once in the batches before the checkpoint or in those after it, as far as `last=` does not drop or repeat some.

    Arguments:
        source, batch_size: as for `Loader`. The batch size is that of each worker. Ray Train changes the working directory of
            a worker: give absolute paths.
        checkpoint: "last": the last checkpoint that was reported, `ray.train.get_checkpoint()`, if there is one; a
            `ray.train.Checkpoint`; None: begin with epoch 0, as a loader for validation does.
        name: as it was given to `save_state`.
        options: those of `Loader`, but for `shard`. By default, the Ray Train workers of a machine share its CPUs: `workers` is
            the CPUs that this process may use, divided by `get_local_world_size()`, less one, and at least 1.

    Raises:
        ConfigError: it is not called in a train loop; the checkpoint has no state of that name; the state is of another order
            or source; or as `Loader`.
    """
    try:
        context = ray.train.get_context()
    except RuntimeError as error:
        raise ConfigError(
            "train_loader() is for the train loop of a Ray Train worker, and this process is none: call it in the function "
            "that you give to TorchTrainer(train_loop_per_worker); elsewhere make a ringload.Loader(..., shard=(rank, world))"
        ) from error
    if "shard" in options:
        raise ConfigError("train_loader() takes rank and world from Ray Train: leave out shard=")
    options.setdefault("workers", max(1, usable_cpus() // context.get_local_world_size() - 1))
    found = ray.train.get_checkpoint() if isinstance(checkpoint, str) and checkpoint == "last" else checkpoint
    if found is not None and not isinstance(found, ray.train.Checkpoint):
        raise ConfigError(f"checkpoint is 'last', a ray.train.Checkpoint or None, not {short(found)}")
    loader = Loader(source, batch_size, shard=(context.get_world_rank(), context.get_world_size()), **options)
    try:
        if found is not None:
            loader.load_state_dict(_state_in(found, _file_name(name, loader)))
    except BaseException:
        loader.close()
        raise
    return loader


def save_state(directory: str | os.PathLike[str], loader: Any, name: str = "train") -> None:
    """Write the position of a loader into a directory, before this becomes a checkpoint of Ray's.

    One worker is enough, as all have the same state after the same batch. (Of a `Stream`, each worker writes its own file and
    reports its directory; Ray puts the files of all workers into one checkpoint.)

    Arguments:
        directory: a folder that exists. The file is `ringload-NAME.json`.
        loader: the `Loader`, or the `ringload.torch.Batches` that are iterated in its place: on a GPU a loader is ahead of the
            trainer, and `Batches` knows by how much.
        name: tells several loaders in one checkpoint apart.

    Raises:
        ConfigError: `loader` has no state. OSError: the file cannot be written.
    """
    if not callable(getattr(loader, "state_dict", None)):
        raise ConfigError(f"save_state() takes a Loader, or the Batches of one, not {named(loader)}")
    path = Path(directory) / _file_name(name, getattr(loader, "loader", loader))
    path.write_text(json.dumps(loader.state_dict()))


def _file_name(name: str, loader: Any) -> str:
    """The file of a loader's state: of a stream, one for each rank."""
    order = loader.order
    return f"ringload-{name}-rank-{order.rank}.json" if isinstance(order, StreamOrder) else f"ringload-{name}.json"


def _state_in(checkpoint: Any, file_name: str) -> Any:
    """The state in a checkpoint, which may be in an object store: only its file is read."""
    try:
        with checkpoint.filesystem.open_input_file(f"{checkpoint.path}/{file_name}") as file:
            return json.loads(file.read())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{checkpoint} has no {file_name}, the state of this loader: {SAVE}; or give checkpoint=None to begin with epoch 0"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file_name} in {checkpoint} is no JSON ({error}): {SAVE}") from error
