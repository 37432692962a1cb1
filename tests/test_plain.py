"""Plain kinds of files: the same pixels as by Pillow, to the bit, and the same refusals of all others."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ringload.images import pillow, plain
from ringload.images.decoder import ImageDecoder
from ringload.images.formats import Wanted, format_of
from ringload.images.geometry import Geometry, orient
from ringload.images.pillow import PillowImage
from tests.conftest import Times
from tests.fuzzing import MAX_PIXELS, make_input
from tests.helpers import photo
from tests.hostile import SIGNATURE, chunk
from tests.native import PLAIN, SANITIZED, check_sanitized, compiled, load

SIZES = ((1, 1), (1, 300), (200, 1), (7, 5), (31, 33), (200, 300))
END = chunk(b"IEND", b"")
COLORS: dict[int, tuple[int, ...]] = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
N_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type
ORIENTED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # 6
WANTED = (Wanted("rgb"), Wanted("gray"), Wanted("rgba"), Wanted("rgb", background=(1, 2, 3)), Wanted("gray", (9, 9, 9)))
INFLATERS = [zlib] + ([plain.inflater] if plain.inflater is not zlib else [])


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return load(compiled(tmp_path_factory.mktemp("native"), PLAIN, "_png"))


@pytest.fixture(autouse=True)
def quiet(native: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Iterator[None]:
    """_png.c of this checkout is what is tested; and nothing is ever printed."""
    monkeypatch.setattr(plain, "native", native)
    yield
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def result(data: bytes | memoryview, wanted: Wanted, exif: bool) -> Any:
    """Pixels, after the orientation is applied, or the text of the error."""
    try:
        pixels, orientation = PillowImage(memoryview(data), wanted).decode(exif)
    except ValueError as error:
        return str(error)
    turned = orient(pixels, orientation)
    return turned.shape, turned.tobytes()


def is_plain(data: bytes, *all_wanted: Wanted, exif: bool = True) -> bool:
    """Whether the file was decoded without Pillow, by each inflater; after a check that Pillow gives the same."""
    taken = []
    with suppress(ValueError):
        opened = PillowImage(memoryview(data), Wanted())
        if opened.height * opened.width > MAX_PIXELS:  # the decoder refuses it
            return False

    def noted(*arguments: Any) -> Any:
        pixels = plain.decode_plain(*arguments)
        taken.append(pixels is not None)
        return pixels

    for wanted in all_wanted or WANTED:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pillow, "decode_plain", lambda *arguments: None)
            true = result(data, wanted, exif)
            patch.setattr(pillow, "decode_plain", noted)
            for inflater in INFLATERS if data[:4] == SIGNATURE[:4] else INFLATERS[:1]:
                patch.setattr(plain, "inflater", inflater)
                assert result(data, wanted, exif) == true
    assert len(set(taken)) <= 1, "not the same for all inflaters and colours"
    return any(taken)


# -- PNG ------------------------------------------------------------------------------------------------------------------


def filtered(rows: np.ndarray, step: int, rng: np.random.Generator) -> bytes:
    """Rows `(h, n) uint8` behind filters of all kinds."""
    made, above = [], np.zeros(rows.shape[1], int)
    for row in rows.astype(int):
        left, corner = (np.concatenate([np.zeros(step, int), one])[: len(row)] for one in (row, above))
        guess = left + above - corner
        near = np.stack([left, above, corner])
        nearest = np.take_along_axis(near, np.abs(near - guess).argmin(axis=0)[np.newaxis], axis=0)[0]
        kind = int(rng.integers(5))
        predicted = (np.zeros_like(row), left, above, (left + above) // 2, nearest)[kind]
        made.append(bytes([kind]) + ((row - predicted) & 0xFF).astype(np.uint8).tobytes())
        above = row
    return b"".join(made)


PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # of Adam7


def png(
    height: int, width: int, color: int = 2, bits: int = 8, adam7: bool = False, *extra: bytes, after: bytes = b""
) -> bytes:
    """A PNG file of noise, with `extra` chunks before the pixels, which are in several chunks, and `after` behind these."""
    rng = np.random.default_rng([height, width, color, bits])
    step = max(1, N_SAMPLES[color] * bits // 8)
    shapes = [(len(range(y, height, dy)), len(range(x, width, dx))) for y, x, dy, dx in PASSES] if adam7 else [(height, width)]
    content = b""
    for n_rows, n in shapes:
        if n_rows and n:
            rows = rng.integers(0, 256, (n_rows, -(-n * N_SAMPLES[color] * bits // 8))).astype(np.uint8)
            content += filtered(rows, step, rng)
    pixels = zlib.compress(content)
    cuts = [0, *sorted(rng.integers(0, len(pixels) + 1, 3)), len(pixels)]
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, adam7)
    palette = chunk(b"PLTE", rng.bytes(3 * 2**bits)) if color == 3 else b""
    parts = b"".join(chunk(b"IDAT", pixels[a:b]) for a, b in pairwise(cuts))
    return SIGNATURE + chunk(b"IHDR", header) + palette + b"".join(extra) + parts + after + END


@pytest.mark.parametrize("adam7", [False, True])
@pytest.mark.parametrize(("color", "bits"), [(color, bits) for color, all_bits in COLORS.items() for bits in all_bits])
def test_the_same_pixels_of_each_kind_of_png(color: int, bits: int, adam7: bool) -> None:
    for height, width in SIZES:
        assert is_plain(png(height, width, color, bits, adam7)) == (bits == 8 and color != 3 and not adam7)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXTRA = {
    "gAMA": chunk(b"gAMA", struct.pack(">I", 100_000)),
    "cHRM": chunk(b"cHRM", struct.pack(">8I", *[31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000])),
    "sRGB": chunk(b"sRGB", b"\0"),
    "iCCP": chunk(b"iCCP", b"k\0\0" + zlib.compress(PROFILE)),
    "bKGD": chunk(b"bKGD", bytes(6)),
    "sBIT": chunk(b"sBIT", b"\5\5\5"),
    "eXIf": chunk(b"eXIf", ORIENTED[6:]),
    "tEXt": chunk(b"tEXt", b"a\0b"),
    "large": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
    "XMP": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
}
NOT_PLAIN = {
    "one frame": chunk(b"acTL", struct.pack(">II", 1, 0)),
    "tRNS": chunk(b"tRNS", bytes(6)),
    "two frames": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", struct.pack(">5I2H2B", 0, 5, 7, 0, 0, 1, 1, 0, 0)),
}


@pytest.mark.parametrize("name", [*EXTRA, *NOT_PLAIN])
def test_chunks_before_the_pixels(name: str) -> None:
    assert is_plain(png(7, 5, 2, 8, False, {**EXTRA, **NOT_PLAIN}[name])) == (name in EXTRA)


@pytest.mark.parametrize("name", EXTRA)
def test_chunks_after_the_pixels_are_pillows(name: str) -> None:
    """An orientation among them counts."""
    data = png(7, 5, after=EXTRA[name])
    assert not is_plain(data)
    _, orientation = PillowImage(memoryview(data), Wanted()).decode(True)
    assert orientation == (6 if name in ("eXIf", "XMP") else 1)


def remade(pixels: bytes, *more: bytes, end: bytes = END) -> bytes:
    """A PNG file of 5 x 4 gray pixels, inflated or not, that has chunks of pixels of its own."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 5, 8, 0, 0, 0, 0))
    return SIGNATURE + header + b"".join(chunk(b"IDAT", one) for one in (pixels, *more)) + end


