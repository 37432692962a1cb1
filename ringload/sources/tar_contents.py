"""The images of tar shards, read in place: see `contents.Contents`.

A read takes the member's header, too, and compares its CRC-32 with that of the index. The header has the member's name, size
and time. So where a shard was written anew or cut short, samples are bad, and never have bytes of another member. Of a local
shard, size and time are compared after each read, too: any change makes bad samples. Of a remote one that would be a request.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence

import numpy as np

from ringload.errors import ContentTooLargeError
from ringload.protocols import ByteRange
from ringload.sources.contents import version_of
from ringload.sources.shard_names import Shards
from ringload.sources.storage_owner import StorageOwner
from ringload.sources.stored_files import AHEAD_BYTES
from ringload.sources.string_column import Strings
from ringload.sources.tar_build import names_of
from ringload.sources.tar_samples import ShardIndex, change
from ringload.storage.ranges import RangedStorage, ranged, read_whole
from ringload.storage.registry import LOCAL, Factory, factory_of
from ringload.storage.tar import BLOCK

MAKE_ANEW = "the shard has changed since its index was read: make the source again"


class TarContents(StorageOwner[RangedStorage]):
    """Content `index` is a member of a shard.

    `names`: the shard and the member of each, `train-000.tar/cat/01.jpg`; `shards (N,) int32`: the number of its shard;
    `headers (N,) int64`: where the member's header begins; `sizes (N,) int64`: its bytes; `crcs (N,) uint32`: the CRC-32 of its
    header.
    """

    def __init__(self, shards: Shards, indexes: Sequence[ShardIndex]) -> None:
        names = names_of(shards.keys)
        self.names = _names(names, indexes)
        self.ahead_bytes = 0 if shards.scheme == LOCAL else AHEAD_BYTES
        self._folder = shards.keys[0][: len(shards.keys[0]) - len(names[0])]
        self._of = shards
        self._stats = [index.stat for index in indexes]
        self._factory: Factory = factory_of(shards.scheme)
        self._shards = np.repeat(np.arange(len(indexes), dtype=np.int32), [len(index) for index in indexes])
        self._headers, self._sizes = (np.concatenate([getattr(one, name) for one in indexes]) for name in ("headers", "sizes"))
        self._crcs = np.concatenate([index.crcs for index in indexes])
        self._freeze()

    def __len__(self) -> int:
        return len(self._headers)

    @property
    def shards(self) -> np.ndarray:
        """The number of the shard of each sample, `(N,) int32`."""
        return self._shards

    def key(self, index: int) -> str:
        """The path or URL of a shard, a slash, and the name of a member."""
        return self._folder + os.fsdecode(self.names[index])

    def take(self, rows: np.ndarray) -> TarContents:
        """Some of the contents, with a separate storage."""
        taken = object.__new__(TarContents)
        taken.__dict__.update(self.__getstate__())
        taken.names = self.names.take(rows)
        taken._shards, taken._headers, taken._sizes, taken._crcs = (
            array[rows] for array in (self._shards, self._headers, self._sizes, self._crcs)
        )
        taken._freeze()
        return taken

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to read some members, and do not wait for them."""
        self._own().prefetch_ranges([self._range(index) for index in indices.tolist()], self.ahead_bytes)

    def is_ready(self, indices: np.ndarray) -> bool:
        """Whether the members are there, if the storage tells."""
        ask = getattr(self._own(), "is_ready", None)
        return ask is None or bool(ask([self._range(index) for index in indices.tolist()]))

    def forget(self, indices: np.ndarray) -> None:
        """Let go of what was read ahead for these members, and was not read."""
        if (tell := getattr(self._own(), "forget", None)) is not None:
            tell([self._range(index) for index in indices.tolist()])

    def version(self, index: int) -> tuple[int, int]:
        """The size of its shard, and its time; for a remote one, a checksum of its version."""
        shard = self._shards[index]
        if self._of.scheme == LOCAL:
            return version_of(self._of.keys[shard])
        return self._stats[shard].n_bytes, zlib.crc32(self._stats[shard].version.encode())

    def read(self, index: int, max_bytes: int) -> bytes | bytearray | memoryview:
        """The content of a member, until the next is read.

        Raises:
            OSError: the shard cannot be read, or has changed since its index was read. ValueError: the member is empty.
            ContentTooLargeError: the member and its header have more than `max_bytes`.
        """
        part, storage = self._range(index), self._own()
        if part.n_bytes == BLOCK:
            raise ValueError(f"an empty file: {self.key(index)}")
        if part.n_bytes > max_bytes:
            raise ContentTooLargeError(part.n_bytes, max_bytes)
        try:
            content = memoryview(read_whole(storage, part, max_bytes))
        except OSError as error:
            changed = self._changed(storage, int(self._shards[index]))
            raise OSError(error.errno or errno.EIO, changed or error.strerror or str(error), self.key(index)) from error
        if changed := self._changed(storage, int(self._shards[index])):
            raise OSError(errno.ESTALE, changed, self.key(index))
        if zlib.crc32(content[:BLOCK]) != self._crcs[index]:
            raise OSError(errno.ESTALE, f"{MAKE_ANEW} (its header is another one)", self.key(index))
        return content[BLOCK:]

    def _changed(self, storage: RangedStorage, shard: int) -> str:
        """What has changed of a local shard, in words. Of a remote one, the storage compares the version."""
        if self._of.scheme != LOCAL:
            return ""
        try:
            now = storage.stat(self._of.keys[shard])
        except (OSError, ValueError):  # the error of the read says it
            return ""
        return "" if now == self._stats[shard] else f"{MAKE_ANEW} ({change(self._stats[shard], now)})"

    def _range(self, index: int) -> ByteRange:
        """A member with its header."""
        shard = self._shards[index]
        version = "" if self._of.scheme == LOCAL else self._stats[shard].version
        return ByteRange(self._of.keys[shard], int(self._headers[index]), BLOCK + int(self._sizes[index]), version)

    def _make_storage(self) -> RangedStorage:
        return ranged(self._factory(), self._of.scheme)

    def _freeze(self) -> None:
        for array in (self._shards, self._headers, self._sizes, self._crcs):
            array.flags.writeable = False  # so it is not compared with the workers' copies


def _names(shards: Sequence[str], indexes: Sequence[ShardIndex]) -> Strings:
    """The names of all members, that of its shard and a slash before each."""
    blobs, lengths = [], []
    for shard, index in zip(shards, indexes, strict=True):
        prefix = np.frombuffer(os.fsencode(shard) + b"/", np.uint8)
        wanted = index.lengths.astype(np.int64) + len(prefix)
        starts = np.cumsum(wanted) - wanted
        is_prefix = np.zeros(int(wanted.sum()), bool)
        is_prefix[(starts[:, None] + np.arange(len(prefix))).reshape(-1)] = True
        blob = np.empty(len(is_prefix), np.uint8)
        blob[is_prefix] = np.tile(prefix, len(index))
        blob[~is_prefix] = np.frombuffer(index.names, np.uint8)
        blobs.append(blob)
        lengths.append(wanted.astype(np.int32))
    all_lengths = np.concatenate(lengths)
    ends = np.cumsum(all_lengths, dtype=np.int64)
    return Strings(np.concatenate(blobs), ends - all_lengths, all_lengths)
