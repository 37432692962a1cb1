"""Workers on Ray."""

from tests.breaks import Break, Edit

DISPATCHER, ACTORS = "ray/dispatcher.py", "ray/actors.py"
TABLE = (
    Break(
        "what an actor returns of a generation that is over is written",
        ("kill -9 of a Ray actor",),
        (
            Edit(
                DISPATCHER,
                "        if unit.generation != self._generation:\n            actor.n_old -= 1\n            return\n",
                "",
            ),
        ),
        ("test_ray_workers.py::test_kills_of_actors_change_nothing",),
        r"IndexError|AssertionError|KeyError|ConfigError|ValueError",
        60,
    ),
    Break(
        "each actor of a node that died is a death of its own",
        ("kill -9 of a raylet, with all actors of its node",),
        (Edit(ACTORS, "        if actor.raylet[1] and not answers(*actor.raylet):\n", "        if False:\n"),),
        ("test_ray_workers.py::test_a_raylet_dies_with_its_actors_and_a_node_joins",),
        r"WorkerDiedError",
        90,
    ),
    Break(
        "an actor does not look at how long a sample takes",
        ("a sample has its Ray actor hang",),
        (Edit("ray/sample_watch.py", "        if timeout_s is not None:\n", "        if False:\n"),),
        ("test_ray_workers.py::test_a_sample_that_kills_or_holds_up_its_actor_is_bad[hang]",),
        r"Timeout|WorkerDiedError",
        60,
    ),
    Break(
        "an actor has units while it may die of a sample that was given up",
        ("a sample has its Ray actor hang",),
        (Edit(ACTORS, "if actor.is_ready and not actor.n_old]", "if actor.is_ready]"),),
        ("test_ray_workers.py::test_a_sample_that_kills_or_holds_up_its_actor_is_bad[hang]",),
        r"AssertionError|assert",
        90,
    ),
    Break(
        "an actor that takes too long for a sample is left as it is",
        ("a sample has its Ray actor hang",),
        (Edit(DISPATCHER, "        self._ended.add(number)\n", "        pass\n"),),
        ("test_ray_workers.py::test_a_sample_that_kills_or_holds_up_its_actor_is_bad[hang]",),
        r"Timeout|WorkerDiedError",
        60,
    ),
    Break(
        "rows of a batch that killed an actor are not told one by one",
        ("a sample has its Ray actor exit",),
        (
            Edit(
                "ray/slot_writer.py",
                "            step = 1 if one_by_one else stop - start\n",
                "            step = stop - start\n",
            ),
        ),
        ("test_ray_workers.py::test_a_sample_that_kills_or_holds_up_its_actor_is_bad[exit]",),
        r"WorkerDiedError|Timeout",
        60,
    ),
    Break(
        "nobody looks whether the head is there",
        ("kill -9 of a Ray cluster's head",),
        (Edit(DISPATCHER, "        if self._cluster.is_lost():\n", "        if False:\n"),),
        ("test_ray_workers.py::test_a_head_that_dies",),
        r"assert|Timeout",
        120,
    ),
    Break(
        "actors that cannot be placed are waited for without an end",
        (),
        (Edit(DISPATCHER, "        elif time.monotonic() - self._enough_s > self._timeout_s:\n", "        elif False:\n"),),
        ("test_ray_workers.py::test_actors_that_cannot_be_placed",),
        r"Timeout",
        15,
    ),
    Break(
        "a node's version of ringload is not looked at",
        (),
        (Edit(ACTORS, "        if (hello.ringload, hello.python) != ours:\n", "        if False:\n"),),
        ("test_ray_workers.py::test_another_version_on_a_node_is_refused",),
        r"DID NOT RAISE",
        60,
    ),
    Break(
        "a call of Ray has as few rows as a task of a local worker",
        (),
        (Edit("ray/workers.py", "    task_s = 0.2  # a call", "    # a call"),),
        ("test_ray_workers.py::test_a_call_has_a_whole_batch_if_calls_are_enough",),
        r"AssertionError|assert",
        60,
    ),
    Break(
        "a Ray that another loader uses is shut down",
        (),
        (Edit("ray/cluster.py", "            if self._is_ours and not _n_users[0]:\n", "            if self._is_ours:\n"),),
        ("test_ray_workers.py::test_a_local_ray_is_started_and_ended",),
        r"the other loader uses it|assert",
        120,
    ),
    Break(
        "a bad sample that could not be read does not name its node",
        (),
        (Edit("ray/actor.py", "issubclass(kind, OSError)", "issubclass(kind, ArithmeticError)"),),
        ("test_ray_workers.py::test_a_file_that_a_node_does_not_have_is_a_bad_sample_that_names_the_node",),
        r"Regex|did not match",
        60,
    ),
)
