"""tf.data, for real, in interpreters of their own."""

from __future__ import annotations

import pytest

from tests.conftest import Times
from tests.helpers import run

pytestmark = [
    pytest.mark.needs("tensorflow"),
    pytest.mark.timeout(300),  # of a machine that does much else: importing TensorFlow took 30 s there
]

BEGIN = """
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import numpy as np
import tensorflow as tf
import ringload, ringload.tf
from tests.helpers import Truth, TruthRows, order_of, truths
def loader(n=60, batch_size=5, **options):
    return ringload.Loader(Truth(n), batch_size, **{"workers": 0, "ram_budget": "200MB", **options})
def verified(images, labels, draws):
    labels = labels.numpy()
    np.testing.assert_array_equal(np.asarray(memoryview(images)), truths(labels, draws.numpy()))
    return labels.tolist()
def one_pass(data, at_step=lambda number: None):
    seen = []
    for number, b in enumerate(data):
        labels, draws = b["label"].numpy(), b["draw"].numpy()  # copies, so that a batch in its place is no truth
        at_step(number)
        np.testing.assert_array_equal(np.asarray(memoryview(b["image"])), truths(labels, draws))
        np.testing.assert_array_equal(b["label"].numpy(), labels)
        seen += labels.tolist()
    return seen
def message(wanted, call):
    try: call()
    except Exception as error: assert wanted in str(error), f"{type(error).__name__}: {error}"
    else: raise AssertionError(f"no error, and not {wanted!r}")
"""


