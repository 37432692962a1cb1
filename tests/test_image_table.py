from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ringload import ConfigError, Field, ImageFolder, ImageFrame
from ringload.fields import Row
from ringload.packing.pack import pack
from ringload.packing.unpack import unpack
from tests.helpers import photo

SIZE = (30, 40)
pytestmark = pytest.mark.filterwarnings("ignore:none of the first .* files of column")  # of tables without files


def load(source: ImageFrame, index: int) -> dict[str, np.ndarray]:
    out = {name: np.zeros(field.shape, field.dtype) for name, field in source.fields.items()}
    row = Row(out)
    source.load(index, np.random.default_rng(0), row)
    assert row.untouched() == set()
    return out


def test_a_frame_of_photos(photos: Path) -> None:
    df = pd.read_csv(photos / "photos.csv")
    source = ImageFrame(df, label="multi", root=photos, size=SIZE)
    assert source.fields == {"image": Field((30, 40, 3), "u1"), "label": Field((), "i8")}
    assert (len(source), source.samples, source.n) == (24, 24, 24)
    assert source.class_names == ["a", "b", "c"]
    assert source.class_indices == {"a": 0, "b": 1, "c": 2}
    assert source.filenames[:2] == ["a/00.jpg", "b/01.jpg"]
    assert source.filepaths[0] == str(photos / "a/00.jpg") == source.describe(0)
    np.testing.assert_array_equal(source.labels, np.arange(24) % 3)
    np.testing.assert_array_equal(source.rows, np.arange(24))
    for index in (0, 7, 23):
        out = load(source, index)
        assert out["label"] == index % 3
        expected = np.asarray(Image.fromarray(photo(index, 90 + index, 120)).resize((40, 30)))
        assert np.abs(out["image"].astype(int) - expected).mean() < 4


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_frame_from_a_file(photos: Path, tmp_path: Path, suffix: str) -> None:
    df = pd.read_csv(photos / "photos.csv")
    path = tmp_path / f"table.{suffix}"
    df.to_csv(path, index=False) if suffix == "csv" else df.to_parquet(path)
    for form in (path, str(path)):
        source = ImageFrame(form, label="bi", root=photos, size=SIZE)
        assert [int(load(source, index)["label"]) for index in (0, 1)] == [0, 1]


def test_absolute_relative_and_other_columns(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    df = pd.read_csv(photos / "photos.csv")
    df["file"] = [photos / path for path in df["path"]]
    absolute = ImageFrame(df, "file", root="/nowhere", size=SIZE)
    monkeypatch.chdir(photos)
    relative = ImageFrame(df, "path", size=SIZE)
    monkeypatch.chdir("/")  # the working directory counts when the source is made
    np.testing.assert_array_equal(load(absolute, 3)["image"], load(relative, 3)["image"])
    assert list(absolute.fields) == ["image"]


def test_several_outputs_and_a_weight(photos: Path) -> None:
    df = pd.read_csv(photos / "photos.csv")
    df["w"] = np.linspace(0, 1, 24)
    source = ImageFrame(df, label={"kind": "multi", "two": "bi"}, weight="w", root=photos, size=SIZE, label_mode="auto")
    out = load(source, 5)
    assert (out["kind"], out["two"], out["weight"]) == (2, 1, np.float32(5 / 23))
    assert source.class_names_of("kind") == ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"class_names_of\(field\)"):
        _ = source.class_names
    with pytest.raises(ConfigError, match="no label field 'x'"):
        source.class_names_of("x")


def test_a_workers_copy_has_no_table(photos: Path) -> None:
    df = pd.read_csv(photos / "photos.csv")
    source = ImageFrame(df, label="multi", root=photos, size=SIZE)
    data = pack(source).data
    assert b"pandas" not in data
    np.testing.assert_array_equal(load(unpack(data), 4)["image"], load(source, 4)["image"])


