"""The files that a column of paths names, by the storage of their scheme."""

from __future__ import annotations

import numpy as np

from ringload.protocols import Storage
from ringload.sources.contents import version_of
from ringload.sources.paths import Paths
from ringload.sources.storage_owner import StorageOwner
from ringload.storage.registry import LOCAL, Factory

AHEAD_BYTES = 16 << 20  # of each worker's scratch, for bytes that a storage reads ahead: some hundred photographs


class StoredFiles(StorageOwner[Storage]):
    """File `index` is the one that path `index` names. See `contents.Contents`."""

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

    def _make_storage(self) -> Storage:
        return self._factory()
