"""A cache of decoded samples: the same bytes with it and without it, whatever happens to its file."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import ringload
from ringload import Cached, ConfigError, Field, ImageFrame, Loader
from ringload.fields import Row
from ringload.sources.row_cache import HEADER_BYTES, MARK, RowCache
from tests.deaths import kill_all, members
from tests.helpers import Truth, photo, run_quietly

N = 24
SIZE = (20, 30)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """Photographs of two formats, in a folder `images`."""
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [str(folder / f"{i}.{'jpg' if i % 2 else 'png'}") for i in range(N)]
    for i, path in enumerate(paths):
        Image.fromarray(photo(i, 60 + i, 80)).save(path)
    return pd.DataFrame({"path": paths, "label": np.arange(N) % 3})


def epochs(source: Any, n: int = 2, workers: int = 1, **options: Any) -> list[dict[str, np.ndarray]]:
    """All batches of n epochs, copied."""
    with Loader(source, 6, workers=workers, epochs=n, seed=3, ram_budget="500MB", **options) as loader:
        batches = (batch for _ in range(n) for batch in loader)
        return [{name: np.array(batch[name]) for name in batch} | {"index": np.array(batch.index)} for batch in batches]


def loaded(source: Any) -> list[bytes]:
    """All images, loaded by this process without a loader."""
    images = np.zeros((N, *SIZE, 3), np.uint8)
    for index, image in enumerate(images):
        source.load(index, None, Row({"image": image}))
    return [image.tobytes() for image in images]


def assert_same(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (image + rng.integers(0, 9, image.shape)).astype(image.dtype)


LOOKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "crop, flip": {"resize": "crop", "flip": True},
    "flip, float32": {"flip": True, "dtype": "float32", "scale": (0, 1)},
    "flip, transform": {"flip": True, "transform": add_noise},
    "gray, transform, float32": {"color": "gray", "transform": add_noise, "dtype": "float32"},
    "rgba, linear": {"color": "rgba", "interpolation": "linear", "flip": True},
    "values": {"dtype": "uint16", "flip": True},
    "float values": {"dtype": "float32", "scale": None, "transform": add_noise},
}


@pytest.mark.parametrize("look", LOOKS)
def test_the_same_to_the_bit(table: pd.DataFrame, tmp_path: Path, look: str) -> None:
    """In the first epoch, which fills the file, and in the second, which reads it."""
    frame = ImageFrame(table, label="label", size=SIZE, **LOOKS[look])
    cached = frame.cached(tmp_path / "cache", "100MB")
    kept = epochs(cached)
    assert cached.n_filled() == cached.n_kept == N
    assert_same(kept, epochs(frame))


def test_the_second_run_decodes_nothing(table: pd.DataFrame, tmp_path: Path) -> None:
    """Files are replaced by others of the same size and time, which nobody looks into."""
    frame = ImageFrame(table, size=SIZE)
    expected = epochs(frame.cached(tmp_path / "cache", "100MB"), 1)
    for path in table["path"]:
        status = os.stat(path)
        Path(path).write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert_same(epochs(ImageFrame(table, size=SIZE).cached(tmp_path / "cache", "100MB"), 1), expected)


def test_a_file_that_has_changed_is_decoded_again(table: pd.DataFrame, tmp_path: Path) -> None:
    frame = ImageFrame(table, size=SIZE)
    cached = frame.cached(tmp_path / "cache", "100MB")
    epochs(cached, 1)
    Image.fromarray(photo(77, 40, 40)).save(table["path"][2])
    assert_same(epochs(cached, 1), epochs(frame, 1))
    os.unlink(table["path"][4])
    with pytest.raises(ringload.SampleError, match="No such file"):
        epochs(cached, 1)


def test_what_does_not_fit_is_decoded_each_time(table: pd.DataFrame, tmp_path: Path) -> None:
    """The same samples are kept for ever: nothing thrashes."""
    frame = ImageFrame(table, size=SIZE)
    record = 20 * 30 * 3 + MARK.size
    cached = frame.cached(tmp_path / "cache", HEADER_BYTES + 7 * record + record // 2)
    assert cached.n_kept == 7
    assert_same(epochs(cached, 3), epochs(frame, 3))
    assert (cached.n_filled(), os.stat(cached.path).st_size) == (7, HEADER_BYTES + 7 * record)
    larger = frame.cached(tmp_path / "cache", "1MB")
    assert (larger.path, larger.n_filled()) == (cached.path, 7)
    assert_same(epochs(larger, 1), epochs(frame, 1))
    assert larger.n_filled() == N
    with pytest.raises(ConfigError, match="max_bytes=1,000 has no room for a row, which takes 1,848 bytes"):
        frame.cached(tmp_path / "cache", 1000)


def test_random_crops_are_drawn_as_without_a_cache(table: pd.DataFrame, tmp_path: Path) -> None:
    """The same parts of the images, scaled from what is kept: nearly the same pixels. The same for any number of workers."""
    frame = ImageFrame(table, size=SIZE, resize="random_crop", flip=True)
    with pytest.raises(ConfigError, match=r'for resize="random_crop" give size=\(height, width\)'):
        frame.cached(tmp_path / "cache", "10MB")
    cached = frame.cached(tmp_path / "cache", "10MB", size=(60, 80))
    first = epochs(cached, 2)
    for one, other in zip(first, epochs(frame, 2), strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
        assert np.abs(one["image"].astype(int) - other["image"]).mean() < 3
    assert_same(epochs(cached, 2, workers=2), first)
    assert_same(epochs(frame.cached(tmp_path / "other", "10MB", size=(60, 80)), 2, workers=0), first)
    with pytest.raises(ConfigError, match="size= is for resize='random_crop'"):
        ImageFrame(table, size=SIZE).cached(tmp_path / "cache", "10MB", size=(60, 80))


def test_other_options_have_another_file(table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {
        ImageFrame(rows, size=size, **options).cached(tmp_path, "1MB").path
        for rows, size, options in [
            (table, SIZE, {}),
            (table, (20, 31), {}),
            (table, SIZE, {"color": "gray"}),
            (table, SIZE, {"resize": "crop"}),
            (table, SIZE, {"exif": True}),
            (table, SIZE, {"interpolation": "linear"}),
            (table, SIZE, {"background": 3}),
            (table, SIZE, {"value_range": (0, 4095)}),
            (table, SIZE, {"truncated": "pad"}),
            (table, SIZE, {"dtype": "uint16"}),
            (table.iloc[::-1], SIZE, {}),
            (table.iloc[:5], SIZE, {}),
        ]
    }
    assert len(paths) == 12
    same = ImageFrame(table, label="label", size=SIZE, flip=True, dtype="float32", transform=add_noise)
    assert same.cached(tmp_path, "1MB").path in paths
    monkeypatch.setattr("ringload.images.engines.version", lambda package: "another")
    assert same.cached(tmp_path, "1MB").path not in paths


# -- damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_file_gives_no_wrong_row(table: pd.DataFrame, tmp_path: Path, seed: int) -> None:
    """Bits flipped, parts zeroed, the end cut off, records exchanged: each row is right, and the file is whole again after."""
    frame = ImageFrame(table, size=SIZE)
    cached = frame.cached(tmp_path / "cache", "10MB")
    expected = epochs(cached, 1, workers=0)
    data = bytearray(Path(cached.path).read_bytes())
    rng = np.random.default_rng(seed)
    record = 20 * 30 * 3 + MARK.size
    for _ in range(30):
        at = int(rng.integers(HEADER_BYTES, len(data)))
        data[at] ^= 1 << int(rng.integers(8))
    at = HEADER_BYTES + record * int(rng.integers(N - 1))
    data[at : at + 2 * record] = data[at + record : at + 2 * record] + data[at : at + record]  # each with its mark
    at = int(rng.integers(HEADER_BYTES, len(data)))
    data[at : at + 3000] = bytes(len(data[at : at + 3000]))
    del data[len(data) - int(rng.integers(5000)) :]
    Path(cached.path).write_bytes(data)
    assert_same(epochs(cached, 1, workers=0), expected)
    assert cached.n_filled() == N
    assert_same(epochs(cached, 1, workers=0), expected)


def test_a_file_that_is_truncated_or_deleted_while_it_is_read(table: pd.DataFrame, tmp_path: Path) -> None:
    frame = ImageFrame(table, size=SIZE)
    cached = frame.cached(tmp_path / "cache", "10MB")
    expected = epochs(frame, 4)
    with Loader(cached, 6, workers=2, epochs=4, seed=3, ram_budget="500MB") as loader:
        for number, batch in enumerate(loader):
            np.testing.assert_array_equal(batch["image"], expected[number]["image"])
            if number in (5, 6, 8):
                os.truncate(cached.path, (0, 100, 5000)[number % 3])
            if number == 10:
                os.unlink(cached.path)
        assert loader.stats.n_restarts == 0


def test_workers_start_after_the_file_is_gone(table: pd.DataFrame, tmp_path: Path) -> None:
    """Or is something else: they load all samples, and write nothing."""
    frame = ImageFrame(table, size=SIZE)
    cached = frame.cached(tmp_path / "cache", "10MB")
    os.unlink(cached.path)
    assert_same(epochs(cached, 1), epochs(frame, 1))
    Path(cached.path).write_bytes(b"something else" * 1000)
    assert_same(epochs(cached, 1), epochs(frame, 1))
    assert Path(cached.path).read_bytes() == b"something else" * 1000


@pytest.mark.parametrize(
    ("at", "new", "said"), [(0, b"something", "is no cache of these rows"), (20, b"\xff" * 9, "is damaged")]
)
def test_a_file_that_is_none_is_refused(table: pd.DataFrame, tmp_path: Path, at: int, new: bytes, said: str) -> None:
    frame = ImageFrame(table, size=SIZE)
    path = Path(frame.cached(tmp_path / "cache", "10MB").path)
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        frame.cached(tmp_path / "cache", "10MB")


@pytest.fixture
def readable_folder() -> Iterator[str]:
    """A folder that every user may read: those of pytest are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield folder
        os.chmod(folder, 0o755)


