"""Tables: a DataFrame, or the file of one; columns by their names; missing values.

"NA" in a .csv file. pandas reads the words "NA", "None", "null", "nan" and others as missing values, also in columns of
strings, where they may be names: the class "None", the country "NA". Here a column of strings keeps these words, and only an
empty cell is missing; in a column of numbers or bools they are missing values, as in pandas.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import listed, named, nearest, short
from ringload.errors import ConfigError, missing
from ringload.log import logged_if_slow
from ringload.sources.classes import plain

if TYPE_CHECKING:
    import pandas as pd

TEXT = re.compile(r"\.(csv|tsv)(\.(gz|bz2|xz|zip|zst))?$", re.IGNORECASE)
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://|(s3|gs|gcs|https?|ftp|hdfs|abfss?|file|hf):/")  # a Path removes one slash
MISSING_BY_OPTION = {
    "keep_default_na",
    "na_values",
    "na_filter",
    "converters",
}  # options of read_csv: with one, the user decides
PLACES_CHANGE = {"usecols", "index_col", "header", "names"}  # options that change the places of columns


def read_table(df: Any, options: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """A DataFrame, or the .csv, .tsv or .parquet file of one.

    Arguments:
        options: of `pandas.read_csv`, or of `pandas.read_parquet`, for a file.

    Raises:
        ConfigError: it is neither, or cannot be read. ImportError: pandas is not installed.
    """
    require_pandas("a table")
    import pandas as pd

    if isinstance(df, pd.DataFrame):
        if options is not None:
            raise ConfigError("read_options are for the file of a table, and df is a DataFrame: leave read_options out")
        return df
    if not isinstance(df, str | os.PathLike):
        made = ": give df.to_pandas()" if hasattr(df, "to_pandas") else ""
        raise ConfigError(f"df is a DataFrame or the path of a .csv, .tsv or .parquet file of one, not {named(df)}{made}")
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"read_options is a dict of options of pandas.read_csv or read_parquet, not {short(options)}")
    path = _local(df)
    is_text, is_parquet = TEXT.search(path), path.lower().endswith(".parquet")
    if is_text is None and not is_parquet:
        raise ConfigError(
            f"the table {path} is neither .csv nor .parquet (nor .tsv, .csv.gz and the like): read it by pandas, and give "
            "the DataFrame"
        )
    given = dict(options or {})
    if is_text is not None and is_text[1].lower() == "tsv" and not given.keys() & {"sep", "delimiter"}:
        given["sep"] = "\t"
    try:
        with logged_if_slow(f"reading the table {path}"):
            table = pd.read_parquet(path, **given) if is_parquet else _read_text(path, given)
    except (ConfigError, MemoryError):
        raise
    except ImportError as error:
        extra = ": it needs pyarrow, pip install pyarrow" if is_parquet else f": {error}"
        raise ConfigError(f"cannot read the table {path}{extra}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"cannot read the table {path}: {error}. Give its encoding: read_options={{'encoding': 'latin-1'}}"
        ) from error
    except Exception as error:  # pandas, pyarrow and the decompressors have errors of many kinds
        raise ConfigError(f"cannot read the table {path}: {type(error).__name__}: {error}") from error
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(
            f"with the read_options {listed(list(options or ()))} pandas gives a {type(table).__name__}, not a DataFrame"
        )
    return table


def require_pandas(part: str) -> None:
    """Check that pandas is installed. Workers do not need it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pandas  # noqa: F401
    except ImportError as error:
        raise missing(part, "pandas", error) from error


def folder_of(df: Any) -> str | None:
    """The absolute path of the folder of a table's file; None for a DataFrame."""
    return os.path.dirname(os.path.abspath(_local(df))) if isinstance(df, str | os.PathLike) else None


def _local(file: str | os.PathLike[str]) -> str:
    path = os.path.expanduser(os.fspath(file))
    if URL.match(path):
        raise ConfigError(
            f"the table is given as the URL {short(path)}, and URLs are not read: read it by pandas, and give the DataFrame"
        )
    return path


