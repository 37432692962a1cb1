"""A dataset of Hugging Face's `datasets` as a source. Workers read its Arrow files by themselves, and import no `datasets`.

an Image column     its bytes, by their places in the files, or its paths; decoded as in `ImageFrame`
ClassLabel          class numbers with their names
numbers, and lists and arrays of numbers of one shape: fields of the same dtype
select, shuffle, filter, ...    the dataset's indices, which all columns share
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import in_our_words, listed, named, no_field, short, warn
from ringload.errors import ConfigError
from ringload.fields import RESERVED, Field
from ringload.images.formats import MODES
from ringload.sources.arrays import Arrays
from ringload.sources.arrow_columns import Cells, NotAFieldError, Places, cells_of, row_blocks
from ringload.sources.cells import BlockColumn, CellContents, fingerprinted
from ringload.sources.columns import require_pandas
from ringload.sources.contents import Contents, ImageTable
from ringload.sources.image_table import ImageFrame
from ringload.sources.label_field import Label
from ringload.sources.paths import paths_of
from ringload.sources.stored_files import StoredFiles
from ringload.sources.string_column import Strings
from ringload.storage.registry import factory_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ringload.sources.stream import Stream

DEFAULTS = {"parts": None, "steps": None, "order": "turns", "shuffle": 0}  # of the arguments of a stream


@in_our_words(passes_on_to=ImageFrame, but=("df", "path", "root", "read_options"))
def from_huggingface(
    dataset: Any,
    *,
    image: str | None = None,
    columns: Sequence[str] | None = None,
    label: Any = None,
    parts: int | None = None,
    steps: int | None = None,
    order: str = "turns",
    shuffle: int = 0,
    **options: Any,
) -> ImageFrame | Arrays | Stream:
    """A dataset of Hugging Face's `datasets`. Fields are called as their columns, but for images: `image`.

    With a column of images it is an `ImageFrame`: `from_huggingface(dataset, size=(224, 224))`; `class_names` are those of the
    ClassLabel column. The other columns that become fields are kept in memory. Without one it is an `Arrays`, whose rows are
    read when they are needed. In both, `dataset.select`, `shuffle` and `filter` are respected, and files are not copied: they
    must stay as they are. Nothing is decoded by `datasets`, and `set_transform` is refused.

    An `IterableDataset` (streaming=True) is a `Stream`, of the same fields: part p of n is `dataset.shard(n, p)`, which one
    worker reads by `datasets`. Its features have to be known. Deaths and states lose and repeat no row; behind a shuffle buffer
    of `datasets`, a part is read again up to its place for that.

    Arguments:
        dataset: a `datasets.Dataset`, of files or in memory; or a `datasets.IterableDataset`.
        image: the column of images; None: the only one, if there is one.
        columns: the other columns that become fields: ClassLabel as int64, numbers and bools, lists and arrays of one shape
            with the dtype of the column. None: all that can, with a warning that names those that cannot.
        label: as in `ImageFrame`, for other labels than `columns` gives; the columns that it names are left out of these.
        parts, steps, order, shuffle: of an IterableDataset, as in `Stream`; `parts` None: 16, or its `num_shards`. Labels are
            those of a `TarStream`: other classes than integers need `classes=`.
        options: with images, those of `ImageFrame`: `size` (needed), `resize`, `flip`, `transform`, `weight`, ...

    Raises:
        ConfigError: it is no such dataset, a column or an option is not valid, or rows have no image or value.
    """
    datasets: Any = sys.modules.get("datasets")
    how = {"parts": parts, "steps": steps, "order": order, "shuffle": shuffle}
    if datasets is not None and isinstance(dataset, datasets.IterableDataset):
        from ringload.sources.huggingface_stream import stream_of_huggingface

        return stream_of_huggingface(dataset, image, columns, label, how, options)
    if given := [name for name, one in DEFAULTS.items() if how[name] != one]:
        raise ConfigError(f"{given[0]}= is for an IterableDataset: a map-style dataset takes Loader(order=..., shuffle=...)")
    names = _checked(dataset)
    features = dataset.features
    images = [name for name in names if _kind(features[name]) == "Image"]
    if image is None and len(images) > 1:
        raise ConfigError(f"the dataset has several columns of images, {listed(images)}: name one, image={images[0]!r}")
    if image is not None and image not in images:
        raise ConfigError(f"image={short(image)}: {no_field(image, images, 'column of images')}")
    image = image or (images[0] if images else None)
    rows = None if dataset._indices is None else np.asarray(dataset._indices.column(0)).astype(np.int64)
    if image is None:
        return _arrays(dataset, names, columns, rows, {**options, **({} if label is None else {"label": label})})
    return _images(dataset, names, image, columns, label, rows, options)


def _checked(dataset: Any) -> list[str]:
    """The columns of a dataset, if it is one that can be read."""
    datasets: Any = sys.modules.get("datasets")
    if datasets is not None and isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        splits = list(dataset)
        raise ConfigError(f"this is a {type(dataset).__name__}: give one of its splits, such as dataset[{splits[0]!r}]")
    if datasets is None or not isinstance(dataset, datasets.Dataset):
        raise ConfigError(f"from_huggingface takes a datasets.Dataset, not {named(dataset)}")
    if dataset.format["type"] == "custom":
        raise ConfigError(
            "the dataset has a transform (set_transform, with_transform), which would not be called: give "
            "dataset.with_format(None), and transform= for images; or use ringload.from_dataset(dataset)"
        )
    if len(dataset) == 0:
        raise ConfigError("the dataset has no rows")
    return list(dataset.format["columns"])


def _kind(feature: Any) -> str:
    return type(feature).__name__


# -- without images ---------------------------------------------------------------------------------------------------


def _arrays(dataset: Any, names: list[str], columns: Any, rows: np.ndarray | None, options: dict[str, Any]) -> Arrays:
    if options:
        raise ConfigError(f"the dataset has no column of images, and {', '.join(options)}= is for images only")
    return Arrays(**_numbers(dataset, _wanted(columns, names), columns is None, rows, []))


def _numbers(
    dataset: Any, names: list[str], may_leave: bool, rows: np.ndarray | None, others: list[str]
) -> dict[str, BlockColumn]:
    """The columns that become fields. `others`: those that are fields already, for the warning."""
    made, left = {}, {}
    for name in names:
        places = Places()
        try:
            if not name.isidentifier() or name in RESERVED:
                raise NotAFieldError("has a name that no field can have: rename it, dataset.rename_column(...)")
            blocks = row_blocks(dataset.data.table.column(name), places)
        except NotAFieldError as error:
            if not may_leave:
                raise ConfigError(f"column {name!r} {error}") from None
            left[name] = str(error)
        else:
            made[name] = BlockColumn(places.all, blocks, rows)
    if left:
        said = "; ".join(f"{name!r} {why}" for name, why in left.items())
        warn(f"not all columns become fields: {said}. Name those that you need: columns={listed([*others, *made])}")
    return made


def _wanted(columns: Any, names: list[str]) -> list[str]:
    if columns is None:
        return names
    if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise ConfigError(f"columns is a list of names of columns, not {short(columns)}")
    if unknown := [name for name in columns if name not in names]:
        raise ConfigError(no_field(unknown[0], names, "column"))
    return list(columns)


# -- with images ------------------------------------------------------------------------------------------------------


def _images(
    dataset: Any, names: list[str], image: str, columns: Any, label: Any, rows: np.ndarray | None, options: dict[str, Any]
) -> ImageFrame:
    require_pandas("a dataset of images")
    features = dataset.features
    if "size" not in options:
        raise ConfigError(f"column {image!r} has images: give size=(height, width) in pixels")
    mode = features[image].mode
    if mode is not None and options.setdefault("color", _color(mode)) != _color(mode):
        raise ConfigError(f"column {image!r} is Image(mode={mode!r}), and color is {short(options['color'])}: give one of them")
    others = [name for name in names if _kind(features[name]) != "Image"]
    free = [name for name in others if name not in (*_named(label), options.get("weight"))]
    wanted = _wanted(columns, others if columns is not None else free)
    classes = [name for name in wanted if _kind(features[name]) == "ClassLabel"]
    if label is None and classes:
        label = {name: name for name in classes}
    elif classes:
        label = {**(label if isinstance(label, dict) else {"label": label}), **{name: name for name in classes}}
    numbers = _numbers(dataset, [name for name in wanted if name not in classes], columns is None, rows, classes)
    values = [_label(name, column) for name, column in numbers.items()]
    table = _table(dataset, others, rows)
    return ImageFrame(ImageTable(table, _contents(dataset, image, rows), values), label=label, **options)


def _color(mode: str) -> str:
    color = next((color for color, one in MODES.items() if one == mode), None)
    if color is None:
        raise ConfigError(f"the images are Image(mode={mode!r}): ringload decodes to the modes {listed(list(MODES.values()))}")
    return color


def _named(label: Any) -> set[Any]:
    """The columns that `label=` names."""
    if isinstance(label, dict):
        return {name for one in label.values() for name in _named(one)}
    return set(label) if isinstance(label, list | tuple) else {label}


def _label(name: str, column: BlockColumn) -> Label:
    values = np.empty(column.shape, column.dtype)
    column.read(np.arange(len(values)), values)
    return Label(name, Field(column.shape[1:], column.dtype), (), values)


def _table(dataset: Any, names: list[str], rows: np.ndarray | None) -> pd.DataFrame:
    """The columns of numbers, strings and classes, to make labels of and to split by."""
    import pandas as pd

    made: dict[str, Any] = {}
    places = Places()
    for name in names:
        feature, column = dataset.features[name], dataset.data.table.column(name)
        places.check(column)
        if _kind(feature) not in ("Value", "ClassLabel"):
            continue
        values = (column if rows is None else column.take(rows)).to_pandas()
        if _kind(feature) == "ClassLabel" and feature.names:
            codes = values.fillna(-1).to_numpy(np.int64)
            if codes.max() >= len(feature.names) or codes.min() < -1:
                raise ConfigError(
                    f"column {name!r} has the class {codes.max()} or {codes.min()}, of {len(feature.names)} names"
                )
            values = pd.Categorical.from_codes(codes, feature.names, ordered=True)  # numbered in their order
        made[name] = values
    return pd.DataFrame(made, index=pd.RangeIndex(len(dataset)))


def _contents(dataset: Any, image: str, rows: np.ndarray | None) -> Contents:
    """The bytes of a column of images; or its paths, where it has no bytes."""
    pa: Any = sys.modules["pyarrow"]
    column, places = dataset.data.table.column(image), Places()
    places.check(column)
    parts = [chunk.flatten() for chunk in column.chunks]
    data, paths = (pa.chunked_array([part[number] for part in parts]) for number in (0, 1))
    cells = cells_of(data, places)
    numbers = np.arange(len(cells.lengths)) if rows is None else rows
    if rows is not None:
        cells, paths = cells.take(rows), paths.take(rows)
    absent = np.flatnonzero(cells.lengths < 0)
    if not len(absent):
        return CellContents(places.all, cells, numbers, _names(paths, places, cells))
    missing = paths.is_null() if hasattr(paths, "is_null") else None
    if len(absent) < len(numbers) or np.asarray(missing).any():
        raise ConfigError(
            f"column {image!r} has no bytes in row {absent[0]}, and in {len(absent):,} of {len(numbers):,} rows: drop these "
            "rows, dataset.filter(...), or give all images as bytes, or all as paths"
        )
    found = paths_of(paths.to_pandas().rename(image), None, None)
    return StoredFiles(found, factory_of(found.scheme))


def _names(paths: Any, places: Places, cells: Cells) -> Strings:
    """The names of contents: their paths in the table; where it has none, the empty string."""
    import pandas as pd

    pa: Any = sys.modules["pyarrow"]
    if paths.null_count or any(not np.asarray(pa.compute.binary_length(chunk)).all() for chunk in paths.chunks):
        empty = np.zeros(len(cells.lengths), np.int64)
        names = Strings(np.empty(0, np.uint8), empty, empty.astype(np.int32))
    else:
        names = Strings.of(pd.Series(paths.to_pandas(types_mapper={pa.string(): pd.ArrowDtype(pa.string())}.get)), "image, row")
    return fingerprinted(names, places.all, cells)
