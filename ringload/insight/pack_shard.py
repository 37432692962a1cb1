"""Writes one tar shard of `ringload pack`, so that a complete one survives whatever ends the process.

    .NAME.tar.unfinished --written, synced, read back--> record .ringload-pack/NAME.json --> NAME.tar

A record says of which samples and options its shard was made (`plan`), and has the CRC-32 of the whole shard. The record is
there before the shard has its name. So a shard with its name is complete: the next run reads it, compares the CRC-32, and keeps
it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ringload.errors import ConfigError
from ringload.insight.pack_image import Resized
from ringload.protocols import ByteRange
from ringload.sources.tar_index import write
from ringload.storage.local import LocalStorage
from ringload.storage.ranges import Window
from ringload.storage.tar import BLOCK, members

RECORDS = ".ringload-pack"  # the folder of records
CHUNK_BYTES = 1 << 20
MODE = 0o444  # of members, as WebDataset's writer has it


class Item(NamedTuple):
    """A sample to be packed: its key, its file, the text of its `.cls`, if any, and of its `.json`."""

    key: str
    path: str
    label: str | None
    about: str


@dataclass(frozen=True)
class ShardTask:
    """A shard to be written: where, of which samples, and how its images are changed, if they are."""

    out: Path
    name: str
    items: list[Item]
    resized: Resized | None
    skip_bad: bool

    @property
    def path(self) -> Path:
        """The shard."""
        return self.out / f"{self.name}.tar"

    @property
    def record(self) -> Path:
        """Its record."""
        return self.out / RECORDS / f"{self.name}.json"

    def plan(self) -> str:
        """A checksum of what the shard is made of: samples, sizes and times of their files, options."""
        files = [(status.st_size, status.st_mtime_ns) for status in (os.stat(item.path) for item in self.items)]
        return hashlib.sha256(json.dumps([self.items, files, self.resized, self.skip_bad]).encode()).hexdigest()


class ShardResult(NamedTuple):
    """What has become of a shard: was it kept, was it damaged before, how many images and bytes it has, which are left out."""

    was_kept: bool
    was_damaged: bool
    n_images: int
    n_bytes: int
    left_out: list[str]


def make_shard(task: ShardTask) -> ShardResult:
    """Write a shard; or keep it, if it is there and whole.

    Raises:
        ConfigError: there is a shard of that name that is of other samples or options, or an image cannot be packed.
        OSError: a file cannot be read or written.
    """
    plan, was_damaged = task.plan(), False
    if task.path.exists():
        record = _record(task)
        if record is None or record.get("plan") != plan:
            made = "was not made by this pack" if record is None else "was packed from other files, or with other options"
            raise ConfigError(f"{task.path} {made}: remove it, or pack into another folder")
        if _checksum(task.path) == (record["n_bytes"], record["crc32"]):
            return ShardResult(True, False, record["n_images"], record["n_bytes"], record["left_out"])
        was_damaged = True
    unfinished = task.out / f".{task.name}.tar.unfinished"
    wanted, left_out = _write(task, unfinished)
    _verify(unfinished, wanted)
    n_bytes, crc = _checksum(unfinished)
    n_images = len(task.items) - len(left_out)
    record = {"plan": plan, "n_images": n_images, "n_bytes": n_bytes, "crc32": crc, "left_out": left_out}
    write(str(task.record), [json.dumps(record).encode()])
    os.replace(unfinished, task.path)
    return ShardResult(False, was_damaged, n_images, n_bytes, left_out)


def _record(task: ShardTask) -> dict[str, Any] | None:
    """The record of a shard; None if there is none, or if it is damaged."""
    try:
        found = json.loads(task.record.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and {"plan", "n_images", "n_bytes", "crc32", "left_out"} <= found.keys() else None


def _write(task: ShardTask, path: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Write the members: (name and CRC-32 of each, what was left out)."""
    wanted: list[tuple[str, int]] = []
    left_out: list[str] = []
    with (
        open(path, "wb") as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=CHUNK_BYTES) as archive,
    ):
        for item in task.items:
            try:
                parts = _members(item, task.resized)
            except (OSError, ValueError) as error:
                if not task.skip_bad:
                    raise ConfigError(f"{item.path} cannot be packed: {error}. Leave such files out by --skip-bad") from error
                left_out.append(f"{item.path}: {error}")
                continue
            for suffix, content in parts:
                info = tarfile.TarInfo(f"{item.key}.{suffix}")
                info.size, info.mode = len(content), MODE
                archive.addfile(info, io.BytesIO(content))
                wanted.append((info.name, zlib.crc32(content)))
        archive.close()
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is read back from the disk
    return wanted, left_out


def _members(item: Item, resized: Resized | None) -> list[tuple[str, bytes]]:
    """(suffix, content) of each member of a sample, sorted by suffix as WebDataset's writer does."""
    before = os.stat(item.path)
    content = Path(item.path).read_bytes()
    now = os.stat(item.path)
    if (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns) or len(content) != now.st_size:
        raise ValueError("the file has changed while it was read")
    suffix = os.path.splitext(item.path)[1].lower().removeprefix(".")
    if resized is not None and (smaller := resized.of(content)) is not None:
        suffix, content = "jpg", smaller
    parts = {suffix: content, "json": item.about.encode()}
    if item.label is not None:
        parts["cls"] = item.label.encode()
    return sorted(parts.items())


def _verify(path: Path, wanted: list[tuple[str, int]]) -> None:
    """Read a shard back, as TarShards does, and compare each member."""
    storage = LocalStorage()
    try:
        stat = storage.stat(str(path))
        found = 0
        for member in members(Window(storage, str(path), stat.n_bytes, BLOCK)):
            content = storage.read_range(ByteRange(str(path), member.header + BLOCK, member.n_bytes), member.n_bytes)
            if found >= len(wanted) or (member.name.decode(), zlib.crc32(content)) != wanted[found]:
                raise OSError(f"{path}: member {member.name.decode()} is not read back as it was written: is the disk damaged?")
            found += 1
        if found != len(wanted):
            raise OSError(f"{path}: {found:,} members of {len(wanted):,} are read back: is the disk damaged?")
    finally:
        storage.close()


def _checksum(path: Path) -> tuple[int, int]:
    """(bytes, CRC-32) of a file."""
    n_bytes = crc = 0
    for chunk in _chunks(path):
        n_bytes, crc = n_bytes + len(chunk), zlib.crc32(chunk, crc)
    return n_bytes, crc


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
