"""The end of a loader and of its trainer, and forks of it: what makes them whole, undone."""

from tests.breaks import Break, Edit

LIFELINE = Edit(
    "workers/fork_server.py",
    "    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)\n",
    "",
)
DEAF_TO_THE_END = Edit(
    "workers/fork_server.py",
    'json.loads(packet) if packet else {"exit": True}',
    'json.loads(packet or signal.pause() or "{}")',
)
KEPT_BY_FORKS = Edit(
    "workers/supervisor.py",
    "        self.pids: list[int] = []\n        forks.keep(self)\n",
    "        self.pids: list[int] = []\n",
)

TABLE = (
    Break(
        "who closes takes down what others are at",
        (r"close\(\) by four threads at once while a fifth is in next\(\)",),
        (
            Edit(
                "engine/engine.py",
                "        for _ in acquire_now(life.lock):\n"
                "            try:\n"
                "                self._take_down()\n"
                "            finally:\n"
                "                life.lock.release()\n"
                "            return\n",
                "        for _ in (True,):\n            self._take_down()\n            return\n",
            ),
        ),
        ("test_closes.py::test_four_threads_close_while_a_fifth_iterates[fork]",),
        r"assert|Timeout",
    ),
    Break(
        "who closes rings the doorbell that another is closing",
        (r"close\(\) at every moment of another close\(\)",),
        (Edit("engine/engine.py", "            if not life.is_closed:\n", "            if True:\n"),),
        ("test_closes.py::test_a_close_comes_at_every_moment_of_another",),
        r"Bad file descriptor",
    ),
    Break(
        "who closes does not wake who waits in next()",
        (r"close\(\) by a signal handler during next\(\)",),
        (Edit("engine/engine.py", "                self._state.workers.wake()\n", ""),),
        ("test_closes.py::test_a_signal_handler_closes_at_random_moments[waiting]",),
        r"assert .*PROMPT_S|< 8.0",
        60,
        has_alarms=True,
    ),
    Break(
        "nobody looks for a close that came before the lock was released",
        (r"close\(\) just before the lock is released",),
        (Edit("engine/engine.py", "        if self._life.close_requested:\n            self.close()\n", "        pass\n"),),
        ("test_closes.py::test_a_close_comes_when_all_is_done_and_the_lock_is_still_held",),
        r"assert not",
    ),
    Break(
        "who closes waits for the lock, which the thread that it interrupts may hold",
        (r"close\(\) at every moment of another close\(\)",),
        (
            Edit(
                "engine/engine.py",
                "        for _ in acquire_now(life.lock):\n            try:\n                self._take_down()\n",
                "        for _ in range(life.lock.acquire()):\n            try:\n                self._take_down()\n",
            ),
        ),
        ("test_closes.py::test_a_close_comes_at_every_moment_of_another",),
        r"Timeout",
        20,
    ),
    Break(
        "next() does not see that the loader was closed",
        (r"close\(\) by the garbage collector while another thread is in next\(\)",),
        (
            Edit(
                "engine/engine.py",
                "                if life.close_requested or life.state is INCONSISTENT:",
                "                if life.state is INCONSISTENT:",
            ),
        ),
        ("test_closes.py::test_the_garbage_collector_closes_while_another_is_in_next",),
        r"assert .*Closed",
    ),
    Break(
        "the lifeline is not armed, and the server does not see the trainer's end",
        ("ends of the trainer, of every kind", "kill -9 of the trainer at a random moment.*"),
        (LIFELINE, DEAF_TO_THE_END),
        (
            "test_exit.py::test_an_ordinary_end_says_and_leaves_nothing[os._exit]",
            "test_exit.py::test_an_ordinary_end_says_and_leaves_nothing[exec]",
            "test_exit.py::test_the_trainer_is_killed[9-busy-forkserver]",
            "test_exit.py::test_the_trainer_is_killed_at_random_moments[forkserver]",
            "test_kills.py::test_the_trainer_is_killed_at_a_random_moment[forkserver]",
        ),
        r"timed out after|Timeout|a mapping in process|left a second|mapped\(\)",
    ),
    Break(
        "the lifeline is not armed: who is stopped does not end",
        ("kill -9 of the trainer at a random moment.*",),
        (LIFELINE,),
        ("test_exit.py::test_the_trainer_is_killed_while_workers_are_stopped",),
        r"timed out after|Timeout|a mapping in process",
    ),
    Break(
        "a loader is closed neither at the interpreter's exit nor by the lifeline",
        ("lease that ends with the interpreter",),
        (
            LIFELINE,
            DEAF_TO_THE_END,
            Edit(
                "loader.py",
                "weakref.finalize(self, finalize, engine.close)\n",
                "weakref.finalize(self, finalize, engine.close).atexit = False\n",
            ),
        ),
        tuple(
            f"test_leases_attacked.py::test_leases_end_with_the_interpreter[{ending}-open]"
            for ending in (
                "a thread that goes on",
                "a daemon",
                "atexit",
                "a finalizer",
                "a cycle",
                "a module that is torn down",
                "__del__",
            )
        ),
        r"timed out after|Timeout|a mapping in process",
        12,
    ),
    Break(
        "TensorFlow keeps the loader of a tf.data.Dataset",
        (),
        (Edit("tf.py", "    kept = weakref.ref(loader)", "    kept = lambda: loader"),),
        ("test_tf.py::test_a_loader_that_nobody_has_is_closed_and_not_before",),
        r"AssertionError: for",
        250,
    ),
    Break(
        "a loader that nobody holds any more is not closed",
        ("loader that ends while arrays of it are kept",),
        (
            Edit(
                "loader.py",
                "        weakref.finalize(self, finalize, engine.close)\n",
                "",
            ),
        ),
        ("test_leases_attacked.py::test_what_is_kept_outlives_the_loader",),
        r"mapping in process|child \d+",
    ),
    Break(
        "a loader is kept for those who might fork, for ever",
        ("loaders one after another",),
        (Edit("system/forks.py", "_kept: weakref.WeakSet[Droppable] = weakref.WeakSet()", "_kept: set[Droppable] = set()"),),
        ("test_several_loaders.py::test_many_one_after_another_take_nothing_more[fork]",),
        r"assert",
        90,
    ),
    Break(
        "a fork of the trainer keeps the locks as other threads had them",
        ("fork of the trainer while another thread is in next\\(\\)", "soak: forks of the trainer in mid-iteration"),
        (
            Edit(
                "engine/lifecycle.py",
                "        self.lock, self.wake_lock = new_lock(), new_rlock()\n        self.close_requested, self.state",
                "        self.close_requested, self.state",
            ),
        ),
        ("test_several_loaders.py::test_forks_at_random_moments_while_another_thread_iterates",),
        r"Timeout",
    ),
    Break(
        "a fork of the trainer keeps the workers' descriptors",
        ("fork of the trainer while a loader is made",),
        (KEPT_BY_FORKS,),
        ("test_several_loaders.py::test_a_fork_while_a_loader_is_made_holds_nothing_of_it[fork]",),
        r"have not ended",
    ),
    Break(
        "a fork of the trainer keeps the workers alive",
        ("ends of the trainer, of every kind",),
        (KEPT_BY_FORKS,),
        ("test_exit.py::test_a_fork_that_outlives_the_trainer_keeps_no_worker_alive",),
        r"timed out after|Timeout|deadline_s",
    ),
    Break(
        "whatever the trainer starts inherits the ring",
        (r"subprocess.Popen\(close_fds=False\) while loaders are made",),
        (Edit("system/segment.py", '"ringload", os.MFD_CLOEXEC)', '"ringload", 0)'),),
        ("test_several_loaders.py::test_what_is_started_meanwhile_inherits_no_descriptor",),
        r"memfd:ringload",
    ),
    Break(
        "whatever the trainer starts inherits the pipes",
        (r"subprocess.Popen\(close_fds=False\) while loaders are made",),
        (Edit("system/interrupts.py", "map(os.pipe2, (os.O_CLOEXEC,))", "map(os.pipe2, (0,))"),),
        ("test_several_loaders.py::test_what_is_started_meanwhile_inherits_no_descriptor",),
        r"pipe:",
    ),
)
