"""Bytes from afar, and loads that wait: what makes them right, bounded and soon there, undone."""

from tests.breaks import Break, Edit

THREADED, REMOTE, WAITING = "test_threaded.py", "test_remote.py", "test_waiting_loads.py"
TABLE = (
    Break(
        "contents that are read ahead take more memory than there is for them",
        (),
        (Edit("storage/threaded.py", "and not self._find_room(room_bytes):", "and self._find_room(room_bytes) is None:"),),
        (f"{THREADED}::test_those_without_room_follow_as_room_becomes_free",),
        r"assert",
    ),
    Break(
        "a content may be larger than the room that was reserved for it",
        (),
        (
            Edit(
                "storage/threaded.py",
                "ARRIVALS.follow(self._threads.submit, self._fetch_ahead, key, room_bytes)",
                "ARRIVALS.follow(self._threads.submit, self._fetch_ahead, key, 1 << 40)",
            ),
        ),
        (f"{THREADED}::test_one_that_is_larger_than_its_room_is_asked_for_again",),
        r"assert",
    ),
    Break(
        "the room of what was read is not given back",
        (),
        (
            Edit(
                "storage/threaded.py",
                "            del self._ahead[key]\n            self._kept_bytes -= entry.room_bytes\n",
                "            del self._ahead[key]\n",
            ),
        ),
        (f"{THREADED}::test_each_content_that_fits_is_fetched_once",),
        r"assert",
    ),
    Break(
        "a content that comes twice is let go of when it is read first",
        (),
        (Edit("storage/threaded.py", "                entry.n_reads += 1\n", "                pass\n"),),
        (f"{THREADED}::test_each_content_that_fits_is_fetched_once",),
        r"assert",
    ),
    Break(
        "what waits for room is forgotten when a content is read",
        (),
        (
            Edit(
                "storage/threaded.py",
                "it is not begun, and is fetched now\n        self._begin_waiting()\n",
                "it is not begun, and is fetched now\n",
            ),
        ),
        (f"{THREADED}::test_those_without_room_follow_as_room_becomes_free",),
        r"assert",
    ),
    Break(
        "what was read ahead and is not used stays for ever",
        (),
        (Edit("storage/threaded.py", "            if n > 0 and (entry :=", "            if n < 0 and (entry :="),),
        (f"{THREADED}::test_what_is_not_read_is_let_go_of", f"{REMOTE}::test_what_is_not_used_is_let_go_of"),
        r"assert",
    ),
    Break(
        "the search for generators goes into connections",
        (),
        (
            Edit("packing/generators.py", " and not _is_storage(value):", ":"),
            Edit("packing/generators.py", "            with suppress(Exception):", "            if True:"),
        ),
        (f"{REMOTE}::test_a_transform_of_the_users",),
        r"Error",
    ),
    Break(
        "a coroutine's end of the process ends its thread without a word",
        (),
        (
            Edit(
                "sources/async_prefetch.py",
                "    except BaseException as error:\n        return error\n",
                "    except ValueError as error:\n        return error\n",
            ),
        ),
        (f"{WAITING}::test_a_coroutine_that_ends_the_process_is_a_death_that_names_its_samples",),
        r"Timeout|Stall|assert",
    ),
    Break(
        "a task whose reads are slow holds up those that are there",
        (),
        (
            Edit(
                "workers/tasks_ahead.py",
                "ready = next((place for place, held in enumerate(self._held) if is_ready(held)), None)",
                "ready = 0 if is_ready(self._held[0]) else None",
            ),
        ),
        (
            f"{REMOTE}::test_a_slow_read_does_not_hold_up_those_that_are_there",
            f"{WAITING}::test_a_slow_coroutine_holds_up_its_own_task_alone",
        ),
        r"Timeout|assert|hang",
    ),
    Break(
        "a worker does not wait for reads that are under way",
        (),
        (Edit("workers/tasks_ahead.py", "if ready is not None or not ARRIVALS.wait(n_ended):", "if True:"),),
        (f"{WAITING}::test_a_coroutine_has_ended_before_its_samples_are_loaded",),
        r"KeyError|SampleError",
    ),
    Break(
        "a part does not ask whether the samples of its source are there",
        (),
        (
            Edit(
                "sources/parts.py",
                "        ask = self._bound.is_ready\n",
                "        ask = None\n",
            ),
        ),
        (f"{WAITING}::test_a_part_and_a_mix_wait_for_coroutines",),
        r"KeyError|SampleError",
    ),
    Break(
        "an answer that ends early is a bad sample at once",
        (),
        (Edit("storage/http.py", "                if n_left == 0:\n", "                if n_left:\n"),),
        (f"{REMOTE}::test_what_passes_is_tried_again[cut_short]",),
        r"SampleError",
    ),
    Break(
        "a server that answers with the whole content is taken for one that knows ranges",
        (),
        (Edit("storage/http.py", "    if is_range and answer.status != 206:\n", "    if False:\n"),),
        (f"{REMOTE}::test_a_server_without_ranges_is_refused",),
        r"Regex pattern did not match|DID NOT RAISE",
    ),
    Break(
        "parts of a content that has changed are read",
        (),
        (Edit("storage/http.py", "    if version and now != version:\n", "    if False:\n"),),
        (f"{REMOTE}::test_ranges[http]",),
        r"DID NOT RAISE",
    ),
    Break(
        "parts of an object that has changed are read",
        (),
        (Edit("storage/object_store.py", 'if part.version not in ("", now := _version(answer.meta)):', "if False:"),),
        (f"{REMOTE}::test_ranges[s3]",),
        r"DID NOT RAISE",
    ),
    Break(
        "a key that begins with a slash is that of another object",
        (),
        (Edit("storage/object_store.py", ' or path.startswith("/")', ""),),
        (f"{REMOTE}::test_keys_of_s3",),
        r"DID NOT RAISE",
    ),
    Break(
        "threads that share an ImageFrame read into each other's memory",
        (),
        (Edit("sources/image_table.py", "        with self._one_at_a_time.here():\n", "        if True:\n"),),
        (f"{WAITING}::test_threads_that_share_an_image_frame_get_their_own_images",),
        r"assert|SampleError",
    ),
    Break(
        "threads begin a task once the one before is filled",
        (),
        (Edit("workers/fill.py", "        return bound.threads > 1 and all(", "        return bound.threads < 1 and all("),),
        (f"{WAITING}::test_threads_go_on_with_the_next_task",),
        r"BrokenBarrier|SampleError|Timeout",
    ),
    Break(
        "workers read for several tasks while it is found out what they die of",
        (),
        (
            Edit(
                "workers/worker.py",
                "        return (oldest.epoch, oldest.number) not in self._alone\n",
                "        return oldest.epoch >= 0\n",
            ),
        ),
        (f"{WAITING}::test_a_death_by_what_is_read_for_another_task_is_blamed_on_its_own_sample",),
        r"assert",
    ),
    Break(
        "threads share one generator",
        (),
        (
            Edit(
                "workers/fill.py",
                "self._load_row, epoch, sample, key, row, rows, rng",
                "self._load_row, epoch, sample, key, row, rows",
            ),
        ),
        (f"{WAITING}::test_threads_load_the_same_bytes",),
        r"assert|Error",
    ),
    Break(
        "tasks have fewer rows than there are threads",
        (),
        (
            Edit("engine/schedule.py", "return min(max(FIRST_ROWS, least), most)", "return min(2, most)"),
            Edit("engine/schedule.py", "rows = max(least, round", "rows = max(1, round"),
        ),
        (f"{WAITING}::test_so_many_threads_load_at_once",),
        r"BrokenBarrier|SampleError|Timeout",
    ),
    Break(
        "without workers, samples are loaded before they are asked for",
        (),
        (Edit("engine/schedule.py", "        if not state.workers.n_workers and not is_waiting:\n            return\n", ""),),
        ("test_loader.py::test_without_workers_a_sample_is_loaded_when_its_batch_is_asked_for",),
        r"assert",
    ),
    Break(
        "a TIFF file whose header has two heights is decoded with either",
        (),
        (
            Edit(
                "images/tiff.py",
                "                if tags.setdefault(tag, found) != found:",
                "                if tags.setdefault(tag, found) is None:",
            ),
        ),
        ("test_wide.py::test_a_tag_with_two_values_is_refused",),
        r"Regex pattern did not match|DID NOT RAISE|Error",
    ),
)
