"""A pass over an IterableDataset: with workers (`IterablePass`), or in the trainer (`InProcessIterablePass`).

The batches are torch's, in torch's order: workers take turns, and one that has no more batches is left out. The trainer
submits rows for the workers in turn, and notes for each row a turn. A batch that is larger than a row comes in pieces, and
takes the next rows of its worker, too; so the trainer submits one more row for each piece.

    turns     whose batches follow, oldest first: 0 1 2 0 1 2
    arrived   worker -> what came of it, decoded, oldest first: a batch, an error in place of one, or its end

Invariant: `_books` is replaced in one step, and what was lent last stays in the order until then. So an interruption loses and
repeats no batch.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from torch.utils.data._utils.fetch import _IterableDatasetFetcher

from ringload.bad_sample import Bad
from ringload.checks import warn
from ringload.errors import StallError, WorkerDiedError, without_frames
from ringload.torch.dataloader.errors import died, raised, timed_out, unusable_in_worker
from ringload.torch.dataloader.iterable_order import Lent
from ringload.torch.dataloader.iterable_ring import IterableRing, IterableWorkers
from ringload.torch.dataloader.iterable_source import END, IterableSpec, Mark
from ringload.torch.dataloader.iterators import END as NO_MORE
from ringload.torch.dataloader.iterators import Pass
from ringload.torch.dataloader.source import Generators
from ringload.torch.dataloader.state import Keys
from ringload.torch.dataloader.values import decode

if TYPE_CHECKING:
    from ringload.torch.dataloader.loader import DataLoader


@dataclass(frozen=True)
class Arrived:
    """A batch, an error that takes the place of one, or NO_MORE; and the worker's mark behind it."""

    mark: Mark
    data: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Books:
    """What a pass knows of its rows. `marks`: where each worker is behind the last batch that the trainer was given; `turn`:
    whose turn is noted next; `due`: the row that is received next; `submitted`: the rows from `due` on, each as its worker and
    how many rows that has before it; `over`: workers that have no more batches."""

    marks: tuple[Mark, ...]
    turn: int
    n_rows: tuple[int, ...]  # that were submitted for each worker
    due: int = 0
    submitted: tuple[tuple[int, int], ...] = ()
    turns: tuple[int, ...] = ()
    over: frozenset[int] = frozenset()
    pieces: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)  # of each worker's batch that is not complete
    arrived: dict[int, tuple[Arrived, ...]] = field(default_factory=dict)

    def _submitting(self, worker: int) -> Books:
        n_rows = tuple(n + (one == worker) for one, n in enumerate(self.n_rows))
        return replace(self, n_rows=n_rows, submitted=(*self.submitted, (worker, self.n_rows[worker])))

    def with_turns(self, n_ahead: int) -> Books:
        """The same with so many rows submitted, while there are workers that are not over."""
        books = self
        while len(books.submitted) < n_ahead and len(books.over) < len(books.marks):
            worker = books.turn
            books = replace(books, turn=(worker + 1) % len(books.marks))
            if worker not in books.over:
                books = replace(books._submitting(worker), turns=(*books.turns, worker))
        return books

    def received(self, got: np.ndarray | Arrived) -> Books:
        """The same when the row that is due was received: a piece of a batch, so that another row is submitted; or the rest."""
        worker = self.submitted[0][0]
        books = replace(self, due=self.due + 1, submitted=self.submitted[1:])
        if isinstance(got, np.ndarray):
            return replace(books, pieces=self.pieces | {worker: (*self.pieces.get(worker, ()), got)})._submitting(worker)
        over = self.over | {worker} if got.mark.is_over else self.over
        arrived = self.arrived | {worker: (*self.arrived.get(worker, ()), got)}
        return replace(books, over=over, pieces=self.pieces | {worker: ()}, arrived=arrived)

    def given(self) -> tuple[Arrived | None, Books]:
        """What comes next, if it has arrived; and the same without it. An end takes all turns of its worker."""
        worker = self.turns[0]
        if not self.arrived.get(worker):
            return None, self
        first, *rest = self.arrived[worker]
        turns = tuple(one for one in self.turns if one != worker) if first.data is NO_MORE else self.turns[1:]
        marks = tuple(first.mark if one == worker else mark for one, mark in enumerate(self.marks))
        return first, replace(self, turns=turns, marks=marks, arrived=self.arrived | {worker: tuple(rest)})

    def state(self) -> dict[str, Any]:
        """Where each worker is, and whose turn it is. JSON can hold it."""
        return {"workers": [list(mark) for mark in self.marks], "turn": self.turns[0] if self.turns else self.turn}


class _Counted(Pass):
    """Warns where a dataset gives more than its `len()`, as torch does. A pass has none, so that list() asks for none."""

    def __len__(self) -> int:
        raise TypeError("a pass over an IterableDataset has no len(): it is not known before its end")

    def _given(self, data: Any) -> Any:
        self._keys.number += 1
        self.progress.advance(self._keys.snapshot)
        told, n = self._loader._IterableDataset_len_called, self.progress.number
        if told is not None and n > told:
            text = (
                f"Length of IterableDataset {self._loader.dataset} was reported to be {told} (when accessing len(dataloader)), "
                f"but {n} samples have been fetched. "
            )
            if self._loader.num_workers:
                text += (
                    "For multiprocessing data-loading, this could be caused by not properly configuring the IterableDataset "
                    "replica at each worker: see torch.utils.data.get_worker_info()"
                )
            warn(text)
        return data


