from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ringload import ConfigError, generator_from_df

OPTIONS: dict[str, Any] = {"workers": 2, "ram_budget": "300MB", "max_pixels": 1_000_000}


@pytest.fixture
def df(photos: Path) -> pd.DataFrame:
    table = pd.read_csv(photos / "photos.csv")
    table["path"] = [str(photos / path) for path in table["path"]]
    return table


@pytest.mark.parametrize("workers", [0, 2])
def test_one_epoch_of_what_is_written_by_hand(df: pd.DataFrame, workers: int) -> None:
    seen = 0
    for x, y in generator_from_df(df, 5, (30, 40), shuffle=False, last="keep", **OPTIONS | {"workers": workers}):
        assert (x.dtype, x.shape[1:], y.shape) == (np.float32, (30, 40, 3), (len(x),))
        for image, kind in zip(x, y, strict=True):
            with Image.open(df["path"][seen]) as original:
                by_hand = np.asarray(original.convert("RGB").resize((40, 30)), np.float32) / 127.5 - 1
            assert np.abs(image - by_hand).mean() < 0.03
            assert "abc"[kind] == df["multi"][seen]
            seen += 1
    assert seen == 24


def test_every_batch_may_be_kept(df: pd.DataFrame) -> None:
    batches = list(generator_from_df(df, 4, (30, 40)))  # as many producers as there are CPUs, and memory for them
    assert len(batches) == 6
    assert len({x.tobytes() for x, _ in batches}) == 6


def test_other_labels(df: pd.DataFrame) -> None:
    ((_, y),) = generator_from_df(df, 24, (8, 8), label={"kind": "multi", "two": "bi"}, **OPTIONS)
    assert sorted(y) == ["kind", "two"]
    ((_, y),) = generator_from_df(df, 24, (8, 8), label=None, **OPTIONS)
    assert y is None


def test_what_cannot_be_is_refused_when_it_is_made(df: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="no column 'kind'"):
        generator_from_df(df, 4, (8, 8), label="kind")


def test_who_leaves_early_leaves_nothing(df: pd.DataFrame) -> None:
    for _ in generator_from_df(df, 4, (8, 8), **OPTIONS):
        break
