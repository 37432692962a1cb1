"""Pixels of more than 8 bits, and other kinds of TIFF: what is shown is right, judged by numpy, or it is refused in words."""

from __future__ import annotations

import io
import itertools
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from ringload.images.decoder import ImageDecoder
from ringload.images.formats import Wanted
from ringload.images.geometry import Geometry
from ringload.images.high_depth import to_8_bits
from tests.hostile import chunk

HEIGHT, WIDTH = 20, 30
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode(path: Path, color: Any = "rgb", size: tuple[int, int] = (HEIGHT, WIDTH), **options: Any) -> np.ndarray:
    decoder = ImageDecoder(Geometry(*size), color, **options)
    row = np.zeros(decoder.field.shape, decoder.field.dtype)
    decoder.load(path.read_bytes(), None, row)
    return row


def values(kind: str, bits: int, n_samples: int) -> np.ndarray:
    """`(HEIGHT, WIDTH, n_samples)`, over all of the range."""
    rng = np.random.default_rng(bits * 10 + n_samples)
    shape = (HEIGHT, WIDTH, n_samples)
    if kind == "float":
        return rng.random(shape).astype(f"f{bits // 8}")
    made = rng.integers(0, 2**bits, shape, dtype=np.uint64)
    made[0, 0], made[0, 1] = 0, 2**bits - 1
    return made.astype(f"u{1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8}")


def shown(a: np.ndarray, kind: str, bits: int) -> np.ndarray:
    """As it is to be shown: `(h, w, n) uint8`."""
    if kind == "float":
        return np.rint(a.astype(np.float64) * 255).astype(np.uint8)
    return (a >> (bits - 8)).astype(np.uint8)


def gray_of(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("L"))


def write_tiff(path: Path, a: np.ndarray, bits: int, planar: bool, **options: Any) -> Path:
    n_samples = a.shape[2]
    photometric = "rgb" if n_samples in (3, 4) else "minisblack"
    if n_samples > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    if a.dtype.kind == "u" and bits % 8:
        options["bitspersample"] = bits
    content = np.ascontiguousarray(np.moveaxis(a, 2, 0)) if planar else a if n_samples > 1 else a[:, :, 0]
    tifffile.imwrite(path, content, photometric=photometric, **options)
    return path


KINDS = [("uint", 8), ("uint", 16), ("uint", 32), ("uint", 64), ("float", 16), ("float", 32), ("float", 64)]
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deflate": {"compression": "zlib"},
    "tiles": {"tile": (16, 16)},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "big-endian BigTIFF, deflate": {"bigtiff": True, "byteorder": ">", "compression": "zlib"},
    "strips": {"rowsperstrip": 3},
}


@pytest.mark.parametrize(("kind", "bits"), KINDS)
@pytest.mark.parametrize("n_samples", [1, 2, 3, 4, 5])
def test_tiff_is_shown_as_it_is(tmp_path: Path, kind: str, bits: int, n_samples: int) -> None:
    """Every layout; gray is the first sample, RGB the first three, further ones say nothing of colour."""
    a = values(kind, bits, n_samples)
    expected = shown(a, kind, bits)
    rgb = np.repeat(expected[:, :, :1], 3, axis=2) if n_samples not in (3, 4) else expected[:, :, :3]
    for (name, layout), planar in itertools.product(LAYOUTS.items(), (False, True) if n_samples > 1 else (False,)):
        path = write_tiff(tmp_path / "a.tif", a, bits, planar, **layout)
        np.testing.assert_array_equal(decode(path), rgb, err_msg=f"{name}, planar={planar}")
        np.testing.assert_array_equal(decode(path, "gray")[:, :, 0], gray_of(rgb), err_msg=f"{name}, planar={planar}, gray")


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_10_to_14_bits(tmp_path: Path, bits: int, n_samples: int, white_is_zero: bool, order: str) -> None:
    """Bits side by side, the highest first, whatever the byte order; each row begins with a byte."""
    a = values("uint", bits, n_samples).reshape(HEIGHT, -1)
    stream = (a[:, :, np.newaxis] >> np.arange(bits)[::-1]) & 1  # (HEIGHT, WIDTH * n_samples, bits)
    content = np.packbits(stream.reshape(HEIGHT, -1).astype(np.uint8), axis=1).tobytes()
    photometric = 2 if n_samples == 3 else 0 if white_is_zero else 1
    entries = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, photometric), (273, 8), (277, n_samples)]
    entries += [(278, HEIGHT), (279, len(content))]
    (tmp_path / "a.tif").write_bytes(tiff_file(entries, content, order))
    expected = np.broadcast_to((a >> (bits - 8)).reshape(HEIGHT, WIDTH, n_samples), (HEIGHT, WIDTH, 3))
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), 255 - expected if photometric == 0 else expected)
    limits = (0, 2**bits - 1)
    exact = np.rint(np.broadcast_to(a.reshape(HEIGHT, WIDTH, n_samples), (HEIGHT, WIDTH, 3)) / limits[1] * 255)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif", value_range=limits), exact)


