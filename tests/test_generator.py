from __future__ import annotations

from itertools import islice
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
    options = OPTIONS | {"workers": workers, "epochs": 1}
    for x, y in generator_from_df(df, 5, (30, 40), shuffle=False, last="keep", **options):
        assert (x.dtype, x.shape[1:], y.shape) == (np.float32, (30, 40, 3), (len(x),))
        for image, kind in zip(x, y, strict=True):
            with Image.open(df["path"][seen]) as original:
                by_hand = np.asarray(original.convert("RGB").resize((40, 30)), np.float32) / 127.5 - 1
            assert np.abs(image - by_hand).mean() < 0.03
            assert "abc"[kind] == df["multi"][seen]
            seen += 1
    assert seen == 24


def orders(df: pd.DataFrame, n_epochs: int, **options: Any) -> list[tuple[int, ...]]:
    """Which rows of the table come in each of some epochs, by labels that tell them apart."""
    generator = generator_from_df(df.assign(row=range(24)), 4, (8, 8), label="row", **OPTIONS | options)
    rows = [int(row) for _, y in islice(generator, n_epochs * 6) for row in y]
    generator.close()
    return [tuple(rows[24 * epoch : 24 * (epoch + 1)]) for epoch in range(n_epochs)]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_with_a_new_order_each_epoch(df: pd.DataFrame, workers: int) -> None:
    seen = orders(df, 4, workers=workers, seed=3)
    assert [sorted(epoch) for epoch in seen] == [list(range(24))] * 4
    assert len(set(seen)) == 4
    assert orders(df, 4, workers=0, seed=3) == seen
    assert len(set(orders(df, 2, workers=workers, shuffle=False))) == 1


def test_it_ends_after_as_many_epochs_as_are_asked_for(df: pd.DataFrame) -> None:
    for epochs in (0, 1, 3):
        assert sum(1 for _ in generator_from_df(df, 4, (8, 8), epochs=epochs, **OPTIONS)) == 6 * epochs


def test_rows_that_hold_no_sample_are_not_yielded(df: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="last is 'drop' or 'keep', not 'pad'"):
        generator_from_df(df, 5, (8, 8), last="pad", **OPTIONS)  # nobody would tell them from samples


def test_ranks_share_each_epoch(df: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [orders(df, 1, shard=(rank, 2), workers=0)[0] for rank in range(2)]
    assert sorted(shares[0][:12] + shares[1][:12]) == list(range(24))
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match="shard="):
        generator_from_df(df, 4, (8, 8), **OPTIONS)
    assert orders(df, 1, shard="auto", workers=0)[0] == shares[1]


def test_every_batch_may_be_kept(df: pd.DataFrame) -> None:
    batches = list(generator_from_df(df, 4, (30, 40), epochs=1))  # as many workers as there are CPUs, and memory for them
    assert len(batches) == 6
    assert len({x.tobytes() for x, _ in batches}) == 6


def test_other_labels(df: pd.DataFrame) -> None:
    ((_, y),) = generator_from_df(df, 24, (8, 8), label={"kind": "multi", "two": "bi"}, epochs=1, **OPTIONS)
    assert sorted(y) == ["kind", "two"]
    ((_, y),) = generator_from_df(df, 24, (8, 8), label=None, epochs=1, **OPTIONS)
    assert y is None


def test_what_cannot_be_is_refused_when_it_is_made(df: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="no column 'kind'"):
        generator_from_df(df, 4, (8, 8), label="kind")


def test_who_leaves_early_leaves_nothing(df: pd.DataFrame) -> None:
    for _ in generator_from_df(df, 4, (8, 8), **OPTIONS):
        break
