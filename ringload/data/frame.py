"""Tables and folders of image files as a source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.data.codecs import Color
from ringload.data.fields import Field, Producer, Row, as_fields
from ringload.data.files import ReadAhead, read_table
from ringload.data.geometry import Geometry, Interpolation, Resize
from ringload.data.images import MAX_PIXELS, Dtype, ImageDecoder, worst_scratch_bytes
from ringload.data.index import Strings
from ringload.data.labels import Label, LabelMode, encode, numbers, present
from ringload.data.splits import How, chosen_rows
from ringload.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

IMAGE, WEIGHT = "image", "weight"  # fields beside those of the labels
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class ImageFrame:
    """Images by their paths in a table, with labels.

    Fields: `image (H, W, C)` uint8 or float32; those of the labels, see `label`; `weight () float32` if asked for.

    Arguments:
        df: a DataFrame, or the path of a .csv or .parquet file of one.
        path: the column of paths; relative ones start at `root`, or at the present directory. `root` is where they start and
            no fence: absolute paths, and `..`, lead out of it. Only regular files are read, and only as images.
        label: a column of classes (strings or ints), of bools, of floats, or of lists; several columns; a dict of field
            names to these; or None. The field is called `label` but for a dict.
        size: (height, width) in pixels.
        classes: the classes in the order of their numbers; None: as an ordered categorical has them, else sorted. For a dict
            of labels, a dict of them.
        label_mode: "auto", "int", "categorical" (one-hot), "binary", "multi_hot" or "float"; see `ringload.data.labels`.
        weight: a column of sample weights.
        color: "rgb" (C = 3), "gray" (1) or "rgba" (4).
        dtype, scale: "uint8"; or "float32" with 0..255 mapped onto `scale`.
        resize: "stretch" to the size; "crop": the largest part in the middle with its proportions; "random_crop": a part
            drawn as torchvision's RandomResizedCrop does, with its share of the area in `crop_area` and width / height in
            `crop_ratio`.
        interpolation: "nearest", "linear", "area", "cubic", "lanczos"; "auto": area from 3 times smaller on, else linear.
        flip: mirror every other image, at random.
        exif: turn images as their EXIF orientation says.
        transform: `transform(image (H, W, C) uint8, rng) -> image`, or an albumentations transform; called last, before
            the conversion to float32. It may return float32 itself.
        max_pixels: larger images are bad samples.

    Attributes: `class_names`, `class_indices` (of one label field); `filenames`, `filepaths`, `samples`, `n`; `labels`, the
    values of one label field; `rows`, which rows of the table the samples are.

    Raises:
        ConfigError: the table, a column or an option cannot be used; the message names column and row.
    """

    def __init__(
        self,
        df: pd.DataFrame | str | os.PathLike[str],
        path: Any = "path",
        label: Any = None,
        *,
        size: tuple[int, int],
        root: str | os.PathLike[str] | None = None,
        classes: Any = None,
        label_mode: LabelMode | dict[str, LabelMode] = "auto",
        weight: Any = None,
        color: Color = "rgb",
        dtype: Dtype = "uint8",
        scale: tuple[float, float] = (-1.0, 1.0),
        resize: Resize = "stretch",
        crop_area: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "auto",
        flip: bool = False,
        exif: bool = False,
        transform: Any = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        table = read_table(df)
        if len(table) == 0:
            raise ConfigError("the table has no rows")
        if not isinstance(size, Sequence) or len(size) != 2:
            raise ConfigError(f"size is (height, width) in pixels, not {size!r}")
        geometry = Geometry(int(size[0]), int(size[1]), resize, crop_area, crop_ratio, interpolation)
        self._decoder = ImageDecoder(geometry, color, dtype, scale, exif, flip, transform, max_pixels)
        self._root = os.path.join(os.fsencode(os.path.abspath(root if root is not None else ".")), b"")  # ends in a slash
        self._paths = Strings.of(present(table, path), f"column {path!r}, row")
        self._labels = encode(table, label, classes, label_mode)
        if weight is not None:
            self._labels.append(_weight(present(table, weight)))
        names = [IMAGE, *(one.name for one in self._labels)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"two fields are called {twice.pop()!r}: give the label another name, label={{name: column}}")
        self._table: pd.DataFrame | None = table  # to split by its columns; producers do not get it
        self.rows = np.arange(len(table))
        self._ahead = ReadAhead()
        self.fields: dict[str, Field] = as_fields({IMAGE: self._decoder.field} | {one.name: one.field for one in self._labels})

    def __len__(self) -> int:
        return len(self._paths)

    # -- loading ------------------------------------------------------------------------------------------------------

    @property
    def random(self) -> bool:
        """Whether loading draws anything."""
        return self._decoder.draws

    @property
    def global_random(self) -> bool:
        """Whether loading may draw from the global generators."""
        return self._decoder.transform is not None

    @property
    def scratch_bytes(self) -> int:
        """The most memory that decoding one image may take."""
        return worst_scratch_bytes(self._decoder.max_pixels)

    def start(self, producer: Producer) -> None:
        """Begin to load in a producer."""
        self._decoder.start(producer)

    def prefetch(self, indices: np.ndarray) -> None:
        """Open the files of samples that are loaded next, and have them read."""
        self._ahead.ask([(index, self._full_path(index)) for index in indices.tolist()])

    def load(self, index: int, rng: np.random.Generator | None, out: Row) -> None:
        """Decode sample `index` into its row."""
        fds: list[int] = []
        closed = map(os.close, fds)  # each is taken and closed in one step, which no interruption divides
        try:
            n_bytes = self._ahead.open(index, self._full_path(index), fds)
            self._decoder.load(fds[0], n_bytes, rng, out[IMAGE])
        finally:
            for _ in closed:
                pass
        for label in self._labels:
            label.write(index, out[label.name])

    def describe(self, index: int) -> str:
        """The sample's path."""
        return os.fsdecode(self._full_path(index))

    def _full_path(self, index: int) -> bytes:
        path = self._paths[index]
        return path if path.startswith(b"/") else self._root + path

    # -- what users of Keras' flow_from_dataframe read ----------------------------------------------------------------

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self)

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self)

    @property
    def filenames(self) -> list[str]:
        """The paths, as the table has them."""
        return [os.fsdecode(path) for path in self._paths]

    @property
    def filepaths(self) -> list[str]:
        """The paths, from the root of the file system."""
        return [self.describe(index) for index in range(len(self))]

    @property
    def class_names(self) -> list[Any]:
        """The classes in the order of their numbers."""
        return list(self._only_label().class_names)

    @property
    def class_indices(self) -> dict[Any, int]:
        """Class -> its number."""
        return {name: number for number, name in enumerate(self.class_names)}

    def class_names_of(self, field: str) -> list[Any]:
        """The classes of one of several label fields."""
        for label in self._labels:
            if label.name == field:
                return list(label.class_names)
        raise ConfigError(f"there is no label field {field!r}; the fields are {list(self.fields)}")

    @property
    def labels(self) -> np.ndarray:
        """The values of the label field for all samples: `(N, *shape)`."""
        label = self._only_label()
        values = np.empty((len(self), *label.field.shape), label.field.dtype)
        if not label.hot:
            values[...] = label.values
        else:
            for row, view in enumerate(values):
                label.write(row, view)
        return values

    def _only_label(self) -> Label:
        labels = [label for label in self._labels if label.name != WEIGHT]
        if len(labels) != 1:
            raise ConfigError(f"there are {len(labels)} label fields: use class_names_of(field)")
        return labels[0]

    # -- parts --------------------------------------------------------------------------------------------------------

    def split(self, fraction: float, seed: int = 0, by: Any = None, how: How = "stratify") -> tuple[ImageFrame, ImageFrame]:
        """Two parts, for training and validation; the second gets `fraction` of the samples.

        Without `by`: round(fraction * N) samples at random. by=column, how="stratify": of each value's n samples
        round(fraction * n). how="group": whole groups, in random order, until the second part has at least
        `fraction` of all samples; no value is in both. Both keep the table's order, and depend on `seed` alone.

        Raises:
            ConfigError: there is no such column, or a part would be empty.
        """
        values = None
        if by is not None:
            if self._table is None:
                raise ConfigError(f"this frame was pickled, which leaves its table behind: split by {by!r} before that")
            if by not in self._table.columns:
                raise ConfigError(f"the table has no column {by!r} to split by; it has {list(self._table.columns)}")
            values = self._table[by].iloc[self.rows]
        chosen = chosen_rows(len(self), fraction, seed, values, how)
        return self.subset(np.flatnonzero(~chosen)), self.subset(np.flatnonzero(chosen))

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageFrame:
        """The samples `indices`, in that order; or those where a mask of bools is True.

        Raises:
            ConfigError: there are none, or no such ones.
        """
        chosen = np.asarray(indices)
        if chosen.dtype == bool and chosen.shape == (len(self),):
            chosen = np.flatnonzero(chosen)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or len(chosen) == 0:
            raise ConfigError(
                f"indices are integers, or one bool a sample, and at least one; not {chosen.shape} {chosen.dtype}"
            )
        if chosen.min() < 0 or chosen.max() >= len(self):
            raise ConfigError(f"indices are from 0 to {len(self) - 1}, not {chosen.min()} to {chosen.max()}")
        part: ImageFrame = object.__new__(type(self))
        part.__dict__.update(self.__getstate__())
        part._decoder = self._decoder.twin()
        part._ahead = ReadAhead()
        part._table = self._table
        part.rows = self.rows[chosen]
        part._paths = self._paths.take(chosen)
        part._labels = [label.take(chosen) for label in self._labels]
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None, "_ahead": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ahead = ReadAhead()


