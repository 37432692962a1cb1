"""Files that a loader should survive: one table of them, how each is made, and what is said of it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ringload import ImageFrame
from ringload.storage.local import LocalStorage
from tests.helpers import photo

HEIGHT, WIDTH = 36, 48
SIGNATURE = b"\x89PNG\r\n\x1a\n"
UNKNOWN = "cannot identify image file"
REFUSED = "."  # refused in the words of whichever decoder looks at it


@dataclass(frozen=True)
class Case:
    """`make(path, out)` makes what `path` names, or returns another path; `out` is a folder that nothing may be written to.
    `said` is what its error says; "" if it is a good image. `listed(path)` happens when it is in the source, and
    `opened(path)` once a worker has it open."""

    make: Callable[[Path, Path], Any]
    said: str
    opened: Callable[[Path], None] | None = None
    listed: Callable[[Path], None] | None = None


def image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """An image file. Its options are Pillow's."""
    file = io.BytesIO()
    Image.fromarray(photo(1, HEIGHT, WIDTH)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file (ISO 15948, 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(*entries: tuple[int, int, int], content: bytes = b"") -> bytes:
    """A TIFF file of (tag, type, value)s with its pixels at 8."""
    content += b"\0" * (len(content) % 2)
    tags = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(entries)) + tags + bytes(4)


def png(*chunks: bytes, height: int = HEIGHT, width: int = WIDTH, rows: bytes | None = None) -> bytes:
    """A PNG file with chunks before its pixels; `rows` are what is deflated."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in photo(1, HEIGHT, WIDTH)) if rows is None else rows)
    return SIGNATURE + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def with_size(kind: str, height: int, width: int) -> bytes:
    """A small file that says that it is large."""
    if kind == "PNG":
        return png(height=height, width=width)
    data = bytearray(image(kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "TIFF":
        first = struct.unpack_from("<I", data, 4)[0]
        for entry in range(first + 2, first + 2 + 12 * struct.unpack_from("<H", data, first)[0], 12):
            if (tag := struct.unpack_from("<H", data, entry)[0]) in (256, 257):
                data[entry : entry + 12] = struct.pack("<HHII", tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


class Payload:
    """Its unpickling writes a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder / f"unpickled-{os.urandom(4).hex()}"),)


def object_array(out: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Payload(out)], object), allow_pickle=True)
    return file.getvalue()


