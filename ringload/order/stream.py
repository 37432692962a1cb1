"""The order of a stream, whose rows have no index: which part each batch belongs to, and where the part goes on.

A stream has `n_parts` parts, each of which is read in its order. All rows of a batch are of one part: of part c % n_parts for
batch c, so the order is fixed, for any number of workers; or, by arrival, of the part that has the fewest batches to fill when
batch c is posted. The latter is noted as the number `v` that a batch has in turns: v % n_parts is its part, and v // n_parts
the batches of the part before it. One worker reads a part, and places its rows in the slots of its
batches, one after another (`Rows.part`). A part that has ended gives a shorter batch, then batches without rows.

What order and source tell each other lies in the slot, in the field `NOTE`, as JSON:
    order -> source     the part, how many there are, and the mark before the batch, if it is known; else the reader of the part
                        is there already
    source -> order     the mark behind the batch
A mark is the place of a part: {"epoch": how often it was opened before, "row": rows read since, "n": rows read in all, "ended":
whether it has, "state": of its reader, if that has one, "at": rows that were given of a window, see `sources.stream_reader`}.

Invariant: a batch is posted again only if all batches of its part before it were filled, and the order has heard of them. So
the mark before it is known, and a new worker goes on exactly there.
"""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ringload.checks import warn
from ringload.errors import ConfigError
from ringload.fields import Field
from ringload.order.explicit import NO_END
from ringload.order.loader_order import NO_GRID, Place, check_shard
from ringload.order.stream_note import NOTE, NOTE_BYTES, Mark, read_note, write_note
from ringload.protocols import PAD, Binding, Rows
from ringload.system.interrupts import set_together

MAX_UNFILLED = 4  # batches of a part that are posted and not filled, by arrival: more would wait for a slow part
N_BEFORE = 4  # batches that were received, and whose marks are kept: an adapter may be so far behind the loader
_ids = itertools.count()


@dataclass(frozen=True)
class StreamParts:
    """How many parts a stream has, and `steps`, `replays`, `shuffle` (`n_window`) and `order` of `ringload.Stream`, of
    which an open part takes `window_bytes`. Bound to a source, the ranks share it."""

    n_parts: int
    steps: int | None
    replays: bool
    n_window: int = 0
    window_bytes: int = 0
    by_arrival: bool = False
    to: Binding | None = None

    def bind(self, to: Binding) -> StreamParts:
        """The same, of a loader."""
        return replace(self, to=to)

    def for_rank(self, rank: int, world: int) -> StreamOrder:
        """A rank's order: its parts are `rank`, `rank + world`, ... of `n_parts * world`."""
        assert self.to is not None
        return StreamOrder(self, self.to, rank, world)


