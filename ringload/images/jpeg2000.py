"""JPEG 2000 headers: which values a file has, before a decoder is chosen.

Up to 8 bits are decoded by Pillow, more by OpenCV, which keeps them; both use OpenJPEG. (Pillow would keep 16 bits of gray, and
8 bits of RGB.) A file is a code stream, or a JP2 file: boxes of a length, a type of 4 letters, and a content (ISO 15444-1,
annexes A and I). The code stream begins with the marker SIZ, which gives the size, and the bits of each value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ringload.images.high_depth import opencv_values
from ringload.images.values import Opened, Values, of_channels, opened

SIZ = struct.Struct(">HHHHIIIIIIIIH")  # SOC, SIZ, length, capabilities, size, offset, of a tile, of tiles, number of values
STREAM = b"\xff\x4f\xff\x51"
SYCC = 18  # a colour space of JP2
MAX_VALUES = 16
# Measured on 4 megapixels, without the file: Pillow 10.1 (gray), 20.0 (RGB) and 25.3 (RGBA), OpenCV 19.7 (RGB of 16 bits).
PIXEL_BYTES, VALUE_BYTES = 8, 5  # a pixel, and each of its values


class Jpeg2000(NamedTuple):
    """What the header of a file says."""

    height: int
    width: int
    bits: tuple[int, ...]  # of each value
    is_signed: bool
    is_sampled: bool  # some values are there for several pixels
    is_sycc: bool

    @property
    def pixel_bytes(self) -> int:
        """Memory that decoding takes a pixel."""
        return PIXEL_BYTES + VALUE_BYTES * len(self.bits)

    @property
    def is_wide(self) -> bool:
        """Whether its values are other than unsigned integers of at most 8 bits."""
        return max(self.bits) > 8 or self.is_signed


def boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The boxes of a file of boxes: type, content. Ends where a box is not valid; the last one may be cut short."""
    at = 0
    while at + 8 <= len(data):
        n_bytes, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if n_bytes == 1 and at + 16 <= len(data):
            n_bytes, start = struct.unpack_from(">Q", data, at + 8)[0], at + 16
        stop = len(data) if n_bytes == 0 else at + n_bytes
        if stop < start:
            return
        yield kind, data[start:stop]
        at = stop


def read_jpeg2000(data: memoryview) -> Jpeg2000:
    """The header of a JPEG 2000 file.

    Raises:
        ValueError: the header is not valid.
    """
    stream, is_sycc, size = data, False, None
    if bytes(data[:4]) != STREAM:
        found = dict(reversed(list(boxes(data))))  # the first of each type
        header = dict(reversed(list(boxes(found.get(b"jp2h", data[:0])))))
        stream, color, sizes = found.get(b"jp2c", data[:0]), header.get(b"colr"), header.get(b"ihdr", data[:0])
        if len(sizes) < 8:
            raise ValueError("its header is not valid")
        size = struct.unpack_from(">II", sizes)
        is_sycc = color is not None and bytes(color[:1]) == b"\1" and bytes(color[3:7]) == SYCC.to_bytes(4, "big")
    if bytes(stream[:4]) != STREAM or len(stream) < SIZ.size:
        raise ValueError("its code stream is missing")
    _, _, _, _, right, bottom, left, top, *_, n_values = SIZ.unpack_from(stream)
    parts = bytes(stream[SIZ.size : SIZ.size + 3 * n_values])  # of each value: bits and sign, and sampling
    if not 1 <= n_values <= MAX_VALUES or len(parts) < 3 * n_values or right <= left or bottom <= top:
        raise ValueError("its header is not valid")
    if size not in (None, (bottom - top, right - left)):
        raise ValueError(f"its two headers have the sizes {size[0]} x {size[1]} and {bottom - top} x {right - left}")
    bits = tuple((part & 0x7F) + 1 for part in parts[::3])
    is_signed, is_sampled = any(part & 0x80 for part in parts[::3]), set(parts[1::3] + parts[2::3]) != {1}
    return Jpeg2000(bottom - top, right - left, bits, is_signed, is_sampled, is_sycc)


def open_wide(data: memoryview, header: Jpeg2000) -> Opened:
    """Open a file with values of more than 8 bits.

    Raises:
        ValueError: they are of a kind that is not supported.
    """
    bits, n_values = header.bits[0], len(header.bits)
    if header.is_signed:
        raise ValueError("signed integers are not supported")
    if len(set(header.bits)) > 1 or bits > 16 or n_values not in (1, 3, 4) or header.is_sampled or header.is_sycc:
        each = "/".join(str(n) for n in header.bits)
        kind = ", subsampled" if header.is_sampled else ", YCC" if header.is_sycc else ""
        raise ValueError(f"pixels of {n_values} values of {each} bits{kind} are not supported")

    def read() -> Values:
        return of_channels(opencv_values(data), bits)

    return opened(header.height, header.width, header.pixel_bytes, read)
