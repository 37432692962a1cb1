"""Memory: what keeps within budgets and cgroups' limits, and says so where it cannot, undone."""

from tests.breaks import Break, Edit

TABLE = (
    Break(
        "the trainer is what the OOM killer takes first",
        (
            "a process that takes all memory of the cgroup",
            "a cgroup's memory limit lowered when the whole ring is in use",
        ),
        (
            Edit(
                "workers/supervisor.py",
                "            be_taken_first(self.server_pid)  # from here",
                "            # from here",
            ),
            Edit("workers/templates.py", "            be_taken_first(self.pid)  # and so", "            # and so"),
        ),
        ("test_ram_cgroup.py::test_a_hog_beside_it_costs_a_worker_and_not_the_trainer",),
        r"assert",
        100,
    ),
    Break(
        "what the OOM killer did is not told",
        (
            "a worker that the OOM killer takes",
            "a cgroup's memory limit lowered when the whole ring is in use",
        ),
        (Edit("system/cgroups.py", "        if self._seen <= before:\n", "        if self._seen >= before:\n"),),
        (
            "test_ram_cgroup.py::test_who_was_taken_by_the_oom_killer_is_told_so",
            "test_ram_cgroup.py::test_a_sample_that_takes_too_much_is_found",
        ),
        r"assert",
        60,
    ),
    Break(
        "the ring is reserved beyond a limit that was lowered",
        ("a cgroup's memory limit lowered while the ring is reserved",),
        (Edit("workers/fork_server.py", "            require((stop - first) * config.slot_bytes)\n", ""),),
        ("test_ram_cgroup.py::test_a_limit_that_is_lowered_makes_a_smaller_ring",),
        r"assert",
        100,
    ),
    Break(
        "whom the kernel killed for want of memory is taken for killed by hand",
        ("a worker is killed by the kernel for want of memory",),
        (
            Edit(
                "workers/supervisor.py",
                "            maybe_oom = not 0 <= self._n_oom_kills == oom_kills()\n",
                "            maybe_oom = False\n",
            ),
        ),
        ("test_blame.py::test_a_sample_that_takes_all_memory_is_found",),
        r"WorkerDiedError|assert",
    ),
    Break(
        "a budget above what may be used is accepted",
        ("a budget above a cgroup's memory limit",),
        (Edit("ring/plan.py", "    if budget_bytes > usable.n_bytes:\n", "    if budget_bytes > usable.n_bytes * 1000:\n"),),
        ("test_budget.py::test_what_a_limit_does_not_allow_is_refused",),
        r"assert",
        60,
    ),
    Break(
        "a cgroup's limit is not looked at",
        ("a cgroup's memory limit that the budget is a share of", "a budget above a cgroup's memory limit"),
        (
            Edit(
                "system/cgroups.py", "        if limit_bytes is not None and (used", "        if limit_bytes is None and (used"
            ),
        ),
        (
            "test_budget.py::test_inside_a_limit_nothing_is_killed[1.0]",
            "test_budget.py::test_what_a_limit_does_not_allow_is_refused[2GB]",
        ),
        r"assert",
        60,
    ),
    Break(
        "page tables are not in the plan",
        ("a ring of .*, every page of it touched",),
        (
            Edit(
                "ring/plan.py",
                "        return (self.n_here + 1) * -(-mapped_bytes // PAGE_BYTES) * PAGE_ENTRY_BYTES",
                "        return mapped_bytes * 0",
            ),
        ),
        ("test_ram.py::test_page_tables_are_as_planned", "test_ram.py::test_a_plan_of_48_gb_counts_page_tables"),
        r"assert",
        60,
    ),
    Break(
        "what a storage reads ahead is not in the plan",
        (),
        (Edit("sources/image_table.py", " + self._contents.ahead_bytes\n", "\n"),),
        ("test_storage.py::test_what_is_read_ahead_is_in_the_plan",),
        r"assert",
    ),
    Break(
        "huge images are decoded side by side",
        ("an image of max_pixels inside a cgroup that has no more than the budget",),
        (
            Edit(
                "images/decoder.py",
                "        if self._worker is None or self._has_turn or not self._is_large(needed_bytes):",
                "        if needed_bytes:",
            ),
        ),
        ("test_budget.py::test_images_up_to_the_pixel_limit_stay_within_the_budget[4-False]",),
        r"assert",
        100,
    ),
    Break(
        "what a huge image took is kept",
        ("an image of max_pixels between small ones", "soak: looks at the workers' memory"),
        (
            Edit(
                "images/decoder.py",
                "                self._has_turn = False\n                trim_heap()\n",
                "                self._has_turn = False\n",
            ),
        ),
        ("test_ram.py::test_a_worker_gives_back_what_a_huge_image_took[progressive]",),
        r"assert",
        100,
    ),
    Break(
        "images are decoded whatever their headers say",
        ("an image file whose header says .*",),
        (Edit("images/decoder.py", "        if height * width > self.max_pixels:\n", "        if height < 0:\n"),),
        ("test_ram.py::test_bombs_of_every_format_are_refused_by_their_headers",),
        r"Timeout|assert|DID NOT RAISE|Error",
        60,
    ),
    Break(
        "a source's arrays are pickled, and each worker has a copy",
        ("rows of a table",),
        (Edit("packing/pack.py", "SHARE_FROM_BYTES = 1 << 16", "SHARE_FROM_BYTES = 1 << 60"),),
        ("test_hostile.py::test_workers_hold_no_million_rows",),
        r"assert .*2_?000_?000|< 2000000|BudgetError",
        60,
    ),
)
