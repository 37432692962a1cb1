"""Mutated image files, and a process that decodes them: `python -m tests.fuzzing SEED START STOP PROGRESS`.

Input number n is a function of (seed, n) alone, so one that does harm is known by its number. It is decoded as workers do,
into the middle one of three rows with canary bytes around. A harm that can be seen ends the process with a word;
before each input its number is written into the file PROGRESS, so that whoever started the process knows what ended it.
"""

from __future__ import annotations

import io
import itertools
import os
import resource
import signal
import sys
import warnings
from collections import Counter
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import tifffile
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from ringload.images.decoder import ImageDecoder
from ringload.images.geometry import Geometry
from tests.helpers import photo
from tests.hostile import PROGRESSIVE, chunk, image, png
from tests.test_formats import bmp
from tests.test_wide import png_of_16_bits

HEIGHT, WIDTH = 20, 24
ENCODERS: Any = imagecodecs  # its stubs do not know that it returns bytes here
CANARY = 0xC5
INPUT_S = 5  # of CPU time that an input may take: more is a hang
MAX_PIXELS = 1 << 20
MEMORY_BYTES = 64 << 20  # by which decoding may raise the peak: 16 bytes a pixel, and the decoders' own
ADDRESS_BYTES = 8 << 30  # address space: WebP's decoder asks for the canvas of the header, and never touches it
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
WEIGHTS = {"JPEG": 10, "PROGRESSIVE": 6, "PNG": 8, "WEBP": 2, "GIF": 2, "TIFF": 2, "BMP": 2}
WEIGHTS |= {"WIDE TIFF": 5, "WIDE PNG": 3, "FIELDS": 2, "PNM": 2}
WEIGHTS |= {"HEIC": 4, "JPEG 2000": 4, "JPEG XL": 4, "QOI": 2, "NPY": 2, "DICOM": 4}


