"""JPEG by libjpeg-turbo, which scales while it decodes: in two ways, which give the same pixels to the bit.

    _jpeg.c       built where the headers of libjpeg-turbo are found: decodes only the part that is shown, and writes the row
    simplejpeg    decodes the whole image into a buffer that is used again; for what _jpeg.c was not built for, or refuses

Scaling by n/8 in the DCT domain averages over blocks of 8/n pixels. The result is smaller by exactly that factor, so the last
pixel of a side may cover fewer pixels of the file than the others. Only 1/8, 1/4, 3/8 and 1/2 are used: the transforms of 5/8
and more have no SIMD, and take longer than decoding the whole image (November 2026, EPYC, libjpeg-turbo 3).

`GAPS` says how many times larger than the target the decoded image must be, so that "antialias", which scales it the rest of
the way, comes close to Pillow's BILINEAR of the whole image. The table has the PSNR in dB to that result, median (worst) of the
10 photographs of scikit-image and scikit-learn, two parts of each, quality 92, for each scale and each such factor; then the
milliseconds of decoding and resampling to 224 x 224 from a file that is 3, 4, 6 and 12 times larger:

            1.3          1.4          1.5          1.6          1.9          2.25          3x    4x    6x     12x
    1/2     44.5 (38.1)  45.7 (39.4)  44.8 (39.9)  47.1 (41.7)  48.3 (44.0)  50.7 (46.8)   2.63  3.99  8.2    29.5
    3/8     45.6 (40.7)  47.2 (42.5)  47.2 (42.6)  48.3 (44.8)  49.2 (46.1)  51.5 (49.4)   2.58  4.22  8.2    29.8
    1/4     42.8 (39.0)  44.3 (40.1)  44.8 (41.0)  45.4 (41.7)  46.9 (43.4)  49.3 (45.8)         3.03  6.5    21.6
    1/8     40.7 (37.0)  42.1 (37.5)  42.7 (38.3)  43.8 (40.2)  45.6 (41.3)  50.2 (49.0)                      17.0
    whole   99                                                                             4.02  6.92  14.5   72.8

Photographs of 59 cameras, which are less sharp, come 2 to 5 dB closer at each factor (1.4: 50.5, 51.2, 47.8, 45.9).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from ringload.images.formats import N_CHANNELS, Color, Scratch, orientation_of
from ringload.images.geometry import Box

try:  # here, so that the fork server imports it once, before it forks workers
    from ringload.images import _jpeg

    native: Any = _jpeg
except ImportError:  # it was not built, or the library of libjpeg-turbo is not there any more
    native = None

SPACES: dict[Color, str] = {"rgb": "RGB", "gray": "GRAY", "rgba": "RGBA"}
GAPS = {1: 1.9, 2: 1.6, 3: 1.6, 4: 1.6}  # eighths -> how many times larger than the target
MIN_SIDE = 16  # of an image that is scaled: smaller ones can have one size at two scales

COEFFICIENT_BYTES = 6  # a pixel, where libjpeg keeps all coefficients: 3 components, 2 bytes each
BASELINE_BYTES = 1 << 20  # libjpeg's own buffers, for an image that it decodes line by line
COPIES = 3  # of the decoded pixels at once: in scratch, and two while they are resampled

SOS, EOI, APP1 = 0xDA, 0xD9, 0xE1
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15, which say how the image is coded
BASELINE_FRAMES = {0xC0, 0xC1}
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


class Jpeg:
    """A JPEG file. `is_native`: _jpeg.c has read its header, and may decode it.

    Raises:
        Exception: its header is not understood, or its colours are not those of a photograph (CMYK). simplejpeg raises
            ValueError, and KeyError for a chroma subsampling that it does not know.
    """

    def __init__(self, data: memoryview, color: Color, scratch: Scratch) -> None:
        self._data, self._color, self._scratch = data, color, scratch
        self.is_native = False
        if native is not None:
            with suppress(ValueError):  # simplejpeg, which is tried next, may understand it
                self.height, self.width, self._is_held_whole = native.header(data)
                self.is_native = True
                return
        self.height, self.width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("YCbCr", "RGB", "Gray", "GRAY"):
            raise ValueError(f"a JPEG file with the colours {space}")
        self._is_held_whole = is_held_whole(data)

    def orientation(self) -> int:
        """The orientation 1..8 by EXIF, or else by XMP, as Pillow reads it."""
        exif, xmp = b"", b""
        for marker, start, stop in segments(self._data):
            if marker == APP1 and self._data[start : start + len(EXIF)] == EXIF:
                exif += bytes(self._data[start + (len(EXIF) if exif else 0) : stop])
            elif marker == APP1 and self._data[start : start + len(XMP)] == XMP:
                xmp = bytes(self._data[start + len(XMP) : stop])
        if not exif and not xmp:
            return 1
        image = Image.new("1", (1, 1))
        image.info.update({"exif": exif} if exif else {}, xmp=xmp)
        return orientation_of(image)

    def eighths(self, min_height: float, min_width: float, has_gap: bool) -> int:
        """The least scale, in eighths, at which both sides are as large as these; with `has_gap`, larger by `GAPS`."""
        for n, gap in GAPS.items() if min(self.height, self.width) >= MIN_SIDE else ():
            height, width = self.size(n)
            if not has_gap:
                gap = 1
            if height >= gap * min_height and width >= gap * min_width:
                return n
        return 8

    def size(self, eighths: int) -> tuple[int, int]:
        """(height, width) of what `decode` gives at this scale."""
        return -(-self.height * eighths // 8), -(-self.width * eighths // 8)

    def shown(self, box: Box, eighths: int, is_exact: bool) -> Box:
        """The part `box` of the image at this scale. If `is_exact`, in fractions of a pixel; else as if the last pixels covered
        as many pixels of the file as the others, so that the whole image has whole pixels."""
        height, width = self.size(eighths)
        if is_exact:
            return box.scaled(eighths / 8, eighths / 8)
        return box.scaled(height / self.height, width / self.width)

    def needed_bytes(self, eighths: int) -> int:
        """Memory that `decode` takes, and resampling after it."""
        height, width = self.size(eighths)
        n_bytes = height * width * N_CHANNELS[self._color] * COPIES + BASELINE_BYTES
        if self._is_held_whole:
            n_bytes += self.height * self.width * COEFFICIENT_BYTES
        return n_bytes

    def write(self, eighths: int, part: Box, out: np.ndarray, is_mirrored: bool, levels: np.ndarray | None) -> bool:
        """Scale the part `part` of the image at this scale to `out (H, W, C)`, as "antialias" does, by _jpeg.c. `out` is uint8;
        or float32, and gets the level, of `levels (256,) float32`, of each byte. False: `decode` may know more."""
        try:
            native.decode(self._data, eighths, part, out, is_mirrored, levels)
        except ValueError:
            return False
        return True

    def decode_part(self, eighths: int, part: Box, keep: bool = True) -> np.ndarray | None:
        """A part, in whole pixels, of the image at this scale, by _jpeg.c: `(h, w, C)`, in scratch. None: as `write`."""
        shape = int(part.height), int(part.width), N_CHANNELS[self._color]
        n_bytes = math.prod(shape)
        pixels = self._scratch.pixels(n_bytes, keep)[:n_bytes].reshape(shape)
        return pixels if self.write(eighths, part, pixels, False, None) else None

    def decode(self, eighths: int, keep: bool = True) -> np.ndarray:
        """The image at this scale, by simplejpeg: `(h, w, C)`, in scratch.

        Raises:
            Exception: the file is damaged.
        """
        height, width = self.size(eighths)
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            self._data,
            SPACES[self._color],
            min_height=height,
            min_width=width,
            min_factor=2,
            buffer=self._scratch.pixels(height * width * N_CHANNELS[self._color], keep),
        )
        if pixels.shape[:2] != (height, width):
            raise ValueError(f"decoded to {pixels.shape[:2]}, not to {height, width}")
        return pixels


def segments(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment of a JPEG file up to the first SOS, included (ISO 10918-1, annex B). Stops at
    bytes that are no segment."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        length = data[position + 2] << 8 | data[position + 3]
        if marker == EOI or length < 2:
            return
        yield marker, position + 4, min(position + 2 + length, len(data))
        if marker == SOS:
            return
        position += 2 + length


def is_held_whole(data: memoryview) -> bool:
    """Whether a JPEG file is decoded as a whole, not line by line: it is progressive, or its components are in separate
    scans. True if that is not known."""
    n_components = 0
    for marker, start, stop in segments(data):
        if marker in FRAMES:
            if marker not in BASELINE_FRAMES or start + 5 >= stop:
                return True
            n_components = data[start + 5]
        elif marker == SOS:
            return not n_components or start >= stop or data[start] < n_components
    return True
