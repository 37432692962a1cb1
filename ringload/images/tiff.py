"""TIFF headers: the kind of a file's pixels, read from its tags before a decoder is chosen.

Each decoder reads some kinds only, and others wrongly without an error: Pillow reads uncompressed 16-bit planes as noise and 12
bits as black, OpenCV reads all planes of more than 8 bits as noise. So the decoder is chosen by kind: 8 bits go to Pillow, more
to OpenCV where it is right, and the rest to tifffile, if that is installed (tests/test_wide.py).

A file is `II` or `MM` (byte order), 42 and a 4-byte offset, or 43, the numbers 8 and 0, and an 8-byte offset (BigTIFF), of
the first directory: a count, and entries of tag, type, count, and the values or where they are (TIFF 6.0, section 2).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from math import prod
from typing import Any

UINT, INT, FLOAT, UNDEFINED = 1, 2, 3, 4  # sample formats
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # photometric interpretations
PLAIN = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)  # values are levels of gray, or of red, green and blue
NOT_SUPPORTED = (32803, 32844, 32845)  # by any of the decoders
PHOTOMETRIC_NAMES = {3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab", 32803: "colour filter", 32844: "LogL", 32845: "LogLuv"}
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2  # extra samples; the latter two are alpha
CONTIGUOUS, PLANES = 1, 2
NO_COMPRESSION = 1
ORIENTATION = 274
TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q", 13: "I", 18: "Q"}  # of integers
MAX_ENTRIES = 4096  # of a directory
MAX_VALUES = 64  # of a tag that are read
XMP_BYTES = 1 << 16  # of XMP that are searched for the orientation


@dataclass(frozen=True)
class Tiff:
    """The first directory of a file. Sizes are as stored: the orientation is not applied."""

    height: int
    width: int
    bits: tuple[int, ...]  # of each sample of a pixel
    formats: tuple[int, ...]
    photometric: int
    is_planar: bool
    extras: tuple[int, ...]
    compression: int
    orientation: int
    orientation_at: tuple[int, ...]  # (offset, bytes) of the orientation in the file; () if there is no such tag
    is_big_endian: bool
    block_bytes: int  # of a tile or strip, unpacked

    @property
    def n_samples(self) -> int:
        """Values a pixel."""
        return len(self.bits)

    @property
    def n_colors(self) -> int:
        """Samples that are not extra samples."""
        return 3 if self.photometric == RGB else 1

    @property
    def is_wide(self) -> bool:
        """Whether its values are other than unsigned integers of at most 8 bits."""
        return max(self.bits) > 8 or any(kind in (INT, FLOAT) for kind in self.formats)

    @property
    def is_turned(self) -> bool:
        """Whether a tag gives an orientation other than 1."""
        return bool(self.orientation_at) and self.orientation != 1

    @property
    def is_packed_planes(self) -> bool:
        """Whether samples are in separate planes, which are compressed."""
        return self.is_planar and self.compression != NO_COMPRESSION

    @property
    def value_bytes(self) -> int:
        """Bytes of a value in memory."""
        bits = max(self.bits)
        return 1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8

    @property
    def description(self) -> str:
        """The kind of its pixels, for messages."""
        kind = {INT: "signed ", FLOAT: "floating-point "}.get(self.formats[0], "")
        bits = "/".join(str(n) for n in sorted(set(self.bits)))
        color = f"{PHOTOMETRIC_NAMES[self.photometric]} " if self.photometric in PHOTOMETRIC_NAMES else ""
        values = "a value" if self.n_samples == 1 else f"{self.n_samples} values"
        planes = ", in planes" if self.is_planar and self.n_samples > 1 else ""
        return f"{color}pixels of {values} of {bits} {kind}bits{planes}"


def read_tiff(data: memoryview) -> Tiff:
    """The header of a TIFF file.

    Raises:
        ValueError: the header is not valid.
    """
    tags, order = _read_tags(data)

    def one(tag: int, default: int) -> int:
        return tags.get(tag, (default,))[0]

    height, width, n_samples = one(257, 0), one(256, 0), one(277, 1)
    if height <= 0 or width <= 0:
        raise ValueError("its header has no size")
    if not 1 <= n_samples <= MAX_VALUES:
        raise ValueError(f"{n_samples} values a pixel")
    bits = _for_each(tags.get(258, (1,)), n_samples)
    if not all(1 <= n <= 64 for n in bits):
        raise ValueError(f"values of {max(bits)} bits")
    block = (one(323, height), one(322, width)) if 322 in tags else (min(one(278, height), height), width)
    is_planar = one(284, CONTIGUOUS) == PLANES
    block_bits = prod(block) * (max(bits) if is_planar else sum(bits))
    orientation = one(ORIENTATION, 0) or _in_xmp(data, tags)
    return Tiff(
        height,
        width,
        bits,
        _for_each(tags.get(339, (UINT,)), n_samples),
        one(262, BLACK_IS_ZERO),
        is_planar,
        tuple(tags.get(338, ())),
        one(259, NO_COMPRESSION),
        orientation if 1 <= orientation <= 8 else 1,
        tags.get(-ORIENTATION, ()),
        order == ">",
        max(0, block_bits // 8),
    )


def _for_each(values: tuple[int, ...], n_samples: int) -> tuple[int, ...]:
    return tuple(values[:n_samples]) if len(values) >= n_samples else (values[0],) * n_samples


def _read_tags(data: memoryview) -> tuple[dict[int, tuple[int, ...]], str]:
    """The tags of the first directory that have integers as values. Tag 700 (XMP) has (offset, bytes) of its value instead, and
    key -ORIENTATION has (offset, bytes) of the orientation's."""
    try:
        return _parse(data)
    except struct.error:
        raise ValueError("its header is cut short") from None


