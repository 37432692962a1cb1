"""What owns a storage: each process makes it when it first needs it, and closes it when the owner is freed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ringload.protocols import Storage

Owned = TypeVar("Owned", bound=Storage)


class StorageOwner(Generic[Owned]):
    """The base class of contents that are read by a storage. A copy, and a fork, make their own."""

    _storage: Owned | None = None
    _pid = 0  # of the process whose storage it is

    def _make_storage(self) -> Owned:
        raise NotImplementedError

    def _own(self) -> Owned:
        if self._storage is None or self._pid != os.getpid():
            self._storage, self._pid = self._make_storage(), os.getpid()
        return self._storage

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_storage", "_pid")}

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:  # at the interpreter's end, `os` may be gone before
        if self._storage is not None and self._pid == getpid():
            self._storage.close()
