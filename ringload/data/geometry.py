"""Geometry: which part of an image is shown, and scaling it into its row.

A `Box` is a part of the image as it is shown, after EXIF orientation, in pixels of the file's resolution. Decoders may give
the image smaller than that; `Box.part_of` then takes the part that corresponds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from ringload.errors import ConfigError

Resize = Literal["stretch", "crop", "random_crop"]
Interpolation = Literal["auto", "nearest", "linear", "area", "cubic", "lanczos"]

AREA_FROM = 3  # times smaller, from which on "auto" averages: linear interpolation would skip pixels, and show moire
CODES = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
RANDOM_TRIES = 10  # boxes tried before the middle is taken, as in torchvision's RandomResizedCrop


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def part_of(self, pixels: np.ndarray, image_height: int, image_width: int) -> np.ndarray:
        """This part of an image that was decoded to `pixels (h, w, C)`, a view; at least one pixel."""
        height, width = pixels.shape[:2]
        if (height, width) == (image_height, image_width):
            return pixels[self.top : self.top + self.height, self.left : self.left + self.width]
        rows = _scaled(self.top, self.height, height / image_height, height)
        columns = _scaled(self.left, self.width, width / image_width, width)
        return pixels[rows, columns]


def _scaled(start: int, length: int, factor: float, n: int) -> slice:
    first = min(round(start * factor), n - 1)
    return slice(first, max(first + 1, min(round((start + length) * factor), n)))


@dataclass(frozen=True)
class Geometry:
    """How an image comes to `height` x `width` pixels.

    `resize`: "stretch" shows all of it, whatever its proportions; "crop" the largest part in the middle that has the
    proportions wanted; "random_crop" a random part with a share of the area uniform in `area`, and width / height
    log-uniform in `ratio`, as torchvision's RandomResizedCrop.

    Raises:
        ConfigError: a value cannot be.
    """

    height: int
    width: int
    resize: Resize = "stretch"
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "auto"

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise ConfigError(f"size is (height, width), both positive, not ({self.height}, {self.width})")
        if self.resize not in ("stretch", "crop", "random_crop"):
            raise ConfigError(f"resize is 'stretch', 'crop' or 'random_crop', not {self.resize!r}")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"crop_area is (least, most) share of the image, 0 < least <= most <= 1, not {self.area}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"crop_ratio is (least, most) of width / height, 0 < least <= most, not {self.ratio}")
        if self.interpolation != "auto" and self.interpolation not in CODES:
            raise ConfigError(f"interpolation is 'auto' or one of {', '.join(CODES)}, not {self.interpolation!r}")

    def box(self, height: int, width: int, rng: np.random.Generator | None) -> Box:
        """The part of a `height` x `width` image that is shown."""
        if self.resize == "stretch":
            return Box(0, 0, height, width)
        if self.resize == "crop":
            scale = min(height / self.height, width / self.width)
            return _middle(height, width, self.height * scale, self.width * scale)
        assert rng is not None, "random crops draw"
        return self._random_box(height, width, rng)

    def _random_box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(RANDOM_TRIES):
            area = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(low, high))
            box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < box_height <= height and 0 < box_width <= width:
                top, left = rng.integers(0, (height - box_height + 1, width - box_width + 1))
                return Box(int(top), int(left), box_height, box_width)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        return _middle(height, width, min(height, width / ratio), min(width, height * ratio))

    def write(self, pixels: np.ndarray, row: np.ndarray) -> None:
        """Scale `pixels (h, w, C) uint8` into `row (height, width, C) uint8`."""
        if pixels.shape == row.shape:
            np.copyto(row, pixels)
            return
        if self.interpolation != "auto":
            code = CODES[self.interpolation]
        else:
            strong = max(pixels.shape[0] / self.height, pixels.shape[1] / self.width) >= AREA_FROM
            code = cv2.INTER_AREA if strong else cv2.INTER_LINEAR
        written = cv2.resize(pixels, (self.width, self.height), dst=row, interpolation=code)
        assert written.ctypes.data == row.ctypes.data, "OpenCV wrote into memory of its own"


def _middle(height: int, width: int, box_height: float, box_width: float) -> Box:
    part_height = max(1, min(height, round(box_height)))
    part_width = max(1, min(width, round(box_width)))
    return Box((height - part_height) // 2, (width - part_width) // 2, part_height, part_width)


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels (h, w, C)` as EXIF orientation 1..8 says they are to be shown, contiguous (Exif 2.32, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # (w, h, C)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