def test_folders_that_cannot_be_written_to(table: pd.DataFrame, tmp_path: Path, readable_folder: str) -> None:
    """A cache that is there is read, also by a user who may not write. Root may write anywhere, so this drops to nobody."""
    (tmp_path / "file").write_bytes(b"")
    frame = ImageFrame(table, size=SIZE)
    with pytest.raises(ConfigError, match="cannot be made: Not a directory"):
        frame.cached(tmp_path / "file" / "cache", "10MB")
    folder = Path(readable_folder)
    made = frame.cached(folder, "10MB")
    expected = loaded(made)
    os.chmod(made.path, 0o444)
    os.chmod(folder, 0o555)
    before = Path(made.path).read_bytes()
    code = """
        import os, sys
        import numpy as np
        import xxhash  # before this is a user who may not read where Python is
        from ringload import ConfigError
        from ringload.sources.row_cache import RowCache
        path, key, row_bytes = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3])
        if os.getuid() == 0:
            os.setuid(65534)
        cache = RowCache(path, key, row_bytes, 24, 10**7)
        part = bytearray(row_bytes)
        cache.write(3, (5, 5), (1, 1), [memoryview(part)])
        print(cache.read(3, (5, 5), [memoryview(part)]), int(cache.are_marked(np.arange(24)).sum()))
        try:
            RowCache(path + "-other", key, row_bytes, 24, 10**7)
        except ConfigError as error:
            print("refused" if "cannot be made: Permission denied" in str(error) else error)
    """
    said = run_quietly(code, made.path, made._cache._key.hex(), made._row_bytes)
    assert said == "None 24\nrefused\n"
    assert Path(made.path).read_bytes() == before
    assert loaded(frame) == expected


