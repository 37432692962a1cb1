"""PNG files, chunk by chunk: facts that Pillow does not give, and a file without the chunks that Pillow may refuse.

A file is a signature and chunks: the length of the data, four letters, the data, and a checksum of both (ISO 15948, 5.3).
Pillow refuses a file for a text of more than 1 MB, a wrong checksum of a comment, or an animation that it cannot
decode, though the pixels are intact: `only_pixels` keeps only the chunks of the pixels and the orientation.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
XMP = b"XML:com.adobe.xmp\0\0"  # the beginning of an iTXt chunk of XMP that is not compressed
METADATA_BYTES = 1 << 19  # up to which EXIF and XMP are kept
UNPACKED_BYTES = 1 << 20  # at a time, where unpacked bytes are not kept
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types


class Png(NamedTuple):
    """The IHDR chunk."""

    height: int
    width: int
    bits: int
    color: int


class Chunk(NamedTuple):
    """Where the data of a chunk are in a file."""

    kind: bytes
    start: int
    stop: int


def read_png(head: bytes) -> Png | None:
    """The header of a PNG file that begins with `head`; None if it has no valid header."""
    if head[:8] != SIGNATURE or head[12:16] != b"IHDR" or len(head) < 26:
        return None
    width, height, bits, color = struct.unpack_from(">IIBB", head, 16)
    return Png(height, width, bits, color)


def with_transparency(image: Image.Image, bits: int) -> Image.Image:
    """A gray or RGB image of at most 8 bits with the alpha of its tRNS chunk. Pillow itself compares the value in the file with
    pixels that it has scaled to 8 bits, which is wrong."""
    value = image.info.get("transparency")
    if isinstance(value, int) and image.mode in ("1", "L"):
        most = 2**bits - 1
        opacity = [255] * 256
        opacity[(value & most) * (255 // most)] = 0
        image = image.convert("L")
        image.putalpha(image.point(opacity))
    elif isinstance(value, tuple) and image.mode == "RGB":
        image.info["transparency"] = tuple(one & 0xFF for one in value)
    return image


def only_pixels(data: memoryview) -> bytes:
    """The file with only the chunks of the pixels and the orientation. Damage of these chunks stays as it is."""
    kept = [SIGNATURE]
    for kind, start, stop in _chunks(data):
        is_whole = _checksum(data, start, stop)
        is_metadata = kind == b"eXIf" or (kind == b"iTXt" and data[start : start + len(XMP)] == XMP)
        if kind in PIXELS or (is_metadata and is_whole and stop - start <= METADATA_BYTES):
            kept.append(bytes(data[start - 8 : stop + 4]))
    return b"".join(kept)


def check_pixels(data: memoryview) -> None:
    """Check the deflated pixels and their checksum, as Pillow does not: OpenCV's libpng would print an error.

    Raises:
        ValueError: the pixels are damaged, or the end is missing.
    """
    unpacker = zlib.decompressobj()
    try:
        for kind, start, stop in _chunks(data):
            if kind == b"IDAT":
                left: bytes | memoryview = data[start:stop]
                while len(left) and not unpacker.eof:
                    unpacker.decompress(left, UNPACKED_BYTES)
                    left = unpacker.unconsumed_tail
    except zlib.error as error:
        raise ValueError(f"its pixels are damaged ({error})") from None
    if not unpacker.eof:
        raise ValueError("its pixels are cut short")


def _chunks(data: memoryview) -> Iterator[Chunk]:
    """The chunks of a file. A chunk whose length is wrong, so that no chunk follows it, is skipped, up to the next chunk of the
    pixels that has the right checksum."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        start, stop = at + 8, at + 8 + length
        if kind in PIXELS or _begins(data, stop + 4) or _checksum(data, start, stop):
            yield Chunk(kind, start, stop)
            if kind == b"IEND":
                return
            at = stop + 4
        else:
            at = _next(data, at + 4)


def _begins(data: memoryview, at: int) -> bool:
    """Whether a chunk can begin here: a length, and four letters."""
    kind = bytes(data[at + 4 : at + 8])
    return len(kind) == 4 and kind.isalpha() and at + 12 + struct.unpack_from(">I", data, at)[0] <= len(data)


def _checksum(data: memoryview, start: int, stop: int) -> bool:
    return stop + 4 <= len(data) and zlib.crc32(data[start - 4 : stop]) == struct.unpack_from(">I", data, stop)[0]


def _next(data: memoryview, at: int) -> int:
    """Where the next chunk of the pixels with the right checksum begins."""
    content = bytes(data[at:])
    found = []
    for kind in PIXELS:
        where = content.find(kind)
        while where >= 4:
            length = struct.unpack_from(">I", content, where - 4)[0]
            if _checksum(data, at + where + 4, at + where + 4 + length):
                found.append(at + where - 4)
                break
            where = content.find(kind, where + 1)
    return min(found, default=len(data))
