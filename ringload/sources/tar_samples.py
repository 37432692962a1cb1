"""The samples of one tar shard, by WebDataset's convention.

The members of one sample have one key: the path up to the first dot of its last part. The rest is the suffix, in lower case:
`cat/01.seg.png` is the member `seg.png` of the sample `cat/01`. The sample's image is the member with a suffix of images.

Left out are: hidden files (`.DS_Store`, `._01.jpg`), members without a dot, WebDataset's own (`__name__`), folders, and samples
without an image. A sample that cannot be read rightly is an error: two members of one name, two images, sparse files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.protocols import ContentStat
from ringload.sources.tar_columns import MAX_BYTES, Column, values_of
from ringload.storage.ranges import RangedStorage, Window
from ringload.storage.tar import BLOCK, Member, TarError, compression_of, members

META = re.compile(rb"__[^/]*__(?:$|/)")


@dataclass(frozen=True)
class ShardIndex:
    """Where the images of one shard are, and the values of its columns.

    `names`: the images' members, one after another, with `lengths (n,) int32`; `headers (n,) int64`: where each member's header
    begins; `sizes (n,) int64`: its bytes; `crcs (n,) uint32`: the CRC-32 of its header. `columns`: name -> a list of n values,
    as JSON. `left_out`: how many samples have no image, how many images are links, and the first of each.
    """

    stat: ContentStat
    names: bytes
    lengths: np.ndarray
    headers: np.ndarray
    sizes: np.ndarray
    crcs: np.ndarray
    columns: dict[str, bytes]
    left_out: dict[str, tuple[int, str]]

    def __len__(self) -> int:
        return len(self.headers)


@dataclass(slots=True)
class _Sample:
    """What was found of a sample."""

    image: Member | None = None
    values: dict[str, Any] = field(default_factory=dict)


def read_shard(
    storage: RangedStorage,
    key: str,
    stat: ContentStat,
    images: Collection[bytes],
    columns: Sequence[Column],
    window_bytes: int,
) -> ShardIndex:
    """The samples of a shard, in the order of their first members.

    Arguments:
        images: the suffixes of images. columns: those whose members are read, too.
        window_bytes: how much is read at a time.

    Raises:
        ConfigError: the shard cannot be read, or is no tar archive, or holds something that cannot be read rightly.
    """
    try:
        content = Window(storage, key, stat.n_bytes, window_bytes)
        if name := compression_of(content.read(0, min(8, stat.n_bytes))):
            raise TarError(
                f"it is compressed by {name}, so that a member can be read only after all members before it: decompress it "
                "(gunzip, unzstd, unxz), or read it from its beginning to its end, by ringload.TarStream"
            )
        found = _Shard(key, content, images, columns)
        for member in members(content):
            found.add(member)
        if (now := storage.stat(key)) != stat:
            raise TarError(f"it has changed while it was read: {change(stat, now)}")
    except (OSError, ValueError) as error:
        raise ConfigError(f"shard {key}: {getattr(error, 'strerror', None) or error}") from error
    return found.index(stat)


def change(before: ContentStat, now: ContentStat) -> str:
    """What has changed of a shard, in words."""
    if before.n_bytes != now.n_bytes:
        return f"{before.n_bytes:,} bytes became {now.n_bytes:,}"
    return f"version {before.version} became {now.version}"


class _Shard:
    """Collects the samples of one shard."""

    def __init__(self, key: str, content: Window, images: Collection[bytes], columns: Sequence[Column]) -> None:
        self._key, self._content, self._images = key, content, images
        self._columns = columns
        self._by_suffix = {one.suffix: [column for column in columns if column.suffix == one.suffix] for one in columns}
        self._samples: dict[bytes, _Sample] = {}
        self._links: list[bytes] = []

    def add(self, member: Member) -> None:
        """Note a member, if it is of a sample."""
        name = member.name
        begin = name.rfind(b"/") + 1
        dot = name.find(b".", begin)
        if dot <= begin or META.match(name):
            return
        suffix = name[dot + 1 :].lower()
        is_image, columns = suffix in self._images, self._by_suffix.get(suffix)
        if not member.is_file:
            if member.is_sparse and (is_image or columns):
                raise TarError(f"member {short(_text(name))} is a sparse file: extract it and pack it again, without --sparse")
            if is_image and not name.endswith(b"/"):
                self._links.append(name)
            return
        sample = self._samples.get(name[:dot])
        if sample is None:
            sample = self._samples[name[:dot]] = _Sample()
        if is_image:
            if sample.image is not None:
                raise TarError(_two(sample.image.name, name))
            sample.image = member
        if columns:
            self._read(member, sample, columns)

    def _read(self, member: Member, sample: _Sample, columns: list[Column]) -> None:
        """Note the values of columns."""
        name = short(_text(member.name))
        if columns[0].name in sample.values:
            raise TarError(f"it has the member {name} twice: which is the right one?")
        if member.n_bytes > MAX_BYTES:
            raise TarError(f"member {name} has {member.n_bytes:,} bytes: more than {MAX_BYTES:,} are not read as text")
        content = self._content.read(member.header + BLOCK, member.n_bytes)
        try:
            values = values_of(columns, content)
        except ValueError as error:
            raise TarError(f"member {name}: {error}") from error
        sample.values.update(zip((column.name for column in columns), values, strict=True))

    def index(self, stat: ContentStat) -> ShardIndex:
        """What was found."""
        whole = [one for one in self._samples.values() if one.image is not None]
        images = [one.image for one in whole if one.image is not None]
        without = [_text(key) for key, one in self._samples.items() if one.image is None]
        links = [_text(name) for name in self._links]
        return ShardIndex(
            stat,
            b"".join(one.name for one in images),
            np.array([len(one.name) for one in images], np.int32),
            np.array([one.header for one in images], np.int64),
            np.array([one.n_bytes for one in images], np.int64),
            np.array([one.crc for one in images], np.uint32),
            {c.name: json.dumps([one.values.get(c.name) for one in whole]).encode() for c in self._columns},
            {what: (len(found), found[0]) for what, found in (("samples", without), ("links", links)) if found},
        )


def _two(one: bytes, other: bytes) -> str:
    if one == other:
        return f"it has the member {short(_text(one))} twice: which is the right one?"
    return (
        f"{short(_text(one))} and {short(_text(other))} are images of one sample: say which suffix is the image, "
        f"image='{_text(one).rpartition('/')[2].partition('.')[2].lower()}'"
    )


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
