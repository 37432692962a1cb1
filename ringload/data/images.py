"""Images: from an open file to a row `(H, W, C)` of the ring.

    file -> scratch -> decoder (scaled, if JPEG) -> EXIF orientation -> box -> resize into the row
                                                       flip, transform, or float32: resize into a canvas, then into the row

Memory: what decoding takes is known from the header, before any of it is allocated. What needs more than this producer's
scratch waits for its turn (`Producer.exclusive`), so that one such image at a time is decoded. Bombs are refused.
"""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import cv2
import numpy as np

from ringload.data.codecs import N_CHANNELS, PILLOW_PIXEL_BYTES, Color, Jpeg, Other, Scratch
from ringload.data.fields import Field, Producer, write_exactly
from ringload.data.files import read_whole
from ringload.data.geometry import Box, Geometry, orient
from ringload.errors import ConfigError

Dtype = Literal["uint8", "float32"]
Transform = Callable[[np.ndarray, np.random.Generator], Any]

MAX_PIXELS = 89_478_485  # of an image, by default: Pillow's limit too, a quarter of a GB in RGB
KEPT_FILE_BYTES = 4 << 20  # the buffer that files are read into grows to this; larger ones get memory of their own


def worst_scratch_bytes(max_pixels: int) -> int:
    """The most memory that decoding an image of `max_pixels` may take."""
    return PILLOW_PIXEL_BYTES * max_pixels