def child(code: str, *arguments: object) -> None:
    done = run(BEGIN + code + "print('done')\n", *arguments, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_passes_signatures_errors_and_distribution() -> None:
    child("""
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
# exact signatures; the batch axis is None where the last batch is shorter
for last, n_rows, n in (("drop", 5, 60), ("keep", None, 63), ("pad", 5, 63)):
    with loader(n, last=last) as made:
        data = ringload.tf.as_dataset(made)
        assert data.element_spec["image"] == tf.TensorSpec((n_rows, 8, 6, 3), tf.uint8), data.element_spec
        assert data.element_spec["label"] == tf.TensorSpec((n_rows,), tf.int64)
        assert int(data.cardinality()) == len(made)
        assert ("valid" in data.element_spec) == (last == "pad")
        for epoch in range(2):
            if last == "pad":
                seen = [int(i) for b in data for i in b["label"][b["valid"]]]
                assert seen == [i for i in order_of(made, epoch) if i >= 0]
            else:
                assert one_pass(data) == order_of(made, epoch)
        x, y, *weight = next(iter(ringload.tf.as_dataset(made, "image", ["label", "draw"])))
        assert x.shape == (5, 8, 6, 3) and set(y) == {"label", "draw"} and len(weight) == (last == "pad")

# a pass that is left, and one that goes on where the loader was sent
with loader() as made:
    data = ringload.tf.as_dataset(made)
    for number, _ in enumerate(data):
        if number == 3: break
    assert one_pass(data) == order_of(made, 1)
    assert len(list(data.take(2))) == 2
    assert one_pass(data.prefetch(2)) == order_of(made, 3)
    made.load_state_dict(made.state_dict() | {"epoch": 7, "position": 5})
    message("make the dataset anew", lambda: list(data))
    data = ringload.tf.as_dataset(made)
    assert one_pass(data) == order_of(made, 7)[25:]
    assert one_pass(data) == order_of(made, 8)

# saved by the step's own count, as tf.data is ahead of it
with loader() as made:
    for n, b in enumerate(ringload.tf.as_dataset(made, prefetch=2), 1):
        while made.position < n + 2: time.sleep(0.001)
        if n == 3: break
    made.load_state_dict(made.state_dict() | {"epoch": 0, "position": n})
    assert one_pass(ringload.tf.as_dataset(made)) == order_of(made, 0)[15:]

# errors come with their words
class Bad(Truth):
    def load(self, index, rng, out):
        if index == 7: raise OSError("no such thing as seven")
        super().load(index, rng, out)
    def describe(self, index): return f"seven.jpg of {index}"
with ringload.Loader(Bad(60), 5, workers=0, ram_budget="200MB") as made:
    said = "SampleError: sample 7 (seven.jpg of 7): OSError: no such thing as seven"
    message(said, lambda: list(ringload.tf.as_dataset(made)))
    message("no field 'pixels'", lambda: ringload.tf.as_dataset(made, "pixels"))
    message("need x", lambda: ringload.tf.as_dataset(made, y="label"))
    message("prefetch", lambda: ringload.tf.as_dataset(made, prefetch=-1))
    data = iter(ringload.tf.as_dataset(made, prefetch=0))
    next(data)
    made.close()
    message("LoaderClosedError: the loader is closed", lambda: next(data))
words = ringload.Arrays(word=np.array([b"one", b"three"] * 4, "S5"), when=np.zeros(8, "datetime64[s]"))
with ringload.Loader(words, 2, workers=0, shuffle=False) as made:
    message("TensorFlow has no dtype datetime64[s], the dtype of field 'when'", lambda: ringload.tf.as_dataset(made))
    for (batch,) in ringload.tf.as_dataset(made, "word"):
        assert batch.numpy().tolist() == [b"one", b"three"]

# no more is read ahead than was asked for
for prefetch in (0, 1, 3):
    with loader(200) as made:
        data = iter(ringload.tf.as_dataset(made, prefetch=prefetch))
        for number in range(1, 20):
            next(data)
            while made.position < number + prefetch: time.sleep(0.001)  # it does read so far
            assert made.position <= number + prefetch + 1, (made.position, number, prefetch)

# in fit, each epoch is the loader's next
import keras
class Noting(keras.Model):
    def train_step(self, data):
        tf.py_function(lambda x, y, draw: seen.extend(verified(x, y, draw)), [data[0], data[1]["label"], data[1]["draw"]], [])
        return {"loss": 0.0}
    def call(self, x): return x
with loader() as made:
    seen, m = [], Noting()
    m.compile()
    m.fit(ringload.tf.as_dataset(made, "image", ["label", "draw"]), epochs=2, shuffle=False, verbose=0)
    assert seen == order_of(made, 0) + order_of(made, 1)

# Under tf.distribute
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
def local(values): return [index for value in strategy.experimental_local_results(values) for index in value.numpy().tolist()]
for last in ("drop", "keep"):
    with loader(64 if last == "drop" else 61, 8, last=last) as made:
        data = strategy.experimental_distribute_dataset(ringload.tf.as_dataset(made))
        for epoch in range(2):
            seen = []
            for batch in data:
                halves = [strategy.experimental_local_results(batch[name]) for name in ("image", "label", "draw")]
                assert len(halves[0]) == 2
                seen += [index for half in zip(*halves) for index in verified(*half)]
            assert seen == order_of(made, epoch)

# in a step on each replica, with eager workers and no more slots than there must be: batches divided, or one for each
import ringload.ring.plan as memory
def note(images, labels, draws):
    draws = draws.numpy().copy()
    time.sleep(0.001)  # a step's work, while workers run ahead
    seen.extend(verified(images, labels, tf.constant(draws)))
@tf.function
def step(b): tf.py_function(note, [b["image"], b["label"], b["draw"]], [])
for is_divided in (True, False):
    memory.AUTO_SLOTS = 3 if is_divided else 4
    with ringload.Loader(TruthRows(400), 8, workers=2, stall_timeout=30) as made:
        assert made.plan().n_slots == memory.AUTO_SLOTS
        data = ringload.tf.as_dataset(made)
        if is_divided: data = strategy.experimental_distribute_dataset(data)
        else: data = strategy.distribute_datasets_from_function(lambda context, data=data: data)
        seen = []
        for number, b in enumerate(data):
            strategy.run(step, args=(b,))
        assert number + 1 == (50 if is_divided else 25) and sorted(seen) == list(range(400)), (is_divided, number, len(seen))
memory.AUTO_SLOTS = 64

# Keras under a strategy builds a model in a sham epoch, which reads ahead: nothing of it is lost
import ringload.keras
with strategy.scope():
    class Noting(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = keras.layers.Dense(1)
        def train_step(self, data):
            note = lambda x, y, draw: seen.extend(verified(x, y, draw))
            tf.py_function(note, [data[0], data[1]["label"], data[1]["draw"]], [])
            return {"loss": 0.0}
        def call(self, x): return self.out(keras.ops.reshape(keras.ops.cast(x, "float32"), (-1, 144)))
    for how in ("keras", "tf"):
        with loader(128, 8) as made:
            seen, m = [], Noting()
            m.compile(optimizer="sgd")
            if how == "keras": m.fit(ringload.keras.dataset(made, y=["label", "draw"]), epochs=2, verbose=0)
            else: m.fit(ringload.tf.as_dataset(made, "image", ["label", "draw"]), epochs=2, shuffle=False, verbose=0)
            for epoch in range(2):
                assert sorted(seen[128 * epoch : 128 * (epoch + 1)]) == list(range(128)), (how, len(seen), seen)
            assert (made.epoch, made.position) == (2 if how == "keras" else made.epoch, 0)
""")


def test_a_loader_that_nobody_has_is_closed_and_not_before() -> None:
    child("""
import gc, weakref, psutil
import keras
refs = []
def data():
    made = loader(workers=int(not refs))
    refs.append(weakref.ref(made))
    return ringload.tf.as_dataset(made, "image", "label")
@tf.function(autograph=False)  # which would need the source, of a file
def counted(d): return d.reduce(np.int64(0), lambda n, *_: n + 1)
def left():
    iterator = iter(data())
    next(iterator)
    gc.collect()
    assert len(list(iterator)) == 11
def fit():
    net = keras.Sequential([keras.layers.Input((8, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    net.fit(data(), epochs=2, verbose=0)
def distributed():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    made = strategy.experimental_distribute_dataset(data())
    gc.collect()
    return [0 for _ in made]
ways = {
    "for": lambda: [0 for _ in data()],
    "a chain": lambda: [0 for _ in data().map(lambda x, y: x).unbatch().shuffle(10).batch(5).prefetch(2).repeat(3).take(24)],
    "left": left,
    "zip": lambda: [0 for _ in tf.data.Dataset.zip((data(), data()))],
    "sampled": lambda: [0 for _ in tf.data.Dataset.sample_from_datasets([data(), data()], [0.5, 0.5])],
    "flat_map": lambda: [0 for _ in (lambda d: tf.data.Dataset.range(2).flat_map(lambda i: d))(data())],
    "a function": lambda: int(counted(data())),
    "fit": fit,
    "distributed": distributed,
    "numpy": lambda: [0 for _ in data().as_numpy_iterator()],
}
numbers = {"a chain": 24, "sampled": 24, "flat_map": 24, "a function": 12}
for name, way in ways.items():
    refs.clear()
    n = way()
    n = len(n) if isinstance(n, list) else n
    assert n in (None, numbers.get(name, 12)), (name, n)
    assert refs
    gc.collect()
    for _ in range(50):
        if not any(ref() is not None for ref in refs): break
        time.sleep(0.01)
        gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs), name
list(tf.data.Dataset.from_generator(lambda: iter([1]), tf.int64))  # TensorFlow lets go of the last array at its next call
assert "memfd:ringload" not in open("/proc/self/maps").read()
assert all(one.name() == "ringload:templ" for one in psutil.Process().children())
""")


def test_tensors_look_into_the_ring_and_no_step_sees_another_batch(times: Times) -> None:
    code = """
import ringload.ring.plan as memory
n_steps = int(sys.argv[1])
memory.MIN_SLOTS = 2
for n_slots in (2, 3, 4, 8):
    memory.AUTO_SLOTS = n_slots
    with ringload.Loader(TruthRows(3 * n_steps // 2), 3, workers=2) as made:
        assert made.plan().n_slots == n_slots
        first, n_bytes = made._engine._state.leases._first, n_slots * made._engine._state.layout.slot_bytes
        for epoch in range(2):
            seen = one_pass(ringload.tf.as_dataset(made), lambda number: time.sleep(0.001) if number % 2 else None)
            assert seen == order_of(made, epoch)
        for b in ringload.tf.as_dataset(made).take(n_slots):
            for tensor in b.values():
                assert first <= np.asarray(memoryview(tensor)).ctypes.data < first + n_bytes
        del b, tensor

# The same is found to be wrong if leases end too soon.
from ringload.bridge.field_roles import FieldRoles
right = FieldRoles.of
def release_at_once(self, batch):
    end, batch._end = batch._end, None
    batch._release()(end)
    return right(self, batch)
FieldRoles.of = release_at_once
memory.AUTO_SLOTS = 3
def until_all_are_full(number):
    while made.poll().n_full < 3: time.sleep(0.001)
with ringload.Loader(TruthRows(300), 3, workers=2) as made:
    def ordered(): np.testing.assert_array_equal(one_pass(ringload.tf.as_dataset(made), until_all_are_full), order_of(made, 0))
    message("Arrays are not equal", ordered)  # within a step, or, where the next batch is there before it, in the order
"""
    child(code, times(500, 5000))
