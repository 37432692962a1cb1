"""The Parquet files that a user names: their schema and row groups, which the trainer reads once."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import no_field
from ringload.errors import ConfigError
from ringload.sources.arrow_columns import flat
from ringload.sources.file_ranges import LocalFile
from ringload.sources.parquet_files import BATCH_BYTES, ParquetColumn, RowGroups, arrow

if TYPE_CHECKING:
    import pandas as pd

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
MISSING = "Parquet files"


@dataclass(frozen=True)
class ParquetFiles:
    """The files, their schema, and their row groups: `edges (G + 1,)`, `of_file (G,)`, `numbers (G,)`."""

    files: tuple[LocalFile, ...]
    metadata: tuple[Any, ...]
    schema: Any  # of Arrow
    edges: np.ndarray
    of_file: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, paths: Paths) -> ParquetFiles:
        """The files that a user names."""
        pa = arrow(MISSING)
        files, metadata = [], []
        schema: Any = None
        for path in _found(paths):
            try:
                files.append(LocalFile.of(path))
                with pa.parquet.ParquetFile(path) as opened:
                    metadata.append(opened.metadata)
                    here = opened.schema_arrow
            except (OSError, pa.ArrowException) as error:
                raise ConfigError(f"cannot read {path} as a Parquet file: {error}") from error
            if schema is not None and not here.equals(schema):
                other = next(
                    name
                    for name in (*here.names, *schema.names)
                    if here.names != schema.names or here.field(name) != schema.field(name)
                )
                raise ConfigError(f"{path} has other columns than {files[0].path}, such as {other!r}: give files of one table")
            schema = here
        places = [(file, number) for file, one in enumerate(metadata) for number in range(one.num_row_groups)]
        places = [(file, number) for file, number in places if metadata[file].row_group(number).num_rows]
        if not places:
            raise ConfigError(f"there are no rows in {files[0].path}{' and the others' if len(files) > 1 else ''}")
        n_rows = [metadata[file].row_group(number).num_rows for file, number in places]
        of_file, numbers = (np.array(column) for column in zip(*places, strict=True))
        return cls(tuple(files), tuple(metadata), schema, np.concatenate([[0], np.cumsum(n_rows)]), of_file, numbers)

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self.schema.names)

    def bytes_in(self, name: str) -> str:
        """The path in the schema of a column of bytes, or of one of {bytes, path}."""
        kind = str(self._field(name).type)
        if kind in ("binary", "large_binary"):
            return name
        if kind.startswith("struct<") and "bytes" in [one.name for one in self._field(name).type]:
            return f"{name}.bytes"
        raise ConfigError(
            f"column {name!r} is of {kind}, and no column of images: their bytes, or Hugging Face's {{bytes, path}}"
        )

    def _field(self, name: Any) -> Any:
        if name not in self.names:
            raise ConfigError(no_field(name, self.names, "column"))
        return self.schema.field(name)

    def groups(self, leaf: str, row_bytes: int = 0) -> RowGroups:
        """The row groups of a column by its path in the schema; with `row_bytes`, of numbers of that size."""
        sizes = (
            np.diff(self.edges) * row_bytes
            if row_bytes
            else np.array(
                [
                    self.chunk(file, number, leaf).total_uncompressed_size
                    for file, number in zip(self.of_file, self.numbers, strict=True)
                ]
            )
        )
        options = {"batch_rows": max(1, BATCH_BYTES // row_bytes)} if row_bytes else {}
        return RowGroups(self.files, leaf, self.of_file, self.numbers, sizes, **options)

    def chunk(self, file: int, number: int, leaf: str) -> Any:
        """The metadata of one column of a row group."""
        group = self.metadata[file].row_group(int(number))
        return next(one for place in range(group.num_columns) if (one := group.column(place)).path_in_schema == leaf)

    def column(self, name: str) -> ParquetColumn:
        """A column of numbers, by its first rows."""
        self._field(name)
        pa = arrow(MISSING)
        with pa.parquet.ParquetFile(self.files[int(self.of_file[0])].path) as opened:
            first = next(opened.iter_batches(1, row_groups=[int(self.numbers[0])], columns=[name], use_threads=False))
        values, shape = flat(first.column(0), 0)
        dtype = np.dtype(values.type.to_pandas_dtype())
        row_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return ParquetColumn(self.groups(name, row_bytes), self.edges, shape, dtype)

    def table(self, names: list[str]) -> pd.DataFrame:
        """Some columns of all rows; with Hugging Face's names of classes, if the files have them."""
        import pandas as pd

        for name in names:
            self._field(name)
        pa = arrow(MISSING)
        parts = [pa.parquet.ParquetFile(file.path).read(columns=names, use_threads=False) for file in self.files]
        table = pa.concat_tables(parts).to_pandas() if names else pd.DataFrame(index=pd.RangeIndex(int(self.edges[-1])))
        for name, classes in self._class_names().items():
            if name in names:
                codes = table[name].fillna(-1).to_numpy(np.int64)
                table[name] = pd.Categorical.from_codes(codes, pd.Index(classes), ordered=True)
        return table

    def _class_names(self) -> dict[str, list[str]]:
        said = (self.schema.metadata or {}).get(b"huggingface")
        if said is None:
            return {}
        features = json.loads(said).get("info", {}).get("features", {})
        return {
            name: one["names"] for name, one in features.items() if isinstance(one, dict) and one.get("_type") == "ClassLabel"
        }


def _found(paths: Paths) -> list[str]:
    if not isinstance(paths, str | os.PathLike):
        found = [os.path.expanduser(os.fspath(path)) for path in paths]
        if not found:
            raise ConfigError("paths is an empty list: give at least one Parquet file")
        return found
    path = os.path.expanduser(os.fspath(paths))
    if os.path.isdir(path):
        found = sorted(glob.glob(os.path.join(glob.escape(path), "**", "*.parquet"), recursive=True))
    else:
        found = [path] if os.path.exists(path) or not glob.has_magic(path) else sorted(glob.glob(path, recursive=True))
    if not found:
        raise ConfigError(f"there is no Parquet file in {path}")
    return found