class ImageDecoder:
    """Decodes image files into rows of `field`.

    Arguments:
        geometry: size, and which part is shown. color: "rgb", "gray" or "rgba".
        dtype, scale: "uint8"; or "float32", which maps 0..255 onto `scale`.
        exif: apply the EXIF orientation. flip: mirror every other image, at random.
        transform: the user's own `transform(image (H, W, C) uint8, rng) -> image`, or an albumentations transform.
        max_pixels: larger images are refused.

    Raises:
        ConfigError: an option cannot be.
    """

    def __init__(
        self,
        geometry: Geometry,
        color: Color = "rgb",
        dtype: Dtype = "uint8",
        scale: tuple[float, float] = (-1.0, 1.0),
        exif: bool = False,
        flip: bool = False,
        transform: Any = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if color not in N_CHANNELS:
            raise ConfigError(f"color is 'rgb', 'gray' or 'rgba', not {color!r}")
        if dtype not in ("uint8", "float32"):
            raise ConfigError(f"dtype is 'uint8' or 'float32', not {dtype!r}")
        if max_pixels < geometry.height * geometry.width:
            raise ConfigError(
                f"max_pixels={max_pixels:,} is less than the size asked for, {geometry.height} x {geometry.width}"
            )
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform is a function transform(image, rng) -> image, not {transform!r}")
        self.geometry, self.color, self.exif, self.flip, self.max_pixels = geometry, color, exif, flip, max_pixels
        self.field = Field((geometry.height, geometry.width, N_CHANNELS[color]), dtype)
        self.transform: Transform | None = _seeded(transform) if _is_albumentations(transform) else transform
        self._levels = None if dtype == "uint8" else np.linspace(*scale, 256, dtype=np.float32)
        self._direct = self._levels is None and not flip and transform is None  # resized straight into the row
        self._scratch = Scratch()
        self._producer: Producer | None = None
        self._has_turn = False

    def twin(self) -> ImageDecoder:
        """A decoder like this one, with scratch of its own."""
        other = copy.copy(self)
        other._scratch, other._producer = Scratch(), None
        return other

    @property
    def draws(self) -> bool:
        """Whether what comes out depends on the generator."""
        return self.flip or self.transform is not None or self.geometry.resize == "random_crop"

    def start(self, producer: Producer) -> None:
        """From now on keep to what this producer may use."""
        self._producer = producer
        if producer.n_producers:
            cv2.setNumThreads(1)  # producers run beside each other; in the trainer's own process the setting is the user's

    def load(self, fd: int, n_bytes: int, rng: np.random.Generator | None, row: np.ndarray) -> None:
        """Decode the file `fd` of `n_bytes` into `row`.

        Raises:
            OSError, ValueError, ...: in the words of the decoder that refuses it.
        """
        if n_bytes > worst_scratch_bytes(self.max_pixels):
            raise ValueError(f"a file of {n_bytes:,} bytes cannot be an image of at most {self.max_pixels:,} pixels")
        with self._turn(n_bytes):
            is_done = os.pread(fd, 3, 0) == b"\xff\xd8\xff" and self._load_jpeg(self._read(fd, n_bytes), rng, row)
        if not is_done:
            self._load_other(fd, n_bytes, rng, row)

    def _read(self, fd: int, n_bytes: int) -> memoryview:
        if len(self._scratch.file) < min(n_bytes, KEPT_FILE_BYTES):
            self._scratch.file = bytearray(min(n_bytes + n_bytes // 4, KEPT_FILE_BYTES))
        return read_whole(fd, n_bytes, self._scratch.file)

    def _load_jpeg(self, data: memoryview, rng: np.random.Generator | None, row: np.ndarray) -> bool:
        """Try the fast decoder. False: it is not one for it, and nothing was drawn from `rng`."""
        try:
            jpeg = Jpeg(data, self.color, self._scratch)
        except ValueError:
            return False
        self._check(jpeg.height, jpeg.width)
        orientation = jpeg.orientation() if self.exif else 1
        state = rng.bit_generator.state if rng is not None and self.draws else None
        height, width = upright(jpeg.height, jpeg.width, orientation)
        box = self.geometry.box(height, width, rng)
        min_height = -(-self.geometry.height * height // box.height)  # of the whole image, for the box to be large enough
        min_width = -(-self.geometry.width * width // box.width)
        sizes = upright(min(min_height, height), min(min_width, width), orientation)
        needed_bytes = len(data) + jpeg.needed_bytes(*sizes, copies=1 if orientation == 1 else 2)
        with self._turn(needed_bytes):
            is_shown = self._show_jpeg(jpeg, sizes, orientation, box, rng, row, not self._is_large(needed_bytes))
        if not is_shown and rng is not None and state is not None:
            rng.bit_generator.state = state
        return is_shown

    def _show_jpeg(
        self, jpeg: Jpeg, sizes: tuple[int, int], orientation: int, box: Box, rng: Any, row: np.ndarray, keep: bool
    ) -> bool:
        """False: it is damaged, and Pillow may recover it. The pixels are gone when this returns, before the turn ends."""
        try:
            pixels = jpeg.decode(*sizes, keep=keep)
        except ValueError:
            return False
        height, width = upright(jpeg.height, jpeg.width, orientation)
        self._show(box.part_of(pixels if orientation == 1 else orient(pixels, orientation), height, width), rng, row)
        return True

    def _load_other(self, fd: int, n_bytes: int, rng: np.random.Generator | None, row: np.ndarray) -> None:
        image = Other(fd, self.color)
        self._check(image.height, image.width)
        with self._turn(image.needed_bytes(n_bytes)):
            self._show_other(image, rng, row)

    def _show_other(self, image: Other, rng: np.random.Generator | None, row: np.ndarray) -> None:
        """The pixels are gone when this returns, before the turn ends."""
        pixels, orientation = image.decode(self.exif)
        if orientation != 1:
            pixels = orient(pixels, orientation)
        height, width = pixels.shape[:2]
        self._show(self.geometry.box(height, width, rng).part_of(pixels, height, width), rng, row)

    def _check(self, height: int, width: int) -> None:
        if height * width > self.max_pixels:
            raise ValueError(f"{height:,} x {width:,} pixels: more than max_pixels={self.max_pixels:,}")

    def _is_large(self, needed_bytes: int) -> bool:
        return self._producer is not None and needed_bytes > self._producer.scratch_bytes

    @contextmanager
    def _turn(self, needed_bytes: int) -> Iterator[None]:
        """For what needs so much memory, one producer at a time. Inside of another, it is the same turn."""
        if self._producer is None or self._has_turn or not self._is_large(needed_bytes):
            yield
            return
        with self._producer.exclusive():
            self._has_turn = True
            try:
                yield
            finally:
                self._has_turn = False
                give_back()

    def _show(self, pixels: np.ndarray, rng: np.random.Generator | None, row: np.ndarray) -> None:
        """Bring the part `pixels (h, w, C)` into `row (H, W, C)`."""
        if self._direct:
            self.geometry.write(pixels, row)
            return
        canvas: Any = np.empty(self.field.shape, np.uint8)  # a new one: the user's transform may keep it
        self.geometry.write(pixels, canvas)
        if self.flip and rng is not None and rng.random() < 0.5:
            canvas = np.ascontiguousarray(canvas[:, ::-1])
        if self.transform is not None and rng is not None:
            canvas = self._checked(self.transform(canvas, rng))
        if self._levels is not None and canvas.dtype == np.uint8:
            height, width, n_channels = row.shape
            flat = (height, width * n_channels)
            cv2.LUT(np.ascontiguousarray(canvas).reshape(flat), self._levels, dst=row.reshape(flat))
        else:
            write_exactly(row, canvas, "image")

    def _checked(self, image: Any) -> np.ndarray:
        if isinstance(image, np.ndarray) and image.shape == self.field.shape:
            return image
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        also = " or float32" if self._levels is not None else ""
        raise ValueError(f"transform returned {got}; it has to return an array {self.field.shape} uint8{also}")


def give_back() -> None:
    """Have glibc return what was freed. By itself it keeps up to 64 MB of that, more the more was freed at once (measured: 35
    MB after a progressive JPEG of 12 megapixels, for good; after a PNG or a baseline JPEG of any size, at most 2)."""
    with suppress(AttributeError):  # musl keeps nothing
        ctypes.CDLL(None).malloc_trim(0)


def upright(height: int, width: int, orientation: int) -> tuple[int, int]:
    """The size of an image after, and so also before, its EXIF orientation is applied."""
    return (width, height) if orientation >= 5 else (height, width)


def _is_albumentations(transform: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == "albumentations" for kind in type(transform).__mro__)


class _seeded:  # noqa: N801  (used like a function: the transform, with albumentations' own way of calling and seeding)
    def __init__(self, transform: Any) -> None:
        self._transform = transform

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> Any:
        self._transform.set_random_seed(int(rng.integers(1 << 31)))
        return self._transform(image=image)["image"]
