"""Images: from the bytes of a file to a row `(H, W, C)` of the ring, in two steps.

    decode      content -> decoder (scaled, if JPEG) -> part -> resample -> EXIF orientation -> mirror -> float32, if no
                transform follows
    augment     chooses part and mirroring, before decoding; then the transform, and float32

Decoding is deterministic: its pixels depend on the content and the choices alone. Where no transform follows, it writes into
the row. Most JPEG files are decoded, resampled and mirrored by one call of _jpeg.c, if that was built: see `jpeg`.

Memory: the header tells how much memory decoding takes, before any is allocated. An image that needs more than this worker's
scratch waits for its turn (`Worker.exclusive`), so that only one such image is decoded at a time. An image that needs more
than `Worker.max_bytes`, such as a decompression bomb, is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

import cv2
import numpy as np

from ringload.checks import flag, height_width, one_of
from ringload.errors import ConfigError
from ringload.fields import Field, Worker
from ringload.images import pillow
from ringload.images.augment import SCALE, Augmenter, Choices, Dtype
from ringload.images.formats import N_CHANNELS, Color, Scratch, Truncated, Wanted
from ringload.images.geometry import Box, Geometry, Resize
from ringload.images.heap import trim_heap
from ringload.images.jpeg import Jpeg
from ringload.images.opencv import warn_of_two
from ringload.images.output import Output
from ringload.images.pillow import PillowImage
from ringload.images.resample import INTERPOLATIONS, Interpolation, Resampler
from ringload.images.values import Values, of_channels, write

MAX_PIXELS = 89_478_485  # of an image, by default: Pillow's limit too, a quarter of a GB in RGB
FIXED_BYTES = 2 << 20  # memory that decoding the smallest image takes: libjpeg's buffers
JPEG_BEGIN = b"\xff\xd8\xff"


def worst_scratch_bytes(max_pixels: int | None) -> int:
    """The most memory that decoding an image of `max_pixels` takes."""
    return pillow.WORST_PIXEL_BYTES * (MAX_PIXELS if max_pixels is None else max_pixels) + FIXED_BYTES


def decoder_of(
    size: tuple[int, int],
    *,
    resize: Resize = "stretch",
    crop_area: tuple[float, float] = (0.08, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    color: Color = "rgb",
    dtype: Dtype = "uint8",
    scale: tuple[float, float] | None = SCALE,
    interpolation: Interpolation = "auto",
    flip: bool = False,
    exif: bool = False,
    transform: Any = None,
    max_pixels: int | None = None,
    background: int | tuple[int, int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    truncated: Truncated | None = None,
) -> ImageDecoder:
    """The decoder of these options of `ImageFrame`.

    Raises:
        ConfigError: an option is not valid.
    """
    warn_of_two()
    return ImageDecoder(
        Geometry(*height_width(size), resize, crop_area, crop_ratio),
        color=color,
        dtype=dtype,
        scale=scale,
        exif=flag("exif", exif),
        flip=flag("flip", flip),
        transform=transform,
        max_pixels=max_pixels,
        interpolation=interpolation,
        background=background,
        value_range=value_range,
        truncated=truncated,
    )


class ImageDecoder:
    """Decodes image files into rows of `field`.

    Arguments:
        geometry: size, and which part is shown. color: "rgb", "gray" or "rgba".
        dtype, scale: "uint8"; "float32", which maps 0..255 onto `scale`; "uint16", or "float32" with scale=None, which keep the
            values of files.
        exif: apply the EXIF orientation. flip: mirror half of the images, at random.
        transform: the user's own `transform(image (H, W, C) uint8, rng) -> image`, or an albumentations transform.
        max_pixels: larger images are refused. None: images that need more memory than the budget has for one are refused.
        interpolation, background, value_range, truncated: as in `ImageFrame`.

    Raises:
        ConfigError: an option is not valid.
    """

    def __init__(
        self,
        geometry: Geometry,
        color: Color = "rgb",
        dtype: Dtype = "uint8",
        scale: tuple[float, float] | None = SCALE,
        exif: bool = False,
        flip: bool = False,
        transform: Any = None,
        max_pixels: int | None = None,
        interpolation: Interpolation = "auto",
        background: int | tuple[int, int, int] | None = None,
        value_range: tuple[float, float] | None = None,
        truncated: Truncated | None = None,
    ) -> None:
        one_of("color", color, N_CHANNELS)
        if max_pixels is not None and max_pixels < geometry.height * geometry.width:
            raise ConfigError(
                f"max_pixels={max_pixels:,} is less than the size asked for, {geometry.height} x {geometry.width}"
            )
        one_of("interpolation", interpolation, INTERPOLATIONS)
        self.color, self.exif = color, exif
        self.guaranteed_pixels, self.max_pixels = max_pixels, MAX_PIXELS if max_pixels is None else max_pixels
        self.augmenter = Augmenter(geometry, N_CHANNELS[color], dtype, scale, flip, transform)
        self._wanted = Wanted.of(color, background, value_range, truncated, self.augmenter.keeps_values)
        self._resampler = Resampler(interpolation)
        self._scratch = Scratch()
        self._worker: Worker | None = None
        self._has_turn = False

    def copy_with(self, augmenter: Augmenter | None = None) -> ImageDecoder:
        """A decoder like this one with separate scratch, and with another augmenter if one is given."""
        copied = copy.copy(self)
        copied.augmenter = augmenter or self.augmenter
        copied._scratch, copied._worker, copied._resampler = Scratch(), None, Resampler(self._resampler.interpolation)
        return copied

    @property
    def field(self) -> Field:
        """The row of an image."""
        return self.augmenter.field

    def options(self) -> dict[str, Any]:
        """The options on which the pixels depend, but for the transform, as JSON can hold them."""
        one, wanted = self.augmenter, self._wanted
        return {
            "size": [one.geometry.height, one.geometry.width],
            "resize": one.geometry.resize,
            "color": wanted.color,
            "flip": one.flip,
            "exif": self.exif,
            "dtype": str(self.field.dtype),
            "interpolation": self._resampler.interpolation,
            "max_pixels": self.guaranteed_pixels,
            "background": list(wanted.background) if wanted.background else None,
            "value_range": list(wanted.value_range) if wanted.value_range else None,
            "truncated": wanted.truncated,
        }

    def start(self, worker: Worker) -> None:
        """Keep to the limits of this worker from now on."""
        self._worker = worker
        if worker.n_workers:
            # Workers run in parallel, so each uses one thread; in the trainer's process the setting is the user's. Not 1: that
            # joins the threads of OpenCV's pool, and a fork of a trainer that has used the pool does not have these threads.
            cv2.setNumThreads(0)

    def load(self, content: bytes | bytearray | memoryview, rng: np.random.Generator | None, row: np.ndarray) -> None:
        """Decode the content of a file, augment the image, and write it into `row`.

        Raises:
            OSError, ValueError, ...: the decoder refuses the file, for the reason in its text.
        """
        augmenter, data = self.augmenter, memoryview(content)
        choices = augmenter.choices(rng)
        if augmenter.transform is None:
            self.decode(data, choices, row, augmenter.levels)
            return
        image = augmenter.empty()  # a new one: the transform may keep it
        self.decode(data, choices, image)
        augmenter.finish(image, rng, row)

    def decode(self, data: memoryview, choices: Choices, out: np.ndarray, levels: np.ndarray | None = None) -> None:
        """Decode a content, and write the chosen part of the image into `out (H, W, C)`, of any size. With `levels
        (256,) float32`, `out` is float32, and gets the level of each byte."""
        self.check_content(len(data))
        keeps_values, is_jpeg = self._wanted.keeps_values, data[: len(JPEG_BEGIN)] == JPEG_BEGIN
        output = Output(np.empty(out.shape, np.uint8) if keeps_values else out, choices, levels)
        is_shown = is_jpeg and self._decode_jpeg(data, output)
        is_kept = not is_shown and self._decode_by_pillow(data, output, out if keeps_values and not is_jpeg else None)
        if keeps_values and not is_kept:
            np.copyto(out, output.array)  # a file of 8 bits

    def show(self, kept: np.ndarray, box: Box, choices: Choices, out: np.ndarray, levels: np.ndarray | None = None) -> None:
        """As `decode`, but of the part `box` of `kept (h, w, C)`, which a decoder with the same `options` has decoded."""
        output = Output(out, choices, levels)
        pixels = output.pixels()
        if box == (0, 0, *out.shape[:2]):
            np.copyto(pixels, kept)
        elif self._wanted.keeps_values:
            write(of_channels(kept), self.color, box, pixels, self._resampler)
        else:
            self._resampler.write(kept, box, pixels, self.color != "rgba")
        output.finish(pixels)

    def decoding(self) -> list[Any]:
        """All options that decoded pixels depend on, but geometry and augmentation: JSON can hold them."""
        return [*astuple(self._wanted), self.exif, self._resampler.interpolation]

    # -- memory -------------------------------------------------------------------------------------------------------

    @property
    def shared_bytes(self) -> int:
        """The size up to which a content may be read without `room_for`, while other workers read theirs."""
        most = pillow.WORST_PIXEL_BYTES * self.max_pixels
        return most if self._worker is None else min(most, self._worker.scratch_bytes, self._worker.max_bytes or most)

    @contextmanager
    def room_for(self, n_bytes: int) -> Iterator[None]:
        """While this is entered, there is memory for a content of `n_bytes` and for its image.

        Raises:
            ValueError: the budget never has that much.
        """
        self.check_content(n_bytes)
        with self._turn(n_bytes):
            yield

    def check_content(self, n_bytes: int) -> None:
        """Refuse a content by its size."""
        if n_bytes > pillow.WORST_PIXEL_BYTES * self.max_pixels:
            raise ValueError(f"a file of {n_bytes:,} bytes cannot be an image of at most {self.max_pixels:,} pixels")
        self._check_fits(n_bytes, "a file of {:,} bytes", n_bytes)

    def _check(self, height: int, width: int) -> None:
        if height * width > self.max_pixels:
            raise ValueError(f"{height:,} x {width:,} pixels: more than max_pixels={self.max_pixels:,}")

    def _check_fits(self, needed_bytes: int, what: str, *numbers: int) -> None:
        """Refuse an image that needs more memory than the plan has for one. Its file, the smaller part, does not count."""
        if self._worker is not None and self._worker.max_bytes is not None and needed_bytes > self._worker.max_bytes:
            raise ValueError(
                f"{what.format(*numbers)}: decoding takes up to {needed_bytes / 1e6:,.1f} MB of memory, and ram_budget "
                f"has {self._worker.max_bytes / 1e6:,.1f} MB for one image: raise ram_budget, or set max_pixels to the largest "
                "image, for which memory is then reserved"
            )

    def _is_large(self, needed_bytes: int) -> bool:
        return self._worker is not None and needed_bytes > self._worker.scratch_bytes

    @contextmanager
    def _turn(self, needed_bytes: int) -> Iterator[None]:
        """While this is entered, no other worker decodes a large image, if this one is large. Turns nest."""
        if self._worker is None or self._has_turn or not self._is_large(needed_bytes):
            yield
            return
        with self._worker.exclusive():
            self._has_turn = True
            try:
                yield
            finally:
                self._has_turn = False
                trim_heap()

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode_jpeg(self, data: memoryview, output: Output) -> bool:
        """Try the fast decoders. False: they cannot decode the file."""
        try:
            jpeg = Jpeg(data, self.color, self._scratch)
        except Exception:  # whatever it raises: Pillow, which is tried next, says what is wrong
            return False
        self._check(jpeg.height, jpeg.width)
        output.orientation = jpeg.orientation() if self.exif else 1
        box = output.box(jpeg.height, jpeg.width)
        height, width = output.stored_size
        eighths = jpeg.eighths(
            -(-height * jpeg.height // box.height),  # of the whole image, so that the box is large enough
            -(-width * jpeg.width // box.width),
            self._resampler.antialiases,
        )
        self._check_fits(jpeg.needed_bytes(eighths), "{:,} x {:,} pixels", jpeg.height, jpeg.width)
        needed_bytes = len(data) + jpeg.needed_bytes(eighths)
        with self._turn(needed_bytes):
            keep = not self._is_large(needed_bytes)
            part = jpeg.shown(box, eighths, self._resampler.antialiases)
            if jpeg.is_native and self._show_part(jpeg, eighths, part, output, keep):
                return True
            return self._show_whole(jpeg, eighths, part, output, keep)

    def _show_part(self, jpeg: Jpeg, eighths: int, part: Box, output: Output, keep: bool) -> bool:
        """Decode no more than `part`, by _jpeg.c. False: it refuses the file."""
        if not self._resampler.antialiases:
            part = part.rounded(*jpeg.size(eighths))
            decoded = jpeg.decode_part(eighths, part, keep)
            if decoded is not None:
                self._show(decoded, Box(0, 0, part.height, part.width), True, output)
            return decoded is not None
        if output.orientation == 1:
            return jpeg.write(eighths, part, output.array, output.choices.is_mirrored, output.levels)
        pixels = output.pixels()
        if not jpeg.write(eighths, part, pixels, False, None):
            return False
        output.finish(pixels)
        return True

    def _show_whole(self, jpeg: Jpeg, eighths: int, part: Box, output: Output, keep: bool) -> bool:
        """False: the file is damaged, and Pillow may recover it. The pixels are freed before the turn ends."""
        try:
            pixels = jpeg.decode(eighths, keep)
        except MemoryError:
            raise
        except Exception:
            return False
        self._show(pixels, part, True, output)
        return True

    def _decode_by_pillow(self, data: memoryview, output: Output, kept: np.ndarray | None = None) -> bool:
        """Write the image to the output. But an image of more than 8 bits is written into `kept (H, W, C)`, if that is given,
        with its own values. Returns whether it was."""
        with self._turn(2 * len(data)):  # a PNG file that Pillow refuses is copied in part
            image = PillowImage(data, self._wanted)
        self._check(image.height, image.width)
        self._check_fits(image.needed_bytes(), "{:,} x {:,} pixels", image.height, image.width)
        with self._turn(len(data) + image.needed_bytes()):
            if kept is not None and (values := image.decode_values(self.exif)) is not None:
                self._keep(values, Output(kept, output.choices))
                return True
            self._show_pillows(image, output)
        return False

    def _keep(self, values: Values, output: Output) -> None:
        output.orientation = values.orientation
        pixels = output.pixels()
        write(values, self.color, output.box(*values.array.shape[:2]), pixels, self._resampler)
        output.finish(pixels)

    def _show_pillows(self, image: PillowImage, output: Output) -> None:
        """The pixels are freed when this returns, before the turn ends."""
        pixels, output.orientation = image.decode(self.exif)
        self._show(pixels, output.box(*pixels.shape[:2]), False, output)

    def _show(self, decoded: np.ndarray, box: Box, is_opaque: bool, output: Output) -> None:
        """Write the part `box` of `decoded (h, w, C)`, which is as stored in the file, to the output."""
        choices, levels = output.choices, output.levels
        if output.orientation == 1 and self._resampler.write_row(
            decoded, box, output.array, is_opaque, choices.is_mirrored, levels
        ):
            return
        pixels = output.pixels()
        self._resampler.write(decoded, box, pixels, is_opaque)
        output.finish(pixels)
