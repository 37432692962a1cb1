"""Filling rows: the part of a worker's work that has to do with samples and not with processes.

In: rows `start:stop` of a batch, and the arrays of its slot, where the order has written each row's index and draw key. Out:
the rows written, and what was bad among them. The result depends on (seed, epoch, index, draw key) and on what else the order
wrote into a row, never on which worker fills it or how often.
"""

from __future__ import annotations

import random
import struct
import traceback
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import Any, Literal

import numpy as np

from ringload.bad_sample import MAX_NAME, MAX_REASON, MAX_TRACEBACK, MAX_WHERE, Bad, bounded, end_of
from ringload.fields import Row, write_exactly
from ringload.order.randomness import Generators, Randomness, substitutes
from ringload.packing.generators import OwnGenerators
from ringload.protocols import PAD, Job, NoMoreRowsError
from ringload.ring.layout import KEY
from ringload.sources.bind import BoundSource
from ringload.system.arrivals import ARRIVALS

OnError = Literal["raise", "skip", "replace"]
NoteWork = Callable[[int, int, int], None]  # (sample, or -1 for several; first row; row after the last)
Begun = list[Future[Bad | None]]  # what threads find to be bad, of each row that they were given

N_SUBSTITUTES = 16  # tried for one bad sample before the error is raised after all
LEFT_DEBUGGER = "the debugger has ended. Workers have no terminal: debug with workers=0, which loads in the trainer's process"


