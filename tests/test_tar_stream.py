"""TarStream: what WebDataset's writer has written, compressed or not; deaths, states, bad members, damaged shards, bombs."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import resource
import signal
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import (
    ByteRange,
    ConfigError,
    ContentStat,
    Loader,
    SampleError,
    TarShards,
    TarStream,
    ThreadedStorage,
    register_storage,
)
from ringload.storage import forward, registry
from tests.deaths import first_time, kill_all, members
from tests.helpers import SHAPE, content, truth
from tests.tables import png
from tests.tars import RangedStorage, header, tar_of

SIZE = SHAPE[:2]
LENGTHS = (11, 5, 8, 13)
N = sum(LENGTHS)
ROOM: dict[str, Any] = {"ram_budget": "600MB", "seed": 3, "last": "keep"}


def members_of(index: int) -> dict[str, bytes]:
    """A sample whose members tell its index."""
    of_json = json.dumps({"kind": "ab"[index % 2], "of": {"w": index / 2}, "all": ["a", "b"][: index % 3]})
    return {
        f"d/{index:04d}.{end}": one for end, one in (("cls", b"%d" % index), ("png", png(index)), ("json", of_json.encode()))
    }


def written(folder: Path, suffix: str = ".tar.gz", lengths: tuple[int, ...] = LENGTHS) -> str:
    """Shards, by Python's tarfile. Returns their pattern."""
    first = 0
    for number, n in enumerate(lengths):
        parts = {name: one for index in range(first, first + n) for name, one in members_of(index).items()}
        archive = tar_of(parts)
        (folder / f"t-{number}{suffix}").write_bytes(compressed(archive, suffix))
        first += n
    return str(folder / f"t-{{0..{len(lengths) - 1}}}{suffix}")


def compressed(archive: bytes, suffix: str) -> bytes:
    """An archive, as a shard of this suffix has it."""
    if suffix == ".tar.zst":
        return bytes(zstd().compress(archive))
    return archive if suffix == ".tar" else gzip.compress(archive, 1)


