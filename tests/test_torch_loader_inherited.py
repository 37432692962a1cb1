"""What processes can only inherit, in a dataset: it works as with torch's DataLoader, whose workers are forked."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import threading
import time
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import Dataset  # noqa: E402

from ringload import ConfigError  # noqa: E402
from ringload.torch import DataLoader  # noqa: E402
from tests.helpers import run_quietly  # noqa: E402

N = 16


class Marks(Dataset):
    """Each sample leaves a mark in `shared`, which the trainer sees."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __len__(self) -> int:
        return N

    def mark(self, index: int) -> None:
        raise NotImplementedError

    def __getitem__(self, index: int) -> int:
        self.mark(index)
        return index


class Value(Marks):
    def mark(self, index: int) -> None:
        with self.shared.get_lock():
            self.shared.value += 1


class Array(Marks):
    def mark(self, index: int) -> None:
        self.shared[index] = 1


class Queue(Marks):
    def mark(self, index: int) -> None:
        self.shared.put(index)


class Event(Marks):
    def mark(self, index: int) -> None:
        self.shared.set()


class Lock(Marks):
    def mark(self, index: int) -> None:
        with self.shared[0]:
            self.shared[1].value += 1


class Mapped(Marks):
    def mark(self, index: int) -> None:
        self.shared[index] = 1


def _value() -> tuple[Any, Any]:
    value = multiprocessing.Value("i", 0)
    return Value(value), lambda: value.value >= N  # a sample may be loaded more than once


def _array() -> tuple[Any, Any]:
    array: Any = multiprocessing.Array("i", N)
    return Array(array), lambda: sum(array) == N


def _queue() -> tuple[Any, Any]:
    queue: Any = multiprocessing.SimpleQueue()

    def all_came() -> bool:
        seen = set()
        while not queue.empty():
            seen.add(queue.get())
        return seen == set(range(N))

    return Queue(queue), all_came


def _event() -> tuple[Any, Any]:
    event = multiprocessing.Event()
    return Event(event), event.is_set


def _lock() -> tuple[Any, Any]:
    value = multiprocessing.Value("i", 0, lock=False)
    return Lock((multiprocessing.Lock(), value)), lambda: value.value >= N


def _threads_lock() -> tuple[Any, Any]:
    value = multiprocessing.RawValue("i", 0)
    return Lock((threading.RLock(), value)), lambda: value.value > 0


def _anonymous() -> tuple[Any, Any]:
    array = np.frombuffer(mmap.mmap(-1, N), np.uint8)
    return Mapped(array), lambda: array.sum() == N


MAKERS = {
    "Value": _value,
    "Array": _array,
    "SimpleQueue": _queue,
    "Event": _event,
    "Lock": _lock,
    "threading.RLock": _threads_lock,
    "an anonymous mmap": _anonymous,
}


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", MAKERS)
def test_it_is_shared_with_the_workers_as_torch_does(kind: str, persistent: bool) -> None:
    batches = {}
    for cls in (torch.utils.data.DataLoader, DataLoader):
        data, is_right = MAKERS[kind]()
        loader = cls(data, 4, num_workers=2, persistent_workers=persistent)
        batches[cls] = [batch.tolist() for batch in loader]
        assert is_right(), cls
        if kind != "Event":
            assert len(list(loader)) == N // 4  # once more
    assert batches[DataLoader] == batches[torch.utils.data.DataLoader]


def test_an_explicit_start_method_is_kept_and_the_attribute_named() -> None:
    data, _ = _value()
    for method in ("forkserver", "spawn"):
        loader = DataLoader(data, 4, num_workers=1, multiprocessing_context=method)
        with pytest.raises(ConfigError, match=r"dataset\.shared.*multiprocessing_context=\"fork\""):
            next(iter(loader))


class Perhaps(Value):
    """May have a value, or none."""

    def mark(self, index: int) -> None:
        if self.shared is not None:
            super().mark(index)


def test_a_lock_that_a_dataset_gets_between_passes_is_no_error() -> None:
    data = Perhaps(None)
    loader = DataLoader(data, 4, num_workers=2)
    assert len(list(loader)) == N // 4
    data.shared = multiprocessing.Value("i", 0)
    assert len(list(loader)) == N // 4
    assert data.shared.value >= N


def test_changes_of_such_a_dataset_are_seen() -> None:
    data, _ = _value()
    data.step = 1

    def mark(self: Any, index: int) -> int:
        return index * self.step

    type(data).__getitem__ = mark
    try:
        loader = DataLoader(data, 4, num_workers=2)
        assert next(batch.tolist() for batch in loader) == [0, 1, 2, 3]
        data.step = 10
        assert next(batch.tolist() for batch in loader) == [0, 10, 20, 30]
    finally:
        type(data).__getitem__ = Marks.__getitem__


class Slow(Marks):
    """Holds the lock for a while."""

    def mark(self, index: int) -> None:
        with self.shared:
            time.sleep(0.02)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_lock_is_never_left_with_a_worker_that_was_ended(persistent: bool) -> None:
    lock = multiprocessing.Lock()
    for _ in range(3):
        loader = DataLoader(Slow(lock), 2, num_workers=2, prefetch_factor=4, persistent_workers=persistent)
        for _ in range(2):
            for _ in loader:
                break  # workers are in the middle of what comes next
        if not persistent:
            loader.close()
        del loader
        assert lock.acquire(timeout=60)
        lock.release()


def test_the_hash_of_strings_is_the_trainers() -> None:
    code = """
        import torch
        from ringload.torch import DataLoader
        class Data(torch.utils.data.Dataset):
            def __len__(self): return 8
            def __getitem__(self, index): return hash(f"name {index}") % 1000
        expected = [hash(f"name {i}") % 1000 for i in range(8)]
        for workers in (0, 2):
            print(torch.cat(list(DataLoader(Data(), 4, num_workers=workers))).tolist() == expected)
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    assert run_quietly(code, env=environment) == "True\nTrue\n"


def test_shared_tensors_and_proxies_need_no_fork() -> None:
    code = """
        import multiprocessing, torch
        from ringload.torch import DataLoader
        class Data(torch.utils.data.Dataset):
            def __init__(self, seen):
                self.flag, self.cache, self.seen = torch.zeros(()).share_memory_(), torch.zeros(8).share_memory_(), seen
            def __len__(self): return 8
            def __getitem__(self, index):
                self.cache[index] = 1
                self.seen[index] = True
                return float(self.flag)
        if __name__ == "__main__":
            with multiprocessing.Manager() as manager:
                data = Data(manager.dict())
                loader = DataLoader(data, 4, num_workers=2, persistent_workers=True)
                for flag in (0, 1, 2):
                    data.flag.fill_(flag)
                    told = {x for batch in loader for x in batch.tolist()}
                    print(told, int(data.cache.sum()), len(data.seen), loader._must_fork)
                del loader
    """
    assert run_quietly(code) == "{0.0} 8 8 False\n{1.0} 8 8 False\n{2.0} 8 8 False\n"
