"""What the children of test_keras*.py have in common: a model that verifies and notes every row that reaches a step.

The backend is chosen by KERAS_BACKEND, in the environment of the child.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np

import ringload
import ringload.keras
from tests.helpers import Truth, order_of, truths

BACKEND = keras.backend.backend()
faulthandler.dump_traceback_later(270)  # the parent waits for 280 s


class Recorder(keras.Model):
    """Notes the labels that reach each step, and verifies each row at the step's end. Every other step takes `slow_s`."""

    def __init__(self, built: bool = False, slow_s: float = 0.0) -> None:
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="zeros")
        self.seen: list[int] = []
        self.weights_seen: list[np.ndarray] = []
        self.n_steps = 0
        self.at_step: Callable[[Recorder, int], None] = lambda model, n_steps: None
        self.slow_s = slow_s
        self.compile(optimizer="sgd", run_eagerly=True)
        if built:
            self.built = True

    def note(self, data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        labels, draws = (
            np.asarray(y["label"]).copy(),
            np.asarray(y["draw"]).copy(),
        )  # copies, so that a batch in its place is no truth
        self.n_steps += 1
        self.at_step(self, self.n_steps)
        if self.slow_s and self.n_steps % 2:
            time.sleep(self.slow_s)  # a step's work, while workers run ahead
        np.testing.assert_array_equal(np.asarray(x), truths(labels, draws))
        np.testing.assert_array_equal(np.asarray(y["label"]), labels)
        self.seen += labels.tolist()
        self.weights_seen += [] if weight is None else [np.array(weight)]
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
    return ringload.Loader(Truth(n), batch_size, **{"workers": 0, "ram_budget": "200MB", **options})


def dataset(made: ringload.Loader, **options: Any) -> Any:
    return ringload.keras.dataset(made, x="image", y=["label", "draw"], **options)


def are_epochs(made: ringload.Loader, seen: list[int], first: int, n: int) -> None:
    """What was seen are the epochs first, first + 1, ..., n of them, in order."""
    expected = [index for epoch in range(first, first + n) for index in order_of(made, epoch)]
    assert seen == expected, f"{len(seen)} samples, not {len(expected)}; {seen} and not {expected}"
