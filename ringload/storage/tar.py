"""The members of a tar archive, by its headers alone: where the bytes of each are.

    a member                                   | the next
    [extended header, name or pax records] ... | header, 512 bytes | data, padded to 512 |

The formats are v7, ustar, GNU (long names, numbers in base 256) and pax (path, size). The end is a block of zeros. An archive
is read as far as this says, and not guessed at: what is damaged, cut short, or longer than its content raises `TarError`, with
the byte at which it is. So each member lies within the archive, and memory stays below `MAX_EXTENDED_BYTES`, whatever the
headers say.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

BLOCK = 512
ZEROS = bytes(BLOCK)
MAX_EXTENDED_BYTES = 1 << 20  # of one extended header. A path has 4,096 bytes at most
MAX_EXTENDED = 16  # extended headers before one member: GNU tar and pax write two at most
NOT_KNOWN = 1 << 62  # more bytes than an archive has
OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
SPARSE_END = {True: 482, False: 504}  # where a header, and a further block of the map, say whether a block follows

FILES, PLAIN_TYPES = b"07\0", b"0\0"
LINKS_AND_DEVICES = b"123456"  # whose headers no data follow
GNU_NAME, GNU_LINK, PAX, PAX_GLOBAL, SPARSE = b"L", b"K", b"xX", b"g", b"S"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarError(ValueError):
    """An archive is damaged, or of a kind that cannot be read; the text says at which byte."""


class TarContent(Protocol):
    """The bytes of an archive. `n_bytes`: how many; NOT_KNOWN if that is found out by reading them."""

    @property
    def n_bytes(self) -> int: ...

    def read(self, start: int, n_bytes: int) -> bytes:
        """Some bytes, in ascending order."""
        ...

    def has_rest(self, start: int) -> bool:
        """Whether bytes other than 0 follow."""
        ...


class Member(NamedTuple):
    """A member: `name`; where its header is (`n_bytes` of data begin 512 bytes later) and the CRC-32 of that header; whether it
    is a file whose bytes are its data, and if not, whether it is a sparse file."""

    name: bytes
    header: int
    n_bytes: int
    crc: int
    is_file: bool
    is_sparse: bool


class _Extended:
    """What extended headers say of the next member."""

    def __init__(self) -> None:
        self.n = 0
        self.name: bytes | None = None
        self.n_bytes: int | None = None
        self.is_sparse = False


def members(content: TarContent) -> Iterator[Member]:
    """The members of an archive, in their order.

    Raises:
        TarError: see the class. OSError: the storage cannot read it.
    """
    at, extended = 0, _Extended()
    while at < content.n_bytes:
        if at + BLOCK > content.n_bytes:
            raise TarError(f"it ends within a header, at byte {content.n_bytes:,}: it is cut short")
        block = content.read(at, BLOCK)
        if block == ZEROS:
            _check_end(content, at, extended)
            return
        kind, n_bytes = _checked(block, at)
        is_about_next = kind in GNU_NAME + GNU_LINK + PAX + PAX_GLOBAL
        if kind in LINKS_AND_DEVICES:
            n_bytes = 0
        elif extended.n_bytes is not None and not is_about_next:
            n_bytes = extended.n_bytes
        data = at + BLOCK if kind != SPARSE else _after_sparse_map(content, at, block)
        if data + n_bytes > content.n_bytes:
            raise TarError(
                f"member {_shown(extended.name or _name(block))} at byte {at:,} has {n_bytes:,} bytes, and the archive ends at "
                f"byte {content.n_bytes:,}: it is cut short, or damaged"
            )
        if is_about_next:
            _extend(extended, kind, content, at, n_bytes)
        else:
            name = extended.name if extended.name is not None else _name(block)
            is_sparse = extended.is_sparse or kind == SPARSE
            is_file = kind in FILES and not is_sparse and not (kind in PLAIN_TYPES and name.endswith(b"/"))
            yield Member(name, at, n_bytes, zlib.crc32(block), is_file, is_sparse)
            extended = _Extended()
        at = data + -(-n_bytes // BLOCK) * BLOCK
    raise TarError(
        f"it has no end mark, a block of zeros, at byte {content.n_bytes:,}: it is cut short, or still being written. If it is "
        "known to be complete, `truncate --size=+1024 FILE` adds the mark"
    )


def compression_of(head: bytes) -> str:
    """The compression of a content that begins with `head`; "" if it is none that is known."""
    return next((name for begin, name in COMPRESSED.items() if head.startswith(begin)), "")


def _checked(block: bytes, at: int) -> tuple[bytes, int]:
    """(type, size) of a header whose checksum is right."""
    field = block[148:156]
    wanted, total = _number(field, at), sum(block) - sum(field) + 8 * ord(" ")
    if wanted != total and wanted != total - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):  # of signed bytes
        raise TarError("it is no tar archive" if at == 0 else f"the header at byte {at:,} is damaged: its checksum is wrong")
    return block[156:157], _number(block[124:136], at)


def _number(field: bytes, at: int) -> int:
    """A number of a header: octal digits, or binary after a first byte of 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = OCTAL.fullmatch(field)
    if match is None:
        wrong = "is negative" if field[0] == 0xFF or b"-" in field else "is none"
        raise TarError(f"it is no tar archive, or the header at byte {at:,} is damaged: a number {wrong} ({field!r})")
    return int(match[1] or b"0", 8)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] != b"ustar\0":  # GNU's has other fields there
        return name
    prefix = block[345:500].partition(b"\0")[0]
    return prefix + b"/" + name if prefix else name