@pytest.mark.parametrize("bits", [10, 12, 24])
def test_planes_of_odd_bits_are_refused_in_words(tmp_path: Path, bits: int) -> None:
    """tifffile needs imagecodecs for them; where that is installed, they are right."""
    path = tmp_path / "a.tif"
    content = bytes(HEIGHT * (WIDTH * bits // 8 + 1) * 3)
    entries = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, 2), (273, 8), (277, 3), (278, HEIGHT), (284, 2)]
    path.write_bytes(tiff_file(entries, content))
    try:
        assert not decode(path).any()
    except ValueError as error:
        assert f"a TIFF file: pixels of 3 values of {bits} bits, in planes: reading them needs tifffile" in str(error)  # noqa: PT017


def tiff_file(entries: list[tuple[int, int]], content: bytes, order: str = "<") -> bytes:
    """A TIFF file with its pixels at 8. As many BitsPerSample as there are samples are the same."""
    content += b"\0" * (len(content) % 2)
    n_samples, bits = dict(entries)[277], dict(entries)[258]
    table = struct.pack(f"{order}{n_samples}H", *[bits] * n_samples) + b"\0" * (n_samples % 2 * 2)
    tags = b""
    for tag, value in sorted(entries):
        if tag == 258 and n_samples > 2:
            tags += struct.pack(f"{order}HHII", tag, 3, n_samples, 8 + len(content))
        else:
            tags += struct.pack(f"{order}HHII", tag, 4, 1, value)
    head = b"II*\0" if order == "<" else b"MM\0*"
    first = 8 + len(content) + len(table)
    return head + struct.pack(f"{order}I", first) + content + table + struct.pack(f"{order}H", len(entries)) + tags + bytes(4)


