"""Bad samples, hostile files and functions: what keeps them to themselves, undone."""

from tests.breaks import Break, Edit

TABLE = (
    Break(
        "the generator of a table has one order for all epochs",
        (),
        (
            Edit(
                "bridge/generator.py",
                "            for batch in loader.iterate(OF_ARRAYS):\n",
                "            loader.set_epoch(0)\n            for batch in loader.iterate(OF_ARRAYS):\n",
            ),
        ),
        ("test_generator.py::test_it_goes_on_with_a_new_order_each_epoch",),
        r"assert 1 == 4",
    ),
    Break(
        "any file is opened and read",
        ("bad or hostile file in a batch",),
        (Edit("storage/read_ahead.py", "    if not stat.S_ISREG(status.st_mode):\n", "    if status.st_mode < 0:\n"),),
        ("test_hostile.py::test_files_of_every_kind[skip]",),
        r"assert|Timeout|Error",
    ),
    Break(
        "a file is read whatever its size",
        (),
        (Edit("storage/local.py", "            if n_bytes > max_bytes:\n", "            if n_bytes < 0:\n"),),
        ("test_storage.py::test_a_large_content_is_read_in_a_turn[True]",),
        r"assert \[False, False\] == \[True, False\]",
    ),
    Break(
        "a fork uses the storage of its parent, whose threads it does not have",
        (),
        (Edit("sources/storage_owner.py", "self._storage is None or self._pid != os.getpid()", "self._storage is None"),),
        (
            "test_storage.py::test_the_same_pixels_come_from_files_and_from_a_storage[2-fork]",
            "test_tar_shards.py::test_what_a_source_sends_to_workers_is_small_and_opens_files_of_its_own",
        ),
        r"Timeout|StallError|assert False|assert 1 == 0|assert \{'memory",
    ),
    Break(
        "any format that Pillow knows is read",
        ("bad or hostile file in a batch",),
        (
            Edit("images/pillow.py", "        if not self.format:\n", "        if self._head is None:\n"),
            Edit(
                "images/pillow.py",
                "        self._opened = self._data if data is None else data\n",
                "        if not self.format:\n            self._file = Image.open(io.BytesIO(self._data))\n"
                "            return self._file.size[::-1]\n        self._opened = self._data if data is None else data\n",
            ),
            Edit("images/pillow.py", "from functools import partial\n", "import io\nfrom functools import partial\n"),
            Edit("images/formats.py", "name[0] in 'A'", "name[:1] == 'A'"),
        ),
        ("test_hostile.py::test_files_of_every_kind[skip]",),
        r"assert",
    ),
    Break(
        "what a decoder refuses is shown as far as it came",
        ("damaged image that is decoded", "damaged image in a batch"),
        (
            Edit(
                "images/jpeg.py",
                "        pixels: np.ndarray = simplejpeg.decode_jpeg(\n",
                "        pixels: np.ndarray = _anyhow(\n            (height, width, N_CHANNELS[self._color]),\n",
            ),
            Edit(
                "images/jpeg.py",
                "class Jpeg:\n",
                "def _anyhow(shape, *arguments, **options):\n"
                "    try:\n        return simplejpeg.decode_jpeg(*arguments, **options)\n"
                "    except ValueError:\n        return options['buffer'][: int(np.prod(shape))].reshape(shape)\n\n\n"
                "class Jpeg:\n",
            ),
        ),
        ("test_fuzz.py::test_damaged_images_do_no_harm",),
        r"not the same twice",
        100,
    ),
    Break(
        "what needs more memory than there is for one image is decoded",
        ("an image that takes more memory than others of its size",),
        (Edit("images/decoder.py", "self._worker.max_bytes is not None and needed_bytes", "needed_bytes * 0"),),
        ("test_formats.py::test_a_small_budget_is_enough_for_small_images[2-0.5GB]",),
        r"DID NOT RAISE|assert|Error",
        60,
    ),
    Break(
        "the last pixels of a JPEG file that is decoded smaller count as whole ones",
        (),
        (
            Edit(
                "images/decoder.py",
                "            part = jpeg.shown(box, eighths, self._resampler.antialiases)\n",
                "            part = jpeg.shown(box, eighths, False)\n",
            ),
        ),
        ("test_resample.py::test_crops_come_as_near[size0-a.jpg]",),
        r"assert",
        60,
    ),
    Break(
        "planes of 16 bits go to OpenCV",
        (),
        (Edit("images/high_depth.py", "(header.is_planar and header.n_samples > 1)", "header.n_samples > 4"),),
        ("test_wide.py::test_tiff_is_shown_as_it_is[3-uint-16]",),
        r"assert|Error",
        60,
    ),
    Break(
        "other threads see Pillow's switch for files that are cut short",
        (),
        (
            Edit(
                "images/truncated.py",
                "        return bool(self.others) if _thread.pads is None else _thread.pads\n",
                "        return True\n",
            ),
        ),
        ("test_formats.py::test_other_threads_see_what_they_have_set",),
        r"assert",
    ),
    Break(
        "the first thread that has decoded undoes what others need",
        (),
        (Edit("images/hook.py", "            self._holders.pop(key, None)\n", "            self._holders.clear()\n"),),
        ("test_formats.py::test_threads_that_decode_leave_in_any_order",),
        r"assert",
        60,
    ),
    Break(
        "what was set to decode an image stays set when that is interrupted",
        ("Ctrl-C at every moment of loading images of all kinds in the trainer",),
        (Edit("images/hook.py", "    def __del__(self) -> None:\n        self.__exit__()\n", ""),),
        ("test_interrupts.py::test_what_is_set_to_decode_images_is_undone_whatever_the_moment",),
        r"after moment \d+",
        120,
    ),
    Break(
        "what libtiff says goes to stderr",
        (),
        (Edit("images/captured_output.py", "(warnings_hook, libtiff_hook, *logger_hooks)", "(warnings_hook, *logger_hooks)"),),
        ("test_formats.py::test_what_decoders_print_belongs_to_the_sample[2]",),
        r"assert",
        60,
    ),
    Break(
        "the row of a bad sample stays as it was left",
        ("damaged image in a batch", "soak: bad samples that were raised", "bad or hostile file in a batch"),
        (
            Edit(
                "workers/fill.py",
                "                array[row] = np.zeros((), array.dtype)\n",
                "                array[row] = array[row]\n",
            ),
        ),
        ("test_fuzz.py::test_damaged_images_through_the_ring", "test_hostile.py::test_files_of_every_kind[skip]"),
        r"assert",
        60,
    ),
    Break(
        "an exception that cannot be put in words ends its worker",
        ("hostile user's function in a batch",),
        (
            Edit(
                "workers/fill.py",
                '    except Exception:\n        said = "<exception str() failed>"\n',
                '    except OSError:\n        said = "<exception str() failed>"\n',
            ),
        ),
        ("test_hostile.py::test_functions_that_do_what_they_should_not[2-Attacked-skip]",),
        r"not even this|Error|assert",
        60,
    ),
    Break(
        "what a user's function says is told whole",
        ("hostile user's function in a batch",),
        (Edit("bad_sample.py", "    kept = n - len(BETWEEN)\n", "    kept = n\n"),),
        ("test_hostile.py::test_functions_that_do_what_they_should_not[0-Attacked-skip]",),
        r"assert",
        60,
    ),
    Break(
        "a fork of a worker goes on as a second one",
        ("os.fork in a source's (prefetch|start)", "hostile user's function in a batch"),
        (Edit("workers/worker.py", "            if os.getpid() != pid:\n                os._exit(0)\n", "            pass\n"),),
        (
            "test_hostile.py::test_a_fork_of_a_worker_is_no_second_one[start]",
            "test_hostile.py::test_a_fork_of_a_worker_is_no_second_one[prefetch]",
        ),
        r"assert|StallError|Timeout",
    ),
    Break(
        "an exception in prefetch() ends its worker",
        ("an exception in a source's prefetch",),
        (
            Edit(
                "workers/reading_ahead.py",
                "        except Exception as error:  # whatever a user's function raises\n",
                "        except ZeroDivisionError as error:\n",
            ),
        ),
        ("test_hostile.py::test_who_cannot_ask_ahead_loads_without",),
        r"ConfigError|assert",
    ),
    Break(
        "a resumed loader begins an epoch at its second batch",
        ("soak: resumes by a state", "soak: closes in mid-epoch", "soak: second loaders at the same time"),
        (Edit("order/state.py", "    return epoch, number, [*", "    return epoch, number + (number > 0), [*"),),
        ("test_soak.py::test_a_short_soak",),
        r"assert",
        100,
    ),
)