def test_a_full_disk_ends_the_filling_and_no_more(table: pd.DataFrame, tmp_path: Path) -> None:
    """A limit of the size of files is noticed by the same call as a full disk: first it writes a part of a row."""
    frame = ImageFrame(table, size=SIZE)
    expected = loaded(frame)
    record = 20 * 30 * 3 + MARK.size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for extra in (500, 0, MARK.size):
        cached = frame.cached(tmp_path / "cache", "10MB")  # one that has not failed yet
        resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER_BYTES + 9 * record + extra, before[1]))
        try:
            assert loaded(cached) == loaded(cached) == expected
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert cached.n_filled() == 9
    signal.signal(signal.SIGXFSZ, handler)
    again = frame.cached(tmp_path / "cache", "10MB")
    assert loaded(again) == expected
    assert again.n_filled() == N


def test_a_row_counts_when_its_mark_is_written(tmp_path: Path) -> None:
    """A process that dies between the two writes, or in one of them, has kept nothing."""
    cache = RowCache(str(tmp_path / "rows"), bytes(32), 1000, 10, 10**6)
    row, got = bytearray(os.urandom(1000)), bytearray(1000)
    cache.write(4, (7, 8), (30, 40), [memoryview(row)])
    assert cache.read(4, (7, 8), [memoryview(got)]) == (30, 40)
    assert got == row
    for version in ((7, 9), (6, 8)):
        assert cache.read(4, version, [memoryview(got)]) is None
    assert cache.read(5, (0, 0), [memoryview(got)]) is None
    whole = (tmp_path / "rows").read_bytes()
    start = HEADER_BYTES + 4 * (MARK.size + 1000)
    for stop in (start, start + 20, start + MARK.size, start + MARK.size + 500, len(whole) - 1):
        (tmp_path / "rows").write_bytes(whole[:stop])
        assert cache.read(4, (7, 8), [memoryview(got)]) is None
        half = bytearray(whole)
        half[start : start + MARK.size] = bytes(MARK.size)  # the row is there, its mark is not
        (tmp_path / "rows").write_bytes(half)
        assert cache.read(4, (7, 8), [memoryview(got)]) is None
    record = whole[start:]
    (tmp_path / "rows").write_bytes(whole + record)  # row 4 with its mark, in the place of row 5
    assert cache.read(4, (7, 8), [memoryview(got)]) == (30, 40)
    assert cache.read(5, (7, 8), [memoryview(got)]) is None


