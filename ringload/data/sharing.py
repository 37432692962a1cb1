"""Sending a source to the producers: pickled once, with its large arrays in shared memory.

cloudpickle takes what pickle does not: lambdas, closures, and what is defined in a script or a notebook. Arrays from
`SHARE_FROM_BYTES` on are moved into one segment, which every producer maps privately: they cost their memory once, whatever
the number of producers, and who writes into one writes into a copy of its own. Memory-mapped files are mapped again.

The pickle is made by this process for its own children, and comes to them by a descriptor that nobody else has. It names
the segment's descriptor, which they have under the same number.
"""

from __future__ import annotations

import functools
import hashlib
import io
import mmap
import os
import pickle
import sys
import threading
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np

from ringload.errors import BudgetError, ConfigError
from ringload.shared import Segment, round_up

SHARE_FROM_BYTES = 1 << 16
LOCKS = (type(threading.Lock()), type(threading.RLock()))
REDUCERS: dict[type, Callable[[Any], tuple[Any, ...] | None]] = {}  # of adapters: what holds arrays that NumPy does not see
MAX_LOOKED_AT = 100_000  # objects, in search of the one that cannot be sent


@dataclass
class Packed:
    """A pickled source; `segment` holds its large arrays, `shared_bytes` of them, and has to stay open."""

    data: bytes
    segment: Segment | None
    shared_bytes: int


def pack(source: Any, limit_bytes: int = 1 << 62) -> Packed:
    """Pickle a source for producers; its large arrays may take `limit_bytes`.

    Raises:
        ConfigError: something in it cannot be sent; the message names what, and where it is.
        BudgetError: its arrays do not fit into memory.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, limit_bytes)
    try:
        pickler.dump(source)
    except ConfigError:
        raise
    except Exception as error:  # a reduce of the user's may raise anything
        culprit = _culprit(source) or f"pickling it says: {type(error).__name__}: {error}"
        raise ConfigError(
            f"the source cannot be sent to producers: {culprit}. Make it where it is needed, in the source's "
            "start(producer) or when load() is first called; or use workers=0"
        ) from error
    return Packed(buffer.getvalue(), pickler.segment, pickler.shared_bytes)


def fingerprint(source: Any) -> bytes:
    """A hash of what `pack` would send, large arrays by their content, but for those in files.

    Raises:
        ConfigError: as `pack`.
    """
    buffer = io.BytesIO()
    try:
        _Hasher(buffer, 0).dump(source)
    except Exception:
        pack(source)  # says what it is
        raise
    return hashlib.blake2b(buffer.getbuffer(), digest_size=16).digest()


def unpack(data: bytes) -> Any:
    """What was packed, in a process that has the segment's descriptor."""
    return pickle.loads(data)


class _Pickler(cloudpickle.Pickler):
    """Moves large arrays into a segment, and refuses what cloudpickle would silently turn into something else."""

    def __init__(self, buffer: io.BytesIO, limit_bytes: int) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._limit_bytes = limit_bytes
        self.segment: Segment | None = None
        self.shared_bytes = 0

    def reducer_override(self, obj: Any) -> Any:
        if (reduce := REDUCERS.get(type(obj))) is not None and (reduced := reduce(obj)) is not None:
            return reduced
        if type(obj) in (np.ndarray, np.memmap) and not obj.dtype.hasobject:
            if (mapped := _mapped_from(obj)) is not None:
                return _map_again, mapped
            if obj.nbytes >= SHARE_FROM_BYTES:
                return _attach, self._share(obj)
        elif _is_open_file(obj):  # cloudpickle would send its content, as it is now
            raise pickle.PicklingError("open files cannot be sent")
        return super().reducer_override(obj)

    def _share(self, array: np.ndarray) -> tuple[Any, ...]:
        """Copy an array into the segment. Returns the arguments of `_attach`."""
        if self.segment is None:
            self.segment = Segment(0)
        transposed = array.flags.f_contiguous and not array.flags.c_contiguous
        start = self.shared_bytes
        if start + array.nbytes > self._limit_bytes:
            raise BudgetError(
                f"the source's arrays take {start + array.nbytes:,} bytes or more, and there are {self._limit_bytes:,} for "
                "them: raise ram_budget, or memory-map them from files (np.load(mmap_mode='r'))"
            )
        rows = np.ascontiguousarray(array.T if transposed else array)
        self.segment.write(start, rows)
        self.shared_bytes += round_up(rows.nbytes)
        return self.segment.fd, start, rows.nbytes, rows.shape, array.dtype, transposed


class _Hasher(_Pickler):
    """Instead of moving an array, notes its checksum: 1 s for 1 to 3 GB."""

    def _share(self, array: np.ndarray) -> tuple[Any, ...]:
        rows = array if array.flags.c_contiguous else np.ascontiguousarray(array.T if array.flags.f_contiguous else array)
        return zlib.crc32(rows.reshape(-1).view(np.uint8).data), array.shape, array.dtype, array.flags.c_contiguous


