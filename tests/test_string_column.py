from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ringload import ConfigError
from ringload.sources import string_column
from ringload.sources.string_column import Strings


def test_strings_of_every_kind_of_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(string_column, "CHUNK", 3)
    values = ["a", "b/ü.jpg", b"raw\xff", Path("c/d"), "x" * 1000, "\udcff bad", "z"]
    strings = Strings.of(pd.Series(values, dtype=object), "path")
    assert list(strings) == [b"a", "b/ü.jpg".encode(), b"raw\xff", b"c/d", b"x" * 1000, b"\xff bad", b"z"]
    assert len(strings) == 7
    assert list(strings.take(np.array([6, 0, 0]))) == [b"z", b"a", b"a"]
    assert strings.take(np.array([1])).blob is strings.blob


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a", "", "b"], "row 1 is empty"),
        (["a", float("nan")], "row 1 is nan"),
        (["a", None], "row 1 is None"),
        (["a", "b\0c"], "row 1 is 'b.x00c': a path cannot hold a NUL"),
        (["a", "b", 7], "row 2 is 7"),
    ],
)
def test_what_is_no_path_is_named(values: list[object], said: str) -> None:
    with pytest.raises(ConfigError, match=f"column 'path', {said}"):
        Strings.of(pd.Series(values, dtype=object), "column 'path', row")


ARROW = (pd.StringDtype("pyarrow"), pd.ArrowDtype(pa.string()), pd.ArrowDtype(pa.large_string()))


@pytest.mark.parametrize("dtype", ARROW, ids=str)
def test_arrow_strings_are_taken_as_they_lie_in_memory(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ["a", "b/ü.jpg", "x" * 1000, "c", "日本", "z"]
    column = pd.Series(values, dtype=dtype)
    chunked = pd.concat([column[1:3], column[:0], column[3:5]])
    expected = [list(Strings.of(pd.Series(one, dtype=object), "path")) for one in (values, values[1:5], values[2:5])]
    monkeypatch.setattr(string_column, "_of_python", None)
    assert [list(Strings.of(one, "path")) for one in (column, chunked, column[2:5])] == expected


@pytest.mark.parametrize("dtype", ARROW, ids=str)
@pytest.mark.parametrize("bad", ["", "b\0c"])
def test_what_is_no_path_is_named_in_arrow_too(dtype: Any, bad: str) -> None:
    with pytest.raises(ConfigError, match="path 2 is "):
        Strings.of(pd.concat([pd.Series(["a", "c"], dtype=dtype), pd.Series([bad, "d"], dtype=dtype)]), "path")


def test_paths_are_kept_whatever_becomes_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "table.arrow"
    table = pa.table({"path": ["a.png", "c.png"]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.memory_map(str(path)) as source:
        mapped = pa.ipc.open_file(source).read_all().to_pandas(types_mapper=pd.ArrowDtype)
        strings = Strings.of(mapped["path"], "path")
        path.write_bytes(path.read_bytes().replace(b"a.png", b"b.png"))
    assert list(strings) == [b"a.png", b"c.png"]


@pytest.mark.parametrize(("other", "said"), [(b"b", None), (b"", "row 0 or a later one"), (b"\0", "holds a NUL")])
def test_arrow_columns_that_are_no_utf_8(other: bytes, said: str | None) -> None:
    """Arrow makes such a column of what it is given, and pandas cannot read it. As paths they are as good as others."""
    values = [b"raw\xff", other]
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    made = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))])
    column = pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([made])))
    if said is None:
        assert list(Strings.of(column, "row")) == values
        return
    with pytest.raises(ConfigError, match=said):
        Strings.of(column, "row")


@pytest.mark.parametrize("dtype", [object, *ARROW], ids=str)
def test_no_paths_at_all(dtype: Any) -> None:
    assert list(Strings.of(pd.Series([], dtype=dtype), "path")) == []


def test_arrow_columns_of_other_types_are_no_paths() -> None:
    with pytest.raises(ConfigError, match="path 0 is 1"):
        Strings.of(pd.Series([1, 2], dtype="int64[pyarrow]"), "path")