@pytest.mark.parametrize("bits", [1, 8, 16, 24])  # by Pillow, OpenCV, tifffile
@pytest.mark.parametrize("tag", [256, 257, 258, 277, 278])
def test_a_tag_with_two_values_is_refused(tmp_path: Path, bits: int, tag: int) -> None:
    """Decoders may take either: an image of 20 rows took 1.4 GB, as tifffile took the other height."""
    entries = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, HEIGHT)]
    content = bytes(HEIGHT * (WIDTH * bits // 8 + 1))
    path = tmp_path / "a.tif"
    for order in ("<", ">"):
        for larger in (0, 1):
            twice = entries.copy()
            twice.insert(entries.index((tag, dict(entries)[tag])) + larger, (tag, 1_000_000))
            path.write_bytes(unsorted_tiff(twice, content, order))
            with pytest.raises(ValueError, match=rf"its header has two values of tag {tag}: .*1000000"):
                decode(path, "gray")
    path.write_bytes(unsorted_tiff([*entries, (tag, dict(entries)[tag])], content, "<"))
    if bits != 24:
        decode(path, "gray")  # the same value twice does no harm


def unsorted_tiff(entries: list[tuple[int, int]], content: bytes, order: str) -> bytes:
    """As `tiff_file`, of one sample a pixel, with the entries as they are."""
    content += b"\0" * (len(content) % 2)
    tags = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(content))
    return head + content + struct.pack(f"{order}H", len(entries)) + tags + bytes(4)


@pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (16, "<u2"), (32, "<u4"), (32, "<f4")])
def test_white_is_zero(tmp_path: Path, bits: int, dtype: str) -> None:
    a = values("float" if "f" in dtype else "uint", bits, 1)[:, :, 0].astype(dtype)
    entries = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, 0), (273, 8), (277, 1), (278, HEIGHT)]
    entries += [(279, a.nbytes), (339, 3 if "f" in dtype else 1)]
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_file(entries, a.tobytes()))
    expected = 255 - shown(a, "float" if "f" in dtype else "uint", bits).astype(int)
    assert np.abs(decode(path, "gray")[:, :, 0].astype(int) - expected).max() <= (1 if "f" in dtype else 0)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_signed_integers_take_a_range(tmp_path: Path, dtype: str) -> None:
    a = np.linspace(-100, 100, HEIGHT * WIDTH).astype(dtype).reshape(HEIGHT, WIDTH)
    path = write_tiff(tmp_path / "a.tif", a[:, :, np.newaxis], 0, False)
    with pytest.raises(ValueError, match=r"a TIFF file: signed integers, .* value_range"):
        decode(path)
    row = decode(path, "gray", value_range=(-50, 50))[:, :, 0]
    np.testing.assert_array_equal(row, np.rint((a.astype(float) + 50).clip(0, 100) * 2.55))


@pytest.mark.parametrize(("least", "most"), [(-0.5, 1), (0, 255), (0, np.inf), (np.nan, 1)])
def test_floats_outside_0_to_1_are_refused_with_their_values(tmp_path: Path, least: float, most: float) -> None:
    a = np.full((HEIGHT, WIDTH, 1), 0.5, np.float32)
    a[0, 0], a[-1, -1] = least, most
    path = write_tiff(tmp_path / "a.tif", a, 32, False)
    with pytest.raises(ValueError, match=r"floating-point pixels from .* to .*, not from 0 \(black\) to 1"):
        decode(path)
    if np.isnan(least):
        with pytest.raises(ValueError, match="some of which are NaN"):
            decode(path, value_range=(0, 1))
    else:
        assert decode(path, "gray", value_range=(0, 1))[-1, -1, 0] == 255


