"""Deaths of workers and of their server: what notices them, what makes them good, and what finds who causes them, undone."""

from tests.breaks import Break, Edit

UNTOLD = Edit(
    "workers/fork_server.py",
    '                self._send({"died": self._reap(fd for fd in list(self._children) if fd in events)})\n',
    "                self._reap(fd for fd in list(self._children) if fd in events)\n",
)

TABLE = (
    Break(
        "records are written to whatever has taken the descriptor's place",
        ("the worker's descriptors are replaced by files of the user's",),
        (Edit("workers/channel.py", "        self.check()\n        while True:", "        while True:"),),
        ("test_hostile.py::test_what_takes_the_place_of_the_descriptors_is_not_written_to",),
        r"assert|StallError",
    ),
    Break(
        "what is known to kill is described by the user's function",
        ("a sample that ends its worker when it is loaded, and when it is described",),
        (Edit("workers/fill.py", 'self._where(sample) if source.is_own else ""', "self._where(sample)"),),
        ("test_crash.py::test_who_kills_when_it_is_described_too_harms_no_other",),
        r"assert|StallError",
        40,
    ),
    Break(
        "a worker goes on whose descriptors were closed",
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
        ("a worker dies when it has loaded what makes it die",),
        (Edit("engine/blame.py", "while sample in self._known_to_workers:", "while False:"),),
        ("test_crash.py::test_who_dies_later_than_its_cause_is_found",),
        r"StallError: (nothing was finished|no worker has begun to load) for 20 s: .*; deaths in all: \d+",
        40,
    ),
    Break(
        "the server does not tell of a death",
        (
            r"a worker ends by (SIGKILL|SIGTERM|SIGSEGV|SIGABRT|sys.exit|KeyboardInterrupt|os\._exit.*) while it loads",
            r"kill -9 of a worker or the server at a random moment \(.*\)",
            "a worker of listed batches is killed, while layouts change",
            "a worker of torch.DataLoader is killed",
            "soak: kill -9 of a worker or the server",
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
            "test_explicit_order.py::test_kills_and_layouts_at_random",
            "test_torch_loader_workers.py::test_kills_at_random_while_listed_batches_come",
        ),
        r"Timeout|StallError",
        12,
    ),
    Break(
        "who waits for a batch does not ask what the server tells",
        (),
        (Edit("engine/waiting.py", "            if woken:\n                self._recovery.handle(workers.events())\n", ""),),
        ("test_crash.py::test_who_dies_once_changes_nothing[Deadly-SIGKILL]",),
        r"Timeout|StallError",
        12,
    ),
    Break(
        "exit code 0 is no death",
        (
            r"a worker ends by os\._exit\(0\) while it loads",
            r"a worker ends by os\._exit\(0\) with the turn that others wait for",
        ),
        (
            Edit(
                "workers/fork_server.py",
                "            dead.append((worker_id, pid, status))\n",
                "            if status:\n                dead.append((worker_id, pid, status))\n",
            ),
        ),
        ("test_crash.py::test_who_dies_once_changes_nothing[Deadly-os._exit(0)]",),
        r"Timeout|StallError",
        12,
    ),
    Break(
        "a server that was killed with its workers is not missed",
        ("kill -9 of two or three processes at once", "kill -9 of all workers at once"),
        (Edit("engine/recovery.py", "        if event.died or event.server_died:\n", "        if event.died:\n"),),
        ("test_kills.py::test_several_are_killed_at_once",),
        r"Timeout|StallError",
        20,
    ),
    Break(
        "after deaths, what had been in the hands of the dead is not posted again",
        ("a worker ends by SIGKILL while it loads",),
        (
            Edit(
                "ring/slots.py",
                "        return [posted for posted in self._in_flight if posted.undone]\n",
                "        return [posted for posted in self._in_flight if posted.undone][:1]\n",
            ),
        ),
        ("test_crash.py::test_deaths_with_any_number_of_workers[5-fork]",),
        r"Timeout|StallError",
        20,
    ),
    Break(
        "hints of who died before it set one are not rewritten",
        ("kill -9 of a worker before a line of its code",),
        (
            Edit(
                "workers/processes.py",
                "        for posted in batches:\n            self._write_flags(posted)\n        self._clear_current_work()",
                "        self._clear_current_work()",
            ),
        ),
        ("test_crash.py::test_who_dies_between_its_record_and_its_flag",),
        r"Timeout|StallError",
    ),
    Break(
        "a token whose record a dead worker took stays",
        ("kill -9 of a worker before a line of its code",),
        (
            Edit(
                "workers/channel.py",
                "                for fd, n_bytes in ((queue.free, 8), (queue.tasks, READ_BYTES)):",
                "                for fd, n_bytes in ((queue.tasks, READ_BYTES),):",
            ),
        ),
        ("test_crash.py::test_a_kill_before_any_line_changes_nothing[_TaskLoop._fill]",),
        r"Timeout|StallError",
    ),
    Break(
        "a record whose token a dead worker took stays",
        ("kill -9 of a worker before a line of its code",),
        (
            Edit(
                "workers/channel.py",
                "                for fd, n_bytes in ((queue.free, 8), (queue.tasks, READ_BYTES)):",
                "                for fd, n_bytes in ((queue.free, 8),):",
            ),
        ),
        ("test_crash.py::test_a_kill_before_any_line_changes_nothing[WorkerChannel._take_token]",),
        r"Timeout|StallError|differ|assert|Error",
    ),
    Break(
        "a server that dies of itself is not missed",
        ("kill -9 of the server before a line of its code",),
        (
            Edit(
                "workers/supervisor.py",
                "            if not packet:\n                event.server_died = True\n                break\n",
                "            if not packet:\n                break\n",
            ),
        ),
        ("test_crash.py::test_a_kill_before_any_line_changes_nothing[ForkServer._reap]",),
        r"Timeout|StallError",
    ),
    Break(
        "a server that dies while it is written to is the trainer's error",
        ("kill -9 of the server or new workers during a reset, before each line of it",),
        (
            Edit(
                "workers/supervisor.py",
                "        except (BrokenPipeError, ConnectionResetError):\n"
                "            pass  # the server died; who reads its socket next learns of it",
                "        except TimeoutError:\n            pass",
            ),
        ),
        ("test_kills.py::test_a_kill_during_a_reset[the server-WorkerSupervisor.start]",),
        r"BrokenPipeError|ConnectionResetError",
    ),
    Break(
        "no sample is a killer",
        (r"a worker ends by (SIGSEGV|os\._exit\(0\)) while it loads",),
        (
            Edit(
                "engine/blame.py",
                "MAX_CRASHES_OWN, MAX_CRASHES_OOM, MAX_CRASHES_EXTERNAL = 2, 5, 20",
                "MAX_CRASHES_OWN, MAX_CRASHES_OOM, MAX_CRASHES_EXTERNAL = 10**9, 10**9, 10**9",
            ),
        ),
        (
            "test_crash.py::test_a_sample_that_always_kills_is_found_and_is_bad[Deadly-SIGSEGV]",
            "test_crash.py::test_a_sample_that_always_kills_is_found_and_is_bad[Deadly-os._exit(0)]",
        ),
        r"Timeout",
        15,
    ),
    Break(
        "by default, any number of deaths is made good",
        ("a worker ends by (SIGTERM|SIGKILL) while it loads",),
        (Edit("loader.py", "        restarts: int | None = 10,\n", "        restarts: int | None = None,\n"),),
        ("test_crash.py::test_by_default_a_sample_that_kills_as_others_do_ends_the_run",),
        r"assert .*WorkerDiedError|assert|DID NOT RAISE|SampleError",
    ),
    Break(
        "deaths with nothing in hand do not count for `restarts`",
        ("a replacement dies at its start",),
        (
            Edit(
                "engine/recovery.py",
                "        if state.blame.too_many(len(deaths)):",
                "        if current_work and state.blame.too_many(len(deaths)):",
            ),
        ),
        ("test_crash.py::test_who_dies_at_its_start[SIGKILL]",),
        r"Timeout",
        15,
    ),
    Break(
        "a batch of which several samples were in hand at a death is loaded as before",
        ("a worker ends by SIGABRT while it asks for files ahead", "a worker ends by SIGSEGV while it loads"),
        (Edit("engine/blame.py", "            self._one_by_one.add((work.epoch, work.number))\n", ""),),
        (
            "test_crash.py::test_who_dies_while_it_asks_for_samples_ahead",
            "test_crash.py::test_isolating_a_sample_costs_three_deaths_and_one_batch",
        ),
        r"Timeout",
        15,
    ),
    Break(
        "padding is named among the samples in hand",
        ("a worker ends by SIGKILL with several samples in hand",),
        (
            Edit(
                "engine/blame.py",
                "for sample in rows.index[start:stop].tolist() if sample != PAD]",
                "for sample in rows.index[start:stop].tolist()]",
            ),
        ),
        ("test_crash.py::test_the_samples_of_a_death_are_real",),
        r"assert",
    ),
    Break(
        "the exclusive turn excludes no worker that shares the descriptor",
        (r"a worker ends by (SIGKILL|os\._exit\(0\)) with the turn that others wait for",),
        (Edit("workers/worker.py", "    fcntl.lockf(fd, fcntl.LOCK_EX)\n", "    fcntl.flock(fd, fcntl.LOCK_EX)\n"),),
        ("test_exclusive_decode.py::test_who_dies_with_the_turn_keeps_it_from_nobody",),
        r"Timeout|StallError",
        15,
    ),
    Break(
        "a message to the server is shorter than what it has to say of killers",
        ("kill -9 of all workers at once",),
        (Edit("workers/fork_server.py", "PACKET_BYTES = 1 << 17", "PACKET_BYTES = 1 << 16"),),
        ("test_stalls.py::test_thousands_of_killers_are_told_to_who_starts[forkserver]",),
        r"WorkerDiedError",
    ),
)