def _after_sparse_map(content: TarContent, at: int, block: bytes) -> int:
    """Where the data of a sparse file of GNU's old format begin: after the blocks of its map."""
    data, flag = at + BLOCK, block[SPARSE_END[True]]
    while flag:
        if data + BLOCK > content.n_bytes:
            raise TarError(f"the map of the sparse file at byte {at:,} has no end")
        flag = content.read(data, BLOCK)[SPARSE_END[False]]
        data += BLOCK
    return data


def _extend(extended: _Extended, kind: bytes, content: TarContent, at: int, n_bytes: int) -> None:
    """Note what an extended header says of the next member."""
    extended.n += 1
    if extended.n > MAX_EXTENDED:
        raise TarError(f"more than {MAX_EXTENDED} extended headers of one member, at byte {at:,}")
    if n_bytes > MAX_EXTENDED_BYTES:
        raise TarError(f"the extended header at byte {at:,} has {n_bytes:,} bytes, more than {MAX_EXTENDED_BYTES:,}")
    data = content.read(at + BLOCK, n_bytes)
    if kind == GNU_NAME:
        extended.name = data.partition(b"\0")[0]
    elif kind != GNU_LINK:
        _extend_by_pax(extended, _records(data, at), kind == PAX_GLOBAL, at)


def _extend_by_pax(extended: _Extended, records: dict[bytes, bytes], is_global: bool, at: int) -> None:
    is_sparse = any(name.startswith(b"GNU.sparse") for name in records)
    if is_global and (is_sparse or records.keys() & {b"path", b"size"}):
        raise TarError(f"the global header at byte {at:,} gives all members a path or a size")
    if b"path" in records:
        extended.name = records[b"path"]
    if b"size" in records:
        if not records[b"size"].isdigit() or len(records[b"size"]) > 20:
            raise TarError(f"the pax header at byte {at:,} has the size {records[b'size'][:40]!r}")
        extended.n_bytes = int(records[b"size"])
    extended.is_sparse |= is_sparse
    extended.name = records.get(b"GNU.sparse.name", extended.name)


def _records(data: bytes, at: int) -> dict[bytes, bytes]:
    """The records of a pax header, each "LENGTH NAME=VALUE\\n"."""
    found, start = {}, 0
    while start < len(data) and data[start]:
        digits = data[start : start + 8].partition(b" ")[0]
        stop = start + int(digits) if digits.isdigit() else start
        name, equals, value = data[start + len(digits) + 1 : stop - 1].partition(b"=")
        if stop <= start or stop > len(data) or data[stop - 1 : stop] != b"\n" or not equals:
            raise TarError(f"the pax header at byte {at:,} is damaged")
        found[name] = value
        start = stop
    return found


def _check_end(content: TarContent, at: int, extended: _Extended) -> None:
    """Members that follow the end, as in two archives joined by `cat`, would be lost without a word."""
    if extended.n:
        raise TarError(f"it ends after an extended header, at byte {at:,}")
    if content.has_rest(at):
        raise TarError(
            f"data follow its end mark, at byte {at:,}: archives that were joined by cat? Join them by tar --concatenate"
        )


def _shown(name: bytes) -> str:
    return repr(name[:200].decode(errors="replace"))
