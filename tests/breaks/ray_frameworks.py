"""Ray: what gives each worker its share, and each row its place, undone."""

from tests.breaks import Break, Edit

TRAIN, DATA = "test_ray_train.py", "test_ray_data.py::test_blocks_of_ray_data"
TABLE = (
    Break(
        "a restarted worker of Ray Train does not load the checkpoint's position",
        (),
        (Edit("ray/train.py", "        if found is not None:\n", "        if found is not None and batch_size < 0:\n"),),
        (f"{TRAIN}::test_workers_that_are_killed_and_another_number_of_workers",),
        r"was not refused|assert",
        390,
    ),
    Break(
        "the shares of Ray Train's workers are not all of the epoch",
        (),
        (Edit("ray/train.py", "context.get_world_size()), **", "context.get_world_size() + 1), **"),),
        (f"{TRAIN}::test_workers_that_are_killed_and_another_number_of_workers",),
        r"assert|Error",
        390,
    ),
    Break(
        "tensors of Ray Data come flat",
        (),
        (Edit("ray/data.py", 'getattr(chunk.type, "shape", shape)', "shape"),),
        (f"{DATA}[payloads]",),
        r"AssertionError",
        390,
    ),
    Break(
        "a block of Ray Data is taken for the next one",
        (),
        (Edit("ray/data.py", "        if number != self._number:\n", "        if self._table is None:\n"),),
        (f"{DATA}[payloads]",),
        r"SampleError",
        390,
    ),
    Break(
        "a block of Ray Data with rows of another shape is copied all the same",
        (),
        (
            Edit(
                "ray/data.py",
                "        if (made.shape, made.dtype) != (",
                "        if first < 0 and (made.shape, made.dtype) != (",
            ),
        ),
        (f"{DATA}[another_shape_in_a_later_block]",),
        r"Regex pattern did not match|DID NOT RAISE",
        390,
    ),
    Break(
        "a fork of the trainer uses its connection to Ray",
        (),
        (Edit("ray/data.py", "        self._is_fork = ray.is_initialized()\n", "        self._is_fork = False\n"),),
        (f"{DATA}[forks_of_the_trainer]",),
        r"Regex pattern did not match|DID NOT RAISE|Error|Timeout",
        390,
    ),
)