def test_a_workers_copy_imports_no_pandas(photos: Path, tmp_path: Path) -> None:
    source = ImageFrame(photos / "photos.csv", label="multi", root=photos, size=SIZE)
    (tmp_path / "source").write_bytes(pack(source).data)
    code = (
        "import sys; from ringload.packing.unpack import unpack; "
        "source = unpack(open(sys.argv[1], 'rb').read()); assert len(source) == 24; "
        "print(sorted({'pandas', 'psutil', 'tensorflow', 'torch', 'keras', 'rich', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "source")], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_asked_for_ahead_is_loaded_the_same(photos: Path) -> None:
    source = ImageFrame(photos / "photos.csv", label="multi", root=photos, size=SIZE)
    expected = [load(source, index)["image"] for index in range(5)]
    source.prefetch(np.arange(4))
    for index in range(5):
        np.testing.assert_array_equal(load(source, index)["image"], expected[index])


def test_a_file_that_cannot_be_read_says_so(photos: Path) -> None:
    df = pd.DataFrame({"path": ["missing.jpg", "a"]})
    source = ImageFrame(df, root=photos, size=SIZE)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        load(source, 0)
    with pytest.raises(ValueError, match="a directory"):
        load(source, 1)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"df": pd.DataFrame({"path": []})}, "the table has no rows"),
        ({"df": pd.DataFrame({"path": ["a", None, float("nan")]})}, r"'path' has 2 missing values \(NaN\), first in rows 1, 2"),
        ({"df": pd.DataFrame({"path": ["a", ""]})}, "column 'path', row 1 is empty"),
        ({"df": pd.DataFrame({"path": ["a", 3]})}, "column 'path', row 1 is 3"),
        ({"path": "file"}, "no column 'file'"),
        ({"df": 3}, "df is a DataFrame or the path"),
        ({"df": "x.txt"}, r"neither \.csv nor \.parquet"),
        ({"df": "nowhere.csv"}, "cannot read the table nowhere.csv"),
        ({"df": "nowhere.parquet"}, "cannot read the table nowhere.parquet"),
        ({"weight": "w"}, "'w' has a weight that is not finite"),
        ({"label": {"image": "path"}}, "two fields are called 'image'"),
        ({"size": 224}, r"size is \(height, width\)"),
        ({"size": (0, 5)}, "both positive"),
    ],
)
def test_frames_that_cannot_be(change: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"df": pd.DataFrame({"path": ["a"], "w": [np.inf]}), "size": SIZE, **change}
    with pytest.raises(ConfigError, match=said):
        ImageFrame(**arguments)


# -- splitting --------------------------------------------------------------------------------------------------------


def table(n: int = 1000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"path": [f"{i}.jpg" for i in range(n)], "kind": rng.choice(list("abbbbbbcc"), n), "patient": rng.integers(0, 60, n)},
        index=rng.permutation(n),
    )


def test_a_split_is_a_partition_and_depends_on_the_seed_alone() -> None:
    source = ImageFrame(table(), label="kind", size=SIZE)
    train, validation = source.split(0.2, seed=3)
    assert (len(train), len(validation)) == (800, 200)
    assert sorted(train.filenames + validation.filenames) == sorted(source.filenames)
    assert validation.filenames == source.split(0.2, seed=3)[1].filenames
    assert validation.filenames != source.split(0.2, seed=4)[1].filenames
    np.testing.assert_array_equal(validation.labels, source.labels[validation.rows])
    assert (np.diff(validation.rows) > 0).all()  # in the table's order
    assert train.class_names == validation.class_names == source.class_names
    assert train._decoder is not source._decoder


def test_a_stratified_split_keeps_the_shares() -> None:
    source = ImageFrame(table(), label="kind", size=SIZE)
    train, validation = source.split(0.25, seed=1, by="kind")
    for kind, n in Counter(source.labels.tolist()).items():
        assert Counter(validation.labels.tolist())[kind] == round(0.25 * n)
    assert len(train) + len(validation) == 1000


def test_a_grouped_split_keeps_groups_together() -> None:
    df = table()
    source = ImageFrame(df, label="kind", size=SIZE)
    train, validation = source.split(0.2, seed=1, by="patient", how="group")
    patients = df["patient"].to_numpy()
    assert not set(patients[train.rows]) & set(patients[validation.rows])
    assert 200 <= len(validation) < 200 + Counter(patients.tolist()).most_common(1)[0][1]


