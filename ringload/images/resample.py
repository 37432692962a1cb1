"""Resampling: a part of decoded pixels `(h, w, C) uint8`, scaled to the size of `out (H, W, C) uint8`.

"antialias", the default, is what Pillow calls BILINEAR, torchvision and TensorFlow antialias=True: each output pixel is the
mean of the pixels below a triangle, which reaches max(1, factor) pixels to either side; rows and columns have separate
factors. Three ways compute it, and the first that is there is used:

    _resample.c       takes and gives rows, without a copy; pixels with alpha are left to the next
    cykooz-resizer    takes and gives bytes, and so needs two copies: 1.3 times the time
    Pillow            7 times the time (375 x 500 to 224 x 224)

The pixels of the first two are the same to the bit, with SIMD instructions and without (tests/test_resample.py), so they do not
depend on the CPU. Pillow's differ from them by 1 at most: it rounds twice as well, in another order.

The other filters are OpenCV's. None but "area" averages, so they alias where an image shrinks.

`python -m bench.resizing` measures what each filter costs after the decoder, and how close it comes to Pillow.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from ringload.images.geometry import Box

try:  # here, so that the fork server imports it once, before it forks workers
    from ringload.images import _resample

    native: Any = _resample
except ImportError:  # it was not built
    native = None

try:
    import cykooz_resizer
except ImportError:  # it has no wheels for musl, ARM and free-threaded Pythons
    cykooz_resizer = None

Interpolation = Literal["auto", "antialias", "fast", "nearest", "linear", "area", "cubic", "lanczos"]

AREA_FROM = 3  # "fast" averages if either side shrinks by this factor or more
PLAIN_MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # number of channels -> Pillow's mode that treats all alike
CODES = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
INTERPOLATIONS = ("auto", "antialias", "fast", *CODES)


def library() -> str:
    """The package that computes "antialias" in this installation, where _resample.c does not."""
    return "pillow" if cykooz_resizer is None else "cykooz-resizer"


class Resampler:
    """Scales by one filter. It keeps its buffers for the next image; after unpickling it has none."""

    def __init__(self, interpolation: Interpolation) -> None:
        self.interpolation: Interpolation = interpolation
        self.antialiases = interpolation in ("auto", "antialias")
        self._native = native
        self._triangle: _Simd | _Pillow | None = None

    def write(self, pixels: np.ndarray, box: Box, out: np.ndarray, is_opaque: bool = False) -> None:
        """Scale the part `box` of `pixels` to `out`. Unless `is_opaque`, colours are weighted by the fourth channel, alpha, so
        that colours of transparent pixels do not bleed into others."""
        if self.write_row(pixels, box, out, is_opaque, False, None):
            return
        if not self.antialiases:
            box = box.rounded(pixels.shape[0], pixels.shape[1])
        part, inner = _cut(pixels, box)
        if part.shape == out.shape and (box.height, box.width) == out.shape[:2]:
            np.copyto(out, part)
            return
        has_alpha = out.shape[2] == 4 and not is_opaque
        if not self.antialiases:
            self._by_opencv(part, out, has_alpha)
            return
        if self._triangle is None:
            self._triangle = _Simd() if cykooz_resizer is not None else _Pillow()
        self._triangle.write(part, inner, out, has_alpha)

    def write_row(
        self, pixels: np.ndarray, box: Box, out: np.ndarray, is_opaque: bool, is_mirrored: bool, levels: np.ndarray | None
    ) -> bool:
        """As `write`, and mirror the result; with `levels (256,) float32`, `out` is float32 and gets the level of each byte.
        False: _resample.c is not there, or does not compute this."""
        if self._native is None or not self.antialiases or (out.shape[2] == 4 and not is_opaque):
            return False
        part, inner = _cut(pixels, box)
        if part.strides[1:] != (part.shape[2], 1) or part.strides[0] < 0:
            part = np.ascontiguousarray(part)
        self._native.scale(part, inner, out, is_mirrored, levels)
        return True

    def code(self, rows: float, columns: float) -> int:
        """OpenCV's code of a filter other than "antialias", for sides that shrink by these factors."""
        if self.interpolation == "fast":
            return cv2.INTER_AREA if max(rows, columns) >= AREA_FROM else cv2.INTER_LINEAR
        return CODES[self.interpolation]

    def _by_opencv(self, part: np.ndarray, out: np.ndarray, has_alpha: bool) -> None:
        height, width = out.shape[:2]
        code = self.code(part.shape[0] / height, part.shape[1] / width)
        if has_alpha and code != cv2.INTER_NEAREST:
            weighted = np.asarray(image_of(part, "RGBA").convert("RGBa"))
            scaled = cv2.resize(weighted, (width, height), interpolation=code)
            np.minimum(scaled[:, :, :3], scaled[:, :, 3:], out=scaled[:, :, :3])  # cubic and lanczos overshoot
            np.copyto(out, np.asarray(image_of(scaled, "RGBa").convert("RGBA")))
            return
        written = cv2.resize(part, (width, height), dst=out, interpolation=code)
        assert written.ctypes.data == out.ctypes.data, "OpenCV did not write into `out`"

    def __reduce__(self) -> Any:
        return Resampler, (self.interpolation,)