class IterablePass(_Counted):
    """Receives what workers read. No reference cycle contains a pass: see `RingPass`."""

    def __init__(self, loader: DataLoader, keys: Keys, workers: IterableWorkers) -> None:
        super().__init__(loader, keys)
        n = loader.num_workers
        told = keys.of_iterable or {"workers": [[]] * n, "turn": 0}
        self._books = Books(tuple(Mark(*mark) for mark in told["workers"]), told["turn"], (0,) * n)
        self.progress.of_iterable = self._books.state()
        self._workers, self._n_ahead, self._allow_pickle = workers, loader.n_ahead, loader.allow_pickle
        assert loader.collate_fn is not None
        batch_size = loader.batch_size if loader._auto_collation else None
        functions = loader.collate_fn, loader.worker_init_fn
        spec = IterableSpec(loader.dataset, *functions, batch_size, loader.drop_last, keys.base_seed)
        ring, epoch = workers.borrow(loader, spec)
        self._ring: IterableRing | None = ring
        self._end = weakref.finalize(self, workers.give_back if loader.persistent_workers else _close, ring)
        self._end.atexit = False
        ring.begin(epoch, self._books.marks, keys.n_before)
        self._submit(ring)

    def _submit(self, ring: IterableRing) -> None:
        books = self._books = self._books.with_turns(self._n_ahead)
        for number, (worker, n_before) in enumerate(books.submitted, books.due):
            ring.order.submit(number, worker, n_before)
        ring.feed.post()

    def _next(self) -> Any:
        while self._ring is not None:
            try:
                self._submit(self._ring)
                if not self._books.turns:
                    break
                arrived, books = self._books.given()
                if arrived is None:
                    self._receive(self._ring)
                    continue
            except StallError as error:
                raise timed_out(error, self._loader.timeout, self._name) from error
            except Exception as error:
                self._fail(error, self._ring)
            self._books = books
            if arrived.data is NO_MORE:
                continue
            self.progress.of_iterable = books.state()
            if arrived.error is None:
                return self._given(arrived.data)
            self._given(None)
            try:
                raise arrived.error
            finally:
                del arrived  # breaks the cycle of error, traceback and frame
        self._ring = None
        self._end()
        return NO_MORE

    def _receive(self, ring: IterableRing) -> None:
        """Wait for the row that is due, and note what it has."""
        books, bad, batch = self._books, list[Bad](), None
        if ring.feed.due == books.due:  # else an interruption came when it had been lent
            batch, bad = ring.feed.next()
        lent = ring.order.lent
        assert lent is not None, "a row is read when it is lent"
        assert lent.number == books.due, "no row is lent before the last was noted"
        self._books = books.received(self._arrived(lent, bad, ring))
        ring.order.forget(lent.number)
        if batch is not None:
            batch.release()

    def _arrived(self, lent: Lent, bad: list[Bad], ring: IterableRing) -> np.ndarray | Arrived:
        """What a row has: a piece, or what comes of the worker."""
        mark = lent.mark
        if bad:
            return Arrived(mark, error=raised(bad[0], self._name(lent.number, bad[0].index), ring.feed.deaths))
        if lent.n_left == END:
            return Arrived(mark, NO_MORE)
        if not mark.n_bytes:
            text = f"{self._name(lent.number, 0)} has raised an error, whose text was lost by an interruption"
            return Arrived(mark, error=RuntimeError(text))
        self._workers.note(mark.n_bytes)
        if lent.piece is None:
            return Arrived(mark, lent.data, lent.error)
        if lent.n_left:
            return lent.piece
        pieces = self._books.pieces.get(self._books.submitted[0][0], ())
        try:
            return Arrived(mark, decode(np.concatenate([*pieces, lent.piece])[: mark.n_bytes], self._allow_pickle))
        except Exception as error:  # takes the place of the batch
            return Arrived(mark, error=without_frames(error))

    def _name(self, number: int, index: int) -> str:
        """The name of a row in messages."""
        at = number - self._books.due
        return f"a batch of worker {self._books.submitted[at][0]}" if 0 <= at < len(self._books.submitted) else "a batch"

    def _fail(self, error: Exception, ring: IterableRing) -> NoReturn:
        """The pass cannot go on: raise what torch would."""
        deaths = ring.feed.deaths
        self.progress.is_finished, self._ring = True, None
        self._end.detach()
        ring.feed.close()
        if isinstance(error, WorkerDiedError):
            raise died(error, self._name(self._books.due, 0), deaths, self._loader.restarts) from error
        if (unusable := unusable_in_worker(error)) is not None:
            raise unusable from error
        raise error


def _close(ring: IterableRing) -> None:
    ring.feed.close()


class InProcessIterablePass(_Counted):
    """Reads each batch in the trainer when it is asked for. As with torch, what is drawn is drawn from the trainer's own
    generators. A pass that goes on from a state begins anew, with the generators as they were then, and skips batches."""

    def __init__(self, loader: DataLoader, keys: Keys) -> None:
        super().__init__(loader, keys)
        own = Generators()
        before = Generators.of_text(keys.of_iterable["generators"]) if keys.of_iterable is not None else own
        self.progress.of_iterable = {"generators": before.text()}
        self._size = [None] * (loader.batch_size or 1) if loader._auto_collation else None
        try:
            before.restore()
            self._fetcher = _IterableDatasetFetcher(loader.dataset, loader._auto_collation, loader.collate_fn, loader.drop_last)
            for _ in range(keys.number):
                with suppress(Exception):  # it was raised when the batch was read first; an end comes again
                    self._fetcher.fetch(self._size)
        finally:
            if keys.number:
                own.restore()

    def _next(self) -> Any:
        try:
            data = self._fetcher.fetch(self._size)
        except StopIteration:
            return NO_MORE
        except Exception:  # takes the place of the batch
            self._given(None)
            raise
        return self._given(data)
