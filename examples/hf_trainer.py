"""Trains a small vision transformer with Hugging Face's Trainer on the ring's batches. A run may resume within an epoch.

python examples/hf_trainer.py
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

import ringload.torch

SIZE = 16


class BytesForImageClassification(ViTForImageClassification):
    """Takes images of the ring, (B, H, W, C) uint8, and converts them to floats on the device."""

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        return super().forward(pixel_values.permute(0, 3, 1, 2) / 127.5 - 1, **options)


class Feed(torch.utils.data.IterableDataset[Any]):
    """The ring's batches, one epoch a pass. After `resume_from_checkpoint`, the Trainer also asks for the batches that it has
    already trained on in this epoch, and drops them. It gets None for these, so that no batch is loaded twice."""

    def __init__(self, loader: ringload.Loader, device: torch.device) -> None:
        names = {"pixel_values": "image", "labels": "label"}  # name in the model: name in the loader
        self.batches = ringload.torch.Batches(loader, device, names)
        self.n_trained = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        n_trained, self.n_trained = self.n_trained, 0
        yield from [None] * n_trained
        yield from self.batches


class Resume(TrainerCallback):
    """Sets the loader's position from the Trainer's count of steps: 0, or that of the checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **rest: Any) -> None:
        feed, n_each = train_dataloader.dataset, args.gradient_accumulation_steps
        epoch, n_updates = divmod(state.global_step, math.ceil(len(feed) / n_each))
        feed.n_trained = 0 if args.ignore_data_skip else n_updates * n_each
        feed.batches.load_state_dict(feed.batches.state_dict() | {"epoch": epoch, "position": feed.n_trained})


class RingTrainer(Trainer):
    """Gives the Trainer the ring's batches, which are not sampled, sharded or collated again."""

    loader: ringload.Loader

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(Feed(self.loader, self.args.device), batch_size=None)

    def num_examples(self, dataloader: Any) -> int:
        return len(dataloader) * self.loader.batch_size


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
        trainer = RingTrainer(BytesForImageClassification(config), options, callbacks=[Resume()])
        with ringload.Loader(stripes(640), 32, shard="auto") as trainer.loader:
            trainer.train()


if __name__ == "__main__":
    main()
