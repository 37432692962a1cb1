"""A source whose samples are what is known of the images of an ImageFrame.

    image frame --a copy, whose contents are noted when they are read--> load into a row that nobody sees
        --> status, reason, format, size, bytes, hash: the fields of this source

So an image is "ok" if, and only if, the frame's own `load` takes it, in a worker, within the limits of a loader. A worker that
an image ends is a matter for the loader, as in training: it starts another, and names the sample.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ringload.errors import ConfigError, ContentTooLargeError, missing
from ringload.fields import Field, Row, Worker
from ringload.images.formats import FORMATS, HEAD_BYTES, format_of
from ringload.images.header import has_its_end, size_of, suffix_is_of_another_format
from ringload.images.pillow import WORST_PIXEL_BYTES
from ringload.insight.check.verdict import OK, status_of
from ringload.sources.contents import Contents
from ringload.sources.fingerprints import Fingerprint
from ringload.sources.image_table import ImageFrame
from ringload.sources.stored_files import StoredFiles
from ringload.storage.read_ahead import open_regular
from ringload.workers.fill import reason_of

REASON_BYTES = 640
GLANCE_BYTES = 1 << 16  # of a file, that are read to see its header
TAIL_BYTES = 64

# What is known of a sample. `format`: its place in FORMATS and 1, or 0. `height` and `width` are as stored in the file, 0 if
# its header is not understood. `hash`: XXH3 of the content, 128 bits; zeros if the whole content was not read.
RECORD = np.dtype(
    [
        ("status", "u1"),
        ("format", "u1"),
        ("is_misnamed", "?"),
        ("is_hashed", "?"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("n_bytes", "<u8"),
        ("hash", "<u8", (2,)),
    ]
)


class NotedContents:
    """The contents of a frame, which notes what is read. See `contents.Contents`.

    Attributes: `content`, the last that was read, until the next is; None before, and where it could not be read. `n_bytes`:
    its size, also of one that was too large to be read.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self.names, self.ahead_bytes = contents.names, contents.ahead_bytes
        self.clear()

    def clear(self) -> None:
        """Let go of the last content."""
        self.content: memoryview | None = None
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._contents)

    def key(self, index: int) -> str:
        """The sample's path."""
        return self._contents.key(index)

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to read some contents."""
        self._contents.prefetch(indices)

    def is_ready(self, indices: np.ndarray) -> bool:
        """Whether these contents are there."""
        return self._contents.is_ready(indices)

    def forget(self, indices: np.ndarray) -> None:
        """Let go of what was read ahead."""
        self._contents.forget(indices)

    def version(self, index: int) -> tuple[int, int]:
        """A content's size and time."""
        return self._contents.version(index)

    def take(self, rows: np.ndarray) -> NotedContents:
        """The contents of some samples."""
        return NotedContents(self._contents.take(rows))

    def read(self, index: int, max_bytes: int) -> bytes | bytearray | memoryview:
        """A content, noted."""
        self.clear()
        try:
            content = self._contents.read(index, max_bytes)
        except ContentTooLargeError as error:
            self.n_bytes = error.n_bytes
            raise
        self.content = memoryview(content)
        self.n_bytes = len(self.content)
        return content

    @property
    def opener(self) -> Callable[[int], str] | None:
        """From a sample to the path of its file; None where contents are no local files."""
        contents = self._contents
        return contents.key if isinstance(contents, StoredFiles) and contents.is_local else None


