"""A stream as a source: rows that have no index, as a generator or another iterator gives them.

What passes through: for each batch, `begin_task` reads which part it is of, and the mark where the part goes on (`order.stream`
says what order and source tell each other); `load` reads the next row of the part, for each row of the batch; `end_task` writes
the mark behind them. A worker keeps the readers of its parts open from batch to batch. A reader that is not where the mark
says is replaced by one that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from ringload.checks import flag, integer, short
from ringload.errors import ConfigError
from ringload.fields import Worker, as_fields
from ringload.order.explicit import NO_END
from ringload.order.stream import StreamParts
from ringload.order.stream_note import MAX_MARK_BYTES, NOTE, read_note, write_note
from ringload.sources.stream_reader import Reader, Way
from ringload.sources.stream_rows import PlainRows, StreamRows


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
       on the number of workers. A part is read by one worker, so more workers than parts have nothing to do. With
       order="arrival", which part a batch is of depends on how fast the parts are read.
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
        order: "turns", or "arrival": a part that is read slowly gives fewer batches then, and the others go on meanwhile, as
            far as the ring has slots. Deaths and states lose and repeat no row either; but the order differs from run to run.
        shuffle: rows of a part that are read at once, into a window, and given in an order that depends on the loader's seed,
            the part, the time and the window. 0: rows come in their order. It is the same order for any number of workers,
            after deaths and from a state; a window is read again for that, from its begin. The rows of the windows of all
            parts are in `ram_budget`. With `replays=False` and without `seek()`, a window is lost with its worker.
        replays: for readers without `seek()`: whether opening a part again for the same epoch gives the same rows in the same
            order, as it does for files. Then it goes on by skipping rows. False, for queues and sockets: it goes on with what
            it is given.

    Raises:
        ConfigError: an argument is not valid. While iterating, SampleError: `factory` or a reader has raised, or a row does not
        fit the fields. An error of a generator ends the generator, so each later batch of its part raises.
    """

    calls_user_code = True

    def __init__(
        self,
        factory: Callable[[int, int, int], Any],
        fields: Mapping[str, Any],
        *,
        parts: int = 1,
        steps: int | None = None,
        order: Literal["turns", "arrival"] = "turns",
        shuffle: int = 0,
        replays: bool = True,
    ) -> None:
        if not callable(factory):
            raise ConfigError(
                f"a Stream takes factory(part, n_parts, epoch), a function that returns an iterable, not {short(factory)}"
            )
        self._be(factory, PlainRows(as_fields(fields)), parts, steps, order, shuffle, replays)

    @classmethod
    def of_rows(
        cls,
        factory: Callable[[int, int, int], Any],
        rows: StreamRows,
        *,
        parts: int,
        steps: int | None = None,
        order: Literal["turns", "arrival"] = "turns",
        shuffle: int = 0,
        part_bytes: int = 0,
    ) -> Stream:
        """A stream whose rows are not dicts. `part_bytes`: memory that an open part takes beside its window."""
        made = cls.__new__(cls)
        made._be(factory, rows, parts, steps, order, shuffle, True, part_bytes)
        return made

    def _be(
        self,
        factory: Callable[[int, int, int], Any],
        rows: StreamRows,
        parts: int,
        steps: int | None,
        order: str,
        shuffle: int,
        replays: bool,
        part_bytes: int = 0,
    ) -> None:
        self.factory, self.fields, self._rows = factory, rows.fields, rows
        if order not in ("turns", "arrival"):
            raise ConfigError(f'order is "turns" or "arrival" for a Stream, not {short(order)}')
        if isinstance(shuffle, bool):
            raise ConfigError(f"shuffle is the number of rows of a window, 0 for none, not {shuffle}: such as shuffle=10_000")
        row_bytes = sum(field.row_bytes for field in rows.kept_fields.values())
        self.default_order = StreamParts(
            integer("parts", parts, 1),
            None if steps is None else integer("steps", steps, 1),
            flag("replays", replays),
            n_window := integer("shuffle", shuffle, 0),
            n_window * row_bytes + part_bytes,
            order == "arrival",
        )
        self._readers: dict[tuple[int, int], Reader] = {}

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
        self._rows.start(worker)

    def begin_task(self, rows: Mapping[str, np.ndarray]) -> None:
        """Go to the place where the part goes on.

        Raises:
            RuntimeError: it is not known here, as nobody receives the batch: the trainer took back what was posted while this
                worker was about to take one, and left it the last in place of the first.
        """
        self._note = rows[NOTE]
        self._reader: Reader | None = None
        told = read_note(self._note)
        order = self.default_order
        self._n_parts, key, mark = told["n_parts"], (told["id"], told["part"]), told["mark"]
        self._n_taken = 0  # of the rows of this task
        reader = self._readers.get(key)
        if mark is not None and (reader is None or not reader.goes_on_at(mark)):
            way = Way(self.factory, self._rows, self._n_parts, order.replays, order.steps is not None, order.n_window)
            reader = self._readers[key] = Reader(way, told["part"], told["seed"], mark)
        if reader is None:
            raise RuntimeError(f"part {told['part']} of a stream has no reader here, so its batch was given up")
        self._reader = reader

    def load(self, index: int, rng: Any, out: Any) -> None:
        """Write the next row of the part."""
        assert self._reader is not None
        for _ in range(out.number - self._n_taken):  # rows that have killed their worker are not loaded, and are read now
            self._reader.take()
        self._n_taken = out.number + 1
        row = self._reader.take()
        if self.default_order.n_window:
            self._rows.give(row, rng, out)
        else:
            self._rows.write(row, rng, out)

    random = property(lambda self: self._rows.random)
    global_random = property(lambda self: self._rows.global_random)
    scratch_bytes = property(lambda self: self._rows.scratch_bytes)
    ahead_bytes = property(lambda self: self._rows.ahead_bytes)
    refuses_large = property(lambda self: self._rows.refuses_large)

    def load_again(self) -> bool:
        """Rows cannot be read again."""
        return False

    def end_task(self) -> None:
        """Tell the order where the part goes on; not of a batch that was given up (see `begin_task`).

        Raises:
            RuntimeError: `begin_task` has failed for another reason.
        """
        if self._reader is not None:
            write_note({"mark": self._reader.mark()}, self._note, MAX_MARK_BYTES)
        elif read_note(self._note)["mark"] is not None:
            raise RuntimeError("it is not known where this part of the stream goes on")

    def describe(self, index: int) -> str:
        """A row in words."""
        row, part = divmod(index, self._n_parts)
        return f"row {row:,} of part {part} of {self._n_parts}"
