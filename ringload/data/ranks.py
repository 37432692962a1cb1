"""Which share of an epoch is this process's: what `shard="auto"` means."""

from __future__ import annotations

import os
import sys

from ringload.errors import ConfigError


def rank_and_world() -> tuple[int, int]:
    """(rank, world) as torch.distributed says, if it is initialized; else as RANK and WORLD_SIZE of the environment say, which
    torchrun and others set; else (0, 1). It imports nothing.

    Raises:
        ConfigError: the environment has one of the two without the other, or they are no rank and world.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    if not given:
        return 0, 1
    told = " and ".join(f"{name}={value!r}" for name, value in given.items())
    remedy = "call torch.distributed.init_process_group first, or give shard=(rank, world)"
    if len(given) == 1:
        raise ConfigError(f"shard='auto' takes RANK and WORLD_SIZE from the environment, which has only {told}: {remedy}")
    if not all(value.strip().isdecimal() for value in given.values()):
        raise ConfigError(f"shard='auto': the environment's {told} are not both numbers: {remedy}")
    rank, world = int(given["RANK"]), int(given["WORLD_SIZE"])
    if rank >= world:
        raise ConfigError(f"shard='auto': the environment's {told} say a rank that is not below the world: {remedy}")
    return rank, world
