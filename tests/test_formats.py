"""Files that are valid, or damaged where it does not matter, are read; why another is not is said in the decoder's words."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import warnings
import zlib
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from ringload import ConfigError, ImageFolder, ImageFrame, Loader, SampleError
from ringload.images.formats import SUFFIXES, Scratch, format_of
from ringload.images.jpeg import Jpeg, is_held_whole
from ringload.images.png import only_pixels
from tests.helpers import photo
from tests.hostile import chunk, image
from tests.test_wide import decode

HEIGHT, WIDTH = 20, 30
PHOTO = photo(2, HEIGHT, WIDTH)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</x:xmpmeta>"
)


def encoded(kind: str, pixels: np.ndarray = PHOTO, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def shown(tmp_path: Path, data: bytes, color: Any = "rgb", **options: Any) -> np.ndarray:
    (tmp_path / "a").write_bytes(data)
    return decode(tmp_path / "a", color, **options)


# -- JPEG -----------------------------------------------------------------------------------------------------------------


def with_sampling(factors: int, blocks: int) -> bytes:
    """A baseline JPEG file of 4:4:4 that says its first component has these factors: a part of it is read as another's."""
    data = bytearray(encoded("JPEG", photo(1, 64, 64), subsampling=0, quality=95))
    at = data.index(b"\xff\xc0")
    data[at + 11] = factors
    return bytes(data)


