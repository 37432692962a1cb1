"""How the ring's segment is laid out, and the arrays that look into it.

    byte 0            current work: what each worker is filling (for messages and time-outs only)
    then              done flags: one byte a task of each slot, set when the task is done
    then, on a page   slot 0, slot 1, ... each `slot_bytes` long
    in a slot         the fields, then `index` (B,) int64, then the draw key of each row (B,) int64, then `valid` (B,) bool if
        it is asked for; each `(B, *shape)`, contiguous, at a multiple of 64 bytes

64 bytes is what TensorFlow and JAX need to use an array where it lies; elsewhere they copy it, or abort. Slots begin on
pages, so that each can be reserved alone.

Who owns what: the layout is plain numbers, the same in every process. A slot's payload is written by the workers that
have its tasks, until all its done flags are set; then it is the trainer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ringload.fields import Field
from ringload.protocols import Rows
from ringload.system.segment import round_up

FIELD_ALIGNMENT_BYTES = 64
CURRENT_WORK_BYTES = 64  # one cache line a worker
MAX_TASKS = 128  # of a batch: their records are posted in one atomic write (128 * 32 bytes = PIPE_BUF)
FLAG_DONE = 1  # the task is done
FLAG_DONE_WITH_REPORTS = 2  # the same, and the pipe holds a report of a bad sample of it
INDEX_FIELD = Field((), "int64")
VALID_FIELD = Field((), "bool")
KEY = ".key"  # the name of the draw keys' array. No field has a name with a dot, but those that a batch does not show


@dataclass(frozen=True)
class Layout:
    """Where everything lies. `fields` are the source's; `places` adds `index` and `valid`."""

    fields: Mapping[str, Field]
    batch_size: int
    n_slots: int
    n_workers: int
    with_valid: bool

    @cached_property
    def places(self) -> tuple[tuple[str, Field, int], ...]:
        """(name, field, where it begins in its slot in bytes), for every array of a slot, in the order of their places."""
        extra = {"index": INDEX_FIELD, KEY: INDEX_FIELD} | ({"valid": VALID_FIELD} if self.with_valid else {})
        places, offset = [], 0
        for name, field in {**self.fields, **extra}.items():
            places.append((name, field, offset))
            offset = round_up(offset + field.row_bytes * self.batch_size, FIELD_ALIGNMENT_BYTES)
        return tuple(places)

    @cached_property
    def lent_places(self) -> tuple[tuple[str, tuple[int, ...], np.dtype[Any], int], ...]:
        """(name, shape, dtype, offset) of what a batch shows: all but indices, and what order and source tell each other."""
        shown = ((name, field, offset) for name, field, offset in self.places if name != "index" and name[0] != ".")
        return tuple((name, field.shape, field.dtype, offset) for name, field, offset in shown)

    @cached_property
    def _offsets(self) -> dict[str, int]:
        return {name: offset for name, _, offset in self.places}

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes of a slot, whole pages."""
        _, field, offset = self.places[-1]
        return round_up(offset + field.row_bytes * self.batch_size)

    @property
    def flags_start(self) -> int:
        return self.n_workers * CURRENT_WORK_BYTES

    @property
    def slots_start(self) -> int:
        """Where slot 0 begins: what comes before it is reserved whole at the start."""
        return round_up(self.flags_start + self.n_slots * MAX_TASKS)

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole segment."""
        return self.slots_start + self.n_slots * self.slot_bytes

    def arrays(self, segment: np.ndarray) -> dict[str, np.ndarray]:
        """For workers: each array of all slots at once, `(n_slots, B, *shape)`, as views of the mapped segment."""
        arrays = {}
        slots = segment[self.slots_start : self.n_bytes].reshape(self.n_slots, self.slot_bytes)
        for name, field, offset in self.places:
            n_bytes = self.batch_size * field.row_bytes
            content = slots[:, offset : offset + n_bytes].view(field.dtype)
            arrays[name] = content.reshape(self.n_slots, self.batch_size, *field.shape)
        return arrays

    def slot_arrays(self, slot: np.ndarray, n_rows: int) -> dict[str, np.ndarray]:
        """What a batch shows of a slot `(slot_bytes,) uint8`: name -> `(n_rows, *shape)`, all of them views of `slot`."""
        return {name: np.ndarray((n_rows, *shape), dtype, slot, offset) for name, shape, dtype, offset in self.lent_places}

    def whole_slot(self, slot: np.ndarray) -> dict[str, np.ndarray]:
        """All arrays of a slot: name -> `(B, *shape)`, views of `slot (slot_bytes,) uint8`."""
        return {
            name: np.ndarray((self.batch_size, *field.shape), field.dtype, slot, offset) for name, field, offset in self.places
        }

    def write_rows(self, slot: np.ndarray, rows: Rows, start: int = 0, stop: int | None = None) -> None:
        """Write what the order says of a batch's rows `start:stop` into its slot `(slot_bytes,) uint8`."""
        n, offsets = len(rows.index), self._offsets
        np.ndarray((n,), np.int64, slot, offsets["index"])[start:stop] = rows.index[start:stop]
        np.ndarray((n,), np.int64, slot, offsets[KEY])[start:stop] = (rows.index if rows.key is None else rows.key)[start:stop]
        for name, values in rows.fields.items():
            field = self.fields[name]
            np.ndarray((n, *field.shape), field.dtype, slot, offsets[name])[start:stop] = values[start:stop]

    def slot_index(self, slot: np.ndarray, n_rows: int) -> np.ndarray:
        """Which sample each row of a slot is, `(n_rows,) int64`: a copy."""
        return np.ndarray((n_rows,), np.int64, slot, self._offsets["index"]).copy()
