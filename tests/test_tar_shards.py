"""TarShards: what WebDataset's writer has written, read back to the byte; shards that change; the file of the index."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import tarfile
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringload
from ringload import ByteRange, ConfigError, ImageFrame, Loader, SampleError, TarShards
from ringload.sources import tar_build
from ringload.sources.stored_files import AHEAD_BYTES
from ringload.storage import registry
from ringload.storage.kept_open import MAX_KEPT
from ringload.storage.local import LocalStorage
from tests.conftest import Injected
from tests.helpers import content
from tests.memory_storage import MemoryStorage
from tests.tars import BLOCK, RangedStorage, index_file, rewrite, tar_of, write_shards

SIZE = (40, 50)
OPTIONS: dict[str, Any] = {"ram_budget": "600MB", "seed": 5, "epochs": 2}
AUGMENTED: dict[str, Any] = {"size": SIZE, "resize": "random_crop", "flip": True}
Register = Callable[..., None]


@pytest.fixture
def shards(photos: Path, tmp_path: Path) -> Path:
    """A folder of 3 shards with the 24 photographs."""
    (tmp_path / "shards").mkdir()
    write_shards(photos, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Register:
    """`ringload.register_storage`, for this test, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    return ringload.register_storage


def frame(photos: Path, **options: Any) -> ImageFrame:
    return ImageFrame(photos / "photos.csv", label="multi", **{**AUGMENTED, **options})


def bytes_of(source: ImageFrame) -> list[bytes]:
    """The content of each sample."""
    return [bytes(source._contents.read(index, 1 << 30)) for index in range(len(source))]


def file_of(path: Path, parts: Any, **options: Any) -> Path:
    path.write_bytes(tar_of(parts, **options))
    return path


def warnings_of(make: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [str(one.message) for one in caught]


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of WebDataset's reader
def test_what_webdatasets_writer_writes_is_read_to_the_byte(tmp_path: Path, rng: np.random.Generator) -> None:
    import webdataset  # here, as it imports torch

    written = []
    with webdataset.ShardWriter(f"{tmp_path}/x-%02d.tar", maxcount=7, verbose=0) as writer:
        for number in range(20):
            key = f"{'deep/' * (number % 3)}{number:04d}"
            image = rng.bytes(int(rng.integers(1, 3000)))
            written.append((key, image, number % 4, {"a": {"b": f"name {number % 3}"}}))
            writer.write({"__key__": key, "jpg": image, "cls": number % 4, "json": written[-1][3], "seg.png": b"no"})
    source = TarShards(f"{tmp_path}/x-{{00..02}}.tar", size=SIZE, label={"number": "cls", "name": "json.a.b"})
    assert bytes_of(source) == [image for _, image, _, _ in written]
    assert source._labels.named("number").of_all(20).tolist() == [number for _, _, number, _ in written]
    names = source.class_names_of("name")
    assert [names[k] for k in source._labels.named("name").of_all(20)] == [one["a"]["b"] for *_, one in written]
    assert source.filenames == [f"x-{place // 7:02d}.tar/{key}.jpg" for place, (key, *_) in enumerate(written)]
    read = list(webdataset.WebDataset(sorted(map(str, tmp_path.glob("*.tar"))), shardshuffle=False))
    assert [(one["__key__"], one["jpg"], int(one["cls"])) for one in read] == [one[:3] for one in written]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "method"), [(0, "forkserver"), (2, "forkserver"), (2, "fork")])
def test_the_same_pixels_come_from_files_and_from_shards(photos: Path, shards: Path, workers: int, method: Any) -> None:
    source = TarShards(shards, label="json.of.multi", **AUGMENTED)
    source.load(
        3, np.random.default_rng(0), ringload.fields.Row({n: np.zeros(f.shape, f.dtype) for n, f in source.fields.items()})
    )
    with (
        Loader(frame(photos), 4, workers=0, **OPTIONS) as files,
        Loader(source, 4, workers=workers, start_method=method, **OPTIONS) as made,
    ):
        expected = content(files) + content(files)
        assert content(made) + content(made) == expected
    with Loader(source, 4, workers=workers, start_method=method, **OPTIONS) as first:
        taken = content(batch for batch, _ in zip(first, range(4), strict=False))[:4]
        state = first.state_at(0, 4)
    with Loader(TarShards(shards, label="json.of.multi", **AUGMENTED), 4, workers=1, **OPTIONS) as second:
        second.load_state_dict(state)
        assert taken + content(second) + content(second) == expected


