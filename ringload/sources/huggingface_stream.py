"""A streaming dataset of Hugging Face's `datasets` as a `Stream`. Part p of n is `dataset.shard(n, p)`, read in a worker.

an Image column             its bytes, or the file that its path names, decoded by ringload; `datasets` decodes nothing
ClassLabel                  class numbers
numbers, and lists and arrays of numbers of one shape: fields of the same dtype, by the dataset's features
shuffle, map, filter, ...   as `datasets` does them; a shuffle buffer is in the worker that reads the part

A part goes on by the dataset's own `state_dict`, where that gives each row once. Behind a shuffle buffer it does not, so there
a part is read again up to its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ringload.checks import integer, listed, no_field, short, warn
from ringload.errors import ConfigError, ContentTooLargeError
from ringload.fields import RESERVED, Field
from ringload.images.decoder import ImageDecoder, decoder_of
from ringload.images.formats import MODES
from ringload.protocols import Storage
from ringload.sources.image_rows import IMAGE, EncodedRow, ImageRows, room_for
from ringload.sources.storage_owner import StorageOwner
from ringload.sources.stream import Stream
from ringload.sources.stream_labels import StreamLabel, labels_of
from ringload.storage.registry import LOCAL, factory_of, is_registered, not_registered, scheme_of

N_PARTS = 16  # at most, if `parts` is not given
EXACT = {  # iterables of `datasets` whose state gives each row once
    "ArrowExamplesIterable",
    "ExamplesIterable",
    "FilteredExamplesIterable",
    "FormattedExamplesIterable",
    "MappedExamplesIterable",
    "RebatchedArrowExamplesIterable",
    "SelectColumnsIterable",
}
Value = Callable[[Any], Any]


def stream_of_huggingface(
    dataset: Any, image: str | None, columns: Sequence[str] | None, label: Any, how: dict[str, Any], options: dict[str, Any]
) -> Stream:
    """A `Stream` of an IterableDataset. The arguments are those of `from_huggingface`; `how`: parts, steps, order, shuffle.

    Raises:
        ConfigError: its features are not known, or an argument is not valid.
    """
    if dataset.features is None:
        raise ConfigError(
            "the features of this IterableDataset are not known before its rows are read: give them, dataset.cast(features) or "
            "load_dataset(..., features=datasets.Features({...})); or dataset._resolve_features(), which reads the first rows"
        )
    dataset = dataset.with_format(None)
    features = dict(dataset.features)
    images = [name for name, one in features.items() if type(one).__name__ == "Image"]
    if image is None and len(images) > 1:
        raise ConfigError(f"the dataset has several columns of images, {listed(images)}: name one, image={images[0]!r}")
    if image is not None and image not in images:
        raise ConfigError(f"image={short(image)}: {no_field(image, images, 'column of images')}")
    image = image or (images[0] if images else None)
    classes, mode, weight = options.pop("classes", None), options.pop("label_mode", "auto"), options.pop("weight", None)
    integers = [name for name, one in features.items() if getattr(one, "dtype", "").startswith(("int", "uint"))]
    labels = labels_of(label, classes, mode, weight, integers)
    if unknown := [one.column for one in labels if one.column not in features]:
        raise ConfigError(no_field(unknown[0], list(features), "column"))
    used = {image, *(one.column for one in labels)}
    fields = _fields(features, columns, used)
    n_shards = int(dataset.num_shards)
    n_parts = min(N_PARTS, n_shards) if how["parts"] is None else integer("parts", how["parts"], 1)
    if n_parts > n_shards:
        raise ConfigError(f"parts={n_parts:,}, and the dataset has num_shards={n_shards:,}: each part needs a shard")
    how["parts"] = n_parts
    wanted = [*fields, *(name for name in dict.fromkeys(one.column for one in labels) if name not in fields)]
    shapes = {name: field for name, (field, _) in fields.items()} | {one.name: one.field for one in labels}
    if image is None:
        if options:
            raise ConfigError(f"the dataset has no column of images, and {', '.join(options)}= is for images only")
        read = _Rows(_undecoded(dataset, wanted), None, None, fields, labels)
        return Stream(read, shapes, **how)
    if "size" not in options:
        raise ConfigError(f"column {image!r} has images: give size=(height, width) in pixels")
    if (color_mode := features[image].mode) is not None:
        color = next((color for color, one in MODES.items() if one == color_mode), None)
        if color is None or options.setdefault("color", color) != color:
            raise ConfigError(f"column {image!r} is Image(mode={color_mode!r}), and color is {short(options.get('color'))}")
    rows = ImageRows(decoder_of(**options), shapes, 0, bool(how["shuffle"]))
    read = _Rows(_undecoded(dataset, [image, *wanted]), image, rows.reads_by, fields, labels)
    return Stream.of_rows(read, rows, **how)


def _undecoded(dataset: Any, wanted: list[str]) -> Any:
    """The dataset with some of its columns, whose images stay encoded."""
    return dataset.select_columns(wanted).decode(False)


def _fields(features: dict[str, Any], columns: Any, used: set[str | None]) -> dict[str, tuple[Field, Value]]:
    """The fields of columns, and what makes a value of a row's."""
    if columns is not None and (isinstance(columns, str) or not all(isinstance(name, str) for name in columns)):
        raise ConfigError(f"columns is a list of names of columns, not {short(columns)}")
    if unknown := [name for name in columns or () if name not in features]:
        raise ConfigError(no_field(unknown[0], list(features), "column"))
    made, left = {}, {}
    for name in features if columns is None else columns:
        if columns is None and name in used:
            continue
        found = _field(features[name])
        if found is None or not name.isidentifier() or name in (*RESERVED, IMAGE):
            left[name] = f"is {short(features[name])}" if found is None else "has a name that no field can have"
        else:
            made[name] = (found, _value(name, features[name], found))
    if left and columns is not None:
        name, why = next(iter(left.items()))
        raise ConfigError(f"column {name!r} {why}: fields are numbers, bools, ClassLabel, and lists and arrays of one shape")
    if left:
        said = "; ".join(f"{name!r} {why}" for name, why in left.items())
        warn(f"not all columns become fields: {said}. Name those that you need: columns={listed(list(made))}")
    return made


