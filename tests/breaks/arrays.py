"""Arrays on disk and dtypes: what keeps values as they are, and the trainer's memory free of them, undone."""

from tests.breaks import Break, Edit

TABLE = (
    Break(
        "an HDF5 dataset is read whole into the trainer",
        (),
        (Edit("sources/array_kinds.py", "        return _of_h5py(value, type_text)\n", "        return np.asarray(value)\n"),),
        ("test_disk_arrays.py::test_the_trainer_reads_nothing",),
        r"Unable to allocate",
    ),
    Break(
        "an HDF5 file that was replaced is read",
        (),
        (Edit("sources/disk_arrays.py", "if identity_of(os.stat(self._path)) != self._identity:", "if not self._identity:"),),
        ("test_disk_arrays.py::test_a_file_that_was_replaced",),
        r"DID NOT RAISE",
    ),
    Break(
        "missing values become NaN",
        (),
        (Edit("sources/array_kinds.py", "    if missing.any():\n", "    if not missing.size:\n"),),
        (
            "test_array_kinds.py::test_what_is_no_array_of_rows_of_one_kind[nullable]",
            "test_array_kinds.py::test_what_is_no_array_of_rows_of_one_kind[nullable table]",
        ),
        r"DID NOT RAISE|cannot convert",
    ),
    Break(
        "NumPy's kinds are taken for the dtypes that JAX has",
        (),
        (Edit("jax.py", '"JAX", has)', '"JAX", lambda dtype: dtype.kind in "biufc")'),),
        ("test_dtypes.py::test_every_dtype[jax]",),
        r"assert",
        100,
    ),
    Break(
        "integers that do not fit are wrapped by Keras on JAX",
        (),
        (Edit("keras/py_dataset.py", "        return narrowed\n", "        return as_it_is\n"),),
        ("test_dtypes.py::test_keras_on_jax_wraps_no_integers",),
        r"assert",
        60,
    ),
    Break(
        "a store that workers do not see gives zeros",
        (),
        (
            Edit(
                "sources/disk_arrays.py",
                "            self._is_same = content_of(self._array[0:1]) == self._first\n",
                "            self._is_same = True\n",
            ),
        ),
        ("test_disk_arrays.py::test_a_store_that_workers_do_not_see_is_no_zeros",),
        r"DID NOT RAISE",
    ),
    Break(
        "without workers, the batch that was loaded ahead is of the source as it was",
        (),
        (Edit("engine/engine.py", " or changes or not (state.workers.n_workers or state.hears):", " or changes:"),),
        ("test_watch.py::test_what_was_filled_when_the_loader_was_looked_at_is_no_older[stats-0]",),
        r"assert {0, 1} == {1}|assert {1, 0} == {1}",
    ),
    Break(
        "those that are started after a death have no time to start",
        (),
        (Edit("engine/waiting.py", "SLOW_STARTS = 5", "SLOW_STARTS = 1"),),
        ("test_stalls.py::test_a_kill_during_a_slow_start_costs_no_more_than_that",),
        r"StallError",
    ),
)