@pytest.mark.slow
@pytest.mark.fault
def test_killed_workers_change_nothing(shards: Path, injected: Injected, tmp_path: Path) -> None:
    class Kills:
        def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            number = int(rng.integers(3))
            try:
                os.close(os.open(tmp_path / f"died-{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return image + np.uint8(number)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    with Loader(
        TarShards(shards, size=SIZE, transform=lambda image, rng: image + np.uint8(rng.integers(3))), 4, workers=0, **OPTIONS
    ) as made:
        expected = content(made) + content(made)
    with Loader(TarShards(shards, size=SIZE, transform=Kills()), 4, workers=2, **OPTIONS) as made:
        assert content(made) + content(made) == expected
        n_deaths = len(list(tmp_path.glob("died-*")))
        assert 1 <= made.stats.n_restarts <= n_deaths
    injected("a worker ends by SIGKILL while it loads", n_deaths)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_in_a_storage_that_reads_ranges(
    photos: Path, shards: Path, register: Register, tmp_path: Path, workers: int
) -> None:
    contents = {f"memory://b/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
    register("memory", partial(RangedStorage, contents, log=str(tmp_path / "log")))
    source = TarShards("memory://b/train-{000..002}.tar", label="cls", **AUGMENTED)
    read = (tmp_path / "log").read_text()
    assert sum(line.startswith("range") for line in read.splitlines()) == 3  # the shards are smaller than a window
    assert source.filepaths[0] == "memory://b/train-000.tar/photo-00.jpg"
    assert source.scratch_bytes == frame(photos).scratch_bytes + AHEAD_BYTES
    with Loader(frame(photos), 4, workers=0, **OPTIONS) as files, Loader(source, 4, workers=workers, **OPTIONS) as made:
        assert content(made) + content(made) == content(files) + content(files)
    lines = (tmp_path / "log").read_text().removeprefix(read).splitlines()
    assert {line.split()[0] for line in lines} == {"range"} if not workers else {"range", "ahead"}
    read = (tmp_path / "log").read_text()
    TarShards("memory://b/train-{000..002}.tar", label="cls", size=SIZE)
    lines = (tmp_path / "log").read_text().removeprefix(read).splitlines()
    assert sorted(lines) == [f"stat {key}" for key in sorted(contents)]  # the index is in the cache folder


def test_a_storage_without_ranges_is_refused(register: Register) -> None:
    register("memory", partial(MemoryStorage, {}))
    with pytest.raises(
        ConfigError, match=r"memory://, .*MemoryStorage, reads no ranges: it has no stat, read_range, prefetch_ranges"
    ):
        TarShards("memory://b/a.tar", size=SIZE)


def test_parts_and_fingerprints(shards: Path) -> None:
    source = TarShards(shards, label="cls", columns=["json.bi"], weight="json.w", **AUGMENTED)
    assert source.column("json.bi").tolist() == [place % 2 for place in range(24)]
    first, second = source.split(0.5, by="json.bi")
    assert sorted(bytes_of(first) + bytes_of(second)) == sorted(bytes_of(source))
    assert [int(part.column("json.bi").sum()) for part in (first, second)] == [6, 6]
    for train, valid in source.folds(3, by="__url__", how="group"):
        assert {*train.column("__url__")}.isdisjoint({*valid.column("__url__")})
        assert len(valid) == 8
    rows = np.array([20, 3, 3, 0])
    assert bytes_of(source.subset(rows)) == [bytes_of(source)[row] for row in rows]
    assert source.subset(rows).filenames == [source.filenames[row] for row in rows]
    with Loader(source, 4, workers=0, **OPTIONS) as made:
        state = made.state_dict()
    names = [f"{shards}/train-{number:03d}.tar" for number in (1, 0, 2)]
    with (
        Loader(TarShards(names, label="cls", weight="json.w", size=SIZE), 4, workers=0, **OPTIONS) as other,
        pytest.raises(ConfigError, match=r"another order.*train-000.tar/photo-00.jpg"),
    ):
        other.load_state_dict(state)


def test_what_a_source_sends_to_workers_is_small_and_opens_files_of_its_own(shards: Path) -> None:
    source = TarShards(shards, size=SIZE)
    n_bytes = len(pickle.dumps(source))
    read = bytes_of(source)
    assert len(pickle.dumps(source)) == n_bytes
    assert n_bytes < 6000
    assert bytes_of(pickle.loads(pickle.dumps(source))) == read
    parents = source._contents._storage
    child = os.fork()
    if not child:
        is_same = bytes_of(source) == read and source._contents._storage is not parents
        os._exit(0 if is_same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- patterns ---------------------------------------------------------------------------------------------------------

PATTERNS: list[tuple[Any, list[int]]] = [
    ("train-000.tar", [0]),
    ("", [0, 1, 2]),
    ("train-{000..002}.tar", [0, 1, 2]),
    ("train-{002..000}.tar", [2, 1, 0]),
    ("train-00{0..2}.tar", [0, 1, 2]),
    ("train-00{2,0}.tar", [2, 0]),
    ("t{rain-000,rain-00{1..2}}.tar", [0, 1, 2]),
    ("train-*.tar", [0, 1, 2]),
    ("train-00[02].tar", [0, 2]),
    ("**/train-001.tar", [1]),
    (["train-002.tar", "train-00{0..1}.tar"], [2, 0, 1]),
]


@pytest.mark.parametrize(("pattern", "wanted"), PATTERNS)
def test_patterns(shards: Path, pattern: Any, wanted: list[int]) -> None:
    given = [f"{shards}/{one}" for one in pattern] if isinstance(pattern, list) else f"{shards}/{pattern}"
    source = TarShards(given, size=SIZE)
    found = list(dict.fromkeys(path.split("/")[-2] for path in source.filepaths))
    assert found == [f"train-00{number}.tar" for number in wanted]


def test_a_file_whose_name_is_a_pattern_is_that_file(shards: Path) -> None:
    os.rename(shards / "train-001.tar", shards / "x{0..1}*.tar")
    assert len(TarShards(shards / "x{0..1}*.tar", size=SIZE)) == 8


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("nowhere.tar", r"1 of 1 shards cannot be read: \['.*nowhere.tar: No such file or directory'\]"),
        ("train-{000..004}.tar", r"2 of 5 shards cannot be read: .*train-003.tar.*train-004.tar"),
        ("x-*.tar", "no file matches"),
        ("train-{000..002.tar", "a brace is not closed"),
        ("train-{a..b}.tar", r"braces hold a range, \{000..099\}, or several texts, \{train,val\}, not 'a..b'"),
        ("train-00{0,0}.tar", "names shards twice"),
        ("{0..9999999}.tar", "names more than 1,000,000 shards"),
        ("..", r"has no \*.tar"),
    ],
)
def test_patterns_that_name_no_shards(shards: Path, pattern: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TarShards(f"{shards}/{pattern}", size=SIZE)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("no://bucket/{00..99}.tar", "no storage is registered for no://"),
        ("memory://b/*.tar", "a storage cannot list its shards: give a range"),
        (["memory://b/1.tar", "/1.tar"], r"all shards have one scheme, not \['', 'memory'\]"),
        ("pipe:curl http://x", "commands are not run"),
        ([], "pattern is the path of a tar file"),
        (3, "pattern is the path of a tar file"),
    ],
)
def test_patterns_of_no_kind(register: Register, pattern: Any, said: str) -> None:
    register("memory", partial(RangedStorage, {}))
    with pytest.raises(ConfigError, match=said):
        TarShards(pattern, size=SIZE)


