"""What the torch drop-in does so that nothing is wrong, lost or kept without a word, undone."""

from tests.breaks import Break, Edit

LEFT = "test_torch_loader_left.py::test_nothing_is_left_of_a_loader"
KINDS = "test_torch_loader_kinds.py"

TABLE = (
    Break(
        "a sampler's error keeps its traceback, and so the pass",
        (),
        (Edit("torch/dataloader/iterators.py", "self._failure = True, without_frames(error)", "self._failure = True, error"),),
        (f"{LEFT}[workers-a sampler's error]",),
        r"assert \[<.*None",
        60,
    ),
    Break(
        "a pass that has given its last batch keeps its ring until it is asked for the end",
        (),
        (
            Edit(
                "torch/dataloader/iterators.py",
                "        if self._is_exhausted and not self._pending and self._failure is None:\n",
                "        if False:\n",
            ),
        ),
        ("test_torch_loader_left.py::test_one_server_for_all_validations",),
        r"lightning 2",
        120,
    ),
    Break(
        "a StopIteration of the dataset's ends the epoch",
        (),
        (
            Edit(
                "torch/dataloader/iterators.py",
                "        except (StopIteration, StopAsyncIteration) as error:",
                "        except ZeroDivisionError as error:",
            ),
        ),
        ("test_torch_loader_workers.py::test_what_ends_an_iteration_is_an_error_of_its_batch[None-StopIteration]",),
        r"StopIteration",
        60,
    ),
    Break(
        "the start of the workers counts for the time-out",
        (),
        (Edit("engine/waiting.py", "            limit_s = max(limit_s, START_S)\n", "            pass\n"),),
        ("test_torch_loader_workers.py::test_the_start_does_not_count_for_the_timeout[False]",),
        r"timed out",
        60,
    ),
    Break(
        "each start has the time of the first",
        (),
        (Edit("engine/waiting.py", "        if 0 < state.n_starts <= SLOW_STARTS:", "        if state.n_starts:"),),
        ("test_crash.py::test_who_dies_at_its_start[SIGKILL]",),
        r"Timeout",
        30,
    ),
    Break(
        "time counts from the wait, not from the sample that was begun",
        (),
        (
            Edit(
                "engine/waiting.py",
                "            since_s = min(max(since_s, min(begun)), since_s + START_S)\n",
                "            begun.clear()\n",
            ),
        ),
        ("test_torch_loader_workers.py::test_the_start_does_not_count_for_the_timeout[False]",),
        r"timed out",
        60,
    ),
    Break(
        "whatever is of type torch.Tensor and strided is taken for plain",
        (),
        (
            Edit(
                "torch/dataloader/kinds.py",
                "    return type(value) is torch.Tensor and torch._C._dispatch_keys(value).raw_repr() in _plain_keys()\n",
                "    return type(value) is torch.Tensor and value.layout is torch.strided and not value.is_meta\n",
            ),
        ),
        (f"{KINDS}::test_special_tensors_are_refused_by_name_or_sent_as_torch_sends_them",),
        r"nested|zero|quantized",
        60,
    ),
    Break(
        "dtypes travel by their string, which those of ml_dtypes have not",
        (),
        (
            Edit(
                "torch/dataloader/kinds.py",
                "        return told if made_dtype(told) == dtype and msgspec.msgpack.encode(told) else None\n",
                "        return told\n",
            ),
            Edit("torch/dataloader/kinds.py", "    if ml_dtypes is not None and getattr(", "    if False and getattr("),
        ),
        (f"{KINDS}::test_dtypes_are_kept_in_what_a_collate_fn_returns",),
        r"assert dtype|is no dtype",
        60,
    ),
    Break(
        "an extension that holds a pickle is unpickled, allowed or not",
        (),
        (
            Edit(
                "torch/dataloader/values.py",
                "            case Ext.PICKLED if self._allow_pickle:\n",
                "            case Ext.PICKLED:\n",
            ),
        ),
        ("test_torch_loader.py::test_a_pickle_is_read_where_that_is_allowed",),
        r"DID NOT RAISE",
        60,
    ),
    Break(
        "msgspec encodes what is in a list, and makes lists of sets",
        (),
        (
            Edit(
                "torch/dataloader/values.py",
                "            if not leaves.issuperset(map(type, value)):\n",
                "            if False:\n",
            ),
        ),
        ("test_torch_values.py::test_what_is_refused_is_named",),
        r"DID NOT RAISE",
        60,
    ),
    Break(
        "after a resume the generators are not those of the state",
        (),
        (Edit("torch/dataloader/loader.py", "            set_generators(state_dict, self)\n", ""),),
        ("test_torch_loader_state.py::test_epochs_after_resumes_are_those_of_the_uninterrupted_run[torch-False]",),
        r"assert",
        60,
    ),
    Break(
        "what was taken ahead from the sampler is drawn again after a resume",
        (),
        (Edit("torch/dataloader/state.py", 'n_ahead = 1 if is_stateful else rng["n_taken"] - n_yielded', "n_ahead = 1"),),
        ("test_torch_loader_state.py::test_epochs_after_resumes_are_those_of_the_uninterrupted_run[as it goes-False]",),
        r"assert",
        60,
    ),
    Break(
        "a collate_fn that is set is not told from the one that workers have",
        (),
        (
            Edit(
                "torch/dataloader/loader.py",
                "ring.settings == settings and ring.is_like(spec) and",
                "ring.settings == settings and",
            ),
        ),
        ("test_torch_loader_workers.py::test_a_changed_collate_fn_is_used[forkserver]",),
        r"assert|Error",
        90,
    ),
)
