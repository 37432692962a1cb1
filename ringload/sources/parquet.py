"""Parquet files as sources: images in a column of bytes, and columns of numbers. `parquet_files` reads them in workers.

The trainer reads the files' metadata, and of images the columns of the labels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ringload.checks import in_our_words, integer, listed, no_field, short, warn
from ringload.errors import ConfigError
from ringload.fields import RESERVED, Field, Worker
from ringload.order.groups import Groups
from ringload.sources.arrays import Arrays
from ringload.sources.arrow_columns import NotAFieldError
from ringload.sources.columns import require_pandas
from ringload.sources.contents import ImageTable
from ringload.sources.fingerprints import checksum
from ringload.sources.group_cache import window_of
from ringload.sources.image_table import ImageFrame
from ringload.sources.label_field import Label
from ringload.sources.parquet_files import ParquetContents, RowGroups
from ringload.sources.parquet_schema import MISSING, ParquetFiles, Paths
from ringload.sources.string_column import Strings

HEAD_BYTES = 4096  # of the first content of each file, in the fingerprint


class ParquetImages(ImageFrame):
    """Images in Parquet files: a column of bytes, or of Hugging Face's {bytes, path}. An `ImageFrame` in all else.

    A row group is read as a whole, and only the column of images of it. So the order of a loader that is given no `order=`
    keeps row groups together: the row groups are shuffled, then the samples of each `window` of them are mixed. Each worker
    keeps as many decoded row groups; those must fit into its share of `ram_budget`. With order="shuffle" each sample would
    cost reading its row group.

    Arguments:
        paths: a file, a folder of .parquet files, a pattern ("data/train-*.parquet"), or a list of files. The files of a folder
            or pattern are sorted. They must not change while they are used.
        image: the column of images.
        label, weight: columns of labels and weights, as in `ImageFrame`. Where the files have Hugging Face's class names, these
            are the `class_names`.
        columns: further columns, of numbers or lists of one length, that become fields of their own name and dtype. They are
            kept in memory.
        window: how many row groups are mixed, and kept in each worker; None: as many as fit into 64 MiB, 1 to 16.
        options: those of `ImageFrame`: `size` (needed), `resize`, `flip`, `transform`, ...

    Raises:
        ConfigError: a file cannot be read as Parquet, or has other columns than the first; or a column or option is not valid.
    """

    @in_our_words(passes_on_to=ImageFrame, but=("df", "path", "root", "read_options"))
    def __init__(
        self,
        paths: Paths,
        image: str = "image",
        label: Any = None,
        *,
        weight: Any = None,
        columns: Sequence[str] = (),
        window: int | None = None,
        **options: Any,
    ) -> None:
        require_pandas(MISSING)
        if "size" not in options:
            raise ConfigError(f"column {image!r} has images: give size=(height, width) in pixels")
        files = ParquetFiles.of(paths)
        leaf = files.bytes_in(image)
        groups = files.groups(leaf)
        kept = window_of(groups.group_bytes) if window is None else integer("window", window, 1)
        names = _names(files, groups)
        contents = ParquetContents(groups, files.edges, np.arange(files.edges[-1]), names, kept)
        wanted = [name for name in (*_named(label), *_named(weight), *columns) if name is not None]
        table = files.table(list(dict.fromkeys(wanted)))
        more = [_label(files, name) for name in columns]
        super().__init__(ImageTable(table, contents, more), label=label, weight=weight, **options)

    @property
    def default_order(self) -> Groups:
        """Row groups stay together."""
        contents: Any = self._contents
        return Groups(contents.edges, contents.window, contents.rows)

    def start(self, worker: Worker) -> None:
        """Keep as many row groups as half of the worker's memory has room for."""
        contents: Any = self._contents
        n_kept = min(contents.window, worker.scratch_bytes // 2 // contents.group_bytes)
        if n_kept == 0:
            raise ConfigError(
                f"a row group may take {contents.group_bytes:,} bytes, and there are {worker.scratch_bytes // 2:,} for row "
                "groups in each worker: raise ram_budget, lower workers, or write the files with smaller row groups"
            )
        contents.keep(n_kept)
        super().start(worker)


def ParquetTable(paths: Paths, columns: Sequence[str] | None = None) -> Arrays:  # noqa: N802  (what it makes is a source)
    """Columns of numbers of Parquet files: an `Arrays` with a field for each column, of its name and dtype.

    Numbers, bools, and lists of one length (as in the first rows). Rows are read by row groups, in the order that
    `ParquetImages` describes; with several columns, all of a row group.

    Arguments:
        paths: as in `ParquetImages`.
        columns: those that become fields; None: all that can, with a warning that names the others.

    Raises:
        ConfigError: a file cannot be read as Parquet, or has other columns than the first; or a column is not valid. While
        iterating, SampleError: a row group has missing values, or lists of another length.
    """
    files = ParquetFiles.of(paths)
    made, left = {}, {}
    for name in files.names if columns is None else _checked_names(columns, files.names):
        try:
            if not name.isidentifier() or name in RESERVED:
                raise NotAFieldError("has a name that no field can have")
            made[name] = files.column(name)
        except NotAFieldError as error:
            if columns is not None:
                raise ConfigError(f"column {name!r} {error}") from None
            left[name] = str(error)
    if left:
        said = "; ".join(f"{name!r} {why}" for name, why in left.items())
        warn(f"not all columns become fields: {said}. Name those that you need: columns={listed(list(made))}")
    if not made:
        raise ConfigError("no column of numbers is left")
    return Arrays(**made)


def _named(label: Any) -> list[Any]:
    if isinstance(label, dict):
        return [name for one in label.values() for name in _named(one)]
    return list(label) if isinstance(label, list | tuple) else [label]


def _checked_names(columns: Any, names: list[str]) -> list[str]:
    if isinstance(columns, str):
        raise ConfigError(f"columns is a list of names of columns, not {short(columns)}")
    if unknown := [name for name in columns if name not in names]:
        raise ConfigError(no_field(unknown[0], names, "column"))
    return list(columns)


def _label(files: ParquetFiles, name: str) -> Label:
    """A further field of images, with all its values."""
    try:
        column = files.column(name)
        values = np.empty(column.shape, column.dtype)
        column.read(np.arange(len(values)), values)
    except (NotAFieldError, ValueError) as error:
        raise ConfigError(f"column {name!r} {error}") from None
    return Label(name, Field(column.shape[1:], column.dtype), (), values)


def _names(files: ParquetFiles, groups: RowGroups) -> Strings:
    """The file's name for each row; and behind the names, what a fingerprint has of the contents: sizes, and some bytes."""
    names = [os.fsencode(os.path.basename(file.path)) for file in files.files]
    n_rows = np.bincount(np.repeat(files.of_file, np.diff(files.edges)), minlength=len(names))
    lengths = np.array([len(name) for name in names])
    parts = [files.edges, groups.n_bytes]
    for group in np.unique(files.of_file, return_index=True)[1].tolist():
        chunk = files.chunk(int(files.of_file[group]), int(files.numbers[group]), groups.column)
        with open(groups.path(group), "rb") as file:
            file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
            parts.append(np.frombuffer(file.read(min(HEAD_BYTES, chunk.total_compressed_size)), np.uint8))
    blob = np.frombuffer(b"".join(names) + checksum(*parts).encode(), np.uint8)
    starts = np.repeat(np.cumsum(lengths) - lengths, n_rows)
    return Strings(blob.copy(), starts, np.repeat(lengths, n_rows).astype(np.int32))
