"""The ring of a torch DataLoader: learns from batches what a row needs, and lays the ring out again when it learns better.

At first nothing is known of the samples: the ring has one slot, and its rows have space for nearly anything. From the first
batch that arrives the trainer learns what the rows of a ring of many slots need (`tree`). A row of a later batch may not fit:
its status says so, the row layout is corrected, and that batch and all later ones are filled again. No batch is lost or comes
twice, as a batch counts as received only when it was collated.

Batches are in ordinary memory, which the user may keep: each field is copied out of the slot once, and the slot is released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from ringload.bad_sample import Bad
from ringload.errors import BudgetError, ConfigError
from ringload.fields import Field
from ringload.order.explicit import ExplicitOrder
from ringload.packing.pack import ForkRequiredError, Packed, Words, pack
from ringload.packing.watch import Watch
from ringload.protocols import Rows
from ringload.ring.lease import Batch
from ringload.system.segment import round_up
from ringload.torch.dataloader import tree
from ringload.torch.dataloader.feed import Feed, FeedSettings, Shape
from ringload.torch.dataloader.source import STATUS, TorchSource, WorkerSpec, places
from ringload.torch.dataloader.values import Encoder, decode, decode_rows, written_bytes

FIRST_BYTES = 256 << 20  # the most that the first ring takes, before the size of samples is known
LEAST_BYTES = 1 << 12  # of the encoded parts of a row, at least, where there are any
MOST_INT_BYTES, LIST_BYTES = 9, 64  # in MessagePack: the most that an int takes; the rest of a list, aligned
EPOCHS, NUMBERS, MAX_ROW = (1 << 22) - 1, (1 << 24) - 1, (1 << 16) - 1  # name a row that has no index: epoch, batch, row
Take = Callable[[np.ndarray], np.ndarray]
WORDS = Words(
    "a part of this DataLoader cannot be sent to its workers",
    "",
    "Open or make it where it is needed: in __getitem__, when it is first called, or in worker_init_fn. Or let workers inherit "
    'it: multiprocessing_context="fork". Or use num_workers=0',
)


class BatchError(Exception):
    """An error that takes the place of a batch."""

    def __init__(self, batch: Batch, error: Exception) -> None:
        super().__init__(batch.number)
        self.batch, self.error = batch, error


def _of(batch: Batch, make: Callable[[], Any]) -> Any:
    """Call `make` for a batch. An exception of it, such as of torch's collation, takes the place of the batch."""
    try:
        return make()
    except Exception as error:
        raise BatchError(batch, error) from None


@dataclass(frozen=True)
class RowLayout:
    """What a row of the ring holds. `tree` is None if a row is a whole batch; `key_bytes` is 0 if the keys are indices. It is
    learned from the first batch (`is_learned`)."""

    tree: tree.Node | None
    is_learned: bool
    encoded_bytes: int
    key_bytes: int
    batch_size: int


@dataclass(frozen=True)
class RingSettings:
    """The arguments of a DataLoader on which its ring depends. `n_slots`: how many batches are filled ahead. `may_fork`: the
    user has chosen no start method, so workers may be forked if the dataset has objects that can only be inherited."""

    feed: FeedSettings
    n_slots: int
    allow_pickle: bool
    strict: bool
    may_fork: bool = False


