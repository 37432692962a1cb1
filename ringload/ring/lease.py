"""Leases: the loan of a filled slot to the trainer, which ends when the last array that looks into it is gone.

The problem: frameworks read ahead and keep what they were given for as long as they like; "valid until the next next()"
trained Keras on overwritten data in 15 of 15 steps (measured). So the slot's end of life has to be the arrays' own.

What does not work: NumPy collapses chains of views, so the base of a view of a view is the array at the chain's root, the
whole ring; a finalizer on an array in between runs while views of it are alive. What works: one owner a lease that is not
an array, and one array made from it by `__array_interface__`. The chain cannot collapse past an owner of another type, so
every view keeps it alive, and those that torch, TensorFlow and JAX make do too (measured with all three).

The end of a lease is a weak reference's callback: it runs in whatever thread drops the last view, perhaps inside the
garbage collector, perhaps inside `next()`. So it is a C function that puts the reference into a reentrant queue and does
nothing else. It cannot raise, deadlock, or swallow a KeyboardInterrupt.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from opcode import opmap
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ringload.checks import listed
from ringload.errors import LoaderClosedError, UnknownFieldError
from ringload.protocols import Rows
from ringload.ring.layout import Layout
from ringload.ring.slots import InFlightBatch

UNPACK = {opmap["UNPACK_SEQUENCE"], opmap["UNPACK_EX"]}


class SlotOwner:
    """Lends bytes of the segment through NumPy's array interface, and keeps them mapped."""

    __slots__ = ("__array_interface__", "__weakref__", "_segment")

    def __init__(self, segment: np.ndarray, address: int, n_bytes: int) -> None:
        self._segment = segment
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (n_bytes,), "data": (address, False)}


class LeaseEnd(weakref.ref):
    """A weak reference to an owner. It names what was lent: (slot, serial)."""

    __slots__ = ("serial", "slot")

    slot: int
    serial: int


class LeaseFactory:
    """Makes what is lent of the slots of one mapped segment. `release(end)`, a method, is what Batch.release calls; it is
    kept weakly, so that a batch keeps memory and no more.

    The arrays of a batch are made ahead, while the trainer's caches are warm (`prepare`), and kept by slot until it is lent.
    """

    def __init__(self, segment: np.ndarray, layout: Layout, release: Callable[[LeaseEnd], None]) -> None:
        self._segment: np.ndarray | None = segment
        self._layout, self._release = layout, weakref.WeakMethod(release)
        self._first: int = segment.ctypes.data + layout.slots_start
        self._prepared: dict[int, tuple[Batch, LeaseEnd]] = {}  # by slot
        self._lent: dict[int, LeaseEnd] = {}  # by slot: a weak reference has to be kept to call back
        self.released: SimpleQueue[LeaseEnd | None] = (
            SimpleQueue()
        )  # leases that have ended; None only wakes a thread that waits

    def prepare(self, batch: InFlightBatch, rows: Rows) -> None:
        """Write into a slot what the order says of its rows, and make the arrays that look into it, on their own owner."""
        assert self._segment is not None, "nothing is prepared after the end"
        layout = self._layout
        owner = SlotOwner(self._segment, self._first + batch.slot * layout.slot_bytes, layout.slot_bytes)
        end = LeaseEnd(owner, self.released.put)
        end.slot, end.serial = batch.slot, batch.serial
        slot = np.asarray(owner)
        del owner.__array_interface__  # now, and not when the lease ends and the caches are cold
        layout.write_rows(slot, rows)
        arrays = layout.slot_arrays(slot, batch.n_rows)
        lent = Batch(batch.epoch, batch.number, arrays, slot, layout.slot_index, end, self._release)
        self._prepared[batch.slot] = (lent, end)

    def write_rows(self, slot: int, rows: Rows, start: int, stop: int) -> None:
        """Write again what the order says of some rows of a slot: a worker that died may have put another sample there."""
        self._layout.write_rows(self._bytes_of(slot), rows, start, stop)

    def whole_slot(self, slot: int) -> dict[str, np.ndarray]:
        """All arrays of a slot: name -> `(B, *shape)`. They are not lent: keep none of them."""
        return self._layout.whole_slot(self._bytes_of(slot))

    def _bytes_of(self, slot: int) -> np.ndarray:
        begin = self._layout.slots_start + slot * self._layout.slot_bytes
        return self.memory[begin : begin + self._layout.slot_bytes]

    def prepared(self, slot: int) -> Batch:
        """What will be lent of a slot."""
        return self._prepared[slot][0]

    def lend(self, slot: int) -> Batch:
        """Lend what was prepared of a slot."""
        batch, self._lent[slot] = self._prepared.pop(slot)
        return batch

    def is_lent(self, slot: int, serial: int) -> bool:
        """Whether the trainer has what was lent of a slot. It does not if an interruption came before it got the batch, or
        between the end of the lease and `ended`."""
        end = self._lent.get(slot)
        return end is not None and end.serial == serial and end() is not None

    def ended(self, end: LeaseEnd) -> None:
        """The lease was the last of its slot, and has ended."""
        if self._lent.get(end.slot) is end:
            del self._lent[end.slot]

    def forget_prepared(self) -> None:
        """Nothing that was prepared will be lent."""
        self._prepared.clear()

    @property
    def memory(self) -> np.ndarray:
        """The segment."""
        if self._segment is None:
            raise LoaderClosedError("the loader is closed: it has no memory any more")
        return self._segment

    def drop(self) -> None:
        """Let go of the memory: what is lent still keeps it."""
        self._segment = None
        self._prepared.clear()
        self._lent.clear()


