"""BMP files whose pixels are bit fields: masks say which of 16 or 32 bits are red, green, blue and alpha.

Pillow supports a few masks only; this module decodes any. The masks follow a header of 40 bytes, and are part of a longer one.
Only headers of 56 bytes and more (Windows' BITMAPV3HEADER and later), or compression 6, have a mask for alpha. A channel
without bits is 0, alpha without bits is opaque.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from ringload.images.resample import image_of

BITFIELDS, ALPHABITFIELDS = 3, 6
BAND_BYTES = 1 << 20  # of the file, decoded at a time


class Bmp(NamedTuple):
    """The header of a BMP file with bit fields."""

    height: int
    width: int
    bits: int
    is_upside_down: bool  # the first row in the file is the bottom of the image
    start: int  # where the pixels begin in the file
    masks: tuple[int, int, int, int]  # red, green, blue, alpha


def read_bmp(head: bytes) -> Bmp | None:
    """The header of a BMP file that begins with `head` (70 bytes); None if it has no bit fields."""
    if len(head) < 34:
        return None
    start, header_bytes = struct.unpack_from("<II", head, 10)
    if header_bytes < 40:
        return None
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", head, 18)
    if compression not in (BITFIELDS, ALPHABITFIELDS) or bits not in (16, 32) or len(head) < 70:
        return None
    n_masks = 4 if header_bytes >= 56 or compression == ALPHABITFIELDS else 3
    masks = (*struct.unpack_from(f"<{n_masks}I", head, 54), 0)[:4]
    return Bmp(abs(height), width, bits, height > 0, start, masks) if width > 0 and height and any(masks) else None


def decode_bmp(data: memoryview, header: Bmp, pads: bool) -> Image.Image:
    """Decode to a Pillow image: RGBA if alpha has a mask, else RGB. `pads`: missing pixels become black.

    Raises:
        ValueError: a mask has gaps, or more bits than pixels have; or the file is cut short.
    """
    width, height = header.width, header.height
    row_bytes = (width * header.bits + 31) // 32 * 4
    channels = header.masks if header.masks[3] else header.masks[:3]
    if not all(_is_field(mask) and mask < 1 << header.bits for mask in channels):
        fields = ", ".join(f"{mask:#x}" for mask in header.masks)
        raise ValueError(f"its bit fields {fields} are not valid for pixels of {header.bits} bits")
    pixels = np.zeros((height, width, len(channels)), np.uint8)
    step = max(1, BAND_BYTES // row_bytes)
    for first in range(0, height, step):
        rows = min(step, height - first)
        content = data[header.start + first * row_bytes : header.start + (first + rows) * row_bytes]
        if len(content) < rows * row_bytes:
            if not pads:
                raise ValueError(f"it is cut short: {len(data):,} of {header.start + height * row_bytes:,} bytes")
            content = memoryview(bytes(content) + bytes(rows * row_bytes - len(content)))
        values = np.frombuffer(content, f"<u{header.bits // 8}").reshape(rows, -1)[:, :width]
        for channel, mask in enumerate(channels):
            pixels[first : first + rows, :, channel] = _levels(values, mask)
    if header.is_upside_down:
        pixels = pixels[::-1]
    return image_of(pixels, "RGBA" if len(channels) == 4 else "RGB")


def _is_field(mask: int) -> bool:
    """Whether the bits of a mask are adjacent."""
    lowest = mask & -mask
    return (mask + lowest) & mask == 0


def _levels(values: np.ndarray, mask: int) -> np.ndarray:
    """The field under a mask, scaled to 0..255 and rounded down, as Pillow does."""
    if not mask:
        return np.zeros(values.shape, np.uint8)
    shift, most = (mask & -mask).bit_length() - 1, mask // (mask & -mask)
    field = ((values & values.dtype.type(mask)) >> values.dtype.type(shift)).astype(np.uint64)
    made: np.ndarray = (field * 255 // most).astype(np.uint8)
    return made
