"""Tables of many rows: what is computed for all rows at once is what was computed for each; wrong roots are found early."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ringload
import ringload.log
from ringload import ConfigError, ImageFrame
from ringload.sources.labels import encode
from ringload.sources.splits import rows_of_parts
from tests.deaths import wait_while
from tests.memory_storage import MemoryStorage

SIZE = (8, 8)


# -- roots ----------------------------------------------------------------------------------------------------------------


def touched(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).touch()


def test_a_wrong_root_of_most_of_a_table_is_found(tmp_path: Path) -> None:
    """The first files are there; those of the rest of the table are not."""
    names = [f"{number}.png" for number in range(1000)]
    touched(tmp_path, names[:20])
    with pytest.warns(UserWarning, match=r"1\d of 20 files that were looked for in column 'path' do not exist: No such file"):
        ImageFrame(pd.DataFrame({"path": names}), root=tmp_path, size=SIZE)
    with pytest.warns(
        UserWarning, match="none of the first 5 files of column 'path' exists, nor any of 15 others: No such file"
    ):
        ImageFrame(pd.DataFrame({"path": names[20:]}), root=tmp_path, size=SIZE)


def test_some_missing_files_are_no_wrong_root(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(1000)]
    touched(tmp_path, names[10:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFrame(pd.DataFrame({"path": names}), root=tmp_path, size=SIZE)
        ImageFrame(pd.DataFrame({"path": ["10.png", "nix.png"]}), root=tmp_path, size=SIZE)


class WithStat(MemoryStorage):
    """Notes in a file what it is asked for."""

    def stat(self, key: str) -> Any:
        if key not in self._contents:
            raise FileNotFoundError(2, "No such key", key)
        return ringload.ContentStat(len(self._contents[key]), "1")


class Broken(MemoryStorage):
    def stat(self, key: str) -> Any:
        raise RuntimeError("no credentials")


def test_wrong_urls_are_found_where_the_storage_has_stat() -> None:
    contents = {f"stat://b/{number}.png": b"x" for number in range(100)}
    ringload.register_storage("stat", functools.partial(WithStat, contents))
    ringload.register_storage("broken", functools.partial(Broken, contents))
    ringload.register_storage("blind", functools.partial(MemoryStorage, contents))
    table = pd.DataFrame({"path": [f"{number}.png" for number in range(100)]})
    with pytest.warns(UserWarning, match="none of the first 4 files .* exists: No such key: 'stat://c/0.png'"):
        ImageFrame(table, root="stat://c", size=SIZE)
    with pytest.warns(UserWarning, match="RuntimeError: no credentials"):
        ImageFrame(table, root="broken://b", size=SIZE)
    before = set(threading.enumerate())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFrame(table, root="stat://b", size=SIZE)
        ImageFrame(table, root="blind://c", size=SIZE)
    wait_while(lambda: not set(threading.enumerate()) <= before)  # each storage was closed, and its threads end


def test_slow_steps_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path, ["a.png"])
    pd.DataFrame({"path": ["a.png"] * 9, "kind": ["x"] * 9}).to_csv(tmp_path / "t.csv", index=False)
    caplog.set_level("INFO", "ringload")
    ImageFrame(tmp_path / "t.csv", label="kind", size=SIZE)
    assert caplog.messages == []
    monkeypatch.setattr(ringload.log, "SLOW_S", -1.0)  # all of them are slow
    ImageFrame(tmp_path / "t.csv", label="kind", size=SIZE)
    begins = [f"reading the table {tmp_path}/t.csv took ", "the index of 9 paths took ", "encoding the labels of 9 rows took "]
    for message, begin in zip(caplog.messages, begins, strict=True):
        assert message.startswith(begin)


# -- lists ----------------------------------------------------------------------------------------------------------------


def multi_hot(values: list[Any], **options: Any) -> Any:
    (label,) = encode(pd.DataFrame({"c": pd.Series(values, dtype=object)}), "c", options.get("classes"), "auto")
    return label


RNG = np.random.default_rng(5)
STRINGS = [sorted({f"k{k}" for k in RNG.integers(0, 9, RNG.integers(0, 5))}) for _ in range(500)]
INTEGERS = [sorted({int(k) for k in RNG.integers(0, 9, RNG.integers(1, 5))}) for _ in range(500)]


@pytest.mark.parametrize("lists", [STRINGS, INTEGERS], ids=["strings", "integers"])
@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        set,
        frozenset,
        np.array,
        lambda one: np.array(one, object),
        lambda one: [np.str_(v) if isinstance(v, str) else np.int8(v) for v in one],
    ],
    ids=["list", "tuple", "set", "frozenset", "array", "object array", "numpy scalars"],
)
def test_lists_of_every_kind_are_the_same_labels(lists: list[list[Any]], make: Any) -> None:
    label = multi_hot([make(one) for one in lists])
    names = list(label.class_names)
    assert names == sorted({value for one in lists for value in one})
    assert [type(name) for name in names] == [type(lists[1][0] if lists[1] else names[0])] * len(names)
    values = label.of_all(len(lists))
    for row, one in enumerate(lists):
        assert [names[number] for number in np.flatnonzero(values[row])] == one
        view = np.ones(len(names), np.float32)
        label.write(row, view)
        np.testing.assert_array_equal(view, values[row])
    assert label.class_counts().tolist() == values.sum(axis=0).astype(int).tolist()


def test_lists_from_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"path": ["x"] * 500, "some": STRINGS}).to_parquet(tmp_path / "t.parquet")
    (label,) = encode(pd.read_parquet(tmp_path / "t.parquet"), "some", None, "auto")
    np.testing.assert_array_equal(label.of_all(500), multi_hot(STRINGS).of_all(500))


@pytest.mark.filterwarnings("ignore:column .c. holds integers")
@pytest.mark.parametrize("make", [list, np.array])
def test_the_first_list_that_names_a_class_twice_is_named(make: Any) -> None:
    lists = [[1, 2], [3], [], [2, 5, 2], [1, 1]]
    with pytest.raises(ConfigError, match=r"names a class twice in row 3: \[2, 5, 2\]"):
        multi_hot([make(one) for one in lists])
    assert multi_hot([["a", "a"], ["b"]]).of_all(2).tolist() == [[1, 0], [0, 1]]  # names may come twice


@pytest.mark.parametrize("values", [[Decimal("0.5"), 2, 3.25], ["0.5", "2", "3.25"], [True, 2, np.float64(0.5)]])
def test_numbers_of_every_kind(values: list[Any]) -> None:
    (label,) = encode(pd.DataFrame({"c": pd.Series(values, dtype=object)}), "c", None, "float")
    assert label.values.tolist() == [float(value) for value in values]
    assert label.values.dtype == np.float32


@pytest.mark.parametrize(
    ("wrong", "said"), [("x", "'x', which is not a number"), (1j, "which is not a number"), ([1], "holds ")]
)
def test_the_value_that_is_no_number_is_named(wrong: Any, said: str) -> None:
    values = pd.Series([1.5] * 70_000 + [wrong, 2.0], dtype=object)
    with pytest.raises(ConfigError, match=said):
        encode(pd.DataFrame({"c": values}), "c", None, "float")


# -- splits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, (0.7, 0.2, 0.1), (1 / 3, 1 / 3, 1 / 3)])
def test_each_value_is_split_as_round_says(fraction: Any) -> None:
    """Also where a share of a value is a half: 0.5 * 5 is rounded to the even number."""
    values = np.repeat(np.arange(3000), np.random.default_rng(0).integers(1, 12, 3000))
    parts = rows_of_parts(len(values), fraction, 3, pd.Series(values), "stratify")
    shares = [fraction] if isinstance(fraction, float) else list(fraction[1:])
    counts = np.bincount(values)
    ends = np.cumsum(shares).tolist()
    before = np.zeros(3000, int)
    for part, end in zip(parts[1:], ends, strict=True):
        upto = np.array([round(end * int(count)) for count in counts])
        np.testing.assert_array_equal(np.bincount(values[part], minlength=3000), upto - before)
        before = upto
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(values)))