class Batch(Mapping[str, np.ndarray]):
    """A batch: field -> `(B, ...)` array that looks into the ring.

    Its slot is lent for as long as any of its arrays, or any view of one, is alive, also where the batch itself is not. The
    arrays may be written to; nobody else sees it.

    It is a Mapping, so list(batch) are the names of its fields; but `x, y = batch`, or `for x, y in loader`, which would give
    names too, raises a TypeError.

    Attributes: `epoch`; `number`, its place in the epoch; `index` (a copy: keeping it lends nothing).
    """

    __slots__ = ("_arrays", "_end", "_index", "_index_of", "_release", "_slot", "epoch", "number")

    def __init__(
        self,
        epoch: int,
        number: int,
        arrays: dict[str, np.ndarray],
        slot: np.ndarray | None = None,
        index_of: Callable[[np.ndarray, int], np.ndarray] | None = None,
        end: LeaseEnd | None = None,
        release: weakref.WeakMethod[Callable[[LeaseEnd], None]] | None = None,
    ) -> None:
        self.epoch, self.number = epoch, number
        self._arrays: dict[str, np.ndarray] | None = arrays
        self._slot, self._index_of, self._end, self._release = slot, index_of, end, release
        self._index: np.ndarray | None = None

    @property
    def index(self) -> np.ndarray:
        """Which sample each row is, `(B,) int64`; -1 for padding."""
        self._check()
        if self._index is None and self._slot is not None and self._index_of is not None:
            self._index = self._index_of(self._slot, self.n_rows)
        assert self._index is not None
        return self._index

    @property
    def n_rows(self) -> int:
        """How many rows it has."""
        return len(next(iter(self._check().values())))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, as a dict of its own."""
        return dict(self._check())

    def __getitem__(self, field: str) -> np.ndarray:
        try:
            return self._check()[field]
        except KeyError:
            raise UnknownFieldError(field, self._check()) from None

    def __contains__(self, field: object) -> bool:
        return field in self._check()

    def __setitem__(self, field: str, value: Any) -> None:
        """For `batch[field] += 1`, which has changed the array by then: the array itself, or TypeError."""
        if self[field] is not value:
            raise TypeError(
                f"batch[{field!r}] cannot be another array: write into the one that is there, batch[{field!r}][...] = value, "
                "or take a dict of them, batch.arrays, which can be changed"
            )

    if not TYPE_CHECKING:  # or else a type checker would accept any attribute

        def __getattr__(self, name: str) -> NoReturn:
            known = "" if name.startswith("_") or name not in (self._arrays or ()) else f"; its field is batch[{name!r}]"
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{known}")

    def _check(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            raise LoaderClosedError(f"batch {self.number} of epoch {self.epoch} was released")
        return self._arrays

    def __iter__(self) -> Iterator[str]:
        arrays, asker = self._check(), sys._getframe().f_back
        # nothing but the instruction that asks tells `x, y = batch` from list(batch)
        if asker is not None and asker.f_code.co_code[asker.f_lasti] in UNPACK:
            x, y = map(repr, [*arrays, "y"][:2])
            raise TypeError(
                f"a batch is a mapping of fields, {listed(list(arrays))}, which gives its names when it is unpacked, as in "
                f"`for x, y in loader`: take batch[{x}] and batch[{y}]. In place of the loader, tuples are given by "
                f"ringload.torch.Batches(loader, fields=({x}, {y})), and by ringload.keras.dataset, ringload.tf.as_dataset and "
                f"ringload.jax.Batches(loader, x={x}, y={y})"
            )
        return iter(arrays)

    def __len__(self) -> int:
        return len(self._check())

    def __repr__(self) -> str:
        arrays = self._arrays
        content = "released" if arrays is None else ", ".join(f"{k}: {v.shape} {v.dtype}" for k, v in arrays.items())
        return f"<Batch {self.number} of epoch {self.epoch}: {content}>"

    def cut(self, n_rows: int) -> None:
        """Show the first rows only."""
        self._arrays = {name: array[:n_rows] for name, array in self._check().items()}
        self._index = None if self._index is None else self._index[:n_rows]

    def release(self) -> None:
        """End the lease now. Arrays of this batch that are kept then show the next batch of the slot. Idempotent."""
        self._arrays = self._slot = None
        end, self._end = self._end, None
        if end is not None and self._release is not None and (release := self._release()) is not None:
            release(end)

    def copy(self) -> Batch:
        """The same batch in memory of its own, with no lease."""
        twin = Batch(self.epoch, self.number, {name: array.copy() for name, array in self._check().items()})
        twin._index = self.index
        return twin
