"""Any file system of fsspec as a storage: sftp://, hdfs://, webdav://, hf://, ..."""

from __future__ import annotations

import errno
from typing import Any

from ringload.errors import ContentTooLargeError, missing
from ringload.protocols import ByteRange, ContentStat
from ringload.storage.threaded import N_THREADS, ThreadedStorage

VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")

OF_ONE_PROCESS = ("memory",)  # workers would find nothing there


class FsspecStorage(ThreadedStorage):
    """The URLs of all protocols that fsspec knows. See `ringload.Storage`.

    Arguments:
        n_threads: how many contents are fetched at once, at most, by each worker.
        options: of the file system, as `fsspec.filesystem` takes them.
    """

    def __init__(self, n_threads: int = N_THREADS, **options: Any) -> None:
        super().__init__(n_threads)
        self._fsspec, self._options = require_fsspec(), options

    def stat(self, key: str) -> ContentStat:
        """Its length; and its ETag or time, if the file system tells."""
        system, path = self._place(key)
        found = system.info(path)
        return ContentStat(int(found["size"]), next((str(found[name]) for name in VERSIONS if found.get(name)), ""))

    def fetch(self, key: str, max_bytes: int) -> bytes:
        """The whole content of a file. One byte more is asked for, to see whether it is larger, without another request."""
        system, path = self._place(key)
        content: bytes = system.cat_file(path, start=0, end=max_bytes + 1)
        if len(content) > max_bytes:
            raise ContentTooLargeError(int(system.info(path)["size"]), max_bytes)
        return content

    def fetch_range(self, part: ByteRange) -> bytes:
        """Some bytes of a file."""
        system, path = self._place(part.key)
        content: bytes = system.cat_file(path, start=part.start, end=part.start + part.n_bytes)
        if part.version and self.stat(part.key).version != part.version:
            raise OSError(errno.ESTALE, "it has changed", part.key)
        return content

    def _place(self, key: str) -> tuple[Any, str]:
        return self._fsspec.core.url_to_fs(key, **self._options)  # type: ignore[no-any-return]


def require_fsspec() -> Any:
    """The module, imported when such URLs are read."""
    try:
        import fsspec  # type: ignore[import-untyped]
        import fsspec.core  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing("reading URLs of other schemes", "fsspec", error) from error
    return fsspec


def knows(scheme: str) -> bool:
    """Whether fsspec is installed, and has a file system for a scheme."""
    try:
        fsspec = require_fsspec()
    except ImportError:
        return False
    return scheme in fsspec.available_protocols() and scheme not in OF_ONE_PROCESS
