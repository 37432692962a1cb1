"""PyTorch: `for batch in ringload.torch.Batches(loader, device)`. See `ringload.adapters.torch`."""

from ringload.adapters.torch import Batches

__all__ = ["Batches"]
