"""Callbacks of Keras, for real: a run that is killed within an epoch and goes on; and on each backend what a checkpoint holds,
and where the costs in the logs come to be read."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.helpers import run

pytestmark = pytest.mark.timeout(300)  # of a machine that does much else: importing TensorFlow took 30 s there

ENVIRONMENT = {**os.environ, "KERAS_BACKEND": "tensorflow"}

# How often each sample was trained is a variable of the model's: so a checkpoint holds it, and a sample that is trained twice
# after a checkpoint, or never, shows.
RESUME = """
import signal, sys, warnings
from tests.keras_child import *
import tensorflow as tf
N = 60
class Counting(keras.Model):
    def __init__(self):
        super().__init__()
        self.counts = self.add_weight(shape=(N,), initializer="zeros", trainable=False)
        self.built = True
        self.compile(optimizer=None, steps_per_execution=int(sys.argv[4]))
    def train_step(self, data):
        label = data[1]["label"]
        self.counts.assign(tf.tensor_scatter_nd_add(self.counts, label[:, None], tf.ones(tf.shape(label)[0])))
        return {"loss": 0.0}
    def call(self, x): return x
class KilledAt(keras.callbacks.Callback):
    n = 0
    def on_train_batch_end(self, batch, logs=None):
        self.n += 1
        if self.n == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
