"""Deaths of producers and of their server: what notices them, what makes them good, and what finds who causes them, undone."""

from tests.breaks import Break, Edit

UNTOLD = Edit(
    "workers/server.py",
    '                self._send({"died": self._reap(fd for fd in list(self._children) if fd in events)})\n',
    "                self._reap(fd for fd in list(self._children) if fd in events)\n",
)

TABLE = (
    Break(
        "records are written to whatever has taken the descriptor's place",
        ("the producer's descriptors are replaced by files of the user's",),
        (Edit("ring/channel.py", "        self.check()\n        while True:", "        while True:"),),
        ("test_hostile.py::test_what_takes_the_place_of_the_descriptors_is_not_written_to",),
        r"assert|Stalled",
    ),
    Break(
        "what is known to kill is described by the user's function",
        ("a sample that ends its producer when it is loaded, and when it is described",),
        (Edit("workers/filling.py", 'self._where(index) if self._is_ours else ""', "self._where(index)"),),
        ("test_crash.py::test_who_kills_when_it_is_described_too_harms_no_other",),
        r"assert|Stalled",
        40,
    ),
    Break(
        "a producer goes on whose descriptors were closed",
        ("descriptors are closed in the middle of a task",),
        (
            Edit(
                "workers/worker.py",
                "            self._end.check()  # or this row would be blamed for what the last one did\n",
                "",
            ),
        ),
        ("test_hostile.py::test_who_closed_the_descriptors_is_blamed_and_not_who_is_loaded_next",),
        r"assert \[\[",
    ),
    Break(
        "a sample that was not loaded is accused again and again",
        ("a producer dies when it has loaded what makes it die",),
        (Edit("workers/suspects.py", "while sample in self._told:", "while False:"),),
        ("test_crash.py::test_who_dies_later_than_its_cause_is_found",),
        r"Stalled: nothing was finished for 20 s: .*; deaths in all: \d+",
        40,
    ),
    Break(
        "the server does not tell of a death",
        (
            r"a producer ends by (SIGKILL|SIGTERM|SIGSEGV|SIGABRT|sys.exit|KeyboardInterrupt|os\._exit.*) while it loads",
            r"kill -9 of a producer or the server at a random moment \(.*\)",
            "a producer of listed batches is killed, while layouts change",
            "a worker of torch.DataLoader is killed",
            "soak: kill -9 of a producer or the server",
            "soak: (loaders|strikes) of .*",
            "soak: loaders started by .*",
        ),
        (UNTOLD,),
        (
            *(
                f"test_crash.py::test_who_dies_once_changes_nothing[Deadly-{way}]"
                for way in ("SIGKILL", "SIGTERM", "SIGSEGV", "SIGABRT", "sys.exit", "os._exit in a thread", "KeyboardInterrupt")
            ),
            "test_kills.py::test_kills_at_random_moments[Slow-forkserver]",
            "test_listed.py::test_kills_and_layouts_at_random",
            "test_torch_loader_workers.py::test_kills_at_random_while_listed_batches_come",
        ),
        r"Timeout|Stalled",
        12,
    ),
    Break(
        "who waits for a batch does not ask what the server tells",
        (),
        (Edit("engine.py", "            if woken:\n                self._heed(crew.heard())\n", ""),),
        ("test_crash.py::test_who_dies_once_changes_nothing[Deadly-SIGKILL]",),
        r"Timeout|Stalled",
        12,
    ),
    Break(
        "exit code 0 is no death",
        (
            r"a producer ends by os\._exit\(0\) while it loads",
            r"a producer ends by os\._exit\(0\) with the turn that others wait for",
        ),
        (
            Edit(
                "workers/server.py",
                "            dead.append((producer, pid, status))\n",
                "            if status:\n                dead.append((producer, pid, status))\n",
            ),
        ),
        ("test_crash.py::test_who_dies_once_changes_nothing[Deadly-os._exit(0)]",),
        r"Timeout|Stalled",
        12,
    ),
    Break(
        "a server that was killed with its producers is not missed",
        ("kill -9 of two or three processes at once", "kill -9 of all producers at once"),
        (Edit("engine.py", "        if event.died or event.server_died:\n", "        if event.died:\n"),),
        ("test_kills.py::test_several_are_killed_at_once",),
        r"Timeout|Stalled",
        20,
    ),
    Break(
        "after deaths, what had been in the hands of the dead is not posted again",
        ("a producer ends by SIGKILL while it loads",),
        (
            Edit(
                "ring/ring.py",
                "        return [posted for posted in self._in_flight if posted.undone]\n",
                "        return [posted for posted in self._in_flight if posted.undone][:1]\n",
            ),
        ),
        ("test_crash.py::test_deaths_with_any_number_of_producers[5-fork]",),
        r"Timeout|Stalled",
        20,
    ),
    Break(
        "hints of who died before it set one are not rewritten",
        ("kill -9 of a producer before a line of its code",),
        (
            Edit(
                "workers/crew.py",
                "        for posted in batches:\n            self._write_hints(posted)\n        self._clear_claims()",
                "        self._clear_claims()",
            ),
        ),
        ("test_crash.py::test_a_kill_before_any_line_changes_nothing[ProducerEnd.done]",),
        r"Timeout|Stalled",
    ),
    Break(
        "a token whose record a dead producer took stays",
        ("kill -9 of a producer before a line of its code",),
        (
            Edit(
                "ring/channel.py",
                "            for fd, n_bytes in ((self._free, 8), (self._tasks_out, READ_BYTES)):",
                "            for fd, n_bytes in ((self._tasks_out, READ_BYTES),):",
            ),
        ),
        ("test_crash.py::test_a_kill_before_any_line_changes_nothing[_Work._fill]",),
        r"Timeout|Stalled",
    ),
    Break(
        "a record whose token a dead producer took stays",
        ("kill -9 of a producer before a line of its code",),
        (
            Edit(
                "ring/channel.py",
                "            for fd, n_bytes in ((self._free, 8), (self._tasks_out, READ_BYTES)):",
                "            for fd, n_bytes in ((self._free, 8),):",
            ),
        ),
        ("test_crash.py::test_a_kill_before_any_line_changes_nothing[ProducerEnd.claim]",),
        r"Timeout|Stalled|differ|assert|Error",
    ),
    Break(
        "a server that dies of itself is not missed",
        ("kill -9 of the server before a line of its code",),
        (
            Edit(
                "workers/pool.py",
                "            if not packet:\n                event.server_died = True\n                break\n",
                "            if not packet:\n                break\n",
            ),
        ),
        ("test_crash.py::test_a_kill_before_any_line_changes_nothing[Server._reap]",),
        r"Timeout|Stalled",
    ),
    Break(
        "a server that dies while it is written to is the trainer's error",
        ("kill -9 of the server or new producers during a reset, before each line of it",),
        (
            Edit(
                "workers/pool.py",
                "        except (BrokenPipeError, ConnectionResetError):\n"
                "            pass  # the server died; who reads its socket next learns of it",
                "        except TimeoutError:\n            pass",
            ),
        ),
        ("test_kills.py::test_a_kill_during_a_reset[the server-Pool.start]",),
        r"BrokenPipeError|ConnectionResetError",
    ),
    Break(
        "no sample is a killer",
        (r"a producer ends by (SIGSEGV|os\._exit\(0\)) while it loads",),
        (Edit("workers/suspects.py", "OWN, HUNGRY, OUTSIDE = 2, 5, 20", "OWN, HUNGRY, OUTSIDE = 10**9, 10**9, 10**9"),),
        (
            "test_crash.py::test_a_sample_that_always_kills_is_found_and_is_bad[Deadly-SIGSEGV]",
            "test_crash.py::test_a_sample_that_always_kills_is_found_and_is_bad[Deadly-os._exit(0)]",
        ),
        r"Timeout",
        15,
    ),
    Break(
        "by default, any number of deaths is made good",
        ("a producer ends by (SIGTERM|SIGKILL) while it loads",),
        (Edit("loader.py", "        restarts: int | None = 10,\n", "        restarts: int | None = None,\n"),),
        ("test_crash.py::test_by_default_a_sample_that_kills_as_others_do_ends_the_run",),
        r"assert .*ProducerDied|assert|DID NOT RAISE|SampleError",
    ),
    Break(
        "deaths with nothing in hand do not count for `restarts`",
        ("a replacement dies at its start",),
        (
            Edit(
                "engine.py",
                "        if self._suspects.too_many(len(deaths)):",
                "        if in_hand and self._suspects.too_many(len(deaths)):",
            ),
        ),
        ("test_crash.py::test_who_dies_at_its_start[SIGKILL]",),
        r"Timeout",
        15,
    ),
    Break(
        "a batch of which several samples were in hand at a death is loaded as before",
        ("a producer ends by SIGABRT while it asks for files ahead", "a producer ends by SIGSEGV while it loads"),
        (Edit("workers/suspects.py", "            self._careful.add((claim.epoch, claim.number))\n", ""),),
        (
            "test_crash.py::test_who_dies_while_it_asks_for_samples_ahead",
            "test_crash.py::test_isolating_a_sample_costs_three_deaths_and_one_batch",
        ),
        r"Timeout",
        15,
    ),
    Break(
        "padding is named among the samples in hand",
        ("a producer ends by SIGKILL with several samples in hand",),
        (Edit("data/sampler.py", "        return np.asarray(indices[indices != PAD])", "        return np.asarray(indices)"),),
        ("test_crash.py::test_the_samples_of_a_death_are_real",),
        r"assert",
    ),
    Break(
        "the exclusive turn excludes no producer that shares the descriptor",
        (r"a producer ends by (SIGKILL|os\._exit\(0\)) with the turn that others wait for",),
        (Edit("workers/worker.py", "    fcntl.lockf(fd, fcntl.LOCK_EX)\n", "    fcntl.flock(fd, fcntl.LOCK_EX)\n"),),
        ("test_turns.py::test_who_dies_with_the_turn_keeps_it_from_nobody",),
        r"Timeout|Stalled",
        15,
    ),
    Break(
        "a message to the server is shorter than what it has to say of killers",
        ("kill -9 of all producers at once",),
        (Edit("workers/server.py", "PACKET_BYTES = 1 << 17", "PACKET_BYTES = 1 << 16"),),
        ("test_stalls.py::test_thousands_of_killers_are_told_to_who_starts[forkserver]",),
        r"ProducerDied",
    ),
)
