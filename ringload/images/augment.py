"""Augmentation: the random choices for an image, the user's transform, and the conversion into the row.

    part        chooses the part of the image that is shown, before decoding: a JPEG file is decoded no larger than needed
    finish      mirrors the part, calls the user's transform, and converts uint8 to the dtype of the row

Decoding (`decoder`), which comes between the two, is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import cv2
import numpy as np

from ringload.checks import one_of, short, two_numbers
from ringload.errors import ConfigError
from ringload.fields import Field, write_exactly
from ringload.images.geometry import Box, Geometry

Dtype = Literal["uint8", "float32"]
Transform = Callable[[np.ndarray, np.random.Generator], Any]

SCALE = (-1.0, 1.0)  # the default of scale=


class Augmenter:
    """Chooses the part of an image that is shown, and writes that part into a row of `field`. Arguments as of `ImageDecoder`.

    Raises:
        ConfigError: an option is not valid.
    """

    def __init__(
        self, geometry: Geometry, n_channels: int, dtype: Dtype, scale: tuple[float, float], flip: bool, transform: Any
    ) -> None:
        one_of("dtype", dtype, ("uint8", "float32"))
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform is a function transform(image, rng) -> image, not {short(transform)}")
        self.geometry, self.flip, self.transform = geometry, flip, transform
        self.field = Field((geometry.height, geometry.width, n_channels), dtype)
        self._call: Transform | None = _SeededAlbumentations(transform) if _is_albumentations(transform) else transform
        self._dtype, self._scale = dtype, _scale(scale, dtype)
        self._levels = None if dtype == "uint8" else np.linspace(*self._scale, 256, dtype=np.float32)
        self.is_plain = self._levels is None and not flip and transform is None  # `finish` is not needed

    def plain(self, transform: Any) -> Augmenter:
        """One that makes no random choice itself: without `flip`, "crop" in place of "random_crop", and with `transform`."""
        geometry = replace(self.geometry, resize="crop") if self.geometry.resize == "random_crop" else self.geometry
        return Augmenter(geometry, self.field.shape[2], self._dtype, self._scale, False, transform)

    @property
    def draws(self) -> bool:
        """Whether the result depends on the random generator."""
        return self.flip or self.transform is not None or self.geometry.resize == "random_crop"

    def part(self, rng: np.random.Generator | None) -> Callable[[int, int], Box]:
        """A function from an image's height and width to the part that is shown. The same size gives the same part."""
        drawn: dict[tuple[int, int], Box] = {}

        def part_of(height: int, width: int) -> Box:
            if (height, width) not in drawn:
                drawn[height, width] = self.geometry.box(height, width, rng)
            return drawn[height, width]

        return part_of

    def finish(self, image: np.ndarray, rng: np.random.Generator | None, row: np.ndarray) -> None:
        """Write `image (H, W, C) uint8` into `row (H, W, C)`. The user's transform may keep `image`.

        Raises:
            ValueError: the transform did not return an image of that size.
        """
        if self.flip and rng is not None and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        if self._call is not None and rng is not None:
            image = self._checked(self._call(image, rng))
        if self._levels is not None and image.dtype == np.uint8:
            height, width, n_channels = row.shape
            flat = (height, width * n_channels)
            cv2.LUT(np.ascontiguousarray(image).reshape(flat), self._levels, dst=row.reshape(flat))
        else:
            write_exactly(row, image, "image")

    def _checked(self, image: Any) -> np.ndarray:
        if isinstance(image, np.ndarray) and image.shape == self.field.shape:
            return image
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        also = " or float32" if self._levels is not None else ""
        raise ValueError(f"transform returned {got}; it has to return an array {self.field.shape} uint8{also}")


def _scale(given: Any, dtype: Dtype) -> tuple[float, float]:
    """The values that 0 and 255 become.

    Raises:
        ConfigError: `given` is not two different numbers, or images stay uint8.
    """
    ends = two_numbers(given)
    if ends is None:
        raise ConfigError(
            f"scale is (low, high), the numbers that 0 and 255 become in all channels, not {short(given)}. For a mean and a "
            "deviation of each channel, normalise in the model, or have transform= return float32"
        )
    if dtype == "uint8" and ends != SCALE:
        raise ConfigError(f"scale={short(given)} needs dtype='float32': dtype='uint8' keeps 0..255. Give both, or none")
    return ends


def _is_albumentations(transform: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == "albumentations" for kind in type(transform).__mro__)


class _SeededAlbumentations:
    """An albumentations transform as a function (image, rng) -> image."""

    def __init__(self, transform: Any) -> None:
        self._transform = transform

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> Any:
        self._transform.set_random_seed(int(rng.integers(1 << 31)))
        return self._transform(image=image)["image"]
