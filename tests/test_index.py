from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ringload import ConfigError
from ringload.data import index
from ringload.data.index import Strings


def test_strings_of_every_kind_of_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "CHUNK", 3)
    values = ["a", "b/ü.jpg", b"raw\xff", Path("c/d"), "x" * 1000, "\udcff bad", "z"]
    strings = Strings.of(values, "path")
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
        Strings.of(values, "column 'path', row")
