"""Datasets of Hugging Face: their Arrow files, read by workers without `datasets`."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import ConfigError, Loader, SampleError, from_huggingface
from ringload.sources.fingerprints import difference, fingerprint_of
from tests.tables import NAMES, ROOM, SIZE, N, check_epoch, open_files, png

datasets = pytest.importorskip("datasets")

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=NAMES),
        "number": datasets.Value("int16"),
        "pair": datasets.Sequence(datasets.Value("float64"), length=2),
        "flag": datasets.Value("bool"),
        "grid": datasets.Array2D((2, 3), "uint8"),
    }
)
OTHERS = {"words": ["a"] * N, "ragged": [[1] * (1 + row % 2) for row in range(N)]}


def columns(n: int = N, first: int = 0) -> dict[str, list[Any]]:
    rows = range(first, first + n)
    return {
        "image": [{"bytes": png(row), "path": f"{row}.png"} for row in rows],
        "label": [row % 3 for row in rows],
        "number": list(rows),
        "pair": [[row, row + 0.5] for row in rows],
        "flag": [row % 2 == 0 for row in rows],
        "grid": [np.full((2, 3), row, "u1") for row in rows],
    }


def stored(folder: Path, features: Any = FEATURES, **changes: Any) -> Any:
    """A dataset in an Arrow file, in batches of 8 rows, which is mapped. A folder has one."""
    folder.mkdir(exist_ok=True)
    made = datasets.Dataset.from_dict(columns() | changes, features=features)
    with datasets.arrow_writer.ArrowWriter(
        path=str(folder / "data.arrow"), features=made.features, writer_batch_size=8
    ) as writer:
        for row in made.with_format("arrow").iter(8):
            writer.write_table(row)
        writer.finalize()
    return datasets.Dataset.from_file(str(folder / "data.arrow"))


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": 2, "kills": 2}, {"workers": 1, "start_method": "fork"}], ids=str
)
def test_rows_of_a_mapped_dataset(tmp_path: Path, options: dict[str, Any]) -> None:
    dataset = stored(tmp_path)
    source = from_huggingface(dataset, size=SIZE)
    assert source.class_names == NAMES
    assert {name: (field.shape, str(field.dtype)) for name, field in source.fields.items()} == {
        "image": ((*SIZE, 3), "uint8"),
        "label": ((), "int64"),
        "number": ((), "int16"),
        "pair": ((2,), "float64"),
        "flag": ((), "bool"),
        "grid": ((2, 3), "uint8"),
    }
    check_epoch(source, **options)
    del source
    gc.collect()
    assert not open_files(tmp_path)  # the dataset's own mapping needs none


def test_the_indices_of_a_dataset_are_those_of_its_samples(tmp_path: Path) -> None:
    dataset = stored(tmp_path)
    for chosen in (
        dataset.shuffle(seed=1),
        dataset.select([5, 2, 2, 59]),
        dataset.select(range(9, 31)),
        dataset.shuffle(seed=2).select(range(20)).filter(lambda row: row["number"] % 2 == 0),
        dataset.shard(3, 1),
        datasets.concatenate_datasets([dataset.select(range(50, 60)), dataset.select([3, 1])]),
        datasets.concatenate_datasets([datasets.Dataset.from_dict(columns(4, 7), features=FEATURES), dataset.select([0])]),
    ):
        rows = [int(row) for row in chosen["number"]]
        check_epoch(from_huggingface(chosen, size=SIZE), rows, workers=0)
        check_epoch(from_huggingface(chosen.remove_columns("image")), rows, workers=0)
        first = from_huggingface(chosen, size=SIZE).split(0.5)[0]
        check_epoch(first, [rows[row] for row in first.rows], workers=0)


def test_numbers_are_read_by_workers_and_not_sent(tmp_path: Path) -> None:
    dataset = stored(tmp_path).remove_columns("image")
    source = from_huggingface(dataset.shuffle(seed=4))
    assert len(pickle.dumps(source)) < 10_000
    order = [int(row) for row in dataset.shuffle(seed=4)["number"]]
    check_epoch(source, order, workers=2, kills=1)
    train, rest = source.split(0.25)
    check_epoch(train, [order[row] for row in train.rows], workers=0)
    assert len(train) + len(rest) == N


def test_paths_in_place_of_bytes(tmp_path: Path) -> None:
    for row in range(N):
        (tmp_path / f"{row}.png").write_bytes(png(row))
    dataset = stored(tmp_path, image=[{"bytes": None, "path": str(tmp_path / f"{row}.png")} for row in range(N)])
    check_epoch(from_huggingface(dataset.select(range(10, 40)), size=SIZE), range(10, 40), workers=0)
    mixed = stored(tmp_path / "mixed", image=[{"bytes": png(0) if row else None, "path": "x.png"} for row in range(N)])
    with pytest.raises(ConfigError, match=r"column 'image' has no bytes in row 0, and in 1 of 60 rows: drop"):
        from_huggingface(mixed, size=SIZE)


def test_labels_weights_and_columns_as_asked(tmp_path: Path) -> None:
    dataset = stored(tmp_path)
    source = from_huggingface(dataset, label="label", label_mode="categorical", columns=[], weight="number", size=SIZE)
    assert list(source.fields) == ["image", "label", "weight"]
    assert source.labels.argmax(1).tolist() == [row % 3 for row in range(N)]
    assert from_huggingface(dataset, columns=["label"], size=SIZE).class_names == NAMES
    with pytest.raises(ConfigError, match=r"there is no column 'nummer'.*did you mean 'number'"):
        from_huggingface(dataset, columns=["nummer"], size=SIZE)
    features = datasets.Features({**FEATURES, "words": datasets.Value("string"), "ragged": [datasets.Value("int32")]})
    odd = stored(tmp_path / "odd", features, **OTHERS)
    with pytest.warns(
        UserWarning, match=r"'words' is of string.*'ragged' has lists of different lengths, 2 and 1, first in row 1"
    ):
        assert "words" not in from_huggingface(odd, size=SIZE).fields
    with pytest.raises(ConfigError, match="column 'ragged' has lists of different lengths"):
        from_huggingface(odd.remove_columns("image"), columns=["ragged"])


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    dataset = stored(tmp_path)
    two = datasets.Features({**FEATURES, "mask": datasets.Image()})
    missing = stored(tmp_path / "missing", number=[None if row == 9 else row for row in range(N)])
    for given, options, said in (
        (datasets.DatasetDict({"train": dataset}), {}, r"a DatasetDict: give one of its splits, such as dataset\['train'\]"),
        (dataset.with_transform(lambda rows: rows), {}, "has a transform .* which would not be called"),
        (dataset.select([]), {}, "the dataset has no rows"),
        ([1, 2], {}, "takes a datasets.Dataset, not an object of class list"),
        (
            stored(tmp_path / "two", two, mask=columns()["image"]),
            {},
            r"several columns of images, \['image', 'mask'\]: name one",
        ),
        (dataset, {"size": None}, "size is .height, width. in pixels"),
        (dataset, {"image": "imag"}, "there is no column of images 'imag'"),
        (dataset, {"color": "gray", "columns": ["image"]}, "there is no column 'image'"),
        (dataset.remove_columns("image"), {}, "has no column of images, and size= is for images only"),
        (missing, {"columns": ["number"]}, "column 'number' has 1 missing values"),
    ):
        with pytest.raises(ConfigError, match=said):
            from_huggingface(given, **{"size": SIZE, **options})


def test_files_that_are_deleted_changed_and_cut_short(tmp_path: Path) -> None:
    dataset = stored(tmp_path)
    path, source = tmp_path / "data.arrow", from_huggingface(dataset, size=SIZE)
    numbers = from_huggingface(dataset.remove_columns("image"))
    kept = path.read_bytes()
    os.truncate(path, len(kept) // 2)  # of which reading the mapped file would be a SIGBUS
    for one in (source, numbers):
        with (
            Loader(one, 4, workers=1, restarts=0, **ROOM) as made,
            pytest.raises(SampleError, match=r"data\.arrow has changed since"),
        ):
            next(iter(made))
    for one, options in ((dataset, {"size": SIZE}), (dataset.remove_columns("image"), {})):
        with pytest.raises(ConfigError, match=r"data\.arrow is shorter than when the dataset was opened: load"):
            from_huggingface(one, **options)
    path.unlink()
    with pytest.raises(ConfigError, match=r"data\.arrow was deleted or replaced after the dataset was opened"):
        from_huggingface(dataset, size=SIZE)
    with Loader(source, 4, workers=0, **ROOM) as made, pytest.raises(SampleError, match=r"No such file.*data\.arrow"):
        next(iter(made))
    path.write_bytes(kept)  # the same bytes, and another file
    with Loader(source, 4, workers=0, **ROOM) as made, pytest.raises(SampleError, match=r"data\.arrow has changed since"):
        next(iter(made))


def test_a_damaged_image_is_one_bad_sample(tmp_path: Path) -> None:
    images = columns()["image"]
    images[7] = {"bytes": images[7]["bytes"][:40], "path": "7.png"}
    source = from_huggingface(stored(tmp_path, image=images), size=SIZE)
    with Loader(source, 10, workers=0, on_error="skip", **ROOM) as made:
        assert sorted(i for batch in made for i in batch.index[batch["valid"]].tolist()) == [i for i in range(N) if i != 7]
    with (
        Loader(source, 1, workers=0, shuffle=False, **ROOM) as made,
        pytest.raises(SampleError, match=r"data\.arrow, row 7 \(7"),
    ):
        list(made)


def test_a_state_is_of_this_dataset_in_this_order(tmp_path: Path) -> None:
    dataset = stored(tmp_path)
    source = from_huggingface(dataset, size=SIZE)
    with Loader(source, 7, workers=0, **ROOM) as made:
        batches = iter(made)
        next(batches)
        state, then = made.state_dict(), [batch.index.tolist() for batch in batches]
    with Loader(from_huggingface(dataset, size=SIZE), 7, workers=0, **ROOM) as made:
        made.load_state_dict(state)
        assert [batch.index.tolist() for batch in made] == then
    saved = fingerprint_of(source)
    unnamed = [{"bytes": image["bytes"], "path": None} for image in columns()["image"]]
    for other in (dataset.shuffle(seed=1), dataset.select(range(50))):
        again = from_huggingface(other, size=SIZE)
        assert difference(saved, fingerprint_of(again), again)
    saved = fingerprint_of(from_huggingface(stored(tmp_path / "one", image=unnamed), size=SIZE))
    moved = from_huggingface(stored(tmp_path / "other", image=unnamed[1:] + unnamed[:1]), size=SIZE)
    assert difference(saved, fingerprint_of(moved), moved)
