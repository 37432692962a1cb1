"""Keras 3: `model.fit(ringload.keras.dataset(loader))`. See `ringload.adapters.keras`."""

from ringload.adapters.keras import RingDataset, dataset
from ringload.adapters.keras_callbacks import Checkpoint, Report

__all__ = ["Checkpoint", "Report", "RingDataset", "dataset"]
