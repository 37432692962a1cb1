"""The encoded images of a table: where their bytes come from."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

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

    def read(self, index: int, max_bytes: int) -> bytes | bytearray | memoryview:
        """A content, until the next is read: see `ringload.Storage.read`."""
        ...

    def take(self, rows: np.ndarray) -> Contents:
        """The contents of some samples. The copy opens its own files."""
        ...


class ImageTable(NamedTuple):
    """What `ImageFrame` takes in place of a table with a column of paths: a table, and the content of each of its rows. If no
    column of it is asked for, the table is anything that has as many rows."""

    table: Any  # pd.DataFrame
    contents: Contents
