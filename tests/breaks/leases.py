"""Leases, and the books of slots: what keeps a slot from being lost, or used while somebody looks into it, undone."""

from tests.breaks import Break, Edit

LOCKED_OUT = Edit(
    "engine/engine.py",
    "        for _ in _taken(self._lock):\n            try:\n                with _Session(self):",
    "        for _ in range(self._lock.acquire()):\n            try:\n                with _Session(self):",
)
UNMAPPED = Edit("ring/lease.py", "        self._segment = segment\n        self.__array", "        self.__array")

TABLE = (
    Break(
        "a lease and its end name each other for ever",
        ("seek, without a garbage collector",),
        (
            Edit(
                "ring/lease.py",
                "        end.slot, end.serial = batch.slot, batch.serial\n",
                "        end.slot, end.serial = batch.slot, batch.serial\n        owner.end = end\n        end.owner = owner\n",
            ),
            Edit(
                "ring/lease.py",
                '    __slots__ = ("__array_interface__", "__weakref__", "_segment")\n',
                '    __slots__ = ("__array_interface__", "__weakref__", "_segment", "end")\n',
            ),
            Edit("ring/lease.py", '    __slots__ = ("serial", "slot")\n', '    __slots__ = ("owner", "serial", "slot")\n'),
        ),
        ("test_leases_attacked.py::test_a_seek_leaves_nothing_to_the_garbage_collector",),
        r"assert",
    ),
    Break(
        "cancelled slots are not freed when their workers are dead",
        ("soak: seeks by set_epoch", "a death with a task in hand of a slot that a seek gave up"),
        (
            Edit(
                "ring/slots.py",
                "        self._free_up(list(self._cancelled))\n",
                "",
            ),
        ),
        ("test_kills.py::test_a_seek_and_then_a_death_loses_no_slot",),
        r"Timeout|assert|StallError",
    ),
    Break(
        "a cancelled slot is free before the hint of its last report is set",
        ("seek while a worker is held before a line of its code",),
        (Edit("ring/slots.py", "not self.undone and 0 not in self.flags_now", "not self.undone"),),
        ("test_seek_with_held_worker.py::test_going_elsewhere_while_a_worker_is_held_before_any_line[WorkerChannel.done]",),
        r"assert|Error",
    ),
    Break(
        "a cancelled slot is free while a task of it is in hand",
        ("seek while a worker is held before a line of its code",),
        (Edit("ring/slots.py", "not self.undone and 0 not in self.flags_now", "True"),),
        ("test_seek_with_held_worker.py::test_going_elsewhere_while_a_worker_is_held_before_any_line[Filler.fill]",),
        r"assert|Error",
    ),
    Break(
        "the second end of a lease ends the next one of its slot",
        ("lease whose end comes twice",),
        (Edit("ring/slots.py", "        if posted is None or posted.serial != serial:\n", "        if posted is None:\n"),),
        ("test_leases_attacked.py::test_the_second_end_of_a_lease_ends_no_other",),
        r"assert|not equal|Error",
    ),
    Break(
        "after an interruption a slot that is lent is used again",
        ("Ctrl-C while batches are held",),
        (
            Edit(
                "engine/recovery.py",
                "        state.ring = Ring(state.n_reserved, lent)\n",
                "        state.ring = Ring(state.n_reserved)\n",
            ),
        ),
        ("test_interrupts.py::test_what_is_held_stays_through_an_interruption",),
        r"assert|not equal|Error",
    ),
    Break(
        "a warning that is an error closes the loader",
        (),
        (
            Edit(
                "engine/lifecycle.py",
                "        elif isinstance(error, Warning) and self.state is State.OPEN:\n",
                "        elif False:\n",
            ),
        ),
        ("test_kept.py::test_while_somebody_else_is_there_it_warns_and_waits",),
        r"Closed",
        60,
    ),
    Break(
        "a lease ends with its first array, though views of that are kept",
        (
            "lease that another thread ends, in random order",
            "soak: leases ended by another thread",
            "soak: (rounds|batches verified|rows verified)",
        ),
        (
            Edit(
                "ring/lease.py",
                "        arrays = layout.slot_arrays(slot, batch.n_rows)\n",
                "        arrays = layout.slot_arrays(slot, batch.n_rows)\n"
                "        end: Any = LeaseEnd(next(iter(arrays.values())), self.released.put)\n"
                "        end.slot, end.serial = batch.slot, batch.serial\n",
            ),
            Edit(
                "ring/lease.py",
                "        end = LeaseEnd(owner, self.released.put)\n        end.slot, end.serial = batch.slot, batch.serial\n",
                "",
            ),
        ),
        ("test_leases_attacked.py::test_leases_end_in_random_order_by_random_threads",),
        r"not equal|assert|Error",
    ),
    Break(
        "who ends a lease waits for the lock, which the thread that its signal interrupts may hold",
        ("lease that ends within a signal handler",),
        (
            Edit(
                "engine/engine.py",
                "        for _ in acquire_now(self._life.lock):\n            try:\n                with _Session",
                "        for _ in range(self._life.lock.acquire()):\n            try:\n                with _Session",
            ),
        ),
        ("test_leases_attacked.py::test_leases_end_within_a_signal_handler",),
        r"Timeout",
        has_alarms=True,
    ),
    Break(
        "who ends a lease waits for the lock, which the thread that its finalizer is called in may hold",
        ("lease that ends within a finalizer",),
        (
            Edit(
                "engine/engine.py",
                "        for _ in acquire_now(self._life.lock):\n            try:\n                with _Session",
                "        for _ in range(self._life.lock.acquire()):\n            try:\n                with _Session",
            ),
        ),
        ("test_leases_attacked.py::test_finalizers_and_collections_within_next",),
        r"Timeout",
    ),
    Break(
        "the end of a lease does not wake who waits for a slot",
        ("lease whose end is waited for", "ring that is lent out to the last slot"),
        (Edit("ring/lease.py", "end = LeaseEnd(owner, self.released.put)", "end = LeaseEnd(owner)"),),
        (
            "test_leases_attacked.py::test_the_release_of_another_thread_ends_a_wait_in_next",
            "test_leases_attacked.py::test_a_ring_that_is_lent_out_starves_until_a_batch_is_given_back",
        ),
        r"Timeout|AllSlotsLentError",
        40,
    ),
    Break(
        "who keeps every batch waits, though no other thread could give one back",
        ("ring whose every slot is kept by the thread that asks",),
        (Edit("engine/waiting.py", "is_alone = not state.is_growing and only_this_thread()", "is_alone = False"),),
        ("test_kept.py::test_at_once_where_no_other_thread_could_give_one_back",),
        r"RuntimeWarning: every slot of the ring is lent",
    ),
    Break(
        "it is an error at once that every batch is kept, though another thread could give one back",
        ("ring whose every slot is kept until another thread gives one back",),
        (
            Edit(
                "engine/lease_holders.py",
                "    others = {*frames, *threads} - {threading.get_ident()}\n",
                "    others = set[int]()\n",
            ),
        ),
        ("test_kept.py::test_while_somebody_else_is_there_it_warns_and_waits",),
        r"AllSlotsLentError: every slot of the ring is lent",
    ),
    Break(
        "who waits for a slot does so by the queue, whose time-out a signal handler may outlast",
        ("signal handler that outlasts the wait for a slot",),
        (
            Edit(
                "engine/waiting.py",
                "            time.sleep(min(pause_s, left_s))\n",
                "            with suppress(Exception):\n                released.put(released.get(timeout=left_s))\n",
            ),
            Edit("engine/waiting.py", "import time\n\nfrom", "import time\nfrom contextlib import suppress\n\nfrom"),
        ),
        ("test_kept.py::test_while_somebody_else_is_there_it_warns_and_waits",),
        r"Timeout",
        60,
    ),
    Break(
        "batches in cycles, which nobody collects, are waited for",
        ("ring that is lent out to the last slot",),
        (Edit("engine/waiting.py", "        gc.collect(generation)\n", ""),),
        (
            "test_leases_attacked.py::test_a_ring_that_is_lent_out_starves_until_a_batch_is_given_back",
            "test_kept.py::test_jax_which_gives_back_when_it_is_asked_to",
        ),
        r"AllSlotsLentError|RuntimeWarning: every slot of the ring is lent",
        60,
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
                "workers/processes.py",
                "        for task in tasks:  # so that the worker that fills the slot's last task notifies\n"
                "            self._done_flags[task.slot * MAX_TASKS + task.task] = FLAG_DONE\n",
                "",
            ),
        ),
        ("test_leases_attacked.py::test_going_elsewhere_with_one_slot_left_waits_no_longer_than_for_what_is_in_hand",),
        r"a wait went on|Timeout",
    ),
    Break(
        "freed slots are not poisoned",
        ("view that is used after its release", "slots that were filled and never lent", "soak: rounds in the test mode"),
        (Edit("ring/sanitizer.py", "        content[:] = POISON\n", ""),),
        (
            "test_sanitizer.py::test_who_looks_into_a_released_batch_sees_poison",
            "test_sanitizer.py::test_slots_that_were_never_lent_are_looked_at_and_poisoned",
        ),
        r"assert",
    ),
    Break(
        "slots that were never lent are not looked at",
        ("slots that were filled and never lent",),
        (Edit("ring/sanitizer.py", "        if slot in self._used:\n", "        if False:\n"),),
        ("test_sanitizer.py::test_slots_that_were_never_lent_are_looked_at_and_poisoned",),
        r"assert|DID NOT RAISE",
    ),
    Break(
        "bytes between arrays are not looked at",
        ("write beyond the end of a field",),
        (
            Edit(
                "ring/sanitizer.py",
                "if (changed := np.flatnonzero(content[start:stop] != left)).size:",
                "if not (changed := np.flatnonzero(content[start:stop] != left)).shape:",
            ),
        ),
        ("test_sanitizer.py::test_who_writes_behind_an_array_is_found",),
        r"DID NOT RAISE",
    ),
)