class StreamOrder:
    """A rank's batches of a stream. A `LoaderOrder` that hears of full batches.

    Batches are counted by `c`, in a line: without `steps`, each epoch is a line, which ends when all parts have; with `steps`
    there is one line, of which each epoch takes the next `steps` batches. `_base[epoch]` is c of the epoch's batch 0.
    """

    shuffle = False
    is_arithmetic = True
    grid = NO_GRID

    def __init__(self, parts: StreamParts, to: Binding, rank: int, world: int) -> None:
        check_shard(rank, world)
        self.n_samples, self.batch_size, self.last, self.rank, self.world = to.n_samples, to.batch_size, to.last, rank, world
        self.chooses = parts.by_arrival
        self._parts, self._id, self._seed = parts, next(_ids), to.seed
        self.kept_bytes = parts.n_parts * parts.window_bytes  # of all workers
        self.own_fields = {NOTE: Field((-(-NOTE_BYTES // self.batch_size),), "uint8")}
        self._base = {0: 0}
        self._marks: dict[tuple[int, int], Mark] = {}  # (line, v) -> the mark before a batch, where it is known
        self._received: deque[tuple[int, int, int]] = deque()  # (line, c, v), the oldest first
        self._ends: dict[int, dict[int, int]] = {}  # epoch -> part -> the number of its first batch that is not full
        self._posted = (0, 0)  # (line, c) behind the last batch that was posted
        self._chosen: dict[tuple[int, int], int] = {}  # by arrival: (line, c) -> v
        self._n_chosen: dict[tuple[int, int], int] = {}  # (line, part) -> its batches so far
        self._unfilled: Sequence[int] = ()  # the part of each batch that is posted and not filled

    # -- where a batch is ---------------------------------------------------------------------------------------------

    def _line(self, epoch: int) -> int:
        return epoch if self._parts.steps is None else 0

    def _c(self, epoch: int, number: int) -> int:
        if self._parts.steps is None:
            return self._base.get(epoch, 0) + number
        known = max((one for one in self._base if one <= epoch), default=0)
        return self._base.get(known, 0) + (epoch - known) * self._parts.steps + number

    def _v(self, epoch: int, line: int, c: int) -> int | None:
        if not self._parts.by_arrival:
            return c
        if (line, c) not in self._chosen:
            n_parts, ended = self._parts.n_parts, self._ends.get(epoch, {})
            parts = sorted(set(range(n_parts)) - ended.keys() or range(n_parts), key=lambda one: (one - c) % n_parts)
            part = min(parts, key=self._unfilled.count)
            if self._unfilled.count(part) >= MAX_UNFILLED:
                return None
            n = self._n_chosen.get((line, part), 0)
            chosen = self._chosen | {(line, c): n * n_parts + part}
            set_together((self, "_chosen", chosen), (self, "_n_chosen", self._n_chosen | {(line, part): n + 1}))
        return self._chosen[line, c]

    def unfilled(self, parts: Sequence[int]) -> None:
        """Before a batch is posted: the part of each batch that is posted and not filled."""
        self._unfilled = parts

    def _mark(self, line: int, v: int) -> Mark | None:
        first = {"epoch": line, "row": 0, "n": 0, "ended": False}
        return self._marks.get((line, v), first if 0 <= v < self._parts.n_parts else None)

    def _n_before(self, line: int, v: int) -> int:
        """Rows of a part before its batch: known, or one batch after another."""
        n = 0
        while (mark := self._mark(line, v)) is None:
            assert v >= 0, "some batch of the part is the first that is not filled, and its mark is known"
            v, n = v - self._parts.n_parts, n + self.batch_size
        return n + int(mark["n"])

    # -- an order -----------------------------------------------------------------------------------------------------

    def n_batches(self, epoch: int = 0) -> int:
        """Batches of an epoch; NO_END while it is not known."""
        if self._parts.steps is not None:
            return self._parts.steps
        ends = self._ends.get(epoch, {})
        return max(ends.values()) + 1 if len(ends) == self._parts.n_parts else NO_END

    def rows(self, epoch: int, number: int) -> Rows | None:
        """The rows of batch `number` of `epoch`. None, by arrival: each part has enough to do."""
        line, c = self._line(epoch), self._c(epoch, number)
        v = self._v(epoch, line, c)
        if v is None:
            return None
        part, mark = v % self._parts.n_parts, self._mark(line, v)
        self._warn_of_lost(line, c, mark)
        at, n_parts = part * self.world + self.rank, self._parts.n_parts * self.world
        note = np.zeros((self.batch_size, *self.own_fields[NOTE].shape), np.uint8)
        write_note({"id": self._id, "part": at, "n_parts": n_parts, "seed": self._seed, "mark": mark}, note)
        index = (self._n_before(line, v) + np.arange(self.batch_size)) * n_parts + at
        return Rows(index, None, {NOTE: note}, part)

    def _warn_of_lost(self, line: int, c: int, mark: Mark | None) -> None:
        """A batch that was posted before is filled again. From a part that cannot be read again, rows are lost then."""
        posted, self._posted = self._posted, (line, c + 1)
        if self._parts.replays or posted[0] != line or c >= posted[1] or (mark is not None and "state" in mark):
            return
        n_rows = (posted[1] - c) * self.batch_size + self._parts.n_parts * self._parts.n_window
        warn(
            f"the readers of a stream were ended, or moved: up to {n_rows:,} rows that were read and not received are lost, as "
            "they cannot be read again (replays=False). Readers with state() and seek() lose none",
            RuntimeWarning,
        )

    def heard(self, epoch: int, number: int, slot: Mapping[str, np.ndarray], is_lent: bool) -> int:
        """Note where the part goes on behind a full batch. Returns how many rows the batch shows."""
        line, c, n_parts = self._line(epoch), self._c(epoch, number), self._parts.n_parts
        v = self._v(epoch, line, c)
        assert v is not None, "the batch was posted"
        mark = self._marks[line, v + n_parts] = read_note(slot[NOTE])["mark"]
        if mark["ended"]:
            self._ends.setdefault(epoch, {}).setdefault(v % n_parts, number)
        if is_lent:
            self._received.append((line, c, v))
            if len(self._received) > n_parts + N_BEFORE:
                line, c, v = self._received.popleft()
                self._marks.pop((line, v), None)
                self._chosen.pop((line, c), None)
        n_rows = int(np.count_nonzero(slot["index"] != PAD))
        return n_rows if n_rows in (0, self.batch_size) else {"drop": 0, "keep": n_rows, "pad": self.batch_size}[self.last]

    def moved(self, due: tuple[int, int], to: tuple[int, int]) -> list[tuple[object, str, Any]]:
        """What changes, (object, name of an attribute, value), when batch `to` is received instead of the batch that is due.
        With `steps` the stream goes on where it is; else `to` is the begin of an epoch."""
        epoch, number = to
        if self._parts.steps is not None:
            base = {one: c for one, c in self._base.items() if one < epoch} | {epoch: self._c(*due) - number}
            return [(self, "_base", base)]
        return [
            (self, "_base", {one: c for one, c in self._base.items() if one != epoch}),
            (self, "_ends", {one: ends for one, ends in self._ends.items() if one != epoch}),
            (self, "_marks", {at: mark for at, mark in self._marks.items() if at[0] != epoch}),
            (self, "_received", deque(at for at in self._received if at[0] != epoch)),
            (self, "_chosen", {at: v for at, v in self._chosen.items() if at[0] != epoch}),
            (self, "_n_chosen", {at: n for at, n in self._n_chosen.items() if at[0] != epoch}),
        ]

    # -- its state ----------------------------------------------------------------------------------------------------

    def state(self, epoch: int, position: int) -> dict[str, Any]:
        """What another order has to have in common to go on."""
        parts = self._parts
        told = {"kind": "stream", "parts": parts.n_parts, "steps": parts.steps, "rank": self.rank, "world": self.world}
        told |= {"order": "arrival"} if parts.by_arrival else {}
        return told | ({"shuffle": parts.n_window} if parts.n_window else {})

    def marks(self) -> dict[str, Any]:
        """Where each part goes on, for a loader's state. JSON can hold it."""
        marks = [[*at, mark] for at, mark in self._marks.items()]
        chosen, n_chosen = ([[*at, n] for at, n in one.items()] for one in (self._chosen, self._n_chosen))
        told = {"base": [[epoch, c] for epoch, c in self._base.items()], "marks": marks}
        return told | ({"chosen": chosen, "n_chosen": n_chosen} if self.chooses else {})

    def adopted(self, state: Mapping[str, Any]) -> list[tuple[object, str, Any]]:
        """What changes, (object, name of an attribute, value), in an order that goes on at the marks of a state."""
        epoch, number, n_parts = state["epoch"], state["position"], self._parts.n_parts
        there = copy.copy(self)
        there._n_chosen, there._chosen, there._ends, there._received = {}, {}, {}, deque()
        try:
            there._base = {int(one): int(c) for one, c in state["marks"]["base"]}
            there._marks = {(int(line), int(v)): dict(mark) for line, v, mark in state["marks"]["marks"]}
            line, c = there._line(epoch), there._c(epoch, number)
            following = [c + part for part in range(n_parts)]
            if self.chooses:
                n = {int(part): int(n) for one, part, n in state["marks"]["n_chosen"] if one == line}
                for one, later, v in state["marks"]["chosen"]:
                    if one == line and later >= c:  # given up
                        n[v % n_parts] = min(n[v % n_parts], v // n_parts)
                there._n_chosen = {(line, part): count for part, count in n.items()}
                following = [n.get(part, 0) * n_parts + part for part in range(n_parts)]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError("the state of a stream has no valid 'marks': load it as state_dict() has returned it") from error
        behind = {v % n_parts: v for v in following}  # what was heard of later batches is of another batch size, perhaps
        marks = there._marks.items()
        there._marks = {at: mark for at, mark in marks if at[0] == line and at[1] <= behind[at[1] % n_parts]}
        if any(there._mark(line, v) is None for v in following):
            raise ConfigError(
                f"the state of a stream was changed to batch {number} of epoch {epoch}, and does not say where its parts are "
                "there: load it as state_dict() has returned it"
            )
        names = ("_base", "_marks", "_ends", "_received", "_chosen", "_n_chosen")
        return [(self, name, getattr(there, name)) for name in names]

    # -- what only an order with a length has -------------------------------------------------------------------------

    @property
    def has_whole_batches(self) -> bool:
        """Whether each batch has `batch_size` rows."""
        return self.last != "keep" or self._parts.steps is not None

    def n_left(self, epoch: int = 0) -> int:
        """0: it is not known which rows are left out."""
        return 0

    def n_positions(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self.n_batches(epoch)

    def step(self, epoch: int) -> int:
        """A state counts batches."""
        return 1

    def start(self, epoch: int) -> int:
        """Batch 0 is at 0."""
        return 0

    def place(self, epoch: int, position: int) -> Place:
        """A batch is where its number says."""
        return Place(position, NO_GRID, self.n_batches(epoch))
