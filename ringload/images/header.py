"""What the first and the last bytes of an image file tell: its size in pixels, its usual suffixes, whether its end is there.

Nothing is decoded. `size_of` takes a whole content or its beginning; a content that is not understood has the size (0, 0).
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from ringload.images.formats import HEAD_BYTES, Scratch, Wanted, format_of
from ringload.images.jpeg import Jpeg
from ringload.images.pillow import PillowImage

SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo"),
    "PNG": (".png", ".apng"),
    "WebP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PNM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "PFM": (".pfm",),
    "AVIF": (".avif",),
}
FORMAT_OF_SUFFIX = {suffix: name for name, suffixes in SUFFIXES_OF.items() for suffix in suffixes}
PNG_SIZE = struct.Struct(">8x4x4sII")  # of the first chunk: its name, the width, the height
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_scratch = Scratch()


def size_of(data: memoryview) -> tuple[int, int]:
    """(height, width) of an image as it is stored, in pixels; (0, 0) if its header is not understood."""
    name = format_of(bytes(data[:HEAD_BYTES]))
    if name == "PNG" and len(data) >= PNG_SIZE.size:
        kind, width, height = PNG_SIZE.unpack_from(data)
        if kind == b"IHDR":
            return height, width
    with suppress(Exception):  # whatever a decoder raises: the caller decodes the content, and says what is wrong with it
        if name == "JPEG":
            jpeg = Jpeg(data, "rgb", _scratch)
            return jpeg.height, jpeg.width
    with suppress(Exception):
        image = PillowImage(data, Wanted())
        return image.height, image.width
    return 0, 0


def suffix_is_of_another_format(path: bytes, name: str) -> bool:
    """Whether the suffix of a path is that of another format than `name`, the content's."""
    wanted = FORMAT_OF_SUFFIX.get(os.path.splitext(os.fsdecode(path))[1].lower())
    return bool(name) and wanted is not None and wanted != name


def has_its_end(name: str, head: memoryview, tail: memoryview, n_bytes: int) -> bool:
    """Whether a file of `n_bytes` ends as files of its format do. False for formats whose end cannot be told, and for files
    with bytes behind their end: such a file may be good."""
    if name == "JPEG":
        return bytes(tail[-2:]) == b"\xff\xd9"
    if name == "PNG":
        return bytes(tail[-len(PNG_END) :]) == PNG_END
    if name == "GIF":
        return bytes(tail[-2:]) == b"\0;"
    return name == "WebP" and int.from_bytes(head[4:8], "little") + 8 == n_bytes


def is_cut_short(data: memoryview) -> bool:
    """Whether a content that a decoder has refused ends before its time, as far as its format tells."""
    name, n_bytes = format_of(bytes(data[:HEAD_BYTES])), len(data)
    if name in ("BMP", "WebP"):
        at, more = (2, 0) if name == "BMP" else (4, 8)
        return int.from_bytes(data[at : at + 4], "little") + more > n_bytes
    end = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b"\0;"}.get(name)
    return end is not None and end not in bytes(data[-(1 << 16) :])
