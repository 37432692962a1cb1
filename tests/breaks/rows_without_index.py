"""Streams, packed rows and mixes: what makes each row come once, with the right content, undone."""

from tests.breaks import Break, Edit

STREAM, PACKED, MIX, PARTS = "test_stream.py", "test_packed.py", "test_mix.py", "test_parts.py"
TABLE = (
    Break(
        "a stream is moved before the position is",
        (),
        (
            Edit(
                "loader.py",
                "            changes = self._stream.moved(self._engine.due, (epoch, position))\n",
                "            for one, name, value in self._stream.moved(self._engine.due, (epoch, position)):\n"
                "                setattr(one, name, value)\n"
                "            changes = []\n",
            ),
        ),
        ("test_stream_orders.py::test_an_interrupted_seek_changes_all_or_nothing",),
        r"assert",
    ),
    Break(
        "a part of a stream is read by whichever worker is free",
        (),
        (Edit("workers/processes.py", "Channel(self.n_workers if job.by_part else 1)", "Channel()"),),
        (f"{STREAM}::test_the_order_is_fixed_and_ends_are_exact",),
        r"assert|Error",
        60,
    ),
    Break(
        "after a death, a stream does not know of batches that are full and not lent",
        (),
        (Edit("engine/recovery.py", "            if not batch.undone:\n", "            if batch.slot < 0:\n"),),
        (f"{STREAM}::test_deaths_at_any_row_change_nothing",),
        r"assert|Error|Timeout",
        60,
    ),
    Break(
        "a reader that is elsewhere goes on where it is",
        (),
        (Edit("sources/stream.py", "(reader is None or not reader.goes_on_at(mark)):", "reader is None:"),),
        (f"{STREAM}::test_a_break_begins_the_next_epoch",),
        r"assert|Error",
        60,
    ),
    Break(
        "a reader that seeks skips the rows as well",
        (),
        (Edit("sources/stream_reader.py", "if self._way.replays and not is_there else 0", "if self._way.replays else 0"),),
        (f"{STREAM}::test_resuming_anywhere",),
        r"assert|Error",
        60,
    ),
    Break(
        "the samples of a packed row draw one after another",
        (),
        (Edit("sources/packed.py", "            rewind(rng, sample)\n", "            pass\n"),),
        (f"{PACKED}::test_content_is_as_without_packing",),
        r"assert|Mismatched",
    ),
    Break(
        "what is packed behind the last sample of a row is what was there before",
        (),
        (Edit("sources/packed.py", "out[name][...] = np.zeros((), out[name].dtype)", "out[name]"),),
        (f"{PACKED}::test_content_is_as_without_packing",),
        r"assert|Mismatched",
    ),
    Break(
        "a field that a source of a mix lacks has what was there before",
        (),
        (
            Edit("sources/mixed.py", "            out[name][...] = fill\n", "            out[name]\n"),
            Edit("sources/mixed.py", "                out[name][places] = fill\n", "                out[name]\n"),
        ),
        (f"{MIX}::test_missing_fields_are_filled",),
        r"assert|Mismatched",
    ),
    Break(
        "a sample that comes twice in a mix draws the same",
        (),
        (Edit("order/shares.py", "0 if self.has_end else epoch), positions)", "0 if self.has_end else epoch))"),),
        (f"{MIX}::test_a_sample_that_comes_twice_draws_anew",),
        r"assert",
    ),
    Break(
        "a schedule's state is that of the epoch's begin",
        (),
        (Edit("order/mixed.py", "place = self._begin(epoch) + position\n", "place = self._begin(epoch)\n"),),
        (f"{MIX}::test_another_schedule_with_the_same_begin_is_noticed",),
        r"DID NOT RAISE",
    ),
    Break(
        "a part's state is that of the whole",
        (),
        (Edit("sources/parts.py", '"rows": self._rows_checksum, ', ""),),
        (f"{PARTS}::test_a_state_is_of_the_rows_and_of_the_whole",),
        r"DID NOT RAISE|assert",
    ),
    Break(
        "the last batch of each bucket is left out, of any bucket",
        (),
        (Edit("order/buckets.py", "return self._n_whole + self._has_rest", "return self._n_whole"),),
        ("test_buckets.py::test_each_sample_comes_once_and_no_batch_is_above_the_budget",),
        r"assert|ConfigError",
    ),
)
