"""DICOM files, by pydicom; compressed pixels by imagecodecs. Of several frames the first is read.

    values      stored value x RescaleSlope + RescaleIntercept, float32, so Hounsfield units for CT; integers as they are
                stored, where the file has neither, or 1 and 0
    in 8 bits   without rescaling, 0..2**BitsStored - 1; rescaled and signed values need value_range=(black, white). MONOCHROME1
                is inverted then. Windows and look-up tables for displays are not applied: they differ from file to file

The size is known before anything is decoded. The header of a compressed frame has to say the same. Deflated files (a transfer
syntax that nearly nobody uses) are refused: pydicom would inflate them without a limit.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ringload.errors import missing
from ringload.images.content_file import ContentFile
from ringload.images.jpeg2000 import STREAM, read_jpeg2000
from ringload.images.values import Opened, Values, opened

DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4."
DECODERS = {JPEG + number: "jpeg8_decode" for number in ("50", "51", "57", "70")}  # baseline, 12 bits, lossless
DECODERS |= {JPEG + number: "jpegls_decode" for number in ("80", "81")}
DECODERS |= {JPEG + number: "jpeg2k_decode" for number in ("90", "91", "201", "202", "203")}
FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)  # markers of JPEG and JPEG-LS whose segment begins with bits, height and width
SOI, EOI, TAIL_BYTES = b"\xff\xd8", b"\xff\xd9", 64  # the ends of JPEG and JPEG-LS; padding may follow
META = struct.Struct("<HH2sH")  # group, element, kind and length of an element of the file's own header
LONG_KINDS = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OD", b"OF", b"OL", b"UC", b"UR")  # whose length is in 4 bytes more
GRAY = ("MONOCHROME1", "MONOCHROME2")
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # RGB, once they are decoded
NATIVE = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",
)  # by pydicom; the last is RLE
PIXEL_BYTES = 20  # measured on 4 megapixels, with a copy of the file: 11.2 to 16.4 (rescaled)


def open_dicom(data: memoryview) -> Opened:
    """Open a DICOM file.

    Raises:
        ValueError: its header is not valid, its kind is not supported, or pydicom is missing.
    """
    syntax = _transfer_syntax(data)
    if syntax == DEFLATED:
        raise ValueError("deflated files are not supported")
    try:
        import pydicom
    except ImportError as error:
        raise ValueError(str(missing("reading it", "pydicom", error))) from error
    header: Any = pydicom.dcmread(ContentFile(data))
    if syntax not in DECODERS and syntax not in NATIVE:
        raise ValueError(f"pixels of the transfer syntax {syntax} are not supported")
    if "PixelData" not in header:
        raise ValueError("it has no pixels")
    height, width, n_values = int(header.Rows), int(header.Columns), int(header.get("SamplesPerPixel", 1))
    allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
    kind = str(header.PhotometricInterpretation)
    is_known = (kind in GRAY and n_values == 1) or (kind in COLORS and n_values == 3 and stored in (8, 16))
    if not (is_known and allocated in (1, 8, 16, 32) and 1 <= stored <= allocated):
        raise ValueError(f"{kind} pixels of {n_values} values of {stored} of {allocated} bits are not supported")
    if not (height and width):
        raise ValueError("its header has no size")
    if "ModalityLUTSequence" in header:
        raise ValueError("values that a modality look-up table gives are not supported")

    def read() -> Values:
        array = _stored(header, syntax, height, width, n_values)
        if array.shape[2] == 3:
            return Values(array, stored, 3)
        slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
        if (slope, intercept) == (1, 0):
            return Values(array, stored, 1, is_inverted=kind == "MONOCHROME1")
        return Values((array * np.float64(slope) + intercept).astype(np.float32), 0, 1)

    return opened(height, width, PIXEL_BYTES, read, len(data))


def _transfer_syntax(data: memoryview) -> str:
    """The transfer syntax, from the group 0002 after the signature."""
    at = 132
    while at + META.size <= len(data):
        group, element, kind, n_bytes = META.unpack_from(data, at)
        start = at + META.size
        if kind in LONG_KINDS and start + 4 <= len(data):
            n_bytes, start = struct.unpack_from("<I", data, start)[0], start + 4
        if group != 2:
            break
        if element == 0x10:
            return bytes(data[start : start + n_bytes]).rstrip(b"\0 ").decode("ascii", "replace")
        at = start + n_bytes
    raise ValueError("its header names no transfer syntax")


def _stored(header: Any, syntax: str, height: int, width: int, n_values: int) -> np.ndarray:
    """The stored values of the first frame: `(h, w, n_values)`."""
    array = _decompressed(header, syntax, height, width) if syntax in DECODERS else _by_pydicom(header)
    array = array.reshape(height, width, n_values)
    if n_values > 1:
        return array
    return _integers(array, int(header.BitsAllocated), int(header.BitsStored), bool(header.get("PixelRepresentation", 0)))


def _integers(array: np.ndarray, bits: int, n_stored: int, is_signed: bool) -> np.ndarray:
    """Integers of `n_stored` bits, which are the lower ones of `bits`. What is in the others is no part of the values."""
    bits = max(8, bits)
    values = array.astype(f"{'i' if is_signed else 'u'}{bits // 8}")
    unused = bits - n_stored
    return (values << unused) >> unused if unused else values


def _by_pydicom(header: Any) -> np.ndarray:
    from pydicom import pixels

    array: np.ndarray = pixels.pixel_array(header, index=0)  # type: ignore[attr-defined,unused-ignore]
    return array


def _decompressed(header: Any, syntax: str, height: int, width: int) -> np.ndarray:
    """The first frame of compressed pixels.

    Raises:
        ValueError: its own header has another size, or imagecodecs is missing.
    """
    from pydicom.encaps import get_frame

    frame = get_frame(header.PixelData, 0, number_of_frames=int(header.get("NumberOfFrames", 1) or 1))
    size = _size_of(memoryview(frame))
    if size != (height, width):
        raise ValueError(f"a frame of {size[0]} x {size[1]} pixels, not {height} x {width} as its header says")
    if frame[:2] == SOI and EOI not in frame[-TAIL_BYTES:]:  # the decoder would fill in what is missing
        raise ValueError("the compressed frame is cut short: its end is missing")
    try:
        import imagecodecs
    except ImportError as error:
        raise ValueError(str(missing("reading its compressed pixels", "imagecodecs", error))) from error
    name = DECODERS[syntax]
    is_rgb = name == "jpeg8_decode" and header.PhotometricInterpretation == "RGB"  # and not YCC, as the decoder would guess
    array: np.ndarray = getattr(imagecodecs, name)(frame, **({"colorspace": "RGB", "outcolorspace": "RGB"} if is_rgb else {}))
    return array


def _size_of(frame: memoryview) -> tuple[int, int]:
    """(height, width) of a compressed frame: JPEG, JPEG-LS or JPEG 2000."""
    if bytes(frame[:4]) == STREAM or bytes(frame[4:8]) == b"jP  ":
        header = read_jpeg2000(frame)
        return header.height, header.width
    at = 2
    while bytes(frame[:2]) == SOI and at + 9 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xFF:
            at += 1
            continue
        if frame[at + 1] in FRAMES:
            height, width = struct.unpack_from(">HH", frame, at + 5)
            return height, width
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    raise ValueError("the header of its compressed frame is not valid")
