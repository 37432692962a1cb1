"""Formats that need the extra `formats`, and JPEG 2000: the pixels are those of the reference library, or there is a reason."""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image, ImageOps
from pydicom import pixels
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from ringload import ConfigError, ImageFrame, Loader
from ringload.images.decoder import ImageDecoder
from ringload.images.formats import SUFFIXES, format_of
from ringload.images.geometry import Geometry
from ringload.images.jpeg2000 import read_jpeg2000
from ringload.images.jpegxl import read_jpegxl
from tests.fuzzing import ENCODERS, dicom_of, heic_of, npy_of, tiff_of
from tests.helpers import photo, run_quietly

HEIGHT, WIDTH = 20, 30
PHOTO = photo(2, HEIGHT, WIDTH)
ALPHA = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH, 1)
RGBA = np.concatenate([PHOTO, ALPHA], axis=2)
WIDE = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
PYDICOMS = Path(pydicom.__file__).parent / "data" / "test_files"


def decode(data: bytes, color: Any = "rgb", size: tuple[int, int] = (HEIGHT, WIDTH), **options: Any) -> np.ndarray:
    decoder = ImageDecoder(Geometry(*size), color, **options)
    row = np.zeros(decoder.field.shape, decoder.field.dtype)
    decoder.load(data, None, row)
    return row


