"""What people who come from other libraries do first, and what they are told: what is wrong, where, and what to do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ringload
from ringload import (
    Arrays,
    ConfigError,
    Field,
    ImageFolder,
    ImageFrame,
    Loader,
    RingloadError,
    SampleError,
    TarShards,
    UnknownFieldError,
    terms,
)
from ringload.ring.plan import human
from tests.helpers import run

X, Y = np.zeros((8, 4), "f4"), np.arange(8)
FIELDS = {"image": Field((4,), "f4"), "label": Field((), "i8")}
SIZE = (8, 8)
TABLE = pd.DataFrame({"path": [f"{k}.jpg" for k in range(4)], "multi": list("abab")})
quiet = pytest.mark.filterwarnings("ignore:none of the first:UserWarning")


@pytest.fixture
def loader() -> Iterator[Loader]:
    with Loader(Arrays(image=X, label=Y), 4, workers=0) as made:
        yield made


def told(kind: type[Exception], call: Callable[[], Any]) -> str:
    """The message of the error that a call raises; shown as users see it, and not longer than a paragraph."""
    with pytest.raises(kind) as raised:
        call()
    message = str(raised.value)
    assert len(message) < 1000, "a message is read by people"
    return message


# -- what is given as a source ----------------------------------------------------------------------------------------


class MapStyle:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


@dataclass
class Large:
    """A repr of megabytes, as lists of samples have."""

    samples: list[int]


NO_SOURCES: dict[str, tuple[Callable[[], Any], str]] = {
    "a tuple of arrays": (
        lambda: (X, Y),
        r"class tuple is no source.*ringload\.Loader\(ringload\.Arrays\(x=\.\.\., y=\.\.\.\)",
    ),
    "a list of arrays": (lambda: [X, Y], r"ringload\.Arrays\(x="),
    "an array": (lambda: X, r"numpy\.ndarray is no source.*ringload\.Arrays\(x="),
    "a dict of arrays": (lambda: {"x": X, "y": Y}, r"ringload\.Arrays\(\*\*arrays\)"),
    "a table": (lambda: TABLE, r"pandas\.DataFrame.*ringload\.ImageFrame\(df, path=.*ringload\.Arrays\(x=df"),
    "a folder": (lambda: "photos", r"'photos' is no source.*ringload\.ImageFolder\(path, size=.*ringload\.ImageFrame\(path"),
    "a Path": (lambda: Path("photos"), r"ringload\.ImageFolder\(path, size="),
    "a generator": (lambda: (x for x in X), r"class generator.*by index: use a function load\(index, rng, out\), with fields="),
    "an iterator": (lambda: iter(X), r"by index: use a function load"),
    "a list of samples": (lambda: [(0, 1)] * 300_000, r"ringload\.torch\.DataLoader\(dataset, batch_size="),
    "a dataset by index": (MapStyle, r"class (tests\.)?MapStyle is no.*ringload\.torch\.DataLoader\(dataset, batch_size="),
    "a class": (lambda: ImageFrame, r"the class ringload\.ImageFrame.*make an object of it, ImageFrame\(\.\.\.\)"),
    "something large": (lambda: Large([1] * 300_000), r"give ringload\.ImageFrame, ImageFolder or Arrays"),
    "nothing": (lambda: None, r"None is no source of samples: give ringload\.ImageFrame"),
    "a number": (lambda: 3, r"3 is no source of samples: give ringload\.ImageFrame"),
}


@pytest.mark.parametrize("what", NO_SOURCES)
def test_what_is_no_source_is_told_how_it_becomes_one(what: str) -> None:
    make, said = NO_SOURCES[what]
    assert re.search(said, told(ConfigError, lambda: Loader(make(), 4)))


def of_library(module: str, name: str, **has: Any) -> Any:
    """An object whose class is called as one of a library that is not installed here, and that has what this one has."""
    return type(name, (), {"__module__": module, "__getitem__": None, "__len__": lambda self: 8, **has})()


@pytest.mark.parametrize(
    ("module", "name", "has", "said"),
    [
        (
            "datasets.arrow_dataset",
            "Dataset",
            {},
            "ringload.torch.DataLoader(dataset, batch_size=...) with dataset.with_format",
        ),
        ("datasets.iterable_dataset", "IterableDataset", {}, "asks for them by index"),
        ("datasets.dataset_dict", "DatasetDict", {}, "take one, DatasetDict['train'], say"),
        (
            "polars.dataframe.frame",
            "DataFrame",
            {"columns": [], "to_pandas": None},
            "ringload.ImageFrame(df.to_pandas(), path=",
        ),
        ("pyarrow.lib", "Table", {"columns": [], "to_pandas": None}, "ringload.ImageFrame(df.to_pandas(), path="),
        ("keras.src.trainers.data_adapters.py_dataset_adapter", "PyDataset", {}, "it makes whole batches"),
    ],
)
def test_classes_of_libraries_are_known_by_their_names(module: str, name: str, has: dict[str, Any], said: str) -> None:
    given = of_library(module, name, **has)
    assert said in told(ConfigError, lambda: Loader(given, 4))
    if "to_pandas" in has:
        assert "give df.to_pandas()" in told(ConfigError, lambda: ImageFrame(given, size=SIZE))


def test_a_loader_is_no_source_of_another(loader: Loader) -> None:
    assert "loader.source" in told(ConfigError, lambda: Loader(loader, 4))


OF_TORCH = """
import numpy as np, torch, ringload
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

