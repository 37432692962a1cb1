"""PyTorch: `for batch in ringload.torch.Batches(loader, device)`, and `ringload.torch.DataLoader`, torch's on the ring. See
`ringload.adapters.torch` and `ringload.adapters.torch_loader`."""

from ringload.adapters.torch import Batches
from ringload.adapters.torch_loader import DataLoader

__all__ = ["Batches", "DataLoader"]
