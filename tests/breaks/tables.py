"""Tables, folders and labels: what keeps a sample, its label and its place what they were, undone."""

from tests.breaks import Break, Edit

TABLE = (
    Break(
        "a state is taken whatever the source",
        (),
        (Edit("loader.py", "        if there is not None and (differs :=", "        if there == 0 and (differs :="),),
        (
            "test_fingerprints.py::test_another_order_is_refused_and_said",
            "test_fingerprints.py::test_other_labels_are_refused_and_said",
            "test_fingerprints.py::test_arrays_are_compared_by_shape_dtype_and_content",
        ),
        r"DID NOT RAISE",
    ),
    Break(
        "a folder is walked as often as links lead to it",
        (),
        (Edit("sources/folder_walk.py", "                elif key in one.walked:\n                    continue\n", ""),),
        ("test_folders.py::test_a_ring_ends_and_each_file_is_one_sample[two to the class]",),
        r"Timeout",
        10,
    ),
    Break(
        "links lead to the folders of other classes",
        (),
        (
            Edit(
                "sources/folder_walk.py",
                "                elif key in self._above or self._owner.get(key, name) != name:\n",
                "                elif key in self._above:\n",
            ),
        ),
        (
            "test_folders.py::test_a_ring_ends_and_each_file_is_one_sample[to the other class]",
            "test_folders.py::test_a_ring_ends_and_each_file_is_one_sample[to each other]",
        ),
        r"assert",
    ),
    Break(
        "integers are numbered by which of them occur",
        (),
        (Edit("sources/classes.py", "    if names[0] == 0 and names[-1] <", "    if names == [] and names[-1] <"),),
        ("test_classes.py::test_a_validation_table_has_the_numbers_of_the_training_table",),
        r"assert",
    ),
    Break(
        "all parts of a split are augmented",
        (),
        (
            Edit(
                "sources/splits.py",
                "    return (first, *made)\n",
                "    return (first, *others)\n",
            ),
        ),
        ("test_splits.py::test_only_the_first_part_is_augmented",),
        r"assert",
    ),
    Break(
        'shard="auto" of a launcher that is not torch\'s is one process',
        (),
        (Edit("order/ranks.py", "    return (first.rank, first.world) if", "    return (0, 1) if"),),
        ("test_ranks.py::test_launchers_are_known",),
        r"assert",
    ),
)
