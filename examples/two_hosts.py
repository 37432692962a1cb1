"""Data-parallel training on several hosts without Ray: each rank loads its share of every epoch by processes of its own.

One process:     python examples/two_hosts.py
On each of two hosts, with a process for each GPU (docs/hosts.md says what a host needs, and how to start it by SLURM):
                 torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST0:29500 examples/two_hosts.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ringload.torch

N_IMAGES, EPOCHS, SIZE, BATCH = 480, 4, 32, 24


def write_stripes(root: Path) -> None:
    """Write images of noisy stripes into the folders `across` and `down`: the same files on each host."""
    rng = np.random.default_rng(0)
    for number in range(N_IMAGES):
        wave = 90 * np.sin(np.arange(SIZE) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6))
        image = 128 + rng.normal(0, 20, (SIZE, SIZE, 3)) + (wave[:, None, None] if number % 2 else wave[:, None])
        folder = root / ("across" if number % 2 else "down")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def check_hosts(loader: ringload.Loader) -> None:
    """Raise ConfigError on every rank, unless all hosts have the same table, in the same order, and the same seed."""
    states = [None] * dist.get_world_size()
    dist.all_gather_object(states, loader.state_dict())
    ringload.state.merge(states)


def main() -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2)
    )
    is_parallel = "RANK" in os.environ  # torchrun sets it
    if is_parallel:
        dist.init_process_group("gloo")  # "nccl" with GPUs
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with tempfile.TemporaryDirectory() as folder:  # the root may differ between hosts, and the paths below it may not
        write_stripes(Path(folder))
        source = ringload.ImageFolder(folder, size=(SIZE, SIZE))
        # with several ranks on a host, give each its share of the CPUs and of the memory
        with ringload.Loader(source, BATCH, seed=0, shard="auto", workers=1, ram_budget="300MB") as loader:
            if is_parallel:
                check_hosts(loader)
            for epoch in range(EPOCHS):
                total = 0.0
                for batch in ringload.torch.Batches(loader):
                    images = batch["image"].permute(0, 3, 1, 2) / 127.5 - 1  # (24, 3, 32, 32) float32
                    loss = nn.functional.cross_entropy(model(images), batch["label"])
                    optimizer.zero_grad()
                    loss.backward()  # averages the gradients of all ranks: each has the same number of batches
                    optimizer.step()
                    total += loss.item()
                print(f"epoch {epoch}, rank {loader.order.rank} of {loader.order.world}: loss {total / len(loader):.4f}")
    if is_parallel:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
