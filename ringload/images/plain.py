"""Plain kinds of files, decoded faster than by Pillow, to the same pixels. Pillow has read the header before.

    PNG         8 bits a channel, not interlaced, without tRNS: inflated by isal, or else zlib; the filters by _png.c
    BMP, TIFF   pixels that are not compressed: copied by NumPy and OpenCV
    WebP        without alpha and animation: by OpenCV, which has the same library without the canvas for animations

Whatever is unusual, damaged or cut short is left to Pillow, so that its refusals, its messages and the pixels of damaged files
are the same with this module and without it: tests/test_plain.py compares both ways.

How many times less CPU time decoding takes than with Pillow, and in brackets loading as 224 x 224; for photographs of 500
pixels and of 12 megapixels (29 November 2026, busy AMD EPYC; Pillow 13.0 with zlib-ng, OpenCV 5.0, isal 1.9; medians of 8
rounds in turns, all pixels equal):

                      500 pixels                             12 megapixels
                      isal           zlib           OpenCV   isal           zlib           OpenCV
    PNG, RGB          2.48 (2.26)    1.64 (1.52)    1.1-1.2  2.90 (2.21)    1.98 (1.72)    1.2-1.3
    PNG, RGBA         2.57 (2.04)    1.60 (1.40)    1.1-1.2  2.74 (2.31)    1.87 (1.58)    1.2
    PNG, gray         2.45 (2.05)    1.73 (1.56)    1.2      3.19 (2.19)    2.45 (1.87)    1.2
    BMP, RGB          3.5 (1.8)                     3.5      8.2 (2.2)                     1.4
    TIFF, raw         2.6 (1.4)                     0.6      13 (2.6)                      0.6
    WebP, lossy       1.32 (1.29)                   1.3      1.93 (1.70)                   1.9
    WebP, lossless    1.19 (1.21)                   1.2      1.53 (1.45)                   1.6

Left to Pillow: PNG with a palette (no gain by zlib, 0 to 22 % by isal), TIFF by deflate (11 to 19 % by OpenCV) and LZW
(-3 to 13 %). imagecodecs, of 80 MB, reads PNG 1.2 to 2.0 times faster than Pillow: as zlib and _png.c.

Memory: at most what Pillow takes, but gray from colours, which takes 10 bytes a pixel, not 5. The plan counts 16 (WebP: 20).
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import cv2
import numpy as np

from ringload.images.high_depth import opencv_values

try:  # here, so that the fork server imports it once, before it forks workers
    from isal import isal_zlib

    inflater: Any = isal_zlib
except ImportError:  # it has no wheels for some systems
    inflater = zlib

try:
    from ringload.images import _png

    native: Any = _png
except ImportError:  # it was not built
    native = None

PNG_BYTES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}  # Pillow's name of the pixels in the file -> bytes a pixel
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
DEFLATED_BYTES = 1 << 16  # that are inflated at a time, so that the result is still in the cache for the filters
RAW_BYTES = {"L": 1, "RGB": 3, "BGR": 3, "BGRX": 4}
RAW_CODES = {"BGR": cv2.COLOR_BGR2RGB, "BGRX": cv2.COLOR_BGRA2RGB}


def inflates_by_isal() -> bool:
    """Whether isal is installed."""
    return inflater is not zlib


def decode_plain(file: Any, data: memoryview, name: str) -> np.ndarray | None:
    """The pixels `(h, w, C)`, in the mode of `file`, which Pillow has opened on `data`; None: it is not of a plain kind.

    Raises:
        MemoryError: there is not enough memory.
    """
    try:
        return DECODERS[name](file, data) if name in DECODERS else None
    except MemoryError:
        raise
    except Exception:  # whatever it is: Pillow, which is tried next, says what is wrong
        return None


def _decode_png(file: Any, data: memoryview) -> np.ndarray | None:
    (codec, _, start, raw_mode), *more = file.tile
    width, height = file.size
    is_plain = not (file.info.get("interlace") or "transparency" in file.info or file.is_animated or more)
    if native is None or not is_plain or codec != "zip" or raw_mode != file.mode or raw_mode not in PNG_BYTES:
        return None
    pixel_bytes = PNG_BYTES[raw_mode]
    row_bytes = width * pixel_bytes
    rows = np.empty((height, 1 + row_bytes), np.uint8)
    return rows[:, 1:].reshape(height, width, pixel_bytes) if _inflate(data, start - 8, rows, pixel_bytes) else None


def _inflate(data: memoryview, at: int, rows: np.ndarray, pixel_bytes: int) -> bool:
    """Inflate the chunks IDAT, the first of which begins at `at`, into `rows`, and undo the filters. False: the chunks are not
    exactly the rows, or something other than the end follows them."""
    stream, free = inflater.decompressobj(), rows.data.cast("B")
    n_bytes = rows.shape[1]
    n_done, n_inflated = 0, 0
    while bytes(data[at + 4 : at + 8]) == b"IDAT":
        start, stop = at + 8, at + 8 + struct.unpack_from(">I", data, at)[0]
        if stop > len(data):
            return False
        for first in range(start, stop, DEFLATED_BYTES):
            part = stream.decompress(data[first : min(first + DEFLATED_BYTES, stop)], len(free) - n_inflated + 1)
            free[n_inflated : n_inflated + len(part)] = part  # ValueError: these are too many
            n_inflated += len(part)
            n_whole = n_inflated // n_bytes
            if stream.unused_data or not native.unfilter(rows, n_done, n_whole, n_bytes - 1, pixel_bytes):
                return False
            n_done = n_whole
        at = stop + 4
    return n_inflated == len(free) and stream.eof and data[at : at + len(PNG_END)] == PNG_END


def _decode_raw(file: Any, data: memoryview) -> np.ndarray | None:
    width, height = file.size
    parts, n_done, is_upside_down = [], 0, False
    for codec, (left, top, right, bottom), start, arguments in sorted(file.tile, key=lambda tile: tile[1][1]):
        raw_mode, stride, direction = arguments
        if codec != "raw" or raw_mode not in RAW_BYTES or (left, right, top) != (0, width, n_done):
            return None
        row_bytes, n_rows = width * RAW_BYTES[raw_mode], bottom - top
        is_upside_down = direction == -1
        if (stride and stride < row_bytes) or (is_upside_down and n_rows != height):
            return None
        rows = np.frombuffer(data, np.uint8, n_rows * (stride or row_bytes), start).reshape(n_rows, -1)[:, :row_bytes]
        parts.append((raw_mode, rows.reshape(n_rows, width, -1)))
        n_done = bottom
    if n_done != height:
        return None
    shown = [cv2.cvtColor(rows, RAW_CODES[raw_mode]) if raw_mode in RAW_CODES else rows for raw_mode, rows in parts]
    made = shown[0] if len(shown) == 1 else np.concatenate(shown)
    return made[::-1] if is_upside_down else made


def _decode_webp(file: Any, data: memoryview) -> np.ndarray | None:
    if file.mode != "RGB" or file.is_animated:
        return None
    values = opencv_values(memoryview(only_pixels_of_webp(data)))
    return values if values.shape == (file.height, file.width, 3) and values.dtype == np.uint8 else None


def only_pixels_of_webp(data: memoryview) -> bytes:
    """The file with only the chunk of the pixels. OpenCV's decoder would read on in the bytes after this chunk where the pixels
    are damaged, as Pillow's does not.

    Raises:
        ValueError: there is no such chunk, or it is cut short.
    """
    at = 12
    while at + 8 <= len(data):
        kind, n_bytes = struct.unpack_from("<4sI", data, at)
        stop = at + 8 + n_bytes
        if kind in (b"VP8 ", b"VP8L") and stop <= len(data):
            return struct.pack("<4sI4s", b"RIFF", 4 + stop - at, b"WEBP") + data[at:stop]
        at = stop + n_bytes % 2
    raise ValueError("there are no pixels")


DECODERS = {"PNG": _decode_png, "BMP": _decode_raw, "TIFF": _decode_raw, "WebP": _decode_webp}
