"""Storages: ImageFrame by one of the user's, chosen by the scheme of its URLs."""

from __future__ import annotations

import gc
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ringload
from ringload import ConfigError, ContentTooLargeError, ImageFolder, ImageFrame, Loader, SampleError, Storage, Worker
from ringload.fields import Row
from ringload.sources.stored_files import AHEAD_BYTES
from ringload.storage import registry
from ringload.storage.local import LocalStorage, _read_whole
from tests.helpers import content
from tests.memory_storage import MemoryStorage

Register = Callable[..., None]
ROOT = "memory://bucket/photos"
OPTIONS: dict[str, Any] = {"ram_budget": "600MB", "seed": 5, "epochs": 2}


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """`ringload.register_storage`, for this test."""
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    return ringload.register_storage


def contents_of(photos: Path) -> dict[str, bytes]:
    return {f"{ROOT}/{path.relative_to(photos)}": path.read_bytes() for path in photos.glob("*/*.jpg")}


def frame(photos: Path, root: Any, **options: Any) -> ImageFrame:
    table = pd.read_csv(photos / "photos.csv")
    return ImageFrame(table, root=root, label="multi", size=(40, 50), resize="random_crop", flip=True, **options)


def pixels_of(source: ImageFrame, index: int) -> np.ndarray:
    row = Row({name: np.zeros(field.shape, field.dtype) for name, field in source.fields.items()})
    source.load(index, np.random.default_rng(0), row)
    return row["image"]


# -- images by a storage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "method"), [(0, "forkserver"), (2, "forkserver"), (2, "fork")])
def test_the_same_pixels_come_from_files_and_from_a_storage(
    photos: Path, tmp_path: Path, register: Register, workers: int, method: Any
) -> None:
    log, contents = tmp_path / "log", contents_of(photos)
    register("memory", partial(MemoryStorage, contents, log=str(log)))
    with Loader(frame(photos, photos), 4, workers=0, **OPTIONS) as made:
        expected = content(made) + content(made)
    source = frame(photos, ROOT)
    assert source.filepaths[0] == f"{ROOT}/a/00.jpg" == source.describe(0)
    source.prefetch(np.arange(3))  # by threads of the trainer's, which a fork does not have
    pixels_of(source, 0)
    for _ in range(2):
        log.write_text("")
        with Loader(source, 4, workers=workers, start_method=method, **OPTIONS) as made:
            assert content(made) + content(made) == expected
        lines = log.read_text().splitlines()
        read, ahead = ({line.split()[1] for line in lines if line.startswith(verb)} for verb in ("read", "prefetch"))
        assert read == contents.keys()
        if workers:
            assert ahead == contents.keys()
            assert all(lines.index(f"prefetch {key}") < lines.index(f"read {key}") for key in contents)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_key_that_is_missing_is_a_bad_sample_that_names_it(photos: Path, register: Register, workers: int) -> None:
    contents = contents_of(photos)
    del contents[f"{ROOT}/b/01.jpg"]
    register("memory", partial(MemoryStorage, contents, latency_s=0.001))
    with (
        Loader(frame(photos, ROOT), 4, workers=workers, shuffle=False, **OPTIONS) as made,
        pytest.raises(SampleError, match=rf"No such file or directory: '{ROOT}/b/01.jpg'") as raised,
    ):
        next(iter(made))
    assert (raised.value.index, raised.value.where) == (1, f"{ROOT}/b/01.jpg")
    with Loader(frame(photos, ROOT), 4, workers=workers, on_error="skip", **OPTIONS) as made:
        assert sum(int(batch["valid"].sum()) for batch in made) == 23


def test_a_scheme_of_the_users(photos: Path, tmp_path: Path, register: Register) -> None:
    class Zip:
        def __init__(self, archive: Path) -> None:
            self._archive = zipfile.ZipFile(archive)

        def prefetch(self, keys: Sequence[str], max_bytes: int) -> None:
            pass

        def read(self, key: str, max_bytes: int) -> bytes:
            info = self._archive.getinfo(key.removeprefix("zip://"))
            if info.file_size > max_bytes:
                raise ContentTooLargeError(info.file_size, max_bytes)
            return self._archive.read(info)

        def close(self) -> None:
            self._archive.close()

    register("zip", partial(Zip, tmp_path / "photos.zip"))

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in photos.glob("*/*.jpg"):
            archive.write(path, path.relative_to(photos))
    with (
        Loader(frame(photos, photos), 4, workers=0, **OPTIONS) as files,
        Loader(frame(photos, "zip://"), 4, workers=2, **OPTIONS) as zipped,
    ):
        assert content(zipped) == content(files)


