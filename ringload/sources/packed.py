"""Several samples a row: a source around another one. order/packed.py says which samples are in a row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ringload.checks import integer, named, no_field, short
from ringload.errors import ConfigError
from ringload.fields import Field, Row, Worker, as_fields, in_brief
from ringload.order.lengths import checked_lengths, refuse_above
from ringload.order.packed import PackedRows
from ringload.order.randomness import rewind
from ringload.protocols import PAD
from ringload.sources.bind import bind
from ringload.sources.fingerprints import fingerprint_of
from ringload.sources.load_alone import load_alone
from ringload.system.arrivals import ARRIVALS

OWN = ("members", "segment", "position")


class Packed:
    """Several samples a row, for sequence models: no row has more than `capacity` elements, and little of it is padding.

    Example::

        packed = ringload.Packed(source, "n_tokens", 2048, "tokens")
        for batch in ringload.Loader(packed, 16):      # 16 rows, each of several samples
            batch["tokens"]       (B, 2048)     the samples of a row, one after another; zeros behind them
            batch["segment"]      (B, 2048)     int32: which sample of its row an element is of, from 1 on; 0: padding
            batch["position"]     (B, 2048)     int32: its place in that sample, from 0 on
            batch["members"]      (B, M)        int64: the indices of the row's samples, the longest first; -1 behind them
            batch["label"]        (B, M, ...)   any other field: one entry a sample; zeros behind them

    The source is written as without packing: its fields have the length of its longest sample, `(n, ...)`, and `load` writes
    the first entries. Of each sample `lengths` entries are taken. M is the most samples that a row has.

    Each sample comes once an epoch. The samples of a row are drawn anew in each epoch, and the number of rows stays. Each draws
    from the same `rng` as without packing; the global generators of Python and NumPy are set once a row. If a sample is bad,
    its row is: the message names both, and `on_error="replace"` puts one other sample into the row. The loader's `order=` and
    `shuffle=` are left out, as the source has its own order. Making that order takes O(N log N) and 4 bytes a sample.

    Arguments:
        source: as for `Loader`, but not a function.
        lengths: `(N,)` integers from 1 to `capacity`, one of each sample; or the name of the source's column that has them.
        capacity: elements of a row.
        fields: the name of the field, or names of the fields, whose first dimension is the length.
        max_samples: the most samples of a row; None: any number.

    Raises:
        ConfigError: lengths are not valid, or above `capacity` or the size of a field; or there is no such field.
    """

    order_fields = ("members",)

    def __init__(
        self, source: Any, lengths: Any, capacity: int, fields: str | Sequence[str], max_samples: int | None = None
    ) -> None:
        self._inner = inner = bind(source)
        if inner.begin_task is not None:
            raise ConfigError(f"Packed: {named(source)} cannot be packed, as its order writes fields of its own")
        self.capacity = integer("capacity", capacity, 1)
        if max_samples is not None:
            integer("max_samples", max_samples, 1)
        self._n_samples = len(source)
        if isinstance(lengths, str):
            lengths = self.column(lengths)
        self._lengths = checked_lengths(lengths, self._n_samples, "Packed")
        if self._lengths.min() == 0:
            empty = int(np.argmin(self._lengths))
            raise ConfigError(f"Packed: sample {empty:,} has length 0: leave out what has nothing to pack")
        refuse_above(self._lengths, self.capacity, f"Packed has capacity={self.capacity:,}: raise it, or cut the sample")
        self._names = self._checked_names(as_fields(source.fields), fields)
        self.default_order = PackedRows.of(self._lengths, self.capacity, max_samples)
        self.fields = self._made_fields(as_fields(source.fields))
        self.random, self.global_random = inner.random, inner.global_random
        self.calls_user_code, self.is_own = inner.calls_user_code, inner.is_own
        self.refuses_large, self.scratch_bytes = inner.refuses_large, inner.scratch_bytes
        self.load_again = inner.load_again

    def _checked_names(self, inner: dict[str, Field], given: str | Sequence[str]) -> tuple[str, ...]:
        names = (given,) if isinstance(given, str) else tuple(given)
        if not names:
            raise ConfigError("Packed: fields names the fields whose first dimension is the length, at least one")
        for name in names:
            if name not in inner:
                raise ConfigError(f"Packed: {no_field(name, list(inner))}")
            if not inner[name].shape:
                raise ConfigError(f"Packed: field {name!r} is one number a sample: it has no length")
            n = inner[name].shape[0]
            refuse_above(self._lengths, n, f"the source's field {name!r} has room for {n:,}: make it larger")
        if reserved := [name for name in OWN if name in inner]:
            raise ConfigError(f"Packed adds the fields {list(OWN)}, and the source has {reserved}: rename them")
        return names

    def _made_fields(self, inner: dict[str, Field]) -> dict[str, Field]:
        most, made = self.default_order.most_samples, {}
        for name, field in inner.items():
            shape = (self.capacity, *field.shape[1:]) if name in self._names else (most, *field.shape)
            made[name] = Field(shape, field.dtype)
        own = {"members": Field(most, "int64"), "segment": Field(self.capacity, "int32")}
        return made | own | {"position": Field(self.capacity, "int32")}

    def __len__(self) -> int:
        """Samples, not rows."""
        return self._n_samples

    def __repr__(self) -> str:
        return in_brief(self, type(self).__name__)

    @property
    def fill(self) -> float:
        """The share of the rows that is not padding."""
        return float(self._lengths.sum(dtype=np.int64) / (self.default_order.n_rows * self.capacity))

    def with_caches(self, keep: Callable[[Any], Any]) -> Packed:
        """The same rows, of the samples of `keep(source)`."""
        made = copy.copy(self)
        made._inner = inner = bind(keep(self._inner.source))
        made.scratch_bytes, made.load_again = inner.scratch_bytes, inner.load_again
        return made

    def fingerprint(self) -> Any:
        """That of the source that is packed."""
        return fingerprint_of(self._inner.source)

    def column(self, name: str) -> np.ndarray:
        """A column of the source that is packed."""
        ask: Callable[[str], Any] | None = getattr(self._inner.source, "column", None)
        if ask is None:
            kind = named(self._inner.source)
            raise ConfigError(
                f"Packed names the column {short(name)}, and {kind} has no method column(name): give an array `(N,)`"
            )
        return np.asarray(ask(name))

    def describe(self, index: int) -> str:
        """The first sample of a row."""
        return self._inner.describe(index)

    # -- in workers ---------------------------------------------------------------------------------------------------

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker."""
        self._inner.start(worker)
        fields = as_fields(self._inner.source.fields)
        self._sample = {name: np.zeros(field.shape, field.dtype) for name, field in fields.items()}

    def begin_task(self, rows: dict[str, np.ndarray]) -> None:
        """These rows are loaded next."""
        self._members = rows["members"]
        if self._inner.prefetch is not None:
            self._asked = self._members[self._members != PAD]
            self._inner.prefetch(self._asked)
            if (is_ready := self._inner.is_ready) is not None:  # as a coroutine has to end before its samples are loaded
                n_ended = -1
                while not is_ready(self._asked) and ARRIVALS.wait(n_ended):
                    n_ended = ARRIVALS.n_ended

    def end_task(self) -> None:
        """Let go of what was read ahead, and not used."""
        if self._inner.forget is not None and self._asked is not None:
            self._inner.forget(self._asked)
            self._asked = None

    def load(self, index: int, rng: Any, out: Row) -> None:
        """Load the samples of a row into it, one after another."""
        members = self._members[out.number]
        if members[0] != index:  # a bad row's substitute
            members[:] = PAD
            members[0] = index
        for name in self.fields:
            if name != "members":
                out[name][...] = np.zeros((), out[name].dtype)
        out.written()
        begin = 0
        for number, sample in enumerate(members[members != PAD].tolist()):
            self._load_sample(sample, index, rng)
            n = int(self._lengths[sample])
            stop = begin + n
            for name, values in self._sample.items():
                if name in self._names:
                    out[name][begin:stop] = values[:n]
                else:
                    out[name][number] = values
            out["segment"][begin:stop] = number + 1
            out["position"][begin:stop] = np.arange(n)
            begin = stop

    def _load_sample(self, sample: int, index: int, rng: Any) -> None:
        """Load one sample into `_sample`, as it would be loaded without packing."""
        if rng is not None:
            rewind(rng, sample)
        try:
            load_alone(self._inner, sample, rng, self._sample)
        except Exception as error:
            if sample == index:
                raise
            where = self._inner.describe(sample)
            what = f"sample {sample}{f' ({where})' if where else ''} of the same row: {type(error).__name__}: {error}"
            raise RuntimeError(what) from error
