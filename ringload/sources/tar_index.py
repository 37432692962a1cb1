"""The index of tar shards: built once, by several threads, and kept in a file.

    MAGIC 16 bytes | length of the head, u64 | head, JSON | for each shard: its columns of bytes and arrays | CRC-32 of all, u32

All numbers are little-endian. The head has the suffixes of images, and of each shard its name, size, version, and how many
bytes its parts have. The file is written beside the shards, or where that is not possible into a cache folder, under another
name first. It is never trusted: a file that is damaged, or of other shards, is built anew with a warning; a shard of another
size or version, or without a column that is asked for, is read again. So the file may be deleted at any time.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ringload.protocols import ContentStat
from ringload.sources.tar_samples import ShardIndex

MAGIC = b"ringload tar 1\n\0"
ARRAYS: dict[str, np.dtype[Any]] = {
    "lengths": np.dtype("<i4"),
    "headers": np.dtype("<i8"),
    "sizes": np.dtype("<i8"),
    "crcs": np.dtype("<u4"),
}
HEAD_AT = len(MAGIC) + 8
END_BYTES = 4
MAX_FILE_NAME = 16  # hexadecimal digits

Saved = dict[str, ShardIndex]  # name of a shard -> its index


class IndexFileError(ValueError):
    """The file of an index is damaged, or of something else."""


def packed(shards: Mapping[str, ShardIndex], images: Sequence[str]) -> list[bytes]:
    """The file of an index, in pieces."""
    head: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for name, shard in shards.items():
        columns = {column: len(values) for column, values in shard.columns.items()}
        head.append(
            {
                "name": name,
                "n_bytes": shard.stat.n_bytes,
                "version": shard.stat.version,
                "n": len(shard),
                "names": len(shard.names),
                "columns": columns,
                "left_out": shard.left_out,
            }
        )
        arrays = (np.asarray(getattr(shard, array), dtype).tobytes() for array, dtype in ARRAYS.items())
        pieces += [shard.names, *shard.columns.values(), *arrays]
    text = json.dumps({"images": list(images), "shards": head}).encode()
    pieces = [MAGIC, len(text).to_bytes(8, "little"), text, *pieces]
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return [*pieces, crc.to_bytes(END_BYTES, "little")]


def unpacked(data: bytes, images: Sequence[str]) -> Saved:
    """The shards of a file; {} if it is of other suffixes of images.

    Raises:
        IndexFileError: it is damaged, or none.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise IndexFileError("it is no index of this version")
    if len(data) < HEAD_AT + END_BYTES or zlib.crc32(memoryview(data)[:-END_BYTES]) != int.from_bytes(
        data[-END_BYTES:], "little"
    ):
        raise IndexFileError("its checksum is wrong")
    start = HEAD_AT + int.from_bytes(data[len(MAGIC) : HEAD_AT], "little")
    try:
        head = json.loads(data[HEAD_AT:start])
        if head["images"] != list(images):
            return {}
        found = {}
        for one in head["shards"]:
            found[one["name"]], start = _shard(one, data, start)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexFileError(f"its head is not valid ({error})") from error
    if start != len(data) - END_BYTES:
        raise IndexFileError("its length is wrong")
    return found


def _shard(head: dict[str, Any], data: bytes, start: int) -> tuple[ShardIndex, int]:
    """A shard whose parts begin at `start`, and where they end."""

    def take(n_bytes: int) -> bytes:
        nonlocal start
        if not isinstance(n_bytes, int) or not 0 <= n_bytes <= len(data) - END_BYTES - start:
            raise IndexFileError(f"a part of {n_bytes} bytes")
        start += n_bytes
        return data[start - n_bytes : start]

    names = take(head["names"])
    columns = {str(name): take(n_bytes) for name, n_bytes in head["columns"].items()}
    arrays = {name: np.frombuffer(take(head["n"] * dtype.itemsize), dtype) for name, dtype in ARRAYS.items()}
    shard = ShardIndex(
        stat=ContentStat(int(head["n_bytes"]), str(head["version"])),
        names=names,
        columns=columns,
        left_out={str(what): (int(n), str(first)) for what, (n, first) in head["left_out"].items()},
        **arrays,
    )
    ends = shard.headers + shard.sizes
    is_inside = not len(shard) or (shard.headers.min() >= 0 and shard.sizes.min() >= 0 and ends.max() < shard.stat.n_bytes)
    if not is_inside or shard.lengths.sum() != len(names) or (shard.lengths < 1).any():
        raise IndexFileError(f"members of shard {head['name']!r} are not within it")
    return shard, start


def write(path: str, pieces: Sequence[bytes]) -> None:
    """Write a file under another name, and give it its name when it is complete: readers see all of it, or none.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        with open(unfinished, "xb") as file:
            file.writelines(pieces)
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise
