"""What the soak loads: sources of every kind, some of which attack their workers. The trainer itself they spare."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ringload import Arrays, ImageFrame
from tests.deaths import WAYS, first_time, sleep_in_c
from tests.helpers import Truth, TruthRows, truth

N = 240
STRIKES: dict[int, Callable[[], Any]] = {50: WAYS["SIGSEGV"][0], 130: WAYS["os._exit(0)"][0], 210: WAYS["SIGSEGV"][0]}
SAMPLE_TIMEOUT_S = 1.5  # far more than any other sample takes, on a busy machine too


class SomeBad(Truth):
    """Some samples are bad."""

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if index % 17 == 5:
            raise ValueError("no such luck")
        super().load(index, rng, out)


class Striking(Truth):
    """Some samples strike the worker that loads them, once each."""

    def __init__(self, folder: Path, crashes: dict[int, Callable[[], Any]]) -> None:
        super().__init__(N)
        self.folder, self.crashes, self.trainer = folder, crashes, os.getpid()

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index in self.crashes and os.getpid() != self.trainer and first_time(self.folder / str(index)):
            self.crashes[index]()


class AlwaysStriking(Truth):
    """Some samples always kill: they are bad. Of those the trainer says so itself."""

    def __init__(self) -> None:
        super().__init__(N)
        self.trainer = os.getpid()

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if index in STRIKES and os.getpid() == self.trainer:
            raise ValueError("would kill")
        super().load(index, rng, out)
        if index in STRIKES:
            STRIKES[index]()


def function(index: int, rng: np.random.Generator, out: Any) -> None:
    out["x"] = truth(index)
    out["draw"] = rng.random()


def frame(root: Path) -> ImageFrame:
    return ImageFrame(root / "photos.csv", label="multi", root=root, size=(16, 16), max_pixels=100_000)


def damaged(photos: Path, folder: Path) -> ImageFrame:
    """The photographs, of which every other one is cut, empty, or no image."""
    root = Path(shutil.copytree(photos, folder / "damaged"))
    for number, path in enumerate(sorted(root.rglob("*.jpg"))[::2]):
        if number % 3 == 2:
            path.write_bytes(b"no image" * 100)
        else:
            os.truncate(path, path.stat().st_size // 2 if number % 3 else 0)
    return frame(root)


SHARED = np.arange(N * 50, dtype=np.int32).reshape(N, 50)
FIELDS = {"x": ((8, 6, 3), "u1"), "draw": ((), "f8")}
FEW = {"batch_size": 8}  # batches, as each loader has these deaths anew
Made = tuple[Any, dict[str, Any]]  # a source, and what its loader is told
SOURCES: dict[str, Callable[[Path, Path], Made]] = {  # made of the photographs, and of a folder of the round's own
    "images": lambda photos, folder: (frame(photos), {}),
    "damaged images": lambda photos, folder: (damaged(photos, folder), {}),
    "arrays": lambda photos, folder: (Arrays(x=SHARED, y=SHARED[:, 0]), {}),
    "samples": lambda photos, folder: (Truth(N), {}),
    "rows": lambda photos, folder: (TruthRows(N), {}),
    "bad samples": lambda photos, folder: (SomeBad(N), {}),
    "a function": lambda photos, folder: (function, {"n_samples": N, "fields": FIELDS}),
    "samples that kill once": lambda photos, folder: (Striking(folder, STRIKES), FEW),
    "samples that always kill": lambda photos, folder: (AlwaysStriking(), FEW),
    "a sample that hangs once": lambda photos, folder: (
        Striking(folder, {100: sleep_in_c}),
        {"sample_timeout": SAMPLE_TIMEOUT_S, **FEW},
    ),
}
STRIKE_ONCE = ("samples that kill once", "a sample that hangs once")
