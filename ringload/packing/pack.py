"""Packing a source for workers: pickled once, with its large arrays in shared memory.

cloudpickle pickles more than pickle: lambdas, closures, and definitions of a script, of a notebook, or of another module that a
worker cannot import (see `importable`). Arrays from `SHARE_FROM_BYTES` on are moved into one segment, which every worker maps
privately: they take their memory once, whatever the number of workers, and a worker's changes stay in that worker. Memory that
is shared already is mapped again, and all processes see changes of it (see `mapped`).

This process makes the pickle for its children, which get it by a descriptor that no other process has. Descriptors that are
named in the pickle have the same numbers in workers.
"""

from __future__ import annotations

import io
import mmap
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ringload.checks import warn
from ringload.errors import BudgetError, ConfigError, missing

try:
    import cloudpickle
except ImportError as error:
    raise missing("a loader", "cloudpickle", error) from error

from ringload.packing.culprit import culprit_in, is_inherited, is_open_file
from ringload.packing.generators import OwnGenerators, in_modules, is_generator, noted, of_modules
from ringload.packing.hash_seed import calls_hash
from ringload.packing.importable import goes_by_name, is_users
from ringload.packing.mapped import (
    CTYPES,
    SharedFile,
    SharedMappings,
    UnreachableMemoryError,
    array_again,
    array_in,
    ctypes_again,
    ctypes_in,
)
from ringload.packing.module_globals import globals_of, reachable
from ringload.packing.process_state import switches
from ringload.packing.tensors import as_array, is_shared, is_tensor, small_tensor, tensor_again
from ringload.packing.unpack import attach
from ringload.system.interrupts import new_rlock
from ringload.system.segment import Segment, round_up

SHARE_FROM_BYTES = 1 << 16
_by_value = new_rlock()  # cloudpickle keeps one list a process of the modules that are sent by value


class InheritOnlyError(Exception):
    """An object that only a forked process can have."""


class ForkRequiredError(ConfigError):
    """The source has an object that only a forked process can have: a lock, a multiprocessing.Value, a queue."""


@dataclass(frozen=True)
class Words:
    """Texts for messages about an object that cannot be packed: `problem` names it, `root` is its name in a place inside of it
    (None: its own or its class's; "" if the user knows only its attributes), `remedy` says what to do.
    """

    problem: str
    root: str | None
    remedy: str


OF_SOURCE = Words(
    "the source cannot be sent to workers",
    None,
    "Make it where it is needed, in the source's start(worker) or when load() is first called; or use workers=0, or "
    "start_method='fork'",
)


