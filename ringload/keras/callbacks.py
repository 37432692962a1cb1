"""Keras callbacks: `Report` adds the cost of loading to the logs; `Checkpoint` saves a run so that it resumes within an epoch.

A checkpoint is a folder with two files: `weights-T.weights.h5`, the variables of the model and its optimizer as Keras saves
them, and `checkpoint.json`, which holds the name of that file and the loader's state. `checkpoint.json` is written last and
replaced atomically: whenever the process is killed, the folder holds either the previous checkpoint or the new one.

The saved position counts the batches that the model was trained on, not those that the loader has given: TensorFlow reads
ahead. Keras trains on batches in the order in which they are given. So the position is that of the first batch of the epoch,
plus the number of steps since.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import keras

from ringload.bridge.field_roles import refuse_no_loader
from ringload.checks import short
from ringload.errors import ConfigError
from ringload.keras.py_dataset import RingDataset
from ringload.loader import Loader

MANIFEST = "checkpoint.json"
VERSION = 1
KERAS_SAYS = "Your input ran out of data"  # warned also where a resumed epoch is shorter, as it should be


class Report(keras.callbacks.Callback):
    """Adds the cost of loading to each epoch's `logs`: `callbacks=[ringload.keras.Report(loader), CSVLogger(path)]`.

    `stall_share`: the share of the epoch's training time that was spent waiting for the loader, 0..1. On TensorFlow a thread of
    tf.data waits while the step runs, so that the steps have waited no longer than this.
    `samples_per_s`: samples received a second. Neither counts validation.

    A callback sees the logs of those before it in the list: put `Report` before CSVLogger and TensorBoard. Keras' own History
    and progress bar run last.
    """

    def __init__(self, loader: Loader | RingDataset) -> None:
        super().__init__()
        self._loader = loader.loader if isinstance(loader, RingDataset) else loader
        refuse_no_loader(self._loader)
        self._begin: tuple[float, float, int] = (0.0, 0.0, 0)
        self._cost: dict[str, float] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        stats = self._loader.stats
        self._begin = time.monotonic(), stats.stall_s, stats.n_samples
        self._cost = None

    def on_test_begin(self, logs: Any = None) -> None:
        """Validation begins, so this epoch's training is over."""
        self._measure()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._measure()
        if logs is not None and self._cost is not None:
            logs.update(self._cost)

    def _measure(self) -> None:
        if self._cost is None:
            begin_s, stall_s, n_samples = self._begin
            elapsed_s, stats = time.monotonic() - begin_s, self._loader.stats
            self._cost = {
                "stall_share": min(1.0, (stats.stall_s - stall_s) / elapsed_s),
                "samples_per_s": (stats.n_samples - n_samples) / elapsed_s,
            }