@pytest.mark.fault
def test_workers_are_killed_while_they_fill(table: pd.DataFrame, tmp_path: Path, times: Any) -> None:
    frame = ImageFrame(table, size=(300, 400))  # large, so that the ring has few slots
    n = times(20, 400)
    cached = frame.cached(tmp_path / "cache", "100MB")
    expected = [batch["image"] for batch in epochs(frame, 1, shuffle=False)]
    n_killed = 0
    options: dict[str, Any] = {"workers": 2, "shuffle": False, "ram_budget": "210MB", "restarts": None}
    with Loader(cached, 6, epochs=n, **options) as loader:
        for number, batch in enumerate(loader):
            np.testing.assert_array_equal(batch["image"], expected[number % 4])
            if number % 4 == 1:
                os.truncate(cached.path, HEADER_BYTES)
                n_killed += kill_all(members(loader)[1:])
    assert n_killed >= 2
    assert [batch["image"].tobytes() for batch in epochs(cached, 1, shuffle=False)] == [one.tobytes() for one in expected]


def test_two_runs_at_once(table: pd.DataFrame, tmp_path: Path) -> None:
    code = """
        import sys
        import numpy as np, pandas as pd
        from ringload import ImageFrame, Loader
        frame = ImageFrame(pd.read_csv(sys.argv[1]), size=(20, 30))
        cached = frame.cached(sys.argv[2], "10MB")
        for source in (frame, cached):
            with Loader(source, 6, workers=1, epochs=4, seed=1, ram_budget="500MB") as loader:
                batches = [np.array(batch["image"]) for batch in loader]
            if source is cached:
                assert all((a == b).all() for a, b in zip(batches, expected, strict=True))
            expected = batches
        print(cached.n_filled())
    """
    table.to_csv(tmp_path / "t.csv", index=False)
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "t.csv"), str(tmp_path / "cache")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate(timeout=100)[0] for run in runs] == [f"{N}\n"] * 2
    assert len(os.listdir(tmp_path / "cache")) == 1