@dataclass
class Packed:
    """A pickled source. `segment` holds its large arrays, `shared_bytes` of them; `files` are files that workers map. They
    must stay open."""

    data: bytes
    segment: Segment | None
    shared_bytes: int
    files: tuple[SharedFile, ...] = ()
    places: Mapping[Any, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def owners(self) -> list[Segment | SharedFile]:
        """The owners of the descriptors that workers need."""
        return [*([self.segment] if self.segment is not None else []), *self.files]

    def copy_of(self, array: np.ndarray) -> np.ndarray | None:
        """The workers' copy of an array that is at the address where it was packed; None if there is none."""
        place = self.places.get(_where(array))
        return None if place is None else attach(*place)


def pack(
    source: Any,
    limit_bytes: int = 1 << 62,
    setup: Callable[[], Any] | None = None,
    words: Words = OF_SOURCE,
    or_fork: bool = False,
) -> Packed:
    """Pickle a source for workers, and with it the state of this process that they need; its large arrays may take
    `limit_bytes`. Workers call `setup` before they use the source. `words` are for messages. `or_fork`: workers may be forked
    instead.

    Raises:
        ConfigError: an object in it cannot be sent; the message names the object and its place.
        ForkRequiredError: only a forked worker can have the object.
        BudgetError: its arrays do not fit into memory.
    """
    buffer, before = io.BytesIO(), bytearray()
    pickler = Pickler(buffer, limit_bytes)
    try:
        with pickler.sending_by_value():
            pickler.dump((setup, source))
            names = [name for name, is_by_value in pickler.modules.items() if not is_by_value and name in sys.modules]
            own = reachable(pickler.modules)
            pickler.dump((globals_of(own), in_modules(own)))
        before.extend(pickle.dumps((switches(), names)))
        if problem := calls_hash(pickler.met):
            if or_fork:
                raise ForkRequiredError(problem)
            warn(problem, RuntimeWarning)
    except ConfigError:
        raise
    except Exception as error:  # a user's __reduce__ may raise anything
        culprit = culprit_in(source, words.root) or culprit_in(setup, "worker_setup")
        culprit = culprit or f"pickling it raises {type(error).__name__}: {error}"
        kind = ForkRequiredError if isinstance(error, InheritOnlyError) else ConfigError
        raise kind(f"{words.problem}: {culprit}. {words.remedy}") from error
    files = tuple(pickler.mappings.files.values())
    return Packed(b"".join((before, buffer.getbuffer())), pickler.segment, pickler.shared_bytes, files, pickler.places)


def generators_of(source: Any) -> OwnGenerators:
    """The generators of a source that is not sent. If it cannot be pickled, only those before the object at fault."""
    collector = _Collector(_NullFile())
    with suppress(Exception), collector.sending_by_value():  # nothing needs to be pickled here
        collector.dump(source)
    return OwnGenerators(collector.found + of_modules(in_modules(reachable(collector.modules))))


class Pickler(cloudpickle.Pickler):
    """Moves large arrays into a segment, and refuses what cloudpickle would silently turn into something else."""

    def __init__(self, buffer: io.BytesIO, limit_bytes: int = 1 << 62) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._limit_bytes = limit_bytes
        self.segment: Segment | None = None
        self.shared_bytes = 0
        self.places: dict[Any, tuple[Any, ...]] = {}  # `_where` an array is -> the arguments of `attach` for its copy
        self.mappings = SharedMappings()
        self.met: list[Any] = []  # the user's functions and classes
        self.modules: dict[str, bool] = {}  # name -> whether cloudpickle sends the module by value

    @contextmanager
    def sending_by_value(self) -> Iterator[None]:
        """While this is entered, modules that workers cannot import are sent by value."""
        with _by_value:
            try:
                yield
            finally:
                for name in (name for name, is_registered in self.modules.items() if is_registered):
                    cloudpickle.unregister_pickle_by_value(sys.modules[name])

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if is_tensor(obj):
            return self._tensor(obj) or super().reducer_override(obj)
        if kind in (np.ndarray, np.memmap) and not obj.dtype.hasobject:
            if not obj.flags.owndata and (mapped := self._mapped(obj)) is not None:
                return array_again, mapped
            if obj.nbytes >= SHARE_FROM_BYTES:
                return self.share(obj)
        elif isinstance(obj, CTYPES):
            if (mapped := ctypes_in(self.mappings, obj)) is not None:
                return ctypes_again, mapped
        elif is_inherited(obj):
            raise InheritOnlyError(type(obj).__qualname__)
        elif isinstance(obj, type | types.FunctionType | types.ModuleType):
            self._meet(obj)
        elif is_generator(obj):
            return self.generator(obj)
        elif is_open_file(obj):  # cloudpickle would send its content, as it is now
            raise pickle.PicklingError("open files cannot be sent")
        return super().reducer_override(obj)

    def _mapped(self, array: np.ndarray) -> tuple[Any, ...] | None:
        """The arguments of `array_again`, for an array in shared memory."""
        try:
            return array_in(self.mappings, array)
        except UnreachableMemoryError:
            root: Any = array
            while isinstance(root, np.ndarray | memoryview):
                root = root.base if isinstance(root, np.ndarray) else root.obj
            if isinstance(root, mmap.mmap) and array.flags.writeable:
                raise InheritOnlyError("an array in an anonymous mmap") from None
            return None  # memory of a driver, for example: a copy is as good

    def generator(self, generator: Any) -> Any:
        """The result of `reducer_override` for a random generator."""
        return noted(generator.__reduce_ex__(pickle.HIGHEST_PROTOCOL))

    def _tensor(self, tensor: Any) -> Any:
        array = as_array(tensor)
        if array is None:
            return None  # torch pickles it
        if array.nbytes >= SHARE_FROM_BYTES or is_shared(tensor):
            return tensor_again, (array, tensor.dtype)
        if not array.flags.c_contiguous:
            return None
        return small_tensor, (array.tobytes(), array.dtype.str, array.shape, tensor.dtype)

    def _meet(self, obj: Any) -> None:
        """Have a module's functions and classes sent by value, if workers cannot import it."""
        name = obj.__name__ if isinstance(obj, types.ModuleType) else obj.__module__
        if is_users(name) and not isinstance(obj, types.ModuleType):
            self.met.append(obj)
        if name is None or name in self.modules or name == "__main__":
            return
        self.modules[name] = False
        if not goes_by_name(name) and name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(sys.modules[name])
            self.modules[name] = True

    def share(self, array: np.ndarray) -> tuple[Any, ...]:
        """Copy a large array into the segment. Returns its result of `reducer_override`."""
        if self.segment is None:
            self.segment = Segment(0)
        transposed = array.flags.f_contiguous and not array.flags.c_contiguous
        start = self.shared_bytes
        if start + array.nbytes > self._limit_bytes:
            raise BudgetError(
                f"the source's arrays take {start + array.nbytes:,} bytes or more, and ram_budget has {self._limit_bytes:,} "
                "for them: raise ram_budget, or memory-map them from files (np.load(mmap_mode='r'))"
            )
        rows = np.ascontiguousarray(array.T if transposed else array)
        self.segment.write(start, rows)
        self.shared_bytes += round_up(rows.nbytes)
        place = self.segment.fd, start, rows.nbytes, rows.shape, array.dtype, transposed
        self.places[_where(array)] = place
        return attach, place


class _Collector(Pickler):
    """Collects generators, and keeps nothing else."""

    def __init__(self, null_file: Any) -> None:
        super().__init__(null_file)
        self.found: list[Any] = []

    def generator(self, generator: Any) -> Any:
        self.found.append(generator)
        return bytes, ()

    def share(self, array: np.ndarray) -> Any:
        return bytes, ()


class _NullFile:
    def write(self, data: Any) -> int:
        return len(data)


def _where(array: np.ndarray) -> tuple[Any, ...]:
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype
