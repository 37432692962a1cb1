"""Keras, for real, on each backend in an interpreter of its own: which samples reach the step, and whose bytes they are."""

from __future__ import annotations

import os

import pytest

from tests.conftest import Times
from tests.helpers import run

pytestmark = pytest.mark.timeout(300)  # of a machine that does much else: importing TensorFlow took 30 s there

BACKENDS = [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("tensorflow", "torch", "jax")]
BEGIN = "from tests.keras_child import *\nimport itertools, warnings\n"


def child(backend: str, code: str, *arguments: object) -> str:
    done = run(BEGIN + code, *arguments, timeout=280, env={**os.environ, "KERAS_BACKEND": backend})
    assert done.returncode == 0, done.stderr
    return done.stdout


PASSES = """
for shuffle, built in itertools.product((True, False), repeat=2):
    with loader(workers=int(shuffle and built)) as made:
        m, data = Recorder(built), dataset(made)
        m.fit(data, epochs=2, shuffle=shuffle, verbose=0)
        are_epochs(made, m.take(), 0, 2)
        m.fit(data, epochs=2, steps_per_epoch=4, shuffle=shuffle, verbose=0)  # ends within a pass
        are_epochs(made, m.take() + order_of(made, 2)[40:], 2, 1)
        m.fit(data, epochs=1, shuffle=shuffle, verbose=0)  # begins one
        are_epochs(made, m.take(), 3, 1)
        m.fit(data, epochs=6, steps_per_epoch=4, shuffle=shuffle, verbose=0)  # goes over two
        are_epochs(made, m.take(), 4, 2)
        m.evaluate(data, verbose=0)
        are_epochs(made, m.take(), 6, 1)
        assert not data._passes._held and not data._passes._may_be_dry_run

# passes follow each other, within an epoch too
with loader() as made, warnings.catch_warnings():
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "evaluate")  # said to fit(shuffle=False), too
    m, data = Recorder(), dataset(made, repeat=True)
    m.fit(data, epochs=2, steps_per_epoch=18, shuffle=False, verbose=0)
    are_epochs(made, m.take(), 0, 3)

# without that, an epoch is cut where a pass ends
with loader() as made, warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    m, begins = Recorder(), []
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begins.append(len(m.seen) // 5))
    m.fit(dataset(made), epochs=7, steps_per_epoch=5, callbacks=[note], verbose=0)
    are_epochs(made, m.seen[:120], 0, 2)
    assert m.seen[120:] == order_of(made, 2)[:25] and begins == [0, 5, 10, 12, 17, 22, 24], begins
    assert any("ran out of data" in str(one.message) for one in said)

# a fit that is stopped, or fails, within an epoch; its traceback is kept, and with it what tf.data reads ahead
with loader() as made:
    data, errors = dataset(made), []
    for n_before, how in enumerate(("stop", "fail", "fail")):
        def leave(model, n_steps):
            if n_steps == 3 and how == "fail": raise ArithmeticError("a step that fails")
            model.stop_training = n_steps == 3
        m = Recorder()
        m.at_step = leave
        try: m.fit(data, epochs=2, verbose=0)
        except Exception as error: errors.append(error)
        due = data._passes.next()[0]
        m = Recorder()
        m.fit(data, epochs=2, verbose=0)
        are_epochs(made, m.take(), due, 2)
    assert len(errors) == 2, errors

# a loader that was sent into the middle of an epoch
with loader() as made:
    data = dataset(made)
    for built in (True, False):
        made.load_state_dict(made.state_dict() | {"epoch": 7, "position": 5})
        m = Recorder(built)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Your input ran out of data")
            m.fit(data, epochs=3, verbose=0)
        are_epochs(made, order_of(made, 7)[:25] + m.take(), 7, 3)
    made.set_epoch(3)  # as fit(initial_epoch=3) needs it
    m.fit(data, epochs=5, initial_epoch=3, verbose=0)
    are_epochs(made, m.take(), 3, 2)

# by hand, a pass at a time; and a look at a batch loses none
with loader() as made:
    m, data = Recorder(), dataset(made)
    data[0], data[1], data[0]
    m.fit(data, verbose=0)
    are_epochs(made, m.take(), 0, 1)
    seen = [int(label) for x, y in data for label in np.asarray(y["label"])]
    are_epochs(made, seen, 1, 1)
    seen = [int(label) for number in range(len(data)) for label in np.asarray(data[number][1]["label"])]
    are_epochs(made, seen, 2, 1)

# train and validation out of one source, validated after each epoch; early stopping
class Split(Truth):
    def __init__(self, ahead, n): super().__init__(n); self.ahead = ahead
    def load(self, index, rng, out): super().load(index + self.ahead, rng, out)
with ringload.Loader(Split(0, 40), 5, workers=0, ram_budget="200MB") as train, \\
     ringload.Loader(Split(40, 20), 5, workers=0, ram_budget="200MB", shuffle=False, last="pad") as held:
    m, data, held_out = Recorder(), dataset(train), dataset(held)
    early = keras.callbacks.EarlyStopping("val_loss", patience=1)
    history = m.fit(data, validation_data=held_out, epochs=9, callbacks=[early], verbose=0).history
    assert len(history["loss"]) == 2, history  # as the loss never falls
    for seen in np.reshape(m.take(), (2, 60)).tolist():
        assert sorted(seen[:40]) == list(range(40)) and seen[40:] == list(range(40, 60))
    assert all((w == 1).all() for w in m.weights_seen) and len(m.weights_seen) == 8
    m.fit(data, validation_data=held_out, validation_steps=2, epochs=3, verbose=0)
    for seen in np.reshape(m.take(), (3, 50)).tolist():
        assert seen[40:] == list(range(40, 50)), seen

# one that is closed meanwhile
with loader() as made:
    m = Recorder()
    m.at_step = lambda model, n_steps: made.close() if n_steps == 3 else None
    try: m.fit(dataset(made), epochs=9, verbose=0)
    except Exception as error: assert "the loader is closed" in str(error) or "was closed while" in str(error), error
    else: raise AssertionError("a fit went on without its loader")

# what cannot be: workers of Keras' own
with loader() as made:
    data = dataset(made)
    data.max_queue_size = 3
    data.workers, data.use_multiprocessing = 0, False
    for name, value in (("workers", 2), ("use_multiprocessing", True)):
        try: setattr(data, name, value)
        except ringload.ConfigError as error: assert f"{name}={value}" in str(error) and "its own workers" in str(error)
        else: raise AssertionError(name)
    m = Recorder()
    m.fit(data, verbose=0)
    are_epochs(made, m.take(), 0, 1)
print("done")
"""


