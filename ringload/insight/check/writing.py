"""The report of a check as a table, in a .parquet or .csv file: one row a sample."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError, missing

if TYPE_CHECKING:
    import pandas as pd

    from ringload.insight.check.findings import CheckReport

CHUNK = 1 << 16  # rows that are written at a time
UNFINISHED = ".unfinished"
HEX = np.array([b"%02x" % byte for byte in range(256)], "S2")


def check_writable(path: Any) -> Path:
    """The absolute path of a report that can be written.

    Raises:
        ConfigError: it is none. ImportError: pyarrow, for a .parquet file, is not installed.
    """
    if not isinstance(path, str | os.PathLike) or Path(path).suffix.lower() not in (".parquet", ".csv"):
        raise ConfigError(f"the report is written to a .parquet or a .csv file, not to {short(path)}")
    made = Path(os.path.abspath(os.path.expanduser(path)))
    if not made.parent.is_dir() or made.is_dir():
        what = "it is a folder" if made.is_dir() else f"there is no folder {made.parent}"
        raise ConfigError(f"the report {short(str(path))} cannot be written: {what}")
    if made.suffix.lower() == ".parquet":
        _pyarrow()
    return made


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing("a report as a .parquet file", "pyarrow", error) from error
    return pyarrow


def write_report(report: CheckReport, path: Path) -> None:
    """Write a report: all of it, or what was there before stays."""
    unfinished = Path(f"{path}{UNFINISHED}")
    try:
        if path.suffix.lower() == ".parquet":
            _write_parquet(report, unfinished)
        else:
            for number, table in enumerate(tables(report)):
                table.to_csv(unfinished, mode="a" if number else "w", header=not number, index=False, errors="surrogateescape")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_parquet(report: CheckReport, path: Path) -> None:
    pyarrow, writer = _pyarrow(), None
    try:
        for table in tables(report):
            for name in ("path", "reason"):  # Parquet holds UTF-8 only
                table[name] = [
                    text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for text in table[name]
                ]
            made = pyarrow.Table.from_pandas(table, schema=_schema(pyarrow), preserve_index=False)
            writer = writer or pyarrow.parquet.ParquetWriter(path, made.schema)
            writer.write_table(made)
    finally:
        if writer is not None:
            writer.close()


def _schema(pyarrow: Any) -> Any:
    text, whole = pyarrow.string(), pyarrow.int64()
    kinds = {"row": whole, "path": text, "status": text, "reason": text, "format": text, "width": whole, "height": whole}
    kinds |= {"bytes": whole, "hash": text, "is_misnamed": pyarrow.bool_(), "duplicate_of": whole}
    return pyarrow.schema(list(kinds.items()))


def tables(report: CheckReport) -> Iterator[pd.DataFrame]:
    """The rows of a report, some at a time. What is not known is missing: a width, a hash."""
    import pandas as pd

    statuses, formats = np.array(report.statuses, object), np.array(report.formats, object)
    for start in range(0, len(report), CHUNK):
        samples = np.arange(start, min(start + CHUNK, len(report)))
        records, first = report.records[samples], report.duplicate_of[samples]
        rows = report.source.rows_of(samples)
        originals = report.source.rows_of(np.maximum(first, 0))
        names = report.source.contents.names
        yield pd.DataFrame(
            {
                "row": rows,
                "path": pd.Series([os.fsdecode(names[sample]) for sample in samples.tolist()], dtype=object),  # maybe no UTF-8
                "status": statuses[records["status"]],
                "reason": [report.reasons.get(sample, "") for sample in samples.tolist()],
                "format": formats[records["format"]],
                "width": _known(records["width"], records["width"] > 0),
                "height": _known(records["height"], records["width"] > 0),
                "bytes": _known(records["n_bytes"], records["n_bytes"] > 0),
                "hash": _hex(records),
                "is_misnamed": records["is_misnamed"],
                "duplicate_of": _known(originals, first >= 0),
            }
        )


def _known(values: np.ndarray, is_known: np.ndarray) -> Any:
    import pandas as pd

    return pd.arrays.IntegerArray(values.astype(np.int64), ~is_known)


def _hex(records: np.ndarray) -> np.ndarray:
    """The hashes as text, as xxhsum prints them: `(n,) object`."""
    digits = HEX[np.ascontiguousarray(records["hash"]).view(np.uint8)]  # (n, 16) of two digits
    made = digits.view("S32").reshape(-1).astype(str).astype(object)
    made[~records["is_hashed"]] = None
    return made
