"""An index in a file: the paths, labels and rows of an ImageFrame, which later runs and all ranks of a host map.

    MAGIC (8 bytes), VERSION (u32), bytes of the header (u32), XXH3 of the header (u64); little-endian
    the header, JSON        the arrays' kinds, places and checksums; root, classes; the table's file and fingerprint
    the arrays              each at a multiple of ALIGNMENT, from the end of the header on

Guarantees:
1. The file is written under another name first. So it is complete, or it is not there.
2. A file that was cut short or damaged, or is of another version, is refused: each array has a checksum. Computing them reads
   the file once, at about 10 GB/s from the page cache.
3. If the table's file has another content than the one that the index was made from, the index is refused.
4. Nothing is unpickled: arrays are numbers, and all else is JSON.

Measured for 30 million rows (`python -m bench.rows --rows 30000000 --kind frame --kind index`, 2 cores, 30 November 2026):
loading takes 0.13 s of CPU time, and the start of a loader another 0.13 s, in place of 7.4 s to read a Parquet table, 3.6 s to
make its index and 1.5 s to start. All processes, with 2 workers, take 82 bytes a row, in place of 196.

This assumes: nobody writes into the file while it is mapped. To change it, write another one: `save_index` replaces the file,
and those who have mapped the former one keep it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError, missing
from ringload.fields import Field
from ringload.sources.fingerprints import TableFingerprint, checksum
from ringload.sources.label_field import Label, LabelFields
from ringload.sources.paths import Paths, home_directory, root_of
from ringload.sources.stored_files import StoredFiles
from ringload.sources.string_column import Strings
from ringload.storage.registry import factory_of, is_registered, not_registered, scheme_of

if TYPE_CHECKING:
    from ringload.sources.image_table import ImageFrame

MAGIC = b"RINGIDX\n"
VERSION = 1
PREFIX = struct.Struct("<8sIIQ")
ALIGNMENT = 64
CHUNK_BYTES = 1 << 24  # of a table's file that is hashed
KINDS = "biuf"  # of dtypes


class TableFile(NamedTuple):
    """The file of a table, as it was when it was read."""

    path: str
    n_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> TableFile | None:
        """The file as it is now; None if there is none."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return cls(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def table_file(df: Any) -> TableFile | None:
    """The file of a table that is given to ImageFrame; None for a DataFrame, and for a file that is not there."""
    return TableFile.of(os.path.expanduser(os.fspath(df))) if isinstance(df, str | os.PathLike) else None


# -- writing ----------------------------------------------------------------------------------------------------------