# -- members and labels -----------------------------------------------------------------------------------------------


def test_what_is_no_sample_is_left_out(tmp_path: Path) -> None:
    link, folder = tarfile.TarInfo("link.jpg"), tarfile.TarInfo("folder.jpg")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "1.jpg", tarfile.DIRTYPE
    parts = [
        *(
            (name, b"no")
            for name in (".DS_Store", "._1.jpg", "d/._1.jpg", "d/.hidden.jpg", "README", "__meta__/1.jpg", "1.seg.png")
        ),
        *((folder, b""), (link, b""), ("2.CLS", b" 7\n"), ("1.cls", b"-3"), ("3.txt", b"alone"), ("4.npy", b"alone")),
        *(
            ("2.JPG", b"two"),
            ("d.x/1.jpg", b"in a folder"),
            ("1.jpg", b"one"),
            ("d.x/1.cls", b"+4"),
            ("5.cls", b"5"),
            ("5.jpg", b""),
        ),
    ]
    path = file_of(tmp_path / "x.tar", parts)
    made: list[ImageFrame] = []
    said = warnings_of(lambda: made.append(TarShards(path, size=SIZE, label="cls", label_mode="float")))
    (source,) = made
    assert source.filenames == [f"x.tar/{name}" for name in ("1.jpg", "2.JPG", "d.x/1.jpg", "5.jpg")]
    assert source.labels.tolist() == [-3, 7, 4, 5]
    assert bytes_of(source.subset([0, 1, 2])) == [b"one", b"two", b"in a folder"]
    with pytest.raises(ValueError, match=f"an empty file: {path}/5.jpg"):
        bytes_of(source)
    assert [line for line in said if "have no image" in line] == [
        f"2 samples of tar shards have no image, and are left out; the first is '3' of {path}"
    ]
    assert any(
        f"1 images of tar shards are links or no files, and are left out; the first is 'link.jpg' of {path}" in line
        for line in said
    )


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a member twice": ([("1.jpg", b"a"), ("1.jpg", b"b")], {}, r"x.tar: it has the member '1.jpg' twice"),
    "a label twice": ([("1.cls", b"1"), ("1.jpg", b"a"), ("1.cls", b"2")], {"label": "cls"}, "it has the member '1.cls' twice"),
    "two images": ({"1.jpg": b"a", "1.png": b"b"}, {}, "'1.jpg' and '1.png' are images of one sample: say which.*image='jpg'"),
    "no image": ({"1.cls": b"1"}, {}, "has no image: no member with a suffix of"),
    "no image of that suffix": (
        {"1.jpg": b"1"},
        {"image": "left.png"},
        r"has no image: no member with a suffix of \['left.png'\]",
    ),
    "no label": (
        {"1.jpg": b"a", "2.jpg": b"b", "1.cls": b"1"},
        {"label": "cls"},
        "1 of 2 images have no 'cls'; the first is .*x.tar/2.jpg",
    ),
    "no label at all": ({"1.jpg": b"a"}, {"label": "cls", "incomplete": "skip"}, "no image is left"),
    "no value in JSON": ({"1.jpg": b"a", "1.json": b'{"a": 1}'}, {"label": "json.b"}, "1 of 1 images have no 'json.b'"),
    "no object in JSON": ({"1.jpg": b"a", "1.json": b"[1]"}, {"label": "json.b"}, "1 of 1 images have no 'json.b'"),
    "no JSON": ({"1.jpg": b"a", "1.json": b"{"}, {"label": "json.b"}, "x.tar: member '1.json': Expecting"),
    "deep JSON": (
        {"1.jpg": b"a", "1.json": b"[" * 100_000},
        {"label": "json.b"},
        "member '1.json': its JSON is nested too deeply",
    ),
    "no integer": ({"1.jpg": b"a", "1.cls": b"cat"}, {"label": "cls"}, "member '1.cls': it is no integer, but b'cat'"),
    "a large integer": ({"1.jpg": b"a", "1.cls": b"1" * 99}, {"label": "cls"}, "member '1.cls': it is no integer"),
    "no UTF-8": ({"1.jpg": b"a", "1.txt": b"\xff"}, {"label": "txt"}, "member '1.txt': 'utf-8' codec"),
    "JSON as a whole": (
        {"1.jpg": b"a"},
        {"label": "json"},
        "no column 'json' in tar shards: name one of its values, 'json.category'",
    ),
    "pickles": ({"1.jpg": b"a", "1.pkl": b"."}, {"label": "pkl"}, "no column 'pkl' in tar shards. Columns are 'cls'"),
    "no name": ({"1.jpg": b"a"}, {"label": 3}, "a column of tar shards is a name such as 'cls' or 'json.category', not 3"),
    "columns that are none": ({"1.jpg": b"a"}, {"columns": "cls"}, "columns is a list of columns, not 'cls'"),
    "an image that is none": ({"1.jpg": b"a"}, {"image": 3}, "image is the suffix of the images"),
    "another word": ({"1.jpg": b"a"}, {"incomplete": "drop"}, "incomplete is 'refuse' or 'skip', not 'drop'"),
}