class Exact(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        assert (self.model.counts.numpy() == epoch + 1).all(), (epoch, self.model.counts.numpy())
warnings.simplefilter("error", UserWarning)  # the rest of an epoch is no interruption
folder, every = sys.argv[1], sys.argv[3]
with loader(N, workers=1) as made:
    m, data = Counting(), dataset(made)
    checkpoint = ringload.keras.Checkpoint(folder, data, every=int(every) if every != "epoch" else every)
    first = checkpoint.restore(m)
    print("begins at epoch", first, "batch", made.position, "with", int(m.counts.numpy().sum()), "trained", flush=True)
    m.fit(data, epochs=4, initial_epoch=first, callbacks=[checkpoint, Exact(), KilledAt()], verbose=0)
    assert (m.counts.numpy() == 4).all(), m.counts.numpy()
    print("trained to the end", sorted(os.listdir(folder)).__len__(), "files")
"""


def resume(folder: Path, killed_at: int, every: object, at_once: int = 1) -> str:
    """One run of the script. Killed if `killed_at` is not 0."""
    done = run(RESUME, folder, killed_at, every, at_once, env=ENVIRONMENT, timeout=280)
    assert done.returncode == (-signal.SIGKILL if killed_at else 0), done.stderr
    return done.stdout


@pytest.mark.needs("tensorflow")
def test_a_run_that_is_killed_within_an_epoch_goes_on_with_what_was_not_trained(tmp_path: Path) -> None:
    assert resume(tmp_path, 17, 2) == "begins at epoch 0 batch 0 with 0 trained\n"
    assert resume(tmp_path, 0, 5, 2) == "begins at epoch 1 batch 4 with 80 trained\ntrained to the end 2 files\n"


MORE = """
import json, sys
from pathlib import Path
from tests.keras_child import *
folder = Path(sys.argv[1])
def message(wanted, call):
    try: call()
    except ringload.ConfigError as error: assert wanted in str(error), error
    else: raise AssertionError(wanted)
def line(optimizer="adam"):
    net = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    net.compile(optimizer, "mse")
    return net
rng = np.random.default_rng(0)
source = ringload.Arrays(image=rng.normal(size=(40, 2)).astype("float32"), label=rng.normal(size=(40, 1)).astype("float32"))
def run(folder, epochs, first=None, **options):
    with ringload.Loader(source, 4, workers=0, **options) as made:
        net, data = line(), ringload.keras.dataset(made)
        for variable in net.trainable_variables: variable.assign(keras.ops.ones(variable.shape))
        checkpoint = ringload.keras.Checkpoint(folder, data)
        begins = checkpoint.restore(net)
        net.fit(data, epochs=epochs, initial_epoch=begins if first is None else first, callbacks=[checkpoint], verbose=0)
        return begins, made.epoch, [np.array(v) for v in net.variables + net.optimizer.variables]

# three epochs, and two after one that was saved, come to the same, optimizer included
assert run(folder / "a", 1)[:2] == (0, 1)
begins, epoch, resumed = run(folder / "a", 3)
assert (begins, epoch) == (1, 3)
_, _, whole = run(folder / "b", 3)
for one, other in zip(resumed, whole, strict=True): np.testing.assert_allclose(one, other, rtol=1e-5)
# a fresh loader begins with the epoch that fit begins with
assert run(folder / "c", 5, first=3)[:2] == (0, 5)

# A fit that failed within an epoch: the weights, the optimizer and the loader are of one moment.
class Fails(keras.callbacks.Callback):
    n = 0
    def on_train_batch_end(self, batch, logs=None):
        self.n += 1
        if self.n == 17: raise ArithmeticError("fails")
def interrupted(folder, *callbacks):
    with ringload.Loader(source, 4, workers=0) as made:
        net, data = line(keras.optimizers.SGD(0.01, 0.9)), ringload.keras.dataset(made)
        for variable in net.trainable_variables: variable.assign(keras.ops.ones(variable.shape))
        checkpoint = ringload.keras.Checkpoint(folder, data, every=3)
        begins = checkpoint.restore(net)
        assert 10 * made.epoch + made.position == int(net.optimizer.iterations), (made.epoch, made.position)
        try: net.fit(data, epochs=3, initial_epoch=begins, callbacks=[checkpoint, *callbacks], verbose=0)
        except ArithmeticError: assert callbacks
        return begins, [np.array(v) for v in net.trainable_variables + net.optimizer.momentums], int(net.optimizer.iterations)
interrupted(folder / "d", Fails())
assert json.loads((folder / "d" / "checkpoint.json").read_text())["loader"]["position"] == 6
(begins, resumed, n), (_, whole, n_whole) = interrupted(folder / "d"), interrupted(folder / "e")
for one, other in zip(resumed, whole, strict=True): np.testing.assert_allclose(one, other, rtol=1e-5)
assert (begins, n - (BACKEND == "tensorflow"), n_whole) == (1, 30, 30), (begins, n, n_whole)  # see Checkpoint

# what cannot be
with ringload.Loader(source, 4, workers=0) as made, ringload.Loader(source, 5, workers=0, shuffle=False) as other:
    data = ringload.keras.dataset(made)
    fit = lambda: line().fit(data, callbacks=[ringload.keras.Checkpoint(folder / "a", data)], verbose=0)
    message("holds a checkpoint", fit)
    message("not None", lambda: ringload.keras.Checkpoint(folder, None))
    message("every", lambda: ringload.keras.Checkpoint(folder, data, every=0))
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    message("no variables yet", lambda: ringload.keras.Checkpoint(folder / "a", data).restore(unbuilt))
    wrong = ringload.keras.Checkpoint(folder / "a", ringload.keras.dataset(other))
    message("kind: 'shuffle' there, 'sequence' here", lambda: wrong.restore(line()))
    manifest = folder / "a" / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    message("version 2", lambda: ringload.keras.Checkpoint(folder / "a", data).restore(line()))
"""


REPORT = """
import contextlib, io, re
names = ("stall_share", "samples_per_s")
for verbose in (1, 2):
    with loader() as made, loader(20, shuffle=False) as held, contextlib.redirect_stdout(io.StringIO()) as bar:
        logs = str(folder / f"logs{verbose}")
        callbacks = [ringload.keras.Report(made), keras.callbacks.CSVLogger(logs + ".csv")]
        if BACKEND == "tensorflow": callbacks.append(keras.callbacks.TensorBoard(logs))
        m = Recorder(slow_s=0.001)
        history = m.fit(dataset(made), validation_data=dataset(held), epochs=3, callbacks=callbacks, verbose=verbose).history
    assert set(history) == {"loss", "val_loss", *names}, history
    assert all(0 <= share <= 1 for share in history["stall_share"]) and min(history["samples_per_s"]) > 0
    for name in names:  # the progress bar's last words of each epoch
        said = [float(value) for value in re.findall(rf"{name}: (\\S+)", bar.getvalue())]
        np.testing.assert_allclose(said, history[name], rtol=0.01, atol=1e-4)
    lines = [line.split(",") for line in open(logs + ".csv").read().splitlines()]
    assert len(lines) == 4 and {*names, "val_loss"} < set(lines[0]), lines
    for name in names:
        assert [float(line[lines[0].index(name)]) for line in lines[1:]] == history[name]
    if BACKEND == "tensorflow":
        events = [event for path in Path(logs, "train").iterdir() for event in tf.compat.v1.train.summary_iterator(str(path))]
        drawn = {(v.tag, event.step): float(tf.make_ndarray(v.tensor)) for event in events for v in event.summary.value}
        for name in names:
            found = [drawn[f"epoch_{name}", epoch] for epoch in range(3)]
            np.testing.assert_allclose(found, history[name], rtol=1e-6)
print("done")
"""
TENSORBOARD = """
import tensorflow as tf
try: import tensorboard
except ImportError:  # of which tf.summary.scalar is a part; the file is written by TensorFlow
    import tensorflow.summary as summary  # as Keras names it
    summary.scalar = lambda name, value, step: summary.write(name, tf.cast(value, tf.float32), step)
"""


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("tensorflow", "torch", "jax")]
)
def test_what_a_checkpoint_holds_and_where_costs_are_told(backend: str, tmp_path: Path) -> None:
    code = MORE + (TENSORBOARD if backend == "tensorflow" else "") + REPORT
    done = run(code, tmp_path, env={**os.environ, "KERAS_BACKEND": backend}, timeout=280)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
