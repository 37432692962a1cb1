"""What workers have of the trainer's process, undone."""

from tests.breaks import Break, Edit

TABLE = (
    Break(
        "a server that replaces another is started in the directory where the trainer is now",
        (),
        (Edit("workers/environment.py", "        os.chdir(directory)\n", "        pass\n"),),
        ("test_surroundings.py::test_a_kill_of_everything_is_survived_in_another_directory",),
        r"No such file",
    ),
    Break(
        "a server that replaces another has the environment of now",
        (),
        (
            Edit("workers/interpreter.py", "**as_it_was.environment, **ONE_THREAD", "**os.environ, **ONE_THREAD"),
            Edit(
                "workers/supervisor.py",
                "            os.environ.update(self._surroundings.environment)\n",
                "            os.environ.clear()\n",
            ),
        ),
        ("test_surroundings.py::test_a_new_server_has_the_surroundings_of_the_first",),
        r"assert",
    ),
    Break(
        "modules that workers cannot import are sent by name",
        (),
        (Edit("packing/pack.py", "if not goes_by_name(name) and name not in", "if name == '' and name not in"),),
        (
            "test_importable.py::test_a_source_of_a_module_that_is",
            "test_importable.py::test_what_a_script_defines_is_there_in_its_children_and_their_workers[spawn]",
        ),
        r"assert|No module named",
    ),
    Break(
        "shared memory of a source is copied",
        (),
        (Edit("packing/pack.py", "            return array_in(self.mappings, array)\n", "            return None\n"),),
        ("test_mapped.py::test_what_the_trainer_and_workers_write_there_all_of_them_see",),
        r"Arrays are not equal",
    ),
    Break(
        "workers have a resource tracker of their own",
        (),
        (Edit("workers/fork_server.py", "    share_tracker(config.tracker)\n", ""),),
        ("test_mapped.py::test_a_segment_of_the_users_outlives_workers_that_attach_to_it",),
        r"assert",
    ),
    Break(
        "switches of libraries stay as they are in a fresh interpreter",
        (),
        (Edit("packing/unpack.py", "    set_switches(found)\n", ""),),
        ("test_process_state.py::test_switches_of_libraries_are_as_in_the_trainer",),
        r"AssertionError",
    ),
    Break(
        "globals of the user's modules are as their import makes them",
        (),
        (Edit("packing/unpack.py", "    set_globals(values)\n", ""),),
        (
            "test_process_state.py::test_what_a_script_has_set_in_its_modules_is_there_in_workers",
            "test_process_state.py::test_what_it_sets_between_epochs_is_seen_in_the_next",
        ),
        r"assert",
    ),
    Break(
        "generators of the source's own go on in each worker by themselves",
        (),
        (
            Edit(
                "packing/generators.py",
                "        if self.are_set:\n            for number",
                "        if not self.are_set:\n            for number",
            ),
        ),
        ("test_generators.py::test_the_same_bytes_for_any_number_of_workers_and_start_method",),
        r"assert",
    ),
    Break(
        "generators that a source makes with its first sample are not found",
        (),
        (Edit("packing/generators.py", "if id(generator) not in known]:", "if id(generator) in ()]:"),),
        ("test_generators.py::test_the_same_bytes_for_any_number_of_workers_and_start_method[late]",),
        r"assert",
    ),
    Break(
        "a source that was changed is not sent again",
        (),
        (Edit("loader.py", "        self._see_changes()\n        self._begun = True\n", "        self._begun = True\n"),),
        (
            "test_watch.py::test_a_change_between_epochs_is_seen_in_the_next",
            "test_watch.py::test_arrays_that_are_written_to_between_epochs",
        ),
        r"assert",
    ),
    Break(
        "the content of large arrays is not compared",
        (),
        (Edit("packing/watch.py", "            if known.differs(large, number):\n", "            if number < 0:\n"),),
        (
            "test_watch.py::test_arrays_that_are_written_to_between_epochs",
            "test_watch.py::test_large_data_are_looked_at_in_turn_and_what_is_found_late_is_said_to_be",
        ),
        r"assert",
    ),
    Break(
        "on a slow machine, small data are compared in part",
        (),
        (Edit("packing/watch.py", "if n_checked >= LEAST_PIECES and", "if n_checked and"),),
        ("test_watch.py::test_small_data_are_compared_whole_however_slow_the_machine_is",),
        r"assert",
    ),
    Break(
        "what a source takes in each worker is not counted",
        (),
        (
            Edit(
                "engine/schedule.py",
                "room.n_slots(state.layout.n_slots, source_bytes)) > 0:",
                "room.n_slots(state.n_first, 0)) > 0:",
            ),
        ),
        ("test_source_memory.py::test_what_does_not_fit_is_refused_before_the_first_batch",),
        r"assert|DID NOT RAISE",
        limit_s=60.0,
    ),
)