# -- other sources --------------------------------------------------------------------------------------------------------


class Slow:
    """Notes what it loads, in a file."""

    random = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.fields = {"x": Field((5,), "float32"), "name": Field((), "S7"), "n": Field((), "int64")}

    def __len__(self) -> int:
        return N

    def fingerprint(self) -> str:
        return "slow"

    def load(self, index: int, rng: Any, out: Any) -> None:
        assert rng is None
        with open(self.path, "ab") as file:
            file.write(b".")
        out["x"][:] = index / 7
        out["name"] = np.array(f"row {index}", "S7")
        out["n"] = index


class SlowRows(Slow):
    """The same, several samples in one call."""

    load = None  # type: ignore[assignment]

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        with open(self.path, "ab") as file:
            file.write(b"." * len(indices))
        out["x"] = np.repeat(indices[:, None] / 7, 5, axis=1).astype(np.float32)
        out["name"] = np.array([f"row {index}" for index in indices], "S7")
        out["n"][:] = indices


@pytest.mark.parametrize("kind", [Slow, SlowRows])
def test_samples_of_any_source_are_loaded_once(tmp_path: Path, kind: Any) -> None:
    source = kind(str(tmp_path / "log"))
    cached = Cached(source, tmp_path / "cache", "1MB")
    epochs(cached, 1, workers=2)
    batches = epochs(cached, 3, workers=2)
    assert (tmp_path / "log").stat().st_size == N
    assert_same(batches, epochs(source, 3))
    for batch in batches:
        np.testing.assert_array_equal(batch["n"], batch["index"])
        assert batch["name"].tolist() == [f"row {index}".encode() for index in batch["index"]]


def test_parts_of_a_cached_source(table: pd.DataFrame, tmp_path: Path) -> None:
    frame = ImageFrame(table, label="label", size=SIZE)
    cached = frame.cached(tmp_path / "cache", "10MB")
    train, validation = cached.split(0.25)
    assert (len(train), len(validation)) == (18, 6)
    assert_same(epochs(train, 2), epochs(ringload.Part(frame, train.rows), 2))
    assert cached.column("label").tolist() == table["label"].tolist()
    assert cached.fingerprint() == frame.fingerprint()
    assert repr(cached) == "<Cached ImageFrame of 24 samples: image (20, 30, 3) uint8, label () int64>"


class NoFingerprint(Slow):
    fingerprint = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Truth(), "may draw from `rng`, and what is random cannot be kept: set `random = False`"),
        (NoFingerprint(""), r"has no method fingerprint\(\)"),
        (5, "is no source of samples"),
    ],
)
def test_sources_that_cannot_be_kept(tmp_path: Path, source: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Cached(source, tmp_path, "1MB")


@pytest.mark.parametrize("given", [0, -1, True, "1", "GB", "1 PB", 1.5, None])
def test_sizes_that_are_none(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ConfigError, match="max_bytes is a number of bytes, or a text such as"):
        Cached(Slow(""), tmp_path, given)


def test_nothing_is_left_open(table: pd.DataFrame, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    cached = ImageFrame(table, size=SIZE).cached(tmp_path / "cache", "10MB")
    epochs(cached, 1, workers=0)
    del cached
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_a_cache_goes_with_every_way_to_start(table: pd.DataFrame, tmp_path: Path) -> None:
    frame = ImageFrame(table, size=SIZE, flip=True)
    expected = epochs(frame)
    for method in ("fork", "spawn"):
        assert_same(epochs(frame.cached(tmp_path / method, "10MB"), start_method=method), expected)
