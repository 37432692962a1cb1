"""Streams of tar shards and of Hugging Face, and errors of reading ahead: what keeps them right, undone."""

from tests.breaks import Break, Edit

TAR, HF, WAITING = "test_tar_stream.py", "test_huggingface_stream.py", "test_waiting_loads.py"
READER, FORWARD, OF_HF, WORKER = (
    "sources/tar_reader.py",
    "storage/forward.py",
    "sources/huggingface_stream.py",
    "workers/reading_ahead.py",
)

TABLE = (
    Break(
        "a batch of a stream that was given up ends its worker",
        (),
        (Edit("sources/stream.py", '        elif read_note(self._note)["mark"] is not None:\n', "        else:\n"),),
        ("test_stream.py::test_a_batch_that_was_given_up_ends_no_worker",),
        r"RuntimeError: it is not known",
        30,
    ),
    Break(
        "a part of tar shards goes on at the beginning of its shard",
        (),
        (
            Edit(
                READER,
                'self._shard, self._n, self._n_bytes = state["shard"], state["n"]',
                'self._shard, self._n, self._n_bytes = state["shard"], 0',
            ),
        ),
        (
            f"{TAR}::test_deaths_in_the_middle_of_a_shard_change_nothing",
            f"{TAR}::test_a_state_goes_on_at_its_sample_and_reads_no_shard_before",
        ),
        r"assert",
        60,
    ),
    Break(
        "a state of other tar shards is believed",
        (),
        (Edit(READER, 'if state["of"] != self._of.checksum:', 'if state["of"] is None:'),),
        (f"{TAR}::test_a_state_of_other_shards_is_refused",),
        r"DID NOT RAISE|assert|Regex",
    ),
    Break(
        "a shard that was written anew is read up to the place of a state",
        (),
        (Edit(READER, "if self._n and n_bytes != self._n_bytes:", "if n_bytes < 0:"),),
        (f"{TAR}::test_a_state_of_other_shards_is_refused",),
        r"DID NOT RAISE|assert|Regex",
    ),
    Break(
        "a member of a tar stream is read, however large it is",
        (),
        (
            Edit(
                READER,
                "room_for(self._of.decoder, member.n_bytes) if is_image and not self._is_skipped else None",
                "(lambda: None) if is_image and not self._is_skipped else None",
            ),
        ),
        (f"{TAR}::test_bombs_are_bad_samples_and_take_no_memory",),
        r"assert|Error",
        120,
    ),
    Break(
        "the turn of a large image does not end",
        (),
        (Edit("sources/image_rows.py", "            row.release()\n", "            pass\n"),),
        (f"{TAR}::test_large_images_wait_for_their_turn",),
        r"Timeout|Error|assert",
    ),
    Break(
        "the checksum at the end of a .gz file is not read",
        (),
        (Edit(FORWARD, "        while n_read := self._read_into(made.data):", "        while n_read := 0:"),),
        (f"{TAR}::test_a_damaged_shard_is_named_and_the_next_is_read[a byte changed]",),
        r"assert",
    ),
    Break(
        "open shards are not in the budget",
        (),
        (Edit("sources/tar_stream.py", "part_bytes=open_bytes", "part_bytes=0"),),
        (f"{TAR}::test_open_shards_are_in_the_budget",),
        r"assert",
    ),
    Break(
        "the shuffle buffer of a streaming dataset is lost with its worker",
        (),
        (Edit(OF_HF, "(_Sought if is_exact(dataset) else _Replayed)(self", "_Sought(self"),),
        (f"{HF}::test_deaths_and_states_lose_and_repeat_no_row",),
        r"assert|Error",
        120,
    ),
    Break(
        "a streaming dataset that has raised ends its part without a word",
        (),
        (Edit(OF_HF, "            self._failure = f", "            _ = f"),),
        (f"{HF}::test_a_dataset_that_raises_does_not_end_its_part_without_a_word",),
        r"StopIteration|DID NOT RAISE|Error",
    ),
    Break(
        "one error of prefetch() ends reading ahead for good",
        (),
        (Edit(WORKER, "        self._said.add(reason)\n", "        self._said.add(reason)\n        self._prefetch = len\n"),),
        (f"{WAITING}::test_an_error_of_reading_ahead_is_of_one_task_alone",),
        r"assert|Error",
    ),
    Break(
        "a warning about reading ahead ends the worker where warnings are errors",
        (),
        (Edit(WORKER, "        except RuntimeWarning:\n", "        except KeyError:\n"),),
        (f"{WAITING}::test_warnings_that_are_errors_end_no_worker",),
        r"assert",
    ),
)
