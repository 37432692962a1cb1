"""Archives on this machine as storages: members of a .zip file, and values of an LMDB database.

    zip:///data/photos.zip/cat/1.jpg    the member cat/1.jpg
    lmdb:///data/photos.lmdb/cat/1.jpg  the value of the key cat/1.jpg (UTF-8)

The archive is what comes before the first `.zip/`, or `.lmdb/`. A process keeps MAX_OPEN archives open. An archive that has
changed since this process opened it is refused.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from ringload.errors import ContentTooLargeError, missing

MAX_OPEN = 8


def _identity(path: str) -> tuple[int, int, int, int]:
    if os.path.isdir(path):  # an LMDB environment
        path = os.path.join(path, "data.mdb")
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Archives:
    """A `Storage` of archives whose names end in `suffix`, which `open_archive(path)` opens."""

    def __init__(self, suffix: str, open_archive: Callable[[str], Any], read: Callable[[Any, str, int], bytes]) -> None:
        self._suffix, self._open_archive, self._read = suffix, open_archive, read
        self._open: dict[str, tuple[Any, tuple[int, ...]]] = {}

    def prefetch(self, keys: Sequence[str], max_bytes: int) -> None:
        """Nothing: the kernel reads ahead."""

    def read(self, key: str, max_bytes: int) -> bytes:
        """A member.

        Raises:
            OSError: there is no such archive or member, or the archive has changed. ValueError: it is damaged.
            ContentTooLargeError: the member is larger than `max_bytes`.
        """
        path, found, member = key.partition("://")[2].partition(f"{self._suffix}/")
        if not found or not member:
            raise ValueError(f"{key} names no member: a key is .../NAME{self._suffix}/MEMBER")
        return self._read(self._archive(path + self._suffix), member, max_bytes)

    def close(self) -> None:
        """Close the archives. Idempotent."""
        while self._open:
            self._open.popitem()[1][0].close()

    def _archive(self, path: str) -> Any:
        identity = _identity(path)
        archive, known = self._open.pop(path, (None, identity))
        if known != identity:
            archive.close()
            raise OSError(f"{path} has changed since it was opened: make the source again")
        while len(self._open) >= MAX_OPEN:
            self._open.pop(next(iter(self._open)))[0].close()
        archive = self._open_archive(path) if archive is None else archive
        self._open[path] = archive, identity
        return archive


def zip_storage() -> Archives:
    """The storage of zip://."""
    return Archives(".zip", _open_zip, _read_member)


def _open_zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: {error}") from error


def _read_member(archive: zipfile.ZipFile, member: str, max_bytes: int) -> bytes:
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise FileNotFoundError(f"{archive.filename} has no member {member}") from None
    if info.file_size > max_bytes:
        raise ContentTooLargeError(info.file_size, max_bytes)
    try:
        with archive.open(info) as opened:
            content = opened.read(info.file_size + 1)
            rest = opened.read(1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:  # encrypted, a method
        raise ValueError(f"{archive.filename}, member {member}: {error}") from error
    if len(content) != info.file_size or rest:
        raise ValueError(f"{archive.filename}, member {member}: it has another size than the directory says")
    return content


def lmdb_storage() -> Archives:
    """The storage of lmdb://."""
    return Archives(".lmdb", _open_lmdb, _read_value)


class _Environment:
    """An LMDB environment. LMDB allows one of a path in a process: sources share it, and a fork closes its parent's first."""

    shared: ClassVar[WeakValueDictionary[str, _Environment]] = WeakValueDictionary()

    def __init__(self, lmdb: Any, path: str) -> None:
        self.pid = os.getpid()
        self.lmdb = lmdb.open(path, subdir=os.path.isdir(path), readonly=True, lock=False, readahead=False, create=False)

    def __del__(self) -> None:
        if "lmdb" in self.__dict__:
            self.lmdb.close()

    def close(self) -> None:
        """Nothing: it is closed when no source of this process has it."""


def _open_lmdb(path: str) -> _Environment:
    try:
        import lmdb
    except ImportError as error:
        raise missing("reading lmdb:// paths", "lmdb", error) from error
    there = _Environment.shared.get(os.path.realpath(path))
    if there is not None and there.pid != os.getpid():
        there.lmdb.close()  # this process's copy
        there = None
    try:
        opened = there or _Environment(lmdb, path)
    except lmdb.Error as error:
        raise OSError(f"{path}: {error}") from error
    _Environment.shared[os.path.realpath(path)] = opened
    return opened


def opened_by(path: str) -> int:
    """The process that has opened the LMDB database which this one uses; 0 if it uses none."""
    there = _Environment.shared.get(os.path.realpath(path))
    return 0 if there is None else there.pid


def _read_value(environment: _Environment, key: str, max_bytes: int) -> bytes:
    import lmdb

    database = environment.lmdb
    try:
        with database.begin(buffers=True) as transaction:
            value = transaction.get(key.encode())
            if value is None:
                raise FileNotFoundError(f"{database.path()} has no key {key}")
            if len(value) > max_bytes:
                raise ContentTooLargeError(len(value), max_bytes)
            return bytes(value)
    except lmdb.Error as error:
        raise OSError(f"{database.path()}, key {key}: {error}") from error
