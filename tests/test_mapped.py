"""Shared memory of a source: workers have the same memory, and not copies; nobody but its owner unlinks it."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import subprocess
import sys
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import ConfigError, Loader
from ringload.packing.mapped import SharedMappings, array_again, array_in, bytes_at
from ringload.packing.pack import ForkRequiredError, pack
from ringload.packing.unpack import unpack
from tests.helpers import LOGGED, run_quietly

METHODS = ["forkserver", "spawn", "fork"]
N = 24


def _memmap(folder: Path) -> tuple[Any, np.ndarray]:
    array: Any = np.memmap(folder / "x y\nz.bin", np.int64, "w+", offset=24, shape=(3, N))
    return array, array[1]


def _raw_array(folder: Path) -> tuple[Any, np.ndarray]:
    array: Any = multiprocessing.RawArray(ctypes.c_int64, N)
    return array, np.frombuffer(array, np.int64)


def _view_of_raw_array(folder: Path) -> tuple[Any, np.ndarray]:
    array = np.frombuffer(multiprocessing.RawArray("b", N * 8 + 8), np.uint8)[8:].view(np.int64)
    return array, array


def _file(folder: Path) -> tuple[Any, np.ndarray]:
    (folder / "f").write_bytes(bytes(5000))
    with open(folder / "f", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    (folder / "f").unlink()  # which mmap keeps open
    array = np.frombuffer(mapped, np.int64, N)
    return array, array


def _memfd(folder: Path) -> tuple[Any, np.ndarray]:
    fd = os.memfd_create("mine")
    os.ftruncate(fd, 4096)
    array = np.frombuffer(mmap.mmap(fd, 4096), np.int64, N, 64)
    os.close(fd)
    return array, array


KINDS = {"np.memmap": _memmap, "RawArray": _raw_array, "a view": _view_of_raw_array, "a deleted file": _file, "a memfd": _memfd}


class Source:
    """`memory` is written to: sample `i` is what was there at place `i`, and leaves 1000 + i."""

    fields = {"x": ((), "int64")}  # noqa: RUF012

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __len__(self) -> int:
        return N

    def load(self, index: int, rng: Any, out: Any) -> None:
        memory = self.memory if not isinstance(self.memory, np.ndarray) or self.memory.ndim == 1 else self.memory[1]
        out["x"] = memory[index]
        memory[index] = 1000 + index


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_trainer_and_workers_write_there_all_of_them_see(kind: str, method: Any, tmp_path: Path) -> None:
    memory, view = KINDS[kind](tmp_path)
    view[:] = np.arange(N) * 7
    for expected in (np.arange(N) * 7, np.arange(N) + 1000):
        options: dict[str, Any] = {"shuffle": False, "start_method": method, "epochs": 1, "ram_budget": "300MB"}
        with Loader(Source(memory), 8, workers=2, **options) as loader:
            np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in loader]), expected)
    np.testing.assert_array_equal(view, np.arange(N) + 1000)


def test_shared_tensors_are_shared_whatever_their_size_strides_and_dtype() -> None:
    code = """
        import torch
        import ringload
        tensors = {
            "one": torch.zeros((), dtype=torch.int64), "big": torch.zeros(200_000), "turned": torch.zeros(7, 5).T[1:],
            "bf16": torch.zeros(6, dtype=torch.bfloat16), "byte": torch.zeros(6, dtype=torch.bool), "not": torch.zeros(3),
        }
        base = torch.zeros(7, 5).share_memory_()
        for name, tensor in tensors.items():
            if name not in ("not", "turned"): tensor.share_memory_()
        tensors["turned"] = base.T[1:]
        def load(index, rng, out):
            out["x"] = int(tensors["one"])
            for tensor in tensors.values(): tensor.fill_(1)
        fields = {"fields": {"x": ((), "int64")}, "n_samples": 4, "ram_budget": "1GB"}
        for method in ("forkserver", "spawn", "fork"):
            for tensor in tensors.values(): tensor.fill_(0)
            with ringload.Loader(load, 4, workers=1, start_method=method, **fields) as loader:
                for batch in loader: pass
            print({name: float(tensor.float().mean()) for name, tensor in tensors.items()})
    """
    expected = {"one": 1.0, "big": 1.0, "turned": 1.0, "bf16": 1.0, "byte": 1.0, "not": 0.0}
    assert run_quietly(code) == f"{expected}\n" * 3


def test_read_only_maps_stay_read_only_and_private_ones_private(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100))
    read, private = np.load(tmp_path / "x.npy", mmap_mode="r"), np.load(tmp_path / "x.npy", mmap_mode="c")
    private[0] = 99
    twin_read, twin_private = unpack(pack((read, private)).data)
    np.testing.assert_array_equal(twin_read, read)
    with pytest.raises(ValueError, match="read-only"):
        twin_read[0] = 1
    twin_private[1] = 98
    assert (twin_private[0], private[1], np.load(tmp_path / "x.npy")[0]) == (99, 1, 0)


def test_a_file_that_was_replaced_is_still_the_one_that_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100))
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.save(tmp_path / "y.npy", np.zeros(100))
    os.replace(tmp_path / "y.npy", tmp_path / "x.npy")
    packed = pack(array)  # which has the file open for workers
    np.testing.assert_array_equal(unpack(packed.data), np.arange(100))


def test_mappings_that_follow_each_other_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(256)) * 64)
    with open(tmp_path / "f", "r+b") as file:
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
    libc = ctypes.CDLL(None)
    libc.mprotect(ctypes.c_void_p(whole.ctypes.data + 4096), ctypes.c_size_t(4096), mmap.PROT_READ)  # three lines of maps
    mappings = SharedMappings()
    for part in (whole[:100], whole[5000:6000], whole[9000:]):
        found = array_in(mappings, part)
        assert found is not None
        np.testing.assert_array_equal(array_again(*found), part)
    place = mappings.find(whole.ctypes.data + 4096, 10)
    assert place is not None
    assert not place.is_writable
    assert not bytes_at(place).flags.writeable
    assert mappings.find(whole.ctypes.data + 4000, 200) is None  # of both kinds


@pytest.mark.parametrize(
    "make", [lambda: np.frombuffer(mmap.mmap(-1, 4096), np.int64, N), lambda: multiprocessing.Value("i", 0)]
)
def test_what_only_forks_can_share_is_refused_with_the_remedy_or_forked(make: Any) -> None:
    memory = make()
    with pytest.raises(ForkRequiredError, match=r"start_method='fork'") as caught:
        Loader(Source(memory), 8, workers=1, ram_budget="300MB")
    assert isinstance(caught.value, ConfigError)
    if isinstance(memory, np.ndarray):
        with Loader(Source(memory), 8, workers=1, ram_budget="300MB", start_method="fork") as loader:
            for _ in loader:
                pass
        np.testing.assert_array_equal(memory, np.arange(N) + 1000)


def test_proxies_of_a_manager_work_in_workers() -> None:
    code = """
        import multiprocessing
        import ringload
        def load(index, rng, out):
            out["x"] = index
            seen[index] = True
        if __name__ == "__main__":
            with multiprocessing.Manager() as manager:
                seen = manager.dict()
                fields = {"fields": {"x": ((), "int64")}, "n_samples": 8, "ram_budget": "300MB"}
                for method in ("forkserver", "spawn", "fork"):
                    seen.clear()
                    with ringload.Loader(load, 4, workers=2, start_method=method, epochs=1, **fields) as loader:
                        for batch in loader: pass
                    print(sorted(seen.keys()))
    """
    assert run_quietly(code) == "[0, 1, 2, 3, 4, 5, 6, 7]\n" * 3


ATTACHES = """
import os, sys
from multiprocessing import shared_memory
import numpy as np, psutil
import ringload

