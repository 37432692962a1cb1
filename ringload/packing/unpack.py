"""What a worker makes of a packed source (see `pack`): the state of the trainer's process first, then the source.

Apart from `pack`, because workers start sooner without what the trainer needs for that.
"""

from __future__ import annotations

import gc
import importlib
import mmap
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ringload.packing.generators import note, of_modules
from ringload.packing.module_globals import set_globals
from ringload.packing.process_state import set_switches
from ringload.packing.received import content_of
from ringload.system.segment import anonymous_bytes

_imported_bytes: list[int] = []
_shared_bytes: list[int] = []  # the same of a process that this one was forked from


def unpack(data: bytes | memoryview) -> Any:
    """The source that was packed, in a process that has the descriptors, and is given the state of the one that packed it."""
    reader = _Reader(data)
    found, names = pickle.Unpickler(reader).load()
    set_switches(found)
    _import(names)
    parts = pickle.Unpickler(reader)
    with _no_collections():
        setup, source = parts.load()
    values, generators = parts.load()
    set_globals(values)
    note(of_modules(generators))
    if setup is not None:
        setup()
    return source


def _import(names: list[str]) -> None:
    """Import what the source needs, to tell what that takes from what the source does."""
    before = anonymous_bytes()
    for name in names:
        with suppress(Exception):  # whatever it is, unpickling the source says it, if it needs the module
            importlib.import_module(name)
    _imported_bytes.append(anonymous_bytes() - before)


def import_bytes() -> int:
    """What the modules take that were imported for sources in this process."""
    return sum(_imported_bytes)


def note_shared_imports(n_bytes: int, n_workers: int) -> None:
    """In the process that forks `n_workers`: what its modules take once counts a part for each worker."""
    _shared_bytes.append(n_bytes // n_workers)


def shared_import_bytes() -> int:
    return sum(_shared_bytes)


class _Reader:
    """Reads from memory as from a file, and copies no more than what is read (io.BytesIO would copy all of it)."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._position = memoryview(data), 0

    def read(self, n: int = -1) -> bytes:
        begin, self._position = self._position, len(self._data) if n < 0 else self._position + n
        return bytes(self._data[begin : self._position])

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def readline(self) -> bytes:
        raise pickle.UnpicklingError("no opcode of today's pickles ends with a line")


@contextmanager
def _no_collections() -> Iterator[None]:
    """The garbage collector would go through millions of objects again and again while they are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def attach(fd: int, start: int, n_bytes: int, shape: tuple[int, ...], dtype: np.dtype[Any], transposed: bool) -> np.ndarray:
    """An array in the segment, mapped privately; on another machine, in what was received of it, which is read-only."""
    if (content := content_of(fd)) is not None:
        received = content[start : start + n_bytes].view(dtype).reshape(shape)
        return received.T if transposed else received
    mapped = mmap.mmap(fd, n_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=start)
    array = np.frombuffer(mapped, np.uint8, n_bytes).view(dtype).reshape(shape)
    return array.T if transposed else array
