"""Ray Data: a pipeline makes the samples, and a loader gives them as batches without a copy, in a new order each epoch.

python examples/ray_data.py
"""

from __future__ import annotations

import numpy as np
import ray
import ray.data
import torch
from torch import nn

import ringload.ray
import ringload.torch

N_IMAGES, EPOCHS, SIZE = 600, 4, 32


def stripes(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In tasks of Ray: images of noisy stripes `(n, 32, 32, 3) uint8`, down or across by their label `(n,) int64`."""
    rng = np.random.default_rng(int(batch["id"][0]))
    n, label = len(batch["id"]), batch["id"] % 2
    waves = 90 * np.sin(np.arange(SIZE) * rng.uniform(0.6, 1.2, (n, 1)) + rng.uniform(0, 6, (n, 1)))  # (n, 32)
    lines = np.where(label[:, None, None] == 1, waves[:, :, None], waves[:, None, :])  # (n, 32, 32)
    images = 128 + rng.normal(0, 20, (n, SIZE, SIZE, 3)) + lines[..., None]
    return {"image": images.clip(0, 255).astype(np.uint8), "label": label}


def main() -> None:
    ray.init("local", include_dashboard=False, num_cpus=2, object_store_memory=100 << 20, logging_level="ERROR")
    pipeline = ray.data.range(N_IMAGES, override_num_blocks=6).map_batches(stripes)
    source = ringload.ray.from_dataset(pipeline)  # executes it; the blocks stay in Ray's object store
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with ringload.Loader(source, batch_size=50, seed=0) as loader:  # its workers read the blocks
        for epoch in range(EPOCHS):
            total = 0.0
            for batch in ringload.torch.Batches(loader):
                images = batch["image"].permute(0, 3, 1, 2) / 127.5 - 1  # (50, 3, 32, 32) float32
                loss = nn.functional.cross_entropy(model(images), batch["label"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            print(f"epoch {epoch}: loss {total / len(loader):.4f}")
    ray.shutdown()


if __name__ == "__main__":
    main()
