"""Callbacks of Keras: what loading cost, in the logs; and checkpoints from which a run goes on within an epoch.

A checkpoint is a folder with two files: `weights-T.weights.h5`, the model's and the optimizer's variables as Keras saves
them, and `checkpoint.json`, which names it and holds where the loader is. The latter is written last and replaced
atomically, so that whenever the process is killed, there is either the last checkpoint or this one.

Where the loader is: which samples the model was trained on, not which the loader has given; TensorFlow reads ahead. Batches are
trained on in the order in which they are given, so it is the first one of this fit, and how many steps there were since.
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
KERAS_SAYS = "Your input ran out of data"  # of an epoch that is shorter than the first call said, and is no interruption


class Report(keras.callbacks.Callback):
    """Adds to each epoch's `logs` what loading cost: `callbacks=[ringload.keras.Report(loader), CSVLogger(path)]`.

    `stall_share`: the share of the epoch's training time that was waited for the loader, 0..1. On TensorFlow it is tf.data's
    thread that waits, beside the step: it is then the most that the step can have waited.
    `samples_per_s`: samples received (images a second). Validation does not count in either.

    Callbacks see what those before them in the list have added: give it before CSVLogger and TensorBoard. Keras' own History
    and progress bar come last.
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
        """Validation begins: training of this epoch is over."""
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
    """Saves model, optimizer and loader together, so that a run that was killed goes on where it was:

        data = ringload.keras.dataset(loader)
        checkpoint = ringload.keras.Checkpoint("run", data, every=500)
        model.fit(data, epochs=90, initial_epoch=checkpoint.restore(model), callbacks=[checkpoint])

    The same script begins and resumes. Each sample is trained once an epoch, in the order that (seed, epoch) gives, whatever
    the number of workers: those that were trained after the last checkpoint are trained again, on weights that have not seen
    them. An epoch that is resumed in its middle is the rest of it, and its metrics are those of the rest. With
    steps_per_epoch, Keras' epoch begins anew, and the loader's goes on. On TensorFlow, Keras (3.15) counts one step too many in
    `optimizer.iterations` whenever an epoch ends before it expects that, as the rest of one does; it trains on nothing then.

    Also without a checkpoint, a fresh loader begins with the epoch of fit's `initial_epoch`.

    Arguments:
        folder: is made if need be, and is the checkpoint's alone.
        data: what fit is given.
        every: "epoch", or a number of batches; with those also after each epoch. (On JAX, a number of batches makes Keras call
            all callbacks in step with training.)

    Raises:
        ConfigError: the folder holds a checkpoint that was not restored, or one of another order or version.
    """

    def __init__(self, folder: str | os.PathLike[str], data: RingDataset, every: int | Literal["epoch"] = "epoch") -> None:
        super().__init__()
        if not isinstance(data, RingDataset):
            raise ConfigError(f"data is what fit is given, a ringload.keras.dataset, not {short(data)}")
        if every != "epoch" and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise ConfigError(f"every is 'epoch' or a number of batches, not {short(every)}")
        self._folder, self._data, self._every = Path(folder), data, every
        self.async_safe = every == "epoch"  # Keras asks this of callbacks that look at batches
        self._is_mine = False  # what the folder holds, this object has restored or written
        self._epoch = 0  # Keras'
        self._begins: tuple[int, int] | None = None  # (epoch, number) of the first batch of this epoch of Keras'
        self._n_trained = 0  # batches of this epoch of Keras'
        self._n_saved = 0  # of them, when it was saved last
        self._quiet: warnings.catch_warnings[Any] | None = None

    def restore(self, model: keras.Model) -> int:
        """Load what the folder holds into the model, its optimizer and the loader. Returns fit's `initial_epoch`: 0 if there is
        nothing.

        Raises:
            ConfigError: the model is not built, or the checkpoint is of another order or version.
        """
        self._is_mine = True
        try:
            manifest = json.loads((self._folder / MANIFEST).read_text())
        except FileNotFoundError:
            return 0
        if manifest.get("version") != VERSION:
            raise ConfigError(f"{self._folder / MANIFEST} is of version {short(manifest.get('version'))}, and not of {VERSION}")
        if not model.built:
            raise ConfigError("the model has no variables yet to restore into: give it an Input, or call it on a batch, before")
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._data.loader.load_state_dict(manifest["loader"])
        model.load_weights(self._folder / manifest["weights"])
        return int(manifest["epoch"])

    # -- what Keras tells ---------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        if not self._is_mine and (self._folder / MANIFEST).exists():
            raise ConfigError(
                f"{self._folder} holds a checkpoint: fit(initial_epoch=checkpoint.restore(model)) goes on with it; remove the "
                "folder to begin anew"
            )
        self._begins = None
        self._be_loud()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        passes = self._data._passes
        if self._begins is None:
            if epoch and passes.next() == (0, 0):
                self._data.loader.set_epoch(epoch)
            if passes.next()[1]:
                self._quiet = warnings.catch_warnings()
                self._quiet.__enter__()
                warnings.filterwarnings("ignore", KERAS_SAYS)
        else:
            self._begins = self._trained()
        self._epoch, self._n_trained, self._n_saved = epoch, 0, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._n_trained = max(self._n_trained, batch + 1)  # batches may be told in any order, where Keras does not wait
        if self._every != "epoch" and self._n_trained - self._n_saved >= self._every:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._be_loud()
        self._save(is_over=True)

    def _be_loud(self) -> None:
        if self._quiet is not None:
            self._quiet.__exit__(None, None, None)
            self._quiet = None

    # -- saving -------------------------------------------------------------------------------------------------------

    def _trained(self) -> tuple[int, int]:
        """(epoch, number) of the batch that is trained next."""
        passes, n_whole = self._data._passes, len(self._data)
        if self._begins is None:
            self._begins = passes.origin or passes.next()
        epoch, number = self._begins
        n_trained = self._n_trained
        if not passes.repeat:  # Keras ends an epoch where a pass ends; the last steps_per_execution may have had fewer batches
            n_trained = min(n_trained, n_whole - number)
        n_passes, number = divmod(number + n_trained, n_whole)
        return epoch + n_passes, number

    def _save(self, is_over: bool = False) -> None:
        """`is_over`: this epoch of Keras' is."""
        epoch, number = self._trained()
        is_over = is_over or self._n_trained >= self.params["steps"] or (number == 0 and not self._data._passes.repeat)
        self._folder.mkdir(parents=True, exist_ok=True)
        weights = self._folder / f"weights-{time.time_ns()}.weights.h5"
        writing = self._folder / "writing.weights.h5"
        self.model.save_weights(writing, overwrite=True)
        _replace(writing, weights)
        writing = self._folder / f"{MANIFEST}.writing"
        state = self._data.loader.state_dict() | {"epoch": epoch, "position": number}
        manifest = {"version": VERSION, "epoch": self._epoch + is_over, "weights": weights.name, "loader": state}
        writing.write_text(json.dumps(manifest, indent=1))
        _replace(writing, self._folder / MANIFEST)
        self._is_mine, self._n_saved = True, self._n_trained
        for old in self._folder.glob("weights-*.weights.h5"):
            if old != weights:
                old.unlink()


def _replace(written: Path, path: Path) -> None:
    """Give a file its name once its bytes are on the disk."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
