"""Streaming datasets of Hugging Face: local Parquet and JSON files, with streaming=True."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import ConfigError, Loader, SampleError, Stream, from_huggingface
from ringload.sources.huggingface_stream import is_exact
from tests.deaths import kill_all, members
from tests.helpers import content, truth
from tests.tables import SIZE, N, png
from tests.test_huggingface import FEATURES, columns

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.slow  # each worker imports datasets

ROOM: dict[str, Any] = {"ram_budget": "1500MB", "seed": 3, "last": "keep"}
N_SHARDS = 5


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """60 rows in 5 files."""
    folder, n = tmp_path_factory.mktemp("parquet"), N // N_SHARDS
    paths = [str(folder / f"{shard}.parquet") for shard in range(N_SHARDS)]
    for shard, path in enumerate(paths):
        datasets.Dataset.from_dict(columns(n, n * shard), features=FEATURES).to_parquet(path)
    return datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True, cache_dir=str(folder / "cache"))


def checked(batches: Any) -> Iterator[int]:
    """Verify all fields of samples. Yields their numbers."""
    for batch in batches:
        for row, number in enumerate(batch["number"].tolist()):
            if "image" in batch:
                np.testing.assert_array_equal(batch["image"][row], truth(number))
            assert batch["label"][row] == number % 3
            assert batch["flag"][row] == (number % 2 == 0)
            assert batch["pair"][row].tolist() == [number, number + 0.5]
            assert (batch["grid"][row] == number).all()
            yield number


@pytest.mark.parametrize("how", [{}, {"parts": 2, "shuffle": 7}], ids=str)
def test_each_row_once_with_the_fields_of_its_features(how: dict[str, Any], parquet: Any) -> None:
    source = from_huggingface(parquet, size=SIZE, **how)
    assert isinstance(source, Stream)
    assert {name: (one.shape, str(one.dtype)) for name, one in source.fields.items()} == {
        "image": ((*SIZE, 3), "uint8"),
        "label": ((), "int64"),
        "number": ((), "int16"),
        "pair": ((2,), "float64"),
        "flag": ((), "bool"),
        "grid": ((2, 3), "uint8"),
    }
    for workers in (0, 2):
        with Loader(source, 4, workers=workers, **ROOM) as made:
            for _ in range(2):
                assert sorted(checked(made)) == list(range(N))


@pytest.mark.fault
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("how", [{"parts": 2}, {"parts": 2, "shuffle": 5}], ids=str)
def test_deaths_and_states_lose_and_repeat_no_row(
    how: dict[str, Any], buffered: bool, parquet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = parquet.shuffle(seed=3, buffer_size=6) if buffered else parquet
    assert is_exact(dataset.select_columns(["image"]).decode(False)) is not buffered
    source = from_huggingface(dataset, size=SIZE, flip=True, **how)
    with Loader(source, 4, workers=0, **ROOM) as made:
        whole = content(made)
    monkeypatch.setattr("ringload.ring.plan.MAX_SLOTS", 4)  # or all batches were there when workers are killed
    n_killed, seen = 0, []
    with Loader(source, 4, workers=2, restarts=None, **ROOM) as made:
        for batch in made:
            if n_killed < 2 and (alive := members(made)[1:]):
                n_killed += kill_all(alive[:1])
            seen += content([batch])
            if len(seen) == 6:
                state = json.loads(json.dumps(made.state_dict()))
    assert n_killed == 2
    assert seen == whole
    with Loader(source, 4, workers=1, **ROOM) as made:
        made.load_state_dict(state)
        assert content(made) == whole[6:]


def test_columns_of_numbers_without_images(parquet: Any) -> None:
    source = from_huggingface(parquet.remove_columns("image"))
    with Loader(source, 4, workers=1, **ROOM) as made:
        assert sorted(checked(made)) == list(range(N))


def test_features_have_to_be_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"number": n, "kind": "ab"[n % 2]}) + "\n" for n in range(20)))
    options = {"data_files": str(path), "split": "train", "streaming": True, "cache_dir": str(tmp_path / "cache")}
    dataset = datasets.load_dataset("json", **options)
    if dataset.features is None:
        with pytest.raises(ConfigError, match=r"features of this IterableDataset are not known.*dataset.cast\(features\)"):
            from_huggingface(dataset)
    features = datasets.Features({"number": datasets.Value("int64"), "kind": datasets.Value("string")})
    dataset = datasets.load_dataset("json", features=features, **options)
    with pytest.raises(ConfigError, match=r"give classes="):
        from_huggingface(dataset, label="kind")
    source = from_huggingface(dataset, label="kind", classes=["b", "a"])
    with Loader(source, 5, workers=1, **ROOM) as made:
        rows = [(int(n), int(k)) for batch in made for n, k in zip(batch["number"], batch["label"], strict=True)]
    assert rows == [(n, 1 - n % 2) for n in range(20)]


def test_images_that_are_paths_and_bad_rows(tmp_path: Path) -> None:
    for row in range(4):
        (tmp_path / f"{row}.png").write_bytes(png(row))
    (tmp_path / "bad.png").write_bytes(b"none")
    paths = [str(tmp_path / f"{row}.png") for row in (0, 1)] + [str(tmp_path / "bad.png"), str(tmp_path / "not.png"), None]
    paths += [str(tmp_path / f"{row}.png") for row in (2, 3)]
    rows = [{"image": None if one is None else {"bytes": None, "path": one}, "number": n} for n, one in enumerate(paths)]
    made = datasets.Dataset.from_dict(
        {name: [row[name] for row in rows] for name in ("image", "number")},
        features=datasets.Features({"image": datasets.Image(decode=False), "number": datasets.Value("int64")}),
    )
    source = from_huggingface(made.to_iterable_dataset(num_shards=1), size=SIZE)
    with Loader(source, 7, workers=1, on_error="skip", **ROOM) as loader:
        (batch,) = loader
        assert np.flatnonzero(batch["valid"]).tolist() == [0, 1, 5, 6]
        for row, index in zip((0, 1, 5, 6), range(4), strict=True):
            np.testing.assert_array_equal(batch["image"][row], truth(index))
        reasons = [one.reason for one in loader.stats.bad]
    assert len(reasons) == 3
    for said, wanted in zip(reasons, ("row 2 .*bad.png", "row 3 .*not.png.*No such file", "row 4 .*has no image"), strict=True):
        assert re.search(wanted, said), said


def test_a_dataset_that_raises_does_not_end_its_part_without_a_word() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"x": 1}
        raise OSError("gone")

    dataset = datasets.IterableDataset.from_generator(rows, features=datasets.Features({"x": datasets.Value("int64")}))
    with Loader(from_huggingface(dataset), 1, workers=1, **ROOM) as made:
        batches = iter(made)
        assert next(batches)["x"].tolist() == [1]
        with pytest.raises(SampleError, match="gone"):
            next(batches)
        with pytest.raises(SampleError, match="goes on no more: the dataset has raised"):
            next(batches)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, r"give size="),
        ({"size": SIZE, "parts": 6}, r"parts=6, and the dataset has num_shards=5"),
        ({"size": SIZE, "image": "number"}, r"image='number'"),
        ({"size": SIZE, "columns": ["none"]}, r"no column 'none'"),
        ({"size": SIZE, "columns": ["image"]}, r"column 'image' "),
        ({"size": SIZE, "label": "none"}, r"no column 'none'|give classes="),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(arguments: dict[str, Any], says: str, parquet: Any) -> None:
    with pytest.raises(ConfigError, match=says):
        from_huggingface(parquet, **arguments)


def test_what_is_for_streams_is_refused_for_others(parquet: Any) -> None:
    with pytest.raises(ConfigError, match=r"shuffle= is for an IterableDataset"):
        from_huggingface(datasets.Dataset.from_dict({"x": [1]}), shuffle=4)
    with pytest.raises(ConfigError, match="a Stream comes in the order of its parts"):
        Loader(from_huggingface(parquet, size=SIZE), 4, shuffle=True, **ROOM)
