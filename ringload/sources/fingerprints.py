"""Fingerprints: a loader's state has one of its source, so that a state is refused for another source, or another order.

JSON can hold a fingerprint. That of a table has checksums (XXH3, 128 bits) of all paths, of the labels, and of the numbers of
the rows that are taken; and the paths of a few rows, for messages. Measured for 30 million rows (1.3 GB of paths, 2 cores, 28
November 2026): 0.1 s when the table is given, and 0.4 s for the first state. That of arrays has shapes, dtypes and a checksum
of the content; of a large array, of blocks spread over it, as reading terabytes would take hours. `root`, decoding and
augmentation are not in it: files with relative paths may be moved, and a run may go on with other augmentation.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError, missing
from ringload.sources.label_field import Label
from ringload.sources.string_column import Strings

if TYPE_CHECKING:
    import xxhash

N_SHOWN = 16  # rows of a table whose paths are in its fingerprint
BLOCK_BYTES = 1 << 20
N_BLOCKS = 256  # of an array in memory, at most
N_MAPPED_BLOCKS = 32  # of an array in a file, at most
SEARCH_BYTES = 1 << 26

Fingerprint = dict[str, Any]


def checksum(*arrays: np.ndarray) -> str:
    """The checksum of the content of some arrays."""
    hashed = _new_hash()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def _new_hash() -> xxhash.xxh3_128:
    """XXH3, whose digests are in saved states. xxhash is needed only where a fingerprint is made."""
    try:
        import xxhash
    except ImportError as error:
        raise missing("the fingerprint of a source, in a loader's state or of a table,", "xxhash", error) from error
    return xxhash.xxh3_128()


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableFingerprint:
    """The fingerprint of a whole table, which its parts share. `blob` has its paths, one after another."""

    blob: np.ndarray
    n_rows: int
    lengths: str
    labels: Mapping[str, str]
    shown: Mapping[int, bytes]  # row -> path

    @classmethod
    def of(cls, names: Strings, labels: list[Label]) -> TableFingerprint:
        """The fingerprint of all rows."""
        rows = np.unique(np.linspace(0, len(names) - 1, N_SHOWN).astype(np.int64)).tolist()
        sums = {label.name: checksum(*label.arrays) for label in labels}
        return cls(names.blob, len(names), checksum(names.lengths), sums, {row: names[row] for row in rows})

    @cached_property
    def paths(self) -> str:
        """The checksum of all paths, computed once for a table and its parts."""
        return f"{checksum(self.blob)}-{self.lengths}"

    def __getstate__(self) -> dict[str, Any]:
        """Without computed values: they do not change a source."""
        return {name: value for name, value in self.__dict__.items() if name != "paths"}

    def of_rows(self, rows: str) -> Fingerprint:
        """The fingerprint of some rows, by the checksum of their numbers."""
        return {
            "kind": "table",
            "n_rows": self.n_rows,
            "paths": self.paths,
            "shown": {str(row): os.fsdecode(path) for row, path in self.shown.items()},
            "labels": dict(self.labels),
            "rows": rows,
        }

    def has(self, path: bytes) -> bool:
        """Whether a path is in the table; slow, for messages."""
        starts = range(0, len(self.blob), SEARCH_BYTES)
        return any(path in self.blob[start : start + SEARCH_BYTES + len(path)].tobytes() for start in starts)


def _table_difference(saved: Mapping[str, Any], current: Mapping[str, Any], table: TableFingerprint) -> str:
    if saved["n_rows"] != current["n_rows"]:
        return f"the table of the state has {saved['n_rows']:,} rows, this one {current['n_rows']:,}"
    if saved["paths"] != current["paths"]:
        return _other_paths(saved["shown"], current["shown"], table)
    if saved["labels"].keys() != current["labels"].keys():
        return f"the table of the state has the label fields {list(saved['labels'])}, this one {list(current['labels'])}"
    if other := [name for name in current["labels"] if saved["labels"][name] != current["labels"][name]]:
        return f"the table has the same paths as that of the state, and other labels in the fields {other}"
    return "the source has other rows of the same table, by another split or subset, or in another order"


def _other_paths(saved: Mapping[str, str], current: Mapping[str, str], table: TableFingerprint) -> str:
    differing = [row for row in saved if saved[row] != current.get(row)]
    if not differing:
        return "the table has other paths than that of the state, or another order, in some of its rows"
    row = differing[0]
    what = f"row {row} was {short(saved[row])} and is {short(current.get(row))}"
    if all(table.has(os.fsencode(saved[other])) for other in differing):
        return f"the table has another order than that of the state: {what}"
    return f"the table has other paths than that of the state: {what}"


# -- arrays -----------------------------------------------------------------------------------------------------------


def fingerprint_of_arrays(arrays: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of arrays `(N, ...)`: name -> shape, dtype, checksum. Arrays that are not NumPy's have `shape`, `dtype`
    and `read(indices, out)`."""
    return {
        "kind": "arrays",
        "arrays": {name: [list(array.shape), str(array.dtype), _content(array)] for name, array in arrays.items()},
    }