def _field(feature: Any) -> Field | None:
    """The field of a feature; None if its rows have no one shape of numbers."""
    kind = type(feature).__name__
    if kind == "ClassLabel":
        return Field((), "int64")
    if kind == "Value":
        try:
            dtype = np.dtype(feature.dtype)
        except TypeError:  # string, timestamp[s]
            return None
        return Field((), dtype) if dtype.kind in "biuf" else None
    if kind in ("Array2D", "Array3D", "Array4D", "Array5D"):
        return Field(feature.shape, feature.dtype) if None not in feature.shape else None
    if kind in ("List", "Sequence", "LargeList") and getattr(feature, "length", -1) > 0:
        inner = _field(feature.feature)
        return None if inner is None else Field((feature.length, *inner.shape), inner.dtype)
    return None


def _value(name: str, feature: Any, field: Field) -> Value:
    n_classes = len(feature.names) if type(feature).__name__ == "ClassLabel" and feature.names else None

    def value(given: Any) -> Any:
        if given is None:
            raise ValueError(f"it has no {name!r}")
        if n_classes is not None and not 0 <= given < n_classes:
            raise ValueError(f"{name!r} is {given}, of {n_classes} names")
        return given if not field.shape and field.dtype.kind in "bi" else np.asarray(given, field.dtype)

    return value