def zstd() -> Any:
    return importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def checked(batches: Any) -> Iterator[int]:
    """Verify samples of a stream with label="cls". Yields their indices."""
    for batch in batches:
        for image, label in zip(batch["image"], batch["label"], strict=True):
            np.testing.assert_array_equal(image, truth(int(label)))
            yield int(label)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("how", [{}, {"parts": 1}, {"parts": 2, "shuffle": 5}], ids=str)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_what_webdataset_has_written_comes_back(suffix: str, how: dict[str, Any], workers: int, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    index = 0
    for number, n in enumerate(LENGTHS):
        with webdataset.TarWriter(
            str(tmp_path / f"t-{number}.tar.gz" if suffix != ".tar" else tmp_path / f"t-{number}.tar")
        ) as to:
            for _ in range(n):
                to.write({"__key__": f"a/{index:03d}", "png": png(index), "cls": index, "json": {"k": "no"}})
                index += 1
    if suffix == ".tgz":
        for path in tmp_path.iterdir():
            path.rename(tmp_path / path.name.replace(".tar.gz", ".tgz"))
    source = TarStream(tmp_path, size=SIZE, label="cls", **how)
    with Loader(source, 4, workers=workers, **ROOM) as made:
        for _ in range(2):
            seen = list(checked(made))
            assert sorted(seen) == list(range(N))
            if how == {"parts": 1}:
                assert seen == list(range(N))


@pytest.mark.parametrize(
    "options", [{"dtype": "float32", "scale": (-1, 1)}, {"color": "gray"}, {"resize": "crop", "size": (5, 5)}]
)
@pytest.mark.parametrize("shuffle", [0, 3])
def test_pixels_are_those_of_tar_shards(shuffle: int, options: dict[str, Any], tmp_path: Path) -> None:
    shards = TarShards(written(tmp_path, ".tar", (9,)), label="cls", **{"size": SIZE, **options})
    stream = TarStream(str(tmp_path / "t-0.tar"), label="cls", shuffle=shuffle, **{"size": SIZE, **options})
    with Loader(shards, 9, workers=0, shuffle=False, **ROOM) as made:
        wanted = next(iter(made)).copy()
    with Loader(stream, 9, workers=1, **ROOM) as made:
        (batch,) = made
        np.testing.assert_array_equal(batch["image"], wanted["image"][batch["label"]])
        assert sorted(batch["label"].tolist()) == list(range(9))


def test_labels(tmp_path: Path) -> None:
    pattern = written(tmp_path, lengths=(9,))
    label = {"k": "json.kind", "hot": "json.kind", "w": "json.of.w", "some": "json.all", "n": "cls"}
    classes = {"k": ["b", "a"], "hot": {"a": 0, "b": 1}, "some": ["a", "b"]}
    modes = {"hot": "categorical", "w": "float", "some": "multi_hot"}
    source = TarStream(pattern, size=SIZE, label=label, classes=classes, label_mode=modes, weight="json.of.w")
    with Loader(source, 9, workers=1, **ROOM) as made:
        (batch,) = made
        for row, n in enumerate(batch["n"].tolist()):
            assert batch["k"][row] == 1 - n % 2
            assert batch["hot"][row].tolist() == [1 - n % 2, n % 2]
            assert batch["w"][row] == batch["weight"][row] == n / 2
            assert batch["some"][row].tolist() == [n % 3 > 0, n % 3 > 1]


class Deadly:
    """A transform that ends its worker, once for some samples."""

    def __init__(self, folder: Path, *which: int) -> None:
        self.folder, self.which = folder, {truth(index).tobytes() for index in which}

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if image.tobytes() in self.which and first_time(self.folder / f"died-{zlib.crc32(image.tobytes())}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return image + np.uint8(rng.integers(3))


@pytest.mark.fault
@pytest.mark.parametrize("how", [{}, {"parts": 2}, {"parts": 2, "shuffle": 5}, {"steps": 7}], ids=str)
def test_deaths_in_the_middle_of_a_shard_change_nothing(how: dict[str, Any], tmp_path: Path) -> None:
    pattern = written(tmp_path)
    found = []
    for workers, which in ((0, ()), (2, (3, 9, 13, 20, 36))):
        source = TarStream(pattern, size=SIZE, label="cls", transform=Deadly(tmp_path, *which), **how)
        with Loader(source, 3, workers=workers, restarts=None, **ROOM) as made:
            found.append(content(made) + content(made))
    assert len(list(tmp_path.glob("died-*"))) >= 4
    assert found[0] == found[1]


@pytest.mark.fault
def test_workers_that_are_killed_anywhere_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringload.ring.plan.MAX_SLOTS", 4)  # or all batches were there when workers are killed
    source = TarStream(written(tmp_path), size=SIZE, label="cls", parts=2)
    seen, n_killed = [], 0
    with Loader(source, 3, workers=2, restarts=None, **ROOM) as made:
        for batch in made:
            if n_killed < 4 and (alive := members(made)[1:]):
                n_killed += kill_all(alive[:1])
            seen += list(checked([batch]))
    assert n_killed == 4
    assert sorted(seen) == list(range(N))


@pytest.mark.parametrize("how", [{}, {"parts": 2}, {"parts": 2, "shuffle": 5}], ids=str)
def test_a_state_goes_on_at_its_sample_and_reads_no_shard_before(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TarStream(written(tmp_path), size=SIZE, label="cls", flip=True, **how)
    with Loader(source, 3, workers=1, **ROOM) as made:
        whole = content(made)
        for n in (1, 4, len(whole) - 2):
            with Loader(source, 3, workers=2, **ROOM) as first:
                for _ in zip(range(n), first, strict=False):
                    pass
                state = json.loads(json.dumps(first.state_dict()))
            with Loader(source, 3, workers=0, **ROOM) as second:
                second.load_state_dict(state)
                opened: list[str] = []
                with monkeypatch.context() as patched:
                    real = forward.RangedFile.__init__

                    def noting(self: Any, storage: Any, key: str, *more: Any, noted: Any = opened, call: Any = real) -> None:
                        noted.append(key)
                        call(self, storage, key, *more)

                    patched.setattr(forward.RangedFile, "__init__", noting)
                    assert content(second) == whole[n:]
                if n == len(whole) - 2:
                    assert len(opened) <= 2  # and not the shards that were read to their end


def test_a_state_of_other_shards_is_refused(tmp_path: Path) -> None:
    pattern = written(tmp_path)
    with Loader(TarStream(pattern, size=SIZE, label="cls", parts=1), 3, workers=0, **ROOM) as made:
        next(iter(made))
        state = made.state_dict()
    other = TarStream(pattern.replace("0..3", "0..2"), size=SIZE, label="cls", parts=1)
    with Loader(other, 3, workers=0, **ROOM) as made:
        made.load_state_dict(state)
        with pytest.raises(SampleError, match="a stream of other shards"):
            next(iter(made))
    written(tmp_path, lengths=(12, 5, 8, 13))
    with Loader(TarStream(pattern, size=SIZE, label="cls", parts=1), 3, workers=0, **ROOM) as made:
        made.load_state_dict(state)
        with pytest.raises(SampleError, match="it has changed since the state was saved"):
            next(iter(made))


def test_ranks_share_the_shards(tmp_path: Path) -> None:
    pattern, seen = written(tmp_path), []
    for rank in range(2):
        with Loader(TarStream(pattern, size=SIZE, label="cls", parts=2), 3, workers=1, shard=(rank, 2), **ROOM) as made:
            seen += list(checked(made))
    assert sorted(seen) == list(range(N))
    with (
        Loader(TarStream(pattern, size=SIZE, parts=3), 3, workers=1, shard=(0, 2), **ROOM) as made,
        pytest.raises(SampleError, match=r"4 shards for 6 parts .*give fewer parts="),
    ):
        next(iter(made))


def test_uneven_parts_are_padded(tmp_path: Path) -> None:
    with Loader(TarStream(written(tmp_path), size=SIZE, label="cls"), 4, workers=1, **{**ROOM, "last": "pad"}) as made:
        batches = [batch.copy() for batch in made]
        assert all(len(batch["label"]) == 4 for batch in batches)
        assert sorted(int(n) for one in batches for n in one["label"][one["valid"]]) == list(range(N))


class Bucket(ThreadedStorage):
    """Contents that threads fetch ahead, by ranges."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        super().__init__()
        self.contents = contents

    def stat(self, key: str) -> ContentStat:
        return ContentStat(len(self.contents[key]), "v1")

    def fetch_range(self, part: ByteRange) -> bytes:
        assert part.version == "v1"
        return self.contents[part.key][part.start : part.start + part.n_bytes]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize("kind", [RangedStorage, Bucket])
def test_remote_shards(kind: type[Any], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "CHUNK_BYTES", 700)
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    pattern = written(tmp_path, suffix)
    register_storage("mem", partial(kind, {f"mem://b/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}))
    source = TarStream(pattern.replace(str(tmp_path), "mem://b"), size=SIZE, label="cls", parts=2)
    for workers in (0, 2):
        with Loader(source, 3, workers=workers, start_method="fork", **ROOM) as made:
            assert sorted(checked(made)) == list(range(N))


# -- what is wrong ------------------------------------------------------------------------------------------------------


def bad_of(archive: bytes, tmp_path: Path, **options: Any) -> tuple[list[int], list[str]]:
    """The samples of a shard, and what was said of bad ones. A whole shard follows."""
    (tmp_path / "a.tar.gz").write_bytes(archive if archive[:2] == b"\x1f\x8b" else gzip.compress(archive, 1))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar_of(members_of(77)), 1))
    paths = [tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"]
    source = TarStream(paths, size=SIZE, label="cls", parts=1)
    with Loader(source, 2, workers=1, on_error="skip", **ROOM, **options) as made:
        seen = [index for batch in made for index in checked([{name: array[batch["valid"]] for name, array in batch.items()}])]
        said = [one.reason for one in made.stats.bad]
    return seen, said


def several(**changes: Any) -> dict[str, bytes]:
    """Three samples, with members changed, or added."""
    parts = {name: one for index in range(3) for name, one in members_of(index).items()}
    return {
        name: one for name, one in sorted((parts | changes.get("to", {})).items()) if name not in changes.get("without", ())
    }


BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "no image": (several(to={"d/0001.png": b"no image at all"}), r"a.tar.gz/d/0001.png: "),
    "empty": (several(to={"d/0001.png": b""}), r"a.tar.gz/d/0001.png: an empty file"),
    "no label": (several(without=["d/0001.cls"]), r"a.tar.gz/d/0001.png: it has no 'cls'"),
    "a label that is none": (several(to={"d/0001.cls": b"x"}), r"a.tar.gz/d/0001.cls: it is no integer"),
    "two images": (several(to={"d/0001.jpg": png(1)}), r"are images of one sample.*image="),
    "a large text": (several(to={"d/0001.cls": b"1" * (2 << 20)}), r"d/0001.cls: 2,097,152 bytes: more than"),
}


@pytest.mark.parametrize("which", BAD)
def test_bad_members_are_bad_samples_with_their_names(which: str, tmp_path: Path) -> None:
    parts, said = BAD[which]
    seen, reasons = bad_of(tar_of(parts), tmp_path)
    assert [one for one in seen if one != 1] == [0, 2, 77]
    assert len(reasons) == 1
    assert re.search(said, reasons[0]), reasons


def damaged(archive: bytes, how: str) -> bytes:
    packed = gzip.compress(archive, 1)
    middle = len(packed) // 2
    if how == "cut":
        return packed[:middle]
    if how == "a byte changed":
        return packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]  # of the checksum
    if how == "no end":
        return gzip.compress(archive[: -len(archive) % 512 or None].rstrip(b"\0") + bytes(300), 1)
    if how == "a header":
        at = archive.index(b"d/0004.png")
        return gzip.compress(archive[:at] + b"x" * 512 + archive[at + 512 :], 1)
    return gzip.compress(archive + archive, 1)


@pytest.mark.parametrize("how", ["cut", "a byte changed", "no end", "a header", "two archives"])
def test_a_damaged_shard_is_named_and_the_next_is_read(how: str, tmp_path: Path) -> None:
    parts = {name: one for index in range(9) for name, one in members_of(index).items()}
    seen, reasons = bad_of(damaged(tar_of(parts), how), tmp_path)
    assert seen[:-1] == list(range(len(seen) - 1))
    assert seen[-1] == 77
    assert len(reasons) == 1
    assert f"shard {tmp_path}/a.tar.gz: " in reasons[0]
    assert f"What follows its first {len(seen) - 1:,} samples is lost" in reasons[0]
    source = TarStream(tmp_path / "a.tar.gz", size=SIZE, label="cls")
    with Loader(source, 2, workers=1, **ROOM) as made, pytest.raises(SampleError, match=r"shard .*a.tar.gz: "):
        list(made)


def has_300_mb_more() -> None:
    n_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes + 300_000_000,) * 2)


@pytest.mark.slow
def test_bombs_are_bad_samples_and_take_no_memory(tmp_path: Path) -> None:
    """A member of 1 GB of zeros, in 5 MB: too large for an image, and left out by a worker that has not so much memory."""
    path, n_bytes = tmp_path / "a.tar.gz", 1 << 30
    first, last = tar_of(members_of(0))[:-1024].rstrip(b"\0"), tar_of(members_of(2))
    first += bytes(-len(first) % 512)
    with gzip.open(path, "wb", 1) as file:
        file.write(first + header(b"d/0001.cls", 1) + b"1" + bytes(511) + header(b"d/0001.png", b"%011o\0" % n_bytes))
        for _ in range(n_bytes >> 24):
            file.write(bytes(1 << 24))
        file.write(last)
    seen, reasons = bad_of(path.read_bytes(), tmp_path, worker_setup=has_300_mb_more)
    assert [one for one in seen if one != 1] == [0, 2, 77]
    assert len(reasons) == 1
    assert "a.tar.gz/d/0001.png: a file of 1,073,741,824 bytes" in reasons[0]


def test_large_images_wait_for_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each content needs more than a worker has for itself: all are read, one at a time, and no turn is kept."""
    monkeypatch.setattr("ringload.ring.plan.MAX_SLOTS", 2)  # a worker that keeps its turn waits for the others then
    monkeypatch.setattr("ringload.images.decoder.ImageDecoder.shared_bytes", 10)
    monkeypatch.setattr("ringload.images.decoder.ImageDecoder._is_large", lambda self, n_bytes: True)
    source = TarStream(written(tmp_path), size=SIZE, label="cls")
    for workers in (0, 2):
        with Loader(source, 3, workers=workers, start_method="fork", **ROOM) as made:
            assert sorted(checked(made)) == list(range(N))


def test_samples_without_an_image_are_left_out_with_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen, reasons = bad_of(tar_of(several(to={"README.txt": b"hi", "d/0001a.cls": b"9"})), tmp_path)
    assert (seen, reasons) == ([0, 1, 2, 77], [])
    assert "samples without an image are left out; the first is 'README'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"label": "txt"}, r"'txt' are known only when all rows were read.*give classes="),
        ({"label": "json.k"}, r"give classes=.*or label_mode="),
        ({"label": "cls", "label_mode": "categorical"}, r"needs classes="),
        ({"label": "cls", "classes": ["a"], "label_mode": "binary"}, r"takes two classes"),
        ({"label": "__url__"}, r"no column '__url__'"),
        ({"label": ["cls"]}, r"the name of one column|no column"),
        ({"classes": ["a"]}, r"classes= is given without label="),
        ({"parts": 5}, r"parts=5, and there are 4 shards"),
        ({"image": 3}, r"image is the suffix"),
        ({"shuffle": True}, r"shuffle is the number of rows"),
        ({"order": "shuffle"}, r'"turns" or "arrival"'),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        TarStream(written(tmp_path), size=SIZE, **arguments)


def test_what_has_no_order_or_split_says_so(tmp_path: Path) -> None:
    source = TarStream(written(tmp_path), size=SIZE)
    for order in ({"order": "shuffle"}, {"shuffle": True}, {"order": [1, 2]}):
        with pytest.raises(ConfigError, match="a Stream comes in the order of its parts"):
            Loader(source, 4, **order, **ROOM)
    with pytest.raises(ConfigError, match=r"it is compressed by gzip, .*ringload.TarStream"):
        TarShards(written(tmp_path), size=SIZE)
    with pytest.raises(TypeError, match=r"TarStream\(\) has no argument 'cash_dir'"):
        TarStream(written(tmp_path), size=SIZE, cash_dir="x")
    with pytest.raises(ConfigError, match=r"1 of 1 shards are not there"):
        TarStream(tmp_path / "none.tar.gz", size=SIZE)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", [{}, {"parts": 1}, {"parts": 2, "shuffle": 5}], ids=str)
def test_zstd(how: dict[str, Any], workers: int, tmp_path: Path) -> None:
    source = TarStream(written(tmp_path, ".tar.zst"), size=SIZE, label="cls", **how)
    with Loader(source, 4, workers=workers, **ROOM) as made:
        for _ in range(2):
            assert sorted(checked(made)) == list(range(N))


@pytest.mark.parametrize("how", ["cut", "a byte changed", "a window that takes 128 MB", "a name that says nothing"])
def test_zstd_that_cannot_be_read_is_named(how: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tar" if how == "a name that says nothing" else "a.tar.zst")
    archive = tar_of({name: one for index in range(9) for name, one in members_of(index).items()})
    of = zstd().CompressionParameter
    compressor = zstd().ZstdCompressor(options={of.window_log: 27 if how.startswith("a window") else 20, of.checksum_flag: 1})
    packed = compressor.compress(archive) + compressor.flush()
    if how == "a byte changed":
        packed = packed[:-1] + bytes([packed[-1] ^ 1])  # of the checksum
    path.write_bytes(packed[: len(packed) // 2] if how == "cut" else packed)
    with Loader(TarStream(path, size=SIZE, label="cls"), 2, workers=1, on_error="skip", **ROOM) as made:
        seen = [index for batch in made for index in checked([{name: array[batch["valid"]] for name, array in batch.items()}])]
        (bad,) = made.stats.bad
    assert seen == list(range(len(seen)))
    assert f"shard {path}: " in bad.reason
    if how == "a name that says nothing":
        assert "it is compressed by zstd: name it .tar.zst" in bad.reason


def test_zstd_that_python_has_not_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(ConfigError, match=r"a.tar.zst: it is compressed by zstd, .*pip install backports.zstd"):
        TarStream(tmp_path / "a.tar.zst", size=SIZE)


@pytest.mark.parametrize("begin", [b"BZh91AY&SY", b"\xfd7zXZ\x00"])
def test_other_compressions_are_refused(begin: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(begin + bytes(2000))
    loader = Loader(TarStream(tmp_path / "b.tar", size=SIZE), 2, workers=1, **ROOM)
    with loader, pytest.raises(SampleError, match=r"b.tar: it is compressed by .*: compress it by gzip"):
        next(iter(loader))


def test_open_shards_are_in_the_budget(tmp_path: Path) -> None:
    pattern = written(tmp_path)
    few, many = (
        Loader(TarStream(pattern, size=SIZE, parts=parts), 4, workers=1, **ROOM).plan().index_bytes for parts in (1, 4)
    )
    assert many - few == 3 * forward.OPEN_BYTES["gzip"]