def _content(array: Any) -> str:
    """The checksum of an array, or of blocks of rows spread over it."""
    row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)))
    n_rows = max(1, BLOCK_BYTES // row_bytes)  # of a block
    n_blocks = -(-array.shape[0] // n_rows)
    n_read = min(n_blocks, N_BLOCKS if _is_in_memory(array) else N_MAPPED_BLOCKS)
    hashed = _new_hash()
    for block in np.unique(np.linspace(0, n_blocks - 1, n_read).astype(np.int64)).tolist():
        start, stop = block * n_rows, min((block + 1) * n_rows, array.shape[0])
        hashed.update(checksum(array[start:stop] if isinstance(array, np.ndarray) else _read(array, start, stop)).encode())
    return hashed.hexdigest()


def _read(array: Any, start: int, stop: int) -> np.ndarray:
    rows = np.empty((stop - start, *array.shape[1:]), array.dtype)
    array.read(np.arange(start, stop), rows)
    return rows


def _is_in_memory(array: Any) -> bool:
    """Whether it is an array of NumPy's that is not a mapped file."""
    base = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(array, np.ndarray) and not isinstance(base, np.memmap | mmap.mmap)


def _array_difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    if saved.keys() != current.keys():
        return f"the state is of the arrays {list(saved)}, this source has {list(current)}"
    for name, (shape, dtype, _) in saved.items():
        if [shape, dtype] != current[name][:2]:
            other_shape, other_dtype, _ = current[name]
            return f"array {name!r} is {tuple(shape)} {dtype} in the state and {tuple(other_shape)} {other_dtype} here"
    other = [name for name in current if saved[name] != current[name]]
    return f"the arrays {other} have other content than those of the state, or another order of their rows"


# -- any source -------------------------------------------------------------------------------------------------------


def fingerprint_of(source: Any) -> Any:
    """The result of `source.fingerprint()` after JSON; None if there is no such method.

    Raises:
        ConfigError: JSON cannot hold it.
    """
    ask = getattr(source, "fingerprint", None)
    if not callable(ask):
        return None
    made = ask()
    try:
        return json.loads(json.dumps(made))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{type(source).__name__}.fingerprint() returns {short(made)}, which JSON cannot hold ({error}): return a string"
        ) from error


def difference(saved: Any, current: Any, source: Any) -> str:
    """A text for the difference between the fingerprint of a state and that of `source`; "" if there is none."""
    if saved == current:
        return ""
    if current is None:
        return f"the state is of a source with a fingerprint, and this one, a {type(source).__name__}, has none"
    kinds = [one.get("kind") if isinstance(one, Mapping) else None for one in (saved, current)]
    if kinds == ["table", "table"] and hasattr(source, "table_fingerprint"):
        return _table_difference(saved, current, source.table_fingerprint)
    if kinds == ["arrays", "arrays"]:
        return _array_difference(saved["arrays"], current["arrays"])
    if kinds == ["part", "part"]:
        if saved["of"] == current["of"]:
            return "the source has other rows of the same whole, by another split or subset, or in another order"
        return difference(saved["of"], current["of"], source.source)
    if kinds == ["mix", "mix"]:
        return _mix_difference(saved["sources"], current["sources"], source.sources)
    return f"the fingerprint of the state's source is {short(saved)}, that of this {type(source).__name__} is {short(current)}"


def _mix_difference(saved: Sequence[Any], current: Sequence[Any], sources: Mapping[str, Any]) -> str:
    there, here = ([[name, n] for name, n, _ in one] for one in (saved, current))
    if there != here:
        return f"the mix of the state has the sources and sizes {short(there)}, this one {short(here)}"
    name, old, new = next((name, old, new) for (name, _, old), (_, _, new) in zip(saved, current, strict=True) if old != new)
    return f"source {name!r} of the mix: {difference(old, new, sources[name])}"
