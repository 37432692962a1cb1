"""Checks whether a source was changed since workers got it, at the beginning of each iteration.

    source --pickled, without large parts-->   a hash          a change is seen at once
    large containers (from LARGE_LENGTH on)    their elements  another element is seen at once; its content is compared in turn
    large arrays (from SHARE_FROM_BYTES on)    their content   compared in turn, unless nobody can write to the array

In turn: piece after piece. LEAST_PIECES are always compared, which are 64 MB of arrays; and as many more as fit into a share of
the time since the last check (5 GB in an epoch of a minute: 5 GB/s on a 2-core EPYC VM, November 2026). If those are not all,
the next check goes on where this one ended.
Then a change of a few elements of very large data is seen some iterations late, and the message says so. Shared memory and
mapped files are not checked: workers see their changes.

A hash is only compared within one process, for one source.
"""

from __future__ import annotations

import hashlib
import io
import operator
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ringload.packing.mapped import SharedMappings
from ringload.packing.module_globals import globals_of, reachable
from ringload.packing.pack import SHARE_FROM_BYTES, Packed, Pickler
from ringload.packing.process_state import switches

try:
    import xxhash
except ImportError:
    xxhash = None  # type: ignore[assignment]

CONTAINERS = (list, tuple, dict, set, frozenset)
LARGE_LENGTH = 1000  # elements
PIECE_LENGTH = 1000
PIECE_BYTES = 1 << 20
CHANGED = "it was changed"
LATE = "it was changed, perhaps some iterations ago: large data are compared piece by piece"
LEAST_PIECES = 64  # are compared in each check, however long that takes
SHARE = 0.02  # more pieces are compared for this share of the time since the last check


class Watch:
    """Remembers the source that workers have.

    Raises:
        Exception: what pickling raises. Such a source cannot be watched.
    """

    def __init__(self, source: Any, packed: Packed | None = None) -> None:
        """`packed`, if workers got that, has copies of the arrays, which need no hashes then."""
        self._hash, large_parts = _without_large_parts(source)
        self._known = [_known(one, packed) for one in large_parts]
        self._next = 0  # the piece that is checked first
        self._checked_s = time.monotonic()

    def changed(self, source: Any) -> str:
        """A text for the change that was found; "" if there is none."""
        begin_s = time.monotonic()
        until_s = begin_s + SHARE * (begin_s - self._checked_s)
        self._checked_s = begin_s
        try:
            now, large_parts = _without_large_parts(source)
        except Exception:  # it cannot be pickled any more: sending it again raises the error
            return CHANGED
        if now != self._hash or len(large_parts) != len(self._known):
            return CHANGED
        pairs = list(zip(self._known, large_parts, strict=True))
        if not all(known.is_like(large) for known, large in pairs):
            return CHANGED
        pieces = [(known, large, number) for known, large in pairs for number in range(known.n_pieces)]
        for n_checked, (known, large, number) in enumerate(pieces[self._next :] + pieces[: self._next]):
            if n_checked >= LEAST_PIECES and time.monotonic() > until_s:
                self._next = (self._next + n_checked) % len(pieces)
                break
            if known.differs(large, number):
                return CHANGED if self._next == 0 else LATE
        else:
            self._next = 0
        return ""


def _without_large_parts(source: Any) -> tuple[bytes, list[Any]]:
    """A hash of the source and of the state that is sent with it, without large parts; and the large parts."""
    buffer = io.BytesIO()
    pickler = _SmallPartsPickler(buffer)
    with pickler.sending_by_value():
        pickler.dump(source)
        pickler.dump(switches(that_alter_samples=True))
        pickler.dump(globals_of(reachable(pickler.modules)))
    return digest(buffer.getbuffer()), pickler.large_parts


class _Hasher(Pickler):
    """Writes the hash of a large array in its place."""

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer)
        self.mappings = SharedMappings(for_workers=False)

    def share(self, array: np.ndarray) -> Any:
        return bytes, (b"".join(_hash(piece) for piece in _pieces(array)), array.shape, array.dtype)

    def generator(self, generator: Any) -> Any:
        return bytes, (type(generator).__qualname__.encode(),)  # its state is set for each sample


class _SmallPartsPickler(_Hasher):
    """Leaves out large parts, and keeps them in a list."""

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer)
        self.large_parts: list[Any] = []

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        if (kind in CONTAINERS and len(obj) >= LARGE_LENGTH) or (kind in (bytes, str) and len(obj) >= SHARE_FROM_BYTES):
            self.large_parts.append(obj)
            return type(obj).__name__, len(obj)
        return None

    def share(self, array: np.ndarray) -> Any:
        self.large_parts.append(array)
        return bytes, (array.shape, array.dtype)


