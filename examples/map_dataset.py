"""A map-style dataset of your own, as for torch's DataLoader, and without torch.

python examples/map_dataset.py
"""

from __future__ import annotations

import numpy as np

import ringload

N_IMAGES, EPOCHS, SIZE = 400, 4, 16


def train(loader: ringload.Loader) -> None:
    """Learn by the mean of each channel which class an image has: logistic regression in NumPy."""
    weights = np.zeros(4)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in loader:
            means = batch["image"].mean((1, 2)) / 127.5 - 1  # (B, 3) float64
            inputs = np.column_stack([means, np.ones(len(means))])  # (B, 4)
            chance = 1 / (1 + np.exp(-inputs @ weights))
            weights += 2 * inputs.T @ (batch["label"] - chance) / len(means)
            total -= np.log(np.where(batch["label"] == 1, chance, 1 - chance)).mean()
        print(f"epoch {epoch}: loss {total / len(loader):.4f}")
    print(loader.stats)


class Bright:
    """Image and label of a number, made on demand."""

    def __len__(self) -> int:
        return N_IMAGES

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(index)
        image = rng.normal(180 if index % 2 else 70, 30, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
        return image, index % 2


def main() -> None:
    source = ringload.from_dataset(Bright(), ("image", "label"))
    with ringload.Loader(source, batch_size=40, seed=0) as loader:
        train(loader)


if __name__ == "__main__":
    main()
