from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from ringload import ConfigError
from ringload.images.geometry import Box, Geometry, orient, upright
from tests.helpers import photo


def test_stretch_takes_everything_and_crop_the_middle() -> None:
    assert Geometry(10, 20).box(37, 91, None) == (0, 0, 37, 91)
    assert Geometry(10, 10, "crop").box(30, 90, None) == (0, 30, 30, 30)
    assert Geometry(10, 10, "crop").box(90, 30, None) == (30, 0, 30, 30)
    assert Geometry(10, 20, "crop").box(50, 100, None) == (0, 0, 50, 100)
    assert Geometry(10, 20, "crop").box(60, 100, None) == (5, 0, 50, 100)
    assert Geometry(7, 5, "crop").box(1, 1, None) == (0, 0, 1, 1)


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (64, 64), (1, 1), (1, 4000), (3, 2)])
def test_a_random_box_is_within_the_image_and_the_limits(size: tuple[int, int]) -> None:
    height, width = size
    geometry = Geometry(10, 10, "random_crop", (0.2, 0.6), (0.5, 2.0))
    rng = np.random.default_rng(0)
    boxes = [geometry.box(height, width, rng) for _ in range(300)]
    for top, left, box_height, box_width in boxes:
        assert 0 <= top <= top + box_height <= height
        assert 0 <= left <= left + box_width <= width
        assert min(box_height, box_width) > 0
        if min(height, width) > 50:
            assert 0.19 < box_height * box_width / (height * width) < 0.61
            assert 0.48 < box_width / box_height < 2.1
    if min(height, width) > 50:
        assert len(set(boxes)) > 250
        areas = [box.height * box.width / (height * width) for box in boxes]
        assert abs(np.mean(areas) - 0.4) < 0.03  # uniform in the share of the area
        ratios = [math.log(box.width / box.height) for box in boxes]
        assert abs(np.mean(ratios)) < 0.2  # and in the log of the proportion, but for boxes that do not fit


def test_a_box_that_never_fits_falls_back_to_the_middle() -> None:
    box = Geometry(10, 10, "random_crop", (1.0, 1.0), (1.0, 1.0)).box(100, 300, np.random.default_rng(0))
    assert box == (0, 100, 100, 100)


def test_a_box_of_a_scaled_image() -> None:
    assert Box(20, 40, 60, 80).scaled(3 / 8, 3 / 8) == (7.5, 15, 22.5, 30)
    assert Box(7.5, 15, 22.5, 30).rounded(40, 50) == (8, 15, 22, 30)
    assert Box(99.9, 199.9, 0.1, 0.1).rounded(100, 200) == (99, 199, 1, 1)  # never empty


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_where_the_file_has_it(orientation: int) -> None:
    stored = np.arange(20 * 30).reshape(20, 30, 1)
    shown = orient(stored, orientation)
    height, width = shown.shape[:2]
    assert (height, width) == upright(20, 30, orientation)
    top, left, box_height, box_width = map(int, Box(3, 5, 6, 9).stored(height, width, orientation))
    part = stored[top : top + box_height, left : left + box_width]
    np.testing.assert_array_equal(orient(part, orientation), shown[3:9, 5:14])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_pillows(orientation: int) -> None:
    pixels = photo(2, 20, 30)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    turned = orient(pixels, orientation)
    np.testing.assert_array_equal(turned, np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"height": 0},
        {"width": -1},
        {"resize": "nix"},
        {"area": (0.0, 1.0)},
        {"area": (0.5, 1.5)},
        {"area": (0.6, 0.5)},
        {"ratio": (0.0, 1.0)},
    ],
)
def test_geometries_that_cannot_be(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Geometry(**{"height": 10, "width": 10, **arguments})


def test_a_seed_gives_the_boxes_that_it_has_always_given() -> None:
    geometry = Geometry(10, 10, "random_crop")
    boxes = [geometry.box(375, 500, np.random.Generator(np.random.Philox(seed))) for seed in range(3)]
    assert boxes == [(90, 178, 142, 123), (1, 2, 184, 144), (26, 78, 332, 398)]
