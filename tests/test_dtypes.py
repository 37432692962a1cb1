"""Every dtype through every adapter: as it is, narrowed as JAX says, or refused when the adapter is made."""

from __future__ import annotations

import importlib.util
import json
import os

import numpy as np
import pytest

from ringload import ConfigError, Field
from ringload.fields import write_exactly
from tests.helpers import run

ml_dtypes = pytest.importorskip("ml_dtypes")

FRAMEWORKS = ("jax", "torch", "tf", "keras on jax", "keras on torch", "keras on tensorflow")
NARROWED = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}  # by JAX without x64
PLAIN = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
OTHERS = {  # dtype -> those that have it; everybody else refuses it
    "bfloat16": FRAMEWORKS,
    "float8_e4m3fn": FRAMEWORKS,
    "float8_e5m2": ("jax", "torch", "keras on jax", "keras on torch"),  # TensorFlow has its name, tf.data fails
    "float8_e8m0fnu": ("jax", "torch"),
    "int4": ("jax", "tf"),
    "uint4": ("jax", "tf"),
    ">f4": ("tf", "keras on tensorflow"),
    ">i2": ("tf", "keras on tensorflow"),
    "S3": ("tf",),
    "U3": ("tf",),
    "longdouble": (),
    "datetime64[s]": (),
    "timedelta64[s]": (),
    "i4,f4": (),
    "V4": (),
}
AS = {">f4": "float32", ">i2": "int16", "S3": "string", "U3": "string"}  # what TensorFlow makes of them

