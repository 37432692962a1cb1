"""Decoding, with codecs: every format and kind of pixel against Pillow, and everything that is not an image."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from ringload import ConfigError, Worker
from ringload.images.decoder import ImageDecoder
from ringload.images.formats import Scratch
from ringload.images.geometry import Geometry
from ringload.images.jpeg import Jpeg, is_held_whole
from ringload.images.resample import Resampler
from tests.helpers import photo, run_quietly

SIZE = (60, 80)
WHOLE = Geometry(60, 80)


def decode(path: Path, rng: Any = None, geometry: Geometry = WHOLE, **options: Any) -> np.ndarray:
    decoder = ImageDecoder(geometry, **options)
    return decode_by(decoder, path, rng)


def decode_by(decoder: ImageDecoder, path: Path, rng: Any = None) -> np.ndarray:
    rows = np.full((3, *decoder.field.shape), 77, decoder.field.dtype)
    decoder.load(path.read_bytes(), rng, rows[1])
    assert (rows[[0, 2]] == 77).all(), "neighbouring rows were written to"
    return rows[1]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


# -- formats and kinds of pixel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", ["rgb", "gray", "rgba"])
@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {"quality": 95}),
        ("progressive.jpg", "RGB", {"quality": 95, "progressive": True}),
        ("444.jpg", "RGB", {"quality": 95, "subsampling": "4:4:4"}),
        ("gray.jpg", "L", {"quality": 95}),
        ("cmyk.jpg", "CMYK", {"quality": 95}),
        ("a.png", "RGB", {}),
        ("gray.png", "L", {}),
        ("bit.png", "1", {}),
        ("palette.png", "P", {}),
        ("alpha.png", "RGBA", {}),
        ("gray alpha.png", "LA", {}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.bmp", "RGB", {}),
        ("a.gif", "P", {}),
        ("a.tif", "RGB", {}),
        ("deflate.tif", "RGB", {"compression": "tiff_adobe_deflate"}),
        ("cmyk.tif", "CMYK", {}),
    ],
)
def test_every_format_decodes_as_pillow_does(tmp_path: Path, name: str, mode: str, options: Any, color: str) -> None:
    image = Image.fromarray(photo(3, *SIZE))
    if "A" in mode:
        image.putalpha(Image.fromarray(photo(4, *SIZE)[:, :, 0]))
    path = tmp_path / name
    image.convert(mode).save(path, **options)
    with Image.open(path) as original:
        expected = np.asarray(original.convert({"rgb": "RGB", "gray": "L", "rgba": "RGBA"}[color]))
    pixels = decode(path, color=color)
    assert pixels.shape == (*SIZE, {"rgb": 3, "gray": 1, "rgba": 4}[color])
    assert difference(pixels, expected.reshape(pixels.shape)) < 1.5  # decoders round differently; gray JPEG takes Y as it is


def test_16_bits_keep_their_range(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 60 * 80).astype(np.uint16).reshape(SIZE)
    for name in ("a.png", "a.tif"):
        pixels = decode(save(tmp_path / name, wide))
        assert difference(pixels[:, :, 0], wide >> 8) == 0


def test_16_bit_colour_keeps_its_range(tmp_path: Path) -> None:
    import cv2

    wide = photo(3, *SIZE).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "a.png"), wide[:, :, ::-1])
    assert difference(decode(tmp_path / "a.png"), photo(3, *SIZE)) <= 1


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="floating-point pixels from 2 to 2"):
        decode(save(tmp_path / "f.tif", np.full(SIZE, 2, np.float32)))
    with pytest.raises(ValueError, match="signed integers"):
        decode(save(tmp_path / "i.tif", np.full(SIZE, 100_000, np.int32)))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(photo(seed, *SIZE)).quantize() for seed in (1, 2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert difference(decode(tmp_path / "a.gif"), np.asarray(frames[0].convert("RGB"))) < 1


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    image = Image.fromarray(photo(5, 90, 120))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as original:
        upright = ImageOps.exif_transpose(original).convert("RGB").resize((80, 60))
    stored = image.resize((80, 60))  # Pillow has turned what it has loaded from TIFF
    assert difference(decode(tmp_path / name, exif=True), np.asarray(upright)) < 3
    assert difference(decode(tmp_path / name), np.asarray(stored)) < 3


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_damaged_exif_spoils_no_image(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(photo(5, 90, 120)).save(path, exif=b"Exif\0\0garbage-not-a-tiff-header")
    np.testing.assert_array_equal(decode(path, exif=True), decode(path))


def test_exif_orientation_and_crop_go_together(tmp_path: Path) -> None:
    pixels = photo(5, 400, 900)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = np.rot90(pixels, -1)  # (900, 400)
    expected = Image.fromarray(upright[350:550, 0:400]).resize((80, 40))
    assert difference(decode(tmp_path / "a.jpg", exif=True, geometry=Geometry(40, 80, "crop")), np.asarray(expected)) < 3


# -- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("size", [(60, 80), (61, 83), (200, 300), (700, 500), (1500, 2100), (30, 20), (1, 1)])
def test_images_of_any_size_come_near_to_pillows_result(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    path = save(tmp_path / name, photo(6, *size), **({"quality": 95} if name == "a.jpg" else {}))
    with Image.open(path) as original:
        expected = np.asarray(original.resize((80, 60), Image.Resampling.BILINEAR))
    assert difference(decode(path), expected) < 3


def test_the_part_is_drawn_first_then_the_flip(tmp_path: Path) -> None:
    """So that a seed gives the pixels that it has always given."""
    path = save(tmp_path / "a.png", photo(1, 90, 70))
    geometry = Geometry(20, 30, "random_crop")
    seen = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        box = geometry.box(90, 70, rng)
        is_mirrored = rng.random() < 0.5
        truth = np.empty((20, 30, 3), np.uint8)
        Resampler("auto").write(photo(1, 90, 70), box, truth)
        row = decode(path, np.random.default_rng(seed), geometry, flip=True)
        assert np.array_equal(row, truth[:, ::-1] if is_mirrored else truth)
        seen.add(is_mirrored)
    assert seen == {False, True}


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_random_crop_shows_its_box(tmp_path: Path, name: str) -> None:
    """Pixels tell where they are from: red grows with x, green with y."""
    y, x = np.mgrid[0:400, 0:600]
    pixels = np.stack([x * 255 / 600, y * 255 / 400, x * 0 + 128], axis=-1).astype(np.uint8)
    path = save(tmp_path / name, pixels, **({"quality": 95, "subsampling": "4:4:4"} if name == "a.jpg" else {}))
    geometry = Geometry(50, 50, "random_crop", (0.1, 0.5))
    for seed in range(20):
        top, left, height, width = geometry.box(400, 600, np.random.default_rng(seed))
        row = decode(path, np.random.default_rng(seed), geometry).astype(float)
        assert abs(row[:, 0, 0].mean() - left * 255 / 600) < 6
        assert abs(row[:, -1, 0].mean() - (left + width) * 255 / 600) < 6
        assert abs(row[0, :, 1].mean() - top * 255 / 400) < 6
        assert abs(row[-1, :, 1].mean() - (top + height) * 255 / 400) < 6


def test_flip_mirrors_every_other_image(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", photo(7, *SIZE))
    plain = decode(path)
    for color in ("rgb", "gray"):
        plain = decode(path, color=color)
        rows = [decode(path, np.random.default_rng(seed), flip=True, color=color) for seed in range(40)]
        mirrored = [bool((row == plain[:, ::-1]).all()) for row in rows]
        assert all(m or (row == plain).all() for m, row in zip(mirrored, rows, strict=True))
        assert 10 < sum(mirrored) < 30


# -- dtype, scale, transform ------------------------------------------------------------------------------------------


def test_float32_maps_bytes_onto_the_scale(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", photo(8, *SIZE))
    for color in ("rgb", "gray"):
        plain = decode(path, color=color).astype(np.float32)
        np.testing.assert_allclose(decode(path, dtype="float32", color=color), plain / 127.5 - 1, atol=1e-6)
        np.testing.assert_allclose(decode(path, dtype="float32", color=color, scale=(0, 255)), plain, atol=1e-4)
    extremes = save(tmp_path / "b.png", np.array([[0, 255]], np.uint8))
    row = decode(extremes, dtype="float32", geometry=Geometry(1, 2))
    assert (row.min(), row.max()) == (-1.0, 1.0)


def test_transform_gets_the_image_and_a_generator(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", photo(9, *SIZE))
    plain = decode(path)

    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        assert (image.shape, image.dtype) == ((*SIZE, 3), np.uint8)
        image[0, 0] = rng.integers(256)
        return image

    row = decode(path, np.random.default_rng(5), transform=transform)
    assert (row[0, 0] == np.random.default_rng(5).integers(256)).all()
    np.testing.assert_array_equal(row[1:], plain[1:])
    halves = decode(path, np.random.default_rng(5), transform=lambda image, rng: 255 - image, dtype="float32", scale=(0, 1))
    np.testing.assert_allclose(halves, 1 - plain.astype(np.float32) / 255, atol=1e-6)
    floats = decode(path, np.random.default_rng(5), transform=lambda image, rng: image / 2.0, dtype="float32")
    np.testing.assert_allclose(floats, plain / 2.0)  # floats are taken as they are


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (lambda image, rng: image[1:], r"transform returned \(59, 80, 3\) uint8; it has to return .*\(60, 80, 3\) uint8"),
        (lambda image, rng: None, "transform returned NoneType"),
        (lambda image, rng: image.astype(float), "takes .* uint8, got .* float64"),
    ],
)
def test_a_transform_that_returns_something_else(tmp_path: Path, transform: Any, said: str) -> None:
    path = save(tmp_path / "a.png", photo(9, *SIZE))
    with pytest.raises(ValueError, match=said):
        decode(path, np.random.default_rng(0), transform=transform)


def test_albumentations_are_taken_and_seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    pipeline = albumentations.Compose([albumentations.HorizontalFlip(p=0.5), albumentations.RandomBrightnessContrast(p=1)])
    decoder = ImageDecoder(WHOLE, transform=pipeline)
    path = save(tmp_path / "a.png", photo(9, *SIZE))
    rows = [decode_by(decoder, path, np.random.default_rng(seed)) for seed in (1, 2, 3, 1, 2, 3)]
    for seed in range(3):
        np.testing.assert_array_equal(rows[seed], rows[seed + 3])
    assert (rows[0] != rows[1]).any()


# -- what is not an image, or too much of one -------------------------------------------------------------------------


def jpeg(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo(1, 90, 120)).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo(1, 90, 120)).save(buffer, kind)
    whole = buffer.getvalue()
    path = tmp_path / "a"
    for sixteenth in range(16):
        path.write_bytes(whole[: len(whole) * sixteenth // 16] or b"x")
        with pytest.raises(Exception):  # noqa: B017, PT011  (in the words of whichever decoder refuses it)
            decode(path)


@pytest.mark.parametrize("content", [b"x", b"hello world" * 100, b"\xff\xd8", b"P7\n", b"RIFF1234WAVE", b"%!PS-Adobe-3.0 EPSF"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(Exception, match="cannot identify image file"):
        decode(tmp_path / "a.jpg")


def test_other_formats_of_pillows_are_not_even_tried(tmp_path: Path) -> None:
    for name in ("a.tga", "a.pcx", "a.ico", "a.pdf"):
        path = save(tmp_path / name, photo(1, *SIZE))
        with pytest.raises(Exception, match="cannot identify image file"):
            decode(path)


def with_size(data: bytes, height: int, width: int) -> bytes:
    """A JPEG file that says that it is of another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jpg"
    path.write_bytes(with_size(jpeg(), 65500, 65500))
    tracemalloc.start()
    with pytest.raises(Exception, match=r"4,?290,?250,?000 pixels|65,500 x 65,500 pixels: more than max_pixels"):
        decode(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20_000_000


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_max_pixels(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, photo(1, 100, 101))
    decode(path, max_pixels=10_100)
    with pytest.raises(ValueError, match="100 x 101 pixels: more than max_pixels=10,099"):
        decode(path, max_pixels=10_099)


def test_a_file_too_large_for_any_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    os.truncate(path, 240_001)  # sparse
    with pytest.raises(ValueError, match=r"a file of 240,001 bytes cannot be an image of at most 10,000 pixels"):
        decode(path, max_pixels=10_000)


def test_pillow_rescues_what_is_recoverable(tmp_path: Path) -> None:
    """Bytes between two segments: simplejpeg is strict about them, Pillow is not."""
    data = jpeg()
    at = data.index(b"\xff\xdb")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:at] + b"\0\0\0" + data[at:])
    with pytest.raises(ValueError, match="extraneous bytes"):
        Jpeg(memoryview(path.read_bytes()), "rgb", Scratch()).decode(8)
    assert difference(decode(path), np.asarray(Image.fromarray(photo(1, 90, 120)).resize((80, 60)))) < 4


