"""A stream as a source: rows that have no index, as a generator or another iterator gives them.

What passes through: for each batch, `begin_task` reads which part it is of, and the mark where the part goes on (`order.stream`
says what order and source tell each other); `load` reads the next row of the part, for each row of the batch; `end_task` writes
the mark behind them. A worker keeps the readers of its parts open from batch to batch. A reader that is not where the mark
says is replaced by one that is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ringload.checks import flag, integer, named, short
from ringload.errors import ConfigError
from ringload.fields import Worker, as_fields
from ringload.order.explicit import NO_END
from ringload.order.stream import MAX_MARK_BYTES, NOTE, Mark, StreamParts, read_note, write_note
from ringload.protocols import NoMoreRowsError


class Stream:
    """A source whose rows have no index: a generator, an iterable dataset, a pipeline of shards, a queue.

        def rows(part, n_parts, epoch):                     # in a worker
            for path in sorted(paths)[part::n_parts]:
                for x, y in read(path):
                    yield {"x": x, "y": y}

        source = ringload.Stream(rows, {"x": ringload.Field((8,), "float32"), "y": ringload.Field((), "int64")}, parts=4)
        for batch in ringload.Loader(source, 256, last="keep"): ...

    Guarantees:
    1. The order is fixed: batch c is of part c % parts, and has the next rows of that part, in their order. It does not depend
       on the number of workers. A part is read by one worker, so more workers than parts have nothing to do.
    2. An epoch ends when all parts have ended, after any number of rows each. A part ends with a shorter batch, which
       `Loader(last=...)` drops, keeps or pads, as it does for the last batch of another source. With `steps`, all batches are
       whole.
    3. A worker's death, an interruption, and `load_state_dict` lose and repeat no row, if readers have `state()` and `seek()`,
       or if they replay. If `replays=False`, and they have no `seek()`, no row comes twice; rows that were read and not
       received are lost, and a RuntimeWarning says how many at most.
    4. A state has the place of each part behind the rows that the trainer has received. Another number of workers, or another
       batch size, can go on from it; the number of parts, `steps`, and the ranks have to be the same. Each rank has a state of
       its own.

    The end of an epoch is known only when all parts have ended. So the next epoch is not filled ahead of it, and `len(loader)`
    raises TypeError until then. With several ranks, and with adapters that need to know the length, give `steps`.

    Arguments:
        factory: `factory(part, n_parts, epoch)` opens a part, 0..n_parts-1, for the given time (0, 1, ...), and returns an
            iterable of rows: dicts of field -> value. It is called in the worker that reads the part. What it returns may have
            `state()`, which returns what JSON can hold (up to 4,000 bytes), after each batch; and `seek(state)`, which is
            called before the first row is read, and goes on behind the last row that was read before `state()`.
        fields: name -> Field of a row.
        parts: how many parts there are on each rank. The rows of the stream have to be shared among them by `factory`.
        steps: batches of an epoch, for streams that do not end, or end anywhere: each epoch goes on where the one before has
            ended, and a part that ends is opened again at once. None: an epoch is one pass over all parts.
        replays: for readers without `seek()`: whether opening a part again for the same epoch gives the same rows in the same
            order, as it does for files. Then it goes on by skipping rows. False, for queues and sockets: it goes on with what
            it is given.

    Raises:
        ConfigError: an argument is not valid. While iterating, SampleError: `factory` or a reader has raised, or a row does not
        fit the fields. An error of a generator ends the generator, so each later batch of its part raises.
    """

    random = False
    calls_user_code = True

    def __init__(
        self,
        factory: Callable[[int, int, int], Any],
        fields: Mapping[str, Any],
        *,
        parts: int = 1,
        steps: int | None = None,
        replays: bool = True,
    ) -> None:
        if not callable(factory):
            raise ConfigError(
                f"a Stream takes factory(part, n_parts, epoch), a function that returns an iterable, not {short(factory)}"
            )
        self.factory, self.fields = factory, as_fields(fields)
        self.default_order = StreamParts(
            integer("parts", parts, 1), None if steps is None else integer("steps", steps, 1), flag("replays", replays)
        )
        self._readers: dict[tuple[int, int], _Reader] = {}

    def __len__(self) -> int:
        """More than there can be, as it is not known."""
        return NO_END

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {field}" for name, field in self.fields.items())
        return f"<Stream of {self.default_order.n_parts} parts: {fields}>"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}  # those of workers=0

    def start(self, worker: Worker) -> None:
        """Open nothing: parts are opened when they are read."""

    def begin_task(self, rows: Mapping[str, np.ndarray]) -> None:
        """Go to the place where the part goes on."""
        self._note = rows[NOTE]
        told = read_note(self._note)
        self._n_parts, key, mark = told["n_parts"], (told["id"], told["part"]), told["mark"]
        self._n_taken = 0  # of the rows of this task
        reader = self._readers.get(key)
        if mark is not None and (reader is None or not reader.goes_on_at(mark)):
            reader = self._readers[key] = _Reader(self, told["part"], self._n_parts, mark)
        if reader is None:
            raise RuntimeError(f"part {told['part']} of a stream has no reader: this is an error of ringload")
        self._reader = reader

    def load(self, index: int, rng: Any, out: Any) -> None:
        """Write the next row of the part."""
        for _ in range(out.number - self._n_taken):  # rows that have killed their worker are not loaded, and are read now
            self._reader.take()
        self._n_taken = out.number + 1
        row = self._reader.take()
        if not isinstance(row, Mapping):
            raise TypeError(f"a row of a stream is a dict of field -> value, not {named(row)}")
        if lacking := [name for name in self.fields if name not in row]:
            raise ValueError(f"a row of a stream lacks the fields {lacking}")
        for name, value in row.items():
            out[name] = value

    def load_again(self) -> bool:
        """Rows cannot be read again."""
        return False

    def end_task(self) -> None:
        """Tell the order where the part goes on."""
        write_note({"mark": self._reader.mark()}, self._note, MAX_MARK_BYTES)

    def describe(self, index: int) -> str:
        """A row in words."""
        row, part = divmod(index, self._n_parts)
        return f"row {row:,} of part {part} of {self._n_parts}"


class _Reader:
    """Reads a part from a mark on. It is opened when its first row is read."""

    def __init__(self, stream: Stream, part: int, n_parts: int, mark: Mark) -> None:
        self._factory, self._part, self._n_parts = stream.factory, part, n_parts
        self._replays, self._repeats = stream.default_order.replays, stream.default_order.steps is not None
        self._place = dict(mark)
        self._opened: Any = None  # what the factory has returned
        self._rows: Iterator[Any] | None = None
        self._failure = ""  # why there are no more rows

    def goes_on_at(self, mark: Mark) -> bool:
        """Whether the next row is that behind the mark. A reader that cannot be opened there goes on where it is."""
        is_open = self._rows is not None and not self._failure and self._place["epoch"] == mark["epoch"]
        if is_open and not self._replays and not self._is_seekable:
            self._place = dict(mark)
        return all(self._place[name] == mark[name] for name in ("epoch", "row", "ended"))

    def mark(self) -> Mark:
        """The mark of the next row."""
        if self._rows is not None:
            self._place.pop("state", None)
            if self._is_seekable:
                self._place["state"] = self._opened.state()
        return self._place

    def take(self) -> Any:
        """The next row.

        Raises:
            NoMoreRowsError: the part has ended.
        """
        if self._failure:
            raise RuntimeError(self._failure)
        if self._place["ended"]:
            raise NoMoreRowsError
        try:
            if self._rows is None:
                self._rows = self._open()
            row = next(self._rows)
        except StopIteration:
            return self._after_end()
        except Exception as error:
            if self._rows is not None:  # it was opened
                self._count()
                if inspect.isgenerator(self._rows):
                    self._failure = f"part {self._part} goes on no more: its generator has raised {type(error).__name__}"
            raise
        except BaseException:  # an interruption, with workers=0: it is not known whether a row was read
            self._place["row"], self._rows = -1, None
            raise
        self._count()
        return row

    def _count(self) -> None:
        self._place["row"] += 1
        self._place["n"] += 1

    def _after_end(self) -> Any:
        place = self._place
        if self._repeats and not place["row"]:
            raise ValueError(f"part {self._part} of the stream has no rows: with steps=, each part needs one")
        place.pop("state", None)
        self._rows = self._opened = None
        if not self._repeats:
            place["ended"] = True
            raise NoMoreRowsError
        place["epoch"], place["row"] = place["epoch"] + 1, 0
        return self.take()

    @property
    def _is_seekable(self) -> bool:
        return all(callable(getattr(self._opened, name, None)) for name in ("state", "seek"))

    def _open(self) -> Iterator[Any]:
        rows: Iterator[Any]
        place = self._place
        try:
            self._opened = self._factory(self._part, self._n_parts, place["epoch"])
            if self._is_seekable and "state" in place:
                self._opened.seek(place["state"])
            rows = iter(self._opened)
        except StopIteration as error:  # would be taken for the end of the part
            raise RuntimeError(f"part {self._part} of the stream cannot be opened: StopIteration was raised") from error
        is_there = self._is_seekable and "state" in place
        for n_skipped in range(place["row"] if self._replays and not is_there else 0):
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