VALUES = """
rng = np.random.default_rng(0)
x = rng.normal(size=(200, 3)).astype("float32")
y = (x @ np.float32([1, -2, 3]) + 1)[:, None]
weight = (np.arange(200) % 2).astype("float32")
line = lambda: keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])

# predict and evaluate, several times, also in part; batches left over before do not put them out of step
with ringload.Loader(ringload.Arrays(image=x, label=y), 24, workers=0, shuffle=False, last="keep") as made:
    net, data = line(), ringload.keras.dataset(made)
    net.compile("sgd", "mse")
    expected = x @ np.asarray(net.layers[-1].kernel) + np.asarray(net.layers[-1].bias)
    for steps in (None, 2, 1, None, 3):
        n = 24 * steps if steps else 200
        loss = net.evaluate(data, steps=steps, verbose=0)
        np.testing.assert_allclose(loss, np.mean((expected - y)[:n] ** 2), rtol=1e-4)
        np.testing.assert_allclose(net.predict(data, verbose=0), expected, rtol=1e-4, atol=1e-4)
        part = net.predict(ringload.keras.dataset(made, y=None), steps=2, verbose=0)
        np.testing.assert_allclose(part, expected[:48], rtol=1e-4, atol=1e-4)

# what has no weight has no say: the field `weight`, class weights, and rows that hold no sample
wrong = np.where(weight[:, None] == 0, 1000, y).astype("float32")
with ringload.Loader(ringload.Arrays(x=x, y=wrong, weight=weight), 20, workers=0) as made:
    net = line()
    net.compile(keras.optimizers.SGD(0.2), "mse")
    net.fit(ringload.keras.dataset(made, "x", "y"), epochs=12, verbose=0)
    np.testing.assert_allclose(np.ravel(net.layers[-1].kernel), [1, -2, 3], atol=2e-2)
    try: net.fit(ringload.keras.dataset(made, "x", "y"), class_weight={0: 1.0}, verbose=0)
    except ValueError as error: assert "class_weight" in str(error)
    else: raise AssertionError("weights twice")
kinds = (np.arange(40) % 2).astype("int32")
ones = np.ones((40, 1), "float32")
one = lambda: keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
with ringload.Loader(ringload.Arrays(x=ones, y=kinds), 8, workers=0) as made:
    net = one()
    net.compile(keras.optimizers.SGD(0.0), "mae", weighted_metrics=["mae"])
    history = net.fit(ringload.keras.dataset(made, "x", "y"), class_weight={0: 3.0, 1: 1.0}, verbose=0).history
    assert abs(history["mae"][0] - 0.75) < 1e-5, history  # (3 * 1 + 1 * 0) / 4

# 24 rows of which 21 hold samples, each 2 off: what the others, which are 0 off, count in
def load(index, rng, out):
    if index > 20: raise OSError("bad")
    out["x"][:], out["y"][:] = 1, -1
seventh = np.linspace(1, 2, 21, dtype="float32")
column = ((1,), "float32")
for source, options, whole in (
    (ringload.Arrays(x=ones[:21], y=ones[:21] - 2), {"last": "pad"}, 21),
    (ringload.Arrays(x=ones[:21], y=ones[:21] - 2, weight=seventh), {"last": "pad"}, seventh.sum()),
    (load, {"on_error": "skip", "fields": {"x": column, "y": column}, "n_samples": 24}, 21),
):
    with ringload.Loader(source, 8, workers=0, shuffle=False, max_bad=99, **options) as made:
        data, net = ringload.keras.dataset(made, "x", "y"), one()
        assert abs(sum(float(np.sum(np.asarray(w))) for _, _, w in data) - whole) < 1e-4
        net.compile(keras.optimizers.SGD(0.0), "mae", metrics=["mse"], weighted_metrics=["mae"])
        due = {"mae": 2, "mse": 4 * 21 / 24, "loss": 2 * whole / 24}  # Keras leaves them out of weighted_metrics= alone
        for found in (net.evaluate(data, verbose=0, return_dict=True), net.fit(data, verbose=0).history):
            assert found.keys() == due.keys() and all(abs(np.ravel(found[name])[0] - due[name]) < 1e-5 for name in due), found
        predicted = net.predict(ringload.keras.dataset(made, "x", None), verbose=0)
        assert np.ravel(predicted).tolist() == [1] * 21 + [0] * 3, predicted
        try: net.fit(data, class_weight={0: 1.0}, verbose=0)
        except ValueError as error: assert "cannot specify" in str(error), error
        else: raise AssertionError("weights twice")

# several inputs and several outputs, with a weight for all of them
a, b = keras.layers.Input((3,), name="a"), keras.layers.Input((1,), name="b")
both = keras.layers.Concatenate()([a, b])
outputs = {"p": keras.layers.Dense(1, name="p")(both), "q": keras.layers.Dense(2, name="q")(both)}
net = keras.Model({"a": a, "b": b}, outputs)
net.compile("sgd", {"p": "mse", "q": "mse"})
with ringload.Loader(ringload.Arrays(a=x, b=y, p=y, q=x[:, :2]), 30, last="pad", workers=0) as made:
    data = ringload.keras.dataset(made, ["a", "b"], ["p", "q"])
    losses = net.fit(data, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0], losses
    assert net.predict(data, verbose=0)["q"].shape == (210, 2)

# what cannot be
words = ringload.Arrays(x=x, word=np.full(200, b"word"))
with ringload.Loader(words, 20, workers=0) as made:
    for arguments, said in (
        (("pixels", "word"), "no field 'pixels'"),
        (("x", "word"), f"Keras on {keras.backend.backend()} has no dtype |S4, the dtype of field 'word'"),
        (("x", None, "x"), "needs y"),
        (("x", "x", "x"), "one number a sample"),
    ):
        try: ringload.keras.dataset(made, *arguments)
        except ringload.ConfigError as error: assert said in str(error), error
        else: raise AssertionError(said)
with loader(epochs=2) as made:
    data = dataset(made)
    try: Recorder().fit(data, epochs=3, verbose=0)
    except Exception as error: assert "all epochs of the loader are over" in str(error), error
    else: raise AssertionError("a third epoch of two")
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_reaches_the_step_and_what_becomes_of_it(backend: str) -> None:
    assert child(backend, VALUES + PASSES) == "done\n"


SAID = """
def said(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in found if "every sample" in str(one.message) and one.filename == "<string>"]