def _cut(pixels: np.ndarray, box: Box) -> tuple[np.ndarray, Box]:
    """The whole pixels that `box` touches, and the box in them."""
    top, left = math.floor(box.top), math.floor(box.left)
    bottom, right = math.ceil(box.top + box.height), math.ceil(box.left + box.width)
    part = pixels[top:bottom, left:right]
    inner_top, inner_left = box.top - top, box.left - left
    height, width = min(box.height, part.shape[0] - inner_top), min(box.width, part.shape[1] - inner_left)  # rounding
    return part, Box(inner_top, inner_left, height, width)


class _Simd:
    """By cykooz-resizer, vertically first; but horizontally first where the height grows and the width shrinks."""

    def __init__(self) -> None:
        self._types = {n: getattr(cykooz_resizer.PixelType, name) for n, name in ((1, "U8"), (3, "U8x3"), (4, "U8x4"))}
        self._resizer = cykooz_resizer.Resizer()
        self._alpha = cykooz_resizer.AlphaMulDiv()
        triangle = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
        self._options = cykooz_resizer.ResizeOptions(triangle, use_alpha=False)
        self._made: dict[tuple[int, ...], Any] = {}  # shape -> the buffer of the last result

    def write(self, part: np.ndarray, box: Box, out: np.ndarray, has_alpha: bool) -> None:
        height, width, n_channels = part.shape
        source = cykooz_resizer.ImageData(width, height, self._types[n_channels], part.tobytes())
        if has_alpha:
            self._alpha.multiply_alpha_inplace(source)
        if out.shape[0] > box.height and out.shape[1] < box.width:
            between = cykooz_resizer.ImageData(out.shape[1], height, self._types[n_channels])
            self._scale(source, box._replace(top=0, height=height), between)
            source, box = between, box._replace(left=0, width=out.shape[1])
        if out.shape not in self._made:
            self._made = {out.shape: cykooz_resizer.ImageData(out.shape[1], out.shape[0], self._types[n_channels])}
        made = self._made[out.shape]
        self._scale(source, box, made)
        if has_alpha:
            self._alpha.divide_alpha_inplace(made)
        np.copyto(out, np.frombuffer(made.get_buffer(), np.uint8).reshape(out.shape))

    def _scale(self, source: Any, box: Box, out: Any) -> None:
        self._options.crop_box = cykooz_resizer.CropBox(box.left, box.top, box.width, box.height)
        self._resizer.resize(source, out, self._options)


class _Pillow:
    """By Pillow, which scales horizontally first; but vertically first where the width grows and the height shrinks."""

    def write(self, part: np.ndarray, box: Box, out: np.ndarray, has_alpha: bool) -> None:
        height, width, n_channels = out.shape
        image = image_of(part, "RGBA").convert("RGBa") if has_alpha else image_of(part, PLAIN_MODES[n_channels])
        top, left = box.top, box.left
        bottom, right = min(top + box.height, image.height), min(left + box.width, image.width)  # rounding
        if width > box.width and height < box.height:
            image = image.resize((image.width, height), Image.Resampling.BILINEAR, (0, top, image.width, bottom))
            top, bottom = 0, height
        image = image.resize((width, height), Image.Resampling.BILINEAR, (left, top, right, bottom))
        if has_alpha:
            image = image.convert("RGBA")
        np.copyto(out, np.asarray(image).reshape(out.shape))


def image_of(pixels: np.ndarray, mode: str) -> Image.Image:
    """`pixels (h, w, C) uint8` as a Pillow image, which may share their memory."""
    height, width = pixels.shape[:2]
    return Image.frombuffer(mode, (width, height), np.ascontiguousarray(pixels), "raw", mode, 0, 1)
