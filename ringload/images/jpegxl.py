"""JPEG XL files, by imagecodecs (libjxl). pillow-jxl-plugin decodes a file when it opens it, before its size is known.

A file is a code stream, or boxes with one in `jxlc`, or in parts in `jxlp`. The code stream begins with ff 0a and a header of
bits, the lowest of each byte first: the size, and unless a bit says that all are usual, orientation and bits of a value
(ISO 18181-1, annexes C and D).
"""

from __future__ import annotations

from typing import Any

from ringload.errors import missing
from ringload.images.jpeg2000 import boxes
from ringload.images.values import Opened, Values, of_channels, opened

STREAM = b"\xff\x0a"
HEADER_BYTES = 128  # more than the fields that are read can take
RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width / height; the first is not used
# Measured on 4 megapixels, without the file: of 8 bits 9.9 to 12.7, 16 bits 18.5 (RGB) and 24.7 (RGBA), floats 21.0.
PIXEL_BYTES, WIDE_PIXEL_BYTES = 24, 32


class _Bits:
    """Reads numbers from bits."""

    def __init__(self, data: bytes) -> None:
        self._rest, self._n_left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, n: int) -> int:
        """The next n bits as a number."""
        if n > self._n_left:
            raise ValueError("its header is cut short")
        value = self._rest & ((1 << n) - 1)
        self._rest >>= n
        self._n_left -= n
        return value

    def choose(self, *kinds: tuple[int, int]) -> int:
        """A number in one of four ways, (least, bits), which two bits choose."""
        least, n = kinds[self.take(2)]
        return least + self.take(n)


def _side(bits: _Bits, is_small: int) -> int:
    return 8 * (1 + bits.take(5)) if is_small else bits.choose((1, 9), (1, 13), (1, 18), (1, 30))


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.take(1)
    height = _side(bits, is_small)
    if ratio := bits.take(3):
        numerator, denominator = RATIOS[ratio]
        return height, height * numerator // denominator
    return height, _side(bits, is_small)


def _preview(bits: _Bits) -> None:
    by_eight = bits.take(1)
    kinds = ((16, 0), (32, 0), (1, 5), (33, 9)) if by_eight else ((1, 6), (65, 8), (321, 10), (1345, 12))
    bits.choose(*kinds)
    if not bits.take(3):
        bits.choose(*kinds)


def _animation(bits: _Bits) -> None:
    bits.choose((100, 0), (1000, 0), (1, 10), (1, 30))
    bits.choose((1, 0), (1001, 0), (1, 8), (1, 10))
    bits.choose((0, 0), (0, 3), (0, 16), (0, 32))
    bits.take(1)


def read_jpegxl(data: memoryview) -> tuple[int, int, int, int]:
    """(height, width, orientation, bits of a value) of a JPEG XL file.

    Raises:
        ValueError: the header is not valid.
    """
    head = bytes(data[: HEADER_BYTES + 2])
    if head[:2] != STREAM:
        found = dict(reversed(list(boxes(data))))  # the first of each type
        whole, part = found.get(b"jxlc"), found.get(b"jxlp")
        head = bytes(
            whole[: HEADER_BYTES + 2] if whole is not None else part[4 : HEADER_BYTES + 6] if part is not None else b""
        )
    if head[:2] != STREAM:
        raise ValueError("its code stream is missing")
    bits = _Bits(head[2:])
    height, width = _size(bits)
    if bits.take(1):
        return height, width, 1, 8
    orientation = 1
    if bits.take(1):
        orientation = 1 + bits.take(3)
        for skip in (_size, _preview, _animation):
            if bits.take(1):
                skip(bits)
    is_float = bits.take(1)
    n_bits = bits.choose((32, 0), (16, 0), (24, 0), (1, 6)) if is_float else bits.choose((8, 0), (10, 0), (12, 0), (1, 6))
    return height, width, orientation, n_bits


def open_jpegxl(data: memoryview) -> Opened:
    """Open a JPEG XL file. Of an animation the first frame is read.

    Raises:
        ValueError: its header is not valid, or imagecodecs is missing.
    """
    height, width, orientation, n_bits = read_jpegxl(data)

    def read() -> Values:
        try:
            from imagecodecs import jpegxl_decode
        except ImportError as error:
            raise ValueError(str(missing("reading it", "imagecodecs", error))) from error
        decode: Any = jpegxl_decode  # its stubs do not know that it takes any buffer
        return of_channels(decode(data, index=0, keeporientation=True, numthreads=1), n_bits, orientation)

    return opened(height, width, PIXEL_BYTES if n_bits <= 8 else WIDE_PIXEL_BYTES, read)
