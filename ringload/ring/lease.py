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

import weakref
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from ringload.errors import Closed
from ringload.ring.slots import Layout

if TYPE_CHECKING:
    from ringload.ring.ring import Posted


class SlotOwner:
    """Lends bytes of the segment through NumPy's array interface, and keeps them mapped."""

    __slots__ = ("__array_interface__", "__weakref__", "_segment")

    def __init__(self, segment: np.ndarray, address: int, n_bytes: int) -> None:
        self._segment = segment
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (n_bytes,), "data": (address, False)}


class LeaseEnd(weakref.ref):
    """A weak reference to an owner that knows what was lent."""

    __slots__ = ("posted",)

    posted: Posted | None


class Lender:
    """Makes what is lent of the slots of one mapped segment. `release(end)`, a method, is what Batch.release calls; it is
    kept weakly, so that a batch keeps memory and no more."""

    def __init__(self, segment: np.ndarray, layout: Layout, release: Callable[[LeaseEnd], None]) -> None:
        self._segment: np.ndarray | None = segment
        self._layout, self._release = layout, weakref.WeakMethod(release)
        self._index = layout.slot_index
        self._first: int = segment.ctypes.data + layout.slots_start
        self.released: SimpleQueue[LeaseEnd | None] = SimpleQueue()  # what has ended; None only wakes who waits

    def prepare(self, posted: Posted, listed: Mapping[str, np.ndarray] | None = None) -> None:
        """Give a batch the arrays that look into its slot, on an owner of their own; write there what is listed of it."""
        assert self._segment is not None, "nothing is prepared after the end"
        n_bytes = self._layout.slot_bytes
        owner = SlotOwner(self._segment, self._first + posted.slot * n_bytes, n_bytes)
        end = LeaseEnd(owner, self.released.put)
        slot = np.asarray(owner)
        del owner.__array_interface__  # now, and not when the lease ends and the caches are cold
        if listed is not None:
            self._layout.write_rows(slot, listed)
        arrays = self._layout.slot_arrays(slot, posted.n_rows)
        end.posted, posted.end = posted, end
        posted.batch = Batch(posted.epoch, posted.number, arrays, slot, self._index, end, self._release)

    @property
    def memory(self) -> np.ndarray:
        """The segment."""
        if self._segment is None:
            raise Closed("the loader is closed: it has no memory any more")
        return self._segment

    def drop(self) -> None:
        """Let go of the memory: what is lent still keeps it."""
        self._segment = None


class Batch(Mapping[str, np.ndarray]):
    """A batch: field -> `(B, ...)` array that looks into the ring.

    Its slot is lent for as long as any of its arrays, or any view of one, is alive, also where the batch itself is not. The
    arrays may be written to; nobody else sees it.

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
        arrays = self._check()
        if self._index is None and self._slot is not None and self._index_of is not None:
            self._index = self._index_of(self._slot, len(next(iter(arrays.values()))))
        assert self._index is not None
        return self._index

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, as a dict of its own."""
        return dict(self._check())

    def __getitem__(self, field: str) -> np.ndarray:
        return self._check()[field]

    def _check(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            raise Closed(f"batch {self.number} of epoch {self.epoch} was released")
        return self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._check())

    def __len__(self) -> int:
        return len(self._check())

    def __repr__(self) -> str:
        arrays = self._arrays
        content = "released" if arrays is None else ", ".join(f"{k}: {v.shape} {v.dtype}" for k, v in arrays.items())
        return f"<Batch {self.number} of epoch {self.epoch}: {content}>"

    def release(self) -> None:
        """End the lease now. Arrays of this batch that are kept show what comes next into the slot. Again is nothing."""
        self._arrays = self._slot = None
        end, self._end = self._end, None
        if end is not None and self._release is not None and (release := self._release()) is not None:
            release(end)

    def copy(self) -> Batch:
        """The same batch in memory of its own, with no lease."""
        twin = Batch(self.epoch, self.number, {name: array.copy() for name, array in self._check().items()})
        twin._index = self.index
        return twin
