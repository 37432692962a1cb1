"""A plain PyTorch loop: trains a small CNN on PNG files, with one folder for each class, on a GPU if there is one.

python examples/torch_loop.py
"""

from __future__ import annotations

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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with tempfile.TemporaryDirectory() as folder:
        write_stripes(Path(folder))
        source = ringload.ImageFolder(folder, size=(SIZE, SIZE))
        with ringload.Loader(source, batch_size=50, seed=0) as loader:
            for epoch in range(EPOCHS):
                total = torch.zeros((), device=device)
                for batch in ringload.torch.Batches(loader, device):
                    images = batch["image"].permute(0, 3, 1, 2) / 127.5 - 1  # (50, 3, 32, 32) float32, made on the device
                    loss = nn.functional.cross_entropy(model(images), batch["label"])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.detach()
                print(f"epoch {epoch}: loss {total.item() / len(loader):.4f}")
            print(loader.stats)


if __name__ == "__main__":
    main()
