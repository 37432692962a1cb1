"""Images in .zip files and LMDB databases, by zip:// and lmdb:// paths."""

from __future__ import annotations

import gc
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ringload import ContentTooLargeError, ImageFrame, Loader, SampleError
from ringload.storage import archives
from ringload.storage.archives import lmdb_storage, zip_storage
from tests.tables import ROOM, SIZE, N, check_epoch, open_files, png

TABLE = pd.DataFrame({"path": [f"{row % 4}/{row}.png" for row in range(N)], "label": [row % 3 for row in range(N)]})
Make = Callable[[Path], str]


def as_zip(folder: Path, n: int = N) -> str:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for row in range(n):
            archive.writestr(TABLE.path[row], png(row), zipfile.ZIP_DEFLATED if row % 2 else zipfile.ZIP_STORED)
    return f"zip://{folder}/a.zip"


def as_lmdb(folder: Path, n: int = N, subdir: bool = True) -> str:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder / "a.lmdb"), map_size=1 << 24, subdir=subdir) as database, database.begin(write=True) as writing:
        for row in range(n):
            writing.put(TABLE.path[row].encode(), png(row))
    return f"lmdb://{folder}/a.lmdb"


def frame(root: str) -> ImageFrame:
    return ImageFrame(TABLE, root=root, label="label", size=SIZE)


@pytest.mark.parametrize("make", [as_zip, as_lmdb])
def test_images_by_key(tmp_path: Path, make: Make) -> None:
    source = frame(make(tmp_path))
    for options in ({"workers": 0}, {"workers": 2, "kills": 1}, {"workers": 1, "start_method": "fork"}):
        check_epoch(source, **options)
    check_epoch(source.subset(range(20, 40)), range(20, 40), workers=0)  # while the other source has it open
    del source
    gc.collect()
    assert not open_files(tmp_path)


def test_a_fork_opens_its_own_database(tmp_path: Path) -> None:
    key = f"{as_lmdb(tmp_path)}/0/0.png"
    kept = lmdb_storage()
    kept.read(key, 1 << 20)
    if (pid := os.fork()) == 0:
        own = lmdb_storage()
        is_own = own.read(key, 1 << 20) == png(0) and archives.opened_by(f"{tmp_path}/a.lmdb") == os.getpid()
        os._exit(0 if is_own else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert archives.opened_by(f"{tmp_path}/a.lmdb") == os.getpid()
    kept.close()
    assert archives.opened_by(f"{tmp_path}/a.lmdb") == 0


def test_a_database_in_one_file(tmp_path: Path) -> None:
    check_epoch(frame(as_lmdb(tmp_path, subdir=False)), workers=0)


@pytest.mark.parametrize("make", [as_zip, as_lmdb])
def test_archives_that_change_end_or_lack_a_member(tmp_path: Path, make: Any) -> None:
    source = frame(make(tmp_path, n=30))
    with Loader(source, 1, workers=0, shuffle=False, **ROOM) as made, pytest.raises(SampleError, match=r"2/30\.png.*has no"):
        list(made)
    storage, file = (
        (zip_storage(), tmp_path / "a.zip") if make is as_zip else (lmdb_storage(), tmp_path / "a.lmdb" / "data.mdb")
    )
    key = source.describe(0)
    assert storage.read(key, 1 << 20) == png(0)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(OSError, match="has changed since it was opened"):
        storage.read(key, 1 << 20)
    storage.close()
    file.write_bytes(b"no archive")
    with Loader(source, 1, workers=1, **ROOM) as made, pytest.raises(SampleError, match=r"a\.(zip|lmdb): "):
        next(iter(made))
    file.unlink()
    with Loader(source, 1, workers=1, **ROOM) as made, pytest.raises(SampleError, match="No such file"):
        next(iter(made))


@pytest.mark.parametrize(("make", "storage"), [(as_zip, zip_storage), (as_lmdb, lmdb_storage)])
def test_a_member_that_is_too_large_is_not_read(tmp_path: Path, make: Make, storage: Any) -> None:
    one, root = storage(), make(tmp_path)
    with pytest.raises(ContentTooLargeError):
        one.read(f"{root}/0/0.png", 10)
    assert one.read(f"{root}/0/0.png", 1 << 20) == png(0)
    with pytest.raises(ValueError, match="names no member"):
        one.read(root, 10)
    one.close()
    one.close()


def test_a_member_whose_directory_lies(tmp_path: Path) -> None:
    """About its size, as a bomb does; or about its bytes, as a damaged file."""
    root = as_zip(tmp_path)
    data = (tmp_path / "a.zip").read_bytes()
    at = data.index(png(0))
    (tmp_path / "a.zip").write_bytes(data[: at + 60] + b"\xff\xff" + data[at + 62 :])
    with pytest.raises(ValueError, match=r"a\.zip, member 0/0\.png: Bad CRC-32"):
        zip_storage().read(f"{root}/0/0.png", 1 << 20)