def test_what_the_fast_decoder_raises_goes_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: simplejpeg has no name for some subsamplings, and raises KeyError."""
    data = encoded("JPEG", quality=95)
    expected = shown(tmp_path, data)
    for error in (KeyError(6), ValueError("x"), TypeError("x"), RuntimeError("x")):

        def fails(*arguments: Any, error: Exception = error, **options: Any) -> Any:
            raise error

        for name in ("decode_jpeg_header", "decode_jpeg"):
            with monkeypatch.context() as patch:
                patch.setattr(f"simplejpeg.{name}", fails)
                np.testing.assert_array_equal(shown(tmp_path, data), expected)


@pytest.mark.parametrize("factors", [0x14, 0x41, 0x22, 0x12, 0x21, 0x11, 0x13, 0x31, 0x42, 0x24])
def test_every_subsampling_is_read_as_pillow_reads_it(tmp_path: Path, factors: int) -> None:
    """0x14 is 4:4:1, an image of 4:1:1 that was turned without loss."""
    import cv2

    pixels = photo(1, 64, 64)
    if factors in (0x41, 0x22, 0x12, 0x21, 0x11):
        options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors << 16 | 0x1111]
        data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), options)[1].tobytes()
    else:
        data = with_sampling(factors, 0)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(opened.convert("RGB"))
    except OSError:
        with pytest.raises(ValueError, match="a JPEG file: "):
            shown(tmp_path, data, size=(64, 64))
        return
    np.testing.assert_array_equal(shown(tmp_path, data, size=(64, 64)), expected)


def in_scans(pixels: np.ndarray, quality: int = 90) -> bytes:
    """A baseline JPEG file whose components come one after the other, as jpegtran -scans "0; 1; 2;" has it: of three gray
    files, whose tables are alike."""
    planes = [encoded("JPEG", np.asarray(one), quality=quality) for one in Image.fromarray(pixels).convert("YCbCr").split()]
    height, width = pixels.shape[:2]
    tables = planes[0][: planes[0].index(b"\xff\xc0")]
    components = b"".join(bytes([n, 0x11, 0]) for n in (1, 2, 3))
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + components
    huffman = planes[0][planes[0].index(b"\xff\xc4") : planes[0].index(b"\xff\xda")]
    scans = [
        b"\xff\xda" + struct.pack(">HBBB", 8, 1, n + 1, 0) + b"\0\x3f\0" + one[one.index(b"\xff\xda") + 10 : -2]
        for n, one in enumerate(planes)
    ]
    return tables + frame + huffman + b"".join(scans) + b"\xff\xd9"


def test_a_file_of_several_scans_is_held_whole(tmp_path: Path) -> None:
    plain, many = encoded("JPEG", photo(1, 64, 64), quality=90), in_scans(photo(1, 64, 64))
    with Image.open(io.BytesIO(many)) as opened:
        np.testing.assert_array_equal(shown(tmp_path, many, size=(64, 64)), np.asarray(opened))
    assert not is_held_whole(memoryview(plain))
    assert is_held_whole(memoryview(many))
    assert is_held_whole(memoryview(encoded("JPEG", photo(1, 64, 64), progressive=True)))
    assert not is_held_whole(memoryview(encoded("JPEG", photo(1, 64, 64)[:, :, 0])))
    assert is_held_whole(memoryview(plain[: plain.index(b"\xff\xda") + 4]))
    needed = [Jpeg(memoryview(data), "rgb", Scratch()).needed_bytes(8) for data in (plain, many)]
    assert needed[1] - needed[0] == 64 * 64 * 6


# -- PNG ------------------------------------------------------------------------------------------------------------------


def chunks(data: bytes) -> list[bytes]:
    made, at = [], 8
    while at < len(data):
        stop = at + 12 + struct.unpack_from(">I", data, at)[0]
        made.append(data[at:stop])
        at = stop
    return made


def png(*more: bytes, at: int = 1, **options: Any) -> bytes:
    """A PNG file with more chunks, at this place among its own."""
    own = chunks(encoded("PNG", **options))
    return b"\x89PNG\r\n\x1a\n" + b"".join([*own[:at], *more, *own[at:]])


def spoiled(one: bytes) -> bytes:
    return one[:-1] + bytes([one[-1] ^ 0xFF])


HARMLESS = {
    "wrong checksum of a text": spoiled(chunk(b"tEXt", b"a\0b")),
    "wrong checksum of a profile": spoiled(chunk(b"iCCP", b"k\0\0" + zlib.compress(b"x"))),
    "large text": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
    "large international text": chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
    "large profile": chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(3_000_000))),
    "a text that cannot be unpacked": chunk(b"zTXt", b"k\0\0garbage"),
    "a short physical size": chunk(b"pHYs", b"\0"),
    "a short gamma": chunk(b"gAMA", b"\0"),
    "an animation out of order": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"\0\0\0\7" + bytes(22)),
    "an animation cut short": chunk(b"acTL", b"\0"),
    "a length beyond the next chunk": struct.pack(">I", 20) + chunk(b"tEXt", b"a\0b")[4:],
    "a length beyond the file": struct.pack(">I", 1 << 30) + chunk(b"tEXt", b"a\0b")[4:],
    "a length that is too short": struct.pack(">I", 1) + chunk(b"tEXt", b"abcdefg\0hijk")[4:],
    "letters that are none": chunk(b"t\0Xt", b"ab"),
    "an unknown chunk that is critical": chunk(b"ABCD", b"ab"),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("at", [1, -1])
def test_what_carries_no_pixels_spoils_no_png(tmp_path: Path, name: str, at: int) -> None:
    data = png(HARMLESS[name], at=at)
    np.testing.assert_array_equal(shown(tmp_path, data), PHOTO)


def test_orientation_is_kept_where_a_text_is_dropped(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    texts = PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
    for options in ({"exif": exif}, {"pnginfo": texts}):
        data = png(HARMLESS["large text"], **options)
        np.testing.assert_array_equal(shown(tmp_path, data, size=(WIDTH, HEIGHT), exif=True), np.rot90(PHOTO, -1))


@pytest.mark.parametrize(
    ("kind", "at", "said"), [(b"IHDR", 13, "bad header checksum in IHDR"), (b"IDAT", 20, "broken data stream")]
)
def test_what_carries_pixels_has_to_be_right(tmp_path: Path, kind: bytes, at: int, said: str) -> None:
    data = bytearray(encoded("PNG"))
    start = data.index(kind) + 4 + at
    data[start : start + 30] = bytes(one ^ 0xFF for one in data[start : start + 30])  # Pillow looks at no checksum of IDAT's
    with pytest.raises(ValueError, match=f"a PNG file: .*({said})"):
        shown(tmp_path, bytes(data))


def test_the_first_reason_is_told(tmp_path: Path) -> None:
    """Of a file in which both are wrong: not what was tried after it."""
    data = png(HARMLESS["wrong checksum of a text"])[:-40]
    with pytest.raises(ValueError, match=r"a PNG file: bad header checksum in tEXt$"):
        shown(tmp_path, data)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_keeps_what_is_transparent(tmp_path: Path, bits: int) -> None:
    levels = np.arange(2**bits) if bits < 8 else np.arange(256)
    rows = b"\0" + np.packbits(((levels[:, None] >> np.arange(bits)[::-1]) & 1).ravel().astype(np.uint8)).tobytes()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(levels), 1, bits, 0, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    for value in {0, 1, len(levels) - 1}:
        data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", struct.pack(">H", value)) + end
        row = shown(tmp_path, data, "rgba", size=(1, len(levels)))
        np.testing.assert_array_equal(row[0, :, 3], np.where(levels == value, 0, 255))
        np.testing.assert_array_equal(row[0, :, 0], levels * (255 // (len(levels) - 1)))


@pytest.mark.parametrize("seed", range(40))
def test_chunks_of_any_kind_do_no_harm(seed: int) -> None:
    """`only_pixels` ends, and what it gives begins as a PNG file does."""
    rng = np.random.default_rng(seed)
    data = bytearray(png(*list(HARMLESS.values())[:4]))
    for _ in range(rng.integers(1, 30)):
        data[rng.integers(8, len(data))] = rng.integers(256)
    del data[rng.integers(9, len(data)) :]
    assert only_pixels(memoryview(bytes(data))).startswith(b"\x89PNG\r\n\x1a\n")


# -- BMP ------------------------------------------------------------------------------------------------------------------


def bmp(pixels: np.ndarray, bits: int, masks: tuple[int, ...], header_bytes: int = 40, flips: bool = True) -> tuple[bytes, Any]:
    """A BMP file of bit fields (red, green, blue, and alpha if there are four); and the fields' values."""
    height, width = pixels.shape[:2]
    words = np.zeros((height, width), np.uint32)
    fields = []
    for channel, mask in enumerate(masks):
        most = mask // (mask & -mask) if mask else 0
        field = np.rint(pixels[:, :, channel] / 255 * most).astype(np.uint32)
        words |= field * np.uint32(mask & -mask)
        fields.append((field, most))
    row = words.astype(f"<u{bits // 8}").tobytes()
    row_bytes, padded = width * bits // 8, (width * bits + 31) // 32 * 4
    rows = [row[n * row_bytes : (n + 1) * row_bytes].ljust(padded, b"\0") for n in range(height)]
    content = b"".join(rows[::-1] if flips else rows)
    compression = 6 if len(masks) == 4 and header_bytes < 56 else 3
    info = struct.pack("<IiiHHIIiiII", header_bytes, width, height if flips else -height, 1, bits, compression, 0, 0, 0, 0, 0)
    table = struct.pack(f"<{len(masks)}I", *masks)
    head = (info + table).ljust(max(header_bytes, 40 + len(table)), b"\0")
    if header_bytes == 52:
        head = head[:52]
    start = 14 + len(head)
    return b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start) + head + content, fields


