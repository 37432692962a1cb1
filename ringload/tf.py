"""TensorFlow: `for batch in ringload.tf.as_dataset(loader)`. See `ringload.adapters.tf`."""

from ringload.adapters.tf import as_dataset

__all__ = ["as_dataset"]
