"""Contents that are read once, from their beginning to their end, decompressed if they are compressed.

    storage -- ranges of CHUNK_BYTES, some of them ahead --> RangedFile --> gzip, zstd or nothing --> Forward

Memory does not depend on the content: a chunk, the state of the decompressor, and what the caller asks for. So a content that
decompresses to a thousand times its size takes time, and no memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ringload.protocols import ByteRange
from ringload.storage.ranges import RangedStorage, read_whole
from ringload.storage.tar import NOT_KNOWN, TarError, compression_of

CHUNK_BYTES = 1 << 20
N_AHEAD = 4  # chunks that are asked for before they are read
ZSTD_WINDOW_LOG = 23  # up to `zstd -19`: 8 MB
OPEN_BYTES = {"": 3 << 20, "gzip": 3 << 20, "zstd": 12 << 20}  # memory of an open content: chunks, and the decompressor
SUFFIXES = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".tzst": "zstd"}


class RangedFile(io.RawIOBase):
    """A content of a storage as a file that is read forward.

    Raises:
        OSError, ValueError: it cannot be read, or has changed while it was read.
    """

    def __init__(self, storage: RangedStorage, key: str, ahead_bytes: int, is_versioned: bool) -> None:
        super().__init__()
        self._storage, self._key, self._ahead_bytes = storage, key, ahead_bytes
        self.stat = storage.stat(key)
        self._version = self.stat.version if is_versioned else ""
        self._chunk, self._at, self._start = b"", 0, 0  # the chunk begins at `_start`
        self._asked: list[ByteRange] = []  # ahead, and not read

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some bytes; 0 at the end."""
        if self._at == len(self._chunk):
            self._read_chunk()
        data = self._chunk[self._at : self._at + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def head(self) -> bytes:
        """The first bytes, before any is read."""
        self._read_chunk()
        return self._chunk[:8]

    def skip(self, n_bytes: int) -> None:
        """Leave out some bytes, without reading whole chunks of them."""
        n_here = min(n_bytes, len(self._chunk) - self._at)
        self._at += n_here
        if n_bytes > n_here:
            self._let_go(self._asked)
            self._start, self._chunk, self._at = min(self._tell() + n_bytes - n_here, self.stat.n_bytes), b"", 0

    def check(self) -> None:
        """Raise if the content has changed since it was opened."""
        if (now := self._storage.stat(self._key)) != self.stat:
            raise OSError(f"it has changed while it was read: {self.stat} became {now}")

    def close(self) -> None:
        """Let go of what was asked for ahead. Idempotent."""
        self._let_go(self._asked)
        super().close()

    def _tell(self) -> int:
        return self._start + self._at

    def _read_chunk(self) -> None:
        start, end = self._tell(), self.stat.n_bytes
        if start >= end:
            return
        first = start + len(self._asked) * CHUNK_BYTES
        starts = range(first, min(start + N_AHEAD * CHUNK_BYTES, end), CHUNK_BYTES)
        ahead = [ByteRange(self._key, one, min(CHUNK_BYTES, end - one), self._version) for one in starts]
        self._asked += ahead
        if self._ahead_bytes and ahead:
            self._storage.prefetch_ranges(ahead, self._ahead_bytes)
        part = self._asked[0]
        self._chunk, self._start, self._at = bytes(read_whole(self._storage, part, CHUNK_BYTES)), start, 0
        self._let_go([part])

    def _let_go(self, parts: Sequence[ByteRange]) -> None:
        if self._ahead_bytes and parts and (tell := getattr(self._storage, "forget", None)) is not None:
            tell(parts)
        self._asked = [one for one in self._asked if one not in parts]


class Forward:
    """The decompressed bytes of a content: a `tar.TarContent` whose length is not known.

    Raises:
        TarError: it ends before what is asked for, or is of a compression that cannot be read.
        Exception: the decompressor finds that it is damaged.
    """

    n_bytes = NOT_KNOWN

    def __init__(self, file: RangedFile, name: str) -> None:
        self._raw, self._at = file, 0
        self._file: Any = opened_by(compression_of(file.head()), name)(file)

    def read(self, start: int, n_bytes: int) -> bytes:
        """Some bytes, which begin where the last ones ended, or later."""
        return self.read_array(start, n_bytes).tobytes()

    def read_array(self, start: int, n_bytes: int) -> np.ndarray:
        """The same as a new array `(n_bytes,) uint8`."""
        self._skip(start - self._at)
        made = np.empty(n_bytes, np.uint8)
        n_read = self._read_into(made.data)
        if n_read < n_bytes:
            raise TarError(f"it ends at byte {self._at:,}, before its end mark: it is cut short, or still being written")
        return made

    def has_rest(self, start: int) -> bool:
        """Whether bytes other than 0 follow. All are read, as the checksum of gzip is at the end."""
        self._skip(max(0, start - self._at))  # the end mark was read
        made = np.empty(CHUNK_BYTES, np.uint8)
        while n_read := self._read_into(made.data):
            if made[:n_read].any():
                return True
        return False

    def _skip(self, n_bytes: int) -> None:
        if self._file is self._raw:
            self._raw.skip(n_bytes)
            self._at += n_bytes
            return
        made = np.empty(min(n_bytes, CHUNK_BYTES), np.uint8)
        while n_bytes > 0 and (n_read := self._read_into(made.data[: min(n_bytes, CHUNK_BYTES)])):
            n_bytes -= n_read

    def _read_into(self, buffer: memoryview) -> int:
        """How many bytes were read: fewer at the end."""
        n_read = 0
        while n_read < len(buffer):
            n = self._file.readinto(buffer[n_read : n_read + CHUNK_BYTES])  # a decompressor makes a copy of these
            if not n:
                break
            n_read += n
        self._at += n_read
        return n_read


def compression_named(name: str) -> str:
    """The compression that the suffix of a shard's name stands for; "" for none.

    Raises:
        TarError: it cannot be read here.
    """
    kind = next((kind for suffix, kind in SUFFIXES.items() if name.partition("?")[0].lower().endswith(suffix)), "")
    if kind == "zstd":
        opened_by(kind, name)
    return kind


def opened_by(compression: str, name: str) -> Callable[[RangedFile], Any]:
    """What opens a content of a compression.

    Raises:
        TarError: it cannot be read here.
    """
    if not compression:
        return lambda file: file
    if compression == "gzip":
        import gzip

        return lambda file: gzip.GzipFile(fileobj=file, mode="rb")
    if compression != "zstd":
        raise TarError(f"it is compressed by {compression}, which is not read: compress it by gzip, or not at all")
    zstd = _zstd()
    if zstd is None:
        raise TarError(
            "it is compressed by zstd, which Python has from 3.14 on: pip install backports.zstd, or compress it by gzip"
        )
    if not name.partition("?")[0].lower().endswith((".zst", ".tzst")):
        raise TarError("it is compressed by zstd: name it .tar.zst, as more memory is set aside for these")
    limit = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
    return lambda file: zstd.ZstdFile(file, options=limit)


def _zstd() -> Any:
    """The module of the standard library, or what stands for it before Python 3.14; None: there is neither."""
    import importlib

    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
