"""Decoding on other machines: workers are Ray actors, on any node of a cluster.

python examples/ray_workers.py [address of the cluster's head]

Without an address a local Ray is started, so that this runs on a laptop.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import ringload
import ringload.ray

N_IMAGES, EPOCHS, SIZE = 400, 4, 16
FIELDS = {"image": ((SIZE, SIZE, 3), "uint8"), "label": ((), "int64")}


def load(index: int, rng: np.random.Generator, out: Any) -> None:
    """Made here, where yours are read and decoded: in an actor, on its node."""
    label = index % 2
    mean = 150 if label else 100
    out["image"] = np.clip(rng.normal(mean, 30, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    out["label"] = label


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else None
    workers = ringload.ray.Workers(2, address=address)
    weights = np.zeros(4)
    with ringload.Loader(load, 50, fields=FIELDS, n_samples=N_IMAGES, workers=workers, ram_budget="500MB", seed=0) as loader:
        for epoch in range(EPOCHS):
            total = 0.0
            for batch in loader:
                means = batch["image"].mean((1, 2)) / 127.5 - 1  # (50, 3) float64
                inputs = np.column_stack([means, np.ones(len(means))])  # (50, 4)
                chance = 1 / (1 + np.exp(-inputs @ weights))
                weights += 8 * inputs.T @ (batch["label"] - chance) / len(means)
                total -= np.log(np.where(batch["label"] == 1, chance, 1 - chance)).mean()
            print(f"epoch {epoch}: loss {total / len(loader):.4f}")
        print(loader.stats)


if __name__ == "__main__":
    main()
