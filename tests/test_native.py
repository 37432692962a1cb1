"""_jpeg.c and _resample.c, and the ways in Python: the same pixels, to the bit, of the same files; no harm from any other."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ringload.images import jpeg as jpeg_module
from ringload.images import resample
from ringload.images.decoder import ImageDecoder
from ringload.images.geometry import Box, Geometry
from ringload.images.resample import Resampler
from tests.conftest import Times
from tests.helpers import photo
from tests.native import PLAIN, SANITIZED, WITHOUT_VECTORS, check_sanitized, compiled, load

SUBSAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}
SIZES = ((57, 83), (64, 96), (131, 59), (17, 200), (240, 16), (9, 7))
ORIENTATION = 0x0112


@pytest.fixture(scope="module", params=[PLAIN, WITHOUT_VECTORS], ids=["vectors", "no vectors"])
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return load(compiled(tmp_path_factory.mktemp("native"), request.param))


@pytest.fixture
def used(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of calls of _jpeg.c that succeeded."""
    calls: list[str] = []

    class Noted:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                result = getattr(native, name)(*arguments)
                calls.append(name)
                return result

            return call

    monkeypatch.setattr(jpeg_module, "native", Noted())
    return calls


def both(decoder: ImageDecoder, data: bytes, seed: int = 0) -> tuple[Any, Any]:
    """(what _jpeg.c gives, what the way in Python gives): rows, or errors as texts."""
    results = []
    native = jpeg_module.native
    for module in (native, None):
        jpeg_module.native = module  # `used` puts it back
        row = np.full(decoder.field.shape, 77, decoder.field.dtype)
        try:
            decoder.load(data, np.random.default_rng(seed), row)
            results.append(row)
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")
    jpeg_module.native = native
    return results[0], results[1]


def check_same(decoder: ImageDecoder, data: bytes, seed: int = 0) -> None:
    mine, other = both(decoder, data, seed)
    assert isinstance(mine, np.ndarray), mine
    assert isinstance(other, np.ndarray), other
    np.testing.assert_array_equal(mine, other)


def file_of(pixels: np.ndarray, subsampling: str = "4:2:0", progressive: bool = False, restart: int = 0) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SUBSAMPLINGS[subsampling], cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
    done, data = cv2.imencode(".jpg", pixels, options)
    assert done
    return data.tobytes()


# -- the same pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [0, 3])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_the_same_pixels_of_each_kind_of_file(subsampling: str, progressive: bool, restart: int, used: list[str]) -> None:
    """Crops of all sizes and at all places, enlarged and reduced, whole and scaled by the decoder."""
    decoders = [
        ImageDecoder(Geometry(height, width, resize, area=(0.01, 1)), color, flip=True)
        for height, width in ((24, 40), (90, 30), (7, 150), (1, 1))
        for resize in ("random_crop", "crop", "stretch")
        for color in ("rgb", "gray", "rgba")
    ]
    for number, size in enumerate(SIZES):
        data = file_of(photo(number, *size), subsampling, progressive, restart)
        for seed, decoder in enumerate(decoders):
            check_same(decoder, data, seed)
    assert used.count("decode") == len(SIZES) * len(decoders)


