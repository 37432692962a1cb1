"""Resampling: what "auto" shows is what Pillow's BILINEAR shows, for every factor and shape; and what the others do."""

from __future__ import annotations

import io
import itertools
import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ringload.images import resample
from ringload.images.decoder import ImageDecoder
from ringload.images.geometry import Box, Geometry
from ringload.images.resample import INTERPOLATIONS, Resampler, _Pillow
from tests.helpers import photo
from tests.test_wide import decode

FACTORS = [1.2, 1.5, 1.9, 2.0, 2.5, 2.9, 3, 4, 5.5, 7.9]
HAS_SIMD = resample.cykooz_resizer is not None
BACKENDS = pytest.mark.parametrize("backend", ["_resample.c", "cykooz-resizer", "Pillow"])
NAMES = ("astronaut", "cat", "coffee", "rocket", "immunohistochemistry", "camera")


@cache
def photographs() -> list[np.ndarray]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    made = [getattr(data, name)() for name in NAMES] + list(load_sample_images().images)
    return [np.ascontiguousarray(np.broadcast_to(one.reshape(*one.shape[:2], -1), (*one.shape[:2], 3))) for one in made]


def resampler(backend: str, interpolation: Any = "auto") -> Resampler:
    made = Resampler(interpolation)
    if backend == "_resample.c":
        if resample.native is None:
            pytest.skip("_resample.c is not built")
        return made
    made._native = None
    if backend == "Pillow":
        made._triangle = _Pillow()
    elif not HAS_SIMD:
        pytest.skip("cykooz-resizer is not installed")
    return made


def scaled(pixels: np.ndarray, size: tuple[int, int], made: Resampler, box: Any = None, is_opaque: bool = False) -> np.ndarray:
    slot = np.full((3, *size, pixels.shape[2]), 77, np.uint8)
    made.write(pixels, Box(*(box or (0, 0, *pixels.shape[:2]))), slot[1], is_opaque)
    assert (slot[[0, 2]] == 77).all(), "neighbouring rows were written to"
    return slot[1]


def pillow(pixels: np.ndarray, size: tuple[int, int], box: Any = None) -> np.ndarray:
    """`box` is (top, left, height, width)."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    edges = None if box is None else (box[1], box[0], box[1] + box[3], box[0] + box[2])
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, edges)).reshape(*size, -1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    mean = np.mean((a.astype(float) - b) ** 2)
    return float(99 if mean == 0 else 10 * np.log10(255**2 / mean))


def squares(factor: float) -> list[tuple[np.ndarray, int]]:
    """The largest part of each photograph that is `factor` times a whole number of pixels, and that number, 224 at most."""
    made = []
    for pixels in photographs():
        target = min(224, int(min(pixels.shape[:2]) / factor))
        side = round(target * factor)
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        made.append((np.ascontiguousarray(pixels[top : top + side, left : left + side]), target))
    return made


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "444.jpg", "progressive.jpg"])
def test_photographs_come_as_near_to_pillows_as_is_promised(tmp_path: Any, name: str, factor: float) -> None:
    options: dict[str, Any] = {"quality": 92} if name.endswith("jpg") else {"compress_level": 1}
    more: dict[str, dict[str, Any]] = {"444.jpg": {"subsampling": "4:4:4"}, "progressive.jpg": {"progressive": True}}
    options |= more.get(name, {})
    found = []
    for pixels, target in squares(factor):
        Image.fromarray(pixels).save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as image:
            expected = pillow(np.asarray(image.convert("RGB")), (target, target))
        found.append(psnr(decode(tmp_path / name, size=(target, target)), expected))
    assert np.median(found) >= 45, found
    assert min(found) >= 35, found


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_by_pillow_alone_it_is_the_same_to_one_level(tmp_path: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for color, factor in itertools.product(("rgb", "gray", "rgba"), (1.5, 4)):
        for pixels, target in squares(factor)[:3]:
            Image.fromarray(pixels).save(tmp_path / name, **({"quality": 92} if name == "a.jpg" else {}))
            rows = [decode(tmp_path / name, color, size=(target, target - 3))]
            with monkeypatch.context() as patch:
                patch.setattr(resample, "native", None)
                patch.setattr(resample, "cykooz_resizer", None)
                rows.append(decode(tmp_path / name, color, size=(target, target - 3)))
            assert np.abs(rows[0].astype(int) - rows[1]).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("size", [(64, 64), (100, 60), (224, 224)])
def test_crops_come_as_near(tmp_path: Any, name: str, size: tuple[int, int]) -> None:
    """A part of what the file has, with fractions of pixels where it is decoded smaller."""
    options: dict[str, Any] = {"quality": 92} if name.endswith("jpg") else {}
    geometry = Geometry(*size, "random_crop", (0.3, 1.0))
    found = []
    for seed, pixels in enumerate(photographs()):
        Image.fromarray(pixels).save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as image:
            whole = np.asarray(image.convert("RGB"))
        top, left, height, width = map(int, geometry.box(len(whole), whole.shape[1], np.random.default_rng(seed)))
        decoder, row = ImageDecoder(geometry), np.zeros((*size, 3), np.uint8)
        decoder.load((tmp_path / name).read_bytes(), np.random.default_rng(seed), row)
        found.append(psnr(row, pillow(np.ascontiguousarray(whole[top : top + height, left : left + width]), size)))
    assert np.median(found) >= 45, found
    assert min(found) >= 35, found


@BACKENDS
@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_it_is_pillows_to_one_level(backend: str, n_channels: int) -> None:
    """Noise, the worst there is for rounding; sizes that shrink, grow, or do one each way; parts with fractions."""
    rng, made = np.random.default_rng(n_channels), resampler(backend)
    for number in range(60):
        height, width, *size = rng.integers(1, 200, 4).tolist()
        pixels = rng.integers(0, 256, (height, width, n_channels), dtype=np.uint8)
        if n_channels == 4:
            pixels[:, :, 3] = 255
        top, left = (rng.random(2) * (height, width) * 0.4).tolist() if number % 2 else (0, 0)
        box = (top, left, (height - top) * rng.uniform(0.3, 1), (width - left) * rng.uniform(0.3, 1)) if number % 2 else None
        if box is not None:  # beyond whose pixels this does not look, as if it had been cut out before
            first, start = int(top), int(left)
            stop, end = int(np.ceil(top + box[2])), int(np.ceil(left + box[3]))
            cut = np.ascontiguousarray(pixels[first:stop, start:end])
            expected = pillow(cut, tuple(size), (top - first, left - start, box[2], box[3]))
        else:
            expected = pillow(pixels, tuple(size))
        for is_opaque in (False, True):
            row = scaled(pixels, tuple(size), made, box, is_opaque)
            assert np.abs(row.astype(int) - expected).max() <= 1, (number, height, width, size, box)


@BACKENDS
def test_what_is_transparent_has_no_colour_that_bleeds(backend: str) -> None:
    """A green that is hidden, beside a red that is not."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32], pixels[:, 32:] = (255, 0, 0, 255), (0, 255, 0, 0)
    row = scaled(pixels, (23, 23), resampler(backend))
    expected = pillow(pixels, (23, 23))
    assert np.abs(row[:, :, 3].astype(int) - expected[:, :, 3]).max() <= 1
    assert (row[row[:, :, 3] > 0][:, :3] == (255, 0, 0)).all()
    for interpolation in ("linear", "area", "cubic", "lanczos", "fast"):
        row = scaled(pixels, (23, 23), resampler(backend, interpolation))
        assert (row[row[:, :, 3] > 8][:, 1] == 0).all(), interpolation


