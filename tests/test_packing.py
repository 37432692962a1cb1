from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import ConfigError
from ringload.packing.pack import SHARE_FROM_BYTES, pack
from ringload.packing.unpack import unpack
from tests.helpers import run_quietly

BIG = SHARE_FROM_BYTES


class Holder:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


def both_ways(source: Any) -> Any:
    packed = pack(source)
    return unpack(packed.data)


def test_large_arrays_are_shared_and_small_ones_sent() -> None:
    big, small = np.arange(BIG, dtype=np.uint16), np.arange(10)
    packed = pack(Holder(big=big, small=small, also=big))
    assert packed.shared_bytes == BIG * 2
    assert len(packed.data) < 4000
    twin = unpack(packed.data)
    np.testing.assert_array_equal(twin.big, big)
    np.testing.assert_array_equal(twin.small, small)
    assert twin.also is twin.big


@pytest.mark.parametrize(
    "array",
    [
        np.arange(BIG * 2).reshape(2, -1)[:, ::2],
        np.asfortranarray(np.arange(BIG * 2, dtype="f4").reshape(64, -1)),
        np.zeros((BIG, 1), "S3"),
        np.ones(BIG, [("a", "i4"), ("b", "f8")]),
        np.arange(BIG, dtype=">i4"),
    ],
    ids=["strided", "fortran", "bytes", "structured", "big-endian"],
)
def test_every_kind_of_array_arrives_whole(array: np.ndarray) -> None:
    twin = both_ways(array)
    assert twin.dtype == array.dtype
    np.testing.assert_array_equal(twin, array)


def test_who_writes_into_a_shared_array_writes_into_a_copy() -> None:
    packed = pack(np.zeros(BIG, np.uint8))
    one, other = unpack(packed.data), unpack(packed.data)
    one[0] = 7
    assert (one[0], other[0], unpack(packed.data)[0]) == (7, 0, 0)


def test_memory_maps_are_mapped_again(tmp_path: Path) -> None:
    whole = np.memmap(tmp_path / "x.bin", np.int32, "w+", offset=12, shape=(100, 50))
    whole[:] = np.arange(5000).reshape(100, 50)
    whole.flush()
    np.save(tmp_path / "y.npy", np.arange(BIG))
    saved = np.load(tmp_path / "y.npy", mmap_mode="r")
    packed = pack(Holder(whole=whole, part=whole[10:20, 5:7], turned=whole.T, saved=saved, reversed=whole[::-1]))
    assert packed.shared_bytes == 0
    twin = unpack(packed.data)
    np.testing.assert_array_equal(twin.whole, whole)
    np.testing.assert_array_equal(twin.part, whole[10:20, 5:7])
    np.testing.assert_array_equal(twin.turned, whole.T)
    np.testing.assert_array_equal(twin.saved, saved)
    np.testing.assert_array_equal(twin.reversed, whole[::-1])
    twin.whole[0, 0] = 99  # as any process does that has mapped the file
    assert whole[0, 0] == 99
    assert not twin.saved.flags.writeable


def test_closures_and_lambdas_are_sent_with_their_arrays() -> None:
    table = np.arange(BIG)
    packed = pack(lambda i: table[i] + 1)
    assert packed.shared_bytes >= BIG * 8
    assert unpack(packed.data)(41) == 42


lock = threading.Lock()


def uses_a_global_lock() -> None:
    lock.acquire()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: Holder(a=1, log=file), r"Holder\.log is an open file \('.*x\.txt'\)"),
        (lambda file: Holder(deep={"k": [0, threading.Lock()]}), r"Holder\.deep\['k'\]\[1\] is a lock"),
        (lambda file: lambda: file.read(), r"<lambda> -> variable 'file' is an open file"),
        (lambda file: functools.partial(print, file=file), r"partial\.keywords\['file'\] is an open file"),
        (lambda file: Holder(f=Holder(g=iter(file)).__init__), r"open file"),
        (lambda file: Holder(g=(x for x in range(3))), r"Holder\.g is a generator"),
    ],
)
def test_what_cannot_be_sent_is_named(tmp_path: Path, make: Any, said: str) -> None:
    (tmp_path / "x.txt").write_text("x")
    with open(tmp_path / "x.txt") as file, pytest.raises(ConfigError, match=said) as caught:
        pack(make(file))
    assert "workers=0" in str(caught.value)


def test_a_global_that_cannot_be_sent_is_named() -> None:
    code = """
        import threading, ringload.packing.pack as s
        lock = threading.Lock()
        def load(i): lock.acquire()
        try: s.pack(load)
        except s.ConfigError as error: print(error)
    """
    assert "load -> global 'lock' is a lock" in run_quietly(code)


def test_standard_streams_and_buffers_may_be_named() -> None:
    code = """
        import io, sys
        from ringload.packing.pack import pack
        from ringload.packing.unpack import unpack
        out, buffer = unpack(pack((sys.stdout, io.BytesIO(b"abc"))).data)
        print(out is sys.stdout, buffer.read())
    """
    assert run_quietly(code) == "True b'abc'\n"
