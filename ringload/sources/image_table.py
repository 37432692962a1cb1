"""A table of image files as a source."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.checks import fixed_once_made, in_our_words, integer, short
from ringload.errors import ConfigError
from ringload.fields import Field, Row, Worker, as_fields
from ringload.images.augment import SCALE, Dtype
from ringload.images.decoder import decoder_of, worst_scratch_bytes
from ringload.images.formats import Color, Truncated
from ringload.images.geometry import Resize
from ringload.images.resample import Interpolation
from ringload.sources.cached import cached
from ringload.sources.columns import column_of, numbers, present, read_table
from ringload.sources.contents import Contents, ImageTable, read_and
from ringload.sources.fingerprints import Fingerprint, TableFingerprint, checksum
from ringload.sources.image_steps import ImageSteps
from ringload.sources.label_field import WEIGHT, Label, LabelFields
from ringload.sources.labels import LabelMode, encode
from ringload.sources.paths import paths_of
from ringload.sources.saved_index import load, save, table_file
from ringload.sources.splits import NOT_GIVEN, Augment, How, are_values, chosen_rows, folds, split
from ringload.sources.stored_files import AHEAD_BYTES, StoredFiles
from ringload.storage.registry import factory_of
from ringload.system.process_lock import ProcessLock

if TYPE_CHECKING:
    import pandas as pd

IMAGE = "image"  # the name of the field of images
OF_TABLE = {"df", "label", "classes", "label_mode", "weight", "read_options"}  # arguments that an index answers


class ImageFrame:
    """Images by their paths in a table, with labels.

    Fields: `image (H, W, C)` uint8 or float32; those of the labels, see `label`; `weight () float32` if asked for.

    Arguments:
        df: a DataFrame, or the path of a .csv, .tsv (also .gz, .bz2, .xz, .zip, .zst) or .parquet file of one. In a column of
            strings of a .csv file an empty cell is missing, and "NA" or "None" is a string; in one of numbers they are missing.
        path: the column of paths. Relative paths start at `root`; without it, at the folder of the table's file, or for a
            DataFrame at the working directory. `root` is no sandbox: absolute paths and `..` lead out of it. `~/` and `~name/`
            are home directories. Only regular files are read, and only as images. A warning comes if most of a few files,
            spread over the table, do not exist. Or all paths are URLs of one scheme, or start at a `root` that is a URL, and a
            storage is registered for the scheme by `ringload.register_storage`.
        label: a column of classes (strings or ints), of bools, of numbers with decimals (float, Decimal), or of lists; several
            columns; a dict of field names to these; or None. The field is called `label`, except with a dict. Where
            columns have levels, a tuple names one, and a list of tuples several. A string is one class, also "red,blue".
        size: (height, width) in pixels.
        classes: the number of each class: a list (array, Index) of the classes in the order of their numbers, or a dict of
            class -> number. None: an ordered categorical has its own order; integers from 0 on keep their numbers, whichever of
            them occur; other values are sorted, with a warning for integers. So the number of a class may depend on which
            others occur: give the table of a validation set `classes=train.class_names`. For a dict of labels, a dict of these.
        label_mode: "auto", "int", "categorical" (one-hot), "binary", "multi_hot" or "float"; see `ringload.sources.labels`.
        weight: a column of sample weights.
        color: "rgb" (C = 3), "gray" (1) or "rgba" (4).
        dtype, scale: "uint8"; or "float32" with 0..255 mapped onto `scale`, (low, high). Or the values that files have, which
            are not scaled: "uint16", for files of unsigned integers; or "float32" with scale=None, for files of any numbers,
            and DICOM's rescaled values (Hounsfield units). A pixel of 12 bits is 0..4095 then, and one of 8 bits 0..255.
            Resizing averages values; gray of colours is their luma. background, value_range and color="rgba" do not go with it.
            AVIF files have 8 bits here.
        resize: "stretch": the whole image; "crop": the largest central part with the proportions of `size`; "random_crop": a
            random part as in torchvision's RandomResizedCrop, with its share of the area in `crop_area` and width / height in
            `crop_ratio`.
        interpolation: how images are scaled. "auto" is "antialias": an output pixel averages all pixels that it covers, with a
            factor for each side, as Pillow's BILINEAR, torchvision and tf.image.resize(antialias=True) do; JPEG files come as
            close to that as 45 dB (median of photographs), other formats to one level of 255. It is computed by cykooz-resizer,
            or by Pillow where that is not installed: pixels of the two may differ by one level. The others are OpenCV's, faster
            or for other purposes: "linear" takes 2 x 2 pixels at any factor, so it aliases where an image shrinks; "area"
            averages if both sides shrink, else it is "linear"; "nearest", "cubic" (4 x 4) and "lanczos" (8 x 8) do not average.
            "fast", which was "auto" up to 0.1, is "area" if a side shrinks by 3 or more, else "linear".
        flip: mirror half of the images, at random. `split` keeps flips, random crops and `transform` in the first part only.
        exif: turn images by their EXIF orientation, or else by that of XMP, as `ImageOps.exif_transpose` does. False: images
            are as stored, also those of TIFF files.
        transform: `transform(image (H, W, C) uint8, rng) -> image`, or an albumentations transform; called last, before
            the conversion to float32. It may return float32 itself.
        max_pixels: larger images are bad samples, and the budget must hold one image of that size. None: 89,478,485 pixels, or
            as many as a half of `ram_budget` allows.
        background: what replaces transparent pixels, as (red, green, blue) or one level of gray, each in 0..255. None:
            color="rgb" and "gray" drop alpha, so that colours of transparent pixels show, as with Pillow and torchvision.
            color="rgba" keeps alpha, which weights colours in scaling: colours of transparent pixels do not bleed.
        value_range: (black, white): the values of pixels that become 0 and 255, for files of more than 8 bits a value (PNG,
            TIFF, PNM, HEIC, JPEG 2000, JPEG XL, .npy, DICOM). None: by their kind, never by their content: 0 to 2**n - 1 for
            integers of n bits, 0 to the maximum in the header for PNM, 0 to 1 for floats; other floats and signed integers are
            bad samples. 12-bit data in a 16-bit file, usual in medicine, are dark without value_range=(0, 4095).
        truncated: for files that are cut short, "refuse": they are bad samples; "pad": missing pixels are filled in, as Pillow
            does; None: as Pillow's `ImageFile.LOAD_TRUNCATED_IMAGES` is set where the image is loaded.
        read_ahead: bytes that each worker may keep of contents that it has read ahead, for paths that are URLs: more, where
            one content takes several MB and much time to come. "auto": 16 MB. It is part of `ram_budget`.
        read_options: of `pandas.read_csv` or `pandas.read_parquet`, for a table's file: {"sep": ";", "encoding": "latin-1"}.

    The formats are JPEG, PNG, WebP, BMP, GIF, TIFF, PBM, PGM, PPM, PFM, JPEG 2000 and .npy; AVIF where Pillow has it; and, with
    imagecodecs, pillow-heif and pydicom (the extra `formats`), HEIC, JPEG XL, QOI and DICOM. The content tells the format. Of
    animations and files of several images or frames the first is taken. A .npy file is (height, width), or (height, width, n)
    with n from 1 to 4. TIFF files with planes, with 2 or more than 4 values a pixel, or with odd bits need tifffile. Gray of a
    JPEG file is its luma.

    Attributes: `class_names`, `class_indices` (of one label field); `filenames`, `filepaths`, `samples`, `n`; `labels`, the
    values of one label field; `rows (N,)`, the samples' rows in the table, as `df.iloc` takes them, also of a part;
    `augmentation`, what is done at random. None of them can be set.

    Raises:
        ConfigError: the table, a column or an option is not valid; the message names column and row.
    """

    @in_our_words()
    def __init__(
        self,
        df: pd.DataFrame | str | os.PathLike[str] | ImageTable,
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
        scale: tuple[float, float] | None = SCALE,
        resize: Resize = "stretch",
        crop_area: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "auto",
        flip: bool = False,
        exif: bool = False,
        transform: Any = None,
        max_pixels: int | None = None,
        background: int | tuple[int, int, int] | None = None,
        value_range: tuple[float, float] | None = None,
        truncated: Truncated | None = None,
        read_ahead: int | Literal["auto"] = "auto",
        read_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.table_file = None if isinstance(df, ImageTable) else table_file(df)  # before it is read
        table = df.table if isinstance(df, ImageTable) else read_table(df, read_options)
        if len(table) == 0:
            raise ConfigError("the table has no rows")
        self._decoder = decoder_of(
            size,
            resize=resize,
            crop_area=crop_area,
            crop_ratio=crop_ratio,
            color=color,
            dtype=dtype,
            scale=scale,
            exif=exif,
            flip=flip,
            transform=transform,
            max_pixels=max_pixels,
            interpolation=interpolation,
            background=background,
            value_range=value_range,
            truncated=truncated,
        )
        self._is_plain = False  # made by `without_augmentation`
        self._contents: Contents
        if isinstance(df, ImageTable):
            self._contents = df.contents
        else:
            paths = paths_of(present(table, path), df, root)
            ahead_bytes = AHEAD_BYTES if read_ahead == "auto" else integer("read_ahead", read_ahead, 0)
            self._contents = StoredFiles(paths, factory_of(paths.scheme), ahead_bytes)
        labels = encode(table, label, classes, label_mode)
        labels += df.columns if isinstance(df, ImageTable) else ()
        if weight is not None:
            labels.append(Label(WEIGHT, Field((), "float32"), (), numbers(present(table, weight), "a weight")))
        self._labels = LabelFields(tuple(labels))
        names = [IMAGE, *(one.name for one in self._labels)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"two fields are called {twice.pop()!r}: give the label another name, label={{name: column}}")
        self.table_fingerprint = TableFingerprint.of(self._contents.names, list(self._labels))
        self._rows_checksum = ""  # computed when it is first needed
        self._table: pd.DataFrame | None = table  # to split by its columns; workers do not get it
        self.rows = np.arange(len(table))
        self.fields: dict[str, Field] = as_fields({IMAGE: self._decoder.field} | {one.name: one.field for one in self._labels})
        self._fixed = ("rows", "fields") if type(self) is ImageFrame else ("rows",)  # a subclass may have more fields

    _one_at_a_time = ProcessLock()  # as decoders and storages use their memory again

    if not TYPE_CHECKING:  # a type checker would accept any attribute
        __setattr__ = fixed_once_made

    def __repr__(self) -> str:
        if "_fixed" not in vars(self):  # its constructor raised
            return object.__repr__(self)
        of = {one.name: f" of {len(one.class_names):,} classes" if one.class_names else "" for one in self._labels}
        random = [f"{k}={short(v)}" for k, v in self.augmentation.items() if v not in (None, False, "stretch", "crop")]
        fields = ", ".join(f"{name} {field}{of.get(name, '')}" for name, field in self.fields.items())
        return f"<{type(self).__name__} of {len(self):,} samples: {fields}; augmentation: {', '.join(random) or 'none'}>"

    def __len__(self) -> int:
        return len(self._contents)

    # -- loading ------------------------------------------------------------------------------------------------------

    @property
    def random(self) -> bool:
        """Whether loading makes random choices."""
        return self._decoder.augmenter.draws

    @property
    def global_random(self) -> bool:
        """Whether loading may use the global random generators."""
        return self._decoder.augmenter.transform is not None

    @property
    def scratch_bytes(self) -> int:
        """The most memory that loading one image takes, including bytes that are read ahead."""
        return worst_scratch_bytes(self._decoder.max_pixels) + self._contents.ahead_bytes

    @property
    def ahead_bytes(self) -> int:
        """Of these, bytes that are read ahead, which stay between images."""
        return self._contents.ahead_bytes

    @property
    def refuses_large(self) -> bool:
        """Whether images that the budget does not allow may be refused: not with `max_pixels`, which the budget must hold."""
        return self._decoder.guaranteed_pixels is None

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker."""
        ahead_bytes = self._contents.ahead_bytes
        max_bytes = None if worker.max_bytes is None else worker.max_bytes - ahead_bytes
        self._decoder.start(replace(worker, scratch_bytes=worker.scratch_bytes - ahead_bytes, max_bytes=max_bytes))

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to read the files of samples that are loaded next."""
        self._contents.prefetch(indices)

    def is_ready(self, indices: np.ndarray) -> bool:
        """Whether samples can be loaded without waiting for their files, as far as the storage tells."""
        return self._contents.is_ready(indices)

    def forget(self, indices: np.ndarray) -> None:
        """Let go of what was read ahead for these samples, and was not used."""
        self._contents.forget(indices)

    def load(self, index: int, rng: np.random.Generator | None, out: Row) -> None:
        """Decode sample `index` into its row."""
        row = out[IMAGE]
        with self._one_at_a_time.here():
            read_and(self._contents, index, self._decoder, lambda content: self._decoder.load(content, rng, row))
        self._labels.write(index, out)

    def two_steps(self, size: tuple[int, int] | None) -> ImageSteps:
        """Loading in two steps, for `ringload.Cached`; `size` as there.

        Raises:
            ConfigError: `size` is missing, or there is no use for it; or a subclass loads samples in its own way.
        """
        if type(self).load is not ImageFrame.load:
            raise ConfigError(f"Cached: {type(self).__name__} has a method load() of its own, whose samples cannot be kept")
        table = {name: value for name, value in self.fingerprint().items() if name in ("n_rows", "paths", "rows")}
        return ImageSteps(IMAGE, table, self._contents, self._decoder, self._labels, size)

    cached = cached

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """The rows of samples in the table."""
        made: np.ndarray = self.rows[indices]
        return made

    def describe(self, index: int) -> str:
        """The sample's path."""
        return self._contents.key(index)

    def fingerprint(self) -> Fingerprint:
        """This source in a loader's state: the table, its labels, and the rows that are taken."""
        self._rows_checksum = self._rows_checksum or checksum(self.rows)
        return self.table_fingerprint.of_rows(self._rows_checksum)

    def column(self, name: str) -> np.ndarray:
        """The values `(N,)` of a column of the table, or of a field of labels or weights, for orders that name one.

        Raises:
            ConfigError: there is neither.
        """
        if self._table is not None and name in self._table.columns:
            return np.asarray(self._table[name].iloc[self.rows])
        return self._labels.named(name).of_all(len(self))

    # -- for checks of the whole table --------------------------------------------------------------------------------

    @property
    def contents(self) -> Contents:
        """The encoded images."""
        return self._contents

    def with_contents(self, contents: Contents) -> ImageFrame:
        """The same samples, whose encoded images `contents` gives."""
        return self._copy_with(_contents=contents)

    @property
    def max_pixels(self) -> int:
        """Images of more pixels are bad samples."""
        return self._decoder.max_pixels

    def save_index(self, path: str | os.PathLike[str]) -> None:
        """Save the paths, labels, weights and rows of this frame in one file, for `load_index`. An existing file is replaced.

        Raises:
            ConfigError: the file cannot be written; the table's file has changed since it was read; a class is neither a string
                nor a number; or the images are not files of their own.
        """
        save(self, path)

    @classmethod
    def load_index(
        cls,
        path: str | os.PathLike[str],
        *,
        size: tuple[int, int],
        table: str | os.PathLike[str] | None = None,
        root: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> ImageFrame:
        """The frame whose index was saved by `save_index`. The file is mapped: all ranks of a host and all workers share its
        memory, and pandas is not imported. Columns that are no label of the frame are not in it.

        Arguments:
            table: the file of the table that the index is to be of. None: the file that it was made from, if it is still there.
            root: where relative paths start, if not where they started when the index was saved.
            size, options: how images are loaded, as in `ImageFrame`; not those of the table and its labels.

        Raises:
            ConfigError: the file is no index, is damaged, is of another version, or was made from a table with another content.
        """
        if of_table := sorted(options.keys() & OF_TABLE):
            raise ConfigError(f"load_index() takes no {of_table[0]}=: an index has the labels and rows with which it was saved")
        index = load(path, table, root)
        first: ImageFrame = cls(ImageTable(range(1), index.contents.take(np.array([0]))), size=size, **options)
        fields = as_fields({**first.fields, **{one.name: one.field for one in index.labels}})
        of_index = {"rows": index.rows, "table_fingerprint": index.fingerprint, "table_file": index.file, "fields": fields}
        return first._copy_with(_contents=index.contents, _labels=index.labels, _table=None, **of_index)

    @property
    def label_fields(self) -> LabelFields:
        """The fields of labels, and of weights."""
        return self._labels

    def loading_options(self) -> dict[str, Any]:
        """The options that decide what an image becomes, as text."""
        return self._decoder.options()

    # -- attributes of Keras' flow_from_dataframe ---------------------------------------------------------------------

    @property
    def samples(self) -> int:
        """The number of samples, also as `n`."""
        return len(self)

    n = samples

    @property
    def filenames(self) -> list[str]:
        """The paths as in the table."""
        return [os.fsdecode(path) for path in self._contents.names]

    @property
    def filepaths(self) -> list[str]:
        """The absolute paths, or URLs."""
        return [self.describe(index) for index in range(len(self))]

    @property
    def class_names(self) -> list[Any]:
        """The classes in the order of their numbers."""
        return list(self._labels.only().class_names)

    @property
    def class_indices(self) -> dict[Any, int]:
        """Class -> its number."""
        return {name: number for number, name in enumerate(self.class_names)}

    def class_names_of(self, field: str) -> list[Any]:
        """The classes of one of several label fields."""
        return list(self._labels.named(field).class_names)

    @property
    def labels(self) -> np.ndarray:
        """The values of the label field for all samples: `(N, *shape)`."""
        return self._labels.only().of_all(len(self))

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def augmentation(self) -> dict[str, Any]:
        """The `flip`, `resize` and `transform` of this frame, or of this part of one."""
        augmenter = self._decoder.augmenter
        return {"flip": augmenter.flip, "resize": augmenter.geometry.resize, "transform": augmenter.transform}

    @in_our_words()
    def split(
        self,
        fraction: float | Sequence[float],
        seed: int = 0,
        by: Any = None,
        how: How = "stratify",
        *,
        augment: Augment = "first",
        eval_transform: Any = NOT_GIVEN,
    ) -> tuple[ImageFrame, ...]:
        """Two parts or more, for training and validation. All keep the table's order, and depend on `seed` alone.

        Without `by`, the second part has round(fraction * N) random samples. With by=column and how="stratify", it has
        round(fraction * n) of the n samples of each value. With how="group", it gets whole groups in random order until it has
        at least `fraction` of all samples; no value is in two parts. More parts are filled alike.

        Only the first part is augmented. The others are made without `flip`, with resize="crop" in place of "random_crop", and
        with `eval_transform` in place of `transform`: their `augmentation` shows it. If they are split again, they stay so.

        Arguments:
            fraction: the share of the second of two parts; or the shares of all parts, which sum to 1: (0.7, 0.2, 0.1).
            by: a column to stratify or group by, or values `(N,)`; missing values are one value.
            augment: "first"; or "all": each part is augmented as this frame is.
            eval_transform: the `transform` of the parts after the first, for steps that are no augmentation, such as
                normalising; None: no transform. If it is not given, they have no transform, and if this frame has one, a
                warning says so.

        Raises:
            ConfigError: there is no such column, or a part would be empty.
        """
        options = {"augment": augment, "eval_transform": eval_transform}
        return split(self, fraction, seed, self._values_of(by), how, **options)

    @in_our_words()
    def folds(
        self,
        k: int,
        seed: int = 0,
        by: Any = None,
        how: How = "stratify",
        *,
        augment: Augment = "first",
        eval_transform: Any = NOT_GIVEN,
    ) -> list[tuple[ImageFrame, ImageFrame]]:
        """`k` pairs (train, validation), for cross-validation: each sample is in one of the `k` validation parts, which are
        those of `split` with `k` equal fractions. The arguments are those of `split`."""
        return folds(self, k, seed, self._values_of(by), how, augment=augment, eval_transform=eval_transform)

    def _values_of(self, by: Any) -> Any:
        """What to stratify or group by, `(N,)`."""
        if by is None or are_values(by, len(self)):
            return by
        if self._table is None:
            raise ConfigError(
                f"this frame has no table, as it was pickled: split by {short(by)} before it is pickled. (A frame that was "
                "loaded from an index has none, either: split it by values)"
            )
        return column_of(self._table, by).iloc[self.rows]

    def without_augmentation(self, transform: Any = None) -> ImageFrame:
        """The same samples without `flip`, with resize="crop" in place of "random_crop", and with `transform` in place of this
        frame's."""
        if transform is not None and not callable(transform):
            raise ConfigError(f"a transform is a function transform(image, rng) -> image, or None, not {short(transform)}")
        part = self._copy_with(_decoder=self._decoder.copy_with(self._decoder.augmenter.plain(transform)))
        part._is_plain = True
        return part

    def plain(self, transform: Any = NOT_GIVEN) -> ImageFrame:
        """`without_augmentation`, but of a frame that has none already it is that frame, with its transform."""
        if transform is NOT_GIVEN and self._is_plain:
            return self
        return self.without_augmentation(None if transform is NOT_GIVEN else transform)

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageFrame:
        """The samples `indices`, in that order; or those where a mask of bools is True. They are augmented as in this frame:
        for validation use `subset(...).plain()`.

        Raises:
            ConfigError: `indices` are empty, or not valid.
        """
        rows = chosen_rows(indices, len(self))
        contents, labels = self._contents.take(rows), self._labels.take(rows)
        return self._copy_with(rows=self.rows[rows], _rows_checksum="", _contents=contents, _labels=labels)

    def _copy_with(self, **changes: Any) -> ImageFrame:
        own = {"_decoder": self._decoder.copy_with(), "_contents": copy.copy(self._contents), "_table": self._table}
        copied: ImageFrame = object.__new__(type(self))
        copied.__dict__.update(self.__getstate__() | own | changes)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None, "_rows_checksum": ""}