x, y = np.ones((66, 3), "float32"), np.ones((66, 1), "float32")
net = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
net.compile("sgd", "mse")
def made(**options): return ringload.Loader(ringload.Arrays(image=x, label=y), 8, **{"workers": 0, **options})
def data(**options): return ringload.keras.dataset(made(**options))
calls = {
    "evaluate": lambda given: (net.evaluate(given, verbose=0), net.evaluate(given, verbose=0)),
    "predict": lambda given: (net.predict(given, verbose=0), net.predict(given, steps=2, verbose=0)),
    "validation": lambda given: net.fit(data(), validation_data=given, epochs=2, verbose=0),
    "fit(shuffle=False)": lambda given: net.fit(given, shuffle=False, verbose=0),
}
SHUFFLES, LEAVES = "shuffles (shuffle=True)", "leaves 2 of 66 samples out of each pass (last='drop')"
for options, does in (
    ({}, f"{SHUFFLES} and {LEAVES}"),
    ({"shuffle": False}, LEAVES),
    ({"last": "keep"}, SHUFFLES),
    ({"last": "keep", "shard": (0, 2)}, SHUFFLES),
    ({"shuffle": False, "last": "keep"}, ""),
    ({"shuffle": False, "last": "pad"}, "adds 6 rows of zeros to each pass (last='pad')"),
):
    for name, call in calls.items():
        texts = said(lambda: call(data(**options)))
        assert len(texts) == bool(does), (options, name, texts)  # once for a dataset
        assert all(f"this loader {does}. Give them the dataset of another Loader" in text for text in texts), texts
    assert not said(lambda: net.fit(data(**options), verbose=0)), options