def test_parts_and_copies_have_storages_of_their_own(photos: Path, register: Register) -> None:
    made: list[Storage] = []
    closed: list[Storage] = []

    class Counted(MemoryStorage):
        def __init__(self) -> None:
            super().__init__(contents_of(photos))
            made.append(self)

        def close(self) -> None:
            super().close()
            closed.append(self)

    register("memory", Counted)
    source = frame(photos, ROOT)
    assert not made  # before it is used
    register("memory", LocalStorage)  # counts for what is made of another table
    parts = [source, *source.split(0.5)]
    for number, part in enumerate(parts, 1):
        pixels_of(part, 0)
        pixels_of(part, 1)
        assert len(made) == number
    del parts, part, source
    gc.collect()
    assert set(closed) == set(made)


def test_a_copy_that_was_pickled_has_the_factory(photos: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register("memory", partial(MemoryStorage, contents_of(photos)))
    source = frame(photos, ROOT)
    pixels_of(source, 3)
    data = pickle.dumps(source)
    monkeypatch.setattr(registry, "_factories", {})  # as in another process
    np.testing.assert_array_equal(pixels_of(pickle.loads(data).subset([3, 4]), 0), pixels_of(source, 3))


# -- memory -----------------------------------------------------------------------------------------------------------


class Turns:
    """Counts the turns, and knows whether one is taken."""

    def __init__(self) -> None:
        self.n, self.is_inside = 0, False

    @contextmanager
    def exclusive(self) -> Any:
        self.n += 1
        self.is_inside = True
        yield
        self.is_inside = False


@pytest.mark.parametrize("is_local", [True, False])
def test_a_large_content_is_read_in_a_turn(
    photos: Path, register: Register, is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []
    read_in_turn: list[bool] = []

    def noted(*arguments: Any) -> memoryview:
        read_in_turn.append(turns.is_inside)
        return _read_whole(*arguments)

    class Limited(MemoryStorage):
        def read(self, key: str, max_bytes: int) -> bytes:
            limits.append(max_bytes)
            return super().read(key, max_bytes)

    register("memory", partial(Limited, contents_of(photos)))
    source, turns = frame(photos, photos if is_local else ROOT), Turns()
    monkeypatch.setattr("ringload.storage.local._read_whole", noted)
    ahead_bytes = 0 if is_local else AHEAD_BYTES
    n_bytes = (photos / "a/00.jpg").stat().st_size
    for scratch_bytes, n_turns in ((n_bytes - 1, 1), (50_000_000, 0)):
        turns.n = 0
        source.start(Worker(0, 0, scratch_bytes + ahead_bytes, turns.exclusive))
        assert pixels_of(source, 0).any()
        assert turns.n == n_turns
    assert read_in_turn == ([True, False] if is_local else [])
    assert is_local or limits == [n_bytes - 1, n_bytes, 50_000_000]


def test_what_is_read_ahead_is_in_the_plan(photos: Path, register: Register) -> None:
    asked: list[tuple[Sequence[str], int]] = []

    class Asked(MemoryStorage):
        def prefetch(self, keys: Sequence[str], max_bytes: int) -> None:
            asked.append((keys, max_bytes))

    register("memory", partial(Asked, contents_of(photos)))
    local, ours = frame(photos, photos, max_pixels=10**6), frame(photos, ROOT, max_pixels=10**6)
    assert ours.scratch_bytes == local.scratch_bytes + AHEAD_BYTES
    ours.prefetch(np.array([3, 0]))
    assert asked == [([f"{ROOT}/a/03.jpg", f"{ROOT}/a/00.jpg"], AHEAD_BYTES)]
    with Loader(local, 4, **OPTIONS) as one, Loader(ours, 4, **OPTIONS) as other:
        assert other.plan().total_bytes >= one.plan().total_bytes + AHEAD_BYTES
        assert "read ahead" not in repr(one.plan())
        assert ", of which 16.8 MB for what is read ahead" in repr(other.plan())
    more = frame(photos, ROOT, max_pixels=10**6, read_ahead=100_000_000)
    assert more.split(0.5)[1].ahead_bytes == 100_000_000
    with Loader(more, 4, **OPTIONS) as made:
        plan = made.plan()
        assert plan.total_bytes <= plan.budget_bytes
        assert plan.scratch_bytes >= 100_000_000 + 20_000_000  # what a megapixel takes
    for wrong in (-1, 1.5, "16MB", None):
        with pytest.raises(ConfigError, match="read_ahead"):
            frame(photos, ROOT, read_ahead=wrong)


def test_a_file_of_5_gb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.write(b"\x89PNG")
        file.truncate(5_000_000_000)
    source = ImageFrame(pd.DataFrame({"path": ["a.png"]}), root=tmp_path, size=(8, 8))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a file of 5,000,000,000 bytes cannot be an image of at most 89,478,485 pixels"):
        pixels_of(source, 0)
    source.start(Worker(0, 1, 40_000_000, Turns().exclusive, 100_000_000))
    os.truncate(tmp_path / "a.png", 100_000_001)
    with pytest.raises(
        ValueError, match=r"a file of 100,000,001 bytes: decoding takes up to 100.0 MB of memory, and ram_budget"
    ):
        pixels_of(source, 0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


# -- which storage ----------------------------------------------------------------------------------------------------


def table(*paths: str) -> pd.DataFrame:
    return pd.DataFrame({"path": paths})


def test_a_scheme_that_nobody_has_registered_is_refused_in_words(register: Register) -> None:
    register("MINE", LocalStorage)
    said = (
        "'Other://bucket/a.jpg' in row 0: no storage is registered for other:// (registered: az, gs, http, https, lmdb, mine, "
        "s3, zip; and what fsspec knows, where it is installed). Download the files; or register a storage, "
        "ringload.register_storage('other', factory); or"
    )
    with pytest.raises(ConfigError) as raised:
        ImageFrame(table("Other://bucket/a.jpg"), size=(8, 8))
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("paths", "root", "said"),
    [
        (("s3://a/1.jpg", "gs://a/1.jpg"), None, "'gs://a/1.jpg' in row 1: its scheme is not that of the first path"),
        (("s3://a/1.jpg", "1.jpg"), None, "'1.jpg' in row 1: its scheme is not that of the first path"),
        (("1.jpg", "s3://a/1.jpg"), None, "'s3://a/1.jpg' in row 1: its scheme is not that of the first path"),
        (("1.jpg", "gs://a/1.jpg"), "s3://a", "'gs://a/1.jpg' in row 1: its scheme is not that of the first path"),
        (("1.jpg", "file:///1.jpg"), "s3://a", "'file:///1.jpg' in row 1: its scheme is not that of the first path"),
        (("s3:/a/1.jpg",), None, "'s3:/a/1.jpg' in row 0: a URL that has lost a slash, as it is a Path: give a str"),
        (("1.jpg",), "no://a", "root='no://a': no storage is registered for no://"),
        (("1.jpg",), Path("s3://a"), r"root=.*'s3:/a'.*: a URL that has lost a slash, as it is a Path: give a str"),
    ],
)
def test_all_paths_are_of_one_scheme(register: Register, paths: Any, root: Any, said: str) -> None:
    for scheme in ("s3", "gs"):
        register(scheme, LocalStorage)
    with pytest.raises(ConfigError, match=said):
        ImageFrame(table(*paths), root=root, size=(8, 8))


def test_where_urls_start(register: Register) -> None:
    register("s3", LocalStorage)
    for root in ("s3://b/c", "s3://b/c/"):
        source = ImageFrame(table("1.jpg", "/2.jpg", "~/3.jpg", "S3://d/4.jpg", "C:\\5.jpg"), root=root, size=(8, 8))
        wanted = ["s3://b/c/1.jpg", "s3://b/c/2.jpg", "s3://b/c/~/3.jpg", "S3://d/4.jpg", "s3://b/c/C:\\5.jpg"]
        assert source.filepaths == wanted
    with pytest.raises(ConfigError, match="only folders of this machine can be searched: give ImageFrame a table"):
        ImageFolder("s3://b/c", size=(8, 8))


def test_a_file_url_is_a_local_path(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes((photos / "a/00.jpg").read_bytes())
    source = ImageFrame(table(f"file://{tmp_path}/a%20b.jpg", "a b.jpg"), root=f"file://{tmp_path}", size=(8, 8))
    assert source.filepaths == [f"{tmp_path}/a b.jpg"] * 2
    np.testing.assert_array_equal(pixels_of(source, 0), pixels_of(source, 1))


@pytest.mark.parametrize("scheme", ["", "s3://", "file", "FILE", "x", "3s", 3, None])
def test_schemes_that_cannot_be(register: Register, scheme: Any) -> None:
    with pytest.raises(ConfigError, match="a scheme is what URLs have before '://'"):
        register(scheme, LocalStorage)


def test_a_storage_is_made_by_a_function(register: Register) -> None:
    with pytest.raises(ConfigError, match="factory is a class or function that makes a Storage, without arguments, not <"):
        register("s3", LocalStorage())
