"""Tar shards: packs PNG files into shards by `ringload pack`, and trains a small CNN on a part of them.

python examples/tar_shards.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import ringload.torch

N_IMAGES, EPOCHS, SIZE = 600, 4, 32


def write_stripes(root: Path) -> None:
    """Write images of noisy stripes into the folders `across` and `down`."""
    rng = np.random.default_rng(0)
    for number in range(N_IMAGES):
        wave = 90 * np.sin(np.arange(SIZE) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6))
        image = 128 + rng.normal(0, 20, (SIZE, SIZE, 3)) + (wave[:, None, None] if number % 2 else wave[:, None])
        folder = root / ("across" if number % 2 else "down")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        write_stripes(folder / "images")
        pack = [sys.executable, "-m", "ringload", "pack", f"{folder}/images", f"{folder}/shards", "--samples", "100"]
        subprocess.run(pack, check=True)
        source = ringload.TarShards(folder / "shards/shard-{000000..000005}.tar", size=(SIZE, SIZE), label="json.label")
        train, test = source.split(0.2, by="json.label")
        with ringload.Loader(train, batch_size=48, seed=0) as loader:
            for epoch in range(EPOCHS):
                total = 0.0
                for batch in ringload.torch.Batches(loader, "cpu"):
                    images = batch["image"].permute(0, 3, 1, 2) / 127.5 - 1  # (48, 3, 32, 32) float32
                    loss = nn.functional.cross_entropy(model(images), batch["label"])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item()
                print(f"epoch {epoch}: loss {total / len(loader):.4f}")
        print(f"{len(test)} images of {source.class_names} are left for a test")


if __name__ == "__main__":
    main()
