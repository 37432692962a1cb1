"""Verifies random crops: that each picture of a batch shows a part of its file.

Each file has a thumbnail `(CELLS, CELLS, 3) uint8`, made by Pillow. A part is a rectangle of whole cells, with a share of the
area in `AREA` and width / height in `RATIO`; or the whole file, which some loaders show where no part fits.

    in every batch      `Photos.check` of bench.work: the mean colour of each picture is one that a part of its file has
    before all timing   `Search`, over a small epoch: each picture looks like a part of its file, mirrored or not; the mean area
                        of the parts, and the share that is mirrored, are as near to the recipe's as so many draws allow

This notices wrong files, a wrong geometry, and an augmentation that is left out. A picture may also look like a part of
another file: cuts of one photograph are alike. That every index comes once is verified by `bench.work.Epoch`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from bench.work import AREA, RATIO, Photos, WrongPayloadError

CELLS = 40  # a side of a thumbnail
POINTS = 5  # a side of what is compared of a picture: means of rectangles
STEP = 1.15  # between the lengths of parts that are tried first
APART = 3  # cells between the positions of parts that are tried first
BEST, NEAR = 6, 2  # of so many of the best of these, parts are tried whose sides lie up to so many cells away
SLACK = 1.1  # of the proportions and the area, as parts are whole cells

LIKE = 14  # the most that a picture is off its own file: 2 (median) to 8; from other photographs, 20 to 40 in most cases
AREA_MEANS, AREA_STD = (0.32, 0.43), 0.22  # by width / height of the files; TensorFlow's 0.32 to 0.37, others' 0.39 to 0.43
LIKELY = 5  # standard errors that a right recipe's mean may be off, as most peers draw anew in each run


class Part(NamedTuple):
    """The part of a file that a picture resembles most. `off` is the mean difference, of 255."""

    area: float
    is_mirrored: bool
    off: float


def known(name: str) -> tuple[np.ndarray, float, np.ndarray]:
    """A file's thumbnail `(CELLS, CELLS, 3) uint8`, width / height, and the least and most mean colour of parts `(2, 3)`."""
    with Image.open(name) as image:
        ratio = image.width / image.height
        thumbnail = np.asarray(image.convert("RGB").resize((CELLS, CELLS), Image.Resampling.BOX))
    means = means_of(summed(thumbnail), tried(round(ratio, 1)), 1)[:, 0, 0]
    return thumbnail, ratio, np.stack([means.min(0), means.max(0)])


