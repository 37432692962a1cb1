"""How the ring's segment is laid out, and the arrays that look into it.

    byte 0            claims: what each producer has in hand (for messages and time-outs only)
    then              hints: one byte a task of each slot, set when the task is done
    then, on a page   slot 0, slot 1, ... each `slot_bytes` long
    in a slot         the fields, then `index` (B,) int64, then `valid` (B,) bool if it is asked for; each `(B, *shape)`,
                      contiguous, at a multiple of 64 bytes

64 bytes is what TensorFlow and JAX need to use an array where it lies; elsewhere they copy it, or abort. Slots begin on
pages, so that each can be reserved alone.

Who owns what: the layout is plain numbers, the same in every process. A slot's payload is written by the producers that
have its tasks, until all their hints are set; then it is the trainer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ringload.data.fields import Field
from ringload.shared import round_up

FIELD_ALIGNMENT_BYTES = 64
CLAIM_BYTES = 64  # one cache line a producer
MAX_TASKS = 128  # of a batch: their records are posted in one atomic write (128 * 32 bytes = PIPE_BUF)
HINT_DONE = 1  # a hint byte: the task is done
HINT_WORDS = 2  # the same, and a record in words about it is in the pipe
INDEX_FIELD = Field((), "int64")
VALID_FIELD = Field((), "bool")


@dataclass(frozen=True)
class Layout:
    """Where everything lies. `fields` are the source's; `places` adds `index` and `valid`."""

    fields: Mapping[str, Field]
    batch_size: int
    n_slots: int
    n_producers: int
    with_valid: bool

    @cached_property
    def places(self) -> tuple[tuple[str, Field, int], ...]:
        """(name, field, where it begins in its slot in bytes), for every array of a slot, in the order of their places."""
        extra = {"index": INDEX_FIELD} | ({"valid": VALID_FIELD} if self.with_valid else {})
        places, offset = [], 0
        for name, field in {**self.fields, **extra}.items():
            places.append((name, field, offset))
            offset = round_up(offset + field.row_bytes * self.batch_size, FIELD_ALIGNMENT_BYTES)
        return tuple(places)

    @cached_property
    def lent_places(self) -> tuple[tuple[str, tuple[int, ...], np.dtype[Any], int], ...]:
        """(name, shape, dtype, offset) of what a batch shows: all but `index`."""
        return tuple((name, field.shape, field.dtype, offset) for name, field, offset in self.places if name != "index")

    @cached_property
    def _index_offset(self) -> int:
        return next(offset for name, _, offset in self.places if name == "index")

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes of a slot, whole pages."""
        _, field, offset = self.places[-1]
        return round_up(offset + field.row_bytes * self.batch_size)

    @property
    def hints_start(self) -> int:
        return self.n_producers * CLAIM_BYTES

    @property
    def slots_start(self) -> int:
        """Where slot 0 begins: what comes before it is reserved whole at the start."""
        return round_up(self.hints_start + self.n_slots * MAX_TASKS)

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole segment."""
        return self.slots_start + self.n_slots * self.slot_bytes

    def arrays(self, segment: np.ndarray) -> dict[str, np.ndarray]:
        """For producers: each array of all slots at once, `(n_slots, B, *shape)`, as views of the mapped segment."""
        arrays = {}
        for name, field, offset in self.places:
            strides = [field.dtype.itemsize]
            for n in (self.batch_size, *field.shape)[:0:-1]:
                strides.insert(0, strides[0] * n)
            arrays[name] = np.ndarray(
                (self.n_slots, self.batch_size, *field.shape),
                field.dtype,
                segment,
                self.slots_start + offset,
                (self.slot_bytes, *strides),
            )
        return arrays

    def slot_arrays(self, slot: np.ndarray, n_rows: int) -> dict[str, np.ndarray]:
        """What a batch shows of a slot `(slot_bytes,) uint8`: name -> `(n_rows, *shape)`, all of them views of `slot`."""
        return {name: np.ndarray((n_rows, *shape), dtype, slot, offset) for name, shape, dtype, offset in self.lent_places}

    def write_rows(self, slot: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Write what the trainer lists of a batch into its slot: name -> `(n, ...)`."""
        for name, field, offset in self.places:
            if name in rows:
                values = rows[name]
                np.ndarray((len(values), *field.shape), field.dtype, slot, offset)[...] = values

    def slot_index(self, slot: np.ndarray, n_rows: int) -> np.ndarray:
        """Which sample each row of a slot is, `(n_rows,) int64`: a copy."""
        return np.ndarray((n_rows,), np.int64, slot, self._index_offset).copy()