LAYOUTS = {
    "565": (16, (0xF800, 0x7E0, 0x1F)),
    "555": (16, (0x7C00, 0x3E0, 0x1F)),
    "444": (16, (0xF00, 0xF0, 0xF)),
    "bgr565": (16, (0x1F, 0x7E0, 0xF800)),
    "323": (16, (0x7 << 5, 0x3 << 3, 0x7)),
    "1 bit": (16, (4, 2, 1)),
    "888": (32, (0xFF0000, 0xFF00, 0xFF)),
    "xbgr": (32, (0xFF, 0xFF00, 0xFF0000)),
    "101010": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "111110": (32, (0xFFE00000, 0x1FFC00, 0x3FF)),
    "16 of green": (32, (0xFF000000, 0x00FFFF00, 0xFF)),
    "no blue": (32, (0xFF0000, 0xFF00, 0)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("header_bytes", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("flips", [True, False])
def test_bit_fields_are_taken_as_their_masks_say(tmp_path: Path, name: str, header_bytes: int, flips: bool) -> None:
    bits, masks = LAYOUTS[name]
    data, fields = bmp(PHOTO[:, :29], bits, masks, header_bytes, flips)
    row = shown(tmp_path, data, size=(HEIGHT, 29))
    for channel, (field, most) in enumerate(fields):
        exact = field * 255.0 / most if most else field * 0.0
        assert np.abs(row[:, :, channel] - exact).max() < 1
    with pytest.raises(ValueError, match=r"a BMP file: (it is cut short|image file is truncated)"):
        shown(tmp_path, data[:-50], size=(HEIGHT, 29))
    padded = shown(tmp_path, data[:-50], size=(HEIGHT, 29), truncated="pad")
    assert (padded == row).mean() > 0.9


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        (16, (0xF00, 0xF0, 0xF, 0xF000)),
        (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)),
    ],
)
@pytest.mark.parametrize("header_bytes", [40, 56, 108, 124])
def test_bit_fields_have_alpha_where_the_header_says(tmp_path: Path, bits: int, masks: Any, header_bytes: int) -> None:
    pixels = np.dstack([PHOTO, photo(7, HEIGHT, WIDTH)[:, :, 0]])
    data, fields = bmp(pixels, bits, masks, header_bytes)
    row = shown(tmp_path, data, "rgba")
    for channel, (field, most) in enumerate(fields):
        assert np.abs(row[:, :, channel] - field * 255.0 / most).max() < 1


