"""Pixels of more than 8 bits: read as stored, and mapped to 0..255 by their kind, never by their content.

    integers of n bits      0..2**n - 1 by their upper 8 bits: v >> (n - 8)
    PNM                     0..the maximum in its header
    floating point          0..1; a file with other values is refused
    signed integers         refused
    with value_range=       from black to white, clipped, whatever the kind

With `dtype="uint16"` and `scale=None` they are not mapped: `values.write` takes what the `*_values` functions return.

A file of 16 bits does not say that its integers have 10 to 14 bits only: without `value_range` such images are dark.
"""

from __future__ import annotations

import io
import re
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image

from ringload.images import png, tiff
from ringload.images.captured_output import silent_opencv
from ringload.images.formats import HEAD_BYTES, Wanted
from ringload.images.resample import image_of
from ringload.images.tiff import Tiff
from ringload.images.values import BAND, Opened, Values, of_channels, opened

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
SIGNED = "signed integers, whose values of black and white are not known: set value_range=(black, white)"
TIFFFILE = "reading them needs tifffile, and some of them imagecodecs: pip install tifffile imagecodecs"


def to_8_bits(values: np.ndarray, n_bits: int, wanted: Wanted, is_inverted: bool = False) -> np.ndarray:
    """Map `values (h, w, C)` to uint8. `n_bits`: of integers; `is_inverted`: 0 is white.

    Raises:
        ValueError: the range of the values is not known, or not as expected.
    """
    if wanted.value_range is not None:
        return _mapped(values, *wanted.value_range)
    if values.dtype.kind == "f":
        black, white = _range_of(values)
        if not (black >= 0 and white <= 1):  # NaN is in neither
            raise ValueError(
                f"floating-point pixels from {black:g} to {white:g}, not from 0 (black) to 1 (white): set "
                "value_range=(black, white)"
            )
        return _mapped(values, *((1.0, 0.0) if is_inverted else (0.0, 1.0)))
    if values.dtype.kind == "i":
        raise ValueError(SIGNED)
    made = np.empty(values.shape, np.uint8)
    for band, out in _bands(values, made):
        out[...] = band >> (n_bits - 8) if n_bits >= 8 else band * np.uint8(255 // (2**n_bits - 1))
    return ~made if is_inverted else made


def _mapped(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Map linearly, `black` to 0 and `white` to 255; rounded and clipped."""
    made = np.empty(values.shape, np.uint8)
    for band, out in _bands(values, made):
        scaled = (band.astype(np.float64) - black) * (255 / (white - black))
        if np.isnan(scaled).any():
            raise ValueError("floating-point pixels, some of which are NaN")
        out[...] = np.rint(scaled.clip(0, 255))
    return made


def _range_of(values: np.ndarray) -> tuple[float, float]:
    ranges = [(float(band.min()), float(band.max())) for band, _ in _bands(values, values)]
    least, most = np.array(ranges).T
    return float(least.min()), float(most.max())


def _bands(values: np.ndarray, made: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    step = max(1, BAND // max(1, values[0].size))
    return [(values[start : start + step], made[start : start + step]) for start in range(0, len(values), step)]


def image_of_values(pixels: np.ndarray) -> Image.Image:
    """`(h, w, C) uint8` as a Pillow image: gray, gray and alpha, RGB, or RGBA."""
    if pixels.shape[2] == 2:
        return Image.merge("LA", [image_of(pixels[:, :, n], "L") for n in (0, 1)])
    return image_of(pixels, MODES[pixels.shape[2]])


def shown(values: Values, wanted: Wanted) -> Image.Image:
    """`values`, as they are stored, in 8 bits.

    Raises:
        ValueError: their range is not known, or not as expected.
    """
    array, n_colors = values.array, values.n_colors
    colors = array[:, :, :n_colors] if array.shape[2] > n_colors else array
    if array.dtype == np.uint8 and values.n_bits <= 8:
        wanted = replace(wanted, value_range=None)  # it is for files of more bits
    elif values.white is not None and wanted.value_range is None:
        wanted = replace(wanted, value_range=(0, values.white))
    pixels = to_8_bits(colors, values.n_bits, wanted, values.is_inverted)
    if values.alpha is None or not (wanted.alpha_counts or values.is_weighted):
        return image_of_values(pixels)
    opacity = to_8_bits(array[:, :, values.alpha : values.alpha + 1], values.n_bits, Wanted())
    image = image_of_values(np.concatenate([pixels, opacity], axis=2))
    if values.is_weighted:
        image = image.convert("RGBA") if image.mode == "LA" else image
        image = image_of(np.asarray(image), "RGBa").convert("RGBA")
    return image


# -- TIFF -----------------------------------------------------------------------------------------------------------------


def tiff_values(data: memoryview, header: Tiff, wanted: Wanted) -> Values:
    """A TIFF file's first image, as it is stored.

    Raises:
        ValueError: its kind is not supported, or it is damaged.
    """
    if header.photometric not in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO, tiff.RGB) or len(set(header.bits)) > 1:
        raise ValueError(f"{header.description} are not supported")
    if header.n_samples < header.n_colors:
        raise ValueError(f"{header.description} cannot be RGB, as its header says")
    if header.formats[0] == tiff.INT and wanted.value_range is None and not wanted.keeps_values:
        raise ValueError(SIGNED)
    values = _by_opencv(data, header) if opencv_reads(header) else _by_tifffile(data, header)
    if values.shape != (header.height, header.width, header.n_samples):
        raise ValueError(
            f"decoded to {values.shape} values, not {header.height, header.width, header.n_samples} as its header says"
        )
    alpha = next((n for n in header.extras if n in (tiff.ASSOCIATED, tiff.UNASSOCIATED)), tiff.UNSPECIFIED)
    at = header.n_colors + header.extras.index(alpha) if alpha else None
    if at is not None and at >= header.n_samples and (alpha == tiff.ASSOCIATED or wanted.alpha_counts):
        raise ValueError(f"{header.description} have no value {at + 1}, which is alpha by its header")
    is_inverted, is_weighted = header.photometric == tiff.WHITE_IS_ZERO, alpha == tiff.ASSOCIATED
    return Values(values, header.bits[0], header.n_colors, at, is_inverted, is_weighted, header.orientation)


def pillow_reads(header: Tiff, wanted: Wanted) -> bool:
    """Whether Pillow decodes this kind of more than 8 bits rightly, to the upper 8 bits: compressed planes of RGB."""
    is_rgb = header.photometric == tiff.RGB and header.n_samples in (3, 4) and header.bits[0] == 16
    is_unsigned = header.formats[0] in (tiff.UINT, tiff.UNDEFINED)
    return is_rgb and is_unsigned and header.is_packed_planes and wanted.value_range is None and not wanted.keeps_values


def opencv_reads(header: Tiff) -> bool:
    """Whether OpenCV decodes this kind rightly."""
    if header.n_samples not in (1, 3, 4) or (header.is_planar and header.n_samples > 1):
        return False
    if header.n_samples == 4 and header.n_colors != 3:
        return False
    bits, kind = header.bits[0], header.formats[0]
    if bits in (10, 12, 14):
        return kind in (tiff.UINT, tiff.UNDEFINED)
    if kind == tiff.FLOAT:
        return bits in (32, 64)
    return bits == 16 or (bits in (32, 64) and hasattr(cv2, "CV_32U"))  # integers of 32 bits came with OpenCV 5


def _by_opencv(data: memoryview, header: Tiff) -> np.ndarray:
    if header.is_turned:  # whether OpenCV turns the image depends on its version
        at, n_bytes = header.orientation_at
        data = memoryview(bytearray(data))
        data[at : at + n_bytes] = (1).to_bytes(n_bytes, "big" if header.is_big_endian else "little")
    values = opencv_values(data)
    if header.bits[0] in (10, 12, 14):
        values >>= 16 - header.bits[0]  # OpenCV has scaled them to 16 bits
    return values


def opencv_values(data: memoryview) -> np.ndarray:
    """The values `(h, w, C)` as stored, in the order RGB.

    Raises:
        ValueError: OpenCV cannot read it.
    """
    try:
        with silent_opencv():
            values: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(error.err) from None
        raise ValueError(f"OpenCV cannot read it: {error.err}") from None
    if values is None:
        raise ValueError("it is damaged, or compressed in a way that OpenCV does not support")
    if values.ndim == 2:
        values = values[:, :, np.newaxis]
    elif values.shape[2] >= 3 and values.dtype == np.uint8:
        values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    elif values.shape[2] >= 3:
        values[:, :, [0, 2]] = values[:, :, [2, 0]]
    return values


def _by_tifffile(data: memoryview, header: Tiff) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        raise ValueError(f"{header.description}: {TIFFFILE}") from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            if page.size != header.height * header.width * header.n_samples:
                raise ValueError(f"it is {page.shape} there, and {header.height, header.width, header.n_samples} by its header")
            values: np.ndarray = page.asarray(maxworkers=1)
    except Exception as error:
        if "imagecodecs" in str(error):
            raise ValueError(f"{header.description}: {TIFFFILE}") from None
        raise ValueError(f"tifffile cannot read it: {type(error).__name__}: {error}") from error
    if header.is_planar and header.n_samples > 1:
        values = np.moveaxis(values, 0, -1)
    return values.reshape(values.shape if values.ndim == 3 else (*values.shape, 1))


# -- PNG and PNM -----------------------------------------------------------------------------------------------------------

PFM_HEADER = re.compile(rb"P([fF])\s+(\d{1,9})\s+(\d{1,9})\s+(-?)\d[\d.eE+-]*\s")
PFM_PIXEL_BYTES = 20  # an array of 8 bits, an image, its conversion
TOKEN = re.compile(rb"(?:\s|#[^\n]*\n)+(\d+)")


def png_values(data: memoryview, color: int) -> Values:
    """A PNG file of 16 bits, `color` by its header. OpenCV gives gray with alpha as RGBA."""
    pixels = memoryview(png.only_pixels(data))
    png.check_pixels(pixels)
    values = of_channels(opencv_values(pixels))
    return values._replace(n_colors=1) if color == png.GRAY_ALPHA else values


def pnm_header(head: bytes) -> tuple[int, int, int]:
    """(width, height, the value that is white) of a PNM file; (0, 0, 0) if the header is not valid."""
    numbers, at = [], 2
    for _ in range(2 if head[1:2] in b"14" else 3):
        match = TOKEN.match(head, at)
        if match is None:
            return 0, 0, 0
        numbers.append(int(match[1]))
        at = match.end()
    width, height, white = [*numbers, 1][:3]
    return width, height, white


def pnm_values(data: memoryview, white: int) -> Values:
    """A PNM file with values above 255: gray or RGB."""
    if bytes(data[1:2]) in b"23":  # decimal numbers: OpenCV reads the last one only if a byte follows
        data = memoryview(bytes(data) + b"\n")
    return of_channels(opencv_values(data))._replace(white=None if white == 0xFFFF else white)


def open_pfm(data: memoryview) -> Opened:
    """A PFM file: `Pf` or `PF`, width, height, and a number whose sign tells the byte order; its size is ignored, as Pillow
    does. Rows go from the bottom to the top.

    Raises:
        ValueError: its header is not valid.
    """
    match = PFM_HEADER.match(data[:HEAD_BYTES])
    if match is None:
        raise ValueError("its header is not valid")
    n, width, height = 3 if match[1] == b"F" else 1, int(match[2]), int(match[3])

    def read() -> Values:
        if len(data) - match.end() < height * width * n * 4:
            raise ValueError(f"it is cut short: {len(data):,} of {match.end() + height * width * n * 4:,} bytes")
        floats = np.frombuffer(data, "<f4" if match[4] else ">f4", height * width * n, match.end())
        return of_channels(floats.reshape(height, width, n)[::-1])

    return opened(height, width, PFM_PIXEL_BYTES, read)
