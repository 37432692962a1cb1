"""The data that every peer loads, and the expected content with which every batch is compared.

    Photos   image files, decoded to `(H, W, 3) uint8`; compared with a thumbnail of each file, made by Pillow. Of the recipe,
             each is a random part: its mean colour is compared, and before the timing the part is found (`bench.parts`)
    Rows     rows of one array in a file, which are only copied; the first and last bytes of each are its number
    Sleeps   samples that sleep and use no CPU, a few of them longer than others; the content is a function of the index

All have `batch_size`, `n_samples`, `shape`, `dtype`, and `check(index, payload)`, which raises WrongPayloadError. Rows and
Sleeps load a sample by `work[i]`, as a map-style dataset does. Peers of the same work deliver uint8,
except the hand-written generator, which normalises, as is usual. Indices beyond the number of files or rows begin again at 0.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import data

# The mean difference to the expected pixels, of 255, that a decoder may have. ringload's has 1.2, at most 4. Two files mostly
# differ by 30
# to 100; the most similar cuts of one photograph by 4 to 13 (measured, 24 November 2026).
TOLERANCE = 10
COLOUR_TOLERANCE = 8  # of 255, that the mean colour of a part may be beyond those of the parts of its file that were tried
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the recipe's random parts: share of the image, width / height
POINTS = 16  # points a side that are compared of an image; each 2 by 2 are averaged


class WrongPayloadError(Exception):
    """A batch has another content than expected. Ends the run."""


def glance(images: np.ndarray) -> np.ndarray:
    """`(B, 8, 8, 3) int16`: a few pixels of `(B, H, W, 3) uint8`, enough to distinguish the files."""
    stride_y, stride_x = images.shape[1] // POINTS, images.shape[2] // POINTS
    seen = images[:, stride_y // 2 :: stride_y, stride_x // 2 :: stride_x].astype(np.int16)[:, :POINTS, :POINTS]
    mean: np.ndarray = (seen[:, ::2, ::2] + seen[:, 1::2, ::2] + seen[:, ::2, 1::2] + seen[:, 1::2, 1::2]) // 4
    return mean


@dataclass(frozen=True)
class Photos:
    """`n_samples` image files of `folder`, repeated as needed, resized to `(size, size)`.

    `kind` is "photos"; "recipe": a random part is resized, and half of the images are mirrored; or the format and size of the
    files, for which some peers have their own way: "12mp" (JPEG), "png", "webp". "remote": "photos" that a web server at `url`
    has, whose root is the folder data.
    """

    folder: Path
    batch_size: int
    size: int
    n_samples: int
    n_files: int | None = None  # how many files of the folder are used; None: all
    table: Path | None = None  # a table of many rows; None: the folder's table, repeated in memory
    truth_of: Path | None = None  # the folder that `folder` is a copy of
    kind: str = "photos"
    url: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 3)

    dtype = np.dtype(np.uint8)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table that a user starts from: columns path (absolute) and index."""
        if self.table is not None:
            return pd.read_parquet(self.table)
        files = [self.located(name) for name in data.files(self.folder)[: self.n_files]]
        paths = np.resize(np.array(files, object), self.n_samples)
        return pd.DataFrame({"path": paths, "index": np.arange(self.n_samples)})

    def located(self, path: str | Path) -> str:
        """Where loaders find a file below the folder data: its path, or its URL."""
        return f"{self.url}/{Path(path).resolve().relative_to(data.SERVED.resolve())}" if self.url else str(path)

    @property
    def paths(self) -> list[str]:
        """The paths, made from the frame in each call, as a part of a peer's start."""
        made: list[str] = self.frame["path"].tolist()
        return made

    @property
    def is_recipe(self) -> bool:
        return self.kind == "recipe"

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Of each file: `thumbnails`, `ratios`, and `bounds (n, 2, 3)` of the mean colours of parts."""
        with np.load(data.parts(self.folder)) as found:
            return {name: found[name][: self.n_files] for name in found.files}

    @cached_property
    def truth(self) -> np.ndarray:
        truth: np.ndarray = np.load(data.truth(self.truth_of or self.folder, self.size), mmap_mode="r")
        return truth[: self.n_files]

    def prepare(self) -> None:
        """Read the files whose reading is not measured."""
        _ = self.frame, self.parts if self.is_recipe else self.truth

    def check(self, index: np.ndarray, payload: np.ndarray) -> None:
        _check_form(self, index, payload)
        if payload.dtype == np.float32:  # normalised, as by the hand-written generator
            payload = ((payload + 1) * 127.5).astype(np.uint8)
        if self.is_recipe:
            self._check_colours(index, payload)
            return
        off = np.abs(glance(payload) - self.truth[index % len(self.truth)]).mean(axis=(1, 2, 3))
        if (off > TOLERANCE).any():
            worst = int(off.argmax())
            raise WrongPayloadError(f"sample {index[worst]} is not its file: pixels are {off[worst]:.0f} of 255 off on average")

    def _check_colours(self, index: np.ndarray, payload: np.ndarray) -> None:
        """Compare the mean colours of a few pixels, which takes little time of the measurement."""
        bounds = self.parts["bounds"]
        least, most = bounds[index % len(bounds)].swapaxes(0, 1)  # (B, 3)
        means = glance(payload).mean(axis=(1, 2))
        off = np.maximum(least - means, means - most).max(axis=1)
        if (off > COLOUR_TOLERANCE).any():
            worst = int(off.argmax())
            raise WrongPayloadError(
                f"sample {index[worst]} is no part of its file: its mean colour is {off[worst]:.0f} of 255 beyond all of these"
            )


@dataclass(frozen=True)
class Rows:
    """`n_samples` rows of one array of `shape` and `dtype`, which is in the page cache."""

    batch_size: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    n_rows: int
    n_samples: int

    @cached_property
    def array(self) -> np.ndarray:
        array: np.ndarray = np.load(data.rows(self.n_rows, self.shape, self.dtype), mmap_mode="r")
        return array

    def prepare(self) -> None:
        self.array.max()  # reads the file into the page cache

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> np.ndarray:
        row: np.ndarray = self.array[index % self.n_rows]
        return row

    def check(self, index: np.ndarray, payload: np.ndarray) -> None:
        _check_form(self, index, payload)
        flat = payload.reshape(len(payload), -1)
        n = 8 // self.dtype.itemsize
        marks = data.marks(index % self.n_rows)
        for part in (flat[:, :n], flat[:, -n:]):
            wrong = np.ascontiguousarray(part).view(np.int64)[:, 0] != marks
            if wrong.any():
                raise WrongPayloadError(f"sample {index[wrong.argmax()]} is another row than the one it says")


@dataclass(frozen=True)
class Sleeps:
    """Samples that sleep `cost_s`; one in `every`, at random, sleeps `factor` times as long."""

    batch_size: int
    cost_s: float
    n_samples: int
    every: int = 0  # none
    factor: float = 1.0

    shape = (16,)
    dtype = np.dtype(np.int64)

    def prepare(self) -> None:
        pass

    def __len__(self) -> int:
        return self.n_samples

    def cost(self, index: int) -> float:
        """The seconds that sample `index` sleeps."""
        is_heavy = self.every and (index * 2654435761 % 2**32) % self.every == 0
        return self.cost_s * (self.factor if is_heavy else 1.0)

    @property
    def mean_cost_s(self) -> float:
        return self.cost_s * (1 + (self.factor - 1) / self.every) if self.every else self.cost_s

    def __getitem__(self, index: int) -> np.ndarray:
        time.sleep(self.cost(index))
        row: np.ndarray = self.payload(np.array([index]))[0]
        return row

    def payload(self, index: np.ndarray) -> np.ndarray:
        made: np.ndarray = index[:, None] * 40503 + np.arange(16)
        return made

    def check(self, index: np.ndarray, payload: np.ndarray) -> None:
        _check_form(self, index, payload)
        wrong = (payload != self.payload(index)).any(axis=1)
        if wrong.any():
            raise WrongPayloadError(f"sample {index[wrong.argmax()]} does not carry its payload")


Work = Photos | Rows | Sleeps
IMAGES = ("photos", "recipe", "12mp", "png", "webp", "remote")  # the kinds of Photos


def make_work(spec: dict[str, Any]) -> Work:
    """Make a work from its JSON form, `{"kind": "photos" | "rows" | "sleeps" | ..., ...}`."""
    options = {name: value for name, value in spec.items() if name != "kind"}
    if spec["kind"] in IMAGES:
        table = options.pop("table", None)
        return Photos(Path(options.pop("folder")), table=None if table is None else Path(table), kind=spec["kind"], **options)
    if spec["kind"] == "rows":
        return Rows(shape=tuple(options.pop("shape")), dtype=np.dtype(options.pop("dtype")), **options)
    return Sleeps(**options)


def _check_form(work: Work, index: np.ndarray, payload: np.ndarray) -> None:
    n = len(index)
    if n != work.batch_size or payload.shape != (n, *work.shape):
        raise WrongPayloadError(f"a batch of {payload.shape} for {n} indices; expected {(work.batch_size, *work.shape)}")
    if payload.dtype != work.dtype and payload.dtype != np.float32:
        raise WrongPayloadError(f"a batch of {payload.dtype}, expected {work.dtype}")


class Epoch:
    """Checks the samples of one epoch: none may come twice, and at its end less than a batch may be missing."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._seen = np.zeros(work.n_samples, bool)

    def take(self, index: np.ndarray) -> None:
        if index.min() < 0 or index.max() >= len(self._seen):
            raise WrongPayloadError(f"there is no sample {index.max()}")
        if self._seen[index].any() or len(np.unique(index)) != len(index):
            raise WrongPayloadError("a sample came twice in one epoch")
        self._seen[index] = True

    def end(self) -> None:
        n_missing = len(self._seen) - int(self._seen.sum())
        if n_missing >= self._work.batch_size:
            raise WrongPayloadError(f"{n_missing} of {len(self._seen)} samples never came in an epoch")
