"""Augmentation: the random choices for an image, and the user's transform.

    choices     the part of the image that is shown, and whether it is mirrored, chosen before decoding: only that is decoded
    finish      calls the user's transform, and converts its result to the dtype of the row

Decoding (`decoder`), which comes between the two, is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import cv2
import numpy as np

from ringload.checks import one_of, short, two_numbers
from ringload.errors import ConfigError
from ringload.fields import Field, write_exactly
from ringload.images.geometry import Box, Geometry

Dtype = Literal["uint8", "uint16", "float32"]
Transform = Callable[[np.ndarray, np.random.Generator], Any]

SCALE = (-1.0, 1.0)  # the default of scale=


class Choices:
    """What is chosen for one image. It is drawn from `rng` when it is first asked for: the part, then `is_mirrored`."""

    def __init__(self, geometry: Geometry, flip: bool, rng: np.random.Generator | None) -> None:
        self._geometry, self._flip, self._rng = geometry, flip, rng
        self._drawn: dict[tuple[int, int], Box] = {}
        self._is_mirrored: bool | None = None
        self.size = (0, 0)  # (height, width) of the image, as it is shown, when `part` was asked for last

    def part(self, height: int, width: int) -> Box:
        """The part of an image of that size, as it is shown, that is wanted. The same size gives the same part."""
        self.size = height, width
        if (height, width) not in self._drawn:
            self._drawn[height, width] = self._geometry.box(height, width, self._rng)
        return self._drawn[height, width]

    @property
    def is_mirrored(self) -> bool:
        """Whether left and right are exchanged."""
        if self._is_mirrored is None:
            self._is_mirrored = self._flip and self._rng is not None and self._rng.random() < 0.5
        return self._is_mirrored


class Augmenter:
    """Chooses the part of an image that is shown, and writes that part into a row of `field`. Arguments as of `ImageDecoder`.

    Raises:
        ConfigError: an option is not valid.
    """

    def __init__(
        self, geometry: Geometry, n_channels: int, dtype: Dtype, scale: tuple[float, float] | None, flip: bool, transform: Any
    ) -> None:
        one_of("dtype", dtype, get_args(Dtype))
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform is a function transform(image, rng) -> image, not {short(transform)}")
        self.geometry, self.flip, self.transform = geometry, flip, transform
        self.field = Field((geometry.height, geometry.width, n_channels), dtype)
        self._call: Transform | None = _SeededAlbumentations(transform) if _is_albumentations(transform) else transform
        self._dtype, self._scale = dtype, _scale(scale, dtype)
        self.keeps_values = dtype == "uint16" or self._scale is None  # pixels are as files have them, of any number of bits
        # (256,): of each byte
        self.levels = None if dtype != "float32" or self._scale is None else np.linspace(*self._scale, 256, dtype=np.float32)

    def plain(self, transform: Any) -> Augmenter:
        """One that makes no random choice itself: without `flip`, "crop" in place of "random_crop", and with `transform`."""
        geometry = replace(self.geometry, resize="crop") if self.geometry.resize == "random_crop" else self.geometry
        return Augmenter(geometry, self.field.shape[2], self._dtype, self._scale, False, transform)

    def undecorated(self, geometry: Geometry, flip: bool = False) -> Augmenter:
        """One of this size and part that makes no other choice, calls no transform, and keeps 0..255, or files' values."""
        dtype: Dtype = self._dtype if self.keeps_values else "uint8"
        return Augmenter(geometry, self.field.shape[2], dtype, None if self.keeps_values else SCALE, flip, None)

    @property
    def draws(self) -> bool:
        """Whether the result depends on the random generator."""
        return self.flip or self.transform is not None or self.geometry.resize == "random_crop"

    def choices(self, rng: np.random.Generator | None) -> Choices:
        """The choices for an image that `rng` is for."""
        return Choices(self.geometry, self.flip, rng)

    def empty(self) -> np.ndarray:
        """A new array for an image before its transform: `(H, W, C)`, uint8, or as the row is if values are kept."""
        return np.empty(self.field.shape, self.field.dtype if self.keeps_values else np.uint8)

    def finish(self, image: np.ndarray, rng: np.random.Generator | None, row: np.ndarray) -> None:
        """Call the transform, and write its result into `row (H, W, C)`. It may keep `image`, as of `empty`.

        Raises:
            ValueError: the transform did not return an image of that size.
        """
        if self._call is not None and rng is not None:
            image = self._checked(self._call(image, rng))
        if self.levels is not None and image.dtype == np.uint8:
            put_levels(np.ascontiguousarray(image), self.levels, row)
        else:
            write_exactly(row, image, "image")

    def _checked(self, image: Any) -> np.ndarray:
        if isinstance(image, np.ndarray) and image.shape == self.field.shape:
            return image
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        kinds = "uint8 or float32" if self.levels is not None else self.field.dtype
        raise ValueError(f"transform returned {got}; it has to return an array {self.field.shape} {kinds}")


def put_levels(image: np.ndarray, levels: np.ndarray, row: np.ndarray) -> None:
    """Write the level, of `levels (256,) float32`, of each byte of `image (H, W, C)` into `row (H, W, C) float32`."""
    height, width, n_channels = row.shape
    flat = (height, width * n_channels)
    cv2.LUT(image.reshape(flat), levels, dst=row.reshape(flat))


def _scale(given: Any, dtype: Dtype) -> tuple[float, float] | None:
    """The values that 0 and 255 become; None: values are kept.

    Raises:
        ConfigError: `given` is not two different numbers, or images are integers.
    """
    if given is None and dtype != "uint8":
        return None
    ends = two_numbers(given)
    if ends is None:
        raise ConfigError(
            f"scale is (low, high), the numbers that 0 and 255 become in all channels, not {short(given)}. For a mean and a "
            "deviation of each channel, normalise in the model, or have transform= return float32"
        )
    if dtype != "float32" and ends != SCALE:
        kept = "0..255" if dtype == "uint8" else "the values of the file"
        raise ConfigError(f"scale={short(given)} needs dtype='float32': dtype={dtype!r} keeps {kept}. Give both, or none")
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
