"""The index: a column of strings as arrays, which producers share without a Python object a row.

`blob (n_bytes,) uint8` holds the strings one after another; string i is `blob[starts[i] : starts[i] + lengths[i]]`, with
`starts (N,) int64` and `lengths (N,) int32`. A part of the column has fewer starts and the same blob.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.errors import ConfigError

CHUNK = 1 << 16  # strings encoded at a time: what is in flight is small beside the column


@dataclass(frozen=True)
class Strings:
    """A column of paths, as the file system has them: bytes."""

    blob: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, values: Sequence[Any], what: str) -> Strings:
        """From str, bytes or Path; `what` names a row, followed by its number, in messages.

        Raises:
            ConfigError: a value is no path; the message names its row.
        """
        blob = bytearray()
        lengths = np.empty(len(values), np.int32)
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            try:
                encoded = [os.fsencode(value) for value in chunk]
            except (TypeError, UnicodeEncodeError):
                encoded = []
            joined = b"".join(encoded)
            if len(encoded) < len(chunk) or b"" in encoded or b"\0" in joined:
                raise ConfigError(_what_is_wrong(chunk, start, what))
            blob += joined
            lengths[start : start + len(encoded)] = [len(one) for one in encoded]
        starts = np.zeros(len(values), np.int64)
        np.cumsum(lengths[:-1], out=starts[1:])
        return cls(np.frombuffer(blob, np.uint8), starts, lengths)

    def take(self, rows: np.ndarray) -> Strings:
        """Those of some rows."""
        return Strings(self.blob, self.starts[rows], self.lengths[rows])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> bytes:
        if not 0 <= row < len(self.starts):
            raise IndexError(f"row {row} of {len(self.starts)}")
        start = int(self.starts[row])
        return self.blob[start : start + int(self.lengths[row])].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return (self[row] for row in range(len(self)))


def _what_is_wrong(values: Sequence[Any], first_row: int, what: str) -> str:
    """The first value that is no path, in words."""
    for row, value in enumerate(values, first_row):
        try:
            encoded = os.fsencode(value)
        except (TypeError, UnicodeEncodeError):
            return f"{what} {row} is {value!r}: a path is a str, bytes or a Path"
        if not encoded:
            return f"{what} {row} is empty: drop it, or name a file"
        if b"\0" in encoded:
            return f"{what} {row} is {value!r}: a path cannot hold a NUL"
    raise AssertionError("one of them is wrong")
