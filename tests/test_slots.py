from __future__ import annotations

import numpy as np

from ringload import Field
from ringload.ring.layout import FIELD_ALIGNMENT_BYTES, KEY, MAX_TASKS, Layout

LAYOUT = Layout(
    {"image": Field((5, 7, 3), "u1"), "one": Field((), "u1"), "vector": Field((3,), "f8"), "name": Field((2,), "S3")},
    4,
    6,
    2,
    True,
)


def test_fields_are_aligned_and_do_not_overlap() -> None:
    end = 0
    for _, field, offset in LAYOUT.places:
        assert offset % FIELD_ALIGNMENT_BYTES == 0
        assert offset >= end
        end = offset + 4 * field.row_bytes
    assert end <= LAYOUT.slot_bytes
    assert LAYOUT.slot_bytes % 4096 == LAYOUT.slots_start % 4096 == 0
    assert LAYOUT.slots_start >= LAYOUT.flags_start + LAYOUT.n_slots * MAX_TASKS
    assert [name for name, _, _ in LAYOUT.places] == ["image", "one", "vector", "name", "index", KEY, "valid"]


def test_workers_and_the_trainer_see_the_same_bytes() -> None:
    segment = np.zeros(LAYOUT.n_bytes, np.uint8)
    arrays = LAYOUT.arrays(segment)
    for array in arrays.values():
        assert array.shape[:2] == (6, 4)
        for slot in range(6):
            array[slot] = np.arange(array[slot].size).reshape(array[slot].shape) + slot
    for slot in range(6):
        start = LAYOUT.slots_start + slot * LAYOUT.slot_bytes
        lent = LAYOUT.slot_arrays(segment[start : start + LAYOUT.slot_bytes], 4)
        assert set(lent) == {"image", "one", "vector", "name", "valid"}
        for name, array in lent.items():
            np.testing.assert_array_equal(array, arrays[name][slot])
            assert array.flags.c_contiguous
        short = LAYOUT.slot_arrays(segment[start : start + LAYOUT.slot_bytes], 3)
        np.testing.assert_array_equal(short["image"], arrays["image"][slot, :3])
        np.testing.assert_array_equal(LAYOUT.slot_index(segment[start:], 4), arrays["index"][slot])


def test_nothing_is_outside_the_slots() -> None:
    segment = np.zeros(LAYOUT.n_bytes, np.uint8)
    for array in LAYOUT.arrays(segment).values():
        array.view(np.uint8)[...] = 1
    assert not segment[: LAYOUT.slots_start].any()