@pytest.mark.parametrize(("parts", "options", "said"), BAD.values(), ids=BAD)
def test_samples_that_cannot_be_read_rightly_are_refused(tmp_path: Path, parts: Any, options: Any, said: str) -> None:
    path = file_of(tmp_path / "x.tar", parts)
    with pytest.raises(ConfigError, match=said):
        TarShards(path, size=SIZE, **options)


def test_one_of_several_images_is_chosen_by_its_suffix(tmp_path: Path) -> None:
    path = file_of(tmp_path / "x.tar", {"1.left.png": b"l1", "1.right.png": b"r1", "1.jpg": b"j1", "2.left.PNG": b"l2"})
    assert bytes_of(TarShards(path, size=SIZE, image=".left.png")) == [b"l1", b"l2"]
    with pytest.warns(UserWarning, match=r"1 samples of tar shards have no image.*'2' of .*x.tar"):
        assert bytes_of(TarShards(path, size=SIZE)) == [b"j1"]


def test_what_lacks_a_label_is_left_out_if_asked_for(tmp_path: Path) -> None:
    parts = {"1.jpg": b"1", "2.jpg": b"2", "2.txt": b"two\n", "3.jpg": b"3", "3.txt": b"three"}
    path = file_of(tmp_path / "x.tar", parts)
    with pytest.warns(UserWarning, match=r"1 of 3 images have no 'txt'; the first is .*x.tar/1.jpg: 1 are left out"):
        source = TarShards(path, size=SIZE, label="txt", incomplete="skip")
    assert (bytes_of(source), source.class_names, source.labels.tolist()) == ([b"2", b"3"], ["three", "two"], [1, 0])


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    with open(tmp_path / "1.jpg", "wb") as file:
        file.truncate(10 << 20)
    subprocess.run(["tar", "-S", "-C", tmp_path, "-cf", tmp_path / "x.tar", "1.jpg"], check=True)
    with pytest.raises(ConfigError, match=r"x.tar: member '1.jpg' is a sparse file: extract it and pack it again"):
        TarShards(tmp_path / "x.tar", size=SIZE)


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_archives_are_refused_with_the_remedy(tmp_path: Path, mode: Any, name: str) -> None:
    with tarfile.open(tmp_path / "x.tgz", mode):
        pass
    with pytest.raises(ConfigError, match=f"x.tgz: it is compressed by {name}, .*gunzip.*ringload.TarStream"):
        TarShards(tmp_path / "x.tgz", size=SIZE)


