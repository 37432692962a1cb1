"""Ctrl-C: what keeps the books, the descriptors and the workers whole, undone."""

from tests.breaks import Break, Edit

TABLE = (
    Break(
        "a finalizer that goes on after an interruption drains workers that are closed",
        (),
        (Edit("torch/dataloader/feed.py", "        engines.clear()", "        pass"),),
        ("test_interrupts.py::test_a_finalizer_that_is_interrupted_while_it_drains_does_the_rest",),
        r"OSError",
    ),
    Break(
        "a file's descriptor is noted in a step of its own",
        ("Ctrl-C at every moment of loading images in the trainer",),
        (
            Edit(
                "storage/read_ahead.py",
                "fds.extend(starmap(os.open, ((path, FLAGS),)))",
                "fds.append(os.open(path, FLAGS))",
            ),
        ),
        ("test_interrupts.py::test_files_that_the_trainer_reads_are_closed_whatever_the_moment",),
        r"after moment \d+",
    ),
    Break(
        "an interruption of what touches the books leaves them torn, and nobody knows",
        (r"Ctrl-C at every moment of (iter|poll|stats|set_epoch|load_state_dict|release)",),
        (
            Edit(
                "engine/engine.py",
                "        self._engine._ensure_consistent()\n        self._life.state = INCONSISTENT\n",
                "        self._engine._ensure_consistent()\n",
            ),
        ),
        tuple(
            f"test_interrupts.py::test_other_calls_are_interrupted_at_every_moment[{name}]"
            for name in ("iter", "poll", "set_epoch", "release")
        ),
        r"Timeout|assert|Error",
        60,
    ),
    Break(
        "an interruption of next() leaves the books torn, and nobody knows",
        (r"Ctrl-C at every moment of next\(\)", "Ctrl-C that is caught, at a random moment", "soak: Ctrl-C that is caught"),
        (
            Edit(
                "engine/engine.py",
                "                life.state = INCONSISTENT\n                try:\n",
                "                try:\n",
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
        (Edit("workers/supervisor.py", 'return message.get("cleared") == self._n_clears', 'return "cleared" in message'),),
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
                "workers/supervisor.py",
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
                "workers/supervisor.py",
                "        self._server.extend(starmap(start, ((),)))",
                "        pid = start()\n        self._server = [pid]",
            ),
            Edit(
                "workers/supervisor.py",
                "            forks.fork_for(self, self._server)\n",
                "            pids = []\n            forks.fork_for(self, pids)\n            self._server = pids\n",
            ),
        ),
        ("test_interrupts.py::test_an_interruption_before_any_line_of_starting_a_server",),
        r"ringload:server|zombie",
    ),
    Break(
        "the pool does not say again how much is reserved",
        ("Ctrl-C when the server has reported that more is reserved",),
        (
            Edit(
                "workers/supervisor.py",
                "event = Event([], self._n_reserved, self._goal)  # again",
                "event = Event([])  # again",
            ),
        ),
        ("test_interrupts.py::test_an_interruption_makes_no_ring_small[when it is heard, and then the server is killed]",),
        r"assert",
    ),
    Break(
        "the server does not say again how much is reserved",
        ("Ctrl-C when the server has reported that more is reserved",),
        (
            Edit(
                "workers/fork_server.py",
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
                "engine/engine.py",
                "        if self._life.state is not State.CLOSED:\n            self._life.begin_closing()\n",
                "        if self._life.state is not State.CLOSED:\n"
                "            self._life.end_closing()\n"
                "            self._life.begin_closing = lambda: None\n",
            ),
        ),
        ("test_interrupts.py::test_a_close_is_interrupted_at_every_moment_and_the_next_one_goes_on",),
        r"assert .*(descriptors|gone|Counter)",
    ),
    Break(
        "a reset ends workers again that it has ended",
        ("Ctrl-C at every moment of a reset",),
        (Edit("workers/supervisor.py", "        if not self._may_run:", "        if False:"),),
        ("test_interrupts.py::test_a_reset_that_is_interrupted_ends_workers_once",),
        r"assert \d == \d",
    ),
    Break(
        "after a reset a loader is still inconsistent",
        ("Ctrl-C at every moment of a reset",),
        (
            Edit(
                "engine/engine.py",
                "            self._recovery.start_over()\n            self._life.state = OPEN\n",
                "            self._recovery.start_over()\n",
            ),
        ),
        ("test_interrupts.py::test_one_reset_is_enough_where_the_epoch_is_over",),
        r"assert 2 == 1",
    ),
    Break(
        "a finalizer that is interrupted leaves the rest",
        (r"Ctrl-C at every moment of close\(\)",),
        (Edit("system/interrupts.py", "    except KeyboardInterrupt:\n        end()\n", "    except KeyboardInterrupt:\n"),),
        ("test_locks.py::test_a_finalizer_goes_on_after_an_interruption",),
        r"assert 1 == 2",
    ),
    Break(
        "workers are started anew to be ended",
        (r"Ctrl-C at every moment of close\(\)",),
        (Edit("engine/engine.py", "            if self._life.state is not OPEN:", "            if False:"),),
        ("test_explicit_order.py::test_workers_are_not_started_anew_to_be_ended",),
        r"workers are started",
    ),
    Break(
        "statistics enter what has ended",
        ("Ctrl-C at every moment of release",),
        (
            Edit(
                "loader.py",
                "        counters = self._engine.counters\n",
                "        self._engine.poll()\n        counters = self._engine.counters\n",
            ),
        ),
        ("test_loader.py::test_stats_and_plan_only_read",),
        r"assert",
    ),
    Break(
        "observers are told again of a ring that has not grown",
        (r"kill -9 of all workers at once",),
        (
            Edit(
                "engine/recovery.py",
                "        if (state.n_reserved, state.goal) != before:\n",
                "        if event.n_reserved is not None or event.goal is not None:\n",
            ),
        ),
        ("test_protocols.py::test_growth_is_told_once",),
        r"assert",
    ),
    Break(
        "what was made of a loader is not closed when the rest is interrupted",
        ("Ctrl-C at every moment of making a loader",),
        (
            Edit(
                "loader.py",
                "        weakref.finalize(self, finalize, engine.close)",
                "        weakref.finalize(self, id, engine)",
            ),
        ),
        ("test_interrupts.py::test_the_making_of_a_loader_is_interrupted_at_every_moment",),
        r"assert .*(descriptors|gone)",
    ),
    Break(
        "a lease whose end was taken along by an interruption is lent for ever",
        ("Ctrl-C while ended leases are entered",),
        (
            Edit(
                "ring/lease.py",
                "        return end is not None and end.serial == serial and end() is not None\n",
                "        return end is not None and end.serial == serial\n",
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
                "workers/supervisor.py",
                "            os.setsid()\n            _discard_interruption()\n",
                "            os.setsid()\n",
            ),
        ),
        ("test_interrupts.py::test_ctrl_c_that_meets_a_forked_server_in_the_trainers_group_is_the_trainers",),
        r"Traceback",
    ),
    Break(
        "Ctrl-C reaches the server: it shares the trainer's session, and does not ignore it",
        ("Ctrl-C at a random moment, (once|twice in quick succession)",),
        (
            Edit("workers/interpreter.py", ", setsid=True, setsigdef", ", setsigdef"),
            Edit(
                "workers/fork_server.py",
                "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    worker.be_called",
                "    worker.be_called",
            ),
            Edit("workers/fork_server.py", "fcntl.F_SETOWN, -os.getpgrp()", "fcntl.F_SETOWN, os.getpid()"),
        ),
        ("test_interrupts.py::test_ctrl_c_at_random_moments_shows_one_traceback[forkserver]",),
        r"workers/fork_server.py|KeyboardInterrupt",
        60,
    ),
    Break(
        "a lock's `with` takes it in a call",
        ("Ctrl-C while a lock is taken and given back",),
        (
            Edit(
                "system/interrupts.py",
                "        for _ in map(self.acquire, (True,)):\n            return True",
                "        if self.acquire(True):\n            return True",
            ),
        ),
        ("test_locks.py::test_no_interruption_keeps_a_lock[as from 3.14 on]",),
        r"assert False|is_free",
    ),
)
