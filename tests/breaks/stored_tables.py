"""Tables of Arrow and Parquet, chunks and archives: what makes their rows right, and their faults bad samples, undone."""

from tests.breaks import Break, Edit

ARROW, PARQUET, GROUPS, ARCHIVES = "test_huggingface.py", "test_parquet.py", "test_groups.py", "test_archives.py"
TABLE = (
    Break(
        "the rows of a dataset are those of its files, and not of its indices",
        (),
        (Edit("sources/huggingface.py", "dataset._indices is None else", "True else"),),
        (f"{ARROW}::test_the_indices_of_a_dataset_are_those_of_its_samples",),
        r"assert|Error",
    ),
    Break(
        "a slice of an Arrow column begins where its buffer does",
        (),
        (Edit("sources/arrow_columns.py", "skipped = values.offset * dtype.itemsize", "skipped = 0"),),
        (f"{ARROW}::test_the_indices_of_a_dataset_are_those_of_its_samples",),
        r"assert",
    ),
    Break(
        "a file that has changed is read",
        (),
        (Edit("sources/file_ranges.py", "if identity_of(os.fstat(opened.fd)) != file.identity:", "if False:"),),
        (f"{ARROW}::test_files_that_are_deleted_changed_and_cut_short",),
        r"DID NOT RAISE|Regex|match",
    ),
    Break(
        "the trainer reads a mapped file that was cut short",
        (),
        (Edit("sources/arrow_columns.py", "start + buffer.size > file.n_bytes:", "start > file.n_bytes * 9:"),),
        (f"{ARROW}::test_files_that_are_deleted_changed_and_cut_short",),
        r"DID NOT RAISE|Regex|Bus error|crashed",
    ),
    Break(
        "the fingerprint of a dataset has no contents",
        (),
        (Edit("sources/cells.py", "checksum(*parts)", "checksum()"),),
        (f"{ARROW}::test_a_state_is_of_this_dataset_in_this_order",),
        r"assert",
    ),
    Break(
        "a dataset's own transform is left out without a word",
        (),
        (Edit("sources/huggingface.py", 'dataset.format["type"] == "custom"', "False"),),
        (f"{ARROW}::test_what_cannot_be_read_is_said",),
        r"DID NOT RAISE|Regex",
    ),
    Break(
        "a row group is not kept",
        (),
        (Edit("sources/group_cache.py", "        if self.n_kept:\n", "        if False:\n"),),
        (f"{PARQUET}::test_a_row_group_is_read_once_a_window",),
        r"assert",
    ),
    Break(
        "a dictionary is unpacked, whatever it unpacks to",
        (),
        (Edit("sources/parquet_files.py", "+ batch.nbytes) > most_bytes:", "+ batch.nbytes) < 0:"),),
        (f"{PARQUET}::test_a_dictionary_that_unpacks_to_too_much",),
        r"DID NOT RAISE|Regex|match",
    ),
    Break(
        "row groups are kept that the budget has no room for",
        (),
        (Edit("sources/parquet.py", "        if n_kept == 0:\n", "        if False:\n"),),
        (f"{PARQUET}::test_row_groups_that_the_budget_has_no_room_for",),
        r"DID NOT RAISE|Error",
    ),
    Break(
        "a Parquet file that has changed is read",
        (),
        (Edit("sources/parquet_files.py", "if identity_of(os.stat(file.path)) != file.identity:", "if False:"),),
        (f"{PARQUET}::test_files_that_are_deleted_or_cut_short",),
        r"DID NOT RAISE|Regex|match",
    ),
    Break(
        "the samples of a window of groups are those of the next, too",
        (),
        (Edit("order/groups.py", "mixed = first + permute_each(", "mixed = permute_each("),),
        (f"{GROUPS}::test_each_sample_once_and_a_window_of_groups_at_a_time",),
        r"assert|Error",
    ),
    Break(
        "a part of grouped rows comes as the whole does",
        (),
        (Edit("order/groups.py", 'None if is_sorted else np.argsort(groups, kind="stable")', "None"),),
        (f"{GROUPS}::test_each_sample_once_and_a_window_of_groups_at_a_time",),
        r"assert",
    ),
    Break(
        "a damaged chunk is the end of its whole group",
        (),
        (Edit("sources/group_cache.py", "            return False\n", "            raise\n"),),
        (f"{GROUPS}::test_a_damaged_chunk_in_a_group_is_its_rows_alone",),
        r"assert",
    ),
    Break(
        "groups are kept without room for them",
        (),
        (Edit("sources/arrays.py", "            n_kept = max(0, ", "            n_kept = 1 + max(0, "),),
        (f"{GROUPS}::test_a_group_that_no_worker_has_room_for_is_read_and_not_kept",),
        r"assert",
    ),
    Break(
        "a fork uses the database that its parent has opened",
        (),
        (
            Edit(
                "storage/archives.py",
                "        there.lmdb.close()  # this process's copy\n        there = None\n",
                "        pass\n",
            ),
        ),
        (f"{ARCHIVES}::test_a_fork_opens_its_own_database",),
        r"assert",
    ),
    Break(
        "a member of any size is read",
        (),
        (
            Edit("storage/archives.py", "if info.file_size > max_bytes:", "if False:"),
            Edit("storage/archives.py", "if len(value) > max_bytes:", "if False:"),
        ),
        (f"{ARCHIVES}::test_a_member_that_is_too_large_is_not_read",),
        r"DID NOT RAISE",
    ),
    Break(
        "a sample of another shape is written as NumPy broadcasts it",
        (),
        (Edit("sources/map_dataset.py", "if (array.shape, array.dtype) != (field.shape, field.dtype):", "if False:"),),
        ("test_map_dataset.py::test_a_sample_that_is_not_as_the_first_is_a_bad_one",),
        r"DID NOT RAISE|Regex|match",
    ),
)
