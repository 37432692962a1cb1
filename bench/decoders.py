"""File -> `(size, size, 3) uint8`, by the decoders that peers use.

    DECODERS    the whole image: antialiased by Pillow, with and without its draft mode, ringload's decoder and torchvision;
                and not antialiased by OpenCV with INTER_LINEAR
    RECIPES     a random part, mirrored at random, as in torchvision's RandomResizedCrop and RandomHorizontalFlip: by simplejpeg
                and OpenCV, and by torchvision

simplejpeg decodes with its fastest options here (fastdct, fastupsample), which its documentation says take 4 to 5 % less time
each, for a minor loss in quality; ringload uses neither.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.work import AREA, RATIO

Decode = Callable[[str, int], np.ndarray]
Uniform = Callable[[float, float], float]
Recipe = Callable[[str, int, Uniform], np.ndarray]

TRIES = 10  # as in torchvision's RandomResizedCrop


def pillow(path: str, size: int) -> np.ndarray:
    """Decode with Pillow, as tutorials do."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def pillow_draft(path: str, size: int) -> np.ndarray:
    """Decode with Pillow, which lets libjpeg scale by 1/2, 1/4 or 1/8 to no less than the size.

    https://pillow.readthedocs.io/en/stable/reference/Image.html#PIL.Image.Image.draft
    """
    with Image.open(path) as image:
        image.draft("RGB", (size, size))
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def own(path: str, size: int) -> np.ndarray:
    """Decode with ringload's decoder, into a new array."""
    image = np.empty((size, size, 3), np.uint8)
    with open(path, "rb", buffering=0) as file:
        own_decoder(size).load(file.readall(), None, image)
    return image


@cache
def own_decoder(size: int):  # type: ignore[no-untyped-def]
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


def opencv(path: str, size: int) -> np.ndarray:
    """Decode with simplejpeg, scaled by libjpeg to no less than the size, or with OpenCV, if it is no JPEG file; resize with
    OpenCV."""
    cv2 = _cv2()
    if path.endswith(".jpg"):
        image = _simplejpeg(path, min_height=size, min_width=size, min_factor=2)
    else:
        image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    resized: np.ndarray = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized


def opencv_recipe(path: str, size: int, uniform: Uniform, is_area: bool = False) -> np.ndarray:
    """Decode the whole file with simplejpeg; crop, resize and mirror with OpenCV."""
    cv2 = _cv2()
    image = _simplejpeg(path)
    top, left, height, width = random_part(image.shape[0], image.shape[1], uniform)
    part = image[top : top + height, left : left + width]
    shrinks = height > size and width > size  # otherwise INTER_AREA is INTER_LINEAR, only slower
    resized: np.ndarray = cv2.resize(
        part, (size, size), interpolation=cv2.INTER_AREA if is_area and shrinks else cv2.INTER_LINEAR
    )
    return cv2.flip(resized, 1) if uniform(0, 1) < 0.5 else resized


def opencv_area_recipe(path: str, size: int, uniform: Uniform) -> np.ndarray:
    """The same, with the filter that OpenCV's documentation recommends for images that become smaller."""
    return opencv_recipe(path, size, uniform, is_area=True)


def torchvision_recipe(path: str, size: int, uniform: Uniform) -> np.ndarray:
    """As in torchvision's reference training of classification, in transforms.v2; the random numbers are torch's own."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    image = _transforms(size)(decode_jpeg(read_file(path), mode=ImageReadMode.RGB))
    shown: np.ndarray = image.permute(1, 2, 0).contiguous().numpy()
    return shown


@cache
def _transforms(size: int) -> Any:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop((size, size), scale=AREA, ratio=RATIO, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(0.5)])


def random_part(height: int, width: int, uniform: Uniform) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a part, as in torchvision's RandomResizedCrop."""
    log_ratio = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(TRIES):
        area, ratio = height * width * uniform(*AREA), math.exp(uniform(*log_ratio))
        part_height, part_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < part_height <= height and 0 < part_width <= width:
            top, left = int(uniform(0, height - part_height + 1)), int(uniform(0, width - part_width + 1))
            return top, left, part_height, part_width
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    part_height, part_width = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


@cache
def _cv2() -> Any:
    """OpenCV, with one thread in each process."""
    import cv2

    cv2.setNumThreads(1)
    return cv2


def _simplejpeg(path: str, **options: Any) -> np.ndarray:
    import simplejpeg

    image: np.ndarray = simplejpeg.decode_jpeg(Path(path).read_bytes(), fastdct=True, fastupsample=True, **options)
    return image


def recipe(name: str, path: str, size: int, uniform: Uniform = random.uniform) -> np.ndarray:
    """Load a random part of a file. The default generator is seeded by torch's DataLoader in each worker."""
    return RECIPES[name](path, size, uniform)


DECODERS: dict[str, Decode] = {
    "pillow": pillow,
    "pillow-draft": pillow_draft,
    "own": own,
    "torchvision": torchvision,
    "opencv": opencv,
}
RECIPES: dict[str, Recipe] = {
    "opencv": opencv_recipe,
    "opencv-area": opencv_area_recipe,
    "torchvision": torchvision_recipe,
}