@BACKENDS
def test_weighted_pixels_are_nearly_pillows(backend: str) -> None:
    """Times their alpha: of what is nearly transparent, divided by that, one level becomes many."""
    rng = np.random.default_rng(7)
    for _ in range(30):
        height, width, *size = rng.integers(1, 150, 4).tolist()
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        ours, theirs = scaled(pixels, tuple(size), resampler(backend)).astype(int), pillow(pixels, tuple(size)).astype(int)
        assert np.abs(ours[:, :, 3] - theirs[:, :, 3]).max() <= 1
        assert np.abs(ours[:, :, :3] * ours[:, :, 3:] - theirs[:, :, :3] * theirs[:, :, 3:]).max() <= 3 * 255


@pytest.mark.skipif(not HAS_SIMD, reason="cykooz-resizer is not installed")
@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_every_cpu_makes_the_same_bytes(n_channels: int) -> None:
    from cykooz_resizer import CpuExtensions

    rng = np.random.default_rng(n_channels)
    for _ in range(20):
        height, width, *size = rng.integers(1, 300, 4).tolist()
        pixels, rows = rng.integers(0, 256, (height, width, n_channels), dtype=np.uint8), []
        for extensions in (CpuExtensions.none, CpuExtensions.sse4_1, CpuExtensions.avx2):
            made = resampler("cykooz-resizer")
            scaled(pixels, tuple(size), made)
            if made._triangle is not None:  # it was not of that size already
                made._triangle._resizer.cpu_extensions = extensions
                made._triangle._alpha.cpu_extensions = extensions
            rows.append(scaled(pixels, tuple(size), made))
        np.testing.assert_array_equal(rows[0], rows[1])
        np.testing.assert_array_equal(rows[0], rows[2])


# -- long images ----------------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("is_upright", [False, True])
def test_stripes_of_a_long_image_become_gray(backend: str, is_upright: bool) -> None:
    """One side shrinks, the other grows."""
    stripes = np.zeros((100, 2240, 3), np.uint8)
    stripes[:, ::2] = 255
    row = scaled(np.ascontiguousarray(stripes.swapaxes(0, 1)) if is_upright else stripes, (224, 224), resampler(backend))
    assert np.abs(row.astype(int) - 127).max() <= 5


def line_of_text(height: int, width: int) -> np.ndarray:
    """`(height, width, 3)`: letters."""
    from PIL import ImageDraw, ImageFont

    image = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(height * 0.8)
    ImageDraw.Draw(image).text((2, 0), "The quick brown fox jumps over the lazy dog, 0123456789 " * 4, "black", font)
    return np.asarray(image)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize(("size", "target"), [((24, 768), (32, 128)), ((48, 2000), (32, 320)), ((700, 20), (64, 64))])