def summed(thumbnail: np.ndarray) -> np.ndarray:
    """`(CELLS + 1, CELLS + 1, 3)`: the sums of all pixels above and to the left."""
    sums: np.ndarray = np.pad(thumbnail.astype(np.float32).cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    return sums


def means_of(sums: np.ndarray, parts: np.ndarray, points: int) -> np.ndarray:
    """`(P, points, points, 3)`: each of the parts `(P, 4)`, of top, left, bottom, right, as a picture of so many pixels."""
    along = np.linspace(0, 1, points + 1)
    ys = np.rint(parts[:, :1] + along * (parts[:, 2:3] - parts[:, :1])).astype(np.intp)  # (P, points + 1)
    xs = np.rint(parts[:, 1:2] + along * (parts[:, 3:] - parts[:, 1:2])).astype(np.intp)
    corners = sums[ys[:, :, None], xs[:, None, :]]  # (P, points + 1, points + 1, 3)
    inside = np.diff(np.diff(corners, axis=1), axis=2)
    areas = np.diff(ys)[:, :, None] * np.diff(xs)[:, None, :]
    means: np.ndarray = inside / areas[..., None]
    return means


@cache
def tried(ratio: float) -> np.ndarray:
    """`(P, 4)`: parts of a file with this width / height."""
    lengths = sorted({round(CELLS / STEP**n) for n in range(64) if CELLS / STEP**n >= CELLS / 5})
    found = [(0, 0, CELLS, CELLS)]
    for height in lengths:
        for width in lengths:
            if height * width * SLACK < AREA[0] * CELLS**2 or not is_between(ratio * width / height):
                continue
            tops = np.linspace(0, CELLS - height, -(-(CELLS - height) // APART) + 1).round().astype(int)
            lefts = np.linspace(0, CELLS - width, -(-(CELLS - width) // APART) + 1).round().astype(int)
            found += [(top, left, top + height, left + width) for top in tops.tolist() for left in lefts.tolist()]
    return np.array(found)


def is_between(ratio: float) -> bool:
    return RATIO[0] / SLACK <= ratio <= RATIO[1] * SLACK


def near(part: np.ndarray) -> np.ndarray:
    """`(P, 4)`: parts around one part `(4,)`."""
    offsets = np.stack(np.meshgrid(*[np.arange(-NEAR, NEAR + 1)] * 4), axis=-1).reshape(-1, 4)
    parts = np.unique(np.clip(part + offsets, 0, CELLS), axis=0)
    wide: np.ndarray = parts[(parts[:, 2:] - parts[:, :2]).min(1) >= POINTS]
    return wide


def find(picture: np.ndarray, thumbnail: np.ndarray, ratio: float) -> Part:
    """Compare a picture `(H, W, 3) uint8` with the parts of a file."""
    small = cv2.resize(picture, (POINTS, POINTS), interpolation=cv2.INTER_AREA).astype(np.float32)
    wanted = np.stack([small, small[:, ::-1]])[:, None]  # (2, 1, POINTS, POINTS, 3)
    sums, parts = summed(thumbnail), tried(round(ratio, 1))
    off = np.abs(means_of(sums, parts, POINTS) - wanted).mean((2, 3, 4))  # (2, P)
    best = parts[np.argsort(off.min(0))[:BEST]]
    parts = np.concatenate([best, *(near(part) for part in best)])
    off = np.abs(means_of(sums, parts, POINTS) - wanted).mean((2, 3, 4))
    mirrored, number = np.unravel_index(off.argmin(), off.shape)
    top, left, bottom, right = parts[number].tolist()
    return Part((bottom - top) * (right - left) / CELLS**2, bool(mirrored), float(off.min()))


class Search:
    """Finds the pictures of an epoch in their files."""

    def __init__(self, work: Photos) -> None:
        self._thumbnails, self._ratios = work.parts["thumbnails"], work.parts["ratios"]
        self._found: list[Part] = []

    def take(self, index: np.ndarray, pictures: np.ndarray) -> None:
        """Find the pictures `(B, H, W, 3)` of the files `index (B,)`.

        Raises:
            WrongPayloadError: one does not look like a part of its file.
        """
        for file, picture in zip((index % len(self._ratios)).tolist(), pictures, strict=True):
            part = find(picture, self._thumbnails[file], float(self._ratios[file]))
            if part.off > LIKE:
                raise WrongPayloadError(
                    f"sample {file} is no part of its file: the nearest is {part.off:.0f} of 255 off on average"
                )
            self._found.append(part)

    def end(self) -> dict[str, float]:
        """The mean area of the parts, and the share that is mirrored.

        Raises:
            WrongPayloadError: they are not those of the recipe.
        """
        area = float(np.mean([part.area for part in self._found]))
        mirrored = float(np.mean([part.is_mirrored for part in self._found]))
        for value, (least, most), std, what in (
            (area, AREA_MEANS, AREA_STD, "of the area is shown"),
            (mirrored, (0.5, 0.5), 0.5, "is mirrored"),
        ):
            slack = LIKELY * std / math.sqrt(len(self._found))
            if not least - slack <= value <= most + slack:
                raise WrongPayloadError(
                    f"{value:.0%} {what}, not {least - slack:.0%} to {most + slack:.0%}: these are not the crops of the recipe"
                )
        return {"mean_area": area, "mirrored_share": mirrored}
