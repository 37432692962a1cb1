"""Filling rows: the part of a producer's work that knows samples and no processes. The trainer calls it for `workers=0`.

In: rows `start:stop` of a batch, and the arrays of its slot. Out: their rows written, and what was bad among them. The
result depends on (seed, epoch, the sample's index) alone, never on who fills it or how often.
"""

from __future__ import annotations

import random
import struct
import traceback
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, overload

import numpy as np

from ringload.data.fields import Row, write_exactly
from ringload.data.sampler import PAD, Order, Randomness, Sampler, substitutes
from ringload.errors import ConfigError
from ringload.ring.ring import Bad

OnError = Literal["raise", "skip", "replace"]

N_SUBSTITUTES = 16  # tried for one bad sample before the error is raised after all
MAX_WHERE, MAX_REASON, MAX_TRACEBACK = 800, 500, 2000  # characters: the three fit into one record


class Rngs(Sequence[np.random.Generator]):
    """The generators of several samples, each made when it is asked for."""

    def __init__(self, seed: int, epoch: int, indices: np.ndarray) -> None:
        self._seed, self._epoch, self._indices = seed, epoch, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, item: int) -> np.random.Generator: ...
    @overload
    def __getitem__(self, item: slice) -> Rngs: ...
    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return Rngs(self._seed, self._epoch, self._indices[item])
        return Randomness(self._seed).of(self._epoch, int(self._indices[item]))


