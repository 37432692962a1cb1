"""QOI files ("Quite OK Image"), by imagecodecs: Pillow reads them, too, but by Python code, in 200 times the time.

A file is `qoif`, width and height (4 bytes each, the highest first), 3 or 4 channels, a byte that says nothing of pixels, the
stream, and an end of 8 bytes. The decoder does not say where a stream ends early, so that end is looked for.
"""

from __future__ import annotations

import struct
from typing import Any

from ringload.errors import missing
from ringload.images.values import Opened, Values, of_channels, opened

HEADER = struct.Struct(">4sIIBB")  # magic, width, height, channels, colour space
END = b"\0\0\0\0\0\0\0\1"
PIXEL_BYTES = 16  # measured on 4 megapixels, without the file: 10.2 (RGB), 14.3 (RGBA, kept as float32)


def open_qoi(data: memoryview) -> Opened:
    """Open a QOI file.

    Raises:
        ValueError: its header is not valid, or it is cut short; or imagecodecs is missing.
    """
    if len(data) < HEADER.size:
        raise ValueError("its header is cut short")
    _, width, height, n_channels, color_space = HEADER.unpack_from(data)
    if not (width and height and n_channels in (3, 4) and color_space in (0, 1)):
        raise ValueError("its header is not valid")
    if bytes(data[-len(END) :]) != END:
        raise ValueError("it is cut short: its end is missing")

    def read() -> Values:
        try:
            from imagecodecs import qoi_decode
        except ImportError as error:
            raise ValueError(str(missing("reading it", "imagecodecs", error))) from error
        decode: Any = qoi_decode  # its stubs do not know that it takes any buffer
        return of_channels(decode(data))

    return opened(height, width, PIXEL_BYTES, read)