class _Rows(StorageOwner[Storage]):
    """The factory of the stream. Without images it gives dicts."""

    def __init__(
        self,
        dataset: Any,
        image: str | None,
        decoder: ImageDecoder | None,
        fields: dict[str, tuple[Field, Value]],
        labels: Sequence[StreamLabel],
    ) -> None:
        self._dataset, self._image, self._decoder, self._fields, self._labels = dataset, image, decoder, fields, labels
        self._scheme = LOCAL

    def __call__(self, part: int, n_parts: int, epoch: int) -> Any:
        if n_parts > self._dataset.num_shards:
            raise ValueError(
                f"the dataset has num_shards={self._dataset.num_shards:,} for {n_parts:,} parts (parts= of each rank): each "
                "part needs a shard, so give fewer parts="
            )
        dataset = self._dataset.shard(n_parts, part, contiguous=False)
        dataset.set_epoch(epoch)
        return (_Sought if is_exact(dataset) else _Replayed)(self, dataset, part)

    def row(self, given: dict[str, Any], name: str) -> Any:
        """A row as the stream takes it.

        Raises:
            OSError, ValueError: something is wrong with it.
        """
        try:
            values = {field: value(given[field]) for field, (_, value) in self._fields.items()}
            values |= {one.name: one.value(given[one.column]) for one in self._labels}
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name}: {error}") from error
        return values if self._image is None else self._encoded(given[self._image], name, values)

    def _encoded(self, cell: Any, name: str, values: dict[str, Any]) -> EncodedRow:
        assert self._decoder is not None
        cell = cell or {}
        name = f"{name}, {cell['path']}" if cell.get("path") else name
        try:
            content = cell.get("bytes")
            if content is None and cell.get("path"):
                content, release = self._read(cell["path"], self._decoder)
                return EncodedRow(name, content, values, release)
            if not content:
                raise ValueError("it has no image")
            return EncodedRow(name, content, values, room_for(self._decoder, len(content)))
        except (OSError, ValueError) as error:
            raise (OSError if isinstance(error, OSError) else ValueError)(f"{name}: {error}") from error

    def _read(self, path: str, decoder: ImageDecoder) -> tuple[Any, Callable[[], None]]:
        """The content of a file, and what is called when it is not used any more."""
        scheme = scheme_of(path.encode())
        if not is_registered(scheme):
            raise ValueError(not_registered(scheme))
        if scheme != self._scheme:
            if self._storage is not None:
                self._storage.close()
            self._scheme, self._storage = scheme, None
        try:
            return bytes(self._own().read(path.removeprefix("file://"), decoder.shared_bytes)), room_for(decoder, 0)
        except ContentTooLargeError as error:
            n_bytes = error.n_bytes
        release = room_for(decoder, n_bytes)
        try:
            return bytes(self._own().read(path.removeprefix("file://"), n_bytes)), release
        except BaseException:
            release()
            raise

    def _make_storage(self) -> Storage:
        return factory_of(self._scheme)()


def is_exact(dataset: Any) -> bool:
    """Whether the state of a dataset gives each row once: it has no shuffle buffer, and nothing else that is not known."""
    one = getattr(dataset, "_ex_iterable", None)
    while one is not None:
        if type(one).__name__ not in EXACT:
            return False
        one = getattr(one, "ex_iterable", None)
    return hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")


class _Replayed:
    """The rows of a part, as an iterator. An error of a row does not end it."""

    def __init__(self, of: _Rows, dataset: Any, part: int) -> None:
        self._of, self._dataset, self._part, self._n = of, dataset, part, 0
        self._rows: Iterator[Any] | None = None
        self._last: Any = None
        self._failure = ""  # why there are no more rows

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        if isinstance(self._last, EncodedRow):
            self._last.release()
        if self._rows is None:
            self._rows = iter(self._dataset)
        if self._failure:
            raise RuntimeError(self._failure)
        try:
            given = next(self._rows)
        except StopIteration:
            raise
        except Exception as error:  # which has ended the generator of `datasets`
            self._failure = f"part {self._part} goes on no more: the dataset has raised {type(error).__name__}"
            raise
        self._n += 1
        self._last = self._of.row(given, f"row {self._n - 1:,} of the dataset's part {self._part}")
        return self._last


class _Sought(_Replayed):
    """The same, with places."""

    def state(self) -> Any:
        """Where the dataset goes on."""
        return {"n": self._n, "of": self._dataset.state_dict()}

    def seek(self, state: Any) -> None:
        """Go on there."""
        self._n = state["n"]
        self._dataset.load_state_dict(state["of"])