def test_a_shard_that_is_empty_or_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").touch()
    with pytest.raises(ConfigError, match=r"1 of 1 shards cannot be read: \['.*x.tar: an empty file"):
        TarShards(tmp_path / "x.tar", size=SIZE)
    os.unlink(tmp_path / "x.tar")
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(ConfigError, match=r"x.tar: not a regular file but a FIFO"):
        TarShards(tmp_path / "x.tar", size=SIZE)


# -- shards that change -----------------------------------------------------------------------------------------------


def damaged_by_writing(path: Path, photos: Path) -> None:
    """Other images at the same places."""
    old = path.read_bytes()
    rewrite(path, old[:2000] + bytes(len(old) - 2000))


def damaged_by_cutting(path: Path, photos: Path) -> None:
    rewrite(path, path.read_bytes()[:1500])


def damaged_by_shifting(path: Path, photos: Path) -> None:
    """Another member before the others; size and time as before."""
    old = path.read_bytes()
    rewrite(path, (tar_of({"0.txt": b"0"})[: 2 * BLOCK] + old)[: len(old)], keep_time=True)


def damaged_by_replacing(path: Path, photos: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes() + bytes(BLOCK))
    os.replace(path.with_suffix(".new"), path)


CHANGES = {
    damaged_by_writing: r"the shard has changed since its index was read: make the source again \(version \d+ became \d+\)",
    damaged_by_cutting: r"the shard has changed since its index was read: make the source again \([0-9,]+ bytes became 1,500\)",
    damaged_by_shifting: r"the shard has changed since its index was read: make the source again \(its header is another one\)",
    damaged_by_replacing: r"the shard has changed since its index was read: make the source again \([0-9,]+ bytes became",
    lambda path, photos: path.unlink(): r"No such file or directory",
}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("change", "said"), CHANGES.items(), ids=["written", "cut", "shifted", "replaced", "removed"])
def test_a_shard_that_changed_makes_bad_samples_and_no_other_bytes(
    photos: Path, shards: Path, change: Any, said: str, workers: int
) -> None:
    source = TarShards(shards, size=SIZE, label="cls")
    change(shards / "train-001.tar", photos)
    with Loader(source, 4, workers=workers, on_error="skip", shuffle=False, ram_budget="600MB", max_bad=99) as made:
        valid = np.concatenate([batch["valid"].copy() for batch in made])
    assert valid.tolist() == [True] * 8 + [False] * 8 + [True] * 8
    with (
        Loader(source, 4, workers=workers, shuffle=False, ram_budget="600MB") as made,
        pytest.raises(SampleError, match=f"{said}.*train-001.tar/photo-0[89].jpg"),
    ):
        list(made)