class Filler:
    """Fills rows from a source.

    `killers` maps samples that killed their producer twice to how they did it: they are bad without being tried again.
    `wrap` is put around the source's `load` and `load_rows`, if they call a user's code.
    """

    def __init__(
        self,
        source: Any,
        order: Order,
        on_error: OnError,
        killers: dict[int, str] | None = None,
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    ) -> None:
        self._source = source
        self._order = order
        self._on_error = on_error
        self._killers = killers or {}
        self._sampler = Sampler(order)
        self._randomness = Randomness(order.seed)
        self._random = getattr(source, "random", True)
        self._global_random = self._random and getattr(source, "global_random", True)
        self._load_rows: Callable[..., None] | None = getattr(source, "load_rows", None)
        self._load: Callable[..., Any] | None = getattr(source, "load", None)
        self._names = tuple(source.fields)
        if self._load is None and self._load_rows is None:
            raise ConfigError(f"{type(source).__name__} has neither load(index, rng, out) nor load_rows(indices, rngs, out)")
        self._is_ours = type(source).__module__.startswith("ringload.")
        self._calls_users = self._global_random or not self._is_ours
        if self._calls_users:
            self._load, self._load_rows = self._load and wrap(self._load), self._load_rows and wrap(self._load_rows)

    def indices(self, epoch: int, number: int, start: int, stop: int) -> np.ndarray:
        """The samples of rows `start:stop` of a batch, without those that are padding: `(n,) int64`."""
        indices = self._sampler.indices(epoch, number, start, stop)
        return np.asarray(indices[indices != PAD])

    def fill(
        self,
        epoch: int,
        number: int,
        start: int,
        stop: int,
        slot: dict[str, np.ndarray],
        claim: Callable[[int, int, int], None] = lambda sample, start, stop: None,
        one_by_one: bool = False,
    ) -> list[Bad]:
        """Fill rows `start:stop` of batch `number`. Returns what was bad.

        `slot` is field -> `(B, ...)`. `claim(sample, first row, row after the last)` is called before each step; the
        sample is -1 for a step of several. With `one_by_one` there is no such step.
        """
        rows = {name: array[start:stop] for name, array in slot.items()}
        indices = rows["index"]
        indices[:] = self._sampler.indices(epoch, number, start, stop)
        n_present = int(np.count_nonzero(indices != PAD))  # padding is at the end
        if "valid" in rows:
            rows["valid"][:] = indices != PAD
        if n_present < stop - start:
            for name in rows.keys() - {"index", "valid"}:
                rows[name][n_present:] = np.zeros((), rows[name].dtype)
        if self._load_rows is not None and n_present and not one_by_one and not self._any_killer(indices[:n_present]):
            claim(-1, start, start + n_present)
            if self._fill_at_once(epoch, {name: array[:n_present] for name, array in rows.items()}):
                return []
        bad = []
        for row, index in enumerate(indices[:n_present].tolist()):
            claim(index, start + row, start + row + 1)
            if (problem := self._load_row(epoch, index, row, rows)) is not None:
                bad.append(self._make_good(problem, epoch, row, rows, partial(_claim_row, claim, start + row)))
        return bad

    def _any_killer(self, indices: np.ndarray) -> bool:
        return bool(self._killers) and any(int(index) in self._killers for index in indices)

    def _fill_at_once(self, epoch: int, rows: dict[str, np.ndarray]) -> bool:
        """Try `load_rows` on all rows; False if it raised: then they are tried one by one, to find out which is bad."""
        indices = rows["index"].copy()  # the user's function may sort it, say
        try:
            self._load_rows_into(epoch, indices, rows, slice(None))
        except Exception:  # whatever a user's function raises; said when its row is tried alone
            return False
        return True

    def _load_rows_into(self, epoch: int, indices: np.ndarray, rows: dict[str, np.ndarray], which: slice) -> None:
        assert self._load_rows is not None
        views = {name: rows[name][which] for name in self._names}
        out = dict(views)
        self._load_rows(indices.copy(), Rngs(self._order.seed, epoch, indices), out)
        for name, view in views.items():
            if out.get(name) is not view:  # assigned, instead of written to: as with a Row, that writes it
                write_exactly(view, out[name], name)

    def _load_row(self, epoch: int, index: int, row: int, rows: dict[str, np.ndarray]) -> Bad | None:
        """Load sample `index` into one row of `rows`, field -> `(n, ...)`. Returns what was wrong with it.

        One function, because in a producer, whose caches the decoders fill, each call costs a microsecond.
        """
        if index in self._killers:
            where = self._where(index) if self._is_ours else ""  # a user's describe() may be what kills
            return Bad(index, where, self._killers[index], "")
        try:
            if self._load is None:
                self._load_rows_into(epoch, np.array([index]), rows, slice(row, row + 1))
                return None
            rng = self._randomness.of(epoch, index) if self._random else None
            if self._global_random:
                seed = zlib.crc32(struct.pack("<QQQ", self._order.seed, epoch, index))  # draws nothing from `rng`
                random.seed(seed)
                np.random.seed(seed)
            views = Row({name: rows[name][row, ...] for name in self._names})
            result = self._load(index, rng, views)
            if result is not None:
                raise TypeError(f"load() returned a {type(result).__name__}; it has to write into `out` and return nothing")
            if untouched := views.untouched():
                raise ValueError(f"load() did not write the fields {sorted(untouched)}")
        except Exception as error:  # whatever a decoder or a user's function raises: it belongs to this sample
            return self._bad(index, error)
        return None

    def _make_good(self, problem: Bad, epoch: int, row: int, rows: dict[str, np.ndarray], claim: Callable[[int], None]) -> Bad:
        """Put another sample in the place of a bad one, or zeros. Each that is tried is claimed: it may kill, too."""
        if self._on_error == "replace":
            for other in substitutes(self._order, epoch, problem.index, N_SUBSTITUTES).tolist():
                claim(other)
                if self._load_row(epoch, other, row, rows) is None:
                    rows["index"][row] = problem.replaced_by = other
                    return problem
        for name, array in rows.items():
            if name != "index":  # `valid` too becomes False
                array[row] = np.zeros((), array.dtype)
        return problem

    def _bad(self, index: int, error: Exception) -> Bad:
        text = traceback_of(error) if self._calls_users else ""
        return Bad(index, self._where(index), reason_of(error), text)

    def _where(self, index: int) -> str:
        describe = getattr(self._source, "describe", None)
        try:
            return bounded(str(describe(index)), MAX_WHERE) if describe is not None else ""
        except Exception as error:  # a user's function: an error about an error shall not hide the first
            return f"(describe() raised {type(error).__name__})"


def _claim_row(claim: Callable[[int, int, int], None], row: int, sample: int) -> None:
    claim(sample, row, row + 1)


def reason_of(error: Exception) -> str:
    """`ValueError: what it says`, in one line; whatever the class of a user's does when it is asked."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        said = str(error)
    except Exception:
        said = "<exception str() failed>"
    return " ".join(bounded(f"{name}: {said}" if said else name, MAX_REASON).splitlines())


def traceback_of(error: Exception) -> str:
    """The end of an error's traceback. An exception with odd attributes, of a user's class, cannot be formatted."""
    try:
        return "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__))[-MAX_TRACEBACK:]


def bounded(text: str, n: int) -> str:
    """The text, or its beginning and end."""
    return text if len(text) <= n else f"{text[: n // 2]} ... {text[-n // 2 :]}"
