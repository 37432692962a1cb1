"""A reader of a part of a stream, in a worker: from a mark on, row after row, or window after window.

A mark is {"epoch", "row", "n", "ended", "state", "at"}: see `order.stream`. With windows, "row" and "state" are where a window
begins, and "at" is how many of its rows were given. So another worker reads the whole window again, and goes on with the row
that is due.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.errors import without_frames
from ringload.fields import Row
from ringload.order.permutation import permute_each, round_keys
from ringload.order.randomness import Randomness
from ringload.order.stream_note import Mark
from ringload.protocols import NoMoreRowsError
from ringload.sources.stream_rows import StreamRows


@dataclass(frozen=True)
class Way:
    """How the parts of a stream are read. `repeats`: a part that ends is opened again. `n_window`: 0 for no shuffling."""

    factory: Callable[[int, int, int], Any]
    rows: StreamRows
    n_parts: int
    replays: bool
    repeats: bool
    n_window: int


class Window:
    """Rows that were read at once, `arrays` field -> `(n, *shape)`, and are given in the order of `places`. Row i is an error
    where `errors` has one. `is_last`: the part has ended behind them."""

    def __init__(self, arrays: dict[str, np.ndarray], n_rows: int, errors: dict[int, Exception], is_last: bool) -> None:
        self._arrays, self.n_rows, self._errors, self.is_last = arrays, n_rows, errors, is_last
        self._places: list[int] = []

    def shuffle(self, seed: int, part: int, epoch: int, row: int) -> None:
        """Choose the order of a window that begins with `row`."""
        n, which = self.n_rows, np.uint64((part << 40) ^ row)
        self._places = permute_each(np.arange(n), np.full(n, n), np.full(n, which), round_keys(seed, epoch)).tolist()

    def row(self, at: int) -> dict[str, np.ndarray]:
        """The row that is given as number `at`."""
        place = self._places[at]
        if place in self._errors:
            raise self._errors[place].with_traceback(None)
        return {name: array[place] for name, array in self._arrays.items()}


class Reader:
    """Reads a part from a mark on. It is opened when its first row is read."""

    def __init__(self, way: Way, part: int, seed: int, mark: Mark) -> None:
        self._way, self._part, self._seed = way, part, seed
        self._place = {"at": 0} | dict(mark)
        self._opened: Any = None  # what the factory has returned
        self._rows: Iterator[Any] | None = None
        self._failure = ""  # why there are no more rows
        self._window: Window | None = None
        self._arrays = {name: np.empty((way.n_window, *one.shape), one.dtype) for name, one in way.rows.kept_fields.items()}
        self._randomness = Randomness(seed)

    def goes_on_at(self, mark: Mark) -> bool:
        """Whether the next row is that behind the mark. A reader that cannot be opened there goes on where it is."""
        is_open = self._rows is not None and not self._failure and self._place["epoch"] == mark["epoch"]
        if is_open and not self._way.replays and not self._is_seekable:
            self._place = dict(mark) | {"at": self._place["at"]}
            return True
        there = {"at": 0} | mark
        return all(self._place[name] == there[name] for name in ("epoch", "row", "ended", "at"))

    def mark(self) -> Mark:
        """The mark of the next row."""
        if self._rows is not None and self._window is None:
            self._note_state()
        return self._place if self._way.n_window else {name: one for name, one in self._place.items() if name != "at"}

    def _note_state(self) -> None:
        self._place.pop("state", None)
        if self._is_seekable:
            self._place["state"] = self._opened.state()

    def take(self) -> Any:
        """The next row.

        Raises:
            NoMoreRowsError: the part has ended.
        """
        if self._way.n_window:
            return self._take_of_window()
        if self._failure:
            raise RuntimeError(self._failure)
        if self._place["ended"]:
            raise NoMoreRowsError
        try:
            row = self._read()
        except StopIteration:
            return self._after_end(self._place["row"])
        except Exception:
            if self._rows is not None:  # it was opened
                self._count()
            raise
        self._count()
        return row

    def _read(self) -> Any:
        """The next row as the reader gives it. Raises StopIteration at the end."""
        if self._failure:
            raise RuntimeError(self._failure)
        try:
            if self._rows is None:
                self._rows = self._open()
            return next(self._rows)
        except StopIteration:
            raise
        except Exception as error:
            if self._rows is not None and inspect.isgenerator(self._rows):
                self._failure = f"part {self._part} goes on no more: its generator has raised {type(error).__name__}"
            raise
        except BaseException:  # an interruption, with workers=0: it is not known whether a row was read
            self._place["row"], self._rows, self._window = -1, None, None
            raise

    def _count(self) -> None:
        self._place["row"] += 1
        self._place["n"] += 1

    def _after_end(self, n_rows: int) -> Any:
        """Go on behind the end of a part that has `n_rows`."""
        place = self._place
        if self._way.repeats and not n_rows:
            raise ValueError(f"part {self._part} of the stream has no rows: with steps=, each part needs one")
        place.pop("state", None)
        self._rows = self._opened = None
        if not self._way.repeats:
            place["ended"] = True
            raise NoMoreRowsError
        place["epoch"], place["row"] = place["epoch"] + 1, 0
        return self.take()

    # -- windows ------------------------------------------------------------------------------------------------------

    def _take_of_window(self) -> Any:
        place = self._place
        if place["ended"]:
            raise NoMoreRowsError
        if self._window is None:
            self._window = self._filled()
            self._window.shuffle(self._seed, self._part, place["epoch"], place["row"])
        window = self._window
        if place["at"] < window.n_rows:
            place["at"], place["n"] = place["at"] + 1, place["n"] + 1
            return window.row(place["at"] - 1)
        place["row"], place["at"], self._window = place["row"] + window.n_rows, 0, None
        if window.is_last:
            return self._after_end(place["row"])
        self._note_state()
        return self.take()

    def _filled(self) -> Window:
        """Read the next window. An error of a row is raised when the row is given."""
        errors: dict[int, Exception] = {}
        for number in range(self._way.n_window):
            try:
                row = self._read()
                out = Row({name: array[number, ...] for name, array in self._arrays.items()})
                self._way.rows.keep(row, self._rng(number), out)
            except StopIteration:
                return Window(self._arrays, number, errors, True)
            except Exception as error:
                errors[number] = without_frames(error)
                if self._rows is None:  # it cannot be opened
                    raise
                if self._failure:
                    return Window(self._arrays, number + 1, errors, False)
        return Window(self._arrays, self._way.n_window, errors, False)

    def _rng(self, number: int) -> Any:
        """The generator of the row that is read as `number` of the window, if rows draw: the same whenever it is read."""
        key = (self._place["row"] + number) * self._way.n_parts + self._part
        return self._randomness.of(self._place["epoch"], key) if self._way.rows.random else None

    # -- opening ------------------------------------------------------------------------------------------------------

    @property
    def _is_seekable(self) -> bool:
        return all(callable(getattr(self._opened, name, None)) for name in ("state", "seek"))

    def _open(self) -> Iterator[Any]:
        rows: Iterator[Any]
        place = self._place
        try:
            self._opened = self._way.factory(self._part, self._way.n_parts, place["epoch"])
            if self._is_seekable and "state" in place:
                self._opened.seek(place["state"])
            rows = iter(self._opened)
        except StopIteration as error:  # would be taken for the end of the part
            raise RuntimeError(f"part {self._part} of the stream cannot be opened: StopIteration was raised") from error
        is_there = self._is_seekable and "state" in place
        for n_skipped in range(place["row"] if self._way.replays and not is_there else 0):
            try:
                next(rows)
            except StopIteration:
                raise ValueError(
                    f"part {self._part} of the stream was opened again, and has {n_skipped:,} rows; {place['row']:,} were read "
                    "before: a factory that does not give the same rows again needs replays=False, or state() and seek()"
                ) from None
            except Exception:  # it was told when the row was read first
                continue
        return rows
