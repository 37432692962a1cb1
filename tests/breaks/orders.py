"""Which samples come, how often, and where a run goes on: what makes that exact, undone."""

from tests.breaks import Break, Edit

HERE = "test_orders.py"
TABLE = (
    Break(
        "a loader that resumes with another step begins at one of its own steps",
        (),
        (Edit("order/batched.py", "Place(number, (epoch, start) if start else NO_GRID,", "Place(number, NO_GRID,"),),
        (f"{HERE}::test_any_ranks_and_batch_sizes_make_one_sequence", f"{HERE}::test_the_rest_of_an_epoch_is_complete"),
        r"assert",
    ),
    Break(
        "the grid of a resumed epoch is that of the next epochs",
        (),
        (
            Edit(
                "order/batched.py",
                "        return self.grid[1] if self.grid[0] == epoch else 0\n",
                "        return self.grid[1]\n",
            ),
        ),
        (f"{HERE}::test_a_resumed_epoch_is_followed_by_whole_ones",),
        r"assert",
    ),
    Break(
        "batches that were filled ahead of a resume are lent, though their numbers alone are the same",
        (),
        (Edit("engine/engine.py", " or changes or not (state.workers", " or not (state.workers"),),
        (
            f"{HERE}::test_batches_that_were_filled_ahead_are_those_of_the_grid[shuffle-2]",
            f"{HERE}::test_other_weights_are_in_force_from_the_next_batch_on[2]",
        ),
        r"assert",
    ),
    Break(
        "an epoch that was resumed is passed as a whole from where it was resumed",
        (),
        (Edit("loader.py", "0), 0, beginning(self.order))", "0), 0, [])"),),
        (f"{HERE}::test_batches_that_were_filled_ahead_are_those_of_the_grid[shuffle-0]",),
        r"assert",
    ),
    Break(
        "what is left and is no batch for each rank is an epoch without batches",
        (),
        (Edit("order/state.py", "    if position and number >= n_batches:", "    if number < 0:"),),
        (f"{HERE}::test_the_rest_of_an_epoch_is_complete",),
        r"assert|Error",
    ),
    Break(
        "an interruption moves the order, and not the position",
        (),
        (
            Edit(
                "engine/engine.py",
                '                    set_together(*changes, (state, "due", (epoch, number)))\n',
                "                    for one, name, value in changes:\n"
                "                        setattr(one, name, value)\n"
                "                    state.due = (epoch, number)\n",
            ),
        ),
        ("test_interrupts.py::test_a_resume_within_a_batch_is_interrupted_before_any_line_of_seek",),
        r"assert",
    ),
    Break(
        "a sample that comes twice draws the same",
        (),
        (Edit("order/weighted.py", "        return Rows(index, positions)\n", "        return Rows(index)\n"),),
        (f"{HERE}::test_where_a_sample_comes_twice_it_draws_anew",),
        r"assert",
    ),
    Break(
        "each epoch of shares begins with the same samples",
        (),
        (Edit("order/shares.py", "len(self.shares)) * epoch)[part]", "len(self.shares)) * 0)[part]"),),
        (f"{HERE}::test_classes_come_in_their_shares_and_go_through_their_samples",),
        r"each sample once before any comes again",
    ),
    Break(
        "shares are rounded down",
        (),
        (Edit("order/shares.py", "    return np.floor(values + 0.5)", "    return np.floor(values + 0.0)"),),
        (f"{HERE}::test_counts_of_up_to_four_parts_are_within_one",),
        r"assert",
    ),
    Break(
        "a chunk that was computed before new weights stays",
        (),
        (Edit("order/state.py", '"pieces", pieces), (order, "chunk", NO_CHUNK)]', '"pieces", pieces)]'),),
        (f"{HERE}::test_other_weights_are_in_force_from_the_next_batch_on",),
        r"assert",
    ),
    Break(
        "a state does not have the weights that were replaced",
        (),
        (Edit("order/state.py", "    return known if known is not None else ", "    return known and "),),
        (f"{HERE}::test_other_weights_are_in_force_from_the_next_batch_on",),
        r"belongs to another order",
    ),
    Break(
        "a state has the newest weights, wherever it is",
        (),
        (Edit("order/weighted.py", "if piece.start <= (epoch, position))", "if position >= 0)"),),
        (f"{HERE}::test_states_have_the_weights_that_are_in_force_there",),
        r"assert",
    ),
    Break(
        "a function of the epoch draws from the generators as they are",
        (),
        (
            Edit(
                "order/choose.py",
                "                with seeded(self._to.seed, epoch):\n                    given = self._make(epoch)\n",
                "                given = self._make(epoch)\n",
            ),
        ),
        (f"{HERE}::test_a_function_of_the_epoch_draws_the_same_on_each_rank",),
        r"assert",
    ),
    Break(
        "an epoch without a batch begins again at its first samples",
        (),
        (Edit("order/batched.py", "        if n == 0 and not self.start(epoch):\n", "        if n < 0:\n"),),
        (f"{HERE}::test_an_epoch_without_a_batch_is_refused",),
        r"DID NOT RAISE",
    ),
    Break(
        "a state of classes does not say which sample is of which",
        (),
        (Edit("order/shares.py", '"shares": shares, **members}', '"shares": shares}'),),
        (f"{HERE}::test_states_say_which_sample_is_of_which_class",),
        r"DID NOT RAISE",
    ),
    Break(
        "a sampler that lists something else after resuming is not noticed",
        (),
        (Edit("order/given.py", "zlib.crc32(ends, zlib.crc32(read.index.tobytes()))", "0"),),
        (f"{HERE}::test_a_list_that_is_not_the_same_again_is_refused",),
        r"DID NOT RAISE",
    ),
    Break(
        "a sampler draws from the generators as they are",
        (),
        (
            Edit("order/given.py", "    random.seed(word)\n    np.random.seed(word)\n", ""),
            Edit("order/given.py", "        torch.default_generator.manual_seed(word)\n", "        pass\n"),
        ),
        (f"{HERE}::test_torchs_samplers",),
        r"assert",
    ),
)