CHILD = """
import json, sys
import ml_dtypes, numpy as np
import ringload
framework, dtypes = sys.argv[1], json.loads(sys.argv[2])
if framework == "jax":
    import ringload.jax
    def batches(made, fields): return (x for (x,) in ringload.jax.Batches(made, None, fields))
    check = lambda made, field: ringload.jax.Batches(made, None, field)
elif framework == "torch":
    import ringload.torch
    def batches(made, fields): return ringload.torch.Batches(made, None, {name: name for name in fields})
    check = batches
elif framework == "tf":
    import ringload.tf
    def batches(made, fields): return (x for (x,) in ringload.tf.as_dataset(made, fields))
    check = ringload.tf.as_dataset
else:
    import keras, ringload.keras
    assert framework.endswith(keras.backend.backend())
    def batches(made, fields):
        class Model(keras.Model):
            def note(self, x): self.seen.append({name: host(x[name]) for name in x}); return {"loss": 0.0}
            def call(self, x): return x
        class Eager(Model):
            def train_step(self, data, more=None): return self.note(data[0]) if more is None else (self.note(more[0]), data)
        model = Eager()
        model.seen = []
        model.compile(run_eagerly=True)
        model.fit(ringload.keras.dataset(made, fields, None), verbose=0)
        return model.seen
    check = lambda made, field: ringload.keras.dataset(made, field, None)

def values(dtype):
    # those at the ends of what each dtype has, or that each has exactly
    if dtype.kind in "SU": return np.array(["abc", "", "a", "x"]).astype(dtype)
    name = {"int64": "int32", "uint64": "uint32"}.get(dtype.name, dtype.name) if "jax" in framework else dtype.name
    if name.lstrip("u").startswith("int"):
        limits = ml_dtypes.iinfo(getattr(ml_dtypes, name, name))
        return np.array([limits.min, 0, 1, limits.max], dtype)
    are_numbers = dtype.kind in "bfc" or dtype.type.__module__ == "ml_dtypes"
    return np.array([0.5, 1, 2, 4]).astype(dtype) if are_numbers else np.zeros(4, dtype)

def host(given):
    # (the framework's name of the dtype, the values as NumPy has them)
    name = getattr(given.dtype, "name", str(given.dtype).removeprefix("torch."))
    if hasattr(given, "untyped_storage") and hasattr(ml_dtypes, name):
        torch = sys.modules["torch"]
        return name, given.view({1: torch.uint8, 2: torch.int16}[given.itemsize]).numpy().view(getattr(ml_dtypes, name)).copy()
    return name, np.array(given)

truths = {f"f{number}": values(ringload.Field((), name).dtype) for number, name in enumerate(dtypes)}
found, taken = {}, []
source = ringload.Arrays(**{name: np.tile(truth, 3) for name, truth in truths.items()})
with ringload.Loader(source, 4, workers=1, shuffle=False) as made:
    for field, name in zip(truths, dtypes):
        try: check(made, [field])
        except ringload.ConfigError as error:
            assert "has no dtype" in str(error) and f"the dtype of field {field!r}" in str(error), error
            found[name] = None
        else: taken.append(field)
    every = list(batches(made, taken))
    assert len(every) == 3
    for batch in every:
        for field in taken:
            found[dtypes[int(field[1:])]], given = batch[field] if isinstance(batch[field], tuple) else host(batch[field])
            truth = np.char.encode(truths[field]) if truths[field].dtype.kind == "U" else truths[field]
            assert given.tolist() == truth.tolist(), (field, given, truth)
print(json.dumps(found))
"""


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_dtype(framework: str) -> None:
    module = framework.removeprefix("keras on ").replace("tensorflow", "tf").replace("tf", "tensorflow")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    environment = {**os.environ, "KERAS_BACKEND": module, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    dtypes = [*PLAIN, *OTHERS]
    done = run(CHILD, framework, json.dumps(dtypes), timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    wanted: dict[str, str | None] = {name: NARROWED.get(name, name) if "jax" in framework else name for name in PLAIN}
    wanted |= {name: AS.get(name, name) if framework in those else None for name, those in OTHERS.items()}
    if framework == "keras on torch":
        wanted["uint64"] = None  # Keras has no such dtype there
    assert json.loads(done.stdout) == wanted


LARGE = """
import numpy as np
import keras, ringload, ringload.keras
class Model(keras.Model):
    def call(self, x): return x
large = np.arange(8, dtype="int64") << 33
with ringload.Loader(ringload.Arrays(x=large, y=large), 4, workers=0) as made:
    data = ringload.keras.dataset(made, "x", "y")
    model = Model()
    model.compile(loss="mse")
    try: model.fit(data, verbose=0)
    except ringload.ConfigError as error: print(error)
"""


def test_keras_on_jax_wraps_no_integers() -> None:
    pytest.importorskip("keras")
    done = run(LARGE, env={**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.stdout.startswith("field 'x' is int64 and holds"), done.stderr


def test_names_of_dtypes_are_known_before_ml_dtypes_is_imported() -> None:
    done = run("import sys, ringload; assert 'ml_dtypes' not in sys.modules; print(ringload.Field(3, 'bfloat16').dtype)")
    assert (done.stdout, done.stderr) == ("bfloat16\n", "")
    for name in ("bfloat17", "float8_e9", "int3"):
        with pytest.raises(ConfigError, match=f"{name}' not understood"):
            Field((), name)


def test_what_a_function_may_write_into_a_field_of_ml_dtypes() -> None:
    """Floats lose precision alone, as in other fields of them; integers lose nothing."""
    half, small = np.zeros(3, ml_dtypes.bfloat16), np.zeros((), ml_dtypes.int4)
    for value in (np.float32([1, 2.5, -3]), [1.0, 2.5, -3.0], np.array([1, 2.5, -3], ml_dtypes.bfloat16)):
        half[...] = 0
        write_exactly(half, value, "x")
        assert half.tolist() == [1, 2.5, -3]
    write_exactly(half[:1].reshape(()), 1.5, "x")
    for number in (-8, 7):
        write_exactly(small, number, "x")
        assert small == number
    for bad in (-9, 8, 1.5, np.int64(1)):
        with pytest.raises(ValueError, match=r"field 'x' takes \(\) int4, got"):
            write_exactly(small, bad, "x")
    with pytest.raises(ValueError, match=r"takes \(3,\) int32, got \(3,\) bfloat16"):
        write_exactly(np.zeros(3, "i4"), half, "x")
