"""This process's share of an epoch: the meaning of `shard="auto"`, and the warning for several ranks without a shard.

Where rank and world are looked up, in this order. No module is imported for it, and no framework is started:
    initialized groups      torch.distributed (accelerate and Lightning use it), JAX's distributed client
    the environment         RANK and WORLD_SIZE (torchrun, accelerate, DeepSpeed); NODE_RANK, LOCAL_RANK and WORLD_SIZE
                            (Lightning, before it has begun); Open MPI, MPICH and Intel MPI, MVAPICH2,
                            Horovod, Flux, jsrun; srun; TF_CONFIG

Launchers are nested: torchrun or mpirun within srun, with one srun task a node. So the first answer counts, and later ones may
have a smaller world. A later answer contradicts it if its world is larger, or if the world is the same and the rank is not.

SLURM sets SLURM_NTASKS also for the batch script, which is one process with SLURM_PROCID=0. Tasks of srun have SLURM_STEP_ID,
too; it is above 4,294,967,280 in the batch script and in an interactive step.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ringload.checks import short, warn
from ringload.errors import ConfigError

REMEDY = "call torch.distributed.init_process_group first, or give shard=(rank, world)"
PAIRS = (  # (launcher, rank, world)
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE"),
    ("MVAPICH2", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("Horovod", "HOROVOD_RANK", "HOROVOD_SIZE"),
    ("Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ("IBM's jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
)
LAST_STEP = 4_294_967_280  # of SLURM; larger numbers are special steps of one process


class Claim(NamedTuple):
    """One answer: this process is `rank` of `world`. `origin`, for messages: where that is said."""

    rank: int
    world: int
    origin: str


Lookup = Callable[[Mapping[str, str]], Claim | None]  # of an environment


def rank_and_world() -> tuple[int, int]:
    """(rank, world) by the first answer; (0, 1) if there is none.

    Raises:
        ConfigError: the environment has only one of the two numbers, they are not valid, or two answers contradict each other.
    """
    first: Claim | None = None
    for look_up in LOOKUPS:
        try:
            claim = look_up(os.environ)
        except ConfigError:
            if first is None:
                raise
            continue  # an earlier answer counts
        if first is None:
            first = claim
        elif claim is not None and (claim.world > first.world or (claim.world == first.world and claim.rank != first.rank)):
            raise ConfigError(
                f"shard='auto': by {first.origin} this is rank {first.rank} of {first.world}, by {claim.origin} it is rank "
                f"{claim.rank} of {claim.world}: unset the variables of another run, or give shard=(rank, world)"
            )
    return (first.rank, first.world) if first is not None else (0, 1)


class Ranks:
    """The shard of a loader, with the errors and warnings about it.

    A group may be initialized after the loader was made: then the error or warning comes when the loader is iterated.
    """

    def __init__(self, shard: Any) -> None:
        self._is_given = shard is not None
        self._is_auto = isinstance(shard, str) and shard == "auto"
        self._has_warned = False
        self.shard: Any = shard  # (rank, world), or as the user gave it
        if self._is_auto:
            self.shard = rank_and_world()
        elif shard is None:
            self.shard = (0, 1)
            self._warn_of_first(LOOKUPS)

    def look_again(self) -> None:
        """Compare the shard with the initialized groups.

        Raises:
            ConfigError: a group that was initialized after shard="auto" was looked up has another rank or world.
        """
        if not self._is_given and not self._has_warned:
            self._warn_of_first(GROUPS)
        claim = next((claim for look_up in GROUPS if (claim := look_up(os.environ)) is not None and claim.world > 1), None)
        if self._is_auto and claim is not None and (claim.rank, claim.world) != self.shard:
            raise ConfigError(
                f"by {claim.origin} this process is rank {claim.rank} of {claim.world}; when the loader was made, shard='auto' "
                f"found rank {self.shard[0]} of {self.shard[1]}: make the loader after the group is initialized (with "
                "Lightning, in train_dataloader()), or give shard=(rank, world)"
            )

    def _warn_of_first(self, lookups: tuple[Lookup, ...]) -> None:
        """Warn if this process is one of several ranks, as each then loads all samples."""
        for look_up in lookups:
            try:
                claim = look_up(os.environ)
            except ConfigError:
                continue  # an error of shard="auto" alone
            if claim is not None and claim.world > 1:
                self._has_warned = True
                warn(
                    f"by {claim.origin} this process is rank {claim.rank} of {claim.world}, and the loader was given no shard: "
                    "each rank loads all samples. Set shard='auto' to give each its share, or shard=(0, 1) to keep this"
                )
                return


# -- initialized groups -----------------------------------------------------------------------------------------------


def _torch(environment: Mapping[str, str]) -> Claim | None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return Claim(distributed.get_rank(), distributed.get_world_size(), "torch.distributed")


def _jax(environment: Mapping[str, str]) -> Claim | None:
    """From JAX's client: jax.process_index() gives the same, but starts the devices and waits for other processes."""
    jax, state = sys.modules.get("jax"), getattr(sys.modules.get("jax._src.distributed"), "global_state", None)
    if jax is None:
        return None
    if all(hasattr(state, name) for name in ("client", "process_id", "num_processes")):
        found = (state.process_id, state.num_processes) if state.client is not None else None  # type: ignore[union-attr]
    else:  # a version of JAX that stores it elsewhere
        found = (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else None
    return None if found is None else Claim(int(found[0]), int(found[1]), "jax.distributed")


# -- the environment --------------------------------------------------------------------------------------------------


def _torchrun(environment: Mapping[str, str]) -> Claim | None:
    given = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if name in environment}
    local_rank = environment.get("LOCAL_RANK", "0").strip()
    if not given and local_rank != "0":
        raise ConfigError(f"shard='auto': the environment has LOCAL_RANK={short(local_rank)} without WORLD_SIZE: {REMEDY}")
    if not given or given == {"WORLD_SIZE": "1"}:
        return None
    if "RANK" not in given and "LOCAL_RANK" in environment:
        return _lightning(environment)
    if len(given) == 1:
        raise ConfigError(
            f"shard='auto' takes RANK and WORLD_SIZE from the environment, which has only {_shown(given)}: {REMEDY}"
        )
    return _claim(given["RANK"], given["WORLD_SIZE"], given)