def _read_text(path: str, options: dict[str, Any]) -> Any:
    import pandas as pd

    table = pd.read_csv(path, **options)
    if not isinstance(table, pd.DataFrame) or options.keys() & MISSING_BY_OPTION:
        return table
    again = [place for place in range(table.shape[1]) if _may_hold_names_of_missing(table.iloc[:, place])]
    if not again:
        return table
    is_in_place = not options.keys() & PLACES_CHANGE and isinstance(table.index, pd.RangeIndex)
    only = {"usecols": again} if is_in_place else {}
    as_text = pd.read_csv(path, **{**options, **only, "dtype": str, "keep_default_na": False, "na_values": [""]})
    for place, column in enumerate(again):
        text = as_text.iloc[:, place if is_in_place else column].set_axis(table.index)
        is_category = isinstance(table.dtypes.iloc[column], pd.CategoricalDtype)
        table.isetitem(column, text.astype("category") if is_category else text)
    return table


def _may_hold_names_of_missing(column: pd.Series[Any]) -> bool:
    """Whether a column has missing values, and otherwise strings or nothing."""
    import pandas as pd

    missing = column.isna()
    if not missing.any():
        return False
    there = column[~missing]
    values = there.cat.categories if isinstance(there.dtype, pd.CategoricalDtype) else there
    return len(there) == 0 or pd.api.types.infer_dtype(values) == "string"


# -- columns ----------------------------------------------------------------------------------------------------------


def is_column(table: pd.DataFrame, name: Any) -> bool:
    """Whether a tuple is the name of one column, and not a list of names. Where columns have levels, it always is."""
    return isinstance(name, tuple) and (table.columns.nlevels > 1 or bool(_places(table, name)))


def column_of(table: pd.DataFrame, name: Any) -> pd.Series[Any]:
    """A column by its name. Where columns have levels, the name is a tuple; as in pandas, 'a' is short for ('a', '').

    Raises:
        ConfigError: there is no such column, or there are several.
    """
    places = _places(table, name)
    if len(places) == 1:
        column: pd.Series[Any] = table.iloc[:, places[0]]
        return column
    there = f"{len(places)} columns {short(name)}: rename all but one" if places else f"no column {short(name)}"
    levels = table.columns.nlevels
    if not places and levels > 1 and not isinstance(name, tuple):
        there += f", and its columns have {levels} levels: name one by a tuple"
    close = nearest(name, table.columns) if not places else ""
    raise ConfigError(f"the table has {there}; it has {listed(list(table.columns))}{close}")


def _places(table: pd.DataFrame, name: Any) -> list[int]:
    names = list(table.columns)
    places = [place for place, other in enumerate(names) if _is_same(other, name)]
    if not places and table.columns.nlevels > 1 and not isinstance(name, tuple):
        whole = (name, *[""] * (table.columns.nlevels - 1))
        places = [place for place, other in enumerate(names) if _is_same(other, whole)]
    return places


def _is_same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError):  # an array, or an object that cannot be compared
        return False


def present(table: pd.DataFrame, name: Any) -> pd.Series[Any]:
    """A column without missing values.

    Raises:
        ConfigError: there is no such column, or values are missing.
    """
    column = column_of(table, name)
    missing = np.flatnonzero(column.isna())
    if len(missing):
        first = ", ".join(row_name(column, row) for row in missing[:5].tolist())
        is_text = any(isinstance(value, str) for value in column.iloc[:1000])
        names = " (names such as 'NA' or 'None' are kept by pandas.read_csv(..., keep_default_na=False))" if is_text else ""
        raise ConfigError(
            f"column {short(name)} has {len(missing)} missing values (NaN), first in rows {first}; drop them: "
            f"df.dropna(subset=[{short(name)}]){names}"
        )
    return column


def row_name(column: pd.Series[Any], place: int) -> str:
    """The name of the row at `place` in the table's index."""
    name = column.index[place]
    return name if isinstance(name, str) else short(tuple(plain(name)) if isinstance(name, tuple) else name)


def numbers(column: pd.Series[Any], what: str = "a number") -> np.ndarray:
    """A column of finite numbers as `(N,) float32`. `what`: their name in messages.

    Raises:
        ConfigError: it holds something else.
    """
    with np.errstate(over="ignore"):  # values that are too large are refused below
        values = column.to_numpy(np.float32) if column.dtype.kind in "buif" else _converted(column)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ConfigError(
            f"column {short(column.name)} has {what} that is not finite in row {row_name(column, row)}: "
            f"{short(column.iloc[row])} (float32 holds up to 3.4e38)"
        )
    return values


def _converted(column: pd.Series[Any]) -> np.ndarray:
    try:
        return column.to_numpy(object).astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        pass  # one of them is no number: which?
    values = np.empty(len(column), np.float32)
    for row, value in enumerate(column):
        try:
            values[row] = value
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"column {short(column.name)} holds {short(value)}, which is not a number") from None
    return values
