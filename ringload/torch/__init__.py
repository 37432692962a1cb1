"""PyTorch: `ringload.torch.Batches(loader, device)` gives a loader's batches as tensors; `ringload.torch.DataLoader` replaces
`torch.utils.data.DataLoader`. See `ringload.torch.batches` and `ringload.torch.dataloader.loader`."""

try:
    import msgspec  # noqa: F401
    import torch  # noqa: F401
    import typing_extensions  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"ringload.torch needs PyTorch, msgspec and typing_extensions ({error}): pip install torch msgspec typing_extensions"
    ) from error

from ringload.torch.batches import Batches
from ringload.torch.dataloader.loader import DataLoader

__all__ = ["Batches", "DataLoader"]