class Source:
    fields = {"x": ((), "int64")}
    def __init__(self, name): self.name, self.shm = name, None
    def __len__(self): return 40
    def load(self, index, rng, out):
        if self.shm is None: self.shm = shared_memory.SharedMemory(self.name)
        out["x"] = np.ndarray(40, np.int64, self.shm.buf)[index]

name, method = sys.argv[1:]
with ringload.Loader(Source(name), 4, workers=2, ram_budget="200MB", shuffle=False, start_method=method) as loader:
    batches = iter(loader)
    got = next(batches)["x"].tolist()
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ringload:") and process.name() != "ringload:server": process.kill()
    got += [x for batch in batches for x in batch["x"].tolist()]
print(got == list(range(40)), os.path.exists("/dev/shm/" + name))
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("whose", ["the trainer's", "another program's"])
def test_a_segment_of_the_users_outlives_workers_that_attach_to_it(whose: str, method: str, tmp_path: Path) -> None:
    """And where workers die, their replacements can attach to it. (python/cpython#82300)"""
    segment = shared_memory.SharedMemory(create=True, size=320)
    try:
        np.ndarray(40, np.int64, segment.buf)[:] = np.arange(40)
        attach = f"from multiprocessing import shared_memory\nmine = shared_memory.SharedMemory({segment.name!r})\n"
        # The trainer's own tracker would unlink it at the trainer's end, as Python's does: that is not what is tested.
        forget = "from multiprocessing import resource_tracker as t\nt.unregister(mine._name, 'shared_memory')\n"
        code = (attach if whose == "the trainer's" else "") + ATTACHES + (forget if whose == "the trainer's" else "")
        command = [sys.executable, "-c", code, segment.name, method]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)
        assert (done.stdout, LOGGED.sub("", done.stderr)) == ("True True\n", "")
    finally:
        segment.close()
        segment.unlink()
        resource_tracker._resource_tracker._stop()  # this process's own, which would be left