def saved(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


LOSSLESS = {  # a file of PHOTO in each format
    "HEIC": heic_of(PHOTO, "RGB"),
    "JPEG 2000": saved(PHOTO, "JPEG2000"),
    "JPEG 2000 stream": saved(PHOTO, "JPEG2000", no_jp2=True),
    "JPEG XL": ENCODERS.jpegxl_encode(PHOTO, lossless=True, usecontainer=False),
    "JPEG XL container": ENCODERS.jpegxl_encode(PHOTO, lossless=True, usecontainer=True),
    "QOI": ENCODERS.qoi_encode(PHOTO),
    ".npy": npy_of(PHOTO),
    ".npy by columns": npy_of(np.asfortranarray(PHOTO)),
    "DICOM": dicom_of(PHOTO),
}
KEPT = {  # a file of WIDE, or its upper 10 bits, in each format that has it: the file, the values
    "HEIC": (heic_of(WIDE, "RGB;16"), WIDE >> 6),
    "JPEG 2000": (ENCODERS.jpeg2k_encode(WIDE, level=0), WIDE),
    "JPEG 2000 of 12 bits": (ENCODERS.jpeg2k_encode(WIDE >> 4, level=0, bitspersample=12), WIDE >> 4),
    "JPEG XL": (ENCODERS.jpegxl_encode(WIDE, lossless=True), WIDE),
    "JPEG XL of 12 bits": (ENCODERS.jpegxl_encode(WIDE >> 4, lossless=True, bitspersample=12), WIDE >> 4),
    ".npy": (npy_of(WIDE), WIDE),
    "DICOM": (dicom_of(WIDE), WIDE),
    "PNG": (ENCODERS.png_encode(WIDE), WIDE),
    "TIFF": (tiff_of(WIDE, photometric="rgb"), WIDE),
    "TIFF in planes": (tiff_of(np.moveaxis(WIDE, 2, 0), photometric="rgb", planarconfig="separate", compression="zlib"), WIDE),
    "PPM": (b"P6 30 20 65535\n" + WIDE.astype(">u2").tobytes(), WIDE),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_pixels_are_right_in_all_colours(name: str) -> None:
    data = LOSSLESS[name]
    np.testing.assert_array_equal(decode(data), PHOTO)
    gray = np.asarray(Image.fromarray(PHOTO).convert("L"))
    np.testing.assert_array_equal(decode(data, "gray")[:, :, 0], gray)
    rgba = decode(data, "rgba")
    np.testing.assert_array_equal(rgba, np.dstack([PHOTO, np.full((HEIGHT, WIDTH), 255, np.uint8)]))
    np.testing.assert_array_equal(decode(data, dtype="float32", scale=(0, 1)), PHOTO / np.float32(255))
    np.testing.assert_array_equal(decode(data, value_range=(0, 4095)), PHOTO)  # that is for files of more than 8 bits
    for dtype in ("uint16", "float32"):  # 8 bits stay 0..255
        np.testing.assert_array_equal(decode(data, dtype=dtype, scale=None), PHOTO)
    small = decode(data, size=(9, 11))
    np.testing.assert_array_equal(decode(npy_of(PHOTO), size=(9, 11), dtype="uint16"), small)
    reference = np.asarray(Image.fromarray(PHOTO).resize((11, 9), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(small - reference).max() <= 1


ALPHAS = {
    "HEIC": heic_of(RGBA, "RGBA"),
    "JPEG 2000": saved(RGBA, "JPEG2000"),
    "JPEG XL": ENCODERS.jpegxl_encode(RGBA, lossless=True),
    "QOI": ENCODERS.qoi_encode(RGBA),
    ".npy": npy_of(RGBA),
}


@pytest.mark.parametrize("name", ALPHAS)
def test_alpha_and_background(name: str) -> None:
    data = ALPHAS[name]
    np.testing.assert_array_equal(decode(data, "rgba")[:, :, 3:], ALPHA)
    np.testing.assert_array_equal(decode(data, "rgba")[2:], RGBA[2:])  # where it is not transparent
    np.testing.assert_array_equal(decode(data)[2:], PHOTO[2:])
    shown = Image.new("RGB", (WIDTH, HEIGHT), (9, 8, 7))
    shown.paste(Image.fromarray(RGBA), mask=Image.fromarray(ALPHA[:, :, 0]))
    np.testing.assert_array_equal(decode(data, background=(9, 8, 7))[2:], np.asarray(shown)[2:])


@pytest.mark.parametrize("name", KEPT)
def test_values_are_kept(name: str) -> None:
    data, expected = KEPT[name]
    np.testing.assert_array_equal(decode(data, dtype="uint16"), expected)
    np.testing.assert_array_equal(decode(data, dtype="float32", scale=None), expected.astype(np.float32))
    np.testing.assert_array_equal(decode(data, dtype="uint16", exif=True), expected)
    gray = decode(data, "gray", dtype="float32", scale=None)[:, :, 0]
    np.testing.assert_allclose(gray, expected @ np.array([0.299, 0.587, 0.114]), rtol=2e-5)
    np.testing.assert_array_equal(decode(data, "gray", dtype="uint16")[:, :, 0], np.floor(gray.astype(float) + 0.5))
    n_bits = 16 - int(np.log2(65536 // (int(expected.max()) + 1)))
    np.testing.assert_array_equal(decode(data), expected >> (n_bits - 8))
    exact = np.rint((expected.astype(float) / 1000).clip(0, 1) * 255)
    np.testing.assert_array_equal(decode(data, value_range=(0, 1000)), exact)


@pytest.mark.parametrize("name", KEPT)
def test_kept_values_are_resized_as_pillow_resizes_floats(name: str) -> None:
    data, expected = KEPT[name]
    planes = [
        np.asarray(Image.fromarray(expected[:, :, c].astype(np.float32)).resize((13, 7), Image.Resampling.BILINEAR))
        for c in range(3)
    ]
    np.testing.assert_array_equal(decode(data, size=(7, 13), dtype="float32", scale=None), np.dstack(planes))
    np.testing.assert_array_equal(decode(data, size=(7, 13), dtype="uint16"), np.rint(np.dstack(planes)))
    for interpolation in ("nearest", "linear", "area", "cubic", "lanczos", "fast"):
        row = decode(data, size=(7, 13), dtype="uint16", interpolation=interpolation)
        assert np.abs(row.mean() - expected.mean()) < 0.1 * expected.max()
    nearest = decode(data, size=(HEIGHT // 2, WIDTH // 2), dtype="uint16", interpolation="nearest")
    np.testing.assert_array_equal(nearest, expected[::2, ::2])


FLOATS = ((np.random.default_rng(1).random((HEIGHT, WIDTH)) - 0.3) * 1e4).astype(np.float32)


@pytest.mark.parametrize(
    "data",
    [
        npy_of(FLOATS),
        npy_of(FLOATS.astype(">f8")),
        b"Pf\n30 20\n-1.0\n" + FLOATS[::-1].tobytes(),
        b"Pf 30 20 2.5\n" + FLOATS[::-1].astype(">f4").tobytes(),
        tiff_of(FLOATS),
        tiff_of(FLOATS, compression="zlib", predictor=True),
        ENCODERS.jpegxl_encode(FLOATS, lossless=True),
    ],
    ids=["npy", "npy of 64 bits, big-endian", "PFM", "PFM, big-endian, with a scale", "TIFF", "TIFF, deflate", "JPEG XL"],
)
def test_floats_are_kept(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data, "gray", dtype="float32", scale=None)[:, :, 0], FLOATS)
    np.testing.assert_array_equal(decode(data, dtype="float32", scale=None), np.dstack([FLOATS] * 3))
    with pytest.raises(ValueError, match=r"do not fit into uint16: dtype='float32' with scale=None"):
        decode(data, dtype="uint16")
    with pytest.raises(ValueError, match="floating-point pixels from"):
        decode(data)
    exact = np.rint((FLOATS.astype(float) / 2000).clip(0, 1) * 255)
    assert np.abs(decode(data, "gray", value_range=(0, 2000))[:, :, 0] - exact).max() <= 1


def test_kept_values_are_turned_mirrored_and_cropped() -> None:
    rng = np.random.default_rng(3)
    for orientation in range(1, 9):
        data = tiff_of(WIDE, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
        turned = Image.fromarray(np.arange(HEIGHT * WIDTH).astype(np.int32).reshape(HEIGHT, WIDTH))
        for step in {2: [0], 3: [3], 4: [1], 5: [5], 6: [4], 7: [6], 8: [2]}.get(orientation, []):
            turned = turned.transpose(Image.Transpose(step))
        expected = WIDE.reshape(-1, 3)[np.asarray(turned)]
        np.testing.assert_array_equal(decode(data, size=expected.shape[:2], exif=True, dtype="uint16"), expected)
        np.testing.assert_array_equal(decode(data, dtype="uint16"), WIDE)
    decoder = ImageDecoder(Geometry(HEIGHT, WIDTH), dtype="uint16", flip=True)
    rows = []
    for _ in range(20):
        row = np.zeros(decoder.field.shape, np.uint16)
        decoder.load(npy_of(WIDE), rng, row)
        rows.append(row)
    assert {row.tobytes() for row in rows} == {WIDE.tobytes(), WIDE[:, ::-1].tobytes()}
    np.testing.assert_array_equal(
        decode(npy_of(WIDE), size=(10, 10), dtype="uint16", interpolation="nearest")[:, 0], WIDE[::2, 0]
    )
    cropped = ImageDecoder(Geometry(HEIGHT, HEIGHT, "crop"), dtype="uint16")
    row = np.zeros(cropped.field.shape, np.uint16)
    cropped.load(npy_of(WIDE), None, row)
    np.testing.assert_array_equal(row, WIDE[:, 5:25])


def test_a_transform_gets_kept_values() -> None:
    def twice(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        assert image.dtype == np.uint16
        return image // 2

    decoder = ImageDecoder(Geometry(HEIGHT, WIDTH), dtype="uint16", transform=twice)
    row = np.zeros(decoder.field.shape, np.uint16)
    decoder.load(npy_of(WIDE), np.random.default_rng(0), row)
    np.testing.assert_array_equal(row, WIDE // 2)
    wrong = ImageDecoder(Geometry(HEIGHT, WIDTH), dtype="uint16", transform=lambda image, rng: image[:4])
    with pytest.raises(ValueError, match=r"has to return an array \(20, 30, 3\) uint16"):
        wrong.load(npy_of(WIDE), np.random.default_rng(0), row)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "uint16", "color": "rgba"}, "color='rgba' is for images of 8 bits"),
        ({"dtype": "uint16", "background": 3}, "background is for images of 8 bits"),
        ({"dtype": "float32", "scale": None, "value_range": (0, 1)}, "value_range is for images of 8 bits"),
        ({"dtype": "uint16", "scale": (0, 1)}, "scale=\\(0, 1\\) needs dtype='float32': dtype='uint16' keeps the values"),
        ({"dtype": "uint8", "scale": None}, "scale is \\(low, high\\)"),
        ({"dtype": "int16"}, "dtype is"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ImageFrame(pd.DataFrame({"path": ["a"]}), size=(2, 2), **options)


# -- DICOM ----------------------------------------------------------------------------------------------------------------


def reference(path: Path) -> np.ndarray | None:
    """The values of a file's first frame, by pydicom; None: it cannot decode them."""
    try:
        header = pydicom.dcmread(path)
        values = pixels.pixel_array(header, index=0)
    except Exception:  # of many kinds
        return None
    values = pixels.apply_modality_lut(values, header) if "RescaleSlope" in header else values
    return np.asarray(values, np.float32)


REFUSED = ("SC_rgb_rle_32bit", "examples_palette", "image_dfl")
FILES = sorted(path for path in PYDICOMS.rglob("*.dcm") if not path.name.startswith(REFUSED))


@pytest.mark.filterwarnings("ignore:::pydicom")
def test_values_of_dicom_files_are_those_of_pydicom() -> None:
    """Of all files that pydicom brings along: CT, MR, ultrasound, big-endian, implicit, RLE, JPEG, 1 to 32 bits."""
    n_equal = 0
    for path in FILES:
        if (expected := reference(path)) is None:
            continue
        color = "gray" if expected.ndim == 2 else "rgb"
        row = decode(path.read_bytes(), color, expected.shape[:2], dtype="float32", scale=None)
        np.testing.assert_array_equal(row.reshape(expected.shape), expected, err_msg=path.name)
        n_equal += 1
    assert n_equal >= 44


def test_hounsfield_units() -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH)).astype(np.int16)
    data = dicom_of(stored, BitsStored=12, HighBit=11, PixelRepresentation=0, RescaleSlope="1", RescaleIntercept="-1024")
    np.testing.assert_array_equal(decode(data, "gray", dtype="float32", scale=None)[:, :, 0], stored - 1024.0)
    with pytest.raises(ValueError, match=r"a DICOM file: floating-point pixels from -10.* to .* set value_range"):
        decode(data)
    exact = np.rint((stored - 1024.0 + 160).clip(0, 400) / 400 * 255)
    np.testing.assert_array_equal(decode(data, "gray", value_range=(-160, 240))[:, :, 0], exact)
    with pytest.raises(ValueError, match="do not fit into uint16"):
        decode(data, dtype="uint16")


def test_dicom_by_its_stored_bits_and_inverted() -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)
    plain = dicom_of(stored | 0xF000, BitsStored=12, HighBit=11)  # what is beyond the stored bits is no part of the values
    np.testing.assert_array_equal(decode(plain, "gray", dtype="uint16")[:, :, 0], stored)
    np.testing.assert_array_equal(decode(plain, "gray")[:, :, 0], stored >> 4)
    filled = stored | 0xF000  # pydicom masks what is not compressed, and nobody else what is
    compressed = dicom_of(filled, JPEGLSLossless, ENCODERS.jpegls_encode(filled), BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(decode(compressed, "gray", dtype="uint16")[:, :, 0], stored)
    inverted = dicom_of(stored, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode(inverted, "gray")[:, :, 0], 255 - (stored >> 4))
    np.testing.assert_array_equal(decode(inverted, "gray", dtype="uint16")[:, :, 0], stored)
    signed = dicom_of(stored.astype(np.int16) - 2000)
    np.testing.assert_array_equal(decode(signed, "gray", dtype="float32", scale=None)[:, :, 0], stored.astype(float) - 2000)
    with pytest.raises(ValueError, match="signed integers"):
        decode(signed)


COMPRESSED: dict[str, tuple[str, Any]] = {
    "JPEG lossless": (JPEGLosslessSV1, ENCODERS.ljpeg_encode),
    "JPEG-LS": (JPEGLSLossless, ENCODERS.jpegls_encode),
    "JPEG 2000": (JPEG2000Lossless, lambda array: ENCODERS.jpeg2k_encode(array, level=0, codecformat="j2k")),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_dicom(name: str) -> None:
    syntax, encode = COMPRESSED[name]
    gray = np.ascontiguousarray(WIDE[:, :, 0])
    frame = encode(gray)
    np.testing.assert_array_equal(decode(dicom_of(gray, syntax, frame), "gray", dtype="uint16")[:, :, 0], gray)
    larger = encode(np.ascontiguousarray(np.tile(gray, (3, 3))))
    with pytest.raises(ValueError, match="a DICOM file: a frame of 60 x 90 pixels, not 20 x 30 as its header says"):
        decode(dicom_of(gray, syntax, larger))
    for part in (0.3, 0.8):
        with pytest.raises(ValueError, match="a DICOM file: "):
            decode(dicom_of(gray, syntax, frame[: int(len(frame) * part)]), "gray", dtype="uint16")


def test_dicom_files_that_are_refused() -> None:
    for name, said in (
        ("examples_palette.dcm", "PALETTE COLOR pixels of 1 values of 8 of 8 bits are not supported"),
        ("image_dfl.dcm", "deflated files are not supported"),
        ("MR_truncated.dcm", "The number of bytes of pixel data is less than expected"),
        ("rtplan.dcm", "it has no pixels"),
    ):
        with pytest.raises(ValueError, match=f"a DICOM file: {said}"):
            decode((PYDICOMS / name).read_bytes())


# -- damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncated", ["refuse", "pad", None])
@pytest.mark.parametrize("name", LOSSLESS)
def test_what_is_cut_short_is_refused(name: str, truncated: Any) -> None:
    """At any place; of JPEG 2000, Pillow fills in the missing pixels if it is asked to."""
    data = LOSSLESS[name]
    for stop in {140, 200, *range(len(data) // 4, len(data) - 12, len(data) // 5)}:
        if truncated == "pad" and name.startswith("JPEG 2000"):
            continue
        with pytest.raises(ValueError, match=r"an? (HEIC|JPEG 2000|JPEG XL|QOI|\.npy|DICOM) file: "):
            decode(data[:stop], truncated=truncated)


def bombs() -> dict[str, bytes]:
    """Files of a few hundred bytes whose headers ask for 60,000 x 60,000 pixels."""
    huge = 60_000
    made = {
        "QOI": struct.pack(">4sIIBB", b"qoif", huge, huge, 3, 0) + b"\xfd" * 64 + bytes(7) + b"\1",
        "JPEG XL": ENCODERS.jpegxl_encode(PHOTO[:8, :8], lossless=True),
    }
    stream = bytearray(saved(np.zeros((8, 8, 3), np.uint8), "JPEG2000", no_jp2=True))
    stream[8:16] = struct.pack(">II", huge, huge)
    made["JPEG 2000"] = bytes(stream)
    bits = 0 | 2 << 1 | (huge - 1) << 3 | 1 << 21  # a height of 18 bits, as wide as high
    made["JPEG XL"] = b"\xff\x0a" + (bits | 1 << 24).to_bytes(8, "little") + bytes(64)
    whole = bytearray(heic_of(PHOTO, "RGB"))
    at = whole.index(b"ispe") + 8
    whole[at : at + 8] = struct.pack(">II", huge, huge)
    made["HEIC"] = bytes(whole)
    made["DICOM"] = dicom_of(np.zeros((2, 2), np.uint8), Rows=huge, Columns=huge)
    made["PFM"] = b"PF %d %d -1.0\n" % (huge, huge) + bytes(64)
    return made


@pytest.mark.parametrize("name", ["QOI", "JPEG XL", "JPEG 2000", "HEIC", "DICOM", "PFM"])
def test_bombs_are_refused_by_their_header(name: str) -> None:
    data = bombs()[name]
    assert len(data) < 4000
    with pytest.raises(ValueError, match=r"60,000 x 60,000 pixels: more than max_pixels=89,478,485|[Ss]ecurity limit"):
        decode(data)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 4), }", "dtype is |O"),
        (b"{'descr': '<c8', 'fortran_order': False, 'shape': (4, 4), }", "dtype is <c8"),
        (b"{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (4, 4), }", "dtype is a structure"),
        (b"{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }", r"an array (4,)"),
        (b"{'descr': '<u2', 'fortran_order': False, 'shape': (4, 4, 5), }", r"an array (4, 4, 5)"),
        (b"{'descr': '<u2', 'fortran_order': False, 'shape': (0, 4), }", r"an array (0, 4)"),
        (b"{'descr': '<u2', 'fortran_order': False, 'shape': (99999999, 99999999), }", "it is cut short"),
        (b"{'descr': '<u2', 'fortran_order': __import__('os'), 'shape': (4, 4), }", "its header is not valid"),
        (b"(" * 5000, "its header is not valid"),
    ],
)
def test_npy_headers_that_are_no_image(header: bytes, said: str) -> None:
    data = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(200)
    with pytest.raises(ValueError, match=r"a \.npy file: ") as raised:
        decode(data)
    assert said in str(raised.value)


def test_nothing_of_an_npy_file_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "evil"),)

    array = np.empty((4, 4), object)
    array[:] = Evil()
    with pytest.raises(ValueError, match=r"its dtype is \|O"):
        decode(npy_of(array))
    assert not (tmp_path / "evil").exists()


def test_headers_of_jpeg_xl() -> None:
    """Sizes of every way in which they are written, orientations, and bits."""
    for height, width in [(8, 8), (8, 16), (256, 256), (1, 1), (20, 30), (600, 800), (513, 770), (40, 9000), (300, 250)]:
        data = ENCODERS.jpegxl_encode(np.zeros((height, width), np.uint8), lossless=True, effort=1)
        assert read_jpegxl(memoryview(data))[:2] == (height, width)
    for bits in (8, 9, 10, 12, 14, 16):
        values = (WIDE >> (16 - bits)).astype(np.uint8 if bits == 8 else np.uint16)
        data = ENCODERS.jpegxl_encode(values, lossless=True, bitspersample=bits)
        assert read_jpegxl(memoryview(data)) == (HEIGHT, WIDTH, 1, bits)


def test_headers_of_jpeg_2000_that_differ_are_refused() -> None:
    data = bytearray(LOSSLESS["JPEG 2000"])
    at = data.index(b"ihdr") + 4
    data[at : at + 8] = struct.pack(">II", 10, 10)
    with pytest.raises(ValueError, match="a JPEG 2000 file: its two headers have the sizes 10 x 10 and 20 x 30"):
        decode(bytes(data), size=(5, 5))
    assert read_jpeg2000(memoryview(LOSSLESS["JPEG 2000"])).bits == (8, 8, 8)


@pytest.mark.parametrize(
    ("name", "package", "module"),
    [
        ("HEIC", "pillow-heif", "pillow_heif"),
        ("JPEG XL", "imagecodecs", "imagecodecs"),
        ("QOI", "imagecodecs", "imagecodecs"),
        ("DICOM", "pydicom", "pydicom"),
    ],
)
def test_a_package_that_is_missing_is_named(name: str, package: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"a {name} file: reading it needs {package} \(.*\): pip install {package}"):
        decode(LOSSLESS[name])


def test_all_formats_through_workers(tmp_path: Path) -> None:
    """Under names that tell nothing; a damaged file between them is a bad sample, and kills nobody."""
    for number, data in enumerate(LOSSLESS.values()):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    (tmp_path / "bad.jpg").write_bytes(LOSSLESS["HEIC"][:300])
    names = [f"{number}.jpg" for number in range(len(LOSSLESS))]
    table = pd.DataFrame({"path": [*names, "bad.jpg"] * 3})
    source = ImageFrame(table, root=tmp_path, size=(HEIGHT, WIDTH))
    bad = list(range(len(LOSSLESS), len(table), len(LOSSLESS) + 1))
    with Loader(source, 5, workers=2, epochs=1, last="keep", on_error="skip", max_bad=3) as loader:
        for batch in loader:
            for row, index in enumerate(batch.index.tolist()):
                assert batch["valid"][row] == (index not in bad)
                if index not in bad:
                    np.testing.assert_array_equal(batch["image"][row], PHOTO)
        assert (loader.stats.n_bad, loader.stats.n_restarts) == (3, 0)


def test_formats_are_known_by_their_first_bytes() -> None:
    for name, data in {**LOSSLESS, **ALPHAS}.items():
        assert name.startswith(format_of(data[:132])), name
    assert format_of(saved(PHOTO, "AVIF")[:132]) == "AVIF"
    assert {".heic", ".jp2", ".jxl", ".qoi", ".dcm"} <= set(SUFFIXES)
    assert ".npy" not in SUFFIXES


def test_decoders_print_nothing() -> None:
    """Of the files that pydicom brings along, many are odd, and pydicom warns of them."""
    code = """
        import sys
        from pathlib import Path
        import numpy as np
        from ringload.images.decoder import ImageDecoder
        from ringload.images.geometry import Geometry
        decoder = ImageDecoder(Geometry(8, 8), "gray", dtype="float32", scale=None)
        row, n_bad = np.zeros(decoder.field.shape, np.float32), 0
        for path in Path(sys.argv[1]).rglob("*.dcm"):
            try:
                decoder.load(path.read_bytes(), None, row)
            except ValueError:
                n_bad += 1
        print(n_bad > 10)
    """
    assert run_quietly(code, PYDICOMS) == "True\n"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation: int) -> None:
    """HEIC's is a part of the format. JPEG XL's is applied as EXIF's, if it is asked for."""
    exif = Image.Exif()
    exif[0x112] = orientation
    photograph = Image.fromarray(PHOTO)
    photograph.info["exif"] = exif.tobytes()
    upright = np.asarray(ImageOps.exif_transpose(photograph))
    turned_by_itself = heic_of(PHOTO, "RGB", exif=exif.tobytes())
    for applied in (False, True):
        np.testing.assert_array_equal(decode(turned_by_itself, size=upright.shape[:2], exif=applied), upright)
    jpeg = saved(PHOTO, "JPEG", exif=exif, quality=95)
    data = ENCODERS.jpegxl_encode_jpeg(jpeg)
    assert read_jpegxl(memoryview(data)) == (HEIGHT, WIDTH, orientation, 8)
    stored = decode(data)
    turned = Image.fromarray(stored)
    turned.info["exif"] = exif.tobytes()
    shown = np.asarray(ImageOps.exif_transpose(turned))
    np.testing.assert_array_equal(decode(data, size=shown.shape[:2], exif=True), shown)
    assert np.abs(stored.astype(int) - np.asarray(Image.open(io.BytesIO(jpeg)))).max() <= 3
