"""Decoders: from a file's bytes to pixels `(h, w, C) uint8` in RGB order.

JPEG goes to libjpeg-turbo by simplejpeg, which scales while it decodes and writes into a buffer that is used again. Scaling
in the DCT domain averages, so it is antialiasing at no cost. All else, and what that strict decoder refuses, goes to Pillow,
which knows how to recover more. Only the formats of `FORMATS` are tried: Pillow has others, some of which run programs.

Measured on 500-pixel photographs to 224 x 224: scaling by powers of two and 3/8 only (`min_factor=2`) is faster than by 5/8
and 3/4 as well, whose transforms have no SIMD (November 2026, EPYC, libjpeg-turbo 3).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

Color = Literal["rgb", "gray", "rgba"]

N_CHANNELS: dict[Color, int] = {"rgb": 3, "gray": 1, "rgba": 4}
PILLOW_MODES: dict[Color, str] = {"rgb": "RGB", "gray": "L", "rgba": "RGBA"}
JPEG_SPACES: dict[Color, str] = {"rgb": "RGB", "gray": "GRAY", "rgba": "RGBA"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
ORIENTATION = 0x0112  # the EXIF tag

PILLOW_PIXEL_BYTES = 16  # of memory, at most, for each pixel: Pillow's image, its conversion, and the array (measured: 15)
PROGRESSIVE_PIXEL_BYTES = 6  # libjpeg keeps the coefficients of the whole image: 3 components, 2 bytes each
BASELINE_BYTES = 1 << 20  # libjpeg's own buffers, for an image that it decodes line by line

SOI, SOS, EOI, APP1 = 0xD8, 0xDA, 0xD9, 0xE1
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15, which say how the image is coded
BASELINE_FRAMES = {0xC0, 0xC1}


class Scratch:
    """Memory that is used again for each image. A pickled one arrives empty."""

    def __init__(self) -> None:
        self.file = bytearray()  # what a file is read into
        self._pixels = np.empty(0, np.uint8)

    def pixels(self, n_bytes: int, keep: bool) -> np.ndarray:
        """`(n,) uint8` with n >= n_bytes; kept for the next image if `keep`."""
        if n_bytes <= len(self._pixels):
            return self._pixels
        made = np.empty(n_bytes + n_bytes // 4 if keep else n_bytes, np.uint8)
        if keep:
            self._pixels = made
        return made

    def __reduce__(self) -> Any:
        return Scratch, ()


class Jpeg:
    """A JPEG file, by simplejpeg.

    Raises:
        ValueError: its header is not understood, or its colours are not those of a photograph (CMYK).
    """

    def __init__(self, data: memoryview, color: Color, scratch: Scratch) -> None:
        self._data, self._color, self._scratch = data, color, scratch
        self.height, self.width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("YCbCr", "RGB", "Gray", "GRAY"):
            raise ValueError(f"a JPEG file with the colours {space}")

    def orientation(self) -> int:
        """1..8, as EXIF says."""
        for marker, start, stop in segments(self._data):
            if marker == APP1 and bytes(self._data[start : start + 6]) == b"Exif\0\0":
                return orientation_of(lambda: _exif(bytes(self._data[start:stop])))  # noqa: B023  (called at once)
        return 1

    def needed_bytes(self, min_height: int, min_width: int, copies: int = 1) -> int:
        """What `decode` takes of memory, and copies of what it gives."""
        height, width, *_ = simplejpeg.decode_jpeg_header(self._data, min_height, min_width, 2)
        n_bytes = int(height * width * N_CHANNELS[self._color]) * copies + BASELINE_BYTES
        if is_progressive(self._data):
            n_bytes += self.height * self.width * PROGRESSIVE_PIXEL_BYTES
        return n_bytes

    def decode(self, min_height: int, min_width: int, keep: bool = True) -> np.ndarray:
        """The smallest the decoder gives that is not below these sizes: `(h, w, C)`, in scratch.

        Raises:
            ValueError: the file is damaged.
        """
        height, width, *_ = simplejpeg.decode_jpeg_header(self._data, min_height, min_width, 2)
        buffer = self._scratch.pixels(height * width * N_CHANNELS[self._color], keep)
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            self._data,
            JPEG_SPACES[self._color],
            min_height=min_height,
            min_width=min_width,
            min_factor=2,
            buffer=buffer,
        )
        return pixels


class Other:
    """Any file, by Pillow.

    Raises:
        ValueError: it is none of `FORMATS`.
    """

    def __init__(self, fd: int, color: Color) -> None:
        self._color = color
        os.lseek(fd, 0, os.SEEK_SET)
        file = open(fd, "rb", closefd=False)  # noqa: SIM115  (the descriptor is the caller's)
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the caller has a limit of its own
        try:
            self._image: Image.Image | None = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            first = os.pread(fd, 16, 0)
            raise ValueError(f"cannot identify image file: it begins with {first!r}; {', '.join(FORMATS)} are read") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
        self.width, self.height = self._image.size

    def needed_bytes(self, n_file_bytes: int) -> int:
        """What `decode` takes of memory."""
        return self.height * self.width * PILLOW_PIXEL_BYTES + n_file_bytes

    def decode(self, exif: bool) -> tuple[np.ndarray, int]:
        """Pixels `(h, w, C)` in memory of their own, and the orientation 1..8 that is still to be applied to them. Once.

        Raises:
            OSError, ValueError: the file is damaged, or its pixels have no range that is known.
        """
        image, self._image = self._image, None  # what it has loaded goes when this returns
        assert image is not None
        image.load()  # after which Pillow has turned TIFF upright, and has read what PNG has behind its pixels
        orientation = orientation_of(image.getexif) if exif else 1
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range is not known: convert the file to 8 or 16 bits")
        if image.mode.startswith("I"):
            image = _from_16_bits(image)  # 16 bits, or 32 of which 16 are used
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        mode = PILLOW_MODES[self._color]
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        return pixels.reshape(image.height, image.width, -1), orientation


def _from_16_bits(image: Image.Image) -> Image.Image:
    wide = np.asarray(image)
    if wide.min() < 0 or wide.max() > 0xFFFF or (image.mode == "I" and wide.max() <= 0xFF):
        raise ValueError(f"pixels not of 16 bits ({wide.min()} to {wide.max()}): convert the file to 8 or 16 bits")
    return Image.fromarray((wide >> 8).astype(np.uint8))


def orientation_of(read: Callable[[], Image.Exif]) -> int:
    """1..8, by the EXIF that `read` gives; 1 if there is none, or it cannot be read."""
    try:
        value = read().get(ORIENTATION)
    except Exception:  # SyntaxError, struct.error, ...: the metadata are damaged, the image need not be
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(data)
    return exif


def segments(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment of a JPEG file before its pixels (ISO 10918-1, annex B); stops at what it does
    not understand."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in (SOS, EOI):
            return
        length = data[position + 2] << 8 | data[position + 3]
        if length < 2:
            return
        yield marker, position + 4, min(position + 2 + length, len(data))
        position += 2 + length


def is_progressive(data: memoryview) -> bool:
    """Whether a JPEG file is decoded as a whole, not line by line; True where that cannot be told."""
    return next((marker not in BASELINE_FRAMES for marker, _, _ in segments(data) if marker in FRAMES), True)
