"""Hugging Face's Trainer, with a small vision transformer: one method that gives it the ring's batches.

python examples/hf_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import ringload.torch

SIZE = 16


class BytesForImageClassification(ViTForImageClassification):
    """Takes images as the ring holds them, (B, H, W, C) uint8, and makes them floats on the device."""

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        return super().forward(pixel_values.permute(0, 3, 1, 2) / 127.5 - 1, **options)


class RingTrainer(Trainer):
    """What `get_train_dataloader` returns is used as it is: nobody samples, shards, or collates it again."""

    loader: ringload.Loader

    def get_train_dataloader(self) -> Any:
        names = {"pixel_values": "image", "labels": "label"}  # the model's names: the loader's
        return ringload.torch.Batches(self.loader, self.args.device, names)


def stripes(n: int) -> ringload.Arrays:
    """Noisy stripes, across (label 1) or down (label 0)."""
    rng = np.random.default_rng(0)
    waves = 90 * np.sin(np.arange(SIZE) * rng.uniform(0.6, 1.2, (n, 1)) + rng.uniform(0, 6, (n, 1)))
    images = 128 + rng.normal(0, 20, (n, SIZE, SIZE)) + waves[:, :, None]
    images[::2] = images[::2].transpose(0, 2, 1)
    return ringload.Arrays(image=images.clip(0, 255).astype(np.uint8)[..., None], label=np.arange(n) % 2)


def main() -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(image_size=SIZE, patch_size=4, num_channels=1, num_labels=2, **small)
    quiet: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "logging_strategy": "epoch", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(folder, num_train_epochs=4, learning_rate=3e-3, per_device_train_batch_size=32, **quiet)
        trainer = RingTrainer(BytesForImageClassification(config), options)
        with ringload.Loader(stripes(640), 32, ram_budget="300MB", shard="auto") as trainer.loader:
            trainer.train()


if __name__ == "__main__":
    main()
