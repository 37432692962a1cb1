"""HEIC files, by pillow-heif (libheif and libde265). Only its decoder is used: Pillow's list of plugins stays as it is.

Rotation and mirroring are part of the format, and libheif has applied them; EXIF's orientation says the same again, and is
ignored, as ISO 23008-12 wants it. The size is known before pixels are decoded, and libheif keeps to it. Values of 10 and 12
bits are kept.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ringload.errors import missing
from ringload.images.hook import Attribute, Hook
from ringload.images.values import Opened, Values, opened

N_CHANNELS = {"L": 1, "LA": 2, "La": 2, "RGB": 3, "RGBA": 4, "RGBa": 4, "I": 1}  # by the first part of pillow-heif's modes
PIXEL_BYTES = 24  # measured on 4 megapixels, without the file: 14.1 (RGB), 15.3 (RGBA), 19.2 (RGB of 10 bits)


def open_heif(data: memoryview) -> Opened:
    """Open a HEIC file: its primary image.

    Raises:
        ValueError: its header is not valid, or pillow-heif is missing.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise ValueError(str(missing("reading it", "pillow-heif", error))) from error
    with _one_thread(pillow_heif.options)():
        file = pillow_heif.HeifFile(bytes(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    image = file[file.primary_index]
    width, height = image.size

    def read() -> Values:
        content = image.data
        name = image.mode.partition(";")[0]
        if name not in N_CHANNELS or image.size != (width, height):
            raise ValueError(f"pixels of libheif's mode {image.mode} are not supported")
        n_bits, n = image.info["bit_depth"], N_CHANNELS[name]
        row_bytes = width * n * (1 if n_bits <= 8 else 2)
        rows = np.frombuffer(content, np.uint8).reshape(height, image.stride)[:, :row_bytes]
        array = rows.view(np.uint8 if n_bits <= 8 else "<u2").reshape(height, width, n)
        alpha = n - 1 if n in (2, 4) else None
        return Values(array, n_bits, 1 if n < 3 else 3, alpha, is_weighted=name.endswith("a"))

    return opened(height, width, PIXEL_BYTES, read, len(data))


@cache
def _one_thread(options: object) -> Hook:
    """By default libheif decodes in four threads, in each worker: have it use one."""
    return Hook(Attribute(options, "DECODE_THREADS", 1))