x, y = x[:64], y[:64]
assert not said(lambda: net.evaluate(data(shuffle=False), verbose=0))  # nothing is left over
"""


COLLECTED = """
import gc, weakref, psutil
def use(how):
    one = made(workers=1) if how == "fit" else made()
    given = ringload.keras.dataset(one)
    net = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    refs = [weakref.ref(one), weakref.ref(given), weakref.ref(net)]
    if how == "evaluate": net.evaluate(given, verbose=0)
    if how == "predict": net.predict(given, verbose=0)
    if how == "fit": net.fit(given, epochs=2, verbose=0)
    if how == "nobody but fit has it":
        del one
        net.fit(ringload.keras.dataset(made()), epochs=2, verbose=0)
    if how == "validated":
        held = made()
        refs.append(weakref.ref(held))
        net.fit(given, validation_data=ringload.keras.dataset(held), epochs=2, verbose=0)
    if how == "left": net.fit(given, epochs=2, steps_per_epoch=3, verbose=0)
    if how == "fails":
        def fail(*_, **logs): raise ArithmeticError("a step that fails")
        try: net.fit(given, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=fail)], verbose=0)
        except ArithmeticError: pass
        else: raise AssertionError("it did not fail")
    return refs
for how in ("fit", "evaluate", "predict", "validated", "left", "fails", "nobody but fit has it"):
    refs = use(how)
    gc.collect()
    for _ in range(50):  # TensorFlow's thread may be at the end of what it has read ahead
        if not any(ref() is not None for ref in refs): break
        time.sleep(0.01)
        gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs), how
