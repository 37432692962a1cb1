"""Image formats by the first bytes of a file; the options for pixels; and the text of a decoder's refusal."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from ringload.checks import one_of, short, two_numbers
from ringload.errors import ConfigError

Color = Literal["rgb", "gray", "rgba"]
Truncated = Literal["refuse", "pad"]

N_CHANNELS: dict[Color, int] = {"rgb": 3, "gray": 1, "rgba": 4}
MODES: dict[Color, str] = {"rgb": "RGB", "gray": "L", "rgba": "RGBA"}  # Pillow's
ORIENTATION = 0x0112  # the EXIF tag

SIGNATURES = (  # the first bytes, as a regular expression, and the name of the format
    (rb".{128}DICM", "DICOM"),  # first: the 128 bytes may be the header of a TIFF file, for viewers of that
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG", "PNG"),
    (rb"RIFF....WEBP", "WebP"),
    (rb"BM", "BMP"),
    (rb"GIF8", "GIF"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"P[1-6][\s#]", "PNM"),
    (rb"P[fF]\s", "PFM"),
    (rb"....ftyp(?:avif|avis)|....ftyp(?:mif1|msf1|miaf).*avif", "AVIF"),
    (rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1|miaf)", "HEIC"),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a", "JPEG XL"),
    (rb"qoif", "QOI"),
    (rb"\x93NUMPY", ".npy"),
)
FORMATS = tuple(name for _, name in (*SIGNATURES[1:], SIGNATURES[0]))
HEAD_BYTES = 132  # of a file: enough to tell its format
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c"),
    *(".jpc", ".jpf", ".jpx", ".jxl", ".qoi", ".dcm", ".dicom"),
)  # not .npy: beside images, such files hold masks and features

CODEC_ERRORS = {  # codes of Pillow's C code, which come without a text
    -1: "they do not fit into the image",
    -2: "they are damaged",
    -3: "for an unknown reason",
    -8: "the decoder cannot be set up for them",
    -9: "there is not enough memory",
}
WITHOUT_TEXT = (KeyError, IndexError, TypeError, AttributeError, AssertionError, ArithmeticError, EOFError, struct.error)


@dataclass(frozen=True)
class Wanted:
    """The options for an image's pixels. See `ImageFrame`."""

    color: Color = "rgb"
    background: tuple[int, int, int] | None = None
    value_range: tuple[float, float] | None = None
    truncated: Truncated | None = None
    keeps_values: bool = False  # pixels of more than 8 bits are not mapped to 8 bits

    @classmethod
    def of(cls, color: Color, background: Any, value_range: Any, truncated: Any, keeps_values: bool) -> Wanted:
        """The options as a user gives them.

        Raises:
            ConfigError: an option is not valid.
        """
        if truncated is not None:
            one_of("truncated", truncated, get_args(Truncated))
        if keeps_values:
            _check_kept(color, background, value_range)
        return cls(color, _background(background, color), _value_range(value_range), truncated, keeps_values)

    @property
    def alpha_counts(self) -> bool:
        """Whether the result depends on which pixels are transparent."""
        return self.color == "rgba" or self.background is not None


def _check_kept(color: Color, background: Any, value_range: Any) -> None:
    given = {"color='rgba'": color == "rgba", "background": background is not None, "value_range": value_range is not None}
    for name, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"{name} is for images of 8 bits a value, and dtype='uint16' and scale=None keep the values that files have: "
                "leave it out, or choose dtype='uint8', or dtype='float32' with scale=(low, high)"
            )


def _background(given: Any, color: Color) -> tuple[int, int, int] | None:
    if given is None:
        return None
    levels = tuple(given) if isinstance(given, Sequence | np.ndarray) else (given,) * 3
    if len(levels) != 3 or not all(isinstance(one, int | np.integer) and 0 <= one <= 255 for one in levels):
        raise ConfigError(f"background is (red, green, blue) or one level of gray, each in 0..255, not {short(given)}")
    if color == "rgba":
        raise ConfigError(
            "background replaces transparent pixels for color='rgb' or 'gray'; color='rgba' keeps alpha: leave it out"
        )
    return int(levels[0]), int(levels[1]), int(levels[2])


def _value_range(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    if (ends := two_numbers(given)) is None:
        raise ConfigError(
            "value_range is (black, white), the values of pixels that become 0 and 255: two finite numbers that differ, not "
            f"{short(given)}"
        )
    return ends


class Scratch:
    """Memory that is used again for each image. It is empty after unpickling."""

    def __init__(self) -> None:
        self._pixels = np.empty(0, np.uint8)

    def pixels(self, n_bytes: int, keep: bool) -> np.ndarray:
        """`(n,) uint8` with n >= n_bytes; kept for the next image if `keep`."""
        if n_bytes <= len(self._pixels):
            return self._pixels
        made = np.empty(n_bytes + n_bytes // 4 if keep else n_bytes, np.uint8)
        if keep:
            self._pixels = made
        return made

    def __reduce__(self) -> Any:
        return Scratch, ()


def format_of(head: bytes) -> str:
    """The format of a file that begins with `head`; one of `FORMATS`, or ""."""
    return next((name for pattern, name in SIGNATURES if re.match(pattern, head, re.DOTALL)), "")


def refusal(name: str, error: Exception, printed: str = "") -> Exception:
    """The error for a file that a decoder refused, with the decoder's text and what it printed. An error of the system, which
    is not the file's fault, is returned as it is."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return error
    text = _reason(error)
    return ValueError(f"{'an' if name[0] in 'A' else 'a'} {name} file: {text}{f' ({printed})' if printed else ''}")


def _reason(error: Exception) -> str:
    cause = error.__cause__ if str(error.__cause__) == str(error) else error  # Pillow turns its own failures into SyntaxError
    if isinstance(cause, WITHOUT_TEXT):
        return f"its header is not valid ({type(cause).__name__}: {cause})"
    text = re.sub(r"\bb'([^']*)'|\bb\"([^\"]*)\"", r"\1\2", " ".join(str(error).split()))
    text = re.sub(r"^broken PNG file \((.*)\)$", r"\1", text)
    if match := re.fullmatch(r"(?:\w+ )?error (-?\d+)(?: when reading image file)?", text):
        return f"its pixels cannot be decoded: {CODEC_ERRORS.get(int(match[1]), 'they are damaged')}"
    if text == "not identified by this driver":
        return "its header is damaged"
    return text or f"it is damaged ({type(error).__name__})"


def orientation_of(image: Image.Image) -> int:
    """The orientation 1..8 by EXIF, or else by XMP, as in `ImageOps.exif_transpose`; 1 if neither can be read."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # SyntaxError, struct.error, ...: the metadata are damaged, the image need not be
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
