"""Trains with Lightning on the ring's batches. The run ends within an epoch, and a second run resumes it there.

python examples/lightning_train.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import ringload.torch


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 1)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.layer(batch["x"])[:, 0], batch["y"])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        print(f"epoch {self.current_epoch}: loss {self.trainer.callback_metrics['loss'].item():.4f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.02)


def train(source: ringload.Arrays, folder: str, resume: Path | None, **options: int) -> None:
    """Lightning saves and loads the state of the batches with that of the model, as they have `state_dict` and
    `load_state_dict`."""
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    quiet: dict[str, bool] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(devices=1, callbacks=[saving], **quiet, **options)
    with ringload.Loader(source, batch_size=32, seed=0) as loader:  # 20 batches an epoch
        trainer.fit(Regression(), ringload.torch.Batches(loader, trainer.strategy.root_device), ckpt_path=resume)


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    x = np.random.default_rng(0).normal(size=(640, 20)).astype(np.float32)
    source = ringload.Arrays(x=x, y=x @ np.linspace(-1, 1, 20, dtype=np.float32))
    with tempfile.TemporaryDirectory() as folder:
        train(source, folder, None, max_steps=35)  # ends within the second epoch, at a checkpoint
        train(source, folder, Path(folder) / "step=35.ckpt", max_epochs=4)


if __name__ == "__main__":
    main()