def _attach(fd: int, start: int, n_bytes: int, shape: tuple[int, ...], dtype: np.dtype[Any], transposed: bool) -> np.ndarray:
    """An array in the segment, mapped privately."""
    mapped = mmap.mmap(fd, n_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=start)
    array = np.frombuffer(mapped, np.uint8, n_bytes).view(dtype).reshape(shape)
    return array.T if transposed else array


def _mapped_from(array: np.ndarray) -> tuple[Any, ...] | None:
    """The arguments of `_map_again` for an array that lies in a memory-mapped file; None for others."""
    root: Any = array
    while not isinstance(root, np.memmap) or isinstance(root.base, np.memmap):
        if not isinstance(root.base, np.ndarray):
            return None
        root = root.base
    if root.filename is None or root.mode == "c" or array.nbytes == 0:  # no file to open; changes that the file has not
        return None
    low, high = np.lib.array_utils.byte_bounds(array)
    start = root.offset + low - np.lib.array_utils.byte_bounds(root)[0]
    first = array.__array_interface__["data"][0] - low
    return os.fspath(root.filename), start, high - low, array.shape, array.dtype, array.strides, first


def _map_again(
    path: str, start: int, n_bytes: int, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...], first: int
) -> np.ndarray:
    """A part of a file, mapped privately: `n_bytes` from `start` on, of which the array's first entry is at `first`."""
    skipped = start % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as file:
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        mapped = mmap.mmap(file.fileno(), skipped + n_bytes, flags=mmap.MAP_PRIVATE, prot=prot, offset=start - skipped)
    return np.ndarray(shape, dtype, mapped, skipped + first, strides)


# -- naming what cannot be sent ---------------------------------------------------------------------------------------


def _culprit(source: Any) -> str | None:
    """Where in `source` something is that cannot be pickled, in words; depth first."""
    stack = [(source, getattr(source, "__name__", type(source).__name__))]
    seen: set[int] = set()
    keep = []  # so that no number is used twice
    while stack and len(seen) < MAX_LOOKED_AT:
        obj, name = stack.pop()
        if id(obj) in seen:
            continue
        seen.add(id(obj))
        keep.append(obj)
        if (kind := _kind(obj)) is not None:
            return f"{name} is {kind}"
        parts = list(_parts(obj, name))
        if not parts and not _can_be_sent(obj):
            return f"{name} is a {type(obj).__name__}, which cannot be pickled"
        stack += reversed(parts)
    return None


def _kind(obj: Any) -> str | None:
    """What an object is, if it is of the kinds that can never be sent."""
    if isinstance(obj, LOCKS):
        return "a lock"
    if isinstance(obj, types.GeneratorType):
        return "a generator"
    if _is_open_file(obj):
        return f"an open file ({str(getattr(obj, 'name', '?'))!r})"
    return None


def _is_open_file(obj: Any) -> bool:
    if not isinstance(obj, io.IOBase) or isinstance(obj, io.BytesIO | io.StringIO):
        return False
    return obj not in (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__)


def _parts(obj: Any, name: str) -> Iterator[tuple[Any, str]]:
    """What pickling an object pickles: (part, its name)."""
    if isinstance(obj, type | types.ModuleType | np.ndarray | str | bytes):
        return
    if isinstance(obj, types.FunctionType):
        if not _is_importable(obj):
            for variable, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
                with suppress(ValueError):  # a variable that has no value yet
                    yield cell.cell_contents, f"{name} -> variable {variable!r}"
            for variable in obj.__code__.co_names:
                if variable in obj.__globals__:
                    yield obj.__globals__[variable], f"{name} -> global {variable!r}"
        return
    if isinstance(obj, types.MethodType):
        yield obj.__self__, f"{name}.__self__"
        return
    if isinstance(obj, functools.partial):
        yield obj.func, f"{name}.func"
        yield obj.args, f"{name}.args"
        yield obj.keywords, f"{name}.keywords"
    if isinstance(obj, Mapping):
        yield from ((value, f"{name}[{key!r}]") for key, value in obj.items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((value, f"{name}[{number}]") for number, value in enumerate(obj))
    yield from ((value, f"{name}.{key}") for key, value in getattr(obj, "__dict__", {}).items())


def _is_importable(function: types.FunctionType) -> bool:
    if function.__module__ == "__main__":
        return False
    return getattr(sys.modules.get(function.__module__), function.__qualname__, None) is function


def _can_be_sent(obj: Any) -> bool:
    try:
        cloudpickle.dumps(obj)
    except Exception:  # whatever: it is said of this object then
        return False
    return True
