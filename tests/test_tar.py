"""Headers of tar archives: of each format as Python's tarfile finds them, and what is damaged or hostile."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from ringload.storage.tar import MAX_EXTENDED, MAX_EXTENDED_BYTES, TarError
from tests.tars import BLOCK, END, found_in, header, padded, tar_of

NAMES = ["a.jpg", "x" * 99 + ".jpg", "d/" * 60 + "b.jpg", "e" * 300 + "/c.jpg", "ä/ö ü.jpg", "./f.jpg", "no dot", "g.tar.gz"]
PARTS = {name: name.encode() * place for place, name in enumerate(NAMES)}


def files_of(archive: bytes) -> list[tuple[bytes, bytes]]:
    """(name, content) of each file, by the places that are found."""
    return [
        (one.name, archive[one.header + BLOCK : one.header + BLOCK + one.n_bytes])
        for one in found_in(archive)
        if one.is_file and zlib.crc32(archive[one.header : one.header + BLOCK]) == one.crc
    ]


@pytest.mark.parametrize("window_bytes", [1, 512, 1000, 1 << 20])
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(kind: int, window_bytes: int) -> None:
    archive = tar_of(PARTS, format=kind)
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        wanted = [(one.name.encode(), one.offset_data - BLOCK, one.size) for one in read]
    found = found_in(archive, window_bytes)
    assert [(one.name, one.header, one.n_bytes) for one in found] == wanted
    assert files_of(archive) == [(name.encode(), content) for name, content in PARTS.items()]


@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_archives_of_gnu_tar(tmp_path: Path, kind: str) -> None:
    """With a folder, a link, a hard link, a FIFO, and a file with holes."""
    names = ["1.jpg", "d/2.jpg"] if kind == "v7" else ["1.jpg", "d/2.jpg", "d/" + "e" * 90 + "/" + "f" * 80 + ".jpg"]
    for place, name in enumerate(names):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(name.encode() * 1000 * place)
    os.symlink("1.jpg", tmp_path / "x/s.jpg")
    os.link(tmp_path / "x/d/2.jpg", tmp_path / "x/z.jpg")
    if kind not in ("v7", "ustar"):
        os.mkfifo(tmp_path / "x/fifo.jpg")
        with open(tmp_path / "x/holes.jpg", "wb") as file:
            for place in range(40):
                file.seek(place << 20)
                file.write(b"x" * 4096)
    holes = ["-S"] if kind not in ("v7", "ustar") else []
    subprocess.run(["tar", *holes, "-C", tmp_path / "x", f"--format={kind}", "-cf", tmp_path / "x.tar", "."], check=True)
    archive = (tmp_path / "x.tar").read_bytes()
    found = found_in(archive)
    assert dict(files_of(archive)).keys() <= {f"./{name}".encode() for name in [*names, "z.jpg"]}
    assert sum(one.is_file for one in found) == len(names)  # one of the two names of d/2.jpg is a link
    contents = {content for _, content in files_of(archive)}
    assert contents == {name.encode() * 1000 * place for place, name in enumerate(names)}
    assert [one.name for one in found if one.is_sparse] == ([b"./holes.jpg"] if kind not in ("v7", "ustar") else [])
    assert len(found) == len(list((tmp_path / "x").rglob("*"))) + 1


def test_sizes_beyond_8_gb_are_read() -> None:
    """The members are there, but for their bytes, which are not needed to see that they are not."""
    for size in (b"\x80" + (1 << 40).to_bytes(11, "big"), b"77777777777\0"):
        with pytest.raises(
            TarError, match=r"member 'a.jpg' at byte 0 has [0-9,]{13,} bytes, and the archive ends at byte 2,048"
        ):
            found_in(header(b"a.jpg", size) + bytes(BLOCK) + END)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_an_archive_that_is_cut_anywhere_is_refused(kind: int) -> None:
    archive = tar_of({"ä.jpg" if kind == tarfile.PAX_FORMAT else "a.jpg": b"x" * 700, "b.cls": b"1"}, format=kind)
    last = archive.rindex(b"1") // BLOCK * BLOCK + BLOCK  # where the end begins
    for n_bytes in range(1, last + BLOCK):
        with pytest.raises(TarError, match=r"cut short|no end mark|no tar archive"):
            found_in(archive[:n_bytes])
    assert len(found_in(archive[: last + BLOCK])) == 2


def test_a_header_with_a_byte_that_changed_is_refused() -> None:
    archive = tar_of({"a.jpg": b"x" * 700, "b.jpg": b"y"}, format=tarfile.USTAR_FORMAT)
    second = found_in(archive)[1].header
    for place in (*range(BLOCK), *range(second, second + BLOCK)):
        damaged = bytearray(archive)
        damaged[place] ^= 0x04
        with pytest.raises(TarError, match=r"damaged|no tar archive"):
            found_in(bytes(damaged))


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", len(records), kind) + padded(records)


FILE = header(b"a.jpg", 3) + padded(b"abc")
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a negative size": (header(b"a.jpg", b"\xff" * 12) + END, "a number is negative"),
    "a negative size in octal": (header(b"a.jpg", b"-0000000003\0") + END, "a number is negative"),
    "a size that is none": (header(b"a.jpg", b"12x45678901\0") + END, "a number is none"),
    "a size with an underscore": (header(b"a.jpg", b"0000000_003\0") + END, "a number is none"),
    "a pax size that is none": (pax(b"12 size=-12\n") + FILE + END, r"the pax header at byte 0 has the size b'-12'"),
    "a pax size beyond the end": (pax(b"13 size=9999\n") + FILE + END, "has 9,999 bytes, and the archive ends"),
    "a pax size of many digits": (pax(b"1010 size=" + b"9" * 999 + b"\n") + FILE + END, "has the size b'9999"),
    "a pax record that is too long": (pax(b"99 path=b.jpg\n") + FILE + END, "the pax header at byte 0 is damaged"),
    "a pax record without an end": (pax(b"14 path=b.jpgx") + FILE + END, "the pax header at byte 0 is damaged"),
    "a pax record of length 0": (pax(b"0 path=b.jpg\n") + FILE + END, "the pax header at byte 0 is damaged"),
    "a pax record without a length": (pax(b"path=b.jpg\n") + FILE + END, "the pax header at byte 0 is damaged"),
    "a large pax header": (
        header(b"pax", MAX_EXTENDED_BYTES + 1, b"x") + bytes(MAX_EXTENDED_BYTES + BLOCK) + FILE + END,
        "has 1,048,577 bytes, more than 1,048,576",
    ),
    "a long name without an end": (header(b"n", 1 << 30, b"L") + FILE + END, "has 1,073,741,824 bytes, and the archive ends"),
    "many pax headers": (pax(b"14 path=b.jpg\n") * (MAX_EXTENDED + 1) + FILE + END, "more than 16 extended headers"),
    "a path for all members": (pax(b"14 path=b.jpg\n", b"g") + FILE + END, "gives all members a path or a size"),
    "an end after a pax header": (pax(b"14 path=b.jpg\n") + END, "it ends after an extended header"),
    "a map without an end": (
        header(b"a.jpg", 0, b"S", True) + b"\1" * BLOCK,
        "the map of the sparse file at byte 0 has no end",
    ),
    "two archives": (FILE + END + FILE + END, "data follow its end mark, at byte 1,024: archives that were joined by cat"),
    "no archive": (b"x" * 2048, "no tar archive"),
    "nothing": (b"", "no end mark"),
}


@pytest.mark.parametrize(("archive", "said"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_damaged_or_hostile_is_refused(archive: bytes, said: str) -> None:
    with pytest.raises(TarError, match=said):
        found_in(archive)


def test_checksums_of_signed_bytes_are_right_too() -> None:
    block = bytearray(header("ä.jpg".encode(), 0))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block)
    assert found_in(bytes(block) + END)[0].name == "ä.jpg".encode()


def test_random_bytes_are_refused_and_never_end_it(rng: Any) -> None:
    archive = tar_of(PARTS, format=tarfile.PAX_FORMAT)
    for _ in range(300):
        damaged = bytearray(archive)
        for place in rng.integers(0, len(archive), 3).tolist():
            damaged[place] = int(rng.integers(256))
        try:
            found = found_in(bytes(damaged))
        except TarError:
            continue
        assert all(one.header >= 0 and one.header + BLOCK + one.n_bytes <= len(damaged) for one in found)
