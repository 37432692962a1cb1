"""The encoded images of a table: where their bytes come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ringload.errors import ContentTooLargeError
from ringload.images.decoder import ImageDecoder
from ringload.sources.label_field import Label
from ringload.sources.string_column import Strings


class Contents(Protocol):
    """The content of each sample: the bytes of a file, of an archive's member, or of a cell of a table.

    It is pickled with its source. What a process opens belongs to that process: a fork opens it again.
    """

    names: Strings  # of the samples, for messages and for the fingerprint
    ahead_bytes: int  # that it keeps, at most, of contents that it has read ahead

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def key(self, index: int) -> str:
        """A sample in words: the path or URL of its content."""
        ...

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to read some contents, and do not wait for them."""
        ...

    def is_ready(self, indices: np.ndarray) -> bool:
        """Whether these contents can be read without waiting, as far as that is known."""
        ...

    def forget(self, indices: np.ndarray) -> None:
        """Let go of what was read ahead for these contents, and was not read."""
        ...

    def read(self, index: int, max_bytes: int) -> bytes | bytearray | memoryview:
        """A content, until the next is read: see `ringload.Storage.read`."""
        ...

    def version(self, index: int) -> tuple[int, int]:
        """A content's size in bytes and its time in ns, without reading it; (0, 0) where they are not known."""
        ...

    def take(self, rows: np.ndarray) -> Contents:
        """The contents of some samples. The copy opens its own files."""
        ...


def version_of(path: str) -> tuple[int, int]:
    """The size in bytes and the time in ns of a local file."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns % (1 << 64)


def read_and(
    contents: Contents, index: int, decoder: ImageDecoder, use: Callable[[bytes | bytearray | memoryview], None]
) -> None:
    """Read a content within the limits of `decoder`, and `use` it. It is freed when `use` returns, before the turn ends."""
    n_bytes = 0
    try:
        use(contents.read(index, decoder.shared_bytes))
    except ContentTooLargeError as error:
        n_bytes = error.n_bytes
    if n_bytes:
        with decoder.room_for(n_bytes):
            use(contents.read(index, n_bytes))


class ImageTable(NamedTuple):
    """What `ImageFrame` takes in place of a table with a column of paths: a table, and the content of each of its rows.
    If no column of it is asked for, the table is anything that has as many rows. `columns` are further fields."""

    table: Any  # pd.DataFrame
    contents: Contents
    columns: Sequence[Label] = ()