def test_a_range_says_what_is_black_and_white(tmp_path: Path) -> None:
    """12 bits in files of 16, as medical exports have them: dark without it."""
    a = (np.arange(HEIGHT * WIDTH) % 4096).astype(np.uint16).reshape(HEIGHT, WIDTH)
    expected = np.rint(a / 4095 * 255)
    rgb = np.stack([a, a // 2, a // 3], axis=-1).astype(np.uint16)
    for name in ("a.png", "a.tif", "a.pgm"):
        if name == "a.pgm":
            (tmp_path / name).write_bytes(b"P5\n30 20\n65535\n" + a.astype(">u2").tobytes())
        else:
            Image.fromarray(a).save(tmp_path / name)
        np.testing.assert_array_equal(decode(tmp_path / name, "gray")[:, :, 0], a >> 8)
        np.testing.assert_array_equal(decode(tmp_path / name, "gray", value_range=(0, 4095))[:, :, 0], expected)
        np.testing.assert_array_equal(decode(tmp_path / name, "gray", value_range=(4095, 0))[:, :, 0], 255 - expected)
    (tmp_path / "rgb.png").write_bytes(png_of_16_bits(rgb, 2))
    (tmp_path / "rgb.ppm").write_bytes(b"P6 30 20 65535\n" + rgb.astype(">u2").tobytes())
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    for name in ("rgb.png", "rgb.ppm", "rgb.tif"):
        np.testing.assert_array_equal(decode(tmp_path / name, value_range=(0, 4095)), np.rint(rgb / 4095 * 255))
        np.testing.assert_array_equal(decode(tmp_path / name), rgb >> 8)


def png_of_16_bits(a: np.ndarray, color: int, *chunks: bytes) -> bytes:
    height, width = a.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in a)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    return SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color", "n"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("value_range", [None, (0, 65535), (1000, 50_000)])
def test_png_of_16_bits(tmp_path: Path, color: int, n: int, value_range: Any) -> None:
    a = values("uint", 16, n)
    (tmp_path / "a.png").write_bytes(png_of_16_bits(a, color))
    black, white = value_range or (0, 65535)
    exact = np.rint((a.astype(float) - black).clip(0, white - black) / (white - black) * 255)
    expected = exact if value_range else a >> 8
    n_colors = n - (n % 2 == 0)
    row = decode(tmp_path / "a.png", "rgba", value_range=value_range)
    np.testing.assert_array_equal(row[:, :, :3], np.broadcast_to(expected[:, :, :n_colors], (HEIGHT, WIDTH, 3)))
    np.testing.assert_array_equal(row[:, :, 3], a[:, :, -1] >> 8 if n % 2 == 0 else 255)


@pytest.mark.parametrize(("color", "n"), [(0, 1), (2, 3)])
def test_a_transparent_value_of_16_bits_is_compared_as_a_whole(tmp_path: Path, color: int, n: int) -> None:
    a = values("uint", 16, n)
    a[3, 4], a[5, 6] = 0x1234, 0x1235  # the same upper bytes
    (tmp_path / "a.png").write_bytes(png_of_16_bits(a, color, chunk(b"tRNS", b"\x12\x34" * n)))
    alpha = decode(tmp_path / "a.png", "rgba")[:, :, 3]
    assert (alpha[3, 4], alpha[5, 6]) == (0, 255)
    np.testing.assert_array_equal(alpha == 0, (a == 0x1234).all(axis=2))
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), np.broadcast_to(a >> 8, (HEIGHT, WIDTH, 3)))
    assert (decode(tmp_path / "a.png", background=(1, 2, 3))[3, 4] == (1, 2, 3)).all()


@pytest.mark.parametrize("maximum", [1, 15, 100, 255, 256, 1000, 4095, 65535])
@pytest.mark.parametrize(("magic", "n"), [(b"P2", 1), (b"P3", 3), (b"P5", 1), (b"P6", 3)])
def test_pnm_by_its_own_maximum(tmp_path: Path, magic: bytes, n: int, maximum: int) -> None:
    a = np.random.default_rng(maximum).integers(0, maximum + 1, (HEIGHT, WIDTH, n))
    header = b"%b\n# a comment 1 2\n%d %d\n%d\n" % (magic, WIDTH, HEIGHT, maximum)
    if magic in (b"P2", b"P3"):
        content = " ".join(map(str, a.ravel().tolist())).encode()
    else:
        content = a.astype(">u2" if maximum > 255 else "u1").tobytes()
    (tmp_path / "a").write_bytes(header + content)
    row = decode(tmp_path / "a").astype(float)
    exact = a >> 8 if maximum == 65535 else a * 255 / maximum
    assert np.abs(row - np.broadcast_to(exact, row.shape)).max() <= 0.5
    (tmp_path / "a").write_bytes((header + content)[:-200])
    with pytest.raises(ValueError, match="a PNM file: "):
        decode(tmp_path / "a")


@pytest.mark.parametrize("magic", [b"P1", b"P4"])
def test_pbm(tmp_path: Path, magic: bytes) -> None:
    a = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH))
    bits = " ".join(map(str, a.ravel().tolist())).encode() if magic == b"P1" else np.packbits(a, axis=1).tobytes()
    (tmp_path / "a").write_bytes(b"%b %d %d\n" % (magic, WIDTH, HEIGHT) + bits)
    np.testing.assert_array_equal(decode(tmp_path / "a", "gray")[:, :, 0], 255 * (1 - a))