ROWS = b"".join(b"\1" + bytes(range(n, n + 4)) for n in range(5))
STREAM = zlib.compress(ROWS)
ODD_STREAMS = {
    "a row too many": remade(zlib.compress(ROWS + b"\0abcd")),
    "a byte too many": remade(zlib.compress(ROWS + b"\0")),
    "a million bytes too many": remade(zlib.compress(ROWS + bytes(1_000_000))),
    "a row is missing": remade(zlib.compress(ROWS[:-5])),
    "a byte is missing": remade(zlib.compress(ROWS[:-1])),
    "no filter 5": remade(zlib.compress(ROWS[:-5] + b"\5abcd")),
    "no filter 255": remade(zlib.compress(b"\xff" + ROWS[1:])),
    "a wrong checksum": remade(STREAM[:-1] + bytes([STREAM[-1] ^ 1])),
    "no checksum": remade(STREAM[:-4]),
    "bytes after the checksum": remade(STREAM + b"abc"),
    "a chunk after the checksum": remade(STREAM, b"abc"),
    "a preset dictionary": remade(b"\x78\x20" + STREAM[2:]),
    "an end with a wrong checksum": remade(STREAM, end=END[:-1] + b"a"),
    "an end of some length": remade(STREAM, end=chunk(b"IEND", b"abc")),
    "no end": remade(STREAM, end=b""),
    "half an end": remade(STREAM, end=END[:6]),
    "pixels after a text": remade(STREAM[:9], end=EXTRA["tEXt"] + chunk(b"IDAT", STREAM[9:]) + END),
    "a chunk of animation in between": remade(STREAM[:9], end=chunk(b"fdAT", b"\0\0\0\0" + STREAM[9:]) + END),
    "a wrong checksum of the chunk": remade(STREAM).replace(chunk(b"IDAT", STREAM)[-4:], b"abcd"),
    "empty chunks": remade(b"", STREAM[:9], b"", STREAM[9:], b""),
    "bytes after the end": remade(STREAM) + b"abc",
    "not compressed": remade(zlib.compress(ROWS, 0)),
}
PLAIN_STREAMS = {"a wrong checksum of the chunk", "empty chunks", "bytes after the end", "not compressed"}


