"""File -> `(size, size, 3) uint8`, by the three decoders that peers use: Pillow, ringload's, torchvision. All antialias."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

Decode = Callable[[str, int], np.ndarray]


def pillow(path: str, size: int) -> np.ndarray:
    """Decode with Pillow, as tutorials do."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def own(path: str, size: int) -> np.ndarray:
    """Decode with ringload's decoder, into a new array."""
    image = np.empty((size, size, 3), np.uint8)
    with open(path, "rb", buffering=0) as file:
        _decoder(size).load(file.readall(), None, image)
    return image


@cache
def _decoder(size: int):  # type: ignore[no-untyped-def]
    """One decoder for each process, which reuses its scratch memory."""
    import cv2

    from ringload.images.decoder import ImageDecoder
    from ringload.images.geometry import Geometry

    cv2.setNumThreads(1)
    return ImageDecoder(Geometry(size, size))


def torchvision(path: str, size: int) -> np.ndarray:
    """Decode with torchvision as its documentation recommends for speed: read_file, decode_jpeg, transforms.v2 with antialias.

    https://docs.pytorch.org/vision/stable/transforms.html#performance-considerations
    """
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2 import functional

    image = decode_jpeg(read_file(path), mode=ImageReadMode.RGB)
    resized: np.ndarray = functional.resize(image, [size, size], antialias=True).permute(1, 2, 0).contiguous().numpy()
    return resized


DECODERS: dict[str, Decode] = {"pillow": pillow, "own": own, "torchvision": torchvision}
