"""Geometry: which part of an image is shown.

A `Box` is a part of an image in pixels, as it is shown (upright, after EXIF orientation) or as the file stores it. Decoders
may scale an image down: `Box.scaled` is the same part of the smaller image, in fractions of pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ringload.checks import one_of
from ringload.errors import ConfigError

Resize = Literal["stretch", "crop", "random_crop"]

RANDOM_TRIES = 10  # boxes tried before the middle is taken, as in torchvision's RandomResizedCrop
FLIPS_ROWS, FLIPS_COLUMNS, SWAPS_SIDES = (3, 4, 7, 8), (2, 3, 6, 7), (5, 6, 7, 8)  # orientations, of the stored image
INVERSE = {6: 8, 8: 6}  # orientations that are not their own inverse


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: float
    left: float
    height: float
    width: float

    def stored(self, height: int, width: int, orientation: int) -> Box:
        """Where the file stores this part of an image that is shown as `height` x `width`."""
        top = height - self.top - self.height if orientation in FLIPS_ROWS else self.top
        left = width - self.left - self.width if orientation in FLIPS_COLUMNS else self.left
        if orientation in SWAPS_SIDES:
            return Box(left, top, self.width, self.height)
        return Box(top, left, self.height, self.width)

    def scaled(self, rows: float, columns: float) -> Box:
        """The same part of the image with its sides scaled by these factors."""
        return Box(self.top * rows, self.left * columns, self.height * rows, self.width * columns)

    def rounded(self, height: int, width: int) -> Box:
        """The whole pixels of a `height` x `width` image that are nearest; at least one."""
        top, left = min(round(self.top), height - 1), min(round(self.left), width - 1)
        bottom = max(top + 1, min(round(self.top + self.height), height))
        right = max(left + 1, min(round(self.left + self.width), width))
        return Box(top, left, bottom - top, right - left)


@dataclass(frozen=True)
class Geometry:
    """How an image becomes `height` x `width` pixels.

    `resize`: "stretch" shows the whole image, whatever its proportions; "crop" shows the largest central part with the
    proportions of the target; "random_crop" shows a random part with a share of the area uniform in `area`, and width / height
    log-uniform in `ratio`, as torchvision's RandomResizedCrop.

    Raises:
        ConfigError: a value is not valid.
    """

    height: int
    width: int
    resize: Resize = "stretch"
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise ConfigError(f"size is (height, width), both positive, not ({self.height}, {self.width})")
        one_of("resize", self.resize, ("stretch", "crop", "random_crop"))
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"crop_area is (least, most) share of the image, 0 < least <= most <= 1, not {self.area}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"crop_ratio is (least, most) of width / height, 0 < least <= most, not {self.ratio}")

    def box(self, height: int, width: int, rng: np.random.Generator | None) -> Box:
        """The part of a `height` x `width` image that is shown, in whole pixels."""
        if self.resize == "stretch":
            return Box(0, 0, height, width)
        if self.resize == "crop":
            scale = min(height / self.height, width / self.width)
            return _middle(height, width, self.height * scale, self.width * scale)
        assert rng is not None, "a random crop needs a generator"
        return self._random_box(height, width, rng)

    def _random_box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(RANDOM_TRIES):
            area = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(low, high))
            box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < box_height <= height and 0 < box_width <= width:
                # One after another: both at once takes twice as long, and draws the same.
                top, left = rng.integers(0, height - box_height + 1), rng.integers(0, width - box_width + 1)
                return Box(int(top), int(left), box_height, box_width)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        return _middle(height, width, min(height, width / ratio), min(width, height * ratio))


def _middle(height: int, width: int, box_height: float, box_width: float) -> Box:
    part_height = max(1, min(height, round(box_height)))
    part_width = max(1, min(width, round(box_width)))
    return Box((height - part_height) // 2, (width - part_width) // 2, part_height, part_width)


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels (h, w, C)` as EXIF orientation 1..8 says they are to be shown: a view (Exif 2.32, tag 0x0112)."""
    if orientation in SWAPS_SIDES:
        pixels = pixels.swapaxes(0, 1)  # (w, h, C)
    if orientation in FLIPS_ROWS:
        pixels = pixels[::-1]
    if orientation in FLIPS_COLUMNS:
        pixels = pixels[:, ::-1]
    return pixels


def upright(height: int, width: int, orientation: int) -> tuple[int, int]:
    """The size of an image after, and so also before, its EXIF orientation is applied."""
    return (width, height) if orientation in SWAPS_SIDES else (height, width)
