"""A part of a stream of tar shards, in a worker: its shards one after another, each from its beginning to its end.

shard -> Forward (decompressed) -> members -> samples: members with one key that follow one another -> EncodedRow

A sample has an image: samples without one are left out, with a warning. What is wrong with one sample (two images, no label,
too large) is raised in its place, and reading goes on. Where a shard is damaged, one error names it, and what follows in that
shard is lost; reading goes on with the next.

The place of a part is (shards read to their end, samples given of the next). A reader that goes on there opens that shard, and
leaves out so many samples by their headers: so a sample is counted by its headers alone, whatever is wrong with its contents.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

from ringload.checks import short, warn
from ringload.images.decoder import ImageDecoder
from ringload.sources.image_rows import EncodedRow, room_for
from ringload.sources.shard_names import Shards
from ringload.sources.storage_owner import StorageOwner
from ringload.sources.stored_files import AHEAD_BYTES
from ringload.sources.stream_labels import StreamLabel
from ringload.sources.tar_columns import Column, values_of
from ringload.sources.tar_samples import META
from ringload.storage.forward import Forward, RangedFile
from ringload.storage.ranges import RangedStorage, ranged
from ringload.storage.registry import LOCAL, factory_of
from ringload.storage.tar import BLOCK, Member, members

MAX_TEXT_BYTES = 1 << 20  # of a member of text or JSON


class TarParts(StorageOwner[RangedStorage]):
    """The factory of a stream of tar shards: part p of n has the shards p, p + n, ..."""

    def __init__(
        self,
        shards: Shards,
        images: Sequence[str],
        columns: Sequence[Column],
        labels: Sequence[StreamLabel],
        decoder: ImageDecoder,
    ) -> None:
        self.shards, self.decoder, self.labels = shards, decoder, labels
        self.ahead_bytes = 0 if shards.scheme == LOCAL else AHEAD_BYTES
        self.images = frozenset(image.encode() for image in images)
        self.columns = {one.suffix: [other for other in columns if other.suffix == one.suffix] for one in columns}
        self.checksum = zlib.crc32("\0".join(shards.keys).encode(errors="surrogateescape"))
        self._factory = factory_of(shards.scheme)

    def __call__(self, part: int, n_parts: int, epoch: int) -> TarPart:
        if n_parts > len(self.shards.keys):
            raise ValueError(
                f"there are {len(self.shards.keys):,} shards for {n_parts:,} parts (parts= of each rank): each part needs a "
                "shard, so give fewer parts="
            )
        return TarPart(self, self.shards.keys[part::n_parts])

    def open(self, key: str) -> RangedFile:
        """A shard."""
        is_local = self.shards.scheme == LOCAL
        return RangedFile(self._own(), key, self.ahead_bytes, not is_local)

    def _make_storage(self) -> RangedStorage:
        return ranged(self._factory(), self.shards.scheme)


class TarPart:
    """The samples of some shards, as an iterator that has `state` and `seek`."""

    def __init__(self, of: TarParts, keys: Sequence[str]) -> None:
        self._of, self._keys = of, keys
        self._shard = self._n = 0
        self._n_bytes = 0  # of the shard that is open; of the one that is sought
        self._samples: Iterator[EncodedRow | Exception] | None = None
        self._last: EncodedRow | None = None
        self._has_warned = False

    def __iter__(self) -> TarPart:
        return self

    def __next__(self) -> EncodedRow:
        if self._last is not None:
            self._last.release()  # it may have been left out
            self._last = None
        while self._shard < len(self._keys):
            key = self._keys[self._shard]
            try:
                if self._samples is None:
                    self._samples = self._open(key)
                found = next(self._samples, None)
            except Exception as error:  # of a storage, a decompressor, or the archive
                n_given = self._n
                self._go_on()
                what = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise ValueError(f"shard {key}: {what}. What follows its first {n_given:,} samples is lost") from error
            if found is None:
                self._go_on()
                continue
            self._n += 1
            if isinstance(found, Exception):
                raise found
            self._last = found
            return found
        raise StopIteration

    def state(self) -> dict[str, int]:
        """Where it goes on."""
        return {"of": self._of.checksum, "shard": self._shard, "n": self._n, "n_bytes": self._n_bytes}

    def seek(self, state: dict[str, int]) -> None:
        """Go on where `state` says.

        Raises:
            ValueError: the state is one of other shards.
        """
        if state["of"] != self._of.checksum:
            raise ValueError("the state is that of a stream of other shards, or of shards in another order")
        self._shard, self._n, self._n_bytes = state["shard"], state["n"], state["n_bytes"]

    def _go_on(self) -> None:
        self._shard, self._n, self._n_bytes, self._samples = self._shard + 1, 0, 0, None

    def _open(self, key: str) -> Iterator[EncodedRow | Exception]:
        file = self._of.open(key)
        n_bytes = file.stat.n_bytes
        if self._n and n_bytes != self._n_bytes:
            raise ValueError(f"it has changed since the state was saved: {self._n_bytes:,} bytes became {n_bytes:,}")
        self._n_bytes = n_bytes
        return self._samples_of(key, file, self._n)

    def _samples_of(self, key: str, file: RangedFile, n_skipped: int) -> Iterator[EncodedRow | Exception]:
        """The samples of a shard, without the first ones."""
        sample: _Sample | None = None
        with closing(file), ExitStack() as at_end:
            at_end.callback(lambda: sample and sample.release())  # of the last one, if the shard is damaged behind it
            content, left_out = Forward(file, key), b""
            for member in members(content):
                begin = member.name.rfind(b"/") + 1
                dot = member.name.find(b".", begin)
                if dot <= begin or META.match(member.name):
                    continue
                if sample is None or sample.key != member.name[:dot]:
                    if sample is not None and sample.has_image:
                        n_skipped -= 1
                        if n_skipped < 0:
                            yield sample.row()
                    elif sample is not None:
                        left_out = left_out or sample.key
                    sample = _Sample(self._of, key, member.name[:dot], n_skipped > 0)
                sample.add(member, member.name[dot + 1 :].lower(), content)
            if sample is not None and sample.has_image and n_skipped <= 0:
                yield sample.row()
            file.check()
            if left_out and not self._has_warned:
                self._has_warned = True
                warn(f"shard {key}: samples without an image are left out; the first is {short(_text(left_out))}")


class _Sample:
    """What was found of a sample. `is_skipped`: its contents are not read."""

    def __init__(self, of: TarParts, shard: str, key: bytes, is_skipped: bool) -> None:
        self._of, self._shard, self.key, self._is_skipped = of, shard, key, is_skipped
        self.has_image = False
        self._image = b""
        self._content: Any = None
        self._values: dict[str, Any] = {}
        self._problem: ValueError | None = None
        self.release: Callable[[], None] = lambda: None

    def add(self, member: Member, suffix: bytes, content: Forward) -> None:
        """Read a member, if it is wanted."""
        is_image, columns = suffix in self._of.images, self._of.columns.get(suffix)
        if not (is_image or columns) or (not member.is_file and member.name.endswith(b"/")):
            return
        try:
            self._check(member, is_image, columns)
            release = room_for(self._of.decoder, member.n_bytes) if is_image and not self._is_skipped else None
        except ValueError as error:
            self._note(member, str(error))
            release = None
        self.has_image |= is_image
        if self._problem is not None or self._is_skipped:
            return
        if is_image:
            assert release is not None
            self._image, self.release = member.name, release
            self._content = content.read_array(member.header + BLOCK, member.n_bytes).data
        if columns:
            text = content.read(member.header + BLOCK, member.n_bytes) if not is_image else bytes(self._content or b"")
            try:
                values = values_of(columns, text)
            except ValueError as error:
                self._note(member, str(error))
                return
            self._values.update(zip((column.name for column in columns), values, strict=True))

    def _check(self, member: Member, is_image: bool, columns: list[Column] | None) -> None:
        if not member.is_file:
            what = "a sparse file: pack it again, without --sparse" if member.is_sparse else "a link, or no file"
            raise ValueError(f"it is {what}")
        if is_image and self.has_image:
            raise ValueError(
                f"it and {short(_text(self._image))} are images of one sample: say which suffix is the image, image="
            )
        if columns and columns[0].name in self._values:
            raise ValueError("its sample has it twice")
        if is_image and not member.n_bytes:
            raise ValueError("an empty file")
        if columns and member.n_bytes > MAX_TEXT_BYTES:
            raise ValueError(f"{member.n_bytes:,} bytes: more than {MAX_TEXT_BYTES:,} are not read as text")

    def _note(self, member: Member, problem: str) -> None:
        self._problem = self._problem or ValueError(f"{self._shard}/{_text(member.name)}: {problem}")

    def row(self) -> EncodedRow | Exception:
        """The sample, or what is wrong with it."""
        name = f"{self._shard}/{_text(self._image)}"
        try:
            if self._problem is None:
                values = {label.name: label.value(self._values.get(label.column)) for label in self._of.labels}
                return EncodedRow(name, self._content, values, self.release)
        except ValueError as error:
            self._problem = ValueError(f"{name}: {error}")
        self.release()
        self._content = None
        return self._problem


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
