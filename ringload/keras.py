"""Keras 3: `model.fit(ringload.keras.dataset(loader))`. See `ringload.adapters.keras`."""

from ringload.adapters.keras import RingDataset, dataset

__all__ = ["RingDataset", "dataset"]