@cache
def bases() -> dict[str, list[bytes]]:
    """Files to start from, by format."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
    wide = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    return {
        "WIDE TIFF": [
            tiff_of(wide, photometric="rgb"),
            tiff_of(wide, photometric="rgb", compression="zlib", predictor=True, byteorder=">"),
            tiff_of(np.moveaxis(wide, 2, 0), photometric="rgb", planarconfig="separate"),
            tiff_of(wide[:, :, 0], photometric="miniswhite", bigtiff=True),
            tiff_of(wide.astype(np.float32) / 65535, photometric="rgb", tile=(16, 16)),
        ],
        "WIDE PNG": [png_of_16_bits(wide, 2, chunk(b"tRNS", b"\0\1\0\2\0\3")), png(chunk(b"zTXt", b"k\0\0nonsense"))],
        "FIELDS": [
            bmp(photo(1, HEIGHT, WIDTH), 16, (0xF00, 0xF0, 0xF), 56)[0],
            bmp(photo(1, HEIGHT, WIDTH), 32, (0xFF, 0xFF00, 0xFF0000))[0],
        ],
        "PNM": [b"P5 %d %d 4095\n" % (WIDTH, HEIGHT) + wide[:, :, 0].tobytes(), b"P3 2 2 999\n" + b"12 " * 12, image("PPM")],
        "JPEG": [image("JPEG"), image("JPEG", "L"), image("JPEG", "CMYK"), image("JPEG", subsampling=0, exif=exif)],
        "PROGRESSIVE": [PROGRESSIVE, image("JPEG", "L", progressive=True)],
        "PNG": [image("PNG"), image("PNG", "P"), image("PNG", "RGBA"), image("PNG", "I;16"), image("PNG", "1")],
        "WEBP": [image("WEBP"), image("WEBP", "RGBA", lossless=True)],
        "GIF": [image("GIF", "P"), image("GIF", "L")],
        "TIFF": [image("TIFF"), image("TIFF", compression="tiff_lzw"), image("TIFF", compression="jpeg")],
        "BMP": [image("BMP"), image("BMP", "P"), image("BMP", "L")],
    } | more_bases(wide)


def more_bases(wide: np.ndarray) -> dict[str, list[bytes]]:
    """Files of the formats that need the extra `formats`, and of .npy. `wide`: `(HEIGHT, WIDTH, 3) uint16`."""
    shown, gray = photo(1, HEIGHT, WIDTH), np.ascontiguousarray(wide[:, :, 0])
    lossless = ENCODERS.jpegls_encode(gray)
    return {
        "HEIC": [heic_of(shown, "RGB"), heic_of(np.dstack([shown, shown[:, :, :1]]), "RGBA"), heic_of(wide, "RGB;16")],
        "JPEG 2000": [image("JPEG2000"), image("JPEG2000", "L"), ENCODERS.jpeg2k_encode(wide, level=0)],
        "JPEG XL": [
            ENCODERS.jpegxl_encode(shown, level=80),
            ENCODERS.jpegxl_encode(wide, lossless=True),
            ENCODERS.jpegxl_encode(shown, lossless=True, usecontainer=True),
        ],
        "QOI": [ENCODERS.qoi_encode(shown), ENCODERS.qoi_encode(np.dstack([shown, shown[:, :, :1]]))],
        "NPY": [npy_of(shown), npy_of(wide), npy_of(gray.astype(np.float64) / 65535)],
        "DICOM": [
            dicom_of(gray),
            dicom_of(shown),
            dicom_of(gray, RescaleSlope="2", RescaleIntercept="-9"),
            dicom_of(gray, JPEGLSLossless, lossless),
            dicom_of(gray, JPEG2000Lossless, ENCODERS.jpeg2k_encode(gray, level=0, codecformat="j2k")),
        ],
    }


def heic_of(pixels: np.ndarray, mode: str, **options: Any) -> bytes:
    """A lossless HEIC file; with mode "RGB;16", of 10 bits."""
    file = io.BytesIO()
    height, width = pixels.shape[:2]
    made = pillow_heif.from_bytes(mode, (width, height), pixels.tobytes())
    made.save(file, **{"quality": -1, "chroma": 444, "matrix_coefficients": 0, **options})
    return file.getvalue()


def npy_of(array: np.ndarray) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def dicom_of(array: np.ndarray, syntax: str = ExplicitVRLittleEndian, frame: bytes = b"", **more: Any) -> bytes:
    """A DICOM file of one frame, `array (h, w)` or `(h, w, 3)`; `frame`: its compressed pixels; `more`: other elements."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.Rows, made.Columns = array.shape[:2]
    made.SamplesPerPixel = 1 if array.ndim == 2 else 3
    made.PhotometricInterpretation = "MONOCHROME2" if array.ndim == 2 else "RGB"
    made.BitsAllocated = made.BitsStored = array.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(array.dtype.kind == "i")
    if array.ndim == 3:
        made.PlanarConfiguration = 0
    made.PixelData = encapsulate([frame]) if frame else array.tobytes()
    made["PixelData"].VR = "OB" if frame or array.dtype.itemsize == 1 else "OW"
    for name, value in more.items():
        setattr(made, name, value)
    file = io.BytesIO()
    dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


def tiff_of(pixels: np.ndarray, **options: Any) -> bytes:
    """A TIFF file."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def make_input(seed: int, number: int) -> bytes:
    """Input `number`: a file with one to four mutations."""
    rng = np.random.default_rng([seed, number])
    names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    files = bases()[names[rng.integers(len(names))]]
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 5)):
        MUTATIONS[rng.integers(len(MUTATIONS))](data, rng)
    return bytes(data) or b"\0"


def flip(data: bytearray, rng: np.random.Generator) -> None:
    """Some bits, anywhere."""
    for _ in range(rng.integers(1, 9) if data else 0):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))


def spoil_header(data: bytearray, rng: np.random.Generator) -> None:
    """One to four bytes in a row, near the beginning, are extremes: sizes, counts, lengths, offsets."""
    at = int(rng.integers(max(1, min(len(data), 400))))
    for offset in range(at, min(at + int(rng.integers(1, 5)), len(data))):
        data[offset] = EXTREMES[rng.integers(len(EXTREMES))]


def cut(data: bytearray, rng: np.random.Generator) -> None:
    """The end is missing."""
    del data[int(rng.integers(len(data) + 1)) :]


def remove(data: bytearray, rng: np.random.Generator) -> None:
    """A part is missing."""
    at = int(rng.integers(len(data) + 1))
    del data[at : at + int(rng.integers(1, 64))]


def insert(data: bytearray, rng: np.random.Generator) -> None:
    """A segment is there twice, or has noise before it."""
    at = int(rng.integers(len(data) + 1))
    first = int(rng.integers(len(data) + 1))
    data[at:at] = data[first : first + 200] if rng.random() < 0.5 else rng.bytes(int(rng.integers(1, 40)))


def splice(data: bytearray, rng: np.random.Generator) -> None:
    """The end is another file's."""
    files = list(itertools.chain(*bases().values()))
    other = files[rng.integers(len(files))]
    data[int(rng.integers(len(data) + 1)) :] = other[int(rng.integers(len(other))) :]