def _lightning(environment: Mapping[str, str]) -> Claim | None:
    """Lightning starts the script again with these variables for each process of a node but the first."""
    names = ("NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
    given = {name: environment[name] for name in names if name in environment}
    node, n_local = given.get("NODE_RANK", given.get("GROUP_RANK", "0")), given.get("LOCAL_WORLD_SIZE")
    if node.strip() == "0":
        return _claim(given["LOCAL_RANK"], given["WORLD_SIZE"], given)
    if n_local is None or not all(value.strip().isdecimal() for value in given.values()):
        raise ConfigError(f"shard='auto': the environment's {_shown(given)} do not give the rank: {REMEDY}")
    return _claim(str(int(node) * int(n_local) + int(given["LOCAL_RANK"])), given["WORLD_SIZE"], given)


def _pair(rank_name: str, world_name: str) -> Lookup:
    def look_up(environment: Mapping[str, str]) -> Claim | None:
        given = {name: environment[name] for name in (rank_name, world_name) if name in environment}
        if world_name not in given or given[world_name].strip() == "1":
            return None
        if rank_name not in given:
            raise ConfigError(
                f"shard='auto': the environment has {_shown(given)} without {rank_name}: give shard=(rank, world)"
            )
        return _claim(given[rank_name], given[world_name], given)

    return look_up


def _slurm(environment: Mapping[str, str]) -> Claim | None:
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_STEP_ID")
    given = {name: environment[name] for name in names if name in environment}
    world = given.get("SLURM_STEP_NUM_TASKS", given.get("SLURM_NTASKS", "1"))
    step, rank = given.get("SLURM_STEP_ID", environment.get("SLURM_STEPID")), given.get("SLURM_PROCID")
    is_special = step is not None and step.strip().isdecimal() and int(step) > LAST_STEP
    if rank is None or world.strip() == "1" or (is_special and rank.strip() == "0"):
        return None  # an interactive shell, or the batch script
    if step is None and rank.strip() == "0" and "SLURM_STEP_NUM_TASKS" not in given:
        raise ConfigError(
            f"shard='auto': the environment's {_shown(given)} without SLURM_STEP_ID are those of SLURM's batch script, which "
            "is one process, or of the first of several tasks: start tasks by srun, or give shard=(rank, world), (0, 1) for one"
        )
    return _claim(rank, world, given)


def _tf_config(environment: Mapping[str, str]) -> Claim | None:
    """The chief, or the first worker, is rank 0. An evaluator has no share of the work."""
    text = environment.get("TF_CONFIG", "")
    if not text.strip():
        return None
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        n_chiefs = sum(len(cluster.get(kind, ())) for kind in ("chief", "master"))
        n_workers, kind, index = len(cluster.get("worker", ())), task.get("type"), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"shard='auto': the environment's TF_CONFIG={short(text)} cannot be read: {error}") from error
    if n_chiefs + n_workers <= 1 or kind == "evaluator":
        return None
    if "ps" in cluster or kind not in ("chief", "master", "worker"):
        raise ConfigError(
            f"shard='auto': TF_CONFIG={short(text)} has a task of type {short(kind)}, or parameter servers. The "
            "strategy decides which process loads what: give shard=(rank, world)"
        )
    rank = index + (n_chiefs if kind == "worker" else 0)
    return _claim(str(rank), str(n_chiefs + n_workers), {"TF_CONFIG": short(text)})


def _claim(rank: str, world: str, given: Mapping[str, str]) -> Claim:
    if not (rank.strip().isdecimal() and world.strip().isdecimal()):
        raise ConfigError(f"shard='auto': the environment's {_shown(given)} are not both numbers: {REMEDY}")
    if int(rank) >= int(world):
        raise ConfigError(f"shard='auto': the environment's {_shown(given)} have a rank that is not below the world: {REMEDY}")
    return Claim(int(rank), int(world), f"the environment's {_shown(given)}")


def _shown(given: Mapping[str, Any]) -> str:
    return " and ".join(f"{name}={short(value)}" for name, value in given.items())


GROUPS: tuple[Lookup, ...] = (_torch, _jax)
LOOKUPS: tuple[Lookup, ...] = (*GROUPS, _torchrun, *(_pair(rank, world) for _, rank, world in PAIRS), _slurm, _tf_config)
