"""Batches that are copied to a device while the one before is trained on. Knows no framework.

    loader -> batch -> Copy, made of views of its slot -> begin ... done -> receive -> the trainer

A lease must not end before the copy out of its slot has: a device reads the slot long after the call that began the copy
has returned. So a copy holds what it copies from until it is done, and `PendingTransfers` holds the copy. That is looked at
before each batch; and before the loader is asked to wait, copies are waited for, as the slot that it waits for may be one of
theirs. One batch is copied ahead, and only one that is full already: the trainer never waits for the batch after next.

Where the trainer is (`at`) is what it has received; the loader is up to one batch further. An interruption, or an error of a
copy, between asking the loader and keeping what it gave leaves `_torn` set; the next call sends the loader back, so that no
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
    """A copy of a batch to a device. It keeps what it is made of until it is done, and not longer."""

    def begin(self) -> None:
        """Have it copied, and do not wait. If it raises, it is done."""

    def done(self) -> bool:
        """Whether nothing is read from the slot any more."""

    def wait(self) -> None:
        """Until it is done."""

    def receive(self) -> Any:
        """What the trainer gets, for work that is issued from now on."""


class PendingTransfers:
    """The copies that are not done. The list is replaced, never changed: `wait` may come from any thread, and interrupt."""

    def __init__(self) -> None:
        self._copies: list[Copy] = []

    def __len__(self) -> int:
        return len(self._copies)

    def begin(self, copy: Copy) -> None:
        """Begin a copy, and keep it until it is done."""
        self._copies = [*self._copies, copy]  # before it begins: an interruption cannot come between
        copy.begin()

    def poll(self) -> None:
        """Let go of what is done."""
        if self._copies:
            self._copies = [copy for copy in self._copies if not copy.done()]

    def wait(self) -> None:
        """Until all is done."""
        for copy in self._copies:
            copy.wait()
        self.poll()


class DevicePrefetcher:
    """An iterator over what is left of one epoch. `make_copy(batch)` makes a batch's copy; `in_transit` may be shared."""

    def __init__(self, loader: Loader, make_copy: Callable[[Batch], Copy], in_transit: PendingTransfers) -> None:
        self._loader, self._make_copy, self._in_transit = loader, make_copy, in_transit
        self._pass = iter(loader)
        self._iteration, self._epoch = loader.iteration, loader.epoch
        self._after = (loader.epoch, loader.position)  # what follows the batch that was received last
        self._fetched: deque[tuple[tuple[int, int], Copy]] = deque()  # what is received next, and what follows that
        self._error: Exception | None = None  # what came in place of the batch that follows
        self._torn = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._in_transit.poll()
        if not self.is_current:
            self.end()
        if self._torn:
            self._ensure_consistent()
        if not self._fetched:
            self._fetch_now()
        place, copy = self._fetched[0]
        received = copy.receive()
        if len(self._fetched) == 1 and self._error is None and self._loader.ready:
            self._fetch_ahead()
        self._after = self._loader.following(*place)
        self._fetched.popleft()  # last: what was interrupted before comes again
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
        """Let go of what was copied ahead: nobody gets it any more."""
        self._fetched.clear()
        self._error, self._torn = None, False

    def _fetch_now(self) -> None:
        """What the trainer is here for: a batch, or the error in its place."""
        error, self._error = self._error, None
        try:
            if error is not None:
                try:
                    raise error
                finally:
                    error = None  # or it would hold this frame, which holds it
            if not self._loader.ready:
                self._in_transit.wait()
            self._fetch()
        except Exception:
            if not self._torn:
                self._after = (self._loader.epoch, self._loader.position)
            raise

    def _fetch_ahead(self) -> None:
        try:
            self._fetch()
        except StopIteration:
            pass  # the epoch is over: the next call is told so again
        except Exception as error:  # the trainer has a batch to receive first
            self._error = without_frames(error)

    def _fetch(self) -> None:
        """Ask the loader, and begin the copy."""
        self._torn = True
        try:
            batch = next(self._pass)
        except Exception:
            self._torn = False  # in place of a batch
            raise
        copy = self._make_copy(batch)
        place = batch.epoch, batch.number
        del batch  # the lease is the copy's now
        self._in_transit.begin(copy)
        self._fetched.append((place, copy))
        self._torn = False

    def _ensure_consistent(self) -> None:
        """Send the loader back to what was not kept."""
        if self._error is not None:
            return  # is raised first
        place = self._loader.following(*self._fetched[-1][0]) if self._fetched else self._after
        if place[0] == self._epoch and place != (self._loader.epoch, self._loader.position):
            self._loader.load_state_dict(self._loader.state_dict() | {"epoch": place[0], "position": place[1]})
            self._pass, self._iteration = iter(self._loader), self._loader.iteration
        self._torn = False


def state_of(loader: Loader, ahead: DevicePrefetcher | None) -> dict[str, Any]:
    """The loader's state as the trainer is: what was received of `ahead`, the present iteration, not what it has copied."""
    state = loader.state_dict()
    if ahead is not None and ahead.is_current:
        state["epoch"], state["position"] = ahead.at
    return state