class CheckedImages:
    """What is known of each image of a frame: fields of `RECORD`, and `reason (REASON_BYTES,) uint8`, which is UTF-8.

    Arguments:
        frame: the images, with the options by which they are loaded.
        fast: do not load an image whose header is understood, whose size is allowed, and whose file ends as it should. All
            others are loaded, so that no good image is called bad. Local files are not read to their end.

    Raises:
        ConfigError: `frame` is no ImageFrame. ImportError: xxhash is not installed.
    """

    def __init__(self, frame: ImageFrame, fast: bool = False) -> None:
        if not isinstance(frame, ImageFrame):
            raise ConfigError(f"only an ImageFrame or an ImageFolder can be checked, not {type(frame).__name__}")
        require_xxhash()
        self.frame, self.fast = frame, fast
        self._noted = NotedContents(copy.copy(frame.contents))
        self._loaded = frame.with_contents(self._noted)
        self._row: dict[str, np.ndarray] = {}
        self._most_pixels = frame.max_pixels  # that are surely within the limits of a worker
        self.fields = {name: Field(RECORD[name].shape, RECORD[name].base) for name in RECORD.names or ()}
        self.fields["reason"] = Field((REASON_BYTES,), "uint8")

    def __len__(self) -> int:
        return len(self.frame)

    # -- as the frame says --------------------------------------------------------------------------------------------

    random = property(lambda self: self._loaded.random)
    global_random = property(lambda self: self._loaded.global_random)
    refuses_large = property(lambda self: self._loaded.refuses_large)
    ahead_bytes = property(lambda self: self._loaded.ahead_bytes)

    @property
    def scratch_bytes(self) -> int:
        """That of the frame, and the row that nobody sees."""
        return self._loaded.scratch_bytes + self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return sum(field.row_bytes for field in self.frame.fields.values())

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker."""
        own = self._row_bytes
        max_bytes = None if worker.max_bytes is None else worker.max_bytes - own
        if max_bytes is not None:
            self._most_pixels = min(self.frame.max_pixels, (max_bytes - self.ahead_bytes) // WORST_PIXEL_BYTES)
        self._loaded.start(replace(worker, scratch_bytes=worker.scratch_bytes - own, max_bytes=max_bytes))

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to read contents that are read to their end."""
        if not self.fast or self._noted.opener is None:
            self._loaded.prefetch(indices)

    def describe(self, index: int) -> str:
        """The sample's path."""
        return self.frame.describe(index)

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """The rows of samples in the table."""
        return self.frame.rows_of(indices)

    def fingerprint(self) -> Fingerprint:
        """That of the frame."""
        return self.frame.fingerprint()

    def subset(self, indices: np.ndarray) -> CheckedImages:
        """What is known of some of the images."""
        return CheckedImages(self.frame.subset(indices), self.fast)

    # -- loading ------------------------------------------------------------------------------------------------------

    def load(self, index: int, rng: np.random.Generator | None, out: Row) -> None:
        """Load image `index`, and write what is known of it."""
        record = np.zeros((), RECORD)
        reason = b""
        if not self.fast or not self._glance(index, record):
            reason = self._load(index, rng, record)
        for name in RECORD.names or ():
            out[name] = record[name]
        out["reason"] = np.frombuffer(reason[:REASON_BYTES].ljust(REASON_BYTES, b"\0"), np.uint8)

    def _load(self, index: int, rng: np.random.Generator | None, record: np.ndarray) -> bytes:
        """Load an image as in training. Returns the reason why it is bad."""
        noted, reason, error = self._noted, "", None
        noted.clear()
        if not self._row:
            self._row = {name: np.zeros(field.shape, field.dtype) for name, field in self.frame.fields.items()}
        try:
            self._loaded.load(index, rng, Row(self._row))
        except Exception as raised:  # whatever a decoder raises: the sample is bad
            error, reason = raised, reason_of(raised)
        content, name = noted.content, ""
        record["n_bytes"] = noted.n_bytes
        if content is not None:
            name = self._note_header(index, content, record)
            record["hash"], record["is_hashed"] = hash_of(content), True
        record["status"] = OK if error is None else status_of(error, content, name)
        del error, content  # an error's frames hold what was read
        noted.clear()
        return reason.encode("utf-8", "replace")

    def _note_header(self, index: int, content: memoryview, record: np.ndarray) -> str:
        name = format_of(bytes(content[:HEAD_BYTES]))
        record["format"] = FORMATS.index(name) + 1 if name else 0
        record["height"], record["width"] = size_of(content)
        record["is_misnamed"] = suffix_is_of_another_format(self.frame.contents.names[index], name)
        return name

    def _glance(self, index: int, record: np.ndarray) -> bool:
        """Look at the beginning and the end of a content. False: it has to be loaded to tell whether it is good."""
        opener = self._noted.opener
        try:
            head, tail, n_bytes = glance(opener(index)) if opener is not None else self._whole(index)
        except Exception:  # loading says what is wrong
            return False
        name = self._note_header(index, head, record)
        record["n_bytes"] = n_bytes
        n_pixels = int(record["height"]) * int(record["width"])
        return 0 < n_pixels <= self._most_pixels and has_its_end(name, head, tail, n_bytes)

    def _whole(self, index: int) -> tuple[memoryview, memoryview, int]:
        content = memoryview(self._noted.read(index, self.scratch_bytes))
        return content, content[-TAIL_BYTES:], len(content)


def glance(path: str) -> tuple[memoryview, memoryview, int]:
    """The beginning and the end of a file, and its size in bytes.

    Raises:
        OSError, ValueError: it cannot be read, or is no regular file.
    """
    fds: list[int] = []
    try:
        n_bytes = open_regular(path, fds)
        head = os.pread(fds[0], GLANCE_BYTES, 0)
        tail = os.pread(fds[0], TAIL_BYTES, max(0, n_bytes - TAIL_BYTES))
    finally:
        for fd in fds:
            os.close(fd)
    return memoryview(head), memoryview(tail), n_bytes


def hash_of(content: memoryview) -> np.ndarray:
    """XXH3 of a content, 128 bits: `(2,) uint64`."""
    import xxhash

    return np.frombuffer(xxhash.xxh3_128_digest(content), "<u8")


def require_xxhash() -> None:
    """Check that xxhash is installed.

    Raises:
        ImportError: it is not.
    """
    try:
        import xxhash  # noqa: F401
    except ImportError as error:
        raise missing("ringload check", "xxhash", error) from error


def text_of(reason: Any) -> str:
    """The text of the field `reason` of one sample."""
    return bytes(reason).rstrip(b"\0").decode("utf-8", "replace")