def save(frame: ImageFrame, path: str | os.PathLike[str]) -> None:
    """Write the index of a frame; see `ImageFrame.save_index`."""
    contents = frame.contents
    if not isinstance(contents, StoredFiles):
        raise ConfigError(f"save_index() takes a table of paths, and the images of this one are in {type(contents).__name__}")
    paths, table = contents.paths, frame.table_fingerprint
    arrays = {"blob": paths.names.blob, "starts": paths.names.starts, "lengths": paths.names.lengths, "rows": frame.rows}
    labels = [_label_header(number, label, arrays) for number, label in enumerate(frame.label_fields)]
    header: dict[str, Any] = {
        "root": os.fsdecode(paths.root),
        "scheme": paths.scheme,
        "labels": labels,
        "table": {"n_rows": table.n_rows, "lengths": table.lengths, "labels": dict(table.labels)},
        "shown": {str(row): os.fsdecode(one) for row, one in table.shown.items()},
        "file": _file_header(frame.table_file),
    }
    _write(os.fspath(path), header, {name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _label_header(number: int, label: Label, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """One label field; adds its arrays."""
    for name, array in label.named_arrays.items():
        arrays[f"{number}.{name}"] = array
    return {
        "name": label.name,
        "field": [list(label.field.shape), label.field.dtype.str],
        "classes": _classes_header(label),
        "hot": label.hot,
        "arrays": list(label.named_arrays),
    }


def _classes_header(label: Label) -> Any:
    """The classes as JSON holds them: {"range": n}, or a list."""
    names = label.class_names
    if isinstance(names, range):
        return {"range": len(names)}
    return [_class_header(name, label.name) for name in names]


def _class_header(name: Any, field: str) -> Any:
    if isinstance(name, tuple):
        return {"tuple": [_class_header(part, field) for part in name]}
    if type(name) not in (str, int, float, bool):
        raise ConfigError(
            f"save_index(): field {field!r} has the class {short(name)}, a {type(name).__name__}; the classes of an index are "
            "strings, numbers, bools and tuples of these: convert the column"
        )
    return name


def _file_header(file: TableFile | None) -> dict[str, Any] | None:
    """The table's file and its checksum."""
    if file is None:
        return None
    if TableFile.of(file.path) != file:
        raise ConfigError(f"the table {file.path} has changed since it was read: make the frame again, and save its index then")
    return {**file._asdict(), "checksum": _file_checksum(file.path)}


def _write(path: str, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write the file, all of it or nothing."""
    at, places = 0, {}
    for name, array in arrays.items():
        places[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "start": at, "checksum": checksum(array)}
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    text = json.dumps({**header, "arrays": places, "n_bytes": at}).encode()
    text += b" " * (-(PREFIX.size + len(text)) % ALIGNMENT)
    unfinished = f"{path}.{os.getpid()}.unfinished"
    try:
        with open(unfinished, "xb") as file:
            file.write(PREFIX.pack(MAGIC, VERSION, len(text), _hash(text)) + text)
            for array in arrays.values():
                file.write(array.reshape(-1).view(np.uint8).data)
                file.write(bytes(-array.nbytes % ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise ConfigError(f"the index {path} cannot be written: {error}") from error
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)


def _hash(data: Any) -> int:
    try:
        import xxhash
    except ImportError as error:
        raise missing("a saved index", "xxhash", error) from error
    return int(xxhash.xxh3_64_intdigest(data))


def _file_checksum(path: str) -> str:
    import xxhash

    hashed = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashed.update(chunk)
    return str(hashed.hexdigest())


# -- reading ----------------------------------------------------------------------------------------------------------


class SavedIndex(NamedTuple):
    """What an index holds of a frame."""

    contents: StoredFiles
    labels: LabelFields
    fingerprint: TableFingerprint
    rows: np.ndarray
    file: TableFile | None


def load(path: str | os.PathLike[str], table: str | os.PathLike[str] | None, root: Any) -> SavedIndex:
    """The index in a file; see `ImageFrame.load_index`. Its arrays are views of the mapped file.

    Raises:
        ConfigError: the file is no index of this version, is damaged, or is of another table.
    """
    path = os.path.abspath(os.path.expanduser(os.fspath(path)))
    header, arrays = _read(path)
    try:
        file = _compare_file(path, header["file"], table)
        names = Strings(arrays["blob"], arrays["starts"], arrays["lengths"])
        paths = Paths(names, _root(root, header), home_directory(), header["scheme"])
        labels = tuple(_label(number, one, arrays) for number, one in enumerate(header["labels"]))
        shown = {int(row): os.fsencode(one) for row, one in header["shown"].items()}
        fingerprint = TableFingerprint(names.blob, shown=shown, **header["table"])
        rows = arrays["rows"]
    except (KeyError, TypeError, AttributeError) as error:  # it was written by other code
        raise _refused(path, f"its header lacks something ({type(error).__name__}: {error})") from error
    if not is_registered(paths.scheme):
        raise ConfigError(f"the index {path}: {not_registered(paths.scheme)}")
    return SavedIndex(StoredFiles(paths, factory_of(paths.scheme)), LabelFields(labels), fingerprint, rows, file)


def _root(root: Any, header: Mapping[str, Any]) -> bytes:
    if root is None:
        return os.fsencode(header["root"])
    made = os.path.join(os.fsencode(root_of(root, is_url_too=True)), b"")
    if scheme_of(made) != header["scheme"]:
        raise ConfigError(f"root={short(root)}: the paths of the index are of the scheme {header['scheme'] or 'file'}")
    return made


def _read(path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file, all of which are as they were written."""
    mapped, start, header = _mapped(path)
    if len(mapped) != start + header["n_bytes"]:
        raise _refused(
            path, f"it has {len(mapped):,} bytes, and was written with {start + header['n_bytes']:,}: it was cut short"
        )
    arrays = {}
    for name, place in header["arrays"].items():
        dtype, shape = np.dtype(place["dtype"]), tuple(place["shape"])
        n_bytes = math.prod(shape) * dtype.itemsize
        if dtype.kind not in KINDS or not 0 <= place["start"] <= header["n_bytes"] - n_bytes:
            raise _refused(path, f"its array {name} is none")
        array = np.frombuffer(mapped, np.uint8, n_bytes, start + place["start"]).view(dtype).reshape(shape)
        if checksum(array) != place["checksum"]:
            raise _refused(path, f"it is damaged: the checksum of its array {name} is wrong")
        arrays[name] = array
    return header, arrays


def _mapped(path: str) -> tuple[mmap.mmap, int, dict[str, Any]]:
    """The mapped file, where its arrays begin, and its header."""
    try:
        with open(path, "rb") as file:
            prefix = file.read(PREFIX.size)
            if prefix[: len(MAGIC)] != MAGIC or len(prefix) < PREFIX.size:
                raise _refused(path, "it is no index of ringload: make one by source.save_index(path)", "")
            _, version, n_bytes, wanted = PREFIX.unpack(prefix)
            if version != VERSION:
                raise _refused(path, f"it has version {version}, and this ringload reads version {VERSION}")
            text = file.read(n_bytes)
            if _hash(text) != wanted:
                raise _refused(path, "its header is damaged or cut short")
            mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except OSError as error:
        raise ConfigError(f"the index {path} cannot be read: {error}") from error
    return mapped, PREFIX.size + n_bytes, json.loads(text)


def _refused(path: str, why: str, remedy: str = ". Make it again by source.save_index(path)") -> ConfigError:
    return ConfigError(f"the index {path} cannot be used: {why}{remedy}")


def _compare_file(path: str, made_from: Mapping[str, Any] | None, table: str | os.PathLike[str] | None) -> TableFile | None:
    """The table's file, which is the one that the index was made from."""
    if table is not None and made_from is None:
        raise _refused(path, "it was made from a DataFrame, so it cannot be compared with table=", ": leave table= out")
    if made_from is None:
        return None
    there = TableFile.of(os.fspath(table) if table is not None else made_from["path"])
    if there is None:
        if table is not None:
            raise ConfigError(f"table={short(os.fspath(table))} does not exist")
        return None  # another host need not have the table
    is_same_size = there.n_bytes == made_from["n_bytes"]
    if is_same_size and there[1:] == (made_from["n_bytes"], made_from["mtime_ns"]) and table is None:
        return there
    if not is_same_size or _file_checksum(there.path) != made_from["checksum"]:
        raise _refused(path, f"the table {there.path} is not as it was when the index was made")
    return there


def _label(number: int, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Label:
    shape, dtype = header["field"]
    names = header["classes"]
    classes: Sequence[Any] = range(names["range"]) if isinstance(names, dict) else tuple(map(_class, names))
    values = {name: arrays[f"{number}.{name}"] for name in header["arrays"]}
    return Label(header["name"], Field(tuple(shape), dtype), classes, hot=header["hot"], **values)


def _class(name: Any) -> Any:
    return tuple(map(_class, name["tuple"])) if isinstance(name, dict) else name
