"""Makes images smaller on the way into tar shards: decoded as `ImageFrame` does, encoded as JPEG."""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.images.decoder import ImageDecoder
from ringload.images.formats import orientation_of
from ringload.images.geometry import Geometry

SIZE = re.compile(r"(?:(\d{1,5})x)?(\d{1,5})")
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


class Resized(NamedTuple):
    """What becomes of images: `height` x `width` pixels; or, with `height` 0, `width` pixels on the shortest side. `quality`:
    that of JPEG, 1 to 100."""

    height: int
    width: int
    quality: int

    def of(self, content: bytes) -> bytes | None:
        """A smaller image, upright by its EXIF orientation, as JPEG in RGB; None if the image is not larger than that, so that
        its content is kept as it is.

        Raises:
            OSError, ValueError: the image cannot be decoded.
        """
        with Image.open(io.BytesIO(content)) as image:  # the header alone is read
            width, height = image.size
            if orientation_of(image) in TRANSPOSED:
                width, height = height, width
        wanted = (self.height, self.width) if self.height else _shortest(height, width, self.width)
        if wanted is None or wanted == (height, width):
            return None
        pixels = np.empty((*wanted, 3), np.uint8)
        ImageDecoder(Geometry(*wanted), exif=True).load(content, None, pixels)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=self.quality)
        return encoded.getvalue()


def resized_of(text: str | None, quality: int) -> Resized | None:
    """The option of the command line: "256x256" (height x width), or "256", the shortest side.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    match = SIZE.fullmatch(text)
    if match is None or not int(match[2]) or match[1] == "0":
        raise ConfigError(f"--resize is HEIGHTxWIDTH in pixels, or one number for the shortest side, not {short(text)}")
    return Resized(int(match[1] or 0), int(match[2]), quality)


def _shortest(height: int, width: int, side: int) -> tuple[int, int] | None:
    """The size with `side` pixels on the shortest side; None if that is no smaller."""
    least = min(height, width)
    return (max(side, round(height * side / least)), max(side, round(width * side / least))) if side < least else None