def torch_file(out: Path) -> bytes:
    """As torch.save writes it: a zip with a pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(out)))
    return file.getvalue()


def holds(content: bytes | Callable[[Path], bytes], said: str) -> Case:
    """A file with this content."""
    return Case(lambda path, out: path.write_bytes(content if isinstance(content, bytes) else content(out)) and None, said)


def listen(path: Path, out: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def good(path: Path, out: Path) -> None:
    path.write_bytes(image("JPEG"))


def below_a_file(path: Path, out: Path) -> str:
    path.touch()
    return f"{path}/x.jpg"


def closed_to_all(path: Path, out: Path) -> None:
    good(path, out)
    path.chmod(0)


PROGRESSIVE = image("JPEG", progressive=True)
RANDOM = np.random.default_rng(1).bytes(3000)
BOMB = zlib.compress(bytes(100_000_000))
LARGE = b"".join(chunk(b"zTXt", b"k%d\0\0" % number + zlib.compress(bytes(1_000_000))) for number in range(80))

SIZE = ((256, 4, WIDTH), (257, 4, HEIGHT))
TIFFS = {  # headers that promise what is not there, or ask for what there is not
    "TIFF with a tile of 4 GB": holds(
        tiff(*SIZE, (258, 3, 8), (262, 3, 1), (322, 4, 65536), (323, 4, 65536), (324, 4, 8)), REFUSED
    ),
    "TIFF of 16 bits with a tile of 4 GB": holds(
        tiff(*SIZE, (258, 3, 16), (262, 3, 1), (322, 4, 65536), (323, 4, 65536)), REFUSED
    ),
    "TIFF of 65535 values a pixel": holds(tiff(*SIZE, (258, 3, 16), (262, 3, 1), (277, 3, 65535)), "65535 values a pixel"),
    "TIFF of no pixels": holds(tiff(*SIZE, (258, 3, 16), (262, 3, 1)), REFUSED),
    "TIFF of 64-bit floats that is cut short": holds(tiff(*SIZE, (258, 3, 64), (262, 3, 1), (273, 4, 8), (339, 3, 3)), REFUSED),
    "TIFF whose directory is itself": holds(b"II*\0\0\0\0\0", "a TIFF file: "),
    "TIFF whose directory is far away": holds(b"II+\0\x08\0\0\0" + b"\xff" * 8, "a TIFF file: its header is cut short"),
    "BMP of bit fields that is cut short": holds(
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 70, 56, WIDTH, HEIGHT, 1, 32, 3, 0, 0, 0, 0, 0) + bytes(range(1, 17)),
        "a BMP file: ",
    ),
    "PGM of 16 bits that is cut short": holds(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + bytes(100), "a PNM file: "),
    "PGM of 65536 x 65536": holds(b"P5 65536 65536 65535\n", "65,536 x 65,536 pixels: more than max_pixels"),
    "PGM without a size": holds(b"P5 \n\n\n", "a PNM file: "),
}

CASES: dict[str, Case] = {
    **{
        f"{kind} cut at {part}/16": holds(image(kind)[: len(image(kind)) * part // 16], REFUSED if part else "an empty file")
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
        for part in range(16)
    },
    **{f"progressive JPEG cut at {n}/16": holds(PROGRESSIVE[: len(PROGRESSIVE) * n // 16], REFUSED) for n in range(1, 16)},
    "zero bytes": holds(bytes(5000), UNKNOWN),
    "random bytes": holds(RANDOM, UNKNOWN),
    "random bytes behind a JPEG's beginning": holds(image("JPEG")[:200] + RANDOM, REFUSED),
    "text": holds(b"hello world", UNKNOWN),
    "EPS": holds(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\n", UNKNOWN),
    "FITS with a gzip bomb": holds(b"SIMPLE  =" + b" " * 71 + b"XTENSION= 'BINTABLE'" + gzip.compress(bytes(10**7)), UNKNOWN),
    # bombs
    "JPEG of 65500 x 65500": holds(with_size("JPEG", 65500, 65500), r"pixels: more than max_pixels|4290250000 pixels"),
    "JPEG of 12000 x 12000": holds(with_size("JPEG", 12000, 12000), r"12,000 x 12,000 pixels: more than max_pixels"),
    **{
        f"{kind} of 60000 x 60000": holds(with_size(kind, 60000, 60000), "60,000 x 60,000 pixels: more than max_pixels")
        for kind in ("PNG", "GIF", "BMP", "TIFF")
    },
    "PNG with a bomb as text": holds(png(chunk(b"zTXt", b"k\0\0" + BOMB)), ""),  # which is not unpacked
    "PNG with a bomb as international text": holds(png(chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB)), ""),
    "PNG with a bomb as a profile": holds(png(chunk(b"iCCP", b"k\0\0" + BOMB)), ""),
    "PNG with 80 texts of 1 MB": holds(png(LARGE), ""),
    "PNG with 20 MB of text": holds(png(chunk(b"tEXt", b"k\0" + b"x" * 20_000_000)), ""),
    **TIFFS,
    # pickles: none is read, so no payload runs
    "object array": holds(object_array, r"a \.npy file: its dtype is \|O"),
    "torch file": holds(torch_file, UNKNOWN),
    "pickle": holds(lambda out: pickle.dumps(Payload(out)), UNKNOWN),
    # what is no file
    "missing": Case(lambda path, out: None, "No such file"),
    "directory": Case(lambda path, out: path.mkdir(), "not a regular file but a directory"),
    "closed to all": Case(closed_to_all, "Permission denied"),
    "a loop of links": Case(lambda path, out: path.symlink_to(path), "Too many levels of symbolic links"),
    "a link to nowhere": Case(lambda path, out: path.symlink_to("/nowhere/at/all"), "No such file"),
    "a name of 300 characters": Case(lambda path, out: f"{path}{'x' * 300}", "File name too long"),
    "a path of 5000 characters": Case(lambda path, out: f"{path.parent}{'/x' * 2500}", "File name too long"),
    "below a file": Case(below_a_file, "Not a directory"),
    "FIFO": Case(lambda path, out: os.mkfifo(path), "not a regular file but a FIFO"),
    "socket": Case(listen, "No such device or address"),
    "/dev/zero": Case(lambda path, out: "/dev/zero", "a character device"),
    "/dev/stdin": Case(lambda path, out: "/dev/stdin", "not a regular file|No such device"),
    "/proc/self/mem": Case(lambda path, out: "/proc/self/mem", "an empty file|Permission denied"),
    # between listing and loading, or while it is open
    "vanishes": Case(good, "No such file", listed=os.unlink),
    "shrinks": Case(good, REFUSED, listed=lambda path: os.truncate(path, 600)),
    "shrinks while it is open": Case(good, REFUSED, lambda path: os.truncate(path, 600)),
    "is emptied while it is open": Case(good, UNKNOWN, lambda path: os.truncate(path, 0)),
    "is deleted while it is open": Case(good, "", os.unlink),
    # strange, and good
    "PNG that is called JPEG": holds(image("PNG"), ""),
    "CMYK": holds(image("JPEG", "CMYK"), ""),
    "16 bits": holds(image("PNG", "I;16"), ""),
    "animated": holds(image("GIF", "P", save_all=True, append_images=[Image.new("P", (WIDTH, HEIGHT))]), ""),
}
NAMES = list(CASES)
THE_BAD = 1  # the row of it in each batch of 3; the others are good
NOBODY = 65534


class Hostile(ImageFrame):
    """Loads as nobody, to whom files can be closed; what is to happen to an open file happens when it was asked for."""

    def start(self, worker: Any) -> None:
        super().start(worker)
        os.setresuid(NOBODY, NOBODY, NOBODY)

    def prefetch(self, indices: np.ndarray) -> None:
        super().prefetch(indices)
        for index in indices.tolist():
            case = CASES[NAMES[index // 3]] if index % 3 == THE_BAD else None
            if case is not None and case.opened is not None and os.path.exists(self.describe(index)):
                storage = self._contents._own()
                assert isinstance(storage, LocalStorage)
                if isinstance(ready := storage._ahead._ready.get(self.describe(index)), Future):
                    wait([ready])  # on a busy machine, threads open
                case.opened(Path(self.describe(index)))
