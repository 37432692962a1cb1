"""A state is refused where the source is another one, or its rows are in another order; and the message says which."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ringload import Arrays, ConfigError, ImageFolder, ImageFrame, Loader
from ringload.sources import fingerprints
from tests.helpers import Truth

pytestmark = pytest.mark.filterwarnings("ignore:none of the first")
N = 60


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "path": [f"{'xyz'[n % 3]}/photo-{n * 7919 % 100:02d}.jpg" for n in range(N)],
            "kind": rng.choice(list("abc"), N),
            "size": rng.random(N),
            "tags": [list(rng.choice(list("pqr"), n % 3, replace=False)) for n in range(N)],
        }
    )


def frame(df: pd.DataFrame | None = None, **options: Any) -> ImageFrame:
    return ImageFrame(table() if df is None else df, **{"label": "kind", "size": (8, 8), "max_pixels": 10**6} | options)


def state_of(source: Any) -> dict[str, Any]:
    with Loader(source, 4, workers=0) as loader:
        state: dict[str, Any] = json.loads(json.dumps(loader.state_dict()))
        return state


def load(state: dict[str, Any], source: Any) -> None:
    with Loader(source, 4, workers=0) as loader:
        loader.load_state_dict(state)


def refused(state: dict[str, Any], source: Any) -> str:
    with Loader(source, 4, workers=0) as loader:
        with pytest.raises(ConfigError, match=r"To go on with this source all the same: state.pop\('source'\)") as raised:
            loader.load_state_dict(state)
        assert (loader.epoch, loader.position) == (0, 0)
        loader.load_state_dict({key: value for key, value in state.items() if key != "source"})
    return str(raised.value)


def test_the_same_table_is_taken() -> None:
    labels = {"k": "kind", "s": "size", "t": "tags"}
    state = state_of(frame(label=labels, weight="size"))
    load(state, frame(label=labels, weight="size"))
    load(state, frame(table().sample(frac=1, random_state=0).sort_index(), label=labels, weight="size"))
    load(state, pickle.loads(pickle.dumps(frame(label=labels, weight="size"))))
    load(state, frame(table().astype({"path": object}), label=labels, weight="size", root="/elsewhere", flip=True))
    assert len(json.dumps(state["source"])) < 3000


def test_another_order_is_refused_and_said() -> None:
    state = state_of(frame())
    text = refused(state, frame(table().sample(frac=1, random_state=3)))
    assert "the table has another order than that of the state: row " in text
    assert "other paths" not in text
    assert "another order" in refused(state, frame(table()[::-1]))


def test_other_paths_are_refused_and_said() -> None:
    state = state_of(frame())
    renamed = table()
    renamed.loc[0, "path"] = "x/another.jpg"
    assert "other paths than that of the state: row 0 was 'x/photo-00.jpg' and is 'x/another.jpg'" in refused(
        state, frame(renamed)
    )
    one = table()
    one.loc[1, "path"] = "x/another.jpg"  # a row that is not in the state itself
    assert "other paths than that of the state, or another order, in some of its rows" in refused(state, frame(one))
    swapped = table()
    swapped.loc[[1, 2], "path"] = swapped.loc[[2, 1], "path"].to_numpy()
    assert "or another order" in refused(state, frame(swapped))
    cut = table()
    cut.loc[[1, 2], "path"] = ["".join(cut.loc[[1, 2], "path"])[:5], "".join(cut.loc[[1, 2], "path"])[5:]]
    assert "other paths" in refused(state, frame(cut))  # all bytes are as they were, but not where paths begin


def test_other_labels_are_refused_and_said() -> None:
    labels = {"k": "kind", "s": "size", "t": "tags"}
    state = state_of(frame(label=labels))
    changes: tuple[tuple[str, Any, str], ...] = (
        ("kind", "b", "['k']"),
        ("size", 7.0, "['s']"),
        ("tags", ["p", "q", "r"], "['t']"),
    )
    for column, value, said in changes:
        other = table()
        other.at[3, column] = value if other.at[3, column] != value else "c"
        assert f"the same paths as that of the state, and other labels in the fields {said}" in refused(
            state, frame(other, label=labels)
        )
    assert "the label fields ['k', 's', 't'], this one ['label']" in refused(state, frame())
    assert "other labels in the fields ['label']" in refused(state_of(frame()), frame(classes=["c", "b", "a"]))


def test_other_rows_of_the_same_table_are_refused_and_said() -> None:
    first = frame().split(0.5, seed=0)[0]
    state = state_of(first)
    load(state, frame().split(0.5, seed=0)[0])
    load(state, frame().subset(first.rows))
    load(state, first.without_augmentation())
    load(state, pickle.loads(pickle.dumps(first)))
    for other in (frame().split(0.5, seed=1)[0], frame().split(0.5, seed=0)[1], frame().subset(first.rows[::-1])):
        assert "the source has other rows of the same table, by another split or subset" in refused(state, other)


def test_another_number_of_rows_is_refused_and_said() -> None:
    with pytest.raises(ConfigError, match="n_samples: 60 there, 59 here"):
        load(state_of(frame()), frame(table()[:-1]))
    assert "has 60 rows, this one 59" in refused(state_of(frame().subset(range(40))), frame(table()[:-1]).subset(range(40)))


def test_a_folder_with_another_file_of_the_same_number_is_refused(photos: Path, tmp_path: Path) -> None:
    def copied(name: str, gone: str, more: str) -> Path:
        for file in photos.glob("?/*.jpg"):
            target = tmp_path / name / file.relative_to(photos)
            target.parent.mkdir(parents=True, exist_ok=True)
            if str(file.relative_to(photos)) != gone:
                target.touch()
        (tmp_path / name / more).touch()
        return tmp_path / name

    state = state_of(ImageFolder(photos, size=(8, 8)))
    load(state, ImageFolder(copied("moved", "a/00.jpg", "a/00.jpg"), size=(8, 8)))
    text = refused(state, ImageFolder(copied("other", "a/00.jpg", "c/99.jpg"), size=(8, 8)))
    assert "other paths than that of the state: row 0 was 'a/00.jpg' and is 'a/03.jpg'" in text


def test_states_without_a_fingerprint_are_taken() -> None:
    state = {key: value for key, value in state_of(frame()).items() if key != "source"}
    assert state["version"] == 2
    for source in (frame(), frame(table()[::-1]), Truth(N)):
        load(state, source)
    load(state | {"source": None}, frame())


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 1000])
def test_a_state_is_small_whatever_the_table(rows: int) -> None:
    df = pd.DataFrame({"path": [f"{'p' * 100}{n}.jpg" for n in range(rows)]})
    with Loader(frame(df, label=None), 1, workers=0) as loader:
        state = json.loads(json.dumps(loader.state_dict()))
        loader.load_state_dict(state)
    assert len(state["source"]["shown"]) == min(rows, 16)


def test_paths_that_are_no_utf_8_go_through_json() -> None:
    df = pd.DataFrame({"path": pd.Series([b"\xff.png", b"b.png"] * 4, dtype=object)})
    state = state_of(frame(df, label=None))
    load(state, frame(df, label=None))
    assert "another order" in refused(state, frame(df[::-1], label=None))


def test_the_checksum_of_the_paths_is_computed_once_for_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    source = frame()
    parts = source.split((0.4, 0.3, 0.3))
    hashed: list[int] = []
    checksum = fingerprints.checksum

    def counted(*arrays: np.ndarray) -> str:
        hashed.append(len(arrays[0]))
        return checksum(*arrays)

    monkeypatch.setattr(fingerprints, "checksum", counted)
    for part in (source, *parts, source.subset([1, 2]), source.without_augmentation()):
        part.fingerprint()
        part.fingerprint()
    assert hashed == [len(source._contents.names.blob)]


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_are_compared_by_shape_dtype_and_content() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 5)), np.arange(40)
    state = state_of(Arrays(x=x, y=y))
    load(state, Arrays(x=np.asfortranarray(x), y=y[::-1].copy()[::-1]))
    wrong: dict[str, dict[str, np.ndarray]] = {
        r"the arrays \['x'\] have other content than those of the state, or another order": {"x": x[::-1], "y": y},
        r"the arrays \['x', 'y'\] have other content": {"x": x[::-1], "y": y[::-1]},
        r"array 'x' is \(40, 5\) float64 in the state and \(40, 4\) float64 here": {"x": x[:, :4], "y": y},
        r"array 'y' is \(40,\) int64 in the state and \(40,\) int32 here": {"x": x, "y": y.astype(np.int32)},
        r"of the arrays \['x', 'y'\], this source has \['x', 'z'\]": {"x": x, "z": y},
    }
    for said, arrays in wrong.items():
        with pytest.raises(ConfigError, match=said):
            load(state, Arrays(**arrays))
    one = x.copy()
    one[17, 3] += 1e-9
    with pytest.raises(ConfigError, match="other content"):
        load(state, Arrays(x=one, y=y))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 3), "S5"),
        np.zeros(4, [("a", "i4"), ("b", "f8", 2)]),
        np.arange(4).astype("M8[s]"),
        np.arange(4, dtype=">i4"),
        np.ones((4, 2, 2), bool),
        np.broadcast_to(np.arange(3), (4, 3)),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_any_kind_have_a_fingerprint(array: np.ndarray) -> None:
    load(state_of(Arrays(x=array)), Arrays(x=array.copy()))


def test_of_large_arrays_blocks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 1 << 10)
    rng = np.random.default_rng(0)
    content = rng.random((10_000, 16))  # 128 bytes a row, 1,250 blocks
    np.save(tmp_path / "x.npy", content)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    arrays = (content, content[3:].T, np.frombuffer(b"abcd", np.uint8), mapped, np.asarray(mapped), np.asarray(mapped)[2:])
    assert [fingerprints._is_in_memory(array) for array in arrays] == [True] * 3 + [False] * 3
    read: list[int] = []
    checksum = fingerprints.checksum

    def counted(*arrays: np.ndarray) -> str:
        read.append(arrays[0].nbytes)
        return checksum(*arrays)

    monkeypatch.setattr(fingerprints, "checksum", counted)
    for array, n_blocks in ((content, 256), (mapped, 32)):
        read.clear()
        state = state_of(Arrays(x=array))
        assert read == [1 << 10] * n_blocks
        load(state, Arrays(x=array))
        with pytest.raises(ConfigError, match="or another order of their rows"):
            load(state, Arrays(x=np.asarray(array)[::-1].copy()) if array is content else Arrays(x=array[::-1]))


def test_rows_that_are_read_when_they_are_asked_for_are_arrays_too() -> None:
    class Rows:
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def read(self, indices: np.ndarray, out: np.ndarray) -> None:
            out[...] = self.array[indices]

    array = np.random.default_rng(0).random((3000, 7))
    of = fingerprints.fingerprint_of_arrays
    assert of({"x": Rows(array)}) == of({"x": array}) != of({"x": Rows(array[::-1])})


# -- other sources ----------------------------------------------------------------------------------------------------


class Told(Truth):
    """A source of the user's own."""

    def __init__(self, n: int, said: Any) -> None:
        super().__init__(n)
        self.said = said

    def fingerprint(self) -> Any:
        return self.said


