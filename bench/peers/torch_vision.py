"""torch's DataLoader with torchvision's decoder: `decode_jpeg`, then `v2.functional.resize` with antialiasing; or, for the
recipe, `v2.RandomResizedCrop` and `v2.RandomHorizontalFlip`.

https://docs.pytorch.org/vision/stable/transforms.html#performance-considerations
"""

from __future__ import annotations

import torchvision  # noqa: F401  (if it does not fit torch, it fails here, not in a worker)

from bench.peers import Stream
from bench.peers.torch_loader import open_stream as open_torch
from bench.work import Work


def open_stream(work: Work, workers: int) -> Stream:
    """Start the stream."""
    return open_torch(work, workers, decoder="torchvision")