@pytest.mark.parametrize("name", ODD_STREAMS)
@pytest.mark.parametrize("truncated", [None, "pad", "refuse"])
def test_streams_of_any_kind(name: str, truncated: Any) -> None:
    assert is_plain(ODD_STREAMS[name], Wanted("gray", truncated=truncated)) == (name in PLAIN_STREAMS)


# -- BMP, TIFF, WebP ------------------------------------------------------------------------------------------------------


def encoded(kind: str, pixels: np.ndarray, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


MODES = {
    "BMP": {"RGB": True, "L": True, "P": False, "1": False, "RGBA": True},  # alpha is not read
    "TIFF": {"RGB": True, "L": True, "P": False, "1": False, "RGBA": False, "CMYK": False, "I;16": False},
    "WEBP": {"RGB": True, "RGBA": False},
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_the_same_pixels_of_each_mode(kind: str, mode: str) -> None:
    for height, width in SIZES:
        for lossless in (False, True) if kind == "WEBP" else (False,):
            pixels = photo(height, height, width)
            alpha = np.dstack([pixels, photo(1, height, width)[:, :, :1]]) if mode == "RGBA" else pixels
            data = encoded(kind, alpha, mode, **({"lossless": lossless, "quality": 80} if kind == "WEBP" else {}))
            assert is_plain(data) == MODES[kind][mode]


@pytest.mark.parametrize("header_bytes", [12, 40, 108])
@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("flips", [False, True])
def test_bmp_of_each_layout(header_bytes: int, bits: int, flips: bool) -> None:
    height, width = 5, 7
    content = np.random.default_rng(1).bytes((width * bits + 31) // 32 * 4 * height)
    info = struct.pack("<HHHH", width, height, 1, bits)
    if header_bytes > 12:
        info = struct.pack("<iiHHIIiiII", width, -height if flips else height, 1, bits, 0, 0, 0, 0, 0, 0)
    head = struct.pack("<I", header_bytes) + info.ljust(header_bytes - 4, b"\0")
    start = 14 + len(head)
    data = b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start) + head + content
    assert is_plain(data)
    for n_bytes in range(len(data)):
        is_plain(data[:n_bytes], Wanted())


def strips(*tops: int, height: int = 5, gap: int = 0, width: int = 7, orientation: int = 1) -> bytes:
    """A TIFF file with a strip for each of these, of pixels after a gap."""
    n_rows = -(-height // len(tops))
    content = np.random.default_rng(2).bytes(len(tops) * n_rows * width * 3 + gap)
    offsets = struct.pack(f"<{len(tops)}I", *[8 + gap + top * width * 3 for top in tops])
    where = 8 + len(content)
    at_offsets = struct.unpack("<I", offsets)[0] if len(tops) == 1 else where
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, len(tops), at_offsets), (274, 3, 1, orientation), (277, 3, 1, 3), (278, 3, 1, n_rows)]
    tags = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    directory = where + len(offsets)
    return b"II*\0" + struct.pack("<I", directory) + content + offsets + struct.pack("<H", len(entries)) + tags + bytes(4)


@pytest.mark.parametrize("tops", [(0,), (0, 3), (3, 0), (0, 0), (0, 1, 2, 3, 4), (4, 1, 3, 0, 2), (0, 900)])
def test_strips_of_tiff(tops: tuple[int, ...]) -> None:
    for gap in (0, 2):
        data = strips(*tops, gap=gap)
        assert is_plain(data) == (900 not in tops)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_tiff_is_pillows(orientation: int) -> None:
    """It turns the image before it is scaled, which rounds otherwise."""
    for exif in (False, True):
        assert is_plain(strips(0, 3, orientation=orientation), exif=exif) == (orientation == 1)


def test_compressed_and_tiled_tiff_is_pillows() -> None:
    import tifffile

    pixels = photo(3, 40, 60)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        assert not is_plain(encoded("TIFF", pixels, compression=compression))
    for options in ({"tile": (16, 16)}, {"planarconfig": "separate"}, {"predictor": True, "compression": "zlib"}):
        file = io.BytesIO()
        data = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
        tifffile.imwrite(file, np.ascontiguousarray(data), photometric="rgb", **options)
        assert not is_plain(file.getvalue())


def test_webp_of_all_sorts() -> None:
    pixels = photo(3, 40, 60)
    frames = [Image.fromarray(photo(n, 40, 60)) for n in (4, 5)]
    assert not is_plain(encoded("WEBP", pixels, save_all=True, append_images=frames))
    exif = Image.Exif()
    exif[0x112] = 6
    for options in ({"exif": exif}, {"icc_profile": PROFILE}, {"exif": exif, "lossless": True}):
        data = encoded("WEBP", pixels, **options)
        assert is_plain(data)
        assert PillowImage(memoryview(data), Wanted()).decode(True)[1] == (6 if "exif" in options else 1)


# -- damage ---------------------------------------------------------------------------------------------------------------

SMALL = {
    "PNG": png(5, 6),
    "gray PNG": png(5, 6, 0),
    "RGBA PNG": png(3, 4, 6),
    "BMP": encoded("BMP", photo(1, 4, 5)),
    "TIFF": strips(0, 3),
    "WebP": encoded("WEBP", photo(1, 17, 18), quality=30),
    "lossless WebP": encoded("WEBP", photo(1, 5, 6), lossless=True),
    "WebP with EXIF": encoded("WEBP", photo(1, 5, 6), exif=ORIENTED),
}


@pytest.mark.parametrize("name", SMALL)
def test_each_byte_changed(name: str) -> None:
    data = SMALL[name]
    assert is_plain(data)
    for at in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            spoiled = bytearray(data)
            spoiled[at] ^= change
            is_plain(bytes(spoiled), Wanted("rgb"))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("truncated", [None, "pad", "refuse"])
def test_each_length(name: str, truncated: Any) -> None:
    for n_bytes in range(len(SMALL[name])):
        is_plain(SMALL[name][:n_bytes], Wanted("rgb", truncated=truncated))


def test_mutated_files(times: Times) -> None:
    n_plain = 0
    for number in range(times(2500, 60_000)):
        data = make_input(20261129, number)
        if format_of(data[:128]) in plain.DECODERS:
            n_plain += is_plain(data, WANTED[number % len(WANTED)], exif=number % 2 == 0)
    assert n_plain > 20


# -- _png.c, decoders that fail -------------------------------------------------------------------------------------------


def test_wrong_arguments(native: ModuleType) -> None:
    rows = np.zeros((3, 7), np.uint8)
    for first, end, row_bytes, pixel_bytes in (
        *[(0, 4, 6, 3), (-1, 2, 6, 3), (2, 1, 6, 3), (0, 3, 6, 4), (0, 3, 6, 0), (0, 3, 5, 5), (0, 3, 0, 1), (0, 0, 21, 1)],
        *[(0, 3, -6, 3), (0, 1, 2**62, 1), (0, 2**62, 6, 3)],
    ):
        with pytest.raises(ValueError, match="these are no rows of pixels"):
            native.unfilter(rows, first, end, row_bytes, pixel_bytes)
    frozen = rows.copy()
    frozen.flags.writeable = False
    for wrong in (frozen, rows[:, ::2], b"abcdefg", None):
        with pytest.raises((TypeError, BufferError, ValueError)):
            native.unfilter(wrong, 0, 1, 6, 3)
    assert native.unfilter(rows, 3, 3, 6, 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WebP"])
def test_what_the_fast_decoder_raises_goes_to_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = memoryview(SMALL[kind])
    true = result(data, Wanted(), True)

    def fails(*arguments: Any) -> Any:
        raise error

    for error in (ValueError("x"), KeyError(6), RuntimeError("x"), MemoryError("x")):
        monkeypatch.setitem(plain.DECODERS, kind, fails)
        if isinstance(error, MemoryError):
            with pytest.raises(MemoryError):
                PillowImage(data, Wanted()).decode(False)
        else:
            assert result(data, Wanted(), True) == true


@pytest.mark.parametrize("interpolation", ["antialias", "fast", "nearest", "linear", "area"])
@pytest.mark.parametrize("kind", ["PNG", "RGBA PNG", "BMP", "TIFF", "WebP"])
def test_whatever_follows_takes_these_pixels(kind: str, interpolation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not contiguous, or upside down."""
    for color, (height, width) in (("rgb", (3, 3)), ("rgba", (9, 8)), ("gray", (2, 7))):
        rows = np.zeros((2, height, width, {"rgb": 3, "rgba": 4, "gray": 1}[color]), np.uint8)
        decoder = ImageDecoder(Geometry(height, width), color, exif=True, interpolation=interpolation)
        decoder.load(SMALL[kind], None, rows[0])
        with monkeypatch.context() as patch:
            patch.setattr(pillow, "decode_plain", lambda *arguments: None)
            decoder.load(SMALL[kind], None, rows[1])
        np.testing.assert_array_equal(rows[0], rows[1])


CHILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import pytest
from ringload.images import plain
from ringload.images.formats import Wanted
from tests import fuzzing
from tests.native import load
from tests.test_plain import ODD_STREAMS, SIZES, is_plain, png
plain.native = load(Path({path!r}))
for color in (0, 2, 4, 6):
    for height, width in SIZES:
        assert is_plain(png(height, width, color))
for data in ODD_STREAMS.values():
    is_plain(data, Wanted("gray"))
fuzzing.WEIGHTS = {{"PNG": 1}}
for number in range({n}):
    is_plain(fuzzing.make_input(20261130, number), Wanted())
"""


@pytest.mark.fault
def test_under_sanitizers(times: Times, tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer find no fault in _png.c, whatever it is given."""
    path = compiled(tmp_path, SANITIZED, "_png")
    code = CHILD.format(root=str(Path(__file__).parent.parent), path=str(path), n=times(300, 20_000))
    check_sanitized(code, times(110, 850))
