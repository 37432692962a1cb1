"""Keras on TensorFlow, for real, in an interpreter of its own: TensorFlow does not live well beside forks."""

from __future__ import annotations

import pytest

from tests.helpers import run

BEGIN = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import numpy as np
import keras
import ringload, ringload.keras
from tests.helpers import Truth, truth

class Recorder(keras.Model):
    '''Notes what reaches each step, and verifies it there.'''
    def __init__(self):
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="zeros")
        self.seen = []
    def note(self, data):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x = x if isinstance(x, dict) else {"image": x}
        images, labels, draws = np.asarray(x["image"]), np.asarray(y["label"]), np.asarray(y["draw"])
        for image, label, draw in zip(images, labels, draws):
            np.testing.assert_array_equal(image, truth(int(label), int(draw)))
        self.seen += labels.tolist()
        return {"loss": self.w * 1.0}
    def call(self, x): return self.w
    def train_step(self, data): return self.note(data)
    def test_step(self, data): return self.note(data)

def loader(n=60, **options):
    return ringload.Loader(Truth(n), 5, **{"workers": 2, "ram_budget": "200MB", **options})
def dataset(made): return ringload.keras.dataset(made, x="image", y=["label", "draw"])
def model():
    made = Recorder()
    made.compile(optimizer="sgd", run_eagerly=True)
    return made
"""


def keras_says(code: str) -> str:
    done = run(BEGIN + code, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_sample_reaches_the_step_once_an_epoch() -> None:
    code = """
with loader() as made:
    m = model()
    m.fit(dataset(made), epochs=3, verbose=0)
    assert len(m.seen) == 180, len(m.seen)
    for epoch in range(3):
        assert sorted(m.seen[epoch * 60:][:60]) == list(range(60)), epoch
    assert made.epoch == 3 or made.position == 0
    m.seen.clear()
    m.fit(dataset(made), epochs=1, verbose=0)   # another dataset of the same loader
    assert sorted(m.seen) == list(range(60))
print("done")
"""
    assert keras_says(code) == "done\n"


def test_validation_evaluate_and_predict() -> None:
    code = """
with loader() as train, loader(20, shuffle=False, workers=1) as held:
    m = model()
    one = dataset(held)
    m.fit(dataset(train), validation_data=one, epochs=2, verbose=0)
    assert len(m.seen) == 2 * 80
    assert sorted(m.seen[60:80]) == sorted(m.seen[140:]) == list(range(20))
    m.seen.clear()
    m.evaluate(one, verbose=0)
    assert sorted(m.seen) == list(range(20))
total = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
net = keras.Sequential([keras.layers.Input((8, 6, 3)), keras.layers.Flatten(), total])
with loader(20, shuffle=False, workers=2) as made:
    found = net.predict(ringload.keras.dataset(made, y=None), verbose=0)[:, 0]
with loader(20, shuffle=False, workers=0) as made:
    expected = np.concatenate([b["image"].reshape(5, -1).astype("float32").sum(1) for b in made])
np.testing.assert_allclose(found, expected, rtol=1e-5)
print("done")
"""
    assert keras_says(code) == "done\n"


def test_a_model_learns_from_it_and_weights_count() -> None:
    code = """
x = np.random.default_rng(0).normal(size=(400, 3)).astype("float32")
y = x @ np.float32([1, -2, 3]) + 1
weight = (np.arange(400) % 2).astype("float32")
y[weight == 0] = 1000   # what has no weight has no say
source = ringload.Arrays(x=x, y=y[:, None], weight=weight)
with ringload.Loader(source, 20, workers=2, ram_budget="200MB") as made:
    net = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    net.compile(keras.optimizers.SGD(0.1), "mse")
    net.fit(ringload.keras.dataset(made, x="x", y="y"), epochs=30, verbose=0)
    np.testing.assert_allclose(np.ravel(net.layers[-1].kernel), [1, -2, 3], atol=1e-2)
print("done")
"""
    assert keras_says(code) == "done\n"


def test_passes_that_end_early_put_nothing_out_of_step() -> None:
    code = """
x = np.arange(40, dtype="float32")[:, None]
net = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
net.compile("sgd", "mse")
with ringload.Loader(ringload.Arrays(image=x, label=x[:, 0]), 8, workers=1, shuffle=False, ram_budget="200MB") as made:
    d = ringload.keras.dataset(made)
    for steps in (None, 2, 1, None, 3):
        net.evaluate(d, steps=steps, verbose=0)
        np.testing.assert_array_equal(net.predict(d, verbose=0)[:, 0], x[:, 0])
with loader() as train, loader(40, shuffle=False) as held:
    m = model()
    one = dataset(held)
    m.fit(dataset(train), validation_data=one, validation_steps=2, epochs=3, verbose=0)
    for epoch in range(3):
        assert m.seen[epoch * 70 + 60:][:10] == list(range(10)), m.seen[epoch * 70 + 60:][:10]
print("done")
"""
    assert keras_says(code) == "done\n"


def test_rows_without_a_sample_weigh_nothing() -> None:
    code = """
x = np.ones((21, 1), "float32")
net = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
net.compile("sgd", weighted_metrics=["mae"], loss="mae")
weight = np.linspace(1, 2, 21, dtype="float32")
for fields, expected in (({}, 2.0), ({"weight": weight}, 2.0)):
    source = ringload.Arrays(x=x, y=x - 2, **fields)
    with ringload.Loader(source, 8, last="pad", workers=1, ram_budget="200MB") as made:
        d = ringload.keras.dataset(made, x="x", y="y")
        batches = [d[i] for i in range(3)]
        np.testing.assert_allclose(sum(w.sum() for _, _, w in batches), 21 if not fields else weight.sum(), rtol=1e-5)
        assert abs(net.evaluate(d, verbose=0, return_dict=True)["mae"] - expected) < 1e-5
print("done")
"""
    assert keras_says(code) == "done\n"


@pytest.mark.parametrize(("arguments", "said"), [('x="pixels"', "no fields ['pixels']"), ('y="kind"', "no fields ['kind']")])
def test_fields_that_are_not_there(arguments: str, said: str) -> None:
    code = f"""
with loader() as made:
    try: ringload.keras.dataset(made, {arguments})
    except ringload.ConfigError as error: print(error)
"""
    assert said in keras_says(code)