@pytest.mark.parametrize("said", ["v1", 7, ["a", 1], {"file": "x", "rows": [1, 2]}, ("a", (1, 2)), {1: "a"}])
def test_a_source_of_ones_own_may_have_a_fingerprint(said: Any) -> None:
    state = state_of(Told(N, said))
    load(state, Told(N, said))
    assert "that of this Told is 'v2'" in refused(state, Told(N, "v2"))


def test_sources_without_one_are_compared_by_their_length() -> None:
    state = state_of(Truth(N))
    assert "source" not in state
    load(state, Told(N, "v1"))
    with pytest.raises(ConfigError, match="n_samples"):
        load(state, Truth(N - 1))
    assert "of a source with a fingerprint, and this one, a Truth, has none" in refused(state_of(Told(N, "v1")), Truth(N))
    assert "the fingerprint of the state's source is" in refused(state_of(frame()), Arrays(x=np.zeros(N)))
    assert "the fingerprint of the state's source is" in refused(state_of(frame()), Told(N, {"kind": "table"}))


@pytest.mark.parametrize("said", [{1, 2}, object(), b"bytes", np.int64(3)])
def test_a_fingerprint_that_json_cannot_hold_is_refused(said: Any) -> None:
    with pytest.raises(ConfigError, match=r"Told.fingerprint\(\) returns .*, which JSON cannot hold .*: return a string"):
        state_of(Told(N, said))


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from tests.test_fingerprints import frame, state_of
from ringload import Arrays
print(json.dumps([state_of(frame(label={"k": "kind", "t": "tags"}).split(0.4)[1]), state_of(Arrays(x=np.arange(30.0)))]))
"""
    done = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert done[0].stdout == done[1].stdout
    here = [state_of(frame(label={"k": "kind", "t": "tags"}).split(0.4)[1]), state_of(Arrays(x=np.arange(30.0)))]
    assert json.loads(done[0].stdout) == here


def test_a_state_goes_on_where_it_was_with_any_number_of_workers(photos: Path) -> None:
    def loader(workers: int) -> Loader:
        source = ImageFrame(photos / "photos.csv", label="multi", size=(8, 8), flip=True, max_pixels=10**6)
        return Loader(source.split(0.25)[0], 3, workers=workers, ram_budget="300MB", seed=2)

    with loader(0) as first:
        batches = [(batch.index.tolist(), batch["image"].tobytes()) for batch in first]
        first.set_epoch(0)
        iterator = iter(first)
        next(iterator), next(iterator)
        state = json.loads(json.dumps(first.state_dict()))
    for workers in (0, 1, 2, 3):
        with loader(workers) as made:
            made.load_state_dict(state)
            assert [(batch.index.tolist(), batch["image"].tobytes()) for batch in made] == batches[2:]


def test_a_search_for_a_path_finds_it_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "SEARCH_BYTES", 7)
    source = frame()
    assert all(source.table_fingerprint.has(path) for path in source._contents.names)
    assert not source.table_fingerprint.has(b"nowhere.jpg")
