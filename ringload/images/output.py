"""Where one image goes, and how its pixels are turned, mirrored and converted after they are decoded."""

from __future__ import annotations

import cv2
import numpy as np

from ringload.images.augment import Choices, put_levels
from ringload.images.geometry import Box, orient, upright


class Output:
    """`array (H, W, C)` gets the image: of its dtype; or with `levels (256,) float32`, the level of each byte, as float32.

    `orientation` is the image's, from its file: decoders set it before they ask for anything.
    """

    def __init__(self, array: np.ndarray, choices: Choices, levels: np.ndarray | None = None) -> None:
        self.array, self.choices, self.levels = array, choices, levels
        self.orientation = 1

    def box(self, height: int, width: int) -> Box:
        """The chosen part of an image that the file stores as `height` x `width`: where the file stores it."""
        height, width = upright(height, width, self.orientation)
        return self.choices.part(height, width).stored(height, width, self.orientation)

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) of the output before it is turned."""
        return upright(self.array.shape[0], self.array.shape[1], self.orientation)

    def pixels(self) -> np.ndarray:
        """An array `(h, w, C)` of `stored_size` for the pixels as the file stores them, uint8 or of the dtype of `array`.
        `finish` takes it."""
        if self.orientation == 1 and self.levels is None:
            return self.array
        return np.empty((*self.stored_size, self.array.shape[2]), self.array.dtype if self.levels is None else np.uint8)

    def finish(self, pixels: np.ndarray) -> None:
        """Turn, mirror and convert `pixels` into the output."""
        if self.orientation != 1:
            pixels = np.ascontiguousarray(orient(pixels, self.orientation))
        if self.choices.is_mirrored:
            flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels  # OpenCV's shape of one channel
            cv2.flip(flat, 1, dst=flat)
        if self.levels is not None:
            put_levels(pixels, self.levels, self.array)
        elif pixels is not self.array:
            np.copyto(self.array, pixels)
