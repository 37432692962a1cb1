"""Pixels as a file has them: any dtype, any number of values a pixel.

    Opened      a file whose header is read: its size, the memory that decoding takes, and how to decode it
    Values      its decoded pixels `(h, w, n)`, and what each of the n values is
    write       the chosen part of them, scaled, in a row of uint16 or float32, for `dtype="uint16"` and `scale=None`

`high_depth.shown` maps Values to 8 bits instead. A value is never scaled here: a pixel of 12 bits stays within 0..4095.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ringload.images.formats import Color
from ringload.images.geometry import Box
from ringload.images.resample import Resampler

LUMA = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, of 65,536
BAND = 1 << 18  # values that are converted at a time, so that intermediate arrays are small


class Values(NamedTuple):
    """`array (h, w, n)` as the file stores it. The first `n_colors` values, 1 or 3, are gray or red, green and blue.

    `n_bits`: of integers. `alpha`: which of the n values is alpha, or None. `is_inverted`: the least value is white.
    `is_weighted`: colours are multiplied by alpha. `orientation`: 1..8, still to be applied. `white`: the value of white by the
    file's header, where that is not the largest of `n_bits`.
    """

    array: np.ndarray
    n_bits: int
    n_colors: int
    alpha: int | None = None
    is_inverted: bool = False
    is_weighted: bool = False
    orientation: int = 1
    white: float | None = None


@dataclass
class Opened:
    """A file whose header is read. Decoding takes `pixel_bytes` of memory a pixel, and `more_bytes`.

    `read()` decodes it, to `Values` of exactly `height` x `width`. It raises ValueError, or what the decoder raises.
    """

    height: int
    width: int
    pixel_bytes: int
    read: Callable[[], Values]
    more_bytes: int = 0


def opened(height: int, width: int, pixel_bytes: int, read: Callable[[], Values], more_bytes: int = 0) -> Opened:
    """An `Opened` whose `read` refuses pixels of another size than the header's, which the limits have seen."""

    def checked() -> Values:
        values = read()
        if values.array.shape[:2] != (height, width) or values.array.ndim != 3:
            raise ValueError(f"decoded to {values.array.shape} values, not {height} x {width} pixels as its header says")
        return values

    return Opened(height, width, pixel_bytes, checked, more_bytes)


def of_channels(array: np.ndarray, n_bits: int = 0, orientation: int = 1) -> Values:
    """Values of `array (h, w)`, or `(h, w, n)` with n = 1 to 4: gray, gray and alpha, RGB, or RGBA.

    Raises:
        ValueError: there are more values a pixel.
    """
    array = array.reshape(*array.shape, 1) if array.ndim == 2 else array
    if array.ndim != 3 or not 1 <= array.shape[2] <= 4:
        raise ValueError(f"{array.shape} values; supported are (height, width), and (height, width, 1 to 4)")
    n = array.shape[2]
    n_bits = n_bits or (1 if array.dtype == bool else array.dtype.itemsize * 8)
    return Values(array, n_bits, 1 if n < 3 else 3, n - 1 if n in (2, 4) else None, orientation=orientation)


def write(values: Values, color: Color, box: Box, out: np.ndarray, resampler: Resampler) -> None:
    """Write the part `box` of `values` into `out (H, W, C)`, uint16 or float32, whose sides are those of the stored image.

    Raises:
        ValueError: `out` cannot hold such values.
    """
    _check_fits(values, out.dtype)
    top, left = math.floor(box.top), math.floor(box.left)
    inner = Box(box.top - top, box.left - left, box.height, box.width)
    part = values.array[top : math.ceil(box.top + box.height), left : math.ceil(box.left + box.width), : values.n_colors]
    if color == "gray" and values.n_colors == 3:
        part = _luma(part, out.dtype)
    for channel in range(out.shape[2]):
        if channel and part.shape[2] == 1:
            out[:, :, channel] = out[:, :, 0]
        else:
            _scale(part[:, :, channel], inner, out[:, :, channel], resampler)


def _check_fits(values: Values, dtype: np.dtype[Any]) -> None:
    if values.is_weighted:
        raise ValueError("colours that are multiplied by alpha: dtype='uint8' divides them, other dtypes do not support them")
    given = values.array.dtype
    if given.kind not in "buif":
        raise ValueError(f"pixels of dtype {given} are no numbers that are supported")
    if dtype.kind == "u" and not np.can_cast(given, dtype, "safe"):
        raise ValueError(f"pixels of dtype {given} do not fit into {dtype}: dtype='float32' with scale=None keeps them")


def _luma(colors: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Gray `(h, w, 1)` of `colors (h, w, 3)`, as Pillow weighs them; rounded for integers."""
    made = np.empty((*colors.shape[:2], 1), np.float32 if dtype.kind == "f" else dtype)
    step = max(1, BAND // max(1, colors[0].size))
    for start in range(0, len(colors), step):
        gray = colors[start : start + step].astype(np.float64) @ (np.array(LUMA) / 65536)
        made[start : start + step, :, 0] = gray if dtype.kind == "f" else np.floor(gray + 0.5)
    return made


def _scale(values: np.ndarray, box: Box, out: np.ndarray, resampler: Resampler) -> None:
    """Scale the part `box` of `values (h, w)` to `out (H, W)`. Without scaling, values are copied as they are."""
    if box.height == out.shape[0] and box.width == out.shape[1] and box.top % 1 == 0 == box.left % 1:
        top, left = int(box.top), int(box.left)
        with np.errstate(over="ignore"):  # of float64 beyond float32: infinite
            np.copyto(out, values[top : top + out.shape[0], left : left + out.shape[1]], casting="same_kind")
        return
    height, width = out.shape
    with np.errstate(over="ignore"):
        part = np.ascontiguousarray(values, np.float32)
    if resampler.antialiases:
        bottom, right = min(box.top + box.height, part.shape[0]), min(box.left + box.width, part.shape[1])  # rounding
        image = Image.frombuffer("F", (part.shape[1], part.shape[0]), part, "raw", "F", 0, 1)
        scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, (box.left, box.top, right, bottom)))
    else:
        whole = box.rounded(*part.shape)
        top, left = int(whole.top), int(whole.left)
        part = np.ascontiguousarray(part[top : top + int(whole.height), left : left + int(whole.width)])
        scaled = cv2.resize(part, (width, height), interpolation=resampler.code(part.shape[0] / height, part.shape[1] / width))
    if out.dtype.kind == "u":
        limits = np.iinfo(out.dtype)
        scaled = np.rint(scaled).clip(limits.min, limits.max)  # cubic and lanczos overshoot
    np.copyto(out, scaled, casting="unsafe")
