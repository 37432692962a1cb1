"""Leases, and the books of slots: what keeps a slot from being lost, or used while somebody looks into it, undone."""

from tests.breaks import Break, Edit

LOCKED_OUT = Edit(
    "engine.py",
    "        for _ in _taken(self._lock):\n            try:\n                with _Books(self):",
    "        for _ in range(self._lock.acquire()):\n            try:\n                with _Books(self):",
)
UNMAPPED = Edit("ring/lease.py", "        self._segment = segment\n        self.__array", "        self.__array")

TABLE = (
    Break(
        "a batch that a seek gave up and its lease's end name each other for ever",
        ("seek, without a garbage collector",),
        (Edit("ring/ring.py", "            self._cancelled.pop(slot).part()\n", "            del self._cancelled[slot]\n"),),
        ("test_leases_attacked.py::test_a_seek_leaves_nothing_to_the_garbage_collector",),
        r"assert",
    ),
    Break(
        "cancelled slots are not freed when their producers are dead",
        ("soak: seeks by set_epoch", "a death with a task in hand of a slot that a seek gave up"),
        (
            Edit(
                "ring/ring.py",
                "        self._free_up(list(self._cancelled))\n",
                "",
            ),
        ),
        ("test_kills.py::test_a_seek_and_then_a_death_loses_no_slot",),
        r"Timeout|assert|Stalled",
    ),
    Break(
        "a cancelled slot is free before the hint of its last report is set",
        ("seek while a producer is held before a line of its code",),
        (Edit("ring/ring.py", "not self.undone and 0 not in self.hints_now", "not self.undone"),),
        ("test_held.py::test_going_elsewhere_while_a_producer_is_held_before_any_line[ProducerEnd.done]",),
        r"assert|Error",
    ),
    Break(
        "a cancelled slot is free while a task of it is in hand",
        ("seek while a producer is held before a line of its code",),
        (Edit("ring/ring.py", "not self.undone and 0 not in self.hints_now", "True"),),
        ("test_held.py::test_going_elsewhere_while_a_producer_is_held_before_any_line[Filler.fill]",),
        r"assert|Error",
    ),
    Break(
        "the second end of a lease ends the next one of its slot",
        ("lease whose end comes twice",),
        (
            Edit(
                "ring/ring.py", "        if self._lent.get(posted.slot) is posted:\n", "        if posted.slot in self._lent:\n"
            ),
        ),
        ("test_leases_attacked.py::test_the_second_end_of_a_lease_ends_no_other",),
        r"assert|not equal|Error",
    ),
    Break(
        "after an interruption a slot that is lent is used again",
        ("Ctrl-C while batches are held",),
        (
            Edit(
                "engine.py",
                "        self._ring = Ring(self._n_reserved, lent)\n",
                "        self._ring = Ring(self._n_reserved)\n",
            ),
        ),
        ("test_interrupts.py::test_what_is_held_stays_through_an_interruption",),
        r"assert|not equal|Error",
    ),
    Break(
        "a lease ends with its first array, though views of that are kept",
        (
            "lease that another thread ends, in random order",
            "soak: leases ended by another thread",
            "soak: (rounds|batches verified|rows verified)",
        ),
        (
            Edit("ring/lease.py", "        end = LeaseEnd(owner, self.released.put)\n", ""),
            Edit(
                "ring/lease.py",
                "        arrays = self._layout.slot_arrays(slot, posted.n_rows)\n",
                "        arrays = self._layout.slot_arrays(slot, posted.n_rows)\n"
                "        end: Any = LeaseEnd(next(iter(arrays.values())), self.released.put)\n",
            ),
            Edit("ring/lease.py", "from typing import TYPE_CHECKING\n", "from typing import TYPE_CHECKING, Any\n"),
        ),
        ("test_leases_attacked.py::test_leases_end_in_random_order_by_random_threads",),
        r"not equal|assert|Error",
    ),
    Break(
        "who ends a lease waits for the lock, which the thread that its signal interrupts may hold",
        ("lease that ends within a signal handler",),
        (LOCKED_OUT,),
        ("test_leases_attacked.py::test_leases_end_within_a_signal_handler",),
        r"Timeout",
        has_alarms=True,
    ),
    Break(
        "who ends a lease waits for the lock, which the thread that its finalizer is called in may hold",
        ("lease that ends within a finalizer",),
        (LOCKED_OUT,),
        ("test_leases_attacked.py::test_finalizers_and_collections_within_next",),
        r"Timeout",
    ),
    Break(
        "the end of a lease does not wake who waits for a slot",
        ("lease whose end is waited for", "ring that is lent out to the last slot"),
        (Edit("ring/lease.py", "end = LeaseEnd(owner, self.released.put)", "end = LeaseEnd(owner)"),),
        (
            "test_leases_attacked.py::test_the_release_of_another_thread_ends_a_wait_in_next",
            "test_leases_attacked.py::test_cycles_that_nobody_collects_starve_until_somebody_does",
        ),
        r"Timeout|Starved",
        40,
    ),
    Break(
        "what is lent does not keep the ring mapped",
        ("loader that ends while arrays of it are kept",),
        (UNMAPPED,),
        ("test_leases_attacked.py::test_what_is_kept_outlives_the_loader",),
        r"Segmentation fault|not equal",
    ),
    Break(
        "what is lent does not keep the ring mapped until the interpreter's end",
        ("lease that ends with the interpreter",),
        (UNMAPPED,),
        (
            "test_leases_attacked.py::test_leases_end_with_the_interpreter[atexit-closed]",
            "test_leases_attacked.py::test_leases_end_with_the_interpreter[a thread that goes on-closed]",
        ),
        r"assert",
    ),
    Break(
        "nobody rings when the last task that was in hand of a cancelled slot is done",
        ("seek while the only free slot is being filled",),
        (
            Edit(
                "workers/crew.py",
                "        for task in tasks:  # so that who finishes what else is in hand of the slot rings\n"
                "            self._hints[task.slot * MAX_TASKS + task.task] = HINT_DONE\n",
                "",
            ),
        ),
        ("test_leases_attacked.py::test_going_elsewhere_with_one_slot_left_waits_no_longer_than_for_what_is_in_hand",),
        r"a wait went on|Timeout",
    ),
    Break(
        "freed slots are not poisoned",
        ("view that is used after its release", "slots that were filled and never lent", "soak: rounds in the test mode"),
        (Edit("ring/guard.py", "        content[:] = POISON\n", ""),),
        (
            "test_guard.py::test_who_looks_into_a_released_batch_sees_poison",
            "test_guard.py::test_slots_that_were_never_lent_are_looked_at_and_poisoned",
        ),
        r"assert",
    ),
    Break(
        "slots that were never lent are not looked at",
        ("slots that were filled and never lent",),
        (Edit("ring/guard.py", "        if slot in self._used:\n", "        if False:\n"),),
        ("test_guard.py::test_slots_that_were_never_lent_are_looked_at_and_poisoned",),
        r"assert|DID NOT RAISE",
    ),
    Break(
        "bytes between arrays are not looked at",
        ("write beyond the end of a field",),
        (
            Edit(
                "ring/guard.py",
                "if (changed := np.flatnonzero(content[start:stop] != left)).size:",
                "if not (changed := np.flatnonzero(content[start:stop] != left)).shape:",
            ),
        ),
        ("test_guard.py::test_who_writes_behind_an_array_is_found",),
        r"DID NOT RAISE",
    ),
)