def _parse(data: memoryview) -> tuple[dict[int, tuple[int, ...]], str]:
    head = bytes(data[:16])
    order = "<" if head[:2] == b"II" else ">"
    is_bigtiff = struct.unpack_from(f"{order}H", head, 2)[0] == 43
    offset = struct.unpack_from(f"{order}Q", head, 8)[0] if is_bigtiff else struct.unpack_from(f"{order}I", head, 4)[0]
    count, entry = (f"{order}Q", f"{order}HHQ8s") if is_bigtiff else (f"{order}H", f"{order}HHI4s")
    n_entries = struct.unpack(count, data[offset : offset + struct.calcsize(count)])[0]
    size, first = struct.calcsize(entry), offset + struct.calcsize(count)
    entries = data[first : first + size * min(n_entries, MAX_ENTRIES)]
    tags: dict[int, tuple[int, ...]] = {}
    for number, (tag, kind, n_values, inline) in enumerate(struct.iter_unpack(entry, entries[: len(entries) // size * size])):
        at = first + number * size
        where = struct.unpack(f"{order}{'Q' if is_bigtiff else 'I'}", inline)[0]
        if tag == 700:
            tags[tag] = (where, n_values)
        elif kind in TYPES and n_values:
            values = f"{order}{min(n_values, MAX_VALUES)}{TYPES[kind]}"
            n_bytes = struct.calcsize(f"{order}{TYPES[kind]}") * n_values
            raw = inline if n_bytes <= len(inline) else data[where : where + struct.calcsize(values)]
            if len(raw) >= struct.calcsize(values):
                found = struct.unpack_from(values, raw)
                if tags.setdefault(tag, found) != found:  # decoders may take either, and its memory
                    raise ValueError(f"its header has two values of tag {tag}: {_few(tags[tag])} and {_few(found)}")
            if tag == ORIENTATION and n_bytes <= len(inline):
                tags[-tag] = (at + size - len(inline), n_bytes)
    return tags, order


def _few(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:4]))


def _in_xmp(data: memoryview, tags: dict[int, Any]) -> int:
    """The orientation that XMP gives, by Pillow's rule; 0 if it gives none."""
    where, n_bytes = tags.get(700, (0, 0))
    match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', data[where : where + min(n_bytes, XMP_BYTES)])
    return int(match[1]) if match else 0