def test_nothing_is_warned_about(tmp_path: Path) -> None:
    palette = Image.fromarray(photo(1, *SIZE)).quantize()
    palette.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(tmp_path / "a.png")


# -- memory -----------------------------------------------------------------------------------------------------------


class Turns:
    """Counts who waits for a turn of the large ones."""

    def __init__(self) -> None:
        self.n = 0

    @contextmanager
    def exclusive(self) -> Any:
        self.n += 1
        yield


@pytest.mark.parametrize(
    ("name", "options", "turns"),
    [("a.jpg", {}, 0), ("p.jpg", {"progressive": True}, 1), ("a.png", {}, 1)],
    ids=["baseline, scaled while decoded", "progressive", "png"],
)
def test_large_images_take_turns_if_they_need_much_memory(tmp_path: Path, name: str, options: Any, turns: int) -> None:
    path = save(tmp_path / name, photo(1, 1000, 1200), **options)
    decoder, counted = ImageDecoder(WHOLE), Turns()
    decoder.start(Worker(0, 0, 2_000_000, counted.exclusive))
    decode_by(decoder, path)
    assert counted.n == turns
    decoder.start(Worker(0, 0, 50_000_000, counted.exclusive))
    decode_by(decoder, path)
    assert counted.n == turns


def test_files_that_are_held_whole_are_known() -> None:
    assert is_held_whole(memoryview(jpeg(progressive=True)))
    assert not is_held_whole(memoryview(jpeg()))
    assert is_held_whole(memoryview(b"\xff\xd8\xff"))  # not understood: the dearer is assumed


