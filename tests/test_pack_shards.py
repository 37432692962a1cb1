"""`ringload pack`: what it writes is read by WebDataset and by TarShards to the byte; a run that is killed goes on."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from ringload import ImageFolder, ImageFrame, TarShards
from ringload.insight.cli import main
from ringload.insight.pack_shard import RECORDS
from tests.conftest import Injected, Times
from tests.helpers import run

SIZE = (40, 50)


def call(*arguments: Any) -> str:
    """What a run prints, which succeeds."""
    result = CliRunner(env={"COLUMNS": "400"}).invoke(main, ["pack", "--workers", "2", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: Any) -> str:
    """What a run says that is refused."""
    result = CliRunner(env={"COLUMNS": "400"}).invoke(main, ["pack", "--workers", "2", *map(str, arguments)])
    assert result.exit_code in (1, 2), result.output
    return result.output


def read_by_webdataset(out: Path) -> list[dict[str, Any]]:
    import webdataset  # here, as it imports torch

    paths = sorted(map(str, out.glob("*.tar")))
    return list(webdataset.WebDataset(paths, shardshuffle=False))


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of WebDataset's reader


def test_a_folder_of_classes_is_packed_byte_by_byte(photos: Path, tmp_path: Path) -> None:
    said = call(photos, tmp_path / "out", "--samples", 10)
    assert re.search(r"3 shards, 24 images, [0-9.]+ kB; 3 shards written and read back, 0 kept", said)
    source = ImageFolder(photos, size=SIZE)
    files = [(photos / name).read_bytes() for name in source.filenames]
    read = read_by_webdataset(tmp_path / "out")
    assert [one["jpg"] for one in read] == files
    assert [int(one["cls"]) for one in read] == source.labels.tolist()
    assert [json.loads(one["json"])["path"] for one in read] == source.filenames
    assert [one["__key__"] for one in read] == [f"{number:09d}" for number in range(24)]
    packed = TarShards(tmp_path / "out", size=SIZE, label={"a": "cls", "b": "json.label"})
    assert [bytes(packed._contents.read(index, 1 << 30)) for index in range(24)] == files
    assert packed.class_names_of("b") == source.class_names == json.loads((tmp_path / "out/classes.json").read_text())
    assert sorted(shards_of(tmp_path / "out")) == [f"shard-{number:06d}.tar" for number in range(3)]
    assert not list((tmp_path / "out").glob(".*unfinished"))


@pytest.mark.slow
def test_a_table_is_packed_with_its_columns(photos: Path, tmp_path: Path) -> None:
    table = pd.read_csv(photos / "photos.csv")
    table["w"] = [None, *np.arange(23) / 2]
    table.to_csv(tmp_path / "t.csv", index=False)
    given = (tmp_path / "t.csv", tmp_path / "out", "--root", photos, "--label", "multi", "--keep", "w", "--keep", "object_id")
    call(*given, "--shuffle", 3, "--name", "train", "--samples", 24)
    read = read_by_webdataset(tmp_path / "out")
    about = [json.loads(one["json"]) for one in read]
    assert sorted(one["object_id"] for one in about) == table["object_id"].tolist()
    assert [one["object_id"] for one in about] != table["object_id"].tolist()
    for one, said in zip(read, about, strict=True):
        row = table[table["object_id"] == said["object_id"]].iloc[0]
        assert (said["path"], said["label"], one["cls"]) == (row["path"], row["multi"], str("abc".index(row["multi"])).encode())
        assert said["w"] == (None if np.isnan(row["w"]) else row["w"])
        assert one["jpg"] == (photos / row["path"]).read_bytes()
    call(tmp_path / "t.csv", tmp_path / "plain", "--root", photos)
    call(tmp_path / "t.csv", tmp_path / "binary", "--root", photos, "--label", "bi")
    numbers = [(int(one["cls"]), json.loads(one["json"])["label"]) for one in read_by_webdataset(tmp_path / "binary")]
    assert numbers == [(number, number) for number in table["bi"]]
    assert sorted(read_by_webdataset(tmp_path / "plain")[0].keys() - {"__key__", "__url__", "__local_path__"}) == [
        "jpg",
        "json",
    ]


@pytest.mark.parametrize(("resize", "size"), [("30x20", (30, 20)), ("50", None), ("200", None)])
def test_images_are_made_smaller(photos: Path, tmp_path: Path, resize: str, size: Any) -> None:
    (tmp_path / "in/a").mkdir(parents=True)
    for number in range(3):
        data = (photos / f"{'abc'[number]}/0{number}.jpg").read_bytes()
        (tmp_path / f"in/a/{number}.jpg").write_bytes(data)
    turned = Image.new("RGB", (120, 60), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "in/a/turned.png", exif=exif)
    call(tmp_path / "in", tmp_path / "out", "--resize", resize, "--quality", 95)
    read = read_by_webdataset(tmp_path / "out")
    for one, name in zip(read, ("0.jpg", "1.jpg", "2.jpg", "turned.png"), strict=True):
        content = (tmp_path / "in/a" / name).read_bytes()
        height, width = (120, 60) if name == "turned.png" else (90 + int(name[0]), 120)
        if resize == "200":
            assert one[name.rpartition(".")[2]] == content
            continue
        made = Image.open(io.BytesIO(one["jpg"]))
        wanted = size or (round(height * 50 / min(height, width)), round(width * 50 / min(height, width)))
        assert (made.height, made.width) == wanted
        assert made.getexif().get(0x0112) is None
        source = ImageFrame(pd.DataFrame({"path": [name]}), root=tmp_path / "in/a", size=wanted, exif=True)
        row = {"image": np.zeros((*wanted, 3), np.uint8)}
        source.load(0, None, row)
        encoded = io.BytesIO()
        Image.fromarray(row["image"]).save(encoded, "JPEG", quality=95)
        np.testing.assert_array_equal(np.asarray(made), np.asarray(Image.open(encoded)))


KILLED = """
import os, signal, sys
from click.testing import CliRunner
from ringload.insight.cli import main
left = int(sys.argv.pop(1))
begun = False