def test_a_part_can_be_split_again() -> None:
    df = table()
    train, _ = ImageFrame(df, label="kind", size=SIZE).split(0.2)
    inner, outer = train.split(0.5, by="patient", how="group")
    patients = df["patient"].to_numpy()
    assert not set(patients[inner.rows]) & set(patients[outer.rows])
    assert sorted([*inner.rows, *outer.rows]) == sorted(train.rows)


def test_a_pickled_frame_says_that_it_left_its_table_behind() -> None:
    copied = pickle.loads(pickle.dumps(ImageFrame(table(), label="kind", size=SIZE)))
    assert len(copied.split(0.2)[1]) == 200
    with pytest.raises(ConfigError, match=r"has no table, as it was pickled: split by 'patient' before"):
        copied.split(0.2, by="patient")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((0.0,), "share in"), ((1.0,), "share in"), ((0.0001,), "leaves a part empty"), ((0.5, 0, "nix"), "no column 'nix'")],
)
def test_splits_that_cannot_be(arguments: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ImageFrame(table(), size=SIZE).split(*arguments)
    with pytest.raises(ConfigError, match="how is"):
        ImageFrame(table(), size=SIZE).split(0.5, how="nix")


def test_subsets_by_indices_and_masks() -> None:
    source = ImageFrame(table(10), size=SIZE)
    assert source.subset([7, 2, 2]).filenames == ["7.jpg", "2.jpg", "2.jpg"]
    assert source.subset(np.arange(10) > 7).filenames == ["8.jpg", "9.jpg"]
    wrong_ones: list[Any] = [[], [10], [-1], [0.5], [True, False], [[1]]]
    for wrong in wrong_ones:
        with pytest.raises(ConfigError, match="indices are"):
            source.subset(wrong)


def test_a_table_without_rows_is_refused(photos: Path, tmp_path: Path) -> None:
    df = pd.read_csv(photos / "photos.csv")
    (df.iloc[:0]).to_csv(tmp_path / "table.csv", index=False)
    (df.iloc[:0]).to_parquet(tmp_path / "table.parquet")
    for none in (df.iloc[:0], df[df["bi"] > 1], tmp_path / "table.csv", tmp_path / "table.parquet"):
        with pytest.raises(ConfigError, match="the table has no rows"):
            ImageFrame(none, label="bi", root=photos, size=SIZE)


def test_columns_that_are_there_twice_are_named() -> None:
    twice = pd.concat([table(10), table(10)[["path", "kind"]]], axis=1)
    with pytest.raises(ConfigError, match="2 columns 'path'"):
        ImageFrame(twice, size=SIZE)


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_classes(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("b", "a", ".hidden"):
        (root / name / "deep").mkdir(parents=True)
        for file in ("2.jpg", "1.PNG", "notes.txt", "deep/3.webp"):
            (root / name / file).write_bytes(b"x")
    (root / "file.jpg").write_bytes(b"x")
    source = ImageFolder(root, size=SIZE, color="gray")
    assert source.fields == {"image": Field((30, 40, 1), "u1"), "label": Field((), "i8")}
    assert source.class_names == ["a", "b"]
    assert source.filenames == ["a/1.PNG", "a/2.jpg", "a/deep/3.webp", "b/1.PNG", "b/2.jpg", "b/deep/3.webp"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert ImageFolder(root, size=SIZE, classes=["b"]).filenames == ["b/1.PNG", "b/2.jpg", "b/deep/3.webp"]
    photo_source = ImageFolder(photos, size=SIZE)
    assert load(photo_source, 23)["label"] == 2
    train, validation = photo_source.split(0.25)
    assert (len(train), len(validation)) == (18, 6)


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        ImageFolder(tmp_path / "nix", size=SIZE)
    with pytest.raises(ConfigError, match="has no folders"):
        ImageFolder(tmp_path, size=SIZE)
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="a holds no image"):
        ImageFolder(tmp_path, size=SIZE)
    with pytest.raises(ConfigError, match=r"no folder for the classes \['z'\]; it has \['a'\]"):
        ImageFolder(tmp_path, size=SIZE, classes=["a", "z"])
