"""Leases by liveness: the slot's lease ends when the last array that looks into it is gone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringload import Batch, Field, LoaderClosedError
from ringload.protocols import Rows
from ringload.ring.layout import Layout
from ringload.ring.lease import LeaseEnd, LeaseFactory
from ringload.ring.slots import Ring

LAYOUT = Layout({"image": Field((5, 7, 3), "u1"), "label": Field((), "i8")}, 4, 3, 1, False)


class Releases:
    def __init__(self) -> None:
        self.ends: list[LeaseEnd] = []

    def release(self, end: LeaseEnd) -> None:
        self.ends.append(end)


@pytest.fixture
def memory() -> np.ndarray:
    memory = np.zeros(LAYOUT.n_bytes, np.uint8)
    for name, array in LAYOUT.arrays(memory).items():
        for slot in range(3):
            array[slot] = (np.arange(array[slot].size) % 100 + slot).reshape(array[slot].shape) if name != "index" else slot
    return memory


def lend(memory: np.ndarray, releases: Releases | None = None, n_rows: int = 4) -> tuple[Batch, LeaseFactory, Any]:
    lender = LeaseFactory(memory, LAYOUT, (releases or Releases()).release)
    posted = Ring(3).fill(2, 1, n_rows, 1)
    lender.prepare(posted, Rows(np.full(n_rows, posted.slot)))
    return lender.lend(posted.slot), lender, posted


def named(lender: LeaseFactory) -> tuple[int, int]:
    """(slot, serial) of the lease that has ended first."""
    end = lender.released.get_nowait()
    assert end is not None
    return end.slot, end.serial


def ended(lender: LeaseFactory) -> bool:
    return not lender.released.empty()


def test_a_batch_is_a_mapping_of_arrays(memory: np.ndarray) -> None:
    batch, lender, posted = lend(memory, n_rows=3)
    assert list(batch) == ["image", "label"]
    assert (len(batch), batch.epoch, batch.number) == (2, 2, 1)
    assert batch["image"].shape == (3, 5, 7, 3)
    assert batch["label"].tolist() == [0, 1, 2]
    assert batch.index.tolist() == [0, 0, 0]
    assert batch["image"].flags.writeable
    assert batch["image"].ctypes.data % 64 == batch["label"].ctypes.data % 64 == memory.ctypes.data % 64
    batch["image"][:] = 99
    assert (LAYOUT.arrays(memory)["image"][posted.slot, :3] == 99).all()
    assert "image: (3, 5, 7, 3) uint8" in repr(batch)
    assert not ended(lender)


@pytest.mark.parametrize(
    "keep",
    [
        lambda batch: batch,
        lambda batch: batch["image"],
        lambda batch: batch["label"],
        lambda batch: batch["image"][1],
        lambda batch: batch["image"][1:, 2].T[1:].view(np.int8)[::2],
        lambda batch: batch["image"].reshape(-1)[5:],
        lambda batch: np.asarray(batch["image"])[None],
        lambda batch: memoryview(batch["image"][0]),
        lambda batch: iter(batch["image"]),
        lambda batch: np.lib.stride_tricks.sliding_window_view(batch["label"], 2),
        lambda batch: dict(batch),
        lambda batch: {"deep": [batch["label"][:1]]},
        lambda batch: np.frombuffer(batch["label"], np.uint8),
    ],
)
def test_the_lease_lasts_as_long_as_any_view(memory: np.ndarray, keep: Any) -> None:
    batch, lender, posted = lend(memory)
    kept = keep(batch)
    del batch
    gc.collect()
    assert not ended(lender)
    del kept
    assert named(lender) == (posted.slot, posted.serial)


@pytest.mark.parametrize("copy", [lambda batch: batch["image"].copy(), lambda batch: batch.index, lambda batch: batch.copy()])
def test_copies_lend_nothing(memory: np.ndarray, copy: Any) -> None:
    batch, lender, _ = lend(memory)
    kept = copy(batch)
    del batch
    assert ended(lender)
    memory[:] = 0
    if isinstance(kept, Batch):
        assert kept["label"].tolist() == [0, 1, 2, 3]
        assert kept.index.tolist() == [0, 0, 0, 0]
        kept.release()
        with pytest.raises(LoaderClosedError):
            _ = kept["label"]


def test_a_cycle_is_collected(memory: np.ndarray) -> None:
    batch, lender, _ = lend(memory)
    loop: list[Any] = [batch]
    loop.append(loop)
    del batch, loop
    gc.collect()
    assert ended(lender)


def test_release_ends_the_lease_at_once(memory: np.ndarray) -> None:
    releases = Releases()
    batch, lender, posted = lend(memory, releases)
    kept = batch["image"]
    batch.release()
    batch.release()
    assert [(end.slot, end.serial) for end in releases.ends] == [(posted.slot, posted.serial)]
    uses: list[Callable[[Batch], Any]] = [
        lambda batch: batch["image"],
        lambda batch: batch.index,
        list,
        len,
        Batch.copy,
    ]
    for use in uses:
        with pytest.raises(LoaderClosedError, match="batch 1 of epoch 2 was released"):
            use(batch)
    assert "released" in repr(batch)
    assert kept.shape == (4, 5, 7, 3)  # still mapped: what it shows is another batch's, and no crash
    del batch, kept
    assert ended(lender)


def test_a_batch_keeps_memory_but_nobody_alive(memory: np.ndarray) -> None:
    releases = Releases()
    batch, lender, _ = lend(memory, releases)
    expected = batch["image"].copy()
    lender.drop()
    del releases, lender, memory
    gc.collect()
    np.testing.assert_array_equal(batch["image"], expected)
    batch.release()  # there is nobody to tell


def test_leases_end_from_any_thread(memory: np.ndarray) -> None:
    lender = LeaseFactory(memory, LAYOUT, Releases().release)
    ring = Ring(3)
    batches = []
    for number in range(3):
        posted = ring.fill(0, number, 4, 1)
        lender.prepare(posted, Rows(np.arange(4)))
        batches.append([lender.lend(posted.slot)])
    threads = [threading.Thread(target=kept.clear) for kept in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = [lender.released.get_nowait() for _ in range(3)]
    assert sorted(end.slot for end in ends if end is not None) == [0, 1, 2]
