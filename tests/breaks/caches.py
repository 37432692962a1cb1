"""Caches of decoded samples: what keeps wrong rows out of them, undone."""

from tests.breaks import Break, Edit

F, TESTS = "sources/row_cache.py", "test_cached.py"
MEMORY, GIVEN = "sources/row_memory.py", "test_given_cache.py"

TABLE = (
    Break(
        "a row is given whatever its checksum says",
        (),
        (Edit(F, " if said[2] == self._checksum(parts) else None", ""),),
        (f"{TESTS}::test_a_damaged_file_gives_no_wrong_row",),
        r"Mismatched elements",
    ),
    Break(
        "a mark does not say of which row it is",
        (),
        (Edit(F, "SEAL.pack(*MARK.unpack(mark)[:5], index)", "SEAL.pack(*MARK.unpack(mark)[:5], 0)"),),
        (f"{TESTS}::test_a_row_counts_when_its_mark_is_written",),
        r"assert",
    ),
    Break(
        "what was kept of a file is given after the file has changed",
        (),
        (Edit(F, "if said is None or said[0] != version:", "if said is None:"),),
        (f"{TESTS}::test_a_file_that_has_changed_is_decoded_again",),
        r"Mismatched elements",
    ),
    Break(
        "a full disk makes samples bad",
        (),
        (Edit(F, "        except OSError:  # no space", "        except ZeroDivisionError:  # no space"),),
        (f"{TESTS}::test_a_full_disk_ends_the_filling_and_no_more",),
        r"File too large",
    ),
    Break(
        "other decoders read the cache of former ones",
        (),
        (Edit("sources/image_steps.py", ", pads, versions()]", ", pads]"),),
        (f"{TESTS}::test_other_options_have_another_file",),
        r"assert",
    ),
    Break(
        "the part of a random crop is drawn by the size of what is kept",
        (),
        (
            Edit(
                "sources/image_steps.py",
                "box = choices.part(*size).scaled(height / size[0], width / size[1])",
                "box = choices.part(height, width)",
            ),
        ),
        (f"{TESTS}::test_random_crops_are_drawn_as_without_a_cache",),
        r"assert",
    ),
    Break(
        "a row in memory counts before it is written",
        (),
        (
            Edit(
                MEMORY,
                "                self._writes = os.pwrite(self._fd, row.data",
                "                os.pwrite(self._fd, mark, start)\n                self._writes = os.pwrite(self._fd, row.data",
            ),
        ),
        (f"{GIVEN}::test_a_row_counts_when_its_mark_is_written", f"{GIVEN}::test_workers_are_killed_while_they_write_a_row"),
        r"Mismatched elements|not equal",
    ),
    Break(
        "a row in memory is written again while others read it",
        (),
        (Edit(MEMORY, "            if self._said(index) is None:\n", "            if True:\n"),),
        (f"{GIVEN}::test_rows_are_written_once",),
        r"Mismatched elements|assert",
    ),
    Break(
        "two processes write a row at once",
        (),
        (
            Edit(
                MEMORY,
                "        except BlockingIOError:\n            return\n",
                "        except BlockingIOError:\n            pass\n",
            ),
        ),
        (f"{GIVEN}::test_rows_are_written_once",),
        r"assert",
    ),
    Break(
        "the memory is full of samples of the source as it was",
        (),
        (Edit("loader.py", "        self._cache.begin_anew()\n", ""),),
        (f"{GIVEN}::test_a_source_that_is_changed_is_loaded_again",),
        r"Mismatched elements",
    ),
    Break(
        "the memory of a cache is not in the plan",
        (),
        (
            Edit(
                "ring/plan.py",
                "shared_bytes = self.ring_bytes + self.control_bytes + self.index_bytes + self.cache_bytes",
                "shared_bytes = self.ring_bytes + self.control_bytes + self.index_bytes",
            ),
        ),
        (f"{GIVEN}::test_the_plan_has_a_row_of_the_cache",),
        r"assert",
    ),
    Break(
        "the memory of a cache outlives its loader",
        (),
        (Edit("loader.py", "        engine.at_end(self._cache.close)\n", ""),),
        (f"{GIVEN}::test_memory_ends_with_the_loader",),
        r"assert",
    ),
    Break(
        "a process reads another file, whose descriptor has the number of the memory's",
        (),
        (Edit(MEMORY, "self._fd >= 0 and _file_of(self._fd) == self._file", "self._fd >= 0"),),
        (f"{GIVEN}::test_a_descriptor_of_another_file_is_not_taken_for_the_memory",),
        r"assert",
    ),
)
