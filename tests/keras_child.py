"""What the children of test_keras*.py have in common: a model that verifies and notes every row that reaches a step.

The backend is chosen by KERAS_BACKEND, in the environment of the child.
"""

from __future__ import annotations

import os
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from typing import Any

import keras
import numpy as np

import ringload
import ringload.keras
from tests.helpers import Truth, truth

BACKEND = keras.backend.backend()


class Recorder(keras.Model):
    """Notes the labels that reach each step, and verifies each row at the step's end."""

    def __init__(self, built: bool = False, slow_s: float = 0.0) -> None:
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="zeros")
        self.seen: list[int] = []
        self.at_step: Any = None  # called with the number of steps so far
        self.n_steps = 0
        self.slow_s = slow_s
        self.compile(optimizer="sgd", run_eagerly=True)
        if built:
            self.built = True

    def note(self, data: Any) -> dict[str, Any]:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        x = x if isinstance(x, dict) else {"image": x}
        if self.slow_s and self.n_steps % 2:
            time.sleep(self.slow_s)  # the step that takes its time, while producers run ahead
        images, labels, draws = np.asarray(x["image"]), np.asarray(y["label"]), np.asarray(y["draw"])
        for image, label, draw in zip(images, labels, draws, strict=True):
            np.testing.assert_array_equal(image, truth(int(label), int(draw)))
        self.seen += labels.tolist()
        self.n_steps += 1
        if self.at_step is not None:
            self.at_step(self.n_steps)
        return {"loss": 0.0}

    def call(self, x: Any) -> Any:
        return keras.ops.add(self.w, 0.0)

    if BACKEND == "jax":

        def train_step(self, state: Any, data: Any) -> Any:
            return self.note(data), state

        def test_step(self, state: Any, data: Any) -> Any:
            return self.note(data), state
    else:

        def train_step(self, data: Any) -> Any:
            return self.note(data)

        def test_step(self, data: Any) -> Any:
            return self.note(data)

    def take(self) -> list[int]:
        """What was seen since it was asked last."""
        seen, self.seen = self.seen, []
        return seen


def loader(n: int = 60, batch_size: int = 5, **options: Any) -> ringload.Loader:
    return ringload.Loader(Truth(n), batch_size, **{"workers": 2, "ram_budget": "200MB", **options})


def dataset(made: ringload.Loader, **options: Any) -> Any:
    return ringload.keras.dataset(made, x="image", y=["label", "draw"], **options)


def epochs_of(seen: list[int], n: int) -> list[list[int]]:
    """What was seen, cut into epochs of n samples."""
    assert len(seen) % n == 0, len(seen)
    return [seen[start : start + n] for start in range(0, len(seen), n)]


def order_of(made: ringload.Loader, epoch: int) -> list[int]:
    """The samples of an epoch, by arithmetic."""
    from ringload.data.sampler import Sampler

    sampler = Sampler(made.order)
    return [int(i) for number in range(len(made)) for i in sampler.indices(epoch, number)]