@pytest.mark.parametrize(("magic", "n"), [(b"Pf", 1), (b"PF", 3)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pfm(tmp_path: Path, magic: bytes, n: int, order: str) -> None:
    a = np.random.default_rng(0).random((HEIGHT, WIDTH, n)).astype(f"{order}f4")
    header = b"%b\n%d %d\n%d.0\n" % (magic, WIDTH, HEIGHT, -1 if order == "<" else 1)
    (tmp_path / "a").write_bytes(header + a[::-1].tobytes())
    np.testing.assert_array_equal(decode(tmp_path / "a"), np.broadcast_to(np.rint(a.astype(float) * 255), (HEIGHT, WIDTH, 3)))
    (tmp_path / "a").write_bytes(header + (a * 3)[::-1].tobytes())
    with pytest.raises(ValueError, match="a PFM file: floating-point pixels from"):
        decode(tmp_path / "a")


@pytest.mark.parametrize(("extra", "is_weighted"), [("unassalpha", False), ("assocalpha", True)])
def test_alpha_of_16_bits(tmp_path: Path, extra: str, is_weighted: bool) -> None:
    a = values("uint", 16, 4)
    a[:, :, 3] = np.linspace(20_000, 65535, WIDTH)
    a[:, :, :3] = np.minimum(a[:, :, :3], a[:, :, 3:])
    tifffile.imwrite(tmp_path / "a.tif", a, photometric="rgb", extrasamples=[extra])
    row = decode(tmp_path / "a.tif", "rgba")
    np.testing.assert_array_equal(row[:, :, 3], a[:, :, 3] >> 8)
    colors = a[:, :, :3] / a[:, :, 3:] * 255 if is_weighted else a[:, :, :3] >> 8
    assert np.abs(row[:, :, :3] - colors).max() < (5 if is_weighted else 1)  # 5: of 8 bits, divided by 78/255
    assert np.abs(decode(tmp_path / "a.tif")[:, :, :3] - colors).max() < (5 if is_weighted else 1)


def test_what_no_decoder_reads_is_named(tmp_path: Path) -> None:
    entries = [(256, 8), (257, 8), (258, 16), (259, 1), (262, 32845), (273, 8), (277, 3), (278, 8)]
    (tmp_path / "a.tif").write_bytes(tiff_file(entries, bytes(8 * 8 * 6)))
    with pytest.raises(ValueError, match="a TIFF file: LogLuv pixels of 3 values of 16 bits are not supported"):
        decode(tmp_path / "a.tif")


def test_without_tifffile_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiff(tmp_path / "a.tif", values("uint", 16, 3), 16, True)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"pixels of 3 values of 16 bits, in planes: reading them needs tifffile.*pip install"):
        decode(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_is_turned_only_if_asked(tmp_path: Path, orientation: int, bits: int) -> None:
    a = values("uint", bits, 3)
    tifffile.imwrite(tmp_path / "a.tif", a, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    expected = shown(a, "uint", bits)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), expected)
    turned = Image.fromarray(expected)
    turned.getexif()[274] = orientation
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(turned))
    np.testing.assert_array_equal(decode(tmp_path / "a.tif", size=upright.shape[:2], exif=True), upright)


def test_mapping_is_done_in_parts() -> None:
    """Of a large image a few rows at a time: floats of 8 bytes for all of it would be eight times its bytes."""
    wide = np.arange(3000 * 2000, dtype=np.uint32).reshape(3000, 2000, 1)
    expected = np.rint(wide / wide.max() * 255)
    np.testing.assert_array_equal(to_8_bits(wide, 32, Wanted(value_range=(0, float(wide.max())))), expected)
    import tracemalloc

    tracemalloc.start()
    to_8_bits(wide, 32, Wanted(value_range=(0, 100)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2.5 * wide.size


def test_a_wide_tiff_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    a = values("uint", 16, 3)
    for planar, compression, tile in itertools.product((False, True), (None, "zlib"), (None, (16, 16))):
        pixels = np.moveaxis(a, 2, 0) if planar else a
        options: dict[str, Any] = {"planarconfig": "separate" if planar else "contig", "compression": compression, "tile": tile}
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, photometric="rgb", rowsperstrip=None if tile else 4, **options)
        whole = file.getvalue()
        for part in (0.3, 0.6, 0.95):
            (tmp_path / "a.tif").write_bytes(whole[: int(len(whole) * part)])
            with pytest.raises(ValueError, match="a TIFF file: "):
                decode(tmp_path / "a.tif")