@pytest.mark.parametrize("interpolation", ["auto", "fast", "nearest", "linear", "area", "cubic", "lanczos"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_same_pixels_with_each_option(orientation: int, interpolation: Any, used: list[str]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(photo(3, 170, 133)).save(file, "JPEG", exif=exif)
    n_decoded = 0
    for dtype, transform in (("uint8", None), ("float32", None), ("float32", lambda image, rng: image // 2)):
        for resize, color in (("random_crop", "rgb"), ("stretch", "gray"), ("crop", "rgba")):
            geometry = Geometry(30, 20, resize)
            decoder = ImageDecoder(
                geometry, color, dtype, exif=True, flip=True, transform=transform, interpolation=interpolation
            )
            for seed in range(4):  # mirrored and not
                check_same(decoder, file.getvalue(), seed)
                n_decoded += 1
    assert used.count("decode") == n_decoded


def test_the_same_pixels_of_photographs(used: list[str]) -> None:
    """The recipe of training on what the benchmarks decode."""
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    from bench.photos import CLASSES, photograph

    decoder = ImageDecoder(Geometry(224, 224, "random_crop"), flip=True)
    for name in CLASSES:
        for quality in (75, 95):
            file = io.BytesIO()
            photograph(name).save(file, "JPEG", quality=quality)
            for seed in range(6):
                check_same(decoder, file.getvalue(), seed)
    assert used.count("decode") == len(CLASSES) * 2 * 6


def test_a_flip_exchanges_left_and_right(used: list[str]) -> None:
    """Against NumPy, as both ways could have the same fault."""
    data = file_of(photo(5, 60, 80))
    for geometry in (Geometry(60, 80), Geometry(31, 17), Geometry(200, 40)):
        plain, mirrored = ImageDecoder(geometry), ImageDecoder(geometry, flip=True)
        straight = both(plain, data)[0]
        seen = set()
        for seed in range(12):
            row = both(mirrored, data, seed)[0]
            is_mirrored = np.random.default_rng(seed).random() < 0.5
            np.testing.assert_array_equal(row, straight[:, ::-1] if is_mirrored else straight)
            seen.add(is_mirrored)
        assert seen == {False, True}


# -- files that are refused -------------------------------------------------------------------------------------------


def test_what_is_cut_short_is_refused_though_the_part_that_is_shown_is_there(native: ModuleType) -> None:
    for progressive in (False, True):
        data = file_of(photo(7, 200, 200), progressive=progressive)
        top = (0.0, 0.0, 20.0, 200.0)
        row = np.full((20, 200, 3), 77, np.uint8)
        native.decode(data, 8, top, row, False, None)
        assert not (row == 77).all()
        for n_bytes in (len(data) - 1, len(data) * 3 // 4, len(data) // 2):
            row[:] = 77
            with pytest.raises(ValueError, match="it has no end"):
                native.decode(data[:n_bytes], 8, top, row, False, None)
            assert (row == 77).all(), "a refusal writes nothing"
        native.decode(data + bytes(70_000), 8, top, row, False, None)  # what follows the image does not matter


def test_what_is_cut_short_is_treated_alike(used: list[str]) -> None:
    data = file_of(photo(7, 100, 100), restart=2)
    for truncated in ("refuse", "pad"):
        decoder = ImageDecoder(Geometry(50, 50, "random_crop"), truncated=truncated)
        for n_bytes in range(len(data) // 2, len(data), 97):
            mine, other = both(decoder, data[:n_bytes], n_bytes)
            assert type(mine) is type(other)
            if isinstance(mine, str):
                assert mine == other
            else:
                np.testing.assert_array_equal(mine, other)
    assert "decode" not in used


def test_damage_in_what_is_decoded_is_refused(native: ModuleType) -> None:
    data = bytearray(file_of(photo(7, 200, 200)))
    begin = data.index(b"\xff\xda") + 14
    data[begin : begin + 400] = bytes(400)
    row = np.full((50, 50, 3), 77, np.uint8)
    with pytest.raises(ValueError, match=r".+"):
        native.decode(bytes(data), 8, (0.0, 0.0, 200.0, 200.0), row, False, None)
    assert (row == 77).all()


def test_a_progressive_file_without_its_last_bits_is_left_to_the_other_way(native: ModuleType, used: list[str]) -> None:
    """libjpeg smooths it, by pixels that _jpeg.c does not decode."""
    data = file_of(photo(7, 200, 200), progressive=True)
    last = data.rindex(b"\xff\xda")
    tables = data.rfind(b"\xff\xc4", 0, last)
    shorter = data[: tables if tables > 0 else last] + b"\xff\xd9"
    with pytest.raises(ValueError, match="it lacks bits of its coefficients"):
        native.decode(shorter, 8, (0.0, 0.0, 200.0, 200.0), np.zeros((50, 50, 3), np.uint8), False, None)
    decoder = ImageDecoder(Geometry(50, 50, "random_crop"))
    check_same(decoder, shorter)
    assert used == ["header"]


@pytest.mark.parametrize(
    ("mode", "why"), [("CMYK", "its colours are not those of a photograph"), ("L", "")], ids=["CMYK", "gray"]
)
def test_kinds_of_colour(mode: str, why: str, native: ModuleType) -> None:
    file = io.BytesIO()
    Image.fromarray(photo(1, 40, 50)).convert(mode).save(file, "JPEG")
    if why:
        with pytest.raises(ValueError, match=why):
            native.header(file.getvalue())
    else:
        assert native.header(file.getvalue()) == (40, 50, False)


def test_the_header_says_what_the_decoder_holds_whole(native: ModuleType) -> None:
    """It decides how much memory is planned for."""
    for progressive in (False, True):
        for subsampling in SUBSAMPLINGS:
            data = file_of(photo(1, 40, 50), subsampling, progressive)
            assert native.header(data) == (40, 50, progressive)
            assert jpeg_module.is_held_whole(memoryview(data)) == progressive


@pytest.mark.parametrize(
    ("eighths", "part", "out", "levels", "error"),
    [
        (8, (0, 0, 40, 51), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (8, (1, 0, 40, 50), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (4, (0, 0, 40, 50), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (8, (-0.5, 0, 4, 5), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (8, (0, 0, 0, 5), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (8, (0, float("nan"), 4, 5), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (8, (0, 0, float("inf"), 5), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (0, (0, 0, 4, 5), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (9, (0, 0, 4, 5), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (8, (0, 0, 4, 5), np.zeros((4, 4), np.uint8), None, TypeError),
        (8, (0, 0, 4, 5), np.zeros((4, 4, 2), np.uint8), None, TypeError),
        (8, (0, 0, 4, 5), np.zeros((0, 4, 3), np.uint8), None, TypeError),
        (8, (0, 0, 4, 5), np.zeros((4, 4, 3), np.float32), None, TypeError),
        (8, (0, 0, 4, 5), np.zeros((4, 4, 3), np.uint8), np.zeros(256, np.float32), TypeError),
        (8, (0, 0, 4, 5), np.zeros((4, 4, 3), np.float32), np.zeros(255, np.float32), TypeError),
        (8, (0, 0, 4, 5), np.zeros((4, 8, 3), np.uint8)[:, ::2], None, (ValueError, BufferError)),
    ],
)
def test_wrong_arguments(native: ModuleType, eighths: int, part: Any, out: Any, levels: Any, error: Any) -> None:
    with pytest.raises(error):
        native.decode(file_of(photo(1, 40, 50)), eighths, part, out, False, levels)
    assert not out.any()


# -- pixels of other decoders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[PLAIN, WITHOUT_VECTORS], ids=["vectors", "no vectors"])
def resampling(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return load(compiled(tmp_path_factory.mktemp("resampling"), request.param, "_resample"))


@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_pixels_are_scaled_as_by_cykooz_resizer(n_channels: int, resampling: ModuleType, rng: np.random.Generator) -> None:
    """Noise of any size, parts of larger images, mirrored, and converted."""
    if resample.cykooz_resizer is None:
        pytest.skip("cykooz-resizer is not installed")
    levels = rng.random(256).astype(np.float32)
    for number in range(300):
        height, width, *size = rng.integers(1, 90, 4).tolist()
        image = rng.integers(0, 256, (height + 5, width + 7, n_channels), dtype=np.uint8)
        top, left = (rng.random(2) * (height, width) * 0.4).tolist() if number % 2 else (0, 0)
        box = Box(top, left, (height - top) * rng.uniform(0.3, 1), (width - left) * rng.uniform(0.3, 1))
        box = box if number % 2 else Box(0, 0, height, width)
        ours, theirs = Resampler("auto"), Resampler("auto")
        ours._native, theirs._native = resampling, None
        part, expected = image[5:, 7:], np.zeros((*size, n_channels), np.uint8)
        theirs.write(part, box, expected, is_opaque=True)
        row = np.zeros_like(expected)
        ours.write(part, box, row, is_opaque=True)
        np.testing.assert_array_equal(row, expected)
        assert ours.write_row(part, box, row, True, True, None)
        np.testing.assert_array_equal(row[:, ::-1], expected)
        values = np.zeros(expected.shape, np.float32)
        assert ours.write_row(part, box, values, True, False, levels)
        np.testing.assert_array_equal(values, levels[expected])


def test_transparent_pixels_are_left_to_others(resampling: ModuleType, rng: np.random.Generator) -> None:
    pixels, row = rng.integers(0, 256, (40, 50, 4), dtype=np.uint8), np.zeros((20, 30, 4), np.uint8)
    made, other = Resampler("auto"), Resampler("auto")
    made._native, other._native = resampling, None
    assert not made.write_row(pixels, Box(0, 0, 40, 50), row, False, False, None)
    made.write(pixels, Box(0, 0, 40, 50), row)
    expected = np.zeros_like(row)
    other.write(pixels, Box(0, 0, 40, 50), expected)
    np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("view", ["turned", "upside down", "every other column", "other channels"])
def test_pixels_in_another_order_in_memory(view: str, resampling: ModuleType) -> None:
    pixels = photo(1, 60, 80)
    views = {
        "turned": pixels.swapaxes(0, 1),
        "upside down": pixels[::-1],
        "every other column": pixels[:, ::2],
        "other channels": pixels[:, :, ::-1],
    }
    rows = np.zeros((2, 30, 20, 3), np.uint8)
    made = Resampler("auto")
    made._native = resampling
    for row, given in zip(rows, (views[view], views[view].copy()), strict=True):
        made.write(given, Box(0, 0, *given.shape[:2]), row)
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize(
    ("pixels", "part", "out", "levels", "error"),
    [
        (np.zeros((40, 50, 3), np.uint8), (0, 0, 40, 51), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (np.zeros((40, 50, 3), np.uint8), (1, 0, 40, 50), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (np.zeros((40, 50, 3), np.uint8), (0, -1, 4, 5), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (np.zeros((40, 50, 3), np.uint8), (0, float("nan"), 4, 5), np.zeros((4, 4, 3), np.uint8), None, ValueError),
        (np.zeros((40, 50, 1), np.uint8), (0, 0, 4, 5), np.zeros((4, 4, 3), np.uint8), None, TypeError),
        (np.zeros((40, 50, 3), np.float32), (0, 0, 4, 5), np.zeros((4, 4, 3), np.uint8), None, TypeError),
        (np.zeros((40, 50), np.uint8), (0, 0, 4, 5), np.zeros((4, 4, 1), np.uint8), None, TypeError),
        (np.zeros((40, 50, 3), np.uint8)[::-1], (0, 0, 4, 5), np.zeros((4, 4, 3), np.uint8), None, TypeError),
        (np.zeros((40, 50, 3), np.uint8)[:, ::2], (0, 0, 4, 5), np.zeros((4, 4, 3), np.uint8), None, TypeError),
        (np.zeros((40, 50, 3), np.uint8)[:, :, ::-1], (0, 0, 4, 5), np.zeros((4, 4, 3), np.uint8), None, TypeError),
        (np.zeros((40, 50, 3), np.uint8), (0, 0, 4, 5), np.zeros((4, 4, 3), np.float32), None, TypeError),
    ],
)
def test_wrong_pixels(resampling: ModuleType, pixels: Any, part: Any, out: Any, levels: Any, error: Any) -> None:
    with pytest.raises(error):
        resampling.scale(pixels, part, out, False, levels)
    assert not out.any()


SCALE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import numpy as np
from tests.native import load
native = load(Path({path!r}))
for height, width in ((1, 1), (1, 7), (7, 1), (2, 3), (3, 4000), (4000, 3), (70, 90)):  # an exact number of bytes for each
    for n_channels in (1, 3, 4):
        image = np.random.default_rng(0).integers(0, 256, (height, width, n_channels)).astype(np.uint8)
        for top, left in ((0, 0), (height // 2, width // 2)):
            pixels = image[top:, left:]
            for size in ((1, 1), (2, 5), (3, 7), (50, 60), (600, 700), (5, 1000), (1000, 5), pixels.shape[:2]):
                for begin in (0.0, 0.3):
                    part = (begin, begin, pixels.shape[0] - begin, pixels.shape[1] - begin)
                    for is_mirrored in (False, True):
                        native.scale(pixels, part, np.zeros((*size, n_channels), np.uint8), is_mirrored, None)
                    levels = np.zeros(256, np.float32)
                    native.scale(pixels, part, np.zeros((*size, n_channels), np.float32), False, levels)
"""


@pytest.mark.parametrize("flags", [SANITIZED, (*SANITIZED, "-DRINGLOAD_NO_AVX2")], ids=["vectors", "no vectors"])
def test_nothing_is_read_behind_the_pixels(flags: tuple[str, ...], tmp_path: Path) -> None:
    path = compiled(tmp_path, flags, "_resample")
    check_sanitized(SCALE.format(root=str(Path(__file__).parent.parent), path=str(path)), 110)


# -- no harm ----------------------------------------------------------------------------------------------------------


def test_threads_decode_at_once(native: ModuleType) -> None:
    files = [file_of(photo(number, 120, 150)) for number in range(4)]

    def decoded(number: int) -> bytes:
        row = np.empty((50, 60, 3), np.uint8)
        native.decode(files[number % 4], 8, (3.0, 4.0, 100.0, 120.0), row, False, None)
        return row.tobytes()

    truth = [decoded(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(decoded, range(400))) == truth * 100


def test_refusals_do_not_leak(native: ModuleType) -> None:
    good = file_of(photo(1, 300, 400))
    bad = bytearray(good)
    bad[len(bad) // 2 : len(bad) // 2 + 200] = bytes(200)
    row = np.empty((50, 60, 3), np.uint8)

    def many(n: int) -> int:
        for _ in range(n):
            for data in (good, bytes(bad), good[:-2], good[:300]):
                try:
                    native.decode(data, 8, (0.0, 0.0, 300.0, 400.0), row, True, None)
                except ValueError:
                    continue
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = many(50)
    assert many(400) - before < 20_000, "kB: one leaked image is 360 kB, and 300 would be"


CHILD = """
import io, resource, sys, tempfile
sys.path.insert(0, {root!r})
from pathlib import Path
import numpy as np
from PIL import Image
from ringload.images import jpeg
from tests import fuzzing
from tests.native import load
jpeg.native = load(Path({path!r}))
fuzzing.ADDRESS_BYTES = resource.RLIM_INFINITY  # the sanitizer maps terabytes
fuzzing.MEMORY_BYTES = 1 << 40
fuzzing.INPUT_S = 60
fuzzing.WEIGHTS = {{"JPEG": 10, "PROGRESSIVE": 6}}
for height, width in ((3, 4000), (4000, 3), (700, 900)):  # an exact number of bytes is allocated for each
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", subsampling=0)
    for n_channels in (1, 3, 4):
        for size in ((1, 1), (2, 5), (3, 7), (50, 60), (600, 700), (5, 1000), (1000, 5)):
            for begin in (0.0, 0.3, 1.0):
                part = (begin, begin, height - begin, width - begin)
                row = np.zeros((*size, n_channels), np.uint8)
                jpeg.native.decode(file.getvalue(), 8, part, row, False, None)
with tempfile.NamedTemporaryFile() as progress:
    fuzzing.main(20261129, 0, {n}, progress.name)
"""


@pytest.mark.fault
def test_damaged_files_under_sanitizers(times: Times, tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer find no fault in _jpeg.c, whatever it is given."""
    path = compiled(tmp_path, SANITIZED)
    code = CHILD.format(root=str(Path(__file__).parent.parent), path=str(path), n=times(1500, 60_000))
    check_sanitized(code, times(110, 850))