def test_a_kept_file_that_is_written_to_is_noticed(shards: Path) -> None:
    """By the time after the read: the storage has the file open, and its header is as it was."""
    source = TarShards(shards, size=SIZE)
    first = bytes_of(source)
    path = shards / "train-000.tar"
    place = path.read_bytes().index(first[0])
    with open(path, "r+b") as file:
        file.seek(place + 100)
        file.write(b"other")
    os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 10**9))
    with pytest.raises(OSError, match="has changed since its index was read") as raised:
        source._contents.read(0, 1 << 30)
    assert raised.value.errno == errno.ESTALE
    assert raised.value.filename == f"{path}/photo-00.jpg"


def test_a_remote_shard_that_changed_is_told_by_its_headers(shards: Path, register: Register) -> None:
    contents = {f"memory://b/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
    register("memory", partial(RangedStorage, contents))
    source = TarShards("memory://b/train-000.tar", size=SIZE)
    before = bytes_of(source)[0]
    contents["memory://b/train-000.tar"] = contents["memory://b/train-001.tar"]
    with pytest.raises(OSError, match="another one"):
        bytes_of(source)
    assert bytes_of(TarShards("memory://b/train-000.tar", size=SIZE))[0] != before


# -- the index --------------------------------------------------------------------------------------------------------


def test_only_shards_that_changed_are_read_again(shards: Path, photos: Path, register: Register, tmp_path: Path) -> None:
    contents = {f"memory://b/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
    log = tmp_path / "log"
    register("memory", partial(RangedStorage, contents, log=str(log)))

    def read(**options: Any) -> list[str]:
        log.write_text("")
        sources.append(TarShards("memory://b/train-{000..002}.tar", size=SIZE, **options))
        return sorted({line.split()[1][-7:-4] for line in log.read_text().splitlines() if line.startswith("range")})

    sources: list[ImageFrame] = []
    assert read() == ["000", "001", "002"]
    assert read() == []
    contents["memory://b/train-001.tar"] = tar_of({"new.jpg": b"new"})
    assert read() == ["001"]
    assert (len(sources[-1]), bytes_of(sources[-1])[8]) == (17, b"new")
    contents["memory://b/train-001.tar"] = contents["memory://b/train-000.tar"]
    assert read(label="cls") == ["000", "001", "002"]  # a column that the index does not have
    assert read(label="cls") == read() == []
    assert read(image="jpg") == ["000", "001", "002"]


def saved(shards: Path) -> tuple[Path, bytes, list[bytes]]:
    source = TarShards(shards, size=SIZE, label="cls")
    return index_file(shards), index_file(shards).read_bytes(), bytes_of(source)


@pytest.mark.slow
def test_a_damaged_index_is_built_anew_with_a_word(shards: Path, rng: np.random.Generator) -> None:
    path, good, wanted = saved(shards)
    places = [0, 5, 16, 20, 40, len(good) // 2, len(good) - 1, *rng.integers(0, len(good), 10).tolist()]
    for damaged in (
        *(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :] for place in places),
        b"",
        good[:-9],
        good + b"x",
    ):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"the index of tar shards in .*tarindex cannot be used, and is built anew: "):
            assert bytes_of(TarShards(shards, size=SIZE, label="cls")) == wanted
        assert path.read_bytes() == good


def forged(good: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """An index with another head, and a right checksum."""
    n_head = int.from_bytes(good[16:24], "little")
    head = json.loads(good[24 : 24 + n_head])
    change(head)
    text = json.dumps(head).encode()
    data = good[:16] + len(text).to_bytes(8, "little") + text + good[24 + n_head : -4]
    return data + zlib.crc32(data).to_bytes(4, "little")


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no shards": lambda head: head.pop("shards"),
    "a list": lambda head: head.update(shards=[[]]),
    "a negative size": lambda head: head["shards"][0].update(n=-1),
    "a huge size": lambda head: head["shards"][0].update(n=1 << 50),
    "a size that is none": lambda head: head["shards"][0].update(names="x"),
    "one shard less": lambda head: head["shards"].pop(),
    "members beyond the shard": lambda head: head["shards"][1].update(n_bytes=5000),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_forged_index_is_built_anew(shards: Path, change: Any) -> None:
    path, good, wanted = saved(shards)
    path.write_bytes(forged(good, change))
    with pytest.warns(UserWarning, match="cannot be used, and is built anew"):
        assert bytes_of(TarShards(shards, size=SIZE, label="cls")) == wanted


def test_an_index_of_other_shards_is_not_taken(shards: Path, tmp_path: Path, photos: Path) -> None:
    """Shards were moved away, and others have their names: of other sizes, or only of another time."""
    _, _, wanted = saved(shards)
    for name, content_of in (("train-000.tar", "train-001.tar"), ("train-002.tar", "train-002.tar")):
        rewrite(shards / name, (shards / content_of).read_bytes()[:])
    again = TarShards(shards, size=SIZE, label="cls")
    assert bytes_of(again) == wanted[8:16] + wanted[8:]
    shutil.copytree(shards, tmp_path / "moved")  # with the times
    before = index_file(tmp_path / "moved").stat().st_ino
    assert bytes_of(TarShards(tmp_path / "moved", size=SIZE, label="cls")) == wanted[8:16] + wanted[8:]
    assert index_file(tmp_path / "moved").stat().st_ino == before  # taken, and not written


def test_where_the_index_is(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    TarShards(shards, size=SIZE, cache_dir=tmp_path / "own")
    assert not list(shards.glob(".*"))
    assert [path.suffix for path in (tmp_path / "own").iterdir()] == [".tarindex"]
    TarShards(shards, size=SIZE)
    path = index_file(shards)
    path.unlink()
    path.mkdir()  # so that it can be neither read nor written, also by root
    with pytest.warns(UserWarning, match="cannot be used, and is built anew: .*Is a directory"):
        TarShards(shards, size=SIZE)
    (in_cache,) = (tmp_path / "cache" / "ringload").iterdir()
    assert sorted(one.name for one in shards.iterdir() if one.name.startswith(".")) == [path.name]  # nothing unfinished
    in_cache.unlink()
    in_cache.mkdir()
    said = warnings_of(lambda: TarShards(shards, size=SIZE))
    assert any("cannot be saved, and will be built again" in line for line in said)
    with pytest.raises(ConfigError, match="cache_dir is the path of a folder, not 3"):
        TarShards(shards, size=SIZE, cache_dir=3)


def test_a_shard_that_is_being_written_is_refused(shards: Path, register: Register) -> None:
    class Changes(RangedStorage):
        def stat(self, key: str) -> Any:
            asked.append(key)
            return super().stat(key)._replace(version=str(len(asked)))

    asked: list[str] = []
    register("memory", partial(Changes, {"memory://b/x.tar": (shards / "train-000.tar").read_bytes()}))
    with pytest.raises(ConfigError, match=r"x.tar: it has changed while it was read: version 1 became 2"):
        TarShards("memory://b/x.tar", size=SIZE)


def test_a_cut_shard_is_refused_with_its_member(shards: Path) -> None:
    rewrite(shards / "train-001.tar", (shards / "train-001.tar").read_bytes()[:3000])
    with pytest.raises(
        ConfigError, match=r"train-001.tar: member 'photo-08.jpg' at byte 1,024 has [0-9,]+ bytes, and the archive ends"
    ):
        TarShards(shards, size=SIZE)


def test_progress_is_told_after_a_second(
    shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ringload"):
        TarShards(shards, size=SIZE)
        assert not caplog.messages
        monkeypatch.setattr(tar_build, "QUIET_S", 0.0)
        index_file(shards).unlink()
        TarShards(shards, size=SIZE)
    assert any(line.startswith("3 of 3 tar shards indexed, ") for line in caplog.messages)


# -- local ranges -----------------------------------------------------------------------------------------------------


def test_few_shards_are_open_at_once(tmp_path: Path) -> None:
    storage, before = LocalStorage(), len(os.listdir("/proc/self/fd"))
    paths = [str(tmp_path / f"{number}.bin") for number in range(MAX_KEPT + 20)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(b"%08d" % number)
    for number, path in [*enumerate(paths), *reversed([*enumerate(paths)])]:
        storage.prefetch_ranges([ByteRange(path, 0, 4)], 0)
        assert bytes(storage.read_range(ByteRange(path, 4, 4), 4)) == b"%04d" % number
        assert len(os.listdir("/proc/self/fd")) - before <= MAX_KEPT
    storage.close()
    storage.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_ranges_of_local_files(tmp_path: Path) -> None:
    storage, path = LocalStorage(), str(tmp_path / "x")
    Path(path).write_bytes(bytes(range(100)))
    assert storage.stat(path) == (100, str(os.stat(path).st_mtime_ns))
    assert bytes(storage.read_range(ByteRange(path, 90, 10), 10)) == bytes(range(90, 100))
    with pytest.raises(OSError, match=r"the file ends at byte 100, before byte 105: '.*/x'"):
        storage.read_range(ByteRange(path, 90, 15), 15)
    with pytest.raises(ringload.ContentTooLargeError, match="it has 15 bytes, and 14 may be read"):
        storage.read_range(ByteRange(path, 0, 15), 14)
    storage.prefetch_ranges([ByteRange(path, 90, 15), ByteRange(f"{path}y", 0, 1), ByteRange(str(tmp_path), 0, 1)], 0)
    for other, said in ((f"{path}y", "No such file"), (str(tmp_path), "not a regular file but a directory")):
        with pytest.raises((OSError, ValueError), match=said):
            storage.read_range(ByteRange(other, 0, 1), 1)
    storage.close()
