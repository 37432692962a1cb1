"""PyTorch: `DataLoader`, torch's on the ring. See `ringload.adapters.torch_loader`."""

from ringload.adapters.torch_loader import DataLoader

__all__ = ["DataLoader"]
