"""Memory that this process shares: mapped files, shared tensors, RawArrays. Workers map it again, and copy nothing.

    an address --/proc/self/maps--> a shared mapping of a file, and where in it --> (path or descriptor, offset)

This process, workers and other processes may change that memory, and all of them see it, as with torch's forked workers. A
file without a name (those of torch and multiprocessing never have one) is reached by a descriptor of this process with the same
inode; workers get a copy of the descriptor under the same number. Private mappings (np.memmap's mode "c", heap) are not found,
and are copied: no other process sees changes of them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
from bisect import bisect_right
from contextlib import suppress
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from ringload.packing.received import is_far, own_content_of
from ringload.system.interrupts import FdOwner

LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r([w-]).s ([0-9a-f]+) \S+ (\d+) +(/.*)")  # of proc(5), maps


class SharedFile(FdOwner):
    """Owns a copy of a descriptor for workers."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = self._open(os.dup, fd)


class Place(NamedTuple):
    """Bytes of a shared mapping: `n_bytes` from `start` on in the file `where`, a path or a descriptor, with its inode."""

    where: str | int
    start: int
    n_bytes: int
    is_writable: bool
    inode: int


class UnreachableMemoryError(Exception):
    """Shared bytes that only forked workers can reach: their file has no name, and no descriptor of it is open."""


class _Range(NamedTuple):
    first: int  # address
    stop: int
    is_writable: bool
    offset: int  # in the file
    inode: int
    path: str


class SharedMappings:
    """The shared mappings of this process, read at the first `find`. With `for_workers=False` no descriptor is copied, and a
    file without a name is named by its inode."""

    def __init__(self, for_workers: bool = True) -> None:
        self._for_workers = for_workers
        self.files: dict[tuple[int, str], SharedFile] = {}  # descriptors for workers, by inode and name

    @cached_property
    def _ranges(self) -> list[_Range]:
        ranges: list[_Range] = []
        with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            found = (LINE.match(line) for line in lines if "s " in line[:80])
            ranges += [
                _Range(int(m[1], 16), int(m[2], 16), m[3] == "w", int(m[4], 16), int(m[5]), m[6].replace("\\012", "\n"))
                for m in found
                if m
            ]
        return ranges

    @cached_property
    def _firsts(self) -> list[int]:
        return [one.first for one in self._ranges]

    def find(self, address: int, n_bytes: int) -> Place | None:
        """The place of these bytes in a shared mapping; None if they are in none.

        Raises:
            UnreachableMemoryError: workers cannot reach them.
        """
        number = bisect_right(self._firsts, address) - 1
        if number < 0 or not n_bytes or address >= self._ranges[number].stop:
            return None
        first = self._ranges[number]
        covered = first.stop
        while covered < address + n_bytes:  # one mapping may be several lines
            number += 1
            if number == len(self._ranges) or not _follows(self._ranges[number], first, covered):
                return None
            covered = self._ranges[number].stop
        return Place(self._reached(first), first.offset + address - first.first, n_bytes, first.is_writable, first.inode)

    def _reached(self, mapped: _Range) -> str | int:
        if _is_of(mapped.path, mapped):
            return mapped.path
        key = (mapped.inode, mapped.path)
        if key not in self.files:
            fd = next((int(fd) for fd in os.listdir("/proc/self/fd") if _is_of(f"/proc/self/fd/{fd}", mapped)), None)
            if fd is None:
                raise UnreachableMemoryError(mapped.path)
            if not self._for_workers:
                return f"{mapped.path} {mapped.inode}"
            self.files[key] = SharedFile(fd)
        return self.files[key].fd


def _follows(one: _Range, first: _Range, covered: int) -> bool:
    return (one.first, one.inode, one.path) == (covered, first.inode, first.path) and (
        one.offset - one.first == first.offset - first.first and one.is_writable == first.is_writable
    )


def _is_of(path: str, mapped: _Range) -> bool:
    """Whether a path leads to the mapped file, and other processes can map the file by it."""
    with suppress(OSError):
        status = os.stat(path)
        if status.st_ino != mapped.inode:
            return False
        return not path.startswith("/proc/self/fd/") or os.readlink(path) == mapped.path
    return False


def bytes_at(place: Place) -> np.ndarray:
    """In a worker: the place's bytes, `(n_bytes,) uint8`, mapped shared; read-only where the trainer's are.

    Raises:
        OSError: another file has taken the place of the one that the trainer has mapped.
    """
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if place.is_writable else 0)
    if isinstance(place.where, int):
        if (content := own_content_of(place.where)) is not None:
            return content[place.start : place.start + place.n_bytes]
        status = os.fstat(place.where)
        whole = _whole(place.where, status.st_ino, status.st_size, prot)
        return np.frombuffer(whole, np.uint8, place.n_bytes, place.start)
    skipped = place.start % mmap.ALLOCATIONGRANULARITY
    fd = os.open(place.where, (os.O_RDWR if place.is_writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_ino != place.inode and not is_far():
            raise OSError(
                errno.ESTALE, "was replaced by another file while a loader uses it: make the loader again", place.where
            )
        part = mmap.mmap(fd, skipped + place.n_bytes, flags=mmap.MAP_SHARED, prot=prot, offset=place.start - skipped)
    finally:
        os.close(fd)
    return np.frombuffer(part, np.uint8, place.n_bytes, skipped)


@cache
def _whole(fd: int, inode: int, n_bytes: int, prot: int) -> mmap.mmap:
    """A file that was given by its descriptor, mapped once: multiprocessing puts many objects into one, and each mapping
    takes a descriptor."""
    return mmap.mmap(fd, n_bytes, flags=mmap.MAP_SHARED, prot=prot)


# -- arrays -----------------------------------------------------------------------------------------------------------


def array_in(mappings: SharedMappings, array: np.ndarray) -> tuple[Any, ...] | None:
    """The arguments of `array_again` for an array in shared memory; None for others."""
    if array.nbytes == 0:
        return None
    low, high = np.lib.array_utils.byte_bounds(array)
    place = mappings.find(low, high - low)
    if place is None:
        return None
    first = array.__array_interface__["data"][0] - low
    return (
        place._replace(is_writable=place.is_writable and array.flags.writeable),
        array.shape,
        array.dtype,
        array.strides,
        first,
    )


def array_again(place: Place, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...], first: int) -> np.ndarray:
    """An array in shared memory, whose entry [0, ...] is at byte `first` of `place`."""
    return np.ndarray(shape, dtype, bytes_at(place).data, first, strides)


# -- objects of ctypes, as multiprocessing's RawValue and RawArray are ------------------------------------------------

CTYPES = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union)


def ctypes_in(mappings: SharedMappings, value: Any) -> tuple[Any, ...] | None:
    """The arguments of `ctypes_again` for an object in shared memory; None for others."""
    place = mappings.find(ctypes.addressof(value), ctypes.sizeof(value))
    return place and (place, _type_in_parts(type(value)))


def ctypes_again(place: Place, parts: Any) -> Any:
    """An object in shared memory."""
    return _type_of_parts(parts).from_buffer(bytes_at(place).data)


def _type_in_parts(kind: Any) -> Any:
    """The type; for an array type (type of elements, length), as array types cannot be imported by a name."""
    is_array = issubclass(kind, ctypes.Array) and kind.__module__ != "__main__" and "_Array_" in kind.__name__
    return (_type_in_parts(kind._type_), kind._length_) if is_array else kind


def _type_of_parts(parts: Any) -> Any:
    return _type_of_parts(parts[0]) * parts[1] if isinstance(parts, tuple) else parts