class Filler:
    """Fills rows from a source.

    `poison_samples` maps each sample that killed its worker twice to a text that says how: it is bad, and not tried again.
    `wrap` is put around the source's methods, if they call a user's code. `own`: the source's random generators.
    """

    def __init__(
        self,
        job: Job,
        source: BoundSource,
        poison_samples: dict[int, str] | None = None,
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
        own: OwnGenerators | None = None,
    ) -> None:
        self._bound, self._job = source, job
        self._own = own if own is not None else OwnGenerators([])
        self._poison_samples = poison_samples or {}
        self._randomness = Randomness(job.seed)
        self._load, self._load_rows = source.load, source.load_rows
        self._threads: ThreadPoolExecutor | None = None
        if source.calls_user_code:
            self._load, self._load_rows = self._load and wrap(self._load), self._load_rows and wrap(self._load_rows)

    @property
    def begins_ahead(self) -> bool:
        """Whether `begin` is called for tasks before they are filled: their rows are loaded by threads. Not if the source wants
        to know of a task before, or loads its rows in one call."""
        bound = self._bound
        hooks = (bound.prefetch, bound.load_rows, bound.begin_task, bound.load_again, bound.end_task)
        return bound.threads > 1 and all(hook is None for hook in hooks)

    def begin(self, epoch: int, start: int, stop: int, slot: dict[str, np.ndarray]) -> Begun:
        """Have the threads load rows `start:stop` of a batch, once they have loaded those that were begun before. `fill` waits
        for them."""
        rows = {name: array[start:stop] for name, array in slot.items()}
        index = rows["index"][rows["index"] != PAD].copy()
        return self._begin(epoch, index, rows[KEY][: len(index)].copy(), rows)

    def fill(
        self,
        epoch: int,
        start: int,
        stop: int,
        slot: dict[str, np.ndarray],
        note_work: NoteWork = lambda sample, start, stop: None,
        one_by_one: bool = False,
        begun: Begun | None = None,
    ) -> list[Bad]:
        """Fill rows `start:stop` of a batch. Returns what was bad.

        `slot` is field -> `(B, ...)`. `note_work` is called before each step; the sample is -1 for a step of several. With
        `one_by_one` there is no such step. `begun` is what `begin` has returned for these rows.
        """
        rows = {name: array[start:stop] for name, array in slot.items()}
        keys = rows.pop(KEY)
        index = rows["index"].copy()  # there, a substitute's takes the place of a bad sample's
        ordered = {name: rows[name].copy() for name in self._bound.order_fields}  # the same is true of these
        bad = self._fill(epoch, start, index, keys, rows, note_work, one_by_one, begun)
        if self._is_to_load_again():
            rows["index"][:] = index
            for name, values in ordered.items():
                rows[name][:] = values
            bad = self._fill(epoch, start, index, keys, rows, note_work, one_by_one)
        if self._bound.end_task is not None:
            self._bound.end_task()
        return bad

    def _is_to_load_again(self) -> bool:
        if self._bound.load_again is not None:
            return self._bound.load_again()
        return self._bound.calls_user_code and self._own.were_used(self._bound.source)

    def _fill(
        self,
        epoch: int,
        start: int,
        index: np.ndarray,
        keys: np.ndarray,
        rows: dict[str, np.ndarray],
        note_work: NoteWork,
        one_by_one: bool,
        begun: Begun | None = None,
    ) -> list[Bad]:
        n_present = int(np.count_nonzero(index != PAD))  # padding is at the end
        if "valid" in rows:
            rows["valid"][:] = index != PAD
        if n_present < len(index):
            for name in self._bound.names:
                rows[name][n_present:] = np.zeros((), rows[name].dtype)
        at_once = self._load_rows is not None and not one_by_one and not self._own.are_set  # that is for one sample at a time
        if at_once and n_present and not self._any_poison(index[:n_present]):
            note_work(-1, start, start + n_present)
            if self._fill_at_once(epoch, index[:n_present], keys[:n_present], rows):
                return []
        if self._bound.begin_task is not None:
            try:
                self._bound.begin_task(rows)
            except Exception as error:  # it belongs to all of them
                return [self._bad(sample, error) for sample in index[:n_present].tolist()]
        if self._bound.threads > 1 and self._load is not None and n_present > 1 and not one_by_one:
            note_work(-1, start, start + n_present)
            if begun is None:
                begun = self._begin(epoch, index[:n_present], keys[:n_present], rows)
            return self._made_good(begun, epoch, start, keys, rows, note_work)
        bad = []
        for row, (sample, key) in enumerate(zip(index[:n_present].tolist(), keys[:n_present].tolist(), strict=True)):
            note_work(sample, start + row, start + row + 1)
            try:
                problem = self._load_row(epoch, sample, key, row, rows)
            except NoMoreRowsError:
                self._leave_out(row, rows)
                break
            if problem is not None:
                noted = partial(_note_row, note_work, start + row)
                bad.append(self._make_good(problem, epoch, key, row, rows, noted))
        return bad

    def _begin(self, epoch: int, index: np.ndarray, keys: np.ndarray, rows: dict[str, np.ndarray]) -> Begun:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._bound.threads, "ringload-load")
        rngs: Iterable[Any] = Generators(self._job.seed, epoch, keys) if self._bound.random else repeat(None)
        begun: Begun = []
        for row, (sample, key, rng) in enumerate(zip(index.tolist(), keys.tolist(), rngs, strict=False)):
            begun.append(ARRIVALS.follow(self._threads.submit, self._load_row, epoch, sample, key, row, rows, rng))
        return begun

    def _made_good(
        self, begun: Begun, epoch: int, start: int, keys: np.ndarray, rows: dict[str, np.ndarray], note_work: NoteWork
    ) -> list[Bad]:
        """Wait for all rows; then load substitutes of bad ones."""
        bad = []
        for row, problem in enumerate([future.result() for future in begun]):
            if problem is not None:
                noted = partial(_note_row, note_work, start + row)
                bad.append(self._make_good(problem, epoch, int(keys[row]), row, rows, noted))
        return bad

    def _leave_out(self, first: int, rows: dict[str, np.ndarray]) -> None:
        """The rows from `first` on hold no samples."""
        rows["index"][first:] = PAD
        if "valid" in rows:  # else they are not shown
            for name in (*self._bound.names, "valid"):
                rows[name][first:] = np.zeros((), rows[name].dtype)

    def _any_poison(self, indices: np.ndarray) -> bool:
        return bool(self._poison_samples) and any(int(index) in self._poison_samples for index in indices)

    def _fill_at_once(self, epoch: int, index: np.ndarray, keys: np.ndarray, rows: dict[str, np.ndarray]) -> bool:
        """Try `load_rows` on all rows; False if it raised: then they are tried one by one, to find out which is bad."""
        try:
            self._load_rows_into(epoch, index, keys, rows, slice(0, len(index)))
        except Exception:  # whatever a user's function raises: reported when its row is tried alone
            return False
        return True

    def _load_rows_into(
        self, epoch: int, index: np.ndarray, keys: np.ndarray, rows: dict[str, np.ndarray], which: slice
    ) -> None:
        assert self._load_rows is not None
        views = {name: rows[name][which] for name in self._bound.names}
        out = dict(views)
        self._load_rows(index.copy(), Generators(self._job.seed, epoch, keys), out)  # the user's function may sort them, say
        for name, view in views.items():
            if out.get(name) is not view:  # assigned, instead of written to: as with a Row, that writes it
                write_exactly(view, out[name], name)

    def _load_row(
        self, epoch: int, sample: int, key: int, row: int, rows: dict[str, np.ndarray], own_rng: Any = None
    ) -> Bad | None:
        """Load a sample into one row of `rows`, field -> `(n, ...)`. Returns what was wrong with it. `own_rng`: its generator,
        where several threads load at once; the global ones are left alone then.

        One function, because in a worker, whose caches the decoders fill, each call costs a microsecond.
        """
        source = self._bound
        if sample in self._poison_samples:
            where = self._where(sample) if source.is_own else ""  # a user's describe() may be what kills the worker
            return Bad(sample, where, self._poison_samples[sample], "")
        try:
            if self._load is None:
                self._own.set(self._seed(epoch, key))
                self._load_rows_into(epoch, np.array([sample]), np.array([key]), rows, slice(row, row + 1))
                return None
            rng = own_rng
            if rng is None and source.random:
                rng = self._randomness.of(epoch, key)
            if source.global_random and own_rng is None:
                seed = self._seed(epoch, key)  # draws nothing from `rng`
                random.seed(seed)
                np.random.seed(seed)
                self._own.set(seed)
            views = Row({name: rows[name][row, ...] for name in source.names}, row)
            result = self._load(sample, rng, views)
            if result is not None:
                raise TypeError(f"load() returned a {type(result).__name__}; it has to write into `out` and return nothing")
            if source.calls_user_code and (untouched := views.untouched()):
                raise ValueError(f"load() did not write the fields {sorted(untouched)}")
        except NoMoreRowsError:
            raise
        except Exception as error:  # whatever a decoder or a user's function raises: it belongs to this sample
            return self._bad(sample, error)
        return None

    def _seed(self, epoch: int, key: int) -> int:
        return zlib.crc32(struct.pack("<QQQ", self._job.seed, epoch, key))

    def _make_good(
        self, problem: Bad, epoch: int, key: int, row: int, rows: dict[str, np.ndarray], note_work: Callable[[int], None]
    ) -> Bad:
        """Put another sample in the place of a bad one, or zeros. Each substitute is noted before it is tried: it may kill the
        worker, too."""
        job = self._job
        if job.on_error == "replace":
            for other in substitutes(job.seed, epoch, key, job.n_samples, N_SUBSTITUTES).tolist():
                note_work(other)
                if self._load_row(epoch, other, other, row, rows) is None:
                    rows["index"][row] = problem.replaced_by = other
                    return problem
        for name, array in rows.items():
            if name != "index":  # `valid` too becomes False
                array[row] = np.zeros((), array.dtype)
        return problem

    def _bad(self, sample: int, error: Exception) -> Bad:
        text = traceback_of(error) if self._bound.calls_user_code else ""
        kind = type(error)
        error_class = (bounded(str(kind.__module__), MAX_NAME), bounded(str(kind.__qualname__), MAX_NAME))
        return Bad(sample, self._where(sample), reason_of(error), text, error_class=error_class)

    def _where(self, sample: int) -> str:
        try:
            return bounded(str(self._bound.describe(sample)), MAX_WHERE)
        except Exception as error:  # a user's function: an error about an error shall not hide the first
            return f"(describe() raised {type(error).__name__})"


def _note_row(note_work: NoteWork, row: int, sample: int) -> None:
    note_work(sample, row, row + 1)


def reason_of(error: Exception) -> str:
    """`ValueError: what it says`, in one line; whatever the class of a user's does when it is asked."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        said = str(error)
    except Exception:
        said = "<exception str() failed>"
    if name == "bdb.BdbQuit":
        said = LEFT_DEBUGGER
    return " ".join(bounded(f"{name}: {said}" if said else name, MAX_REASON).splitlines())


def traceback_of(error: Exception) -> str:
    """The last lines of an error's traceback. An exception with odd attributes, of a user's class, cannot be formatted."""
    try:
        return end_of("".join(traceback.format_exception(error)), MAX_TRACEBACK)
    except Exception:
        return end_of("".join(traceback.format_tb(error.__traceback__)), MAX_TRACEBACK)
