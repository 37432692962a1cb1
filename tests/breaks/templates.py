"""The processes from which fork servers are forked: what makes them safe, undone."""

from tests.breaks import Break, Edit

HERE = "test_shared_server.py"
TABLE = (
    Break(
        "the table of images is searched for what workers import",
        (),
        (
            Edit(
                "packing/installed.py",
                "yield from list(_state(value).values())",
                'yield from list(getattr(value, "__dict__", {}).values())',
            ),
        ),
        ("test_shared_server.py::test_the_table_of_images_is_not_what_workers_need",),
        r"assert 'pandas' not in",
    ),
    Break(
        "a template's fork is its own child, not the trainer's",
        (),
        (Edit("workers/template.py", "CLONE_PARENT | CLONE_PARENT_SETTID | signal", "CLONE_PARENT_SETTID | signal"),),
        (f"{HERE}::test_loaders_share_a_template_one_after_another_and_at_a_time",),
        r"assert|ringload:server",
    ),
    Break(
        "the pid of a template's fork is not noted",
        (),
        (Edit("workers/template.py", "CLONE_PARENT | CLONE_PARENT_SETTID | signal", "CLONE_PARENT | signal"),),
        (f"{HERE}::test_loaders_share_a_template_one_after_another_and_at_a_time",),
        r"assert|pid must be",
    ),
    Break(
        "each loader has a template of its own",
        (),
        (Edit("workers/templates.py", "if template.key == key and template.is_open:", "if template.pid == 0:"),),
        (f"{HERE}::test_loaders_share_a_template_one_after_another_and_at_a_time", f"{HERE}::test_loaders_of_several_threads"),
        r"assert",
    ),
    Break(
        "a template is used in another environment",
        (),
        (Edit("workers/templates.py", "tuple(environment), surroundings.inherited", "(), surroundings.inherited"),),
        (f"{HERE}::test_what_the_trainer_has_changed_is_there",),
        r"assert",
    ),
    Break(
        "a template is used whatever the trainer's limits and priority are now",
        (),
        (
            Edit("workers/templates.py", "tuple(environment), surroundings.inherited", "tuple(environment), ()"),
            Edit("workers/templates.py", "or key.inherited != inherited()", "or key.inherited"),
        ),
        (f"{HERE}::test_a_hard_limit_or_a_user_that_changes_needs_another",),
        r"assert",
    ),
    Break(
        "a template that is retired is ended, whatever it was asked for",
        (),
        (Edit("workers/templates.py", "        self.ends[0].close()\n", "        close(self.ends)\n"),),
        (f"{HERE}::test_only_some_templates_stay",),
        r"assert",
    ),
    Break(
        "a template that cannot do its work is tried again and again",
        (),
        (Edit("workers/templates.py", "                self._unusable.add(template.key)\n", "                pass\n"),),
        (
            f"{HERE}::test_one_that_dies_before_it_has_forked_anything_is_not_tried_again",
            f"{HERE}::test_a_package_that_ends_the_process_is_survived",
        ),
        r"assert|WorkerDiedError",
    ),
    Break(
        "a close waits for a template that imports",
        (),
        (
            Edit(
                "workers/supervisor.py",
                "        if self._server == [ASKED] and not self._taken_back:\n",
                "        if False:\n",
            ),
        ),
        (f"{HERE}::test_what_was_not_forked_yet_is_taken_back",),
        r"assert|Timeout",
        60,
    ),
    Break(
        "a template forks a server whose request was taken back",
        (),
        (Edit("workers/template.py", "        if not os.read(at[config.lifeline], 1):\n", "        if not at:\n"),),
        (f"{HERE}::test_what_was_not_forked_yet_is_taken_back",),
        r"assert",
    ),
    Break(
        "a close that was interrupted forgets the pid of the server",
        (),
        (
            Edit(
                "workers/supervisor.py",
                "            if not self._server:  # or what an interruption cut short is done again, which needs the pid\n",
                "            if self:\n",
            ),
        ),
        ("test_interrupts.py::test_a_close_is_interrupted_at_every_moment_and_the_next_one_goes_on[forkserver]",),
        r"assert|ringload:server",
    ),
    Break(
        "what a template has begun with is taken back where the lifeline is closed",
        (),
        (
            Edit(
                "workers/supervisor.py",
                "extend(filter(None, map(os.read, (self._lifeline_out.fileno(),), (1,))))",
                "extend(map(os.read, (self._lifeline_out.fileno(),), (1,)))",
            ),
        ),
        (f"{HERE}::test_what_the_template_has_begun_with_is_not_taken_back",),
        r"assert not",
    ),
    Break(
        "a template that hangs stays",
        (),
        (Edit("workers/supervisor.py", "            self._template.end()  # it hangs\n", ""),),
        (f"{HERE}::test_one_that_hangs_with_a_request_is_ended",),
        r"have not ended|assert",
    ),
    Break(
        "a template has no lifeline",
        (),
        (Edit("workers/template.py", "    arm_lifeline(lifeline)\n", ""),),
        (f"{HERE}::test_it_ends_with_the_trainer",),
        r"assert",
    ),
    Break(
        "a fork of the trainer has its templates",
        (),
        (Edit("workers/templates.py", "            forks.keep(self)\n", ""),),
        (f"{HERE}::test_it_ends_with_the_trainer", f"{HERE}::test_a_fork_of_the_trainer_has_templates_of_its_own"),
        r"assert",
    ),
    Break(
        "templates are not reaped at the trainer's end",
        (),
        (Edit("workers/templates.py", "            template.reap()\n", "            pass\n"),),
        (f"{HERE}::test_a_script_that_ends_reaps_it",),
        r"orphan",
    ),
    Break(
        "a package that starts threads stays in the template",
        (),
        (
            Edit(
                "workers/template.py",
                "        if _state() != before:\n            told",
                "        if not before:\n            told",
            ),
        ),
        (f"{HERE}::test_what_is_not_safe_is_left_to_the_workers",),
        r"assert",
    ),
    Break(
        "the user's modules are imported before the fork",
        (),
        (Edit("packing/installed.py", "isinstance(file, str) and any(map(file.__contains__, PACKAGES))", "bool(file)"),),
        (f"{HERE}::test_what_the_sources_module_imports_is_imported_once",),
        r"assert",
    ),
    Break(
        "what a source's code imports is not looked for",
        (),
        (Edit("options.py", ", *installed_modules(source, setup))", ",)"),),
        (
            f"{HERE}::test_what_the_sources_module_imports_is_imported_once",
            f"{HERE}::test_a_function_of_the_script_is_followed_to_what_it_imports",
        ),
        r"assert",
    ),
    Break(
        "the drop-in begins its imports when it is iterated",
        (),
        (Edit("torch/dataloader/loader.py", "            begin_imports(self.ring_settings().feed)\n", "            pass\n"),),
        (f"{HERE}::test_the_drop_in_imports_torch_and_what_the_dataset_imports_once",),
        r"not enough values",
    ),
)
