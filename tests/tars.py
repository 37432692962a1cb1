"""Tar archives for tests: by Python's tarfile, by hand, and in a storage in memory that reads ranges."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ringload import ByteRange, ContentStat
from ringload.storage.ranges import Window
from ringload.storage.tar import Member, members
from tests.memory_storage import MemoryStorage

BLOCK = 512


class RangedStorage(MemoryStorage):
    """A storage in memory that reads ranges, as that of a bucket does. An empty range is a fault of the caller."""

    def stat(self, key: str) -> ContentStat:
        self._log.write(f"stat {key}\n")
        content = self._fetch(key)
        return ContentStat(len(content), hashlib.sha256(content).hexdigest())

    def read_range(self, range: ByteRange, max_bytes: int) -> bytes:  # noqa: A002
        self._log.write(f"range {range.key} {range.start} {range.n_bytes}\n")
        content = self._fetch(range.key)
        assert 0 < range.n_bytes <= max_bytes
        assert range.start >= 0
        if range.start + range.n_bytes > len(content):
            raise OSError(errno.EIO, "the content ends before", range.key)
        return content[range.start : range.start + range.n_bytes]

    def prefetch_ranges(self, ranges: Sequence[ByteRange], max_bytes: int) -> None:
        for one in ranges:
            self._log.write(f"ahead {one.key} {one.start} {one.n_bytes}\n")


def found_in(archive: bytes, window_bytes: int = 1024) -> list[Member]:
    """The members of an archive. Nothing outside of it is asked for."""
    storage = RangedStorage({"x": archive})
    try:
        return list(members(Window(storage, "x", len(archive), window_bytes)))
    finally:
        storage.close()


def tar_of(parts: Mapping[str, bytes] | Iterable[tuple[Any, bytes]], **options: Any) -> bytes:
    """An archive of contents by their names, or by TarInfos."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", **options) as archive:
        for name, content in parts.items() if isinstance(parts, Mapping) else parts:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return written.getvalue()


def header(name: bytes, n_bytes: int | bytes, kind: bytes = b"0", has_map: bool = False) -> bytes:
    """A header by hand, with whatever is in its field of the size, and a right checksum. `has_map`: a further block of the map
    of a sparse file follows."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124:136] = n_bytes if isinstance(n_bytes, bytes) else b"%011o\0" % n_bytes
    block[156:157] = kind
    block[482] = has_map
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


END = bytes(2 * BLOCK)


def write_shards(photos: Path, folder: Path, n_shards: int = 3) -> list[Path]:
    """The 24 photographs of the fixture in shards, with .cls and .json: in the order of photos.csv."""
    rows = [line.split(",") for line in (photos / "photos.csv").read_text().splitlines()[1:]]
    paths = []
    for number in range(n_shards):
        parts = {}
        for key, binary, multi, path in rows[number * len(rows) // n_shards : (number + 1) * len(rows) // n_shards]:
            parts[f"{key}.cls"] = str("abc".index(multi)).encode()
            parts[f"{key}.jpg"] = (photos / path).read_bytes()
            parts[f"{key}.json"] = f'{{"bi": {binary}, "of": {{"multi": "{multi}"}}, "w": {len(parts)}}}'.encode()
        paths.append(folder / f"train-{number:03d}.tar")
        paths[-1].write_bytes(tar_of(parts))
    return paths


def index_file(folder: Path) -> Path:
    """The file of the index beside shards."""
    (path,) = (one for one in folder.iterdir() if one.name.startswith(".ringload-"))
    return path


def rewrite(path: Path, content: bytes, keep_time: bool = False) -> None:
    """Write a file in place; with its former time, or with one that is later by a second."""
    status = os.stat(path)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (0 if keep_time else 10**9)))