def test_masks_that_make_no_sense(tmp_path: Path) -> None:
    for bits, masks in ((16, (0xF800, 0x7E0, 0x1F0000)), (32, (0xF0F000, 0xFF00, 0xFF))):
        data = bytearray(bmp(PHOTO, 32, (0xFF0000, 0xFF00, 0xFF))[0])
        data[28] = bits
        data[54:66] = struct.pack("<3I", *masks)
        with pytest.raises(ValueError, match=r"a BMP file: its bit fields .* are not valid"):
            shown(tmp_path, bytes(data))


# -- AVIF, suffixes -------------------------------------------------------------------------------------------------------


def test_avif(tmp_path: Path) -> None:
    from PIL import features

    if not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "AVIF", quality=95)
    assert np.abs(shown(tmp_path, file.getvalue()).astype(int) - PHOTO).mean() < 8
    with pytest.raises(ValueError, match="an AVIF file: "):
        shown(tmp_path, file.getvalue()[:200])


def test_what_pillow_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import WebPImagePlugin

    monkeypatch.setattr(WebPImagePlugin, "SUPPORTED", False)
    with pytest.raises(ValueError, match="a WebP file: the installed Pillow was built without its decoder"):
        shown(tmp_path, encoded("WEBP"))


def test_a_folder_has_every_suffix_of_torchvisions(tmp_path: Path) -> None:
    torchvisions = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
    assert set(torchvisions) <= set(SUFFIXES)
    (tmp_path / "x").mkdir()
    names = [f"{n}{suffix.upper() if n % 2 else suffix}" for n, suffix in enumerate(SUFFIXES)]
    for name in names:
        (tmp_path / "x" / name).write_bytes(encoded("PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = ImageFolder(tmp_path, size=(8, 8))
    assert sorted(source.filenames) == sorted(f"x/{name}" for name in names)
    row = {name: np.zeros(field.shape, field.dtype) for name, field in source.fields.items()}
    for index in range(len(source)):
        source.load(index, None, row)


def test_files_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    names = ["a.txt", "b.TXT", "c.xml", ".hidden", "Thumbs.db", "README", "d.mp4", "e.npy", "f.json", "g" + "." + "h" * 200]
    for name in names:
        (tmp_path / "x" / name).touch()
    (tmp_path / "x" / "a.png").write_bytes(encoded("PNG"))
    with pytest.warns(UserWarning, match=r"9 files in .* are skipped, .*: 2 of \.txt, .*, and 3 others") as caught:
        ImageFolder(tmp_path, size=(8, 8))
    assert len(caught) == 1
    assert len(str(caught[0].message)) < 300 + len(str(tmp_path))


# -- reasons --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_a_damaged_file_is_refused_by_its_format(tmp_path: Path, kind: str) -> None:
    """Never "cannot identify", and never in the words of Python's own errors alone."""
    whole = encoded(kind)
    names = {"WEBP": "WebP", "PPM": "PNM"}
    rng = np.random.default_rng(0)
    for number in range(150):
        data = bytearray(whole)
        if number % 3 == 0:
            del data[rng.integers(14, len(data)) :]
        for _ in range(number % 3 * 4):
            data[rng.integers(12 if kind != "PPM" else 3, min(len(data), 12 + 30 * (number % 5 + 1)))] = rng.integers(256)
        try:
            shown(tmp_path, bytes(data))
        except ValueError as error:
            said = str(error)
            assert re.match(rf"an? {names.get(kind, kind)} file: \S|.* pixels: more than max_pixels", said), said
            assert not re.search(r"decoder error|cannot identify|^\S+ file: *$", said), said


def test_every_signature_is_known() -> None:
    for kind, name in (("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "WebP"), ("BMP", "BMP"), ("GIF", "GIF"), ("TIFF", "TIFF")):
        assert format_of(encoded(kind)) == name
    for head in (
        b"",
        b"P",
        b"P7\n",
        b"BX",
        b"RIFFxxxxWAVE",
        b"\xff\xd8",
        b"GIF7",
        b"II\x2a\x01",
        b"\0\0\0 ftypisom\0\0\0\0mp42",
    ):
        assert format_of(head) == ""


def test_what_cannot_be_identified_is_told_as_ever(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot identify image file: it begins with b'hello'; supported: JPEG, PNG, "):
        shown(tmp_path, b"hello")


# -- truncated ------------------------------------------------------------------------------------------------------------


def cut(kind: str) -> bytes:
    pixels = photo(1, 100, 120)
    data = encoded(kind, pixels)
    return data[: len(data) * 2 // 3]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "PPM"])
def test_what_is_cut_short_is_padded_as_pillow_does(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, size = cut(kind), (100, 120)
    for mode in ("refuse", None):
        with pytest.raises(ValueError, match=r"file: image file is truncated|file: .*cut short|damaged"):
            shown(tmp_path, data, size=size, truncated=mode)
    padded = shown(tmp_path, data, size=size, truncated="pad")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with Image.open(io.BytesIO(data)) as opened:
            np.testing.assert_array_equal(padded, np.asarray(opened.convert("RGB")))
        np.testing.assert_array_equal(shown(tmp_path, data, size=size), padded)
        with pytest.raises(ValueError, match=r"file: image file is truncated|file: .*cut short|damaged"):
            shown(tmp_path, data, size=size, truncated="refuse")
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("truncated", ["pad", "refuse"])
def test_padding_is_the_same_for_any_number_of_workers(tmp_path: Path, truncated: Any) -> None:
    for number, kind in enumerate(["JPEG", "PNG", "BMP", "TIFF"] * 2):
        (tmp_path / f"{number}").write_bytes(cut(kind) if number < 4 else encoded(kind, photo(number, 100, 120)))
    source = ImageFrame(
        pd.DataFrame({"path": [*map(str, range(8))]}), root=tmp_path, size=(50, 50), truncated=truncated, max_pixels=10**5
    )
    found = []
    for workers in (0, 1, 2):
        options: dict[str, Any] = {"on_error": "skip", "max_bad": 8, "epochs": 1, "ram_budget": "300MB"}
        with Loader(source, 4, workers=workers, **options) as made:
            rows = {int(i): batch["image"][n].tobytes() for batch in made for n, i in enumerate(batch.index)}
            found.append((rows, sorted((bad.index, bad.reason) for bad in made.stats.bad)))
    assert found[0] == found[1] == found[2]
    assert len(found[0][1]) == (0 if truncated == "pad" else 4)


def test_other_threads_see_what_they_have_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file is padded here, Pillow refuses one there."""
    from ringload.images.truncated import truncated

    data, found = cut("JPEG"), []

    def load() -> None:
        try:
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
            found.append("padded")
        except OSError:
            found.append("refused")

    for mode, others, expected in (("pad", False, ["refused", "padded"]), ("refuse", True, ["padded", "refused"])):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", others)
        found.clear()
        with truncated(mode):
            thread = threading.Thread(target=load)
            thread.start()
            thread.join()
            load()
        assert found == expected
        assert ImageFile.LOAD_TRUNCATED_IMAGES is others


def every_kind(folder: Path) -> list[str]:
    """Files of all formats, some of them turned, some damaged, one large."""
    exif = Image.Exif()
    exif[0x112] = 6
    made = {
        "a.jpg": encoded("JPEG", photo(1, 375, 500), exif=exif),
        "scans.jpg": in_scans(photo(2, 200, 300)),
        "xmp.jpg": encoded("JPEG", photo(3, 200, 300), xmp=XMP),
        "long.jpg": encoded("JPEG", photo(4, 40, 900)),
        "cut.jpg": cut("JPEG"),
        "a.png": png(HARMLESS["large text"]),
        "alpha.png": encoded("PNG", rgba()),
        "cut.png": cut("PNG"),
        "a.webp": encoded("WEBP", photo(5, 90, 70), exif=exif),
        "a.bmp": bmp(PHOTO, 16, (0xF00, 0xF0, 0xF))[0],
        "a.gif": encoded("GIF"),
        "a.tif": encoded("TIFF", photo(6, 100, 150), exif=exif),
        "a.ppm": encoded("PPM"),
        "no image": b"hello",
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return [*made, *broken_tiffs(folder)]


@pytest.mark.parametrize(
    "look", [{}, {"interpolation": "fast"}, {"color": "rgba", "dtype": "float32"}, {"background": (9, 8, 7)}]
)
def test_bytes_and_words_are_the_same_for_any_number_of_workers(tmp_path: Path, look: dict[str, Any]) -> None:
    options: dict[str, Any] = {"resize": "random_crop", "flip": True, "exif": True, "max_pixels": 2 * 10**5, **look}
    source = ImageFrame(pd.DataFrame({"path": every_kind(tmp_path)}), root=tmp_path, size=(60, 60), **options)
    found = []
    for workers, method in ((0, "forkserver"), (1, "spawn"), (2, "forkserver"), (3, "forkserver")):
        how: dict[str, Any] = {"on_error": "skip", "max_bad": 50, "epochs": 2, "ram_budget": "400MB", "start_method": method}
        rows: dict[Any, bytes] = {}
        with Loader(source, 5, workers=workers, last="keep", **how) as made:
            for epoch in range(2):
                rows |= {(epoch, int(i)): batch["image"][n].tobytes() for batch in made for n, i in enumerate(batch.index)}
            found.append((rows, sorted((bad.index, bad.reason) for bad in made.stats.bad)))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0][0]) == 2 * len(source)


# -- transparency, orientation --------------------------------------------------------------------------------------------


def rgba() -> np.ndarray:
    return np.dstack([PHOTO, photo(7, HEIGHT, WIDTH)[:, :, 0]])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_background_shows_where_an_image_is_transparent(tmp_path: Path, kind: str) -> None:
    pixels = rgba()
    if kind == "GIF":
        pixels[:, :, 3] = np.where(pixels[:, :, 3] > 128, 255, 0)
    data = encoded(kind, pixels, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as opened:
        stored = opened.convert("RGBA")
    np.testing.assert_array_equal(shown(tmp_path, data), np.asarray(stored)[:, :, :3])
    for background in ((10, 200, 30), 77):
        color = background if isinstance(background, tuple) else (background,) * 3
        expected = Image.alpha_composite(Image.new("RGBA", stored.size, (*color, 255)), stored).convert("RGB")
        row = shown(tmp_path, data, background=background)
        assert np.abs(row.astype(int) - np.asarray(expected)).max() <= 1
        gray = shown(tmp_path, data, "gray", background=background)[:, :, 0]
        assert np.abs(gray.astype(int) - np.asarray(expected.convert("L"))).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_background_below_other_modes(tmp_path: Path, mode: str) -> None:
    file = io.BytesIO()
    if mode == "P":
        Image.fromarray(PHOTO).quantize(16).save(file, "PNG", transparency=bytes(range(0, 256, 16)))
    else:
        Image.fromarray(rgba()).convert("LA").save(file, "PNG")
    with Image.open(file) as opened:
        stored = opened.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", stored.size, (0, 0, 0, 255)), stored).convert("RGB")
    assert np.abs(shown(tmp_path, file.getvalue(), background=0).astype(int) - np.asarray(expected)).max() <= 1


def test_lab_and_weighted_gray_become_gray(tmp_path: Path) -> None:
    from PIL import ImageCms

    lab = ImageCms.profileToProfile(
        Image.fromarray(PHOTO), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    lab.save(tmp_path / "lab.tif")
    expected = np.asarray(Image.fromarray(decode(tmp_path / "lab.tif")).convert("L"))
    np.testing.assert_array_equal(decode(tmp_path / "lab.tif", "gray")[:, :, 0], expected)
    import tifffile

    weighted = np.dstack([PHOTO[:, :, 0] // 2, np.full((HEIGHT, WIDTH), 128, np.uint8)])
    tifffile.imwrite(
        tmp_path / "la.tif", weighted, photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"]
    )
    for color in ("gray", "rgb", "rgba"):
        row = decode(tmp_path / "la.tif", color)
        assert np.abs(row[:, :, 0].astype(int) - PHOTO[:, :, 0]).max() <= 2


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png", "cmyk.jpg", "a.tif"])
def test_orientation_in_xmp_counts_as_with_pillow(tmp_path: Path, name: str) -> None:
    pixels = Image.fromarray(photo(3, 40, 60))
    options: dict[str, Any] = {"xmp": XMP, "quality": 95}
    if name == "a.png":
        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options = {"pnginfo": texts}
    elif name == "a.tif":
        options = {"tiffinfo": {700: XMP}}
    pixels.convert("CMYK" if name == "cmyk.jpg" else "RGB").save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    assert upright.size == (40, 60)
    assert np.abs(decode(tmp_path / name, size=(60, 40), exif=True).astype(int) - np.asarray(upright)).max() <= 1
    assert np.abs(decode(tmp_path / name, size=(40, 60)).astype(int) - np.asarray(pixels)).mean() < 4


def test_exif_goes_before_xmp(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 3
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", exif=exif, xmp=XMP, quality=95)
    plain = decode(tmp_path / "a.jpg")
    np.testing.assert_array_equal(decode(tmp_path / "a.jpg", exif=True), plain[::-1, ::-1])


# -- what decoders print --------------------------------------------------------------------------------------------------


def broken_tiffs(folder: Path) -> list[str]:
    """Files about which libtiff, Pillow, OpenCV or tifffile have something to say."""
    import tifffile

    lzw = bytearray(encoded("TIFF", photo(1, 100, 100), compression="tiff_lzw"))
    lzw[60:90] = b"\xff" * 30
    group4 = io.BytesIO()
    Image.fromarray(photo(1, 100, 100)).convert("1").save(group4, "TIFF", compression="group4")
    fax = bytearray(group4.getvalue())
    fax[20:40] = b"\x55" * 20
    wide = io.BytesIO()
    tifffile.imwrite(wide, np.zeros((50, 50, 3), np.uint16), photometric="rgb", compression="zlib")
    planar = io.BytesIO()
    tifffile.imwrite(planar, np.zeros((3, 50, 50), np.uint16), photometric="rgb", planarconfig="separate")
    many = bytearray(encoded("TIFF"))
    many[many.index(struct.pack("<HHI", 277, 3, 1)) + 8] = 60  # samples
    files = [bytes(lzw), bytes(fax), wide.getvalue()[:-200], planar.getvalue()[:900], bytes(many), cut("TIFF")]
    for number, data in enumerate(files):
        (folder / f"{number}.tif").write_bytes(data)
    return [f"{number}.tif" for number in range(len(files))]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_decoders_print_belongs_to_the_sample(tmp_path: Path, workers: int, capfd: Any) -> None:
    names = broken_tiffs(tmp_path)
    source = ImageFrame(pd.DataFrame({"path": names}), root=tmp_path, size=(50, 50), max_pixels=10**5)
    reasons = []
    with Loader(source, 1, workers=workers, shuffle=False, epochs=1, ram_budget="300MB", on_error="skip", max_bad=10) as made:
        assert len(list(made)) == len(names)
        reasons = [bad.reason for bad in made.stats.bad]
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert any("LZWDecode" in reason or "table" in reason for reason in reasons), reasons
    assert all(reason.startswith("ValueError: a TIFF file: ") for reason in reasons)


def test_what_others_print_and_warn_is_theirs(tmp_path: Path, capfd: Any) -> None:
    """In the trainer's process: another thread writes and warns while this one decodes."""
    from ringload.images.captured_output import Printed, noted

    printed = Printed()

    def other() -> None:
        os.write(2, b"TIFFReadFoo: of another thread\n")
        warnings.warn("of another thread", stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        with noted(printed, is_tiff=True):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            warnings.warn("of the user's own", stacklevel=1)
        assert list(warnings.filters) == filters
    assert [str(one.message) for one in caught] == ["of another thread", "of the user's own"]
    assert capfd.readouterr().err == "TIFFReadFoo: of another thread\n"
    assert str(printed) == ""


def test_threads_that_decode_leave_in_any_order(tmp_path: Path, capfd: Any) -> None:
    """The first that entered leaves first: what the second had found set must not come back, since nothing of it lives."""
    from ringload.images.captured_output import Printed, noted

    names = broken_tiffs(tmp_path)
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    printed = [Printed(), Printed()]

    def warned(number: int) -> None:
        warnings.warn_explicit(f"of thread {number}", UserWarning, "/x/PIL/Image.py", 1, module="PIL.Image")

    def first() -> None:
        with noted(printed[0], is_tiff=True):
            first_in.set()
            second_in.wait()
            warned(0)
        first_out.set()

    def second() -> None:
        first_in.wait()
        with noted(printed[1], is_tiff=True):
            second_in.set()
            first_out.wait()
            warned(1)
            with Image.open(tmp_path / names[0]) as image, suppress(OSError):
                image.load()

    shown, filters = warnings.showwarning, list(warnings.filters)
    threads = [threading.Thread(target=one) for one in (first, second)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert warnings.showwarning is shown
    assert list(warnings.filters) == filters
    assert str(printed[0]) == "of thread 0"
    assert str(printed[1]).startswith("of thread 1; ")
    assert "not yet in table" in str(printed[1])
    assert capfd.readouterr().err == ""
    with Image.open(tmp_path / names[0]) as image, suppress(OSError):
        image.load()
    assert "not yet in table" in capfd.readouterr().err, "libtiff does not print again"


def test_a_warning_of_the_users_is_shown_once(tmp_path: Path) -> None:
    """Not for each sample: `warnings.catch_warnings` makes Python forget which it has shown."""
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    registry: dict[Any, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            decode(tmp_path / "a.png")
            warnings.warn_explicit("once", UserWarning, "script.py", 1, registry=registry)
    assert len(caught) == 1


# -- budget ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["1GB", "0.5GB"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_small_budget_is_enough_for_small_images(tmp_path: Path, budget: str, workers: int) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encoded("PNG", photo(number, 64, 64)))
    header = struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)
    huge = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(8000 * 24_001)))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "4.png").write_bytes(huge)
    source = ImageFrame(pd.DataFrame({"path": [f"{n}.png" for n in range(5)]}), root=tmp_path, size=(64, 64))
    with Loader(source, 1, workers=workers, ram_budget=budget, shuffle=False, epochs=1) as made:
        assert made.plan().max_sample_bytes == {"1GB": 500_000_000, "0.5GB": 250_000_000}[budget]
        batches = iter(made)
        for number in range(4):
            np.testing.assert_array_equal(next(batches)["image"][0], photo(number, 64, 64))
        with pytest.raises(
            SampleError, match=r"8,000 x 8,000 pixels: decoding takes up to 1,024.0 MB .*ram_budget has (500|250)"
        ):
            next(batches)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_max_pixels_is_no_bad_sample(tmp_path: Path, kind: str, workers: int) -> None:
    (tmp_path / "a").write_bytes(encoded(kind))
    source = ImageFrame(pd.DataFrame({"path": ["a"]}), root=tmp_path, size=(HEIGHT, WIDTH), max_pixels=HEIGHT * WIDTH)
    with Loader(source, 1, workers=workers, ram_budget="200MB", epochs=1) as made:
        assert len(list(made)) == 1


def test_max_pixels_is_guaranteed() -> None:
    source = ImageFrame(pd.DataFrame({"path": ["a.png"]}), size=(64, 64), max_pixels=89_478_485)
    with pytest.raises(ConfigError, match="max_pixels"):
        Loader(source, 1, workers=2, ram_budget="1GB")


def test_signatures_are_apart() -> None:
    assert all(image(a) != image(b) for a, b in pairwise(["JPEG", "PNG", "BMP"]))