def _known(large: Any, packed: Packed | None) -> _Array | _Container | _Constant:
    if isinstance(large, np.ndarray):
        return _Constant(large) if _is_constant(large) else _Array(large, packed)
    return _Container(large) if isinstance(large, CONTAINERS) else _Constant(large)


class _Constant:
    """A large part that nobody can write to."""

    n_pieces = 0

    def __init__(self, large: Any) -> None:
        self._large = large

    def is_like(self, large: Any) -> bool:
        """Whether `large` is the same object."""
        return large is self._large and (not isinstance(large, np.ndarray) or _is_constant(large))

    def differs(self, large: Any, number: int) -> bool:
        return False


class _Array:
    """A large array as it was: a copy, or hashes of its pieces."""

    def __init__(self, array: np.ndarray, packed: Packed | None) -> None:
        self._shape, self._dtype = array.shape, array.dtype
        self._copy = packed.copy_of(array) if packed is not None else None
        self._hashes = [_hash(piece) for piece in _pieces(array)] if self._copy is None else []

    @property
    def n_pieces(self) -> int:
        return len(self._hashes) if self._copy is None else _n_pieces(self._copy)

    def is_like(self, array: Any) -> bool:
        """Whether `array` has the same shape and dtype."""
        return isinstance(array, np.ndarray) and (array.shape, array.dtype) == (self._shape, self._dtype)

    def differs(self, array: np.ndarray, number: int) -> bool:
        """Whether piece `number` has other content."""
        piece = _piece(array, number)
        if self._copy is not None:
            return not _are_equal(piece, _piece(self._copy, number))
        return _hash(piece) != self._hashes[number]


class _Container:
    """A large list, tuple, dict or set as it was: its elements, and hashes of their content."""

    def __init__(self, container: Any) -> None:
        self._kind = type(container)
        self._elements = _elements(container)
        self._hashes = [self._hash(self._elements, number) for number in range(-(-len(self._elements) // PIECE_LENGTH))]

    @property
    def n_pieces(self) -> int:
        return len(self._hashes)

    def is_like(self, container: Any) -> bool:
        """Whether `container` has the same elements."""
        if type(container) is not self._kind:
            return False
        elements = _elements(container)
        return len(elements) == len(self._elements) and all(map(operator.is_, elements, self._elements))

    def differs(self, container: Any, number: int) -> bool:
        """Whether the elements of piece `number` have other content. They are the same objects (`is_like`)."""
        return self._hash(self._elements, number) != self._hashes[number]

    @staticmethod
    def _hash(elements: list[Any], number: int) -> bytes:
        buffer = io.BytesIO()
        hasher = _Hasher(buffer)
        with hasher.sending_by_value():
            hasher.dump(elements[number * PIECE_LENGTH : (number + 1) * PIECE_LENGTH])
        return digest(buffer.getbuffer())


def _elements(container: Any) -> list[Any]:
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _is_constant(array: np.ndarray) -> bool:
    """Whether nobody can write to it before setting its `flags.writeable`."""
    return array.flags.owndata and not array.flags.writeable


def _n_pieces(array: np.ndarray) -> int:
    rows = _as_rows(array)
    return -(-len(rows) // _rows_per_piece(rows))


def _piece(array: np.ndarray, number: int) -> np.ndarray:
    """Piece `number`, `(n_bytes,) uint8`."""
    rows = _as_rows(array)
    n = _rows_per_piece(rows)
    return np.ascontiguousarray(rows[number * n : (number + 1) * n]).reshape(-1).view(np.uint8)


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    return (_piece(array, number) for number in range(_n_pieces(array)))


def _as_rows(array: np.ndarray) -> np.ndarray:
    """The array with its first axis in memory first, as in the copies for workers."""
    return np.atleast_1d(array.T if array.flags.f_contiguous and not array.flags.c_contiguous else array)


def _rows_per_piece(rows: np.ndarray) -> int:
    return max(1, PIECE_BYTES // max(1, rows.nbytes // len(rows)))


def _hash(piece: np.ndarray) -> bytes:
    return digest(piece.data)


def digest(data: Any) -> bytes:
    """A hash, which is compared only within this process. Without xxhash it is one that takes twice as long or more."""
    return hashlib.sha256(data).digest() if xxhash is None else xxhash.xxh3_128_digest(data)


def _are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    n = len(one) // 8 * 8  # whole words first: 4 times faster
    return np.array_equal(one[:n].view(np.uint64), other[:n].view(np.uint64)) and np.array_equal(one[n:], other[n:])
