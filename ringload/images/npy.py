""".npy files: one array `(h, w)` or `(h, w, n)` of numbers, n = 1 to 4: gray, gray and alpha, RGB, or RGBA.

A file is `\\x93NUMPY`, two bytes of version, the length of the header (2 bytes; from version 2 on 4), the header, which is a
Python dict as text, and the bytes of the array. The header is searched for three entries and never evaluated; nothing is
unpickled. Integers and floats are mapped to 8 bits by the rules of `high_depth`, as those of TIFF files.
"""

from __future__ import annotations

import re
import struct
from math import prod

import numpy as np

from ringload.images.values import Opened, Values, of_channels, opened

MAX_HEADER_BYTES = 10_000  # NumPy's own limit
DESCR = re.compile(rb"""['"]descr['"]\s*:\s*['"]([<>|=]?[a-zA-Z]\d*)['"]\s*[,}]""")
ORDER = re.compile(rb"""['"]fortran_order['"]\s*:\s*(True|False)\s*[,}]""")
SHAPE = re.compile(rb"""['"]shape['"]\s*:\s*\(\s*((?:\d{1,12}\s*,?\s*)*)\)\s*[,}]""")
DTYPES = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
PIXEL_BYTES = 12  # beside the array; measured on 4 megapixels: 8.8 to 10.5


def open_npy(data: memoryview) -> Opened:
    """Open a .npy file.

    Raises:
        ValueError: its header is not valid, or its array is no image.
    """
    shape, dtype, is_fortran, start = _header(data)
    if len(shape) not in (2, 3) or not all(shape) or (len(shape) == 3 and shape[2] > 4):
        raise ValueError(f"an array {shape}; images are (height, width), or (height, width, n) with n from 1 to 4")
    n_bytes = prod(shape) * dtype.itemsize
    if len(data) - start < n_bytes:
        raise ValueError(f"it is cut short: {len(data):,} of {start + n_bytes:,} bytes")

    def read() -> Values:
        flat = np.frombuffer(data, dtype, prod(shape), start)
        return of_channels(flat.reshape(shape, order="F" if is_fortran else "C"))

    return opened(shape[0], shape[1], PIXEL_BYTES, read)


def _header(data: memoryview) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """(shape, dtype, whether columns come first, where the array begins)."""
    width = 2 if bytes(data[6:7]) == b"\x01" else 4
    if len(data) < 8 + width or data[6] not in (1, 2, 3):
        raise ValueError("its header is not valid")
    n_bytes = struct.unpack_from("<H" if width == 2 else "<I", data, 8)[0]
    if n_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {n_bytes:,} bytes")
    text = bytes(data[8 + width : 8 + width + n_bytes])
    descr, order, shape = DESCR.search(text), ORDER.search(text), SHAPE.search(text)
    if order is None or shape is None:
        raise ValueError("its header is not valid")
    name = descr[1].decode() if descr else ""
    if not DTYPES.fullmatch(name):
        raise ValueError(f"its dtype is {name or 'a structure'}; supported are bool, integers and floats of 2 to 8 bytes")
    sizes = tuple(int(size) for size in re.findall(rb"\d+", shape[1]))
    return sizes, np.dtype(name), order[1] == b"True", 8 + width + n_bytes
