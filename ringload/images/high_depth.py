"""Pixels of more than 8 bits: read as the file has them, and mapped to 0..255 by what their kind says, never by their content.

    integers of n bits      0..2**n - 1 by their upper 8 bits: v >> (n - 8)
    PNM                     0..its own maximum
    floating point          0..1; a file with others is refused
    signed integers         refused
    with value_range=       from black to white, clipped, whatever the kind

Integers of 10 to 14 bits in files of 16 are not known as such: without `value_range` they come out dark.
"""

from __future__ import annotations

import io
import re

import cv2
import numpy as np
from PIL import Image

from ringload.images import tiff
from ringload.images.captured_output import silent_opencv
from ringload.images.formats import Wanted
from ringload.images.resample import image_of
from ringload.images.tiff import Tiff

BAND = 1 << 18  # values that are mapped at a time, so that what they become on the way takes little memory
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
SIGNED = "signed integers, whose black and white are not known: say them, by value_range=(black, white)"
TIFFFILE = "reading them takes tifffile, and for some imagecodecs, too: pip install tifffile imagecodecs"


def to_8_bits(values: np.ndarray, n_bits: int, wanted: Wanted, is_inverted: bool = False) -> np.ndarray:
    """`(h, w, C)` of any numbers as uint8. `n_bits`, of integers; `is_inverted`: 0 is white.

    Raises:
        ValueError: their range is not known, or is not what it should be.
    """
    if wanted.value_range is not None:
        return _mapped(values, *wanted.value_range)
    if values.dtype.kind == "f":
        black, white = _range_of(values)
        if not (black >= 0 and white <= 1):  # NaN is in neither
            raise ValueError(
                f"floating-point pixels from {black:g} to {white:g}, of which 0 and 1 are to be black and white: say which "
                f"values are, by value_range=(black, white)"
            )
        return _mapped(values, *((1.0, 0.0) if is_inverted else (0.0, 1.0)))
    if values.dtype.kind == "i":
        raise ValueError(SIGNED)
    made = np.empty(values.shape, np.uint8)
    for band, out in _bands(values, made):
        out[...] = band >> (n_bits - 8) if n_bits >= 8 else band * np.uint8(255 // (2**n_bits - 1))
    return ~made if is_inverted else made


def _mapped(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Linearly, `black` to 0 and `white` to 255; rounded, and clipped."""
    made = np.empty(values.shape, np.uint8)
    for band, out in _bands(values, made):
        scaled = (band.astype(np.float64) - black) * (255 / (white - black))
        if np.isnan(scaled).any():
            raise ValueError("floating-point pixels, some of which are no numbers (NaN)")
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
    """`(h, w, C) uint8` as an image of Pillow's: gray, gray and alpha, RGB, or RGBA."""
    if pixels.shape[2] == 2:
        return Image.merge("LA", [image_of(pixels[:, :, n], "L") for n in (0, 1)])
    return image_of(pixels, MODES[pixels.shape[2]])


# -- TIFF -----------------------------------------------------------------------------------------------------------------


def read_tiff(data: memoryview, header: Tiff, wanted: Wanted) -> Image.Image:
    """A TIFF file's first image, as it is stored.

    Raises:
        ValueError: it is of a kind that nobody here reads, or is damaged.
    """
    if header.photometric not in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO, tiff.RGB) or len(set(header.bits)) > 1:
        raise ValueError(f"{header.in_words}: not read")
    if header.n_samples < header.n_colors:
        raise ValueError(f"{header.in_words}, which are no RGB")
    if header.formats[0] == tiff.INT and wanted.value_range is None:
        raise ValueError(SIGNED)
    values = _by_opencv(data, header) if opencv_reads(header) else _by_tifffile(data, header)
    if values.shape != (header.height, header.width, header.n_samples):
        raise ValueError(
            f"{values.shape} values came out of it, which should be {header.height, header.width, header.n_samples}"
        )
    alpha = next((n for n in header.extras if n in (tiff.ASSOCIATED, tiff.UNASSOCIATED)), tiff.UNSPECIFIED)
    channels = list(range(header.n_colors))
    is_inverted = header.photometric == tiff.WHITE_IS_ZERO
    pixels = to_8_bits(
        values[:, :, channels] if header.n_samples > len(channels) else values, header.bits[0], wanted, is_inverted
    )
    if not alpha or (alpha == tiff.UNASSOCIATED and not wanted.alpha_counts):
        return image_of_values(pixels)
    at = header.n_colors + header.extras.index(alpha)
    if at >= header.n_samples:
        raise ValueError(f"{header.in_words}, of which its header calls more alpha than there are")
    opacity = to_8_bits(values[:, :, at : at + 1], header.bits[0], Wanted())
    image = image_of_values(np.concatenate([pixels, opacity], axis=2))
    if alpha == tiff.ASSOCIATED:
        image = image.convert("RGBA") if image.mode == "LA" else image
        image = image_of(np.asarray(image), "RGBa").convert("RGBA")
    return image


def pillow_reads(header: Tiff, wanted: Wanted) -> bool:
    """Whether Pillow is right about this kind of more than 8 bits: planes of RGB, compressed, of which it takes the upper 8."""
    is_rgb = header.photometric == tiff.RGB and header.n_samples in (3, 4) and header.bits[0] == 16
    is_unsigned = header.formats[0] in (tiff.UINT, tiff.UNDEFINED)
    return is_rgb and is_unsigned and header.is_packed_planes and wanted.value_range is None


def opencv_reads(header: Tiff) -> bool:
    """Whether OpenCV's decoder is right about this kind: all others it reads wrongly, or not at all."""
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
    if header.is_turned:  # OpenCV would turn the image, or not, as its version has it
        at, n_bytes = header.orientation_at
        data = memoryview(bytearray(data))
        data[at : at + n_bytes] = (1).to_bytes(n_bytes, "big" if header.is_big_endian else "little")
    values = opencv_values(data)
    if header.bits[0] in (10, 12, 14):
        values >>= 16 - header.bits[0]  # OpenCV has scaled them to 16
    return values


def opencv_values(data: memoryview) -> np.ndarray:
    """`(h, w, C)` as the file has them, in the order RGB.

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
        raise ValueError("it is damaged, or compressed in a way that OpenCV does not know")
    if values.ndim == 2:
        values = values[:, :, np.newaxis]
    elif values.shape[2] >= 3:
        values[:, :, [0, 2]] = values[:, :, [2, 0]]
    return values


def _by_tifffile(data: memoryview, header: Tiff) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        raise ValueError(f"{header.in_words}: {TIFFFILE}") from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            values: np.ndarray = file.pages[0].asarray(maxworkers=1)
    except Exception as error:
        if "imagecodecs" in str(error):
            raise ValueError(f"{header.in_words}: {TIFFFILE}") from None
        raise ValueError(f"tifffile cannot read it: {type(error).__name__}: {error}") from error
    if header.is_planar and header.n_samples > 1:
        values = np.moveaxis(values, 0, -1)
    return values.reshape(values.shape if values.ndim == 3 else (*values.shape, 1))


# -- PNM ------------------------------------------------------------------------------------------------------------------

TOKEN = re.compile(rb"(?:\s|#[^\n]*\n)+(\d+)")


def pnm_header(head: bytes) -> tuple[int, int, int]:
    """(width, height, the value that is white) of a PNM file; (0, 0, 0) if it has no such header."""
    numbers, at = [], 2
    for _ in range(2 if head[1:2] in b"14" else 3):
        match = TOKEN.match(head, at)
        if match is None:
            return 0, 0, 0
        numbers.append(int(match[1]))
        at = match.end()
    width, height, white = [*numbers, 1][:3]
    return width, height, white


def read_pnm(data: memoryview, white: int, wanted: Wanted) -> Image.Image:
    """A PNM file with values above 255, or a PFM file. Both are gray or RGB."""
    if bytes(data[1:2]) in b"23":  # in figures, the last of which OpenCV takes only if something follows
        data = memoryview(bytes(data) + b"\n")
    values = opencv_values(data)
    if values.dtype.kind == "f" or wanted.value_range is not None or white == 0xFFFF:
        return image_of_values(to_8_bits(values, 16, wanted))
    return image_of_values(_mapped(values, 0, white))
