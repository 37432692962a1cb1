"""Waits: what ends each of them, names who is stuck, and costs nothing meanwhile, undone."""

from tests.breaks import Break, Edit

TABLE = (
    Break(
        "workers spin while they wait for a task",
        ("seconds without a trainer, the ring full", "steps of a slow trainer, the ring full"),
        (Edit("workers/channel.py", "            self._wait.poll()  # another", "            self._wait.poll(0)  # another"),),
        (
            "test_waits.py::test_an_absent_trainer_costs_no_cpu[Truth-forkserver]",
            "test_waits.py::test_a_slow_trainer_costs_no_more_cpu_than_its_batches[forkserver]",
        ),
        r"never come to rest|assert .*cpu_s|used_s <",
    ),
    Break(
        "the server spins while it has nothing to do",
        ("seconds without a trainer, the ring full", "steps of a slow trainer, the ring full"),
        (Edit("workers/fork_server.py", "self._pause_ms() if busy else None if self._is_known else ASK_MS", "0"),),
        (
            "test_waits.py::test_an_absent_trainer_costs_no_cpu[Truth-forkserver]",
            "test_waits.py::test_a_slow_trainer_costs_no_more_cpu_than_its_batches[forkserver]",
        ),
        r"never come to rest|assert .*cpu_s|used_s <",
    ),
    Break(
        "who waits for a task asks thousands of times a second",
        ("seconds without a trainer, the ring full",),
        (
            Edit(
                "workers/channel.py",
                "            self._wait.poll()  # another",
                "            self._wait.poll(0) or __import__('time').sleep(0.0002)  # another",
            ),
        ),
        ("test_waits.py::test_an_absent_trainer_costs_no_cpu[Truth-forkserver]",),
        r"never come to rest|assert .*cpu_s|used_s <",
    ),
    Break(
        "progress is measured by a clock that may be set",
        ("a clock that jumps by years at each look",),
        (
            Edit(
                "engine/waiting.py",
                "        if time.monotonic() - since_s <= limit_s:\n",
                "        if abs(time.time() - since_s) <= limit_s:\n",
            ),
        ),
        ("test_waits.py::test_a_clock_that_jumps_changes_nothing",),
        r"StallError",
    ),
    Break(
        "sample_timeout ends nobody",
        (
            "a worker (sleeps in C|is stopped) while it loads, with sample_timeout",
            "a worker sleeps in C while it asks for files ahead",
            "soak: (loaders|strikes) of a sample that hangs once",
        ),
        (
            Edit(
                "engine/recovery.py",
                "            if now_s - work.since_s > timeout_s * (work.stop - work.start):",
                "            if now_s < 0:",
            ),
        ),
        (
            "test_stalls.py::test_who_takes_too_long_once_changes_nothing[sleeps in C-Stuck]",
            "test_stalls.py::test_who_takes_too_long_once_changes_nothing[is stopped-Stuck]",
            "test_stalls.py::test_who_always_takes_too_long_is_bad[is stopped-StuckRows]",
            "test_stalls.py::test_who_hangs_while_it_asks_ahead_is_named_or_ended",
        ),
        r"Timeout",
        12,
    ),
    Break(
        "a wait in which nothing is finished has no end",
        ("a worker (sleeps in C|is stopped) while it loads",),
        (Edit("engine/waiting.py", '        raise StallError(f"{what_is_not} for', '        StallError(f"{what_is_not} for'),),
        (
            "test_stalls.py::test_a_stall_names_who_is_stuck_on_what[sleeps in C-Stuck]",
            "test_stalls.py::test_a_stall_names_who_is_stuck_on_what[is stopped-StuckRows]",
        ),
        r"Timeout",
        12,
    ),
    Break(
        "a stall does not name who is stopped",
        (
            "SIGSTOP of all workers, then SIGCONT",
            "soak: a worker is stopped and continued",
            "SIGSTOP of the server, and a death .*",
        ),
        (
            Edit(
                "engine/describe.py",
                '    stuck += [f"{name} (pid {pid}) {STATES[state]}" for name, pid, state in states if state in STATES]\n',
                "    del states\n",
            ),
        ),
        (
            "test_stalls.py::test_stopped_workers_are_named_and_go_on_when_continued[3]",
            "test_stalls.py::test_a_stopped_server_is_named_and_goes_on_when_continued[forkserver]",
        ),
        r"Timeout",
        12,
    ),
    Break(
        "a server that does not answer is waited for",
        ("SIGSTOP of the server, and a death that it does not report",),
        (Edit("workers/supervisor.py", "            if not _readable(self.fd, deadline_s):\n                break\n", ""),),
        ("test_stalls.py::test_a_server_that_stays_stopped_is_replaced_with_who_takes_too_long[forkserver]",),
        r"Timeout",
        15,
    ),
    Break(
        "who does not end by SIGKILL is waited for",
        ("a process that SIGKILL does not end",),
        (
            Edit(
                "workers/supervisor.py",
                "        gone = gone or _hung_up(alive, time.monotonic() + END_S)\n",
                "        gone = gone or _hung_up(alive, time.monotonic() + 1e5)\n",
            ),
        ),
        ("test_unkillable.py::test_who_cannot_be_killed_is_an_end_not_a_hang[forkserver-a worker]",),
        r"Timeout",
        15,
    ),
    Break(
        "the memory of who does not end by SIGKILL is used again",
        ("a process that SIGKILL does not end",),
        (
            Edit(
                "workers/supervisor.py", "        if not gone:\n            pids", "        if gone is None:\n            pids"
            ),
        ),
        ("test_unkillable.py::test_who_cannot_be_killed_is_an_end_not_a_hang[forkserver-a worker]",),
        r"DID NOT RAISE|assert|SampleError",
        15,
    ),
    Break(
        "waiting for the exclusive turn counts for sample_timeout",
        ("waiting for the exclusive turn, longer than sample_timeout",),
        (Edit("workers/worker.py", "    current_work.wait(worker_id)\n", ""),),
        ("test_stalls.py::test_who_waits_for_its_turn_takes_no_time_for_its_sample[InTurn]",),
        r"assert|Timeout",
    ),
    Break(
        "who finds the pipe of results full does not ring",
        ("pipes of one page: reports of bad samples",),
        (
            Edit(
                "workers/channel.py",
                "                os.eventfd_write(self._fds.wake_fd, 1)\n                self._room.poll(NOTIFY_AGAIN_MS)",
                "                self._room.poll(NOTIFY_AGAIN_MS)",
            ),
        ),
        ("test_waits.py::test_more_is_said_than_the_pipe_holds_while_nobody_listens",),
        r"Timeout|StallError",
    ),
    Break(
        "what the pipe of tasks has no room for after a death is forgotten",
        ("pipes of one page: kill -9 of all workers at once",),
        (
            Edit(
                "engine/schedule.py",
                "            del state.unposted[: state.workers.post(state.unposted)]\n",
                "            state.workers.post(state.unposted)\n            state.unposted.clear()\n",
            ),
        ),
        ("test_waits.py::test_what_does_not_fit_again_is_posted_when_there_is_room",),
        r"Timeout|StallError",
        40,
    ),
    Break(
        "a pipe that cannot be made larger is an error",
        ("F_SETPIPE_SZ is refused",),
        (
            Edit(
                "workers/channel.py",
                "        if error.errno != errno.EPERM:\n            raise  #",
                "        if error.errno:\n            raise  #",
            ),
        ),
        ("test_waits.py::test_a_user_whose_pipes_are_at_their_limit",),
        r"assert .*Operation not permitted|AssertionError|assert",
        60,
    ),
)