def count(event, arguments):
    global left, begun
    begun |= event == "open" and str(arguments[0]).endswith(".unfinished")
    if begun and event in ("open", "os.rename"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
result = CliRunner().invoke(main, ["pack", *sys.argv[1:]])
print("done", result.output)
"""


@pytest.mark.slow
@pytest.mark.fault
def test_a_run_that_is_killed_anywhere_goes_on(photos: Path, tmp_path: Path, times: Times, injected: Injected) -> None:
    """Killed before it opens or renames a file, for any number of them. The shards are those of a run that was not killed."""
    call(photos, tmp_path / "whole", "--samples", 8)
    expected, n_killed = shards_of(tmp_path / "whole"), 0
    arguments = ["--workers", "1", photos, tmp_path / "out", "--samples", "8"]
    step = 40 // times(3, 40)
    for left in range(3, 43, step):
        for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        done = run(KILLED, left, *arguments)
        n_killed += done.returncode == -signal.SIGKILL
        there = shards_of(tmp_path / "out")
        assert there.items() <= expected.items(), left
        said = call(photos, tmp_path / "out", "--samples", 8)
        assert f"{3 - len(there)} shards written and read back, {len(there)} kept" in said
        assert shards_of(tmp_path / "out") == expected
        assert not list((tmp_path / "out").glob(".*unfinished"))
    assert n_killed
    injected("`ringload pack` is killed while it writes shards", n_killed)


def test_shards_that_were_damaged_are_written_anew(photos: Path, tmp_path: Path) -> None:
    call(photos, tmp_path / "out", "--samples", 8)
    expected, path = shards_of(tmp_path / "out"), tmp_path / "out/shard-000001.tar"
    damaged = bytearray(path.read_bytes())
    damaged[3000] ^= 1
    path.write_bytes(damaged)
    said = call(photos, tmp_path / "out", "--samples", 8)
    assert "1 shards written and read back, 2 kept" in said
    assert "1 shards were damaged, and are written anew" in said
    assert shards_of(tmp_path / "out") == expected


def test_shards_of_another_pack_are_not_touched(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    photos = shutil.copytree(photos, tmp_path / "photos")
    call(photos, out, "--samples", 8)
    expected = shards_of(out)
    assert "was packed from other files, or with other options: remove it, or pack into" in refused(photos, out, "--samples", 9)
    assert "was packed from other files, or with other options" in refused(photos, out, "--samples", 8, "--resize", 20)
    assert "out has shards of another pack: ['shard-000002.tar']" in refused(photos, out, "--samples", 12)
    os.utime(photos / "b/01.jpg", ns=(0, 1))
    assert "was packed from other files, or with other options" in refused(photos, out, "--samples", 8)
    (out / RECORDS / "shard-000001.json").write_text("[]")
    assert "shard-000001.tar was not made by this pack" in refused(photos, out, "--samples", 8)
    assert shards_of(out) == expected


def test_two_runs_do_not_write_into_one_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / RECORDS).mkdir(parents=True)
    with open(tmp_path / "out" / RECORDS / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another `ringload pack` is writing into" in refused(photos, tmp_path / "out")
    call(photos, tmp_path / "out")


def test_files_that_cannot_be_packed_are_named_before_a_shard_is_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes((photos / "a/00.jpg").read_bytes()[:200])
    names = ["a/00.jpg", "none.jpg", "empty.jpg", "text.jpg", "folder.jpg", "name.txt", "cut.jpg", "b/01.jpg"]
    (tmp_path / "folder.jpg").mkdir()
    paths = [str((photos if "/" in name else tmp_path) / name) for name in names]
    pd.DataFrame({"path": paths}).to_csv(tmp_path / "t.csv", index=False)
    said = refused(tmp_path / "t.csv", tmp_path / "out")
    assert "5 of 8 files cannot be packed: " in said
    reasons = ["none.jpg: no such file", "empty.jpg: it is empty", "text.jpg: it is no image", "folder.jpg: not a regular file"]
    for reason in (*reasons, "name.txt: its name has no suffix of images", "Leave them out by --skip-bad"):
        assert reason in said
    assert not list((tmp_path / "out").glob("*.tar"))
    said = call(tmp_path / "t.csv", tmp_path / "out", "--skip-bad")
    assert "3 images" in said
    assert "5 files are left out" in said
    pd.DataFrame({"path": paths[-2:]}).to_csv(tmp_path / "cut.csv", index=False)
    assert "cut.jpg cannot be packed: " in refused(tmp_path / "cut.csv", tmp_path / "small", "--resize", 20)
    assert "1 files are left out" in call(tmp_path / "cut.csv", tmp_path / "small", "--resize", 20, "--skip-bad")
    assert len(read_by_webdataset(tmp_path / "small")) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resize", "0"], "--resize is HEIGHTxWIDTH in pixels, or one number for the shortest side, not '0'"),
        (["--resize", "ax3"], "--resize is HEIGHTxWIDTH"),
        (["--label", "x"], "--label: only for a table, not for a folder of classes"),
        (["--keep", "nix"], "there is no column 'nix'|there is no field 'nix'|nix"),
    ],
)
def test_options_that_cannot_be(photos: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    assert re.search(said, refused(photos, tmp_path / "out", *arguments))
