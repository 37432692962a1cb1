"""Tar shards: what keeps other bytes than those of the sample from being read, undone."""

from tests.breaks import Break, Edit

TAR, SHARDS, PACK = "test_tar.py", "test_tar_shards.py", "test_pack_shards.py"
TABLE = (
    Break(
        "a header with a wrong checksum is taken",
        (),
        (Edit("storage/tar.py", "    if wanted != total and wanted != ", "    if wanted < 0 and wanted != "),),
        (f"{TAR}::test_a_header_with_a_byte_that_changed_is_refused",),
        r"DID NOT RAISE|Regex pattern did not match",
    ),
    Break(
        "a member may end beyond its archive",
        (),
        (Edit("storage/tar.py", "        if data + n_bytes > content.n_bytes:\n", "        if n_bytes < 0:\n"),),
        (f"{TAR}::test_an_archive_that_is_cut_anywhere_is_refused", f"{TAR}::test_sizes_beyond_8_gb_are_read"),
        r"AssertionError|DID NOT RAISE|Regex pattern did not match",
    ),
    Break(
        "an archive without an end is whole",
        (),
        (
            Edit(
                "storage/tar.py",
                '    raise TarError(\n        f"it has no end mark',
                '    return\n    raise TarError(\n        f"it has no end mark',
            ),
        ),
        (f"{TAR}::test_an_archive_that_is_cut_anywhere_is_refused",),
        r"DID NOT RAISE",
    ),
    Break(
        "members after the end are lost without a word",
        (),
        (Edit("storage/tar.py", "    if content.has_rest(at):", "    if content.has_rest(at) and extended is None:"),),
        (f"{TAR}::test_what_is_damaged_or_hostile_is_refused[two archives]",),
        r"DID NOT RAISE",
    ),
    Break(
        "extended headers have no limit",
        (),
        (
            Edit("storage/tar.py", "    if extended.n > MAX_EXTENDED:", "    if extended.n < 0:"),
            Edit("storage/tar.py", "    if n_bytes > MAX_EXTENDED_BYTES:", "    if n_bytes < 0:"),
        ),
        (
            f"{TAR}::test_what_is_damaged_or_hostile_is_refused[many pax headers]",
            f"{TAR}::test_what_is_damaged_or_hostile_is_refused[a large pax header]",
        ),
        r"DID NOT RAISE|Regex pattern did not match",
    ),
    Break(
        "a shard that was written to is read as before",
        (),
        (
            Edit(
                "sources/tar_contents.py",
                '        return "" if now == self._stats[shard] else ',
                '        return "" if now else ',
            ),
        ),
        (
            f"{SHARDS}::test_a_kept_file_that_is_written_to_is_noticed",
            f"{SHARDS}::test_a_shard_that_changed_makes_bad_samples_and_no_other_bytes",
        ),
        r"DID NOT RAISE|assert|Regex pattern did not match",
    ),
    Break(
        "a member's header is not compared with the index",
        (),
        (
            Edit(
                "sources/tar_contents.py",
                "        if zlib.crc32(content[:BLOCK]) != self._crcs[index]:",
                "        if index < 0:",
            ),
        ),
        (
            f"{SHARDS}::test_a_remote_shard_that_changed_is_told_by_its_headers",
            f"{SHARDS}::test_a_shard_that_changed_makes_bad_samples_and_no_other_bytes[shifted-0]",
        ),
        r"DID NOT RAISE|assert|Regex pattern did not match",
    ),
    Break(
        "the index of a shard is kept, whatever has become of the shard",
        (),
        (Edit("sources/tar_build.py", "name in saved and saved[name].stat == stat and ", "name in saved and "),),
        (f"{SHARDS}::test_only_shards_that_changed_are_read_again", f"{SHARDS}::test_an_index_of_other_shards_is_not_taken"),
        r"assert|Error",
    ),
    Break(
        "an index is taken without its checksum",
        (),
        (Edit("sources/tar_index.py", "zlib.crc32(memoryview(data)[:-END_BYTES]) != ", "-1 == "),),
        (f"{SHARDS}::test_a_damaged_index_is_built_anew_with_a_word",),
        r"DID NOT WARN|assert|Error",
    ),
    Break(
        "members of a forged index may lie outside of their shard",
        (),
        (Edit("sources/tar_index.py", "ends.max() < shard.stat.n_bytes)", "ends.max() >= 0)"),),
        (f"{SHARDS}::test_a_forged_index_is_built_anew[members beyond the shard]",),
        r"DID NOT WARN",
    ),
    Break(
        "of two members of one name the last one is taken",
        (),
        (
            Edit(
                "sources/tar_samples.py",
                "            if sample.image is not None:\n",
                "            if sample.image is member:\n",
            ),
            Edit("sources/tar_samples.py", "        if columns[0].name in sample.values:\n", "        if columns is None:\n"),
        ),
        (
            f"{SHARDS}::test_samples_that_cannot_be_read_rightly_are_refused[a member twice]",
            f"{SHARDS}::test_samples_that_cannot_be_read_rightly_are_refused[two images]",
            f"{SHARDS}::test_samples_that_cannot_be_read_rightly_are_refused[a label twice]",
        ),
        r"DID NOT RAISE",
    ),
    Break(
        "all shards stay open",
        (),
        (
            Edit(
                "storage/kept_open.py",
                "        while len(self._files) >= self._max_kept:",
                "        while len(self._files) < 0:",
            ),
        ),
        (f"{SHARDS}::test_few_shards_are_open_at_once",),
        r"assert",
    ),
    Break(
        "a shard has its name before it is complete",
        ("`ringload pack` is killed while it writes shards",),
        (
            Edit(
                "insight/pack_shard.py",
                '    unfinished = task.out / f".{task.name}.tar.unfinished"',
                "    unfinished = task.path",
            ),
        ),
        (f"{PACK}::test_a_run_that_is_killed_anywhere_goes_on",),
        r"assert",
    ),
    Break(
        "a complete shard is kept without being read",
        (),
        (
            Edit(
                "insight/pack_shard.py",
                '        if _checksum(task.path) == (record["n_bytes"], record["crc32"]):',
                "        if record:",
            ),
        ),
        (f"{PACK}::test_shards_that_were_damaged_are_written_anew",),
        r"assert",
    ),
    Break(
        "shards of other samples are kept",
        (),
        (Edit("insight/pack_shard.py", 'if record is None or record.get("plan") != plan:', "if record is None:"),),
        (f"{PACK}::test_shards_of_another_pack_are_not_touched",),
        r"assert",
    ),
)