assert "memfd:ringload" not in open("/proc/self/maps").read()
assert all(one.name() == "ringload:templ" for one in psutil.Process().children())
print("done", flush=True)
if BACKEND == "tensorflow": os._exit(0)  # a fit has raised
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_evaluates_is_told_what_is_left_out_and_a_loader_that_nobody_has_is_closed(backend: str) -> None:
    assert child(backend, "import os\n" + SAID + COLLECTED) == "done\n"


STRESS = """
import os, sys
import ringload.ring.plan as memory
from tests.helpers import TruthRows
n_steps = int(sys.argv[1])
# The array that a step is given lies in the slot.
with loader() as made:
    layout = made._engine._state.layout
    first, n_bytes = made._engine._state.leases._first, layout.n_slots * layout.slot_bytes
    def address(array):
        if BACKEND == "torch": return array.data_ptr()
        if BACKEND == "jax": return array.unsafe_buffer_pointer()
        return np.asarray(memoryview(array)).ctypes.data
    found = []
    def look(data):
        found.append(first <= address(data[0]) < first + n_bytes)
        return Recorder.note(m, data)
    m = Recorder()
    m.note = look
    m.fit(dataset(made), verbose=0)
    assert len(found) == 12 and all(found), found

memory.MIN_SLOTS = 2
for n_slots in (2, 3, 4, 8):
    memory.AUTO_SLOTS = n_slots
    is_too_few = (n_slots, BACKEND) == (2, "jax")  # JAX holds two during a step
    options = {"workers": 0, "stall_timeout": 0.3} if is_too_few else {"workers": 2}
    with ringload.Loader(TruthRows(3 * n_steps // 2), 3, **options) as made:
        assert made.plan().n_slots == n_slots
        m = Recorder(slow_s=0.001)
        try: m.fit(dataset(made), epochs=2, verbose=0)
        except ringload.AllSlotsLentError: assert is_too_few
        else: are_epochs(made, m.take(), 0, 2)

# The same is found to be wrong if leases end too soon.
from ringload.bridge.field_roles import FieldRoles
right = FieldRoles.of
def release_at_once(self, batch, *how):
    end, batch._end = batch._end, None
    if end is not None: batch._release()(end)
    return right(self, batch, *how)
FieldRoles.of = release_at_once
memory.AUTO_SLOTS = 3
with ringload.Loader(TruthRows(300), 3, workers=2) as made:
    m = Recorder()
    def until_all_are_full(model, n_steps):
        while made.poll().n_full < 3: time.sleep(0.001)
    m.at_step = until_all_are_full
    try:
        m.fit(dataset(made), verbose=0)
        np.testing.assert_array_equal(m.take(), order_of(made, 0))  # the next batch may be there before the step
    except Exception as error: assert "Arrays are not equal" in str(error), error
    else: raise AssertionError("leases were broken, and nothing was noticed")
print("done", flush=True)
if BACKEND == "tensorflow": os._exit(0)  # a fit has raised: TensorFlow may hang at exit, see ringload.keras.dataset
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_never_sees_the_bytes_of_another_batch(backend: str, times: Times) -> None:
    assert child(backend, STRESS, times(500, 5000)) == "done\n"
