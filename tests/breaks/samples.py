"""Bad samples, hostile files and functions: what keeps them to themselves, undone."""

from tests.breaks import Break, Edit

TABLE = (
    Break(
        "any file is opened and read",
        ("bad or hostile file in a batch",),
        (Edit("data/files.py", "    if not stat.S_ISREG(status.st_mode):\n", "    if status.st_mode < 0:\n"),),
        ("test_hostile.py::test_files_of_every_kind[skip]",),
        r"assert|Timeout|Error",
    ),
    Break(
        "any format that Pillow knows is read",
        ("bad or hostile file in a batch",),
        (Edit("data/codecs.py", "Image.open(file, formats=FORMATS)", "Image.open(file)"),),
        ("test_hostile.py::test_files_of_every_kind[skip]",),
        r"assert",
    ),
    Break(
        "what a decoder refuses is shown as far as it came",
        ("damaged image that is decoded", "damaged image in a batch"),
        (
            Edit(
                "data/codecs.py",
                "        pixels: np.ndarray = simplejpeg.decode_jpeg(\n",
                "        pixels: np.ndarray = _anyhow(\n            (height, width, N_CHANNELS[self._color]),\n",
            ),
            Edit(
                "data/codecs.py",
                "class Other:\n",
                "def _anyhow(shape: Any, *arguments: Any, **options: Any) -> Any:\n"
                "    try:\n        return simplejpeg.decode_jpeg(*arguments, **options)\n"
                "    except ValueError:\n        return options['buffer'][: int(np.prod(shape))].reshape(shape)\n\n\n"
                "class Other:\n",
            ),
        ),
        ("test_fuzz.py::test_damaged_images_do_no_harm",),
        r"not the same twice",
        100,
    ),
    Break(
        "the row of a bad sample stays as it was left",
        ("damaged image in a batch", "soak: bad samples that were raised", "bad or hostile file in a batch"),
        (
            Edit(
                "workers/filling.py",
                "                array[row] = np.zeros((), array.dtype)\n",
                "                array[row] = array[row]\n",
            ),
        ),
        ("test_fuzz.py::test_damaged_images_through_the_ring", "test_hostile.py::test_files_of_every_kind[skip]"),
        r"assert",
        60,
    ),
    Break(
        "an exception that cannot be put in words ends its producer",
        ("hostile user's function in a batch",),
        (
            Edit(
                "workers/filling.py",
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
        (Edit("workers/filling.py", "    return text if len(text) <= n else", "    return text if n else"),),
        ("test_hostile.py::test_functions_that_do_what_they_should_not[0-Attacked-skip]",),
        r"assert",
        60,
    ),
    Break(
        "a fork of a producer goes on as a second one",
        ("os.fork in a source's (prefetch|start)", "hostile user's function in a batch"),
        (Edit("workers/worker.py", "            if os.getpid() != pid:\n                os._exit(0)\n", "            pass\n"),),
        (
            "test_hostile.py::test_a_fork_of_a_producer_is_no_second_one[start]",
            "test_hostile.py::test_a_fork_of_a_producer_is_no_second_one[prefetch]",
        ),
        r"assert|Stalled|Timeout",
    ),
    Break(
        "an exception in prefetch() ends its producer",
        ("an exception in a source's prefetch",),
        (
            Edit(
                "workers/worker.py",
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
        (
            Edit(
                "loader.py", "        self._go_to(epoch, position)\n", "        self._go_to(epoch, position + (position > 0))\n"
            ),
        ),
        ("test_soak.py::test_a_short_soak",),
        r"assert",
        100,
    ),
)
