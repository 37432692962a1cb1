"""Keras 3: `model.fit(ringload.keras.dataset(loader))`. See `ringload.keras.py_dataset`."""

try:
    import keras  # noqa: F401
except ImportError as error:
    raise ImportError(f"ringload.keras needs Keras 3 and one of its backends ({error}): pip install tensorflow") from error

from ringload.keras.callbacks import Checkpoint, Report
from ringload.keras.py_dataset import RingDataset, dataset

__all__ = ["Checkpoint", "Report", "RingDataset", "dataset"]
