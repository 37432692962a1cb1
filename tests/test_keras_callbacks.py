"""Callbacks of Keras, for real: costs in the logs, and a run that is killed within an epoch and goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.helpers import run

pytestmark = pytest.mark.timeout(300)  # of a machine that does much else: importing TensorFlow took 30 s there

ENVIRONMENT = {**os.environ, "KERAS_BACKEND": "tensorflow"}

REPORT = """
import sys
from tests.keras_child import *
log = sys.argv[1]
with loader() as made, loader(20, shuffle=False) as held:
    m = Recorder(slow_s=0.001)
    callbacks = [ringload.keras.Report(made), keras.callbacks.CSVLogger(log)]
    history = m.fit(dataset(made), validation_data=dataset(held), epochs=3, callbacks=callbacks, verbose=2).history
    assert set(history) == {"loss", "val_loss", "stall_share", "samples_per_s"}, history
    lines = open(log).read().splitlines()
    assert lines[0].startswith("epoch,loss,samples_per_s,stall_share") and len(lines) == 4, lines
    for epoch, line in enumerate(lines[1:]):
        values = dict(zip(lines[0].split(","), line.split(",")))
        for name in ("stall_share", "samples_per_s"):
            assert float(values[name]) == history[name][epoch] >= 0
        assert history["stall_share"][epoch] <= 1 and history["samples_per_s"][epoch] > 0
"""


def test_costs_reach_history_progress_bar_and_csv(tmp_path: Path) -> None:
    done = run(REPORT, tmp_path / "log.csv", env={**os.environ, "KERAS_BACKEND": "torch"}, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stall_share:") == 3  # the progress bar's last line of each epoch


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
def line():
    net = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    net.compile("adam", "mse")
    return net
rng = np.random.default_rng(0)
source = ringload.Arrays(image=rng.normal(size=(40, 2)).astype("float32"), label=rng.normal(size=(40, 1)).astype("float32"))
def run(folder, epochs, first=None, **options):
    with ringload.Loader(source, 4, workers=0, **options) as made:
        net, data = line(), ringload.keras.dataset(made)
        keras.utils.set_random_seed(1)
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

# what cannot be
with ringload.Loader(source, 4, workers=0) as made, ringload.Loader(source, 5, workers=0) as other:
    data = ringload.keras.dataset(made)
    fit = lambda: line().fit(data, callbacks=[ringload.keras.Checkpoint(folder / "a", data)], verbose=0)
    message("holds a checkpoint", fit)
    message("not None", lambda: ringload.keras.Checkpoint(folder, None))
    message("every", lambda: ringload.keras.Checkpoint(folder, data, every=0))
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    message("no variables yet", lambda: ringload.keras.Checkpoint(folder / "a", data).restore(unbuilt))
    wrong = ringload.keras.Checkpoint(folder / "a", ringload.keras.dataset(other))
    message("batch_size: 4 there, 5 here", lambda: wrong.restore(line()))
    manifest = folder / "a" / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    message("version 2", lambda: ringload.keras.Checkpoint(folder / "a", data).restore(line()))
print("done")
"""


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    done = run(MORE, tmp_path, env={**os.environ, "KERAS_BACKEND": "torch"}, timeout=280)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
