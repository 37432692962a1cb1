"""The files that a column of paths names, by the storage of their scheme."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ringload.protocols import Storage
from ringload.sources.contents import version_of
from ringload.sources.paths import Paths
from ringload.storage.registry import LOCAL, Factory

AHEAD_BYTES = 16 << 20  # of each worker's scratch, for bytes that a storage reads ahead: some hundred photographs


class StoredFiles:
    """File `index` is the one that path `index` names. See `contents.Contents`.

    Owns its storage, which each process makes when it first needs a file.
    """

    _storage: Storage | None = None
    _pid = 0  # of the process whose storage it is

    def __init__(self, paths: Paths, factory: Factory, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.paths, self._factory = paths, factory
        self.names = paths.names
        self.is_local = paths.scheme == LOCAL
        self.ahead_bytes = 0 if self.is_local else ahead_bytes  # local ones are in the kernel's cache

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        """The absolute path of a file, or its URL."""
        return self.paths.key(index)

    def take(self, rows: np.ndarray) -> StoredFiles:
        """Some of the files, with a separate storage."""
        return StoredFiles(self.paths.take(rows), self._factory, self.ahead_bytes)

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to read some files, and do not wait for them."""
        self._own().prefetch([self.paths.key(index) for index in indices.tolist()], self.ahead_bytes)

    def is_ready(self, indices: np.ndarray) -> bool:
        """Whether the files are there, if the storage tells."""
        storage = self._own()
        if (ask := getattr(storage, "is_ready", None)) is None:
            return True
        return bool(ask([self.paths.key(index) for index in indices.tolist()]))

    def forget(self, indices: np.ndarray) -> None:
        """Let go of what was read ahead for these files, and was not read."""
        if (tell := getattr(self._own(), "forget", None)) is not None:
            tell([self.paths.key(index) for index in indices.tolist()])

    def read(self, index: int, max_bytes: int) -> bytes | bytearray | memoryview:
        """The content of a file, until the next is read: see `ringload.Storage`."""
        try:
            return self._own().read(self.paths.key(index), max_bytes)
        except OSError as error:
            raise self.paths.explained(error, index) from None

    def version(self, index: int) -> tuple[int, int]:
        """The size and the time of a local file; (0, 0) of others."""
        if not self.is_local:
            return 0, 0
        try:
            return version_of(self.paths.key(index))
        except OSError as error:
            raise self.paths.explained(error, index) from None

    def _own(self) -> Storage:
        if self._storage is None or self._pid != os.getpid():  # a fork makes a new one
            self._storage, self._pid = self._factory(), os.getpid()
        return self._storage

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_storage", "_pid")}

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:  # at the interpreter's end, `os` may be gone before
        if self._storage is not None and self._pid == getpid():
            self._storage.close()
