"""Images by Pillow: every format, and JPEG files that the fast decoder refuses.

Each file goes to the one Pillow plugin that its first bytes name: Pillow has other plugins, some of which run programs. Pixels
that Pillow reads wrongly (of more than 8 bits, bit fields, transparent values) are read by `high_depth`, `bmp` and `png`, and
formats that it does not have by `OTHERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from ringload.images import bmp, dicom, heif, high_depth, jpeg2000, jpegxl, npy, png, qoi, tiff
from ringload.images.captured_output import Printed, noted
from ringload.images.colors import converted, plain_converted
from ringload.images.formats import FORMATS, HEAD_BYTES, Wanted, format_of, orientation_of, refusal
from ringload.images.geometry import INVERSE
from ringload.images.plain import decode_plain
from ringload.images.plugins import open_by_plugin
from ringload.images.resample import image_of
from ringload.images.truncated import truncated
from ringload.images.values import Opened, Values, opened

# The most memory a pixel: the decoder's image, its conversion, and the array. Measured on 12 megapixels of 25 kinds, with the
# file: lossless WebP 18.6, all others of 8 bits up to 16.0 (uncompressed RGBA); without the file: RGBA TIFF of 16 bits 17.0,
# RGB of 32-bit floats 24.2.
PIXEL_BYTES = 16
WEBP_PIXEL_BYTES = 20
WIDE_PIXEL_BYTES = 8  # added to values of more than 8 bits, and to a strip or tile: the results
WORST_PIXEL_BYTES = 24  # of the usual kinds: RGBA of 16 bits in one strip
PNM_PIXEL_BYTES = 12
KEPT_PIXEL_BYTES = 8  # added where values are kept: gray, and a channel of float32 and its copy in Pillow
OTHERS = {  # format -> what opens it
    "PFM": high_depth.open_pfm,
    "HEIC": heif.open_heif,
    "JPEG XL": jpegxl.open_jpegxl,
    "QOI": qoi.open_qoi,
    ".npy": npy.open_npy,
    "DICOM": dicom.open_dicom,
}


class Decoded(NamedTuple):
    """An image, the orientation that the file gives it, and whether it has been turned accordingly."""

    image: Image.Image
    orientation: int
    is_turned: bool = False


class PillowImage:
    """An image of any format.

    Raises:
        ValueError: it is none of `FORMATS`, or its header is not valid.
    """

    def __init__(self, data: memoryview, wanted: Wanted) -> None:
        self._data, self._wanted = data, wanted
        self._head = bytes(data[:HEAD_BYTES])
        self.format = format_of(self._head)
        if not self.format:
            raise ValueError(f"cannot identify image file: it begins with {self._head[:16]!r}; supported: {', '.join(FORMATS)}")
        self._pixel_bytes, self._more_bytes = WEBP_PIXEL_BYTES if self.format == "WebP" else PIXEL_BYTES, 0
        self._file: Any = None  # Pillow's open file
        self._opened = data  # what it reads
        self._read: Callable[[], Values] | None = None  # reads values of more than 8 bits, if these are not Pillow's
        # not a bound method: a reference cycle would keep the pixels until gc
        self._decode: Callable[[PillowImage], Decoded] = PillowImage._by_pillow
        with self._refusing():
            self.height, self.width = OPENERS.get(self.format, PillowImage._open_by_pillow)(self)
        self._pixel_bytes += KEPT_PIXEL_BYTES if wanted.keeps_values else 0

    def needed_bytes(self) -> int:
        """Memory that `decode` takes in addition to the file."""
        return self.height * self.width * self._pixel_bytes + self._more_bytes

    def decode(self, exif: bool) -> tuple[np.ndarray, int]:
        """Newly allocated pixels `(h, w, C)`, and the orientation 1..8 that is still to be applied to them. May be called once.

        Raises:
            ValueError: the file is damaged, or its kind is not supported; with the decoder's text.
            OSError, MemoryError: an error of the system, not of the file.
        """
        with self._refusing(), truncated(self._wanted.truncated):
            if (plain := self._decode_plain(exif)) is not None:
                return plain
            *images, orientation, is_turned = self._decode(self)
            self._file = None
            pixels = converted(images, self._wanted)
        if is_turned:
            return pixels, 1 if exif else INVERSE.get(orientation, orientation)
        return pixels, orientation if exif else 1

    def decode_values(self, exif: bool) -> Values | None:
        """As `decode`, but the values as the file has them; None if they are of 8 bits: `decode` gives these. May be called
        once."""
        if (read := self._read) is None:
            return None
        with self._refusing():
            values = read()
        self._file = self._read = None
        if values.array.dtype == np.uint8 and values.n_bits == 8 and not values.is_inverted:
            self._decode = lambda file: _shown(values, file._wanted)
            return None
        return values if exif else values._replace(orientation=1)

    def _decode_plain(self, exif: bool) -> tuple[np.ndarray, int] | None:
        """As `decode`; None if the file is not of a plain kind, or damaged."""
        file = self._file
        if file is None or (self.format == "TIFF" and orientation_of(file) != 1):  # Pillow turns TIFF before it is scaled
            return None
        if (pixels := decode_plain(file, self._opened, self.format)) is None:
            return None
        self._file = None
        header = Image.new("1", (1, 1)) if self.format == "PNG" else file
        header.info = file.info  # PngImageFile would load the pixels to look for EXIF after them
        return plain_converted(pixels, file.mode, self._wanted), orientation_of(header) if exif else 1

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        printed = Printed()
        try:
            with noted(printed, is_tiff=self.format == "TIFF"):
                yield
        except Exception as error:
            raise refusal(self.format, error, str(printed)) from error

    # -- Pillow -----------------------------------------------------------------------------------------------------------

    def _open_by_pillow(self, data: memoryview | None = None) -> tuple[int, int]:
        """Open the content, or `data` in its place; (height, width)."""
        self._opened = self._data if data is None else data
        self._file = open_by_plugin(self.format, self._opened)
        width, height = self._file.size
        return height, width

    def _by_pillow(self) -> Decoded:
        if self.format == "TIFF":  # Pillow turns the image when it loads it, so the orientation is read before
            orientation = orientation_of(self._file)
            self._file.load()
            return Decoded(self._file, orientation, is_turned=True)
        self._file.load()
        orientation = orientation_of(self._file)
        if self.format in ("WebP", "AVIF"):  # these keep a second copy of the pixels, and their decoder a third
            self._file.fp = None
            vars(self._file).pop("_decoder", None)
        return Decoded(self._file, orientation)

    # -- PNG --------------------------------------------------------------------------------------------------------------

    def _open_png(self) -> tuple[int, int]:
        self._decode = PillowImage._png
        header = png.read_png(self._head)
        if header is not None and header.bits == 16:
            self._pixel_bytes += WIDE_PIXEL_BYTES
            data = self._data
            self._read = lambda: high_depth.png_values(data, header.color)
        try:
            return self._open_by_pillow()
        except MemoryError:
            raise
        except Exception:
            if (size := self._open_pixels_of_png()) is None:
                raise
            return size

    def _open_pixels_of_png(self) -> tuple[int, int] | None:
        """Open only the chunks of pixels, as Pillow refused the file. None: Pillow refuses these, too."""
        with suppress(Exception):
            return self._open_by_pillow(memoryview(png.only_pixels(self._data)))
        return None

    def _png(self) -> Decoded:
        transparent = self._file.info.get("transparency")
        header = png.read_png(self._head)
        is_for_opencv = header is not None and header.bits == 16 and (self._wanted.value_range or transparent is not None)
        try:
            with truncated("refuse" if is_for_opencv else None):  # OpenCV does not pad
                self._file.load()
        except MemoryError:
            raise
        except Exception:
            if not self._load_pixels_of_png():
                raise
        image, orientation = self._file, orientation_of(self._file)
        if transparent is None:  # a tRNS chunk after the pixels is not valid
            image.info.pop("transparency", None)
        if header is None or header.color == png.PALETTE:
            return Decoded(image, orientation)
        if header.bits == 16:
            return Decoded(self._png_of_16_bits(image, header.color), orientation)
        return Decoded(png.with_transparency(image, header.bits) if self._wanted.alpha_counts else image, orientation)

    def _load_pixels_of_png(self) -> bool:
        with suppress(Exception):
            if self._open_pixels_of_png() is not None:
                self._file.load()
                return True
        return False

    def _png_of_16_bits(self, image: Image.Image, color: int) -> Image.Image:
        transparent = image.info.get("transparency") if self._wanted.alpha_counts else None
        if color == png.GRAY:
            values = np.asarray(image)[:, :, np.newaxis].astype(np.uint16, copy=False)
            gray = high_depth.image_of_values(high_depth.to_8_bits(values, 16, self._wanted))
            if transparent is not None:
                gray.putalpha(image_of((values != transparent).astype(np.uint8) * np.uint8(255), "L"))
            return gray
        if self._wanted.value_range is None and transparent is None:
            return image  # Pillow has taken the upper 8 bits
        self._file = None
        values = high_depth.png_values(self._data, color).array
        pixels = high_depth.to_8_bits(values, 16, self._wanted)
        if values.shape[2] == 4:
            pixels[:, :, 3] = values[:, :, 3] >> 8  # value_range is not for alpha
        return high_depth.image_of_values(pixels[:, :, [0, 3]] if color == png.GRAY_ALPHA else pixels)

    # -- TIFF, BMP, PNM ---------------------------------------------------------------------------------------------------

    def _open_tiff(self) -> tuple[int, int]:
        header = tiff.read_tiff(self._data)
        self._more_bytes = header.block_bytes
        is_plain = header.photometric in tiff.PLAIN
        is_never_right = header.photometric in tiff.NOT_SUPPORTED or (header.is_planar and header.n_samples > 1)
        if header.is_wide and (is_plain or is_never_right) and not high_depth.pillow_reads(header, self._wanted):
            return self._open_wide_tiff(header)
        if header.is_wide and self._wanted.keeps_values:
            raise ValueError(f"{header.description} are not supported but with dtype='uint8'")
        try:
            return self._open_by_pillow()
        except SyntaxError as error:
            if is_plain:
                return self._open_wide_tiff(header)
            if "pixel mode" in str(error):
                raise ValueError(f"{header.description} are not supported") from None
            raise

    def _open_wide_tiff(self, header: tiff.Tiff) -> tuple[int, int]:
        pixel_bytes = header.n_samples * header.value_bytes + WIDE_PIXEL_BYTES
        more_bytes = header.block_bytes + (len(self._data) if header.is_turned else 0)  # OpenCV gets a copy
        data, wanted = self._data, self._wanted
        read = partial(high_depth.tiff_values, data, header, wanted)
        return self._use(opened(header.height, header.width, pixel_bytes, read, more_bytes))

    def _open_bmp(self) -> tuple[int, int]:
        header = bmp.read_bmp(self._head)
        if header is None:
            return self._open_by_pillow()

        def decode(file: PillowImage) -> Decoded:
            return Decoded(bmp.decode_bmp(file._data, header, bool(ImageFile.LOAD_TRUNCATED_IMAGES)), 1)

        self._decode = decode
        return header.height, header.width

    def _open_pnm(self) -> tuple[int, int]:
        width, height, white = high_depth.pnm_header(self._head)
        if white <= 255:
            return self._open_by_pillow()
        read = partial(high_depth.pnm_values, self._data, white)
        more_bytes = len(self._data)  # a copy with a newline
        return self._use(opened(height, width, PNM_PIXEL_BYTES + WIDE_PIXEL_BYTES, read, more_bytes))

    # -- other formats ----------------------------------------------------------------------------------------------------

    def _use(self, file: Opened) -> tuple[int, int]:
        """Decode by `file`; (height, width)."""
        self._pixel_bytes, self._more_bytes, self._read = file.pixel_bytes, file.more_bytes, file.read
        self._decode = lambda image: _shown(file.read(), image._wanted)
        return file.height, file.width

    def _open_other(self) -> tuple[int, int]:
        return self._use(OTHERS[self.format](self._data))

    def _open_jpeg2000(self) -> tuple[int, int]:
        header = jpeg2000.read_jpeg2000(self._data)
        if header.is_wide:
            return self._use(jpeg2000.open_wide(self._data, header))
        self._pixel_bytes = header.pixel_bytes
        return self._open_by_pillow()


def _shown(values: Values, wanted: Wanted) -> Decoded:
    return Decoded(high_depth.shown(values, wanted), values.orientation)


OPENERS: dict[str, Callable[[PillowImage], tuple[int, int]]] = {
    "PNG": PillowImage._open_png,
    "TIFF": PillowImage._open_tiff,
    "BMP": PillowImage._open_bmp,
    "PNM": PillowImage._open_pnm,
    "JPEG 2000": PillowImage._open_jpeg2000,
    **dict.fromkeys(OTHERS, PillowImage._open_other),
}
