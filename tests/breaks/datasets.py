"""Checks of datasets, saved indexes and large tables: what keeps their results true, undone."""

from tests.breaks import Break, Edit

CHECK, INDEX, ROWS = "test_check.py", "test_saved_index.py", "test_many_rows.py"
TABLE = (
    Break(
        "a check calls good what only its header says",
        (r"damaged image that is checked",),
        (Edit("insight/check/source.py", "        if not self.fast or not self._glance(", "        if not self._glance("),),
        (f"{CHECK}::test_damaged_files_are_judged_as_the_loader_does",),
        r"assert|Mismatch|not equal",
    ),
    Break(
        "a look at a header calls bad what it does not understand",
        (),
        (
            Edit(
                "insight/check/source.py",
                "        if not self.fast or not self._glance(index, record):\n",
                '        if self.fast and not self._glance(index, record):\n            record["status"] = 6\n'
                "        elif not self.fast:\n",
            ),
        ),
        (f"{CHECK}::test_damaged_files_are_judged_as_the_loader_does",),
        r"assert",
    ),
    Break(
        "a look at a header does not ask whether the budget has room",
        (),
        (Edit("insight/check/source.py", "n_pixels <= self._most_pixels and", "n_pixels <= self.frame.max_pixels and"),),
        (f"{CHECK}::test_the_budget_bounds_the_pixels_as_in_a_loader",),
        r"assert",
    ),
    Break(
        "a sample that ended its worker is not told from a good one",
        (),
        (Edit("insight/check/run.py", '    records["status"][~batch["valid"]] = CRASHED\n', ""),),
        (f"{CHECK}::test_a_sample_that_ends_its_worker_is_named",),
        r"assert",
    ),
    Break(
        "a check that was killed begins anew",
        (r"(kill|Ctrl-C) of a check",),
        (
            Edit(
                "insight/check/journal.py",
                "            if restart or os.fstat(fd)",
                "            if not restart or os.fstat(fd)",
            ),
        ),
        (f"{CHECK}::test_a_killed_check_goes_on_and_reads_no_file_twice",),
        r"assert",
    ),
    Break(
        "a damaged entry of a journal is taken",
        (),
        (Edit("insight/check/journal.py", " or zlib.crc32(body, first) != crc:", ":"),),
        (f"{CHECK}::test_what_was_not_written_to_its_end_is_cut_off",),
        r"assert",
    ),
    Break(
        "an entry of a journal is taken in another's place",
        (),
        (
            Edit("insight/check/journal.py", "zlib.crc32(body, first) != crc", "zlib.crc32(body) != crc"),
            Edit("insight/check/journal.py", "len(body), zlib.crc32(body, first))", "len(body), zlib.crc32(body))"),
        ),
        (f"{CHECK}::test_what_was_not_written_to_its_end_is_cut_off",),
        r"assert",
    ),
    Break(
        "a journal is gone on with, whatever it is of",
        (),
        (Edit("insight/check/journal.py", "        if line == header:\n", "        if line:\n"),),
        (f"{CHECK}::test_a_journal_of_another_check_is_refused",),
        r"DID NOT RAISE|Error",
    ),
    Break(
        "two checks write one journal",
        (),
        (Edit("insight/check/journal.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),),
        (f"{CHECK}::test_one_check_at_a_time_writes_a_journal",),
        r"DID NOT RAISE",
    ),
    Break(
        "the arrays of an index are not compared with their checksums",
        (),
        (Edit("sources/saved_index.py", '        if checksum(array) != place["checksum"]:\n', "        if False:\n"),),
        (f"{INDEX}::test_a_byte_that_is_wrong_is_found",),
        r"DID NOT RAISE",
    ),
    Break(
        "an index is used, whatever has become of its table",
        (),
        (
            Edit(
                "sources/saved_index.py",
                "    if not is_same_size or _file_checksum(",
                "    if not is_same_size and _file_checksum(",
            ),
        ),
        (f"{INDEX}::test_an_index_of_another_table_is_refused",),
        r"DID NOT RAISE",
    ),
    Break(
        "an index is written under its own name",
        (r"kill of a run that saves an index",),
        (
            Edit("sources/saved_index.py", '    unfinished = f"{path}.{os.getpid()}.unfinished"\n', "    unfinished = path\n"),
            Edit("sources/saved_index.py", 'open(unfinished, "xb")', 'open(unfinished, "wb")'),
        ),
        (f"{INDEX}::test_a_run_that_is_killed_while_it_saves_leaves_the_former_index",),
        r"assert|Error",
    ),
    Break(
        "a worker maps whatever file has the name of a mapped one",
        (),
        (
            Edit(
                "packing/mapped.py", "        if os.fstat(fd).st_ino != place.inode and not is_far():\n", "        if False:\n"
            ),
        ),
        (f"{INDEX}::test_a_worker_never_maps_another_index_by_the_same_name",),
        r"assert",
    ),
    Break(
        "only the first files of a table are looked for",
        (),
        (
            Edit(
                "sources/paths.py",
                "    spread = np.unique(np.linspace(0, len(paths) - 1, n_spread).astype(np.int64)).tolist()\n",
                "    spread = list(range(min(N_LOOKED_FOR, len(paths))))\n",
            ),
        ),
        (f"{ROWS}::test_a_wrong_root_of_most_of_a_table_is_found",),
        r"DID NOT WARN",
    ),
    Break(
        "a storage is not asked whether its keys are there",
        (),
        (Edit("sources/paths.py", "for row in rows if look is not None else ():", "for row in rows if look is None else ():"),),
        (f"{ROWS}::test_wrong_urls_are_found_where_the_storage_has_stat",),
        r"DID NOT WARN|Error",
    ),
    Break(
        "a list that names a class twice is taken",
        (),
        (Edit("sources/list_labels.py", "    same = np.flatnonzero(keyed[1:] == keyed[:-1])\n", "    same = keyed[:0]\n"),),
        (f"{ROWS}::test_the_first_list_that_names_a_class_twice_is_named",),
        r"DID NOT RAISE",
    ),
)