class Checkpoint(keras.callbacks.Callback):
    """Saves model, optimizer and loader together, so that a killed run resumes where it was:

        data = ringload.keras.dataset(loader)
        checkpoint = ringload.keras.Checkpoint("run", data, every=500)
        model.fit(data, epochs=90, initial_epoch=checkpoint.restore(model), callbacks=[checkpoint])

    The same script starts and resumes a run. Each sample is trained on once an epoch, in the order of (seed, epoch), for any
    number of workers. Samples that were trained on after the last checkpoint are trained on again, by the restored weights. An
    epoch that is resumed within it consists of its rest, and its metrics are those of the rest. With steps_per_epoch, Keras'
    epoch starts again, while the loader's goes on. On TensorFlow, Keras (3.15) adds one step too many to `optimizer.iterations`
    whenever an epoch is shorter than expected, as a resumed one is; it trains on no batch in that step.

    Without a checkpoint to restore, a new loader begins with the epoch of fit's `initial_epoch`.

    Arguments:
        folder: created if it does not exist; must hold nothing but this checkpoint.
        data: the dataset that fit is given.
        every: "epoch", or a number of batches: then a checkpoint is saved also at the end of each epoch. (On JAX, a number of
            batches makes Keras call all callbacks in step with training.)

    Raises:
        ConfigError: the folder holds a checkpoint that was not restored, or one of another order or version.
    """

    def __init__(self, folder: str | os.PathLike[str], data: RingDataset, every: int | Literal["epoch"] = "epoch") -> None:
        super().__init__()
        if not isinstance(data, RingDataset):
            raise ConfigError(f"data is the ringload.keras.dataset that fit is given, not {short(data)}")
        if every != "epoch" and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise ConfigError(f"every is 'epoch' or a number of batches, not {short(every)}")
        self._folder, self._data, self._every = Path(folder), data, every
        self.async_safe = every == "epoch"  # Keras reads it: True if the callback needs no call in step with training
        self._is_mine = False  # this object has restored or written the folder's checkpoint
        self._epoch = 0  # of Keras
        self._begins: tuple[int, int] | None = None  # (epoch, number) of the first batch of Keras' epoch
        self._n_trained = 0  # batches of Keras' epoch
        self._n_saved = 0  # batches of Keras' epoch at the last save
        self._no_warnings: warnings.catch_warnings[Any] | None = None

    def restore(self, model: keras.Model) -> int:
        """Load the checkpoint into the model, its optimizer and the loader. Returns fit's `initial_epoch`; 0 if there is no
        checkpoint.

        Raises:
            ConfigError: the model is not built, or the checkpoint is of another order or version.
        """
        self._is_mine = True
        try:
            manifest = json.loads((self._folder / MANIFEST).read_text())
        except FileNotFoundError:
            return 0
        if manifest.get("version") != VERSION:
            raise ConfigError(
                f"{self._folder / MANIFEST} has version {short(manifest.get('version'))}; this ringload reads version {VERSION}"
            )
        if not model.built:
            raise ConfigError("the model has no variables yet: give it an Input, or call it on a batch, before restore()")
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._data.loader.load_state_dict(manifest["loader"])
        model.load_weights(self._folder / manifest["weights"])
        return int(manifest["epoch"])

    # -- Keras' callbacks --------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        if not self._is_mine and (self._folder / MANIFEST).exists():
            raise ConfigError(
                f"{self._folder} holds a checkpoint: to resume it, call fit(initial_epoch=checkpoint.restore(model)); to start "
                "anew, remove the folder"
            )
        self._begins = None
        self._restore_warnings()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        passes = self._data._passes
        if self._begins is None:
            if epoch and passes.next() == (0, 0):
                self._data.loader.set_epoch(epoch)
            if passes.next()[1]:
                self._no_warnings = warnings.catch_warnings()
                self._no_warnings.__enter__()
                warnings.filterwarnings("ignore", KERAS_SAYS)
        else:
            self._begins = self._trained()
        self._epoch, self._n_trained, self._n_saved = epoch, 0, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._n_trained = max(self._n_trained, batch + 1)  # with async_safe, Keras calls in any order
        if self._every != "epoch" and self._n_trained - self._n_saved >= self._every:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._restore_warnings()
        self._save(is_over=True)

    def _restore_warnings(self) -> None:
        if self._no_warnings is not None:
            self._no_warnings.__exit__(None, None, None)
            self._no_warnings = None

    # -- saving ------------------------------------------------------------------------------------------------------

    def _trained(self) -> tuple[int, int]:
        """(epoch, number) of the next batch to train on."""
        passes, n_whole = self._data._passes, len(self._data)
        if self._begins is None:
            self._begins = passes.origin or passes.next()
        epoch, number = self._begins
        n_trained = self._n_trained
        if not passes.repeat:  # Keras' epoch ends with the pass; its last steps_per_execution may have had fewer batches
            n_trained = min(n_trained, n_whole - number)
        n_passes, number = divmod(number + n_trained, n_whole)
        return epoch + n_passes, number

    def _save(self, is_over: bool = False) -> None:
        """Write a checkpoint. `is_over`: Keras' epoch is over."""
        epoch, number = self._trained()
        is_over = is_over or self._n_trained >= self.params["steps"] or (number == 0 and not self._data._passes.repeat)
        self._folder.mkdir(parents=True, exist_ok=True)
        weights = self._folder / f"weights-{time.time_ns()}.weights.h5"
        writing = self._folder / "writing.weights.h5"
        self.model.save_weights(writing, overwrite=True)
        _replace(writing, weights)
        writing = self._folder / f"{MANIFEST}.writing"
        state = self._data.loader.state_at(epoch, number)
        manifest = {"version": VERSION, "epoch": self._epoch + is_over, "weights": weights.name, "loader": state}
        writing.write_text(json.dumps(manifest, indent=1))
        _replace(writing, self._folder / MANIFEST)
        self._is_mine, self._n_saved = True, self._n_trained
        for old in self._folder.glob("weights-*.weights.h5"):
            if old != weights:
                old.unlink()


def _replace(written: Path, path: Path) -> None:
    """Write a file's bytes to the disk, then give it its name."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
