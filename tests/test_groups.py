"""Groups of rows that are read together: their order, and chunks of HDF5 and Zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringload import Arrays, Loader, Part, SampleError
from ringload.order.groups import Groups
from ringload.sources.group_cache import GroupCache, window_of
from tests.helpers import epoch_order, rows_of, run_quietly

h5py = pytest.importorskip("h5py")

TRUTH = np.arange(3000 * 500, dtype="i4").reshape(3000, 500)  # 6 MB: 6 groups of 550 rows, in chunks of 50


def order_of(groups: Groups, n: int, **options: Any) -> list[int]:
    order = epoch_order(n, 4, order=groups, last="keep", **options)
    return [int(index) for number in range(order.n_batches(0)) for index in rows_of(order, 0, number).index]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 9), st.data())
def test_each_sample_once_and_a_window_of_groups_at_a_time(sizes: list[int], window: int, seed: int, data: Any) -> None:
    edges = np.concatenate([[0], np.cumsum(sizes)])
    n = int(edges[-1])
    rows = None
    if data.draw(st.booleans()):
        rows = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=2 * n)))
    whole = Groups(edges, window)
    groups, n = (whole, n) if rows is None else (whole.of_rows(rows), len(rows))
    seen = order_of(groups, n, seed=seed)
    assert sorted(seen) == list(range(n))
    of_row = (np.searchsorted(edges, seen if rows is None else rows[seen], "right") - 1).tolist()
    kept, n_read = GroupCache[int](window), list[int]()

    def read(number: int) -> int:
        n_read.append(number)
        return number

    for group in of_row:
        kept.get(group, read)
    assert sorted(n_read) == sorted(set(of_row))  # once each
    if len(groups.edges) > 2 and n > 20:
        assert seen != order_of(groups, n, seed=seed + 1)
    assert groups.of_rows(np.arange(n)[::-1]).rows is not None


def test_the_order_has_a_state_of_its_own() -> None:
    edges = np.array([0, 3, 9])
    states = [Groups(*one).bind(epoch_binding()).state() for one in ((edges, 2), (edges, 1), (np.array([0, 4, 9]), 2))]
    assert len({str(state) for state in states}) == 3
    assert window_of(1) == 16
    assert window_of(10 << 20) == 6
    assert window_of(1 << 40) == 1


def epoch_binding() -> Any:
    from ringload.protocols import Binding

    return Binding(9, 4, 0, lambda name: np.empty(0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=TRUTH, chunks=(50, 500), compression="gzip")
        file.create_dataset("small", data=TRUTH[:, :7], chunks=(70, 7), compression="gzip")
        file.create_dataset("plain", data=TRUTH[:, :7], chunks=(70, 7))
    return tmp_path / "a.h5"


def check(source: Any, **options: Any) -> list[int]:
    with Loader(source, 64, last="keep", ram_budget="400MB", epochs=1, **options) as made:
        seen = []
        for batch in made:
            for name in batch:
                np.testing.assert_array_equal(batch[name], TRUTH[made.batch_rows(batch), : batch[name].shape[1]])
            seen += batch.index.tolist()
    assert sorted(seen) == list(range(len(source)))
    return seen


def test_compressed_chunks_are_read_once_an_epoch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    get = GroupCache.get

    def noting(self: Any, number: int, of: Any) -> Any:
        if number not in self._kept:
            read.append(number)
        return get(self, number, of)

    monkeypatch.setattr(GroupCache, "get", noting)
    with h5py.File(path) as file:
        source = Arrays(x=file["x"], small=file["small"])
        assert Arrays(plain=file["plain"]).default_order is None  # HDF5 reads parts of its chunks
    assert len(source.default_order.edges) == 7
    seen = check(source, workers=0)
    assert sorted(read) == sorted([*range(6)] * 2)  # by both arrays, which have one window
    assert seen != sorted(seen)
    assert check(source, workers=0, shuffle=False) == list(range(3000))
    first, second = source.split(0.5, seed=1)
    assert isinstance(first, Part)
    check(first, workers=0)
    check(Part(second, range(100)), workers=0)
    check(source, workers=2)


ZARR = """
import sys
import numpy as np, zarr
import ringload

truth = np.arange(3000 * 500, dtype="i4").reshape(3000, 500)
zarr.open_array(sys.argv[1], mode="w", shape=truth.shape, chunks=(50, 500), dtype="i4")[:] = truth
source = ringload.Arrays(x=zarr.open_array(sys.argv[1], mode="r"))
print(len(source.default_order.edges))
for workers in (0, 2):
    with ringload.Loader(source, 64, workers=workers, last="keep", ram_budget="600MB", epochs=1) as loader:
        seen = []
        for batch in loader:
            np.testing.assert_array_equal(batch["x"], truth[batch.index])
            seen += batch.index.tolist()
    assert sorted(seen) == list(range(3000)) and seen != sorted(seen)
"""


def test_chunks_of_zarr(tmp_path: Path) -> None:
    """In a process of its own, as zarr keeps threads and descriptors."""
    pytest.importorskip("zarr")
    assert run_quietly(ZARR, tmp_path / "a.zarr") == "7\n"


def test_a_group_that_no_worker_has_room_for_is_read_and_not_kept(path: Path) -> None:
    with h5py.File(path) as file:
        source = Arrays(x=file["x"])
    from contextlib import nullcontext

    from ringload import Worker

    source.start(Worker(0, 1, 1 << 20, nullcontext))
    assert source.ahead_bytes == 0
    out = np.empty((3, 500), "i4")
    source.load_rows(np.array([5, 2999, 1100]), None, {"x": out})
    np.testing.assert_array_equal(out, TRUTH[[5, 2999, 1100]])


def test_a_damaged_chunk_in_a_group_is_its_rows_alone(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["x"].id.get_chunk_info(3)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    with h5py.File(path) as file:
        source = Arrays(x=file["x"]).subset(np.arange(130, 230))
    with Loader(source, 10, workers=0, on_error="skip", max_bad=100, ram_budget="400MB", epochs=1) as made:
        seen = sorted(int(source.rows[i]) for batch in made for i in batch.index[batch["valid"]])
    assert seen == [*range(130, 150), *range(200, 230)]
    with Loader(source, 1, workers=0, shuffle=False, ram_budget="400MB") as made, pytest.raises(SampleError, match="filter"):
        list(made)