class TorchRing:
    """A `Feed`, and the layout of its rows."""

    def __init__(
        self,
        spec: WorkerSpec,
        settings: RingSettings,
        keys: list[Any],
        due: tuple[int, int],
        layout: RowLayout | None,
        version: int,
    ) -> None:
        """`keys`: those of some batches, of which the first is `due` (epoch, number). `layout`: of an earlier ring, if there
        was one. `version`: a number that changes when a function is set on the DataLoader."""
        self.settings, self.version, self._order = settings, version, ExplicitOrder()
        self._allow_pickle, self._strict = settings.allow_pickle, settings.strict
        root = tree.Encoded("sample", "its structure is not known yet") if spec.collate_fn is None else None
        self._batched = spec.batched
        self._encoder = Encoder(self._allow_pickle)
        self._pack(spec)
        self.row_layout = self._needed(layout if layout is not None else RowLayout(root, False, FIRST_BYTES, 0, 1), keys)
        if not self.row_layout.is_learned:
            self.row_layout = replace(
                self.row_layout, encoded_bytes=with_margin(FIRST_BYTES // self.row_layout.batch_size * 2 // 3)
            )
        while True:
            try:
                self.feed = Feed(self._source(), self._packed, self._shape(), settings.feed, self._order, due)
                break
            except BudgetError:
                if self.row_layout.is_learned or self.row_layout.encoded_bytes <= LEAST_BYTES:
                    raise
                self.row_layout = replace(self.row_layout, encoded_bytes=with_margin(self.row_layout.encoded_bytes // 4))
        self.is_whole = True  # False: an interruption came while the ring was laid out, so its state is unknown

    # -- dataset and functions ---------------------------------------------------------------------------------------

    def _pack(self, spec: WorkerSpec) -> None:
        is_forked = self.settings.feed.start_method == "fork"
        self._packed: Packed | None = None if is_forked else pack(spec, words=WORDS, or_fork=self.settings.may_fork)
        self._spec = spec if self._packed is None else self._packed.data
        self._watch: Watch | None = None

    def is_like(self, spec: WorkerSpec) -> bool:
        """Whether the rows hold the same as rows of `spec`: samples, or whole batches."""
        return (spec.collate_fn is None, spec.batched) == (self.row_layout.tree is not None, self._batched)

    def note(self, spec: WorkerSpec) -> None:
        """Remember the present content of `spec`, which the workers have."""
        self._watch = Watch(_content(spec), self._packed) if self._packed is not None else None

    def renew(self, spec: WorkerSpec) -> bool:
        """Before a pass: send `spec` to the workers, if it has changed. False: a new ring is needed. That is so for forked
        workers, whose `spec` cannot be compared, and for large arrays, which only new workers can be given."""
        if self._watch is None:
            return False
        if not self._watch.changed(_content(spec)):
            return True
        try:
            packed = pack(spec, words=WORDS, or_fork=self.settings.may_fork)
        except ForkRequiredError:
            return False  # making the new ring raises this again, and handles it
        if packed.owners or (self._packed is not None and self._packed.owners):
            return False
        self._packed, self._spec, self._watch = packed, packed.data, Watch(_content(spec), packed)
        self._order.begin(-1)
        self._lay_out(self.row_layout, -1, 0)
        return True

    # -- the layout --------------------------------------------------------------------------------------------------

    def _source(self) -> TorchSource:
        return TorchSource(self._spec, self.row_layout.tree, self._fields(), self._allow_pickle, self.settings.feed.workers)

    def _fields(self) -> dict[str, Field]:
        layout = self.row_layout
        fields = {} if layout.tree is None else tree.fields(layout.tree)
        fields |= {"status": STATUS, "place": Field((), "int64")}
        if layout.encoded_bytes:
            fields["encoded"] = Field(layout.encoded_bytes, "uint8")
        if layout.key_bytes:
            fields["key"] = Field(layout.key_bytes, "uint8")
        return fields

    def _shape(self) -> Shape:
        return Shape(self._fields(), self.row_layout.batch_size, self.settings.n_slots if self.row_layout.is_learned else 1)

    def _lay_out(self, layout: RowLayout, epoch: int, number: int) -> None:
        """Go on at batch `number` with another row layout."""
        self.is_whole = False
        self.row_layout = layout
        self.feed.rebuild(self._source(), self._shape(), epoch, number)
        self.is_whole = True

    # -- submitting --------------------------------------------------------------------------------------------------

    def begin(self, epoch: int, number: int) -> None:
        """The next batch is `number` of `epoch`; submit it next."""
        self.feed.begin(epoch, number)

    def submit(self, epoch: int, number: int, batches: Mapping[int, Any], seed: int) -> None:
        """Have batches filled: `batches` is number -> keys, and batch `number` is due next. `seed`: of the pass."""
        order = self._order
        new = {n: keys for n, keys in batches.items() if order.rows(epoch, n) is None}
        if not new:
            return
        layout = self._needed(self.row_layout, list(new.values()))
        if layout != self.row_layout:
            order.begin(epoch)
            self._lay_out(layout, epoch, number)
            new = dict(batches)
        for n, keys in new.items():
            order.submit(n, self._rows(epoch, n, keys, seed))
        self.feed.post()

    def next(self, number: int) -> tuple[Batch, list[Bad]]:
        """Wait for batch `number`, which was submitted. It is due, unless an interruption came while it was received."""
        if self.feed.due != number:
            self.feed.seek(number)
        return self.feed.next()

    def _needed(self, layout: RowLayout, keys: list[Any]) -> RowLayout:
        """RowLayout for batches of these keys."""
        if layout.tree is None:
            written = keys if self._batched or any(needs_keys([key]) for key in keys) or layout.key_bytes else []
            n_rows = 1
        else:
            n_rows = max(map(len, keys))
            written = [key for of_batch in keys for key in of_batch]
            written = written if layout.key_bytes or needs_keys(written) else []
        if n_rows > layout.batch_size:
            layout = replace(layout, batch_size=n_rows)
        n_bytes = max(map(self._key_bytes, written), default=0)
        return layout if n_bytes <= layout.key_bytes else replace(layout, key_bytes=round_up(n_bytes + n_bytes // 2, 64))

    def _key_bytes(self, key: Any) -> int:
        """The bytes of an encoded key. For a list of indices, the most that any list of this length takes, so that larger
        indices later in the epoch do not change the layout."""
        if type(key) is list and set(map(type, key)) == {int} and min(key) >= -(1 << 63) and max(key) < 1 << 63:
            return MOST_INT_BYTES * len(key) + LIST_BYTES
        return self._encoder.n_bytes(key, "a key of the sampler")

    def _rows(self, epoch: int, number: int, keys: Any, seed: int) -> Rows:
        """The rows that the trainer writes into the slot of a batch."""
        of_rows = [keys] if self.row_layout.tree is None else list(keys)
        n = len(of_rows)
        fields = {"place": places(seed, number, n)}
        if self.row_layout.key_bytes:
            fields["key"] = np.zeros((n, self.row_layout.key_bytes), np.uint8)
            for row, key in enumerate(of_rows):
                self._encoder.encode(key, "a key of the sampler", fields["key"][row])
        if needs_keys(of_rows):
            index = np.arange(n) + ((epoch & EPOCHS) << 40 | (number & NUMBERS) << 16)
        else:
            index = np.array(of_rows, np.int64)
        return Rows(index, fields=fields)

    # -- a batch -----------------------------------------------------------------------------------------------------

    def take(self, batch: Batch, own: Take) -> Any:
        """A batch as torch's collation makes it, as a tuple of one; `own` copies an array out of the slot. None: a row did not
        fit; the ring is laid out for it, and the batch comes again."""
        status = batch["status"]
        if status.any():
            self._correct(status.copy(), batch)
            return None
        if self.row_layout.tree is None:
            written = batch["encoded"][0]
            data = _of(batch, lambda: decode(written, self._allow_pickle))
            if not self.row_layout.is_learned:
                n_bytes = written_bytes(written)
                batch.release()
                self._learned(replace(self.row_layout, encoded_bytes=with_margin(n_bytes)), batch)
            return (data,)
        values: Any = iter(())
        if self.row_layout.encoded_bytes:
            values = iter(_of(batch, lambda: decode_rows(batch["encoded"], self._allow_pickle)))
        root = self.row_layout.tree
        if self.row_layout.is_learned:
            return (_of(batch, lambda: tree.build(root, lambda name: own(batch[name]), values)),)
        (samples,) = values
        batch.release()
        self._learn(samples, batch)
        return (_of(batch, lambda: default_collate(samples)),)

    def _learn(self, samples: list[Any], batch: Batch) -> None:
        found = tree.plan(samples)
        self._refuse(found)
        encoder, write = Encoder(self._allow_pickle), tree.writer(found)
        paths = [leaf.path for leaf in tree.leaves(found) if isinstance(leaf, tree.Encoded)]
        n_bytes = 0
        if paths:
            rows = {name: np.empty((1, *field.shape), field.dtype) for name, field in tree.fields(found).items()}
            for sample in samples:
                to_encode: list[Any] = []
                write(sample, 0, rows, to_encode)
                n_bytes = max(n_bytes, encoder.n_bytes([[part] for part in to_encode], "sample"))
        self._learned(replace(self.row_layout, tree=found, encoded_bytes=with_margin(n_bytes) if paths else 0), batch)

    def _learned(self, layout: RowLayout, batch: Batch) -> None:
        self._lay_out(replace(layout, is_learned=True), batch.epoch, batch.number + 1)

    def _correct(self, status: np.ndarray, batch: Batch) -> None:
        """Correct the layout: some rows did not fit."""
        layout = self.row_layout
        batch.release()
        if (misfits := status[status < 0]).size:
            assert layout.tree is not None
            numbers = set((-1 - misfits).tolist())
            changed = tree.without(layout.tree, numbers, "its type, shape or dtype differs from sample to sample")
            self._refuse(changed)
            gone = sum(field.row_bytes for field in tree.fields(layout.tree).values())
            gone -= sum(field.row_bytes for field in tree.fields(changed).values())
            layout = replace(layout, tree=changed, encoded_bytes=with_margin(layout.encoded_bytes + gone))
        if (needed := int(status.max())) > 0:
            layout = replace(layout, encoded_bytes=max(layout.encoded_bytes, with_margin(needed)))
        self._lay_out(layout, batch.epoch, batch.number)

    def _refuse(self, found: tree.Node) -> None:
        if self._strict and (encoded := [leaf for leaf in tree.leaves(found) if isinstance(leaf, tree.Encoded)]):
            told = ", ".join(f"{leaf.path} ({leaf.why})" for leaf in encoded)
            raise ConfigError(f"strict=True, but these parts of samples have no fixed shape and dtype: {told}")


def _content(spec: WorkerSpec) -> WorkerSpec:
    """The parts of `spec` that the user can change."""
    return replace(spec, base_seed=0)


def with_margin(n_bytes: int) -> int:
    """Half as much again, so that somewhat larger rows fit."""
    return -(-max(LEAST_BYTES, n_bytes + n_bytes // 2) // 64) * 64


def own_copy(array: np.ndarray) -> np.ndarray:
    """A copy in ordinary memory."""
    return array.copy()


def pinned_copy(array: np.ndarray) -> np.ndarray:
    """A copy in page-locked memory, from which the GPU copies directly."""
    pinned = torch.empty(array.nbytes, dtype=torch.uint8, pin_memory=True).numpy()
    copied: np.ndarray = np.ndarray(array.shape, array.dtype, pinned)
    copied[...] = array
    return copied


def needs_keys(keys: Sequence[Any]) -> bool:
    """Whether some keys are not indices from 0 on. (-1 marks a row without a sample.)"""
    return len(keys) > 0 and (set(map(type, keys)) != {int} or min(keys) < 0 or max(keys) >= 1 << 63)


def number_of(index: int) -> int:
    """The number of the batch of a row without an index: see `EPOCHS`, `NUMBERS`, `MAX_ROW`."""
    return index >> 16 & NUMBERS
