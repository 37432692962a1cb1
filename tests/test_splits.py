"""Parts of a table for training, validation and test: which rows, and what is done to their images."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ringload import ConfigError, ImageFrame, Loader
from ringload.sources.splits import rows_of_parts

SIZE = (24, 32)


def values_of(n: int) -> pd.Series[Any]:
    return pd.Series(np.random.default_rng(n).integers(0, max(2, n // 20), n))


# (samples, fraction, seed, how, without values) -> the rows of the second part, hashed, as commit 503d23e gave them
AS_EVER = [
    (10, 0.2, 0, "stratify", True, "5ec0616dd54ea5b9"),
    (10, 0.2, 0, "stratify", False, "6c46009b5ad98613"),
    (10, 0.2, 0, "group", False, "a8048b14df76b61f"),
    (1000, 0.2, 3, "stratify", True, "735b0399bbd4e6dc"),
    (1000, 0.2, 3, "stratify", False, "c8d9c3b8af600637"),
    (1000, 0.2, 3, "group", False, "ce13aa4a2a48f25b"),
    (1000, 0.37, 2**63 + 5, "stratify", True, "fc96caa64ae73b4d"),
    (1000, 0.37, 2**63 + 5, "stratify", False, "77283ea6a6be211d"),
    (1000, 0.37, 2**63 + 5, "group", False, "30e2f584d387c36c"),
    (17, 0.5, 1, "stratify", True, "2c1cfa92ebaa44f5"),
    (17, 0.5, 1, "stratify", False, "7860b8298a3564a0"),
    (17, 0.5, 1, "group", False, "7facbf0d9f8e77e3"),
    (999, 1 / 3, 7, "stratify", True, "b14189ba52b9d5d9"),
    (999, 1 / 3, 7, "stratify", False, "cc512797e1ac338d"),
    (999, 1 / 3, 7, "group", False, "d74f127859b6f457"),
]


@pytest.mark.parametrize(("n", "fraction", "seed", "how", "plain", "hashed"), AS_EVER)
def test_two_parts_are_what_they_ever_were(n: int, fraction: float, seed: int, how: Any, plain: bool, hashed: str) -> None:
    values = None if plain else values_of(n)
    for given in (fraction, (1 - fraction, fraction), np.array([1 - fraction, fraction])):
        first, second = rows_of_parts(n, given, seed, values, how)
        assert hashlib.sha256(second.astype("<i8").tobytes()).hexdigest()[:16] == hashed
        assert sorted([*first, *second]) == list(range(n))


@pytest.mark.parametrize("how", ["plain", "stratify", "group"])
def test_three_parts_are_a_partition_with_their_shares(how: Any) -> None:
    n = 2000
    values = None if how == "plain" else values_of(n)
    parts = rows_of_parts(n, (0.7, 0.2, 0.1), 4, values, "group" if how == "group" else "stratify")
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert all((np.diff(part) > 0).all() for part in parts)  # in the table's order
    assert [len(part) for part in rows_of_parts(n, [0.7, 0.2, 0.1], 4, None, "stratify")] == [1400, 400, 200]
    if how == "stratify":
        assert values is not None
        for value, count in Counter(values.tolist()).items():
            shares = [int((values[part] == value).sum()) for part in parts]
            assert shares[1] == round(0.2 * count)
            assert shares[1] + shares[2] == round(0.30000000000000004 * count)
    if how == "group":
        assert values is not None
        groups = [set(values[part]) for part in parts]
        assert sum(map(len, groups)) == len(set().union(*groups))
        largest = values.value_counts().max()
        assert 400 <= len(parts[1]) < 400 + largest
        assert 200 <= len(parts[2]) < 200 + largest


def test_a_large_group_does_not_take_the_share_of_the_part_after() -> None:
    values = pd.Series(["huge"] * 500 + [f"g{k}" for k in range(500)])
    for seed in range(20):
        _, *others = rows_of_parts(1000, (0.5, 0.25, 0.25), seed, values, "group")
        assert all(len(part) >= 250 for part in others)


def test_missing_values_are_one_value() -> None:
    values = pd.Series(["a"] * 10 + [None] * 10, dtype=object)
    first, second = rows_of_parts(20, 0.5, 0, values, "group")
    assert sorted([first.tolist(), second.tolist()]) == [list(range(10)), list(range(10, 20))]


@pytest.mark.parametrize(
    ("fraction", "said"),
    [
        (0.0, "fraction is a share"),
        (1, "fraction is a share"),
        (1.5, "fraction is a share"),
        (float("nan"), "fraction is a share in .* not nan"),
        ("0.2", "fraction is a share .* not '0.2'"),
        (True, "fraction is a share"),
        (None, "fraction is a share"),
        ((0.7, 0.2), r"the fractions \(0.7, 0.2\) sum to 0.9, not to 1: give those of all parts, with the first"),
        ((0.7, 0.2, 0.2), "sum to 1.1, not to 1"),
        ((0.5, 0.5, 0.0), "fraction is a share"),
        ((1.2, -0.2), "fraction is a share"),
        ((), "the fractions of two parts or more"),
        ([1.0], "fraction is a share"),
        (("0.5", "0.5"), "fraction is a share"),
        ((0.998, 0.001, 0.001), r"of 100 samples leaves a part empty: part 1, counted from 0"),
    ],
)
def test_fractions_that_cannot_be(fraction: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rows_of_parts(100, fraction, 0, None, "stratify")


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", None, True])
def test_seeds_that_cannot_be(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed is an integer from 0"):
        rows_of_parts(100, 0.5, seed, None, "stratify")


# -- augmentation -----------------------------------------------------------------------------------------------------


def brighten(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image // 2 + np.uint8(rng.integers(0, 100))


def normalise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (image.astype(np.float32) - 100) / 50


def frame(photos: Path, **options: Any) -> ImageFrame:
    return ImageFrame(photos / "photos.csv", label="multi", size=SIZE, max_pixels=10**6, **options)


def images(source: ImageFrame, workers: int = 0, seed: int = 0) -> bytes:
    with Loader(source, 3, workers=workers, ram_budget="300MB", seed=seed, last="keep", shuffle=False) as loader:
        return b"".join(batch["image"].tobytes() for batch in loader)


def test_only_the_first_part_is_augmented(photos: Path) -> None:
    source = frame(photos, flip=True, resize="random_crop")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, validation, test = source.split((0.5, 0.25, 0.25), by="multi")
    assert source.augmentation == train.augmentation == {"flip": True, "resize": "random_crop", "transform": None}
    for part in (validation, test):
        assert part.augmentation == {"flip": False, "resize": "crop", "transform": None}
        assert not part.random
        assert images(part) == images(part, seed=1)
        assert images(part) == images(frame(photos, resize="crop").subset(part.rows))
    assert train.random
    assert images(train) != images(train, seed=1)
    assert images(train) == images(source.subset(train.rows))


def test_all_parts_are_augmented_if_that_is_asked_for(photos: Path) -> None:
    source = frame(photos, flip=True, transform=brighten)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in source.split(0.5, augment="all"):
            assert part.augmentation == source.augmentation == {"flip": True, "resize": "stretch", "transform": brighten}
            assert images(part) != images(part, seed=1)


def test_a_transform_is_left_out_with_a_warning_unless_the_user_has_said_which(photos: Path) -> None:
    source = frame(photos, transform=brighten)
    with pytest.warns(UserWarning, match=r"the parts after the first have no transform.*give eval_transform=None") as warned:
        train, validation = source.split(0.5)
    assert (len(warned), warned[0].filename) == (1, __file__)
    assert train.augmentation["transform"] is brighten
    assert validation.augmentation["transform"] is None
    assert images(validation) == images(frame(photos).subset(validation.rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, silent = source.split(0.5, eval_transform=None)
        assert images(silent) == images(validation)
        frame(photos, flip=True).split(0.5)


def test_a_transform_that_is_no_augmentation_can_be_given_for_the_others(photos: Path) -> None:
    source = frame(photos, transform=normalise, flip=True, dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, validation = source.split(0.5, eval_transform=normalise)
    assert validation.augmentation == {"flip": False, "resize": "stretch", "transform": normalise}
    assert train.augmentation["flip"]
    pixels = np.frombuffer(images(frame(photos).subset(validation.rows)), np.uint8)
    np.testing.assert_array_equal(np.frombuffer(images(validation), np.float32), (pixels.astype(np.float32) - 100) / 50)


@pytest.mark.parametrize("augment", ["first", "all"])
def test_parts_have_the_same_bytes_for_any_number_of_workers(photos: Path, augment: Any) -> None:
    source = frame(photos, flip=True, resize="random_crop", transform=brighten)
    options = {"eval_transform": brighten} if augment == "first" else {}
    for part in source.split((0.4, 0.3, 0.3), augment=augment, **options):
        assert len({images(part, workers) for workers in (0, 1, 3)}) == 1


def test_a_part_without_augmentation_by_hand(photos: Path) -> None:
    source = frame(photos, flip=True, resize="random_crop", transform=brighten)
    part = source.subset(np.arange(5)).without_augmentation()
    assert part.augmentation == {"flip": False, "resize": "crop", "transform": None}
    assert part.labels.tolist() == source.labels[:5].tolist()
    assert source.without_augmentation(normalise).augmentation["transform"] is normalise
    assert source.augmentation["transform"] is brighten


def test_a_part_that_is_not_augmented_stays_as_it_is_when_it_is_split_again(photos: Path) -> None:
    source = frame(photos, flip=True, transform=brighten)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, rest = source.split(0.5, eval_transform=normalise)
        validation, test = rest.split(0.5)
        assert validation.augmentation == test.augmentation == {"flip": False, "resize": "stretch", "transform": normalise}
        assert rest.split(0.5, eval_transform=None)[1].augmentation["transform"] is None
    with pytest.warns(UserWarning, match="the parts after the first have no transform"):
        assert train.split(0.5)[0].augmentation["flip"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"augment": "none"}, "augment is 'first' or 'all'"),
        ({"augment": "all", "eval_transform": None}, "give one"),
        ({"eval_transform": 3}, "a transform is a function"),
        ({"by": ["multi", "bi"]}, r"no column \['multi', 'bi'\]"),
        ({"by": "nix"}, "no column 'nix'"),
        ({"how": "group"}, "how='group' needs by=, the column whose values are the groups"),
    ],
)
def test_options_of_splits_that_cannot_be(photos: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        frame(photos).split(0.5, **options)


def test_albumentations_for_the_others(photos: Path) -> None:
    albumentations = pytest.importorskip("albumentations")
    source = frame(photos, transform=albumentations.Compose([albumentations.RandomBrightnessContrast(p=1)]))
    crop = albumentations.Compose([albumentations.HorizontalFlip(p=1)])
    train, validation = source.split(0.5, eval_transform=crop)
    assert images(train) != images(train, seed=1)
    mirrored = np.frombuffer(images(frame(photos).subset(validation.rows)), np.uint8).reshape(-1, *SIZE, 3)[:, :, ::-1]
    np.testing.assert_array_equal(np.frombuffer(images(validation), np.uint8).reshape(-1, *SIZE, 3), mirrored)