def large_segment(data: bytearray, rng: np.random.Generator) -> None:
    """A marker of JPEG's with a length of its own."""
    at = data.find(b"\xff", int(rng.integers(len(data) + 1)))
    if at >= 0:
        data[at : at + 4] = bytes([0xFF, int(rng.integers(0xC0, 0x100)), *rng.bytes(2)])


LOOKS: tuple[dict[str, Any], ...] = (
    {},
    {"value_range": (0, 4095), "truncated": "pad"},
    {"background": 7, "truncated": "refuse", "interpolation": "fast"},
)
MUTATIONS = (flip, flip, spoil_header, spoil_header, cut, remove, insert, splice, large_segment)


@cache
def decoders() -> list[ImageDecoder]:
    """One of each kind there is: of geometry, colours, dtype, and what comes after."""
    return [
        ImageDecoder(Geometry(HEIGHT, WIDTH, resize), color, dtype, exif=exif, flip=flip, max_pixels=MAX_PIXELS, **looks)
        for resize, color, dtype, (exif, flip), looks in itertools.product(
            ("stretch", "crop", "random_crop"),
            ("rgb", "gray", "rgba"),
            ("uint8", "float32"),
            ((False, False), (True, True)),
            LOOKS,
        )
        if color != "rgba" or "background" not in looks
    ] + [
        ImageDecoder(
            Geometry(HEIGHT - 3, WIDTH, resize), color, dtype, None, flip=True, max_pixels=MAX_PIXELS, interpolation=scaled
        )
        for resize, color, dtype, scaled in itertools.product(
            ("stretch", "random_crop"), ("rgb", "gray"), ("uint16", "float32"), ("auto", "cubic")
        )
    ]


def decode(decoder: ImageDecoder, data: bytes, seed: list[int], fill: int) -> bytes:
    """Decode into the middle one of three rows, within canaries. Returns what the row holds."""
    shape, dtype = decoder.field.shape, decoder.field.dtype
    row_bytes = decoder.field.row_bytes
    memory = np.full(3 * row_bytes + 128, CANARY, np.uint8)
    rows = memory[64 : 64 + 3 * row_bytes].view(dtype).reshape(3, *shape)
    row = memory[64 + row_bytes : 64 + 2 * row_bytes]
    row[:] = fill
    try:
        decoder.load(data, np.random.default_rng(seed), rows[1])
    finally:
        row_now = row.tobytes()
        row[:] = CANARY
        if (memory != CANARY).any():
            raise SystemExit("wrote outside of its row")
    return row_now


def attack(seed: int, number: int) -> str:
    """Decode one input. Returns the kind of its error, or "" if it was an image."""
    data = make_input(seed, number)
    decoder = decoders()[number % len(decoders())]
    try:
        first = decode(decoder, data, [seed, number], 0)
    except Exception as error:
        str(error)
        return type(error).__name__
    other = decoder.copy_with()  # whose scratch, and row, hold something else
    other._scratch.pixels(1 << 16, keep=True)[:] = 0xEE
    if decode(other, data, [seed, number], 0xFF) != first:
        raise SystemExit("not the same twice: it shows what was in memory before")
    return ""


def peak_bytes() -> int:
    """The most memory that this program has had so far; `getrusage` counts in what its process had before."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main(seed: int, start: int, stop: int, progress_path: str) -> None:
    """Print what came of the inputs: kind of error -> how many."""
    warnings.simplefilter("ignore")
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    progress = os.open(progress_path, os.O_WRONLY)
    found: Counter[str] = Counter()
    begin_bytes = 0
    for number in range(start, stop):
        os.pwrite(progress, number.to_bytes(8, "little"), 0)
        signal.setitimer(signal.ITIMER_PROF, INPUT_S)  # then SIGPROF ends it, wherever it hangs
        found[attack(seed, number)] += 1
        begin_bytes = begin_bytes or peak_bytes()
    grown_bytes = peak_bytes() - begin_bytes
    if grown_bytes > MEMORY_BYTES:
        raise SystemExit(f"took {grown_bytes:,} bytes of memory")
    print(dict(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