def test_a_line_of_text_is_pillows(tmp_path: Any, name: str, size: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = line_of_text(*size) if size[1] > size[0] else np.rot90(line_of_text(*size[::-1]))
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name, **({"quality": 92} if name == "a.jpg" else {}))
    with Image.open(tmp_path / name) as image:
        expected = pillow(np.asarray(image.convert("RGB")), target)
    assert psnr(decode(tmp_path / name, size=target), expected) >= 45


@BACKENDS
@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (70_000, 70), (2, 3)])
def test_a_long_image_takes_little_memory(backend: str, size: tuple[int, int]) -> None:
    """The side that shrinks goes first: 224 x 100,000 pixels between would be 67 MB of a file of 0.3."""
    import resource

    pixels = np.zeros((*size, 3), np.uint8)
    made = resampler(backend)
    scaled(pixels[:10, :10], (5, 5), made)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scaled(pixels, (224, 224), made)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 40_000


# -- the other filters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_channels", [1, 3, 4])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_an_image_is_scaled_in_place(n_channels: int, interpolation: Any) -> None:
    pixels = np.repeat(photo(1, 120, 160), 2, axis=2)[:, :, :n_channels]
    row = scaled(pixels, (30, 40), Resampler(interpolation), (10, 20, 100, 120), is_opaque=True)
    expected = np.asarray(Image.fromarray(pixels[10:110, 20:140, 0]).resize((40, 30), Image.Resampling.BOX))
    assert np.abs(row[:, :, 0].astype(int) - expected).mean() < 6


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_an_image_of_the_right_size_is_copied_as_it_is(interpolation: Any) -> None:
    pixels = photo(1, 30, 40)
    np.testing.assert_array_equal(scaled(pixels, (30, 40), Resampler(interpolation)), pixels)
    np.testing.assert_array_equal(scaled(pixels, (10, 20), Resampler(interpolation), (3, 5, 10, 20)), pixels[3:13, 5:25])


def test_the_others_are_opencvs() -> None:
    import cv2

    pixels = photo(3, 375, 500)
    for interpolation, code in (("nearest", 0), ("linear", 1), ("cubic", 2), ("area", 3), ("lanczos", 4)):
        expected = cv2.resize(pixels, (224, 224), interpolation=code)
        np.testing.assert_array_equal(scaled(pixels, (224, 224), Resampler(interpolation)), expected)
    for size, code in (((374, 499), 1), ((250, 200), 1), ((126, 224), 1), ((125, 224), 3), ((224, 100), 3)):
        expected = cv2.resize(pixels, size[::-1], interpolation=code)
        np.testing.assert_array_equal(scaled(pixels, size, Resampler("fast")), expected)


def test_the_others_take_jpeg_as_small_as_it_can_be_decoded(tmp_path: Any) -> None:
    """The whole of what the decoder gives at the least scale that is not below the target."""
    import cv2
    import simplejpeg

    Image.fromarray(photographs()[0][:, :400]).save(tmp_path / "a.jpg", quality=92)
    for size, eighths in (((200, 150), 4), ((190, 149), 3), ((100, 99), 2), ((260, 150), 8)):
        made = simplejpeg.decode_jpeg(
            (tmp_path / "a.jpg").read_bytes(), "RGB", min_height=size[0], min_width=size[1], min_factor=2
        )
        assert made.shape[0] == 512 * eighths // 8
        row = decode(tmp_path / "a.jpg", size=size, interpolation="linear")
        np.testing.assert_array_equal(row, cv2.resize(made, size[::-1], interpolation=cv2.INTER_LINEAR))


def test_a_resampler_is_sent_without_what_it_keeps() -> None:
    made = Resampler("auto")
    pixels = photo(1, 100, 100)
    row = scaled(pixels, (30, 30), made)
    np.testing.assert_array_equal(scaled(pixels, (30, 30), pickle.loads(pickle.dumps(made))), row)


def test_jpeg_of_any_scale_shows_no_shift(tmp_path: Any) -> None:
    """A file whose sides are no multiple of 8: its last pixels are fewer when it is decoded smaller."""
    for side, (top, left) in itertools.product((1000, 1001, 1003, 1007), ((0, 0), (3, 5))):
        y, x = np.mgrid[0:side, 0:side]
        pixels = np.stack([x * 255 / side, y * 255 / side, (x + y) * 127 / side], axis=-1).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels[top:, left:]).save(file, "JPEG", quality=97, subsampling="4:4:4")
        (tmp_path / "a.jpg").write_bytes(file.getvalue())
        with Image.open(tmp_path / "a.jpg") as image:
            expected = pillow(np.asarray(image), (61, 61))
        row = decode(tmp_path / "a.jpg", size=(61, 61))
        assert abs((row.astype(float) - expected).mean()) < 0.2
        assert np.abs(row.astype(int) - expected).max() <= 3