def ImageFolder(  # noqa: N802  (named as in torchvision: what it makes is a source)
    root: str | os.PathLike[str],
    *,
    size: tuple[int, int],
    classes: Sequence[str] | None = None,
    label_mode: LabelMode = "int",
    **options: Any,
) -> ImageFrame:
    """Images in one folder a class: an ImageFrame of root/CLASS/**/*.jpg, in sorted order.

    Hidden files and folders, and files that do not end as images do, are passed over.

    Arguments:
        root: the folder. classes: which of its folders, in the order of their numbers; None: all, sorted.
        size, label_mode, options: as ImageFrame has them.

    Raises:
        ConfigError: it is no folder of folders, or a class has no image.
    """
    import pandas as pd

    folder = Path(root)
    if not folder.is_dir():
        raise ConfigError(f"{root} is not a folder")
    there = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not there:
        raise ConfigError(f"{root} has no folders: there is to be one a class")
    names = there if classes is None else list(classes)
    if absent := sorted(set(names) - set(there)):
        raise ConfigError(f"{root} has no folder for the classes {absent}; it has {there}")
    paths: list[str] = []
    labels: list[str] = []
    for name in sorted(names):
        found = sorted(os.path.relpath(path, folder) for path in _images(folder / name))
        if not found:
            raise ConfigError(f"{folder / name} holds no image ({', '.join(SUFFIXES)})")
        paths += found
        labels += [name] * len(found)
    table = pd.DataFrame({"path": paths, "label": labels})
    return ImageFrame(table, label="label", size=size, root=folder, classes=names, label_mode=label_mode, **options)


def _images(folder: Path) -> Iterator[str]:
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(where, name)


def _weight(column: pd.Series[Any]) -> Label:
    values = numbers(column)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ConfigError(f"column {column.name!r} has a weight that is not finite in row {column.index[row]}")
    return Label(WEIGHT, Field((), "float32"), (), values)
