"""What `Arrays` takes, with its dtype and values, and what it refuses, with its words: by the kinds of what is given."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ringload import Arrays, ConfigError, Loader

ml_dtypes = pytest.importorskip("ml_dtypes")
pa = pytest.importorskip("pyarrow")
scipy_sparse = pytest.importorskip("scipy.sparse")
torch = pytest.importorskip("torch")


class Squares(torch.utils.data.Dataset):  # type: ignore[name-defined]
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        raise AssertionError("a sample was read")


OBJECTS = np.array([None] * 4, object)
OBJECTS[:] = [np.zeros(2), np.zeros(2), np.zeros(3), np.zeros(2)]
REFUSED: dict[str, tuple[Any, str]] = {
    "str": ("path", "of type str, which is no array: each argument is one array"),
    "bytes": (b"path", "of type bytes, which is no array"),
    "dict": ({"x": np.zeros(3)}, "of type dict, which is no array"),
    "set": ({1, 2}, "of type set, which is no array"),
    "none": (None, r"of type NoneType, which is no array: give np\.asarray\(x\)"),
    "generator": ((i for i in range(8)), "of type generator, which can be read only once"),
    "iterator": (map(abs, [1]), r"of type map, which can be read only once, in order: give list\(x\)"),
    "dataset": (Squares(), r"of type tests\.Squares, which NumPy cannot make an array of"),
    "ragged": ([[1, 2], [1, 2], [1, 2, 3]], r"different lengths: row 2 is \[1, 2, 3\], row 0 is \[1, 2\]\. Pad them"),
    "ragged within": ([[[1], [2]], [[1], [2, 3]]], r"different lengths: row 1 is \[\[1\], \[2, 3\]\]"),
    "ragged tensors": ([torch.zeros(2), torch.zeros(3)], "different lengths: row 1 is tensor"),
    "missing": ([[1, 2], [3, None]], r"fixed size: row 1 has None \(NoneType\)\. Give numbers in its place"),
    "mixed": ([1, "a"], "of type list of int and str, which NumPy would make <U21"),
    "large": ([2**63, -1], "of type list of int, which NumPy would make float64"),
    "large, of NumPy's": ([np.int64(2**60 + 1), np.uint64(7)], "list of int64 and uint64, which NumPy would make float64"),
    "larger": ([2**70], r"row 0 has 1180591620717411303424 \(int\)\. Convert them"),
    "objects": (OBJECTS, r"fixed size: row 0 has array\(.*row 2 has array\(\[0\., 0\., 0\.\]\)\. Pad them"),
    "rows in an object": (OBJECTS[[0, 1]], r"Give one array of them, np\.stack\(x\)"),
    "strings": (np.array(["a", "bc"], object), r"row 0 has 'a' \(str\)\. Give numbers, np\.unique"),
    "strings of NumPy": (np.array(["a", "bc"], np.dtypes.StringDType()), r"is of StringDType\(\).*np\.char\.encode"),
    "NUL at the end": ([b"a", b"bc", b"d\0"], r"has a NUL at the end of row 2, which NumPy drops.*np\.frombuffer"),
    "column of bytes": (
        np.array([b"a", b"bc"], object),
        r"row 0 has b'a' \(bytes\)\. Give bytes of one length as rows of uint8",
    ),
    "sparse": (scipy_sparse.eye(4).tocsr(), r"of type scipy\.csr_matrix, which is sparse.*give x\.toarray\(\)"),
    "sparse array": (scipy_sparse.coo_array(np.eye(4)), "of type scipy.coo_array, which is sparse"),
    "sparse tensor": (torch.eye(4).to_sparse(), r"of type torch\.Tensor, which NumPy cannot make an array of: .*to_dense\(\)"),
    "gradient": (torch.ones(4, requires_grad=True), r"requires grad\. Use tensor\.detach\(\)"),
    "meta": (torch.ones(4, device="meta"), "which NumPy cannot make an array of: can't convert meta device"),
    "nullable": (pd.Series([1, None, None], dtype="Int64"), r"of Int64 with 2 missing values, first in row 1: .*x\.fillna"),
    "nullable table": (
        pd.DataFrame({"a": [1, 2], "b": [1, None]}, dtype="Int64"),
        "Int64 with 1 missing values, first in row 1",
    ),
    "missing in Arrow": (pd.Series([1, None], dtype="int64[pyarrow]"), r"of int64\[pyarrow\] with 1 missing values"),
    "missing of Arrow": (pa.array([1, None]), r"of type pyarrow\.Int64Array with 1 missing values: .*x\.fill_null"),
    "table of Arrow": (pa.table({"a": [1]}), "of type pyarrow.Table: give one of its columns"),
    "categorical": (pd.Series(["a", "b"], dtype="category"), r"is categorical: give .* x\.cat\.codes"),
    "column of strings": (pd.Series(["a", "b"]), r"row 0 has 'a' \(str\)\. Give numbers"),
    "missing string": (pd.Series(["a", None]), r"fixed size: row 0 has 'a' \(str\)\. Give numbers in its place"),
    "zone": (pd.Series(pd.date_range("2020", periods=3, tz="UTC")), r"row 0 has Timestamp\('2020-01-01 00:00:00\+0000'"),
    "several dtypes": (pd.DataFrame({"a": [1], "b": [0.5]}), r"columns of float64 and int64: .* x\.to_numpy\('float32'\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_array_of_rows_of_one_kind(kind: str) -> None:
    given, said = REFUSED[kind]
    with pytest.raises(ConfigError, match=f"^array 'x' .*{said}"):
        Arrays(x=given)


TAKEN: dict[str, tuple[Any, Any]] = {
    "list": ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
    "booleans": ([True, False], np.array([True, False])),
    "strings": (["a", "bc"], np.array(["a", "bc"])),
    "large numbers": ([1e300, 2.0], np.array([1e300, 2.0])),
    "large unsigned": ([2**63], np.array([2**63], "u8")),
    "list of tensors": ([torch.ones(2), torch.zeros(2)], np.array([[1, 1], [0, 0]], "f4")),
    "range": (range(3), np.arange(3)),
    "buffer": (array.array("h", [1, 2]), np.array([1, 2], "i2")),
    "tensor": (torch.arange(6).reshape(3, 2), np.arange(6).reshape(3, 2)),
    "bfloat16": (torch.arange(3).bfloat16(), np.arange(3).astype(ml_dtypes.bfloat16)),
    "float8": (torch.arange(3).to(torch.float8_e4m3fn), np.arange(3).astype(ml_dtypes.float8_e4m3fn)),
    "column": (pd.Series([1, 2], index=[5, 6]), np.array([1, 2])),
    "index": (pd.Index([3, 4]), np.array([3, 4])),
    "table": (pd.DataFrame({"a": [1, 2], "b": [3, 4]}), np.array([[1, 3], [2, 4]])),
    "nullable": (pd.Series([1, 2], dtype="Int32"), np.array([1, 2], "i4")),
    "nullable table": (pd.DataFrame({"a": [True, True]}, dtype="boolean"), np.array([[True], [True]])),
    "Arrow's column": (pd.Series([1, 2], dtype="uint8[pyarrow]"), np.array([1, 2], "u1")),
    "Arrow's array": (pa.chunked_array([[1], [2]]), np.array([1, 2])),
    "NaN": (pd.Series([1.5, None]), np.array([1.5, np.nan])),
    "times": (pd.Series(pd.to_datetime(["2020-01-01"])), np.array(["2020-01-01"], pd.to_datetime(["2020"]).dtype)),
    "codes": (pd.Series(["a", "b"], dtype="category").cat.codes, np.array([0, 1], "i1")),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_an_array_keeps_its_dtype_and_its_values(kind: str) -> None:
    given, truth = TAKEN[kind]
    with Loader(Arrays(x=given), len(truth), workers=0, shuffle=False) as loader:
        (batch,) = loader
        assert (batch["x"].dtype, batch["x"].shape) == (truth.dtype, truth.shape)
        np.testing.assert_array_equal(batch["x"], truth)


def test_tensors_are_not_copied() -> None:
    """Nor those of a dtype that NumPy has by ml_dtypes alone: what is written later shows."""
    for tensor in (torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16)):
        source = Arrays(x=tensor)
        tensor[2] = 3
        out = {"x": np.zeros(1, source.fields["x"].dtype)}
        source.load_rows(np.array([2]), (), out)
        assert out["x"][0] == 3
