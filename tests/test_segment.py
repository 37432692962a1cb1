from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from ringload import BudgetError
from ringload.system.segment import PAGE_BYTES, Segment, map_shared, round_up
from tests.helpers import run_quietly


def test_rounding_up() -> None:
    assert [round_up(n, 64) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
    assert round_up(1) == PAGE_BYTES


def test_a_segment_is_one_descriptor_and_no_name() -> None:
    fds, shm = len(os.listdir("/proc/self/fd")), os.listdir("/dev/shm")
    segment = Segment(10 * PAGE_BYTES)
    assert len(os.listdir("/proc/self/fd")) == fds + 1
    assert os.listdir("/dev/shm") == shm
    assert not os.get_inheritable(segment.fd)
    segment.reserve(0, 10 * PAGE_BYTES)
    one, other = segment.map(), map_shared(segment.fd, 10 * PAGE_BYTES)
    one[5] = 7
    assert other[5] == 7
    segment.close()
    segment.close()
    one[6] = 8
    assert other[6] == 8  # mappings outlive the descriptor


def test_only_what_is_reserved_takes_memory() -> None:
    segment = Segment(1 << 40)  # on paper
    segment.reserve(0, 8 * PAGE_BYTES)
    assert os.fstat(segment.fd).st_blocks * 512 == 8 * PAGE_BYTES


def test_writing_reserves_and_extends() -> None:
    segment = Segment(0)
    data = np.arange(3000, dtype=np.int32).reshape(30, 100)
    segment.write(PAGE_BYTES, data)
    mapped = map_shared(segment.fd, os.fstat(segment.fd).st_size)
    np.testing.assert_array_equal(mapped[PAGE_BYTES:].view(np.int32), data.ravel())


def test_more_than_there_is_is_an_error_not_a_signal(tmp_path: Path) -> None:
    """A tmpfs of 8 MB stands for a machine whose memory is used up: memfds are files of an unlimited one."""
    code = """
        import ctypes, os, sys
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None):
            print("needs root"); sys.exit()
        assert libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=8m") == 0
        from ringload.system.segment import reserve
        from ringload import BudgetError
        fd = os.open(sys.argv[1] + "/ring", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 16 << 20)
        try:
            reserve(fd, 0, 16 << 20)
        except BudgetError as error:
            print(error)
    """
    said = run_quietly(code, tmp_path)
    if said == "needs root\n":
        pytest.skip("needs root to mount a tmpfs")
    assert "cannot reserve bytes 0 to 16,777,216 of shared memory: No space left" in said


def test_limits_on_files_and_address_space_are_named() -> None:
    code = """
        import resource, sys
        import numpy, ringload.system.segment as shared
        from ringload import BudgetError
        kind, limit = getattr(resource, sys.argv[1]), int(sys.argv[2])
        resource.setrlimit(kind, (limit, limit))
        try:
            shared.Segment(1 << 33).map()
        except BudgetError as error:
            print(error)
    """
    assert "is RLIMIT_FSIZE (ulimit -f) too low?" in run_quietly(code, "RLIMIT_FSIZE", 1 << 20)
    assert "is RLIMIT_AS (ulimit -v) too low?" in run_quietly(code, "RLIMIT_AS", 4 << 30)
    with pytest.raises(BudgetError):
        raise BudgetError("also a MemoryError") from MemoryError()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