class Mine(Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return index

class Streamed(IterableDataset):
    def __iter__(self): return iter(range(8))

def told(call, kind=ringload.ConfigError):
    try: call()
    except kind as error: return str(error)
    raise AssertionError("it was taken")

loader = ringload.Loader(ringload.Arrays(x=np.zeros((8, 4)), y=np.arange(8)), 4, workers=0)
for source, said in (
    (Mine(), "use ringload.torch.DataLoader(dataset, batch_size=...)"),
    (TensorDataset(torch.zeros(8)), "torch.TensorDataset is no source of samples: use ringload.torch.DataLoader(dataset"),
    (Streamed(), "in its own order"),
    (DataLoader(Mine()), "it is a DataLoader: give its dataset to ringload's"),
    (torch.zeros(8), "ringload.Arrays(x="),
    ((torch.zeros(8), torch.zeros(8)), "ringload.Arrays(x="),
    (ringload.torch.Batches(loader), "give loader itself, or loader.source"),
):
    assert said in told(lambda: ringload.Loader(source, 4)), (source, told(lambda: ringload.Loader(source, 4)))
for source, said in (
    (loader.source, "loader is a ringload.Loader, not an object of class ringload.Arrays: make a loader of this source"),
    (Mine(), "loader is a ringload.Loader, not an object of class Mine: use ringload.torch.DataLoader(dataset"),
):
    assert said in told(lambda: ringload.torch.Batches(source)), told(lambda: ringload.torch.Batches(source))
for source in (loader, loader.source):
    assert "use ringload.torch.Batches(ringload.Loader(source" in told(lambda: ringload.torch.DataLoader(source))
assert "no field 'z'; the fields are ['x', 'y', 'index']" in told(lambda: ringload.torch.Batches(loader, fields="z"))
batches = ringload.torch.Batches(loader)
assert repr(batches) == f"<ringload.torch.Batches on cpu of {loader!r}>"
for name, value in (("device", "cuda"), ("loader", loader), ("fields", "x"), ("batch_size", 8)):
    assert f"Batches.{name} cannot be set" in told(lambda: setattr(batches, name, value), AttributeError)
for call, said in (
    (lambda: ringload.torch.DataLoader(Mine(), workers=2), "DataLoader() has no argument 'workers': here it is called num_w"),
    (lambda: ringload.torch.DataLoader(Mine(), seed=2), "generator=torch.Generator()"),
    (lambda: ringload.torch.DataLoader(Mine(), persistent_worker=True), "did you mean 'persistent_workers'?"),
    (lambda: ringload.torch.Batches(loader, pin_memory=True), "Batches() has no argument 'pin_memory': here it is called pin="),
    (lambda: ringload.torch.Batches(loader, num_workers=2), "it is for ringload.Loader, where it is called workers="),
):
    assert said in told(call, TypeError), told(call, TypeError)
print("done")
"""
OF_KERAS = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, keras, tensorflow, ringload, ringload.keras, ringload.tf

class Batched(keras.utils.PyDataset):
    def __len__(self): return 2
    def __getitem__(self, index): return np.zeros((4, 4)), np.zeros(4)

def told(call, kind=ringload.ConfigError):
    try: call()
    except kind as error: return str(error)
    raise AssertionError("it was taken")

loader = ringload.Loader(ringload.Arrays(image=np.zeros((8, 4)), label=np.arange(8)), 4, workers=0)
model = keras.Sequential([keras.layers.Dense(1)])
model.compile("sgd", "mse")
message = told(lambda: model.fit(loader), ValueError)
assert "give ringload.keras.dataset(loader))" in message, message
assert "ringload.keras.dataset" not in repr(loader)
for source, said in (
    (tensorflow.data.Dataset.range(8), "a tf.data pipeline gives samples in its own order"),
    (tensorflow.zeros(8), "ringload.Arrays(x="),
    (Batched(), "it makes whole batches, and the loader asks for samples"),
    (ringload.keras.dataset(loader), "give loader itself, or loader.source"),
):
    assert said in told(lambda: ringload.Loader(source, 4)), told(lambda: ringload.Loader(source, 4))
for make in (ringload.keras.dataset, ringload.tf.as_dataset, ringload.keras.Report):
    assert "make a loader of this source, ringload.Loader(source, batch_size)" in told(lambda: make(loader.source))
    assert "ringload.Arrays(x=" in told(lambda: make(np.zeros(8)))
for call, said in (
    (lambda: ringload.keras.dataset(loader, x="img"), "no field 'img'; the fields are ['image', 'label']; did you mean"),
    (lambda: ringload.keras.dataset(loader, y="lable"), "did you mean 'label'?"),
    (lambda: ringload.tf.as_dataset(loader, x="image", y="label", sample_weight="labels"), "no field 'labels'"),
):
    assert said in told(call), told(call)
for call, said in (
    (lambda: ringload.keras.dataset(loader, batch_size=4), "argument 'batch_size': it is an argument of ringload.Loader"),
    (lambda: ringload.keras.dataset(loader, targets="label"), "here it is called y="),
    (lambda: ringload.keras.dataset(loader, class_weight={}), "class_weight= is fit's"),
    (lambda: ringload.tf.as_dataset(loader, drop_remainder=True), "last='drop'"),
):
    assert said in told(call, TypeError), told(call, TypeError)
data = ringload.keras.dataset(loader)
assert repr(data) == f"<ringload.keras.dataset of {loader!r}>"
for name in ("loader", "repeat"):
    assert f"RingDataset.{name} cannot be set" in told(lambda: setattr(data, name, True), AttributeError)
model.fit(data, verbose=0)
print("done")
"""
OF_JAX = """
import numpy as np, jax.numpy as jnp, ringload, ringload.jax

def told(call, kind=ringload.ConfigError):
    try: call()
    except kind as error: return str(error)
    raise AssertionError("it was taken")

loader = ringload.Loader(ringload.Arrays(x=np.zeros((8, 4), "f4"), y=np.arange(8, dtype="i4")), 4, workers=0)
assert "ringload.Arrays(x=" in told(lambda: ringload.Loader(jnp.zeros(8), 4))
assert "make a loader of this source" in told(lambda: ringload.jax.Batches(loader.source))
assert "did you mean 'x'?" in told(lambda: ringload.jax.Batches(loader, x="X"))
assert "here it is called device=" in told(lambda: ringload.jax.Batches(loader, sharding=None), TypeError)
batches = ringload.jax.Batches(loader, x="x", y="y")
assert repr(batches).startswith("<ringload.jax.Batches on ") and repr(batches).endswith(f" of {loader!r}>")
for name in ("loader", "device", "x"):
    assert f"Batches.{name} cannot be set" in told(lambda: setattr(batches, name, None), AttributeError)
assert [x.shape for x, y in batches] == [(4, 4), (4, 4)]
print("done")
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(OF_TORCH, id="torch", marks=pytest.mark.needs("torch")),
        pytest.param(OF_KERAS, id="keras", marks=pytest.mark.needs("tensorflow")),
        pytest.param(OF_JAX, id="jax", marks=pytest.mark.needs("jax")),
    ],
)
def test_what_belongs_to_a_framework_is_told_what_takes_it(code: str) -> None:
    done = run(code, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"


# -- arguments --------------------------------------------------------------------------------------------------------

LOADERS = {
    "num_workers": "here it is called workers=",
    "dataset": "here it is called source=",
    "drop_last": "last='drop', the default",
    "prefetch_factor": "the ring is filled ahead, as far as ram_budget= allows",
    "pin_memory": "ringload.torch.Batches(loader, 'cuda')",
    "persistent_workers": "workers stay from epoch to epoch",
    "sampler": "image_frame.subset(indices) with shuffle=False",
    "collate_fn": "ringload.torch.DataLoader takes one",
    "worker_init_fn": "worker_setup=, a function without arguments, does that",
    "timeout": "stall_timeout= is for the next batch",
    "target_size": "it is for ringload.ImageFrame and ImageFolder, where it is called size=",
    "size": "it is an argument of ringload.ImageFrame and ImageFolder",
    "batchsize": "did you mean 'batch_size'?",
    "nix": "it has source, batch_size, workers,",
}
IMAGES = {
    "target_size": "here it is called size=",
    "class_mode": "here it is called label_mode=",
    "color_mode": "here it is called color=",
    "directory": "here it is called root=",
    "horizontal_flip": "here it is called flip=",
    "preprocessing_function": "here it is called transform=",
    "rescale": "dtype='float32', scale=(0, 1)",
    "validation_split": "source.split(0.2) gives the parts",
    "rotation_range": "transform=, a function",
    "std": "normalise in the model",
    "num_workers": "it is for ringload.Loader, where it is called workers=",
    "batch_size": "it is an argument of ringload.Loader",
    "colour": "did you mean 'color'?",
}
FRAMES = {"x_col": "here it is called path=", "y_col": "here it is called label=", "dataframe": "here it is called df="}
FOLDERS = {
    "x_col": "it is for ringload.ImageFrame, where it is called path=",
    "y_col": "it is for ringload.ImageFrame, where it is called label=",
    "path": "it is an argument of ringload.ImageFrame",
    "label": "it is an argument of ringload.ImageFrame",
    "follow_symlinks": "did you mean 'follow_links'?",
}
SHARDS = {
    "x_col": "it is for ringload.ImageFrame, where it is called path=",
    "y_col": "here it is called label=",
    "path": "it is an argument of ringload.ImageFrame",
    "directory": "it is for ringload.ImageFrame, where it is called root=",
    "label_columns": "did you mean",
}
GENERATORS = {
    **IMAGES,
    **FRAMES,
    "target_size": "",
    "batch_size": "",
    "size": "here it is called target_size=",
    "num_workers": "here it is called workers=",
    "drop_last": "last='drop', the default",
}
CALLS: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
    "Loader": (lambda **options: Loader(Arrays(x=X), 4, **options), LOADERS),
    "ImageFrame": (lambda **options: ImageFrame(TABLE, size=SIZE, **options), {**IMAGES, **FRAMES, "target_size": ""}),
    "ImageFolder": (lambda **options: ImageFolder("nowhere", size=SIZE, **options), {**IMAGES, **FOLDERS}),
    "TarShards": (lambda **options: TarShards("nowhere.tar", size=SIZE, **options), {**IMAGES, **SHARDS}),
    "generator_from_df": (lambda **options: ringload.generator_from_df(TABLE, 4, SIZE, **options), GENERATORS),
}


@pytest.mark.parametrize(
    ("call", "name", "said"), [(c, n, s) for c, (_, names) in CALLS.items() for n, s in names.items() if s]
)
def test_arguments_of_other_libraries_are_told_what_they_are_here(call: str, name: str, said: str) -> None:
    message = told(TypeError, lambda: CALLS[call][0](**{name: 1}))
    assert message.startswith(f"{call}() has no argument {name!r}: ")
    assert said in message


def test_size_is_missed_where_another_library_s_word_is_given() -> None:
    make: Any = ImageFrame
    assert "here it is called size=" in told(TypeError, lambda: make(TABLE, target_size=SIZE))


def test_signatures_are_those_of_the_constructors() -> None:
    assert (*inspect.signature(Loader).parameters,) == terms.OWN_OF_LOADER
    assert {*inspect.signature(ImageFrame).parameters, "follow_links"} == {*terms.OWN_OF_IMAGES}
    assert "options" in inspect.signature(ImageFolder).parameters


@pytest.mark.parametrize("table", ["LOADER", "IMAGES", "TORCH_DATALOADER"])
def test_what_words_are_here_exists(table: str) -> None:
    own = {"LOADER": terms.OWN_OF_LOADER, "IMAGES": terms.OWN_OF_IMAGES}.get(table)
    for name, said in getattr(terms, table).items():
        assert own is None or name not in own, f"{name} is an argument already"
        assert own is None or not said.isidentifier() or said in own, said


@quiet
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"interpolation": "bilinear"}, "what others call 'bilinear' is 'antialias'"),
        ({"interpolation": ["area"]}, r"interpolation is 'auto', .* or 'lanczos', not \['area'\]"),
        ({"color": "grayscale"}, "color is 'rgb', 'gray' or 'rgba', not 'grayscale'; what others call 'grayscale' is 'gray'"),
        ({"color": ["rgb"]}, r"color is 'rgb', 'gray' or 'rgba', not \['rgb'\]"),
        ({"dtype": "float16"}, r"'uint8' \(make it float16 on the device\)"),
        ({"dtype": np.float32}, "dtype is 'uint8', 'uint16' or 'float32', not <class 'numpy.float32'>"),
        ({"resize": "pad"}, r"resize is 'stretch', 'crop' or 'random_crop', not 'pad'$"),
        ({"truncated": True}, "truncated is 'refuse' or 'pad', not True"),
        ({"label": "multi", "label_mode": "sparse"}, "what others call 'sparse' is 'int'"),
        ({"label": "multy"}, r"no column 'multy'; it has \['path', 'multi'\]; did you mean 'multi'\?"),
        ({"scale": ((0.4, 0.5, 0.4), (0.2, 0.2, 0.2)), "dtype": "float32"}, r"scale is \(low, high\).*normalise in the model"),
        ({"scale": (0, 1, 2), "dtype": "float32"}, r"scale is \(low, high\)"),
        ({"scale": (1, 1), "dtype": "float32"}, r"scale is \(low, high\)"),
        ({"scale": (0, float("inf")), "dtype": "float32"}, r"scale is \(low, high\)"),
        ({"scale": 255, "dtype": "float32"}, r"scale is \(low, high\).*not 255"),
        ({"scale": (0, 1)}, r"scale=\(0, 1\) needs dtype='float32': dtype='uint8' keeps"),
    ],
)
def test_values_of_other_libraries(options: dict[str, Any], said: str) -> None:
    assert re.search(said, told(ConfigError, lambda: ImageFrame(TABLE, size=SIZE, **options)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on_error": "ignore"}, "on_error is 'raise', 'skip' or 'replace', not 'ignore'; what others call 'ignore' is 'skip'"),
        ({"on_error": None}, "on_error is 'raise', 'skip' or 'replace', not None"),
        ({"last": True}, "last is 'drop', 'keep' or 'pad', not True"),
        ({"last": ["keep"]}, r"last is 'drop', 'keep' or 'pad', not \['keep'\]"),
        ({"start_method": "thread"}, "start_method is 'forkserver', 'spawn' or 'fork', not 'thread'"),
        ({"seed": "x" * 10**6}, "seed is an integer"),
        ({"shard": "x" * 10**6}, "shard is"),
        ({"worker_setup": "x" * 10**6}, "worker_setup is a function"),
        ({"workers": "x" * 10**6}, "workers is"),
        ({"max_bad": [1] * 10**6}, "max_bad is"),
        ({"stall_timeout": "x" * 10**6}, "stall_timeout is"),
        ({"ram_budget": "x" * 10**6}, "ram_budget is"),
    ],
)
def test_values_that_cannot_be_are_shown_and_bounded(options: dict[str, Any], said: str) -> None:
    assert re.search(said, told(ConfigError, lambda: Loader(Arrays(x=X), 4, **options)))


@pytest.mark.parametrize("amount", [64, "64", "64 ", 1, "1", 9999])
def test_a_budget_of_a_few_bytes_was_meant_otherwise(amount: Any) -> None:
    number = str(amount).strip()
    message = told(ConfigError, lambda: Loader(Arrays(x=X), 4, ram_budget=amount))
    assert f'ram_budget={amount!r} is {number} bytes: did you mean "{number}GB"' in message
    assert ("1.0 for all that is usable" in message) == (number == "1")


# -- batches ----------------------------------------------------------------------------------------------------------


def unpack_in_for(batches: Any) -> None:
    for x, y in batches:
        _ = x, y


def unpack_enumerated(batches: Any) -> None:
    for _, (x, y) in enumerate(batches):
        _ = x, y


def unpack_one(batches: Any) -> None:
    (x, *y) = next(iter(batches))
    _ = x, y


@pytest.mark.parametrize("unpack", [unpack_in_for, unpack_enumerated, unpack_one, lambda batches: [x for x, _ in batches]])
def test_a_batch_is_not_unpacked_into_the_names_of_its_fields(loader: Loader, unpack: Callable[[Any], None]) -> None:
    message = told(TypeError, lambda: unpack(loader))
    for said in (
        "['image', 'label']",
        "batch['image'] and batch['label']",
        "fields=('image', 'label')",
        "ringload.keras.dataset",
    ):
        assert said in message


def test_a_batch_is_a_mapping_all_the_same(loader: Loader) -> None:
    batch = next(iter(loader))
    names = ["image", "label"]
    assert list(batch) == [*batch] == sorted(batch) == list(batch.keys()) == [name for name in batch] == names  # noqa: C416
    for same in (dict(batch), {**batch}, dict(batch.items()), (lambda **fields: fields)(**batch)):
        assert list(same) == names
        assert same["label"] is batch["label"]
    x, y = batch.values()
    assert x is batch["image"]
    assert y is batch["label"]
    first, second = batch.keys()
    assert (first, second) == ("image", "label")
    assert "image" in batch
    assert "img" not in batch
    assert batch.get("img") is None
    assert batch.get("image") is x


def test_fields_that_are_not_there_are_named(loader: Loader) -> None:
    batch = next(iter(loader))
    message = told(UnknownFieldError, lambda: batch["img"])
    assert message == "there is no field 'img'; the fields are ['image', 'label']; did you mean 'image'?"
    assert issubclass(UnknownFieldError, KeyError)
    assert issubclass(UnknownFieldError, RingloadError)
    assert "its field is batch['label']" in told(AttributeError, lambda: batch.label)
    assert "field" not in told(AttributeError, lambda: batch.nix).replace("'nix'", "")
    assert not hasattr(batch, "_nix")
    batch.release()
    assert not hasattr(batch, "label")


def test_what_is_written_into_a_batch(loader: Loader) -> None:
    batch = next(iter(loader))
    image = batch["image"]
    batch["image"] += 1
    assert batch["image"] is image
    assert (image == 1).all()
    message = told(TypeError, lambda: batch.__setitem__("image", image / 2))
    assert "batch['image'][...] = value" in message
    assert "batch.arrays" in message
    assert (batch["image"] == 1).all()
    assert "did you mean 'image'" in told(UnknownFieldError, lambda: batch.__setitem__("images", image))


def test_fields_that_a_function_does_not_have() -> None:
    def load(index: int, rng: Any, out: Any) -> None:
        out["img"][:] = index

    with Loader(load, 2, workers=0, fields=FIELDS, n_samples=4) as made:
        message = told(SampleError, lambda: next(iter(made)))
    assert "there is no field 'img'; the fields are ['image', 'label']; did you mean 'image'?" in message


def test_one_pass_at_a_time(loader: Loader) -> None:
    message = told(RingloadError, lambda: list(zip(loader, loader, strict=True)))
    assert "zip(loader, loader)" in message
    assert "make two loaders" in message


@pytest.mark.parametrize("kind", ["breakpoint", "pdb"])
def test_debuggers_in_workers_say_what_to_do(kind: str) -> None:
    def load(index: int, rng: Any, out: Any) -> None:
        if kind == "breakpoint":
            breakpoint()
        raise __import__("bdb").BdbQuit  # what pdb.set_trace() does at the end of its input

    with Loader(load, 2, workers=1, fields=FIELDS, n_samples=4) as made:
        message = told(SampleError, lambda: next(iter(made)))
    assert {"breakpoint": "breakpoint() in a worker", "pdb": "the debugger has ended"}[kind] in message
    assert "debug with workers=0" in message


# -- attributes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("batch_size", 4, "make a new one, Loader(..., batch_size=4)"),
        ("source", Arrays(x=X), "make a new one, Loader(..., source="),
        ("seed", 4, "Loader(..., seed=4)"),
        ("shuffle", False, "Loader(..., shuffle=False)"),
        ("workers", 2, "Loader(..., workers=2)"),
        ("order", [1, 2], "source.subset(indices) with shuffle=False"),
        ("fields", {}, "Loader(..., fields={})"),
        ("has_valid", True, "make a new one"),
        ("epoch", 3, "loader.set_epoch(epoch)"),
        ("position", 3, "loader.load_state_dict(state)"),
        ("stats", None, "make a new one"),
    ],
)
def test_what_a_loader_was_made_with_is_not_set_later(loader: Loader, name: str, value: Any, said: str) -> None:
    message = told(AttributeError, lambda: setattr(loader, name, value))
    assert f"Loader.{name} cannot be set" in message
    assert said in message


@quiet
@pytest.mark.parametrize("name", ["rows", "flip", "transform", "size", "labels", "fields", "n", "augmentation", "filenames"])
def test_what_a_frame_was_made_with_is_not_set_later(name: str) -> None:
    source = ImageFrame(TABLE, label="multi", size=SIZE)
    for one in (source, source.subset([0, 1]), source.split(0.5)[1]):
        assert f"ImageFrame.{name} cannot be set" in told(AttributeError, lambda one=one: setattr(one, name, None))
    assert "subset(indices)" in told(AttributeError, lambda: setattr(source, "rows", [1]))


@quiet
def test_attributes_of_one_s_own_can_be_set(loader: Loader) -> None:
    loader.note = 1
    loader.note = 2

    class Mine(ImageFrame):
        def __init__(self, df: pd.DataFrame, size: Any) -> None:
            super().__init__(df, size=size)
            self.size = size
            self.size = size

    class WithIndex(ImageFrame):
        def __init__(self) -> None:
            self.log: list[str] = []
            super().__init__(TABLE, label="multi", size=SIZE)
            self.fields = {**self.fields, "row": Field((), "int64")}
            self.log = ["made"]

        @property
        def labels(self) -> Any:
            return self._mine

        @labels.setter
        def labels(self, value: Any) -> None:
            self._mine = value

    one = WithIndex()
    one.labels = 3
    assert (list(one.fields), one.log, one.labels) == (["image", "label", "row"], ["made"], 3)
    assert Mine(TABLE, SIZE).size == SIZE
    assert "ImageFrame.rows cannot be set" in told(AttributeError, lambda: setattr(Mine(TABLE, SIZE), "rows", []))


# -- reprs ------------------------------------------------------------------------------------------------------------


@quiet
def test_reprs_are_short_and_tell_what_one_looks_for(loader: Loader) -> None:
    assert repr(loader) == (
        "<Loader of <Arrays of 8 samples: image (4,) float32, label () int64>: 2 batches of 4 an epoch, 0 workers, 64 slots; "
        "next: batch 0 of epoch 0>"
    )
    next(iter(loader))
    assert "next: batch 1 of epoch 0" in repr(loader)
    loader.close()
    assert "batch 1" in repr(loader)
    frame = ImageFrame(TABLE, label="multi", size=SIZE, flip=True, resize="random_crop")
    assert repr(frame) == (
        "<ImageFrame of 4 samples: image (8, 8, 3) uint8, label () int64 of 2 classes; augmentation: flip=True, "
        "resize='random_crop'>"
    )
    assert repr(Arrays(x=np.zeros((5, 2)))) == "<Arrays of 5 samples: x (2,) float64>"
    assert repr(frame.without_augmentation()).endswith("2 classes; augmentation: none>")
    assert "transform=<function" in repr(ImageFrame(TABLE, size=SIZE, transform=lambda image, rng: image))


def load(index: int, rng: Any, out: Any) -> None:
    out["image"], out["label"] = X[index], index


def test_the_repr_of_a_function_and_of_a_source_of_one_s_own() -> None:
    class Mine:
        fields = FIELDS
        load = staticmethod(load)

        def __len__(self) -> int:
            return 1_000_000

    class Named(Mine):
        def __repr__(self) -> str:
            return "Named" * 1000

    with Loader(load, 2, workers=0, fields=FIELDS, n_samples=4) as made:
        assert "<Loader of <function load of 4 samples: image (4,) float32, label () int64>: 2 batches of 2" in repr(made)
    with Loader(Mine(), 2, workers=0) as made:
        assert "<Loader of <Mine of 1,000,000 samples: image (4,) float32, label () int64>: 500,000 batches" in repr(made)
    with Loader(Named(), 2, workers=0) as made:
        assert len(repr(made)) < 400


def test_a_half_made_object_has_a_repr() -> None:
    for kind in (Loader, ImageFrame):
        assert "object at" in repr(object.__new__(kind))


def test_a_plan_is_shown_as_a_table(loader: Loader) -> None:
    plan = loader.plan()
    lines = repr(plan).splitlines()
    assert [line.split("  ")[1] for line in lines[1:]] == ["ring", "index", "control", "page tables", "total"]
    assert sum(n_bytes for _, n_bytes, _ in plan.rows()) == plan.total_bytes
    assert human(plan.total_bytes) in lines[-1]
    with Loader(Arrays(x=X), 4, workers=1, ram_budget="200MB") as made:
        assert sum(n_bytes for _, n_bytes, _ in made.plan().rows()) == made.plan().total_bytes


# -- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no://bucket/1.jpg", "no storage is registered for no://"),
        (r"C:\data\1.jpg", "a path of Windows, and this is Linux"),
        ("D:/data/1.jpg", "a path of Windows"),
    ],
)
def test_paths_of_other_places(path: str, said: str) -> None:
    assert said in told(ConfigError, lambda: ImageFrame(pd.DataFrame({"path": [path]}), size=SIZE))
    for make in (
        lambda: ImageFolder(path.rpartition("/")[0] or path, size=SIZE),
        lambda: ImageFrame(TABLE, size=SIZE, root=path),
    ):
        assert said in told(ConfigError, make)


def test_a_wrong_root_is_told_when_the_source_is_made_and_as_text() -> None:
    with pytest.warns(UserWarning, match=r"none of the first 4 files of column 'path' exists: .*'/nowhere/0\.jpg'; relative"):
        source = ImageFrame(TABLE, size=SIZE, root="/nowhere")
    with Loader(source, 2, workers=0, shuffle=False) as made:
        message = told(SampleError, lambda: next(iter(made)))
    assert "/nowhere/0.jpg" in message
    assert "b'" not in message


def test_homes_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "0.jpg").touch()
    source = ImageFrame(pd.DataFrame({"path": ["~/0.jpg"]}), size=SIZE)
    assert source.filepaths == [str(tmp_path / "0.jpg")]
    assert ImageFrame(TABLE.iloc[:1], size=SIZE, root="~").filepaths == [str(tmp_path / "0.jpg")]