def test_buffers_are_used_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", photo(1, 375, 500))
    decoder = ImageDecoder(WHOLE)
    row = np.empty(decoder.field.shape, np.uint8)
    content = path.read_bytes()
    decoder.load(content, None, row)
    tracemalloc.start()
    for _ in range(20):
        decoder.load(content, None, row)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000  # 79,524 as it is decoded, which cykooz-resizer takes as bytes; 562,500 as the file has it


@pytest.mark.parametrize(
    "options",
    [
        {"color": "cmyk"},
        {"dtype": "float64"},
        {"max_pixels": 100},
        {"transform": 3},
        {"interpolation": "nix"},
        {"background": 256},
        {"background": (1, 2)},
        {"background": 0.5},
        {"background": 0, "color": "rgba"},
        {"value_range": 3},
        {"value_range": (5, 5)},
        {"value_range": (0, float("inf"))},
        {"value_range": ("a", "b")},
        {"truncated": True},
    ],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ImageDecoder(WHOLE, **options)


def test_workers_that_were_forked_after_opencv_ran_its_threads(photos: Path) -> None:
    code = """
        import os, sys, time
        import cv2, numpy as np
        from ringload import ImageFrame, Loader
        from tests.helpers import content

        def is_asleep(thread):
            with open(f"/proc/self/task/{thread}/stat") as file:
                return file.read().rsplit(") ")[1][0] == "S"

        cv2.setNumThreads(3)
        cv2.resize(np.zeros((3000, 3000, 3), np.uint8), (900, 900), interpolation=cv2.INTER_AREA)
        others = {int(thread) for thread in os.listdir("/proc/self/task")} - {os.getpid()}
        assert len(others) >= 2
        while not all(map(is_asleep, others)):
            time.sleep(0.01)
        source = ImageFrame(f"{sys.argv[1]}/photos.csv", root=sys.argv[1], size=(16, 16))
        options = {"shuffle": False, "ram_budget": "600MB"}
        with Loader(source, 4, workers=0, **options) as calm, Loader(source, 4, start_method="fork", **options) as made:
            assert content(made) == content(calm)
        assert cv2.getNumThreads() == 3
        print("ok")
    """
    assert run_quietly(code, photos) == "ok\n"
