"""Copies the next batch to a device while the trainer works on the present one. Imports no framework.

    loader -> batch -> Copy, made of views of its slot -> begin ... done -> receive -> the trainer

A device reads the slot long after the call that began the copy has returned, so a lease must not end before the copy out of its
slot is done. A copy holds its source arrays until it is done, and `PendingTransfers` holds the copy. Before each batch, copies
that are done are dropped. If the loader would have to wait for a slot, all copies are waited for first, because they may hold
the slots that the loader needs. One batch is copied ahead, and only if it is already full: the trainer never waits for the
batch after the next one.

`at` counts the batches that the trainer has received; the loader may be one batch further. An interruption or an error between
`next(loader)` and the storing of the batch leaves `_inconsistent` set. The next call then seeks the loader back, so that no
batch is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ringload.errors import without_frames
from ringload.loader import Loader
from ringload.ring.lease import Batch


class Copy(Protocol):
    """A copy of a batch to a device. It holds its source arrays until it is done."""

    def begin(self) -> None:
        """Begin the copy, and do not wait for it. If this raises, the copy counts as done."""

    def done(self) -> bool:
        """Whether the slot is no longer read."""

    def wait(self) -> None:
        """Wait until the copy is done."""

    def receive(self) -> Any:
        """Return the trainer's batch; work that the trainer issues from now on may use it."""


class PendingTransfers:
    """The copies that are not done. The list is replaced, never changed: another thread or a signal handler may call `wait`."""

    def __init__(self) -> None:
        self._copies: list[Copy] = []

    def __len__(self) -> int:
        return len(self._copies)

    def begin(self, copy: Copy) -> None:
        """Begin a copy, and keep it until it is done."""
        self._copies = [*self._copies, copy]  # stored first, so that an interruption cannot lose a copy that has begun
        copy.begin()

    def poll(self) -> None:
        """Drop the copies that are done."""
        if self._copies:
            self._copies = [copy for copy in self._copies if not copy.done()]

    def wait(self) -> None:
        """Wait until all copies are done."""
        for copy in self._copies:
            copy.wait()
        self.poll()


class DevicePrefetcher:
    """An iterator over the rest of one epoch. `make_copy(batch)` makes the copy of a batch; several iterators may share
    `in_transit`."""

    def __init__(self, loader: Loader, make_copy: Callable[[Batch], Copy], in_transit: PendingTransfers) -> None:
        self._loader, self._make_copy, self._in_transit = loader, make_copy, in_transit
        self._pass = iter(loader)
        self._iteration, self._epoch = loader.iteration, loader.epoch
        self._after = (loader.epoch, loader.position)  # (epoch, number) after the last received batch
        self._fetched: deque[tuple[tuple[int, int], Copy]] = deque()  # (epoch, number) of each copied batch, and its copy
        self._error: Exception | None = None  # raised in place of the next batch
        self._inconsistent = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._in_transit.poll()
        if not self.is_current:
            self.end()
        if self._inconsistent:
            self._ensure_consistent()
        if not self._fetched:
            self._fetch_now()
        place, copy = self._fetched[0]
        received = copy.receive()
        if len(self._fetched) == 1 and self._error is None and self._loader.ready:
            self._fetch_ahead()
        self._after = self._loader.following(*place)
        self._fetched.popleft()  # last: after an interruption before this line, the same batch comes again
        return received

    @property
    def at(self) -> tuple[int, int]:
        """(epoch, number) of the batch that the trainer receives next."""
        return self._fetched[0][0] if self._fetched else self._after

    @property
    def is_current(self) -> bool:
        """Whether no other iteration has begun."""
        return self._loader.iteration == self._iteration

    def end(self) -> None:
        """Drop the batch that was copied ahead: this iteration is over."""
        self._fetched.clear()
        self._error, self._inconsistent = None, False

    def _fetch_now(self) -> None:
        """Fetch the next batch, or raise the error that stands in its place."""
        error, self._error = self._error, None
        try:
            if error is not None:
                try:
                    raise error
                finally:
                    error = None  # breaks the cycle of error, traceback and frame
            if not self._loader.ready:
                self._in_transit.wait()
            self._fetch()
        except Exception:
            if not self._inconsistent:
                self._after = (self._loader.epoch, self._loader.position)
            raise

    def _fetch_ahead(self) -> None:
        try:
            self._fetch()
        except StopIteration:
            pass  # the epoch is over: the next call raises StopIteration again
        except Exception as error:  # raised by the next call: the trainer receives its batch first
            self._error = without_frames(error)

    def _fetch(self) -> None:
        """Take the next batch from the loader, and begin its copy."""
        self._inconsistent = True
        try:
            batch = next(self._pass)
        except Exception:
            self._inconsistent = False  # the error took the place of a batch
            raise
        copy = self._make_copy(batch)
        place = batch.epoch, batch.number
        del batch  # only the copy holds the lease from here on
        self._in_transit.begin(copy)
        self._fetched.append((place, copy))
        self._inconsistent = False

    def _ensure_consistent(self) -> None:
        """Seek the loader back to the first batch that was not stored."""
        if self._error is not None:
            return  # the error is raised first
        place = self._loader.following(*self._fetched[-1][0]) if self._fetched else self._after
        if place[0] == self._epoch and place != (self._loader.epoch, self._loader.position):
            self._loader.load_state_dict(self._loader.state_at(*place))
            self._pass, self._iteration = iter(self._loader), self._loader.iteration
        self._inconsistent = False


def state_of(loader: Loader, ahead: DevicePrefetcher | None) -> dict[str, Any]:
    """The loader's state, with the position of the trainer: batches that `ahead` has copied but not given do not count."""
    return loader.state_at(*ahead.at) if ahead is not None and ahead.is_current else loader.state_dict()
