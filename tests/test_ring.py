from __future__ import annotations

import numpy as np
import pytest

from ringload.bad_sample import Bad
from ringload.ring.layout import FLAG_DONE, FLAG_DONE_WITH_REPORTS
from ringload.ring.slots import InFlightBatch, Ring
from ringload.workers.records import TASK, task_records


def finish(ring: Ring, posted: InFlightBatch) -> None:
    ring.enter([(posted.slot, task, 1, 0.5, 0.25) for task in range(len(posted.split.bounds))])


def fill(ring: Ring, number: int, n_rows: int = 8, rows_per_task: int = 2) -> InFlightBatch:
    return ring.fill(0, number, n_rows, rows_per_task)


def give_back(ring: Ring, batch: InFlightBatch) -> bool:
    return ring.give_back(batch.slot, batch.serial)


def test_a_slot_goes_its_round() -> None:
    ring = Ring(2)
    first, second = fill(ring, 0), fill(ring, 1)
    assert {first.slot, second.slot} == {0, 1}
    assert (ring.n_free, ring.n_in_flight, ring.n_full) == (0, 2, 0)
    assert ring.due() is first
    assert ring.newest() is second
    finish(ring, first)
    assert ring.n_full == 1
    assert ring.lend() is first
    assert (ring.lent, ring.due()) == ({first.slot: first}, second)
    assert give_back(ring, first)
    assert (ring.n_free, ring.lent) == (1, {})
    assert not give_back(ring, first), "a second end of the same lease ends nothing"
    assert ring.n_free == 1
    assert fill(ring, 2).slot == first.slot


def test_an_old_end_does_not_free_the_next_lease_of_its_slot() -> None:
    ring = Ring(1)
    old = fill(ring, 0)
    finish(ring, old)
    ring.lend()
    give_back(ring, old)
    new = fill(ring, 1)
    finish(ring, new)
    ring.lend()
    assert not give_back(ring, old)
    assert (ring.n_free, ring.lent) == (0, {new.slot: new})


def test_a_slot_with_unread_reports_is_never_freed() -> None:
    ring = Ring(1)
    posted = fill(ring, 0)
    ring.lend()
    with pytest.raises(AssertionError, match="reports are read before leases end"):
        give_back(ring, posted)


def test_leases_end_in_any_order_and_warm_slots_are_used_first() -> None:
    ring = Ring(5)
    posted = [fill(ring, number) for number in range(5)]
    for one in posted:
        finish(ring, one)
        ring.lend()
    for number in (3, 0, 4):
        give_back(ring, posted[number])
    assert [fill(ring, number).slot for number in (5, 6, 7)] == [posted[4].slot, posted[0].slot, posted[3].slot]
    ring.add(range(5, 8))
    assert [fill(ring, number).slot for number in (8, 9, 10)] == [5, 6, 7]


def test_reports_are_counted() -> None:
    ring = Ring(2)
    posted = fill(ring, 0)
    busy_s, idle_s, n_rows = ring.enter([(posted.slot, 0, 2, 0.5, 0.25), (posted.slot, 3, 2, 1.5, 0.0)])
    assert (busy_s, idle_s, n_rows) == (2.0, 0.25, 4)
    assert posted.undone == 0b0110
    assert ring.unfinished() == [posted]


def test_what_is_posted_again_is_what_is_not_done() -> None:
    ring = Ring(1)
    posted = ring.fill(7, 9, 8, 2)
    ring.bad(posted.slot, 2, Bad(5, "", "", ""))
    ring.enter([(posted.slot, 0, 2, 0, 0), (posted.slot, 2, 2, 0, 0)])
    tasks = [TASK.unpack_from(task_records(posted), at) for at in range(0, len(task_records(posted)), TASK.size)]
    assert tasks == [(7, 9, 0, 2, 4, 1, 4), (7, 9, 0, 6, 8, 3, 4)]
    assert posted.done_flags() == bytes([FLAG_DONE, 0, FLAG_DONE_WITH_REPORTS, 0])


def test_cancelling_waits_for_what_is_in_hand() -> None:
    ring = Ring(3)
    full, begun, taken_back = fill(ring, 0), fill(ring, 1), fill(ring, 2)
    finish(ring, full)
    ring.enter([(begun.slot, 0, 2, 0, 0)])
    for task in range(4):
        ring.take_back(taken_back.slot, task)
    ring.cancel()
    assert (ring.n_free, ring.n_in_flight, ring.starving) == (2, 0, False)
    ring.enter([(begun.slot, task, 2, 0, 0) for task in (1, 2, 3)])
    done_flags = bytearray(b"\1\0\2\1")
    begun.flags_now = memoryview(done_flags)
    ring.free_cancelled()
    assert (ring.n_free, ring.starving) == (2, False), "it will be set by a worker that has reported"
    done_flags[1] = FLAG_DONE
    ring.free_cancelled()
    assert (ring.n_free, ring.starving) == (3, True)


def test_cancelled_slots_of_the_dead_are_free() -> None:
    ring = Ring(2)
    fill(ring, 0)
    ring.cancel()
    assert ring.n_free == 1
    ring.forget()
    assert ring.n_free == 2


def test_undoing_a_fill() -> None:
    ring = Ring(2)
    fill(ring, 0)
    fill(ring, 1)
    ring.unfill()
    assert (ring.n_free, ring.n_in_flight) == (1, 1)


def test_new_books_keep_what_is_lent() -> None:
    ring = Ring(4)
    posted = fill(ring, 0)
    finish(ring, posted)
    ring.lend()
    fill(ring, 1)
    again = Ring(4, ring.lent)
    assert (again.n_free, again.lent) == (3, ring.lent)
    assert posted.slot not in [fill(again, number).slot for number in range(3)]


def test_any_sequence_keeps_every_slot_in_one_place(rng: np.random.Generator) -> None:
    """A random walk over everything that can happen to a ring."""
    ring, n_slots, lent, number = Ring(6), 6, [], 0
    for _ in range(5000):
        action = rng.integers(7)
        if action <= 1 and ring.n_free:
            fill(ring, number, int(rng.integers(1, 20)), int(rng.integers(1, 5)))
            number += 1
        elif action == 2 and ring.unfinished():
            posted = ring.unfinished()[rng.integers(len(ring.unfinished()))]
            task = next(task for task in range(32) if posted.undone >> task & 1)
            ring.enter([(posted.slot, task, 1, 0, 0)])
        elif action == 3 and (due := ring.due()) is not None and due.undone == 0:
            lent.append(ring.lend())
        elif action == 4 and lent:
            give_back(ring, lent.pop(rng.integers(len(lent))))
        elif action == 5 and rng.random() < 0.05:
            ring.cancel()
            for slot, posted in list(ring._cancelled.items()):
                ring.enter([(slot, task, 1, 0, 0) for task in range(32) if posted.undone >> task & 1])
            ring.free_cancelled()
        elif action == 6 and n_slots < 9 and rng.random() < 0.01:
            ring.add(range(n_slots, n_slots + 1))
            n_slots += 1
        places = [*ring._free, *(p.slot for p in ring._in_flight), *ring._cancelled, *ring.lent]
        assert sorted(places) == list(range(n_slots))
    assert number > 100
