"""Ctrl-C: what keeps the books, the descriptors and the producers whole, undone."""

from tests.breaks import Break, Edit

BOOKS_TORN = Edit(
    "engine.py",
    "        self._engine._mend()\n        self._engine._torn = True\n",
    "        self._engine._mend()\n",
)

TABLE = (
    Break(
        "a file's descriptor is noted in a step of its own",
        ("Ctrl-C at every moment of loading images in the trainer",),
        (
            Edit(
                "data/files.py",
                "fds.extend(starmap(os.open, ((path, FLAGS),)))",
                "fds.append(os.open(path, FLAGS))",
            ),
        ),
        ("test_interrupts.py::test_files_that_the_trainer_reads_are_closed_whatever_the_moment",),
        r"after moment \d+",
    ),
    Break(
        "an interruption of what touches the books leaves them torn, and nobody knows",
        (r"Ctrl-C at every moment of (iter|stats|set_epoch|load_state_dict|release)",),
        (BOOKS_TORN,),
        tuple(
            f"test_interrupts.py::test_other_calls_are_interrupted_at_every_moment[{name}]"
            for name in ("iter", "stats", "set_epoch", "load_state_dict", "release")
        ),
        r"Timeout|assert|Error",
        60,
    ),
    Break(
        "an interruption of next() leaves the books torn, and nobody knows",
        (r"Ctrl-C at every moment of next\(\)", "Ctrl-C that is caught, at a random moment", "soak: Ctrl-C that is caught"),
        (
            Edit(
                "engine.py",
                "                self._torn = True\n                try:\n                    if self._lender",
                "                try:\n                    if self._lender",
            ),
        ),
        (
            "test_interrupts.py::test_next_is_interrupted_at_every_moment",
            "test_interrupts.py::test_who_catches_ctrl_c_goes_on_with_the_right_batch[forkserver]",
        ),
        r"Timeout|assert|Error",
        60,
    ),
    Break(
        "an answer to an earlier `clear` is taken for the present one",
        ("Ctrl-C at every moment of a reset", "Ctrl-C between a question to the server and its answer"),
        (Edit("workers/pool.py", 'return message.get("cleared") == self._n_clears', 'return "cleared" in message'),),
        ("test_interrupts.py::test_no_answer_to_an_interrupted_clear_is_taken_for_another",),
        r"Timeout|assert|Error",
        60,
    ),
    Break(
        "a server that has ended is asked to clear",
        (
            "Ctrl-C at every moment of replacing a server that was killed",
            "Ctrl-C between the end of a killed server and the start of the next",
        ),
        (
            Edit(
                "workers/pool.py",
                "        if not self._server:  # one came after its end\n"
                "            self._close_fds()\n"
                "            return event\n",
                "",
            ),
        ),
        (
            "test_interrupts.py::test_the_replacement_of_a_server_is_interrupted_at_every_moment",
            "test_interrupts.py::test_a_killed_server_is_replaced_after_an_interruption",
        ),
        r"Bad file descriptor",
    ),
    Break(
        "a server is started in one step and noted in the next",
        (r"Ctrl-C at the beginning of Popen\(\)", "Ctrl-C before any line of starting a server"),
        (
            Edit(
                "workers/pool.py",
                "        self._server.extend(map(spawn, [sys.executable], [arguments], [environment]))",
                "        pid = spawn(sys.executable, arguments, environment)\n        self._server = [pid]",
            ),
            Edit(
                "workers/pool.py",
                "            forks.fork_for(self, self._server)\n",
                "            pids = []\n            forks.fork_for(self, pids)\n            self._server = pids\n",
            ),
        ),
        ("test_interrupts.py::test_an_interruption_before_any_line_of_starting_a_server",),
        r"ringload:server|zombie",
    ),
    Break(
        "the pool does not say again how much is reserved",
        ("Ctrl-C when the server has told that more is reserved",),
        (Edit("workers/pool.py", "event = Event([], self._n_reserved)  # again", "event = Event([])  # again"),),
        ("test_interrupts.py::test_an_interruption_makes_no_ring_small[when it is heard, and then the server is killed]",),
        r"assert",
    ),
    Break(
        "the server does not say again how much is reserved",
        ("Ctrl-C when the server has told that more is reserved",),
        (
            Edit(
                "workers/server.py",
                '{"cleared": message["clear"], "reserved": self._n_reported}',
                '{"cleared": message["clear"]}',
            ),
        ),
        ("test_interrupts.py::test_an_interruption_makes_no_ring_small[when it is read]",),
        r"assert",
    ),
    Break(
        "a close that was interrupted counts as done",
        (r"Ctrl-C at every moment of close\(\)",),
        (
            Edit(
                "engine.py",
                "        if not self._down:\n            with self._bell:",
                "        if not self._down:\n            self._down = True\n            with self._bell:",
            ),
        ),
        ("test_interrupts.py::test_a_close_is_interrupted_at_every_moment_and_the_next_one_goes_on",),
        r"assert .*(descriptors|gone|Counter)",
    ),
    Break(
        "what was made of a loader is not closed when the rest is interrupted",
        ("Ctrl-C at every moment of making a loader",),
        (Edit("loader.py", "            on_error.callback(crew.close)\n", ""),),
        ("test_interrupts.py::test_the_making_of_a_loader_is_interrupted_at_every_moment",),
        r"assert .*(descriptors|gone)",
    ),
    Break(
        "a lease whose end was taken along by an interruption is lent for ever",
        ("Ctrl-C while ended leases are entered",),
        (
            Edit(
                "engine.py",
                "return posted.batch is None and posted.end is not None and posted.end() is not None",
                "return posted.batch is None",
            ),
        ),
        ("test_interrupts.py::test_a_lease_whose_end_an_interruption_took_along_is_not_lent_for_ever",),
        r"assert|Timeout",
    ),
    Break(
        "a forked server gets the Ctrl-C that was meant for the trainer",
        ("Ctrl-C before a forked server has left the trainer's group",),
        (
            Edit(
                "workers/pool.py", "            os.setsid()\n            _discard_interruption()\n", "            os.setsid()\n"
            ),
        ),
        ("test_interrupts.py::test_ctrl_c_that_meets_a_forked_server_in_the_trainers_group_is_the_trainers",),
        r"Traceback",
    ),
    Break(
        "Ctrl-C reaches the server: it shares the trainer's session, and does not ignore it",
        ("Ctrl-C at a random moment, (once|twice in quick succession)",),
        (
            Edit("workers/pool.py", ", setsid=True, setsigdef", ", setsigdef"),
            Edit(
                "workers/server.py",
                "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    worker.be_called",
                "    worker.be_called",
            ),
            Edit("workers/server.py", "fcntl.F_SETOWN, -os.getpgrp()", "fcntl.F_SETOWN, os.getpid()"),
        ),
        ("test_interrupts.py::test_ctrl_c_at_random_moments_shows_one_traceback[forkserver]",),
        r"workers/server.py|KeyboardInterrupt",
        60,
    ),
)
