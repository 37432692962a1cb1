"""Caches of decoded samples: what keeps wrong rows out of them, undone."""

from tests.breaks import Break, Edit

F, TESTS = "sources/row_cache.py", "test_cached.py"

TABLE = (
    Break(
        "a row is given whatever its checksum says",
        (),
        (Edit(F, " if checksum == self._checksum(parts) else None", ""),),
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
        (Edit(F, " or (n_content, time_ns) != version or ", " or "),),
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
)
