"""IterableDatasets in the drop-in, streams in windows and by arrival, Accelerate's loaders: what keeps them right, undone."""

from tests.breaks import Break, Edit

ITERABLE, STREAM, ACCELERATE = "test_torch_iterable.py", "test_stream_orders.py", "test_accelerate.py"
SOURCE, ORDER, PASS = (f"torch/dataloader/iterable{part}.py" for part in ("_source", "_order", ""))
OF_ACCELERATE = "torch/accelerate.py"
ONE, TWO = (f"{ACCELERATE}::test_accelerate_in_{part}" for part in ("one_process", "two_processes"))
WRONG = r"assert|Error|Timeout"

TABLE = (
    Break(
        "any worker reads the next batch of an IterableDataset",
        (),
        (Edit(ORDER, "    by_part = True\n", "    by_part = False\n"),),
        (f"{ITERABLE}::test_batches_are_torchs[how0-lengths0]",),
        WRONG,
        60,
    ),
    Break(
        "after a death, the order of an IterableDataset does not know of batches that are full and not lent",
        ("deaths of workers that read an IterableDataset",),
        (
            Edit(
                ORDER,
                "        if epoch == self.epoch and number in self._rows:",
                "        if is_lent and number in self._rows:",
            ),
        ),
        (f"{ITERABLE}::test_deaths_at_any_sample_change_nothing[False]",),
        WRONG,
        60,
    ),
    Break(
        "collate_fn does not draw again what it drew before a death",
        (),
        (Edit(SOURCE, "            if is_wanted or spec.collate_fn not in DRAW_NOTHING:", "            if is_wanted:"),),
        (f"{ITERABLE}::test_resuming_anywhere[3]",),
        r"assert",
        60,
    ),
    Break(
        "a dataset that gives other samples when it is read again is believed",
        (),
        (Edit(SOURCE, "        if now._replace(n_sent=mark.n_sent) != mark:", "        if now is None:"),),
        (f"{ITERABLE}::test_a_dataset_that_gives_other_samples_is_noticed[0]",),
        r"DID NOT RAISE|assert",
        60,
    ),
    Break(
        "workers of an IterableDataset have other seeds for NumPy than torch's",
        (),
        (Edit(SOURCE, "np.random.seed(torch_worker._generate_state(base_seed, self._id))", "np.random.seed(seed & 0xFFFF)"),),
        (f"{ITERABLE}::test_batches_are_torchs[how0-lengths0]",),
        r"assert",
        60,
    ),
    Break(
        "workers run ahead of one whose batch comes in pieces",
        (),
        (Edit(PASS, "(*self.pieces.get(worker, ()), got)})._submitting(worker)", "(*self.pieces.get(worker, ()), got)})"),),
        (f"{ITERABLE}::test_batches_that_are_larger_than_a_slot_come_in_pieces[3]",),
        WRONG,
        60,
    ),
    Break(
        "workers that are not persistent keep their copies of the dataset",
        (),
        (Edit(PASS, "workers.give_back if loader.persistent_workers else _close", "workers.give_back"),),
        (f"{ITERABLE}::test_copies_of_persistent_workers_stay_and_others_are_new",),
        r"assert",
        60,
    ),
    Break(
        "a row that was received when an interruption came is not received again",
        ("interruptions of a pass over an IterableDataset",),
        (Edit(PASS, "        if ring.feed.due == books.due:", "        if ring.feed.due >= 0:"),),
        (f"{ITERABLE}::test_interruptions_lose_nothing",),
        WRONG,
        60,
    ),
    Break(
        "a state of a stream does not have the place within a window",
        (),
        (Edit("sources/stream_reader.py", 'self._place = {"at": 0} | dict(mark)', 'self._place = dict(mark) | {"at": 0}'),),
        (f"{STREAM}::test_a_state_may_be_within_a_window",),
        r"assert",
        60,
    ),
    Break(
        "the windows of a stream are not in the budget",
        (),
        (Edit("loader.py", "self._stream.kept_bytes if self._stream is not None else 0", "0"),),
        (f"{STREAM}::test_windows_are_in_the_budget",),
        r"assert",
    ),
    Break(
        "by arrival, parts take turns",
        (),
        (Edit("order/stream.py", "part = min(parts, key=self._unfilled.count)", "part = parts[0]"),),
        (f"{STREAM}::test_a_slow_part_does_not_hold_up_the_others",),
        WRONG,
        60,
    ),
    Break(
        "a state of a stream keeps marks of batches of another size",
        (),
        (Edit("order/stream.py", "if at[0] == line and at[1] <= behind[at[1] % n_parts]}", "if at[0] == line}"),),
        (f"{STREAM}::test_deaths_then_states_with_other_batch_sizes_lose_nothing",),
        r"assert",
        60,
    ),
    Break(
        "Accelerate's state has the batch that it has asked for ahead",
        (),
        (Edit(OF_ACCELERATE, "= (self.epoch, number), number + 1", "= (self.epoch, number + 1), number + 1"),),
        (ONE,),
        r"AssertionError: Traceback",
        120,
    ),
    Break(
        "a prepared loader gives the same epoch again",
        (),
        (Edit(OF_ACCELERATE, "            self.feed.go_to(self.feed.epoch + 1, 0)\n", "            pass\n"),),
        (ONE,),
        r"AssertionError: Traceback",
        120,
    ),
    Break(
        "a prepared loader begins its epoch anew when a state was loaded",
        (),
        (Edit(OF_ACCELERATE, "self.first if self.resumes else 0, False", "0, False"),),
        (ONE,),
        r"AssertionError: Traceback",
        120,
    ),
    Break(
        "Accelerate does not save the state of a prepared loader",
        (),
        (Edit(OF_ACCELERATE, "        self.use_stateful_dataloader = True", "        self.use_stateful_dataloader = False"),),
        (ONE,),
        r"AssertionError: Traceback",
        120,
    ),
    Break(
        "a loader with another shard than the Accelerator's is accepted",
        (),
        (Edit(OF_ACCELERATE, "    if (order.rank, order.world) != (rank, world) and not has_mesh:", "    if has_mesh:"),),
        (ONE,),
        r"AssertionError: it was not refused",
        120,
    ),
    Break(
        "the sample that comes twice is in Accelerate's metrics twice",
        (),
        (Edit(OF_ACCELERATE, "        if n_twice(order, self.epoch) != 1:", "        if order is not None:"),),
        (TWO,),
        r"assert",
        120,
    ),
    Break(
        "what is skipped makes a loader of torch's class of a prepared drop-in",
        (),
        (Edit(OF_ACCELERATE, "_with_base(skipping, base) if isinstance(base, DataLoader) else skipping", "skipping"),),
        (ONE,),
        r"AssertionError: Traceback",
        120,
    ),
)
