"""The index: a column of strings as arrays, which workers share without a Python object a row.

`blob (n_bytes,) uint8` holds the strings one after another; string i is `blob[starts[i] : starts[i] + lengths[i]]`, with
`starts (N,) int64` and `lengths (N,) int32`. A part of the column has fewer starts and the same blob.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

OFFSETS = {"string": np.int32, "large_string": np.int64}  # of Arrow's types
NO_FILES = (
    "ImageFrame reads files by their paths: write the images to files, or give the loader a function load(index, rng, out) "
    "that decodes them"
)
CHUNK = 1 << 16  # strings encoded at a time, so that temporary arrays are small


@dataclass(frozen=True)
class Strings:
    """A column of paths, as the file system has them: bytes."""

    blob: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.blob, self.starts, self.lengths):
            array.flags.writeable = False  # so it is not compared with the workers' copies

    @classmethod
    def of(cls, values: pd.Series[Any], what: str, name_of: Callable[[int], str] = str) -> Strings:
        """From str, bytes or Path; `what` is followed by a row's `name_of(number)` in messages.

        Raises:
            ConfigError: a value is no path; the message names its row.
        """
        blobs, lengths = [np.empty(0, np.uint8)], np.empty(len(values), np.int32)
        row = 0
        for blob, counted in _of_arrow(values) or _of_python(values, what, name_of):
            blobs.append(blob)
            lengths[row : row + len(counted)] = counted
            row += len(counted)
        starts = np.zeros(len(values), np.int64)
        np.cumsum(lengths[:-1], out=starts[1:])
        return cls(np.concatenate(blobs), starts, lengths)  # a copy: the table's memory may be a mapped file, which may change

    def take(self, rows: np.ndarray) -> Strings:
        """The strings of some rows."""
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


def _of_arrow(values: pd.Series[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The column's own memory, (bytes, lengths) a chunk, where pandas keeps UTF-8; [] if not, or if a value is no path."""
    is_arrow = hasattr(values.dtype, "pyarrow_dtype") or str(getattr(values.dtype, "storage", "")).startswith("pyarrow")
    if not is_arrow or sys.getfilesystemencoding() != "utf-8":
        return []
    found = []
    for chunk in values.array.__arrow_array__().chunks:
        if str(chunk.type) not in OFFSETS:
            return []
        if not len(chunk):
            continue
        _, offsets, text = chunk.buffers()
        ends = np.frombuffer(offsets, OFFSETS[str(chunk.type)])[chunk.offset : chunk.offset + len(chunk) + 1]
        lengths = np.diff(ends)
        if not lengths.all():
            return []
        blob = np.frombuffer(text, np.uint8)[ends[0] : ends[-1]]
        if not blob.min():  # a NUL
            return []
        found.append((blob, lengths))
    return found


def _of_python(values: pd.Series[Any], what: str, name_of: Callable[[int], str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(bytes, lengths) of CHUNK rows at a time."""
    for start in range(0, len(values), CHUNK):
        try:
            chunk = values.iloc[start : start + CHUNK].tolist()
        except UnicodeDecodeError as error:  # Arrow forbids it, but its from_buffers allows it
            raise ConfigError(
                f"{what} {start} or a later one is no UTF-8 ({error}), and another is empty, missing or holds a NUL: drop "
                "that, or give the paths as bytes"
            ) from error
        try:
            joined = _joined(chunk)
        except (TypeError, UnicodeEncodeError):
            joined = b""
        ends = np.flatnonzero(np.frombuffer(joined, np.uint8) == 0)
        lengths = np.diff(ends, prepend=-1) - 1
        if len(ends) != len(chunk) or not lengths.all():
            raise ConfigError(_what_is_wrong(chunk, start, what, name_of))
        yield np.frombuffer(joined.replace(b"\0", b""), np.uint8), lengths


def _joined(values: list[Any]) -> bytes:
    """Paths as the file system has them, a NUL after each."""
    try:
        return ("\0".join(values) + "\0").encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
    except TypeError:  # not all of them are str
        return b"\0".join([*map(os.fsencode, values), b""])


def _image_text(value: Any) -> str:
    """A text for an image that is given in place of its path; "" if the value is no image."""
    from ringload.images.formats import HEAD_BYTES, format_of

    if isinstance(value, bytes | bytearray) and b"\0" in value and (name := format_of(bytes(value[:HEAD_BYTES]))):
        return f"the {len(value):,} bytes of an image ({name}), and no path. {NO_FILES}"
    if isinstance(value, dict) and "bytes" in value:
        paths = "If it has paths, too, df[column].str['path'] are those. " if value.get("path") else ""
        return f"a dict with the bytes of an image, as Hugging Face's tables have it, and no path. {paths}{NO_FILES}"
    if not isinstance(value, os.PathLike) and hasattr(value, "__array_interface__"):  # of NumPy, Pillow
        return f"an image ({type(value).__module__}.{type(value).__name__}), and no path. {NO_FILES}"
    return ""


def _what_is_wrong(values: Sequence[Any], start: int, what: str, name_of: Callable[[int], str]) -> str:
    """The message for the first value that is no path. `values` begin in row `start`."""
    for number, value in enumerate(values, start):
        row = f"{what} {name_of(number)}"
        if image := _image_text(value):
            return f"{row} has {image}"
        try:
            encoded = os.fsencode(value)
        except (TypeError, UnicodeEncodeError):
            return f"{row} is {short(value)}: a path is a str, bytes or a Path"
        if not encoded:
            return f"{row} is empty: drop it, or name a file"
        if b"\0" in encoded:
            if isinstance(value, bytes):
                return f"{row} has {len(value):,} bytes with NULs, maybe the content of a file, and no path. {NO_FILES}"
            return f"{row} is {short(value)}: a path cannot hold a NUL"
    raise AssertionError("all values are paths")
