"""Resampling: a part of decoded pixels `(h, w, C) uint8`, scaled to the size of `out (H, W, C) uint8`.

"antialias", the default, is what Pillow calls BILINEAR, torchvision and TensorFlow antialias=True: each output pixel is the
mean of the pixels below a triangle, which reaches max(1, factor) pixels to either side; rows and columns have separate
factors. cykooz-resizer computes it by SIMD; where it is not installed Pillow does, four times slower. Both round twice, in
different orders, so their pixels differ by 1 at most. The pixels of cykooz-resizer are the same to the bit without SIMD, with
SSE4.1 and with AVX2 (tests/test_resample.py), so they do not depend on the CPU.

The other filters are OpenCV's. None but "area" averages, so they alias where an image shrinks.

`python -m bench.resizing` measures what each filter costs after the decoder, and how close it comes to Pillow. Part of the
cost of "antialias" is copies, as cykooz-resizer takes and returns bytes. It could take Pillow images without copies, but then
it reads Pillow's private C structures, and would crash when they change.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from ringload.images.geometry import Box

try:  # here, so that the fork server imports it once, before it forks workers
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
    """The package that computes "antialias" in this installation."""
    return "pillow" if cykooz_resizer is None else "cykooz-resizer"


class Resampler:
    """Scales by one filter. It keeps its buffers for the next image; after unpickling it has none."""

    def __init__(self, interpolation: Interpolation) -> None:
        self.interpolation: Interpolation = interpolation
        self.antialiases = interpolation in ("auto", "antialias")
        self._triangle: _Simd | _Pillow | None = None

    def write(self, pixels: np.ndarray, box: Box, out: np.ndarray, is_opaque: bool = False) -> None:
        """Scale the part `box` of `pixels` to `out`. Unless `is_opaque`, colours are weighted by the fourth channel, alpha, so
        that colours of transparent pixels do not bleed into others."""
        if not self.antialiases:
            box = box.rounded(pixels.shape[0], pixels.shape[1])
        top, left = math.floor(box.top), math.floor(box.left)
        bottom, right = math.ceil(box.top + box.height), math.ceil(box.left + box.width)
        part = pixels[top:bottom, left:right]
        if part.shape == out.shape and (box.height, box.width) == out.shape[:2]:
            np.copyto(out, part)
            return
        inner = Box(box.top - top, box.left - left, box.height, box.width)
        has_alpha = out.shape[2] == 4 and not is_opaque
        if not self.antialiases:
            self._by_opencv(part, out, has_alpha)
            return
        if self._triangle is None:
            self._triangle = _Simd() if cykooz_resizer is not None else _Pillow()
        self._triangle.write(part, inner, out, has_alpha)

    def _by_opencv(self, part: np.ndarray, out: np.ndarray, has_alpha: bool) -> None:
        height, width = out.shape[:2]
        if self.interpolation == "fast":
            is_strong = max(part.shape[0] / height, part.shape[1] / width) >= AREA_FROM
            code = cv2.INTER_AREA if is_strong else cv2.INTER_LINEAR
        else:
            code = CODES[self.interpolation]
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
        width, height = min(box.width, source.width - box.left), min(box.height, source.height - box.top)  # rounding
        self._options.crop_box = cykooz_resizer.CropBox(box.left, box.top, width, height)
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
