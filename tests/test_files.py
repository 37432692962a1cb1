from __future__ import annotations

import os
import resource
import socket
import tracemalloc
from pathlib import Path

import pytest

from ringload import ContentTooLargeError
from ringload.storage import read_ahead
from ringload.storage.local import LocalStorage
from ringload.storage.read_ahead import ReadAhead, open_regular

CONTENT = bytes(range(200)) * 50
ALL = 1 << 40


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def copies(file: Path, n: int) -> list[str]:
    """Files with the same content."""
    paths = [file.parent / str(number) for number in range(n)]
    for path in paths:
        path.write_bytes(CONTENT)
    return [str(path) for path in paths]


def test_a_regular_file_is_opened_and_read(file: Path) -> None:
    fds: list[int] = []
    assert open_regular(str(file), fds) == len(CONTENT)
    (fd,) = fds
    assert not os.get_inheritable(fd)
    os.close(fd)
    storage, before = LocalStorage(), descriptors()
    for is_ahead in (False, True):
        if is_ahead:
            storage.prefetch([str(file)], 0)
        assert storage.read(str(file), ALL) == CONTENT
    assert descriptors() == before
    storage.prefetch([str(file)], 0)
    os.truncate(file, 77)  # it shrinks while it is open
    assert storage.read(str(file), ALL) == CONTENT[:77]


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff"
    with open(path, "wb") as file:
        file.write(CONTENT)
    assert LocalStorage().read(os.fsdecode(path), ALL) == CONTENT


def test_memory_is_used_again_but_for_large_files(file: Path) -> None:
    storage, large = LocalStorage(), file.parent / "large"
    with open(large, "wb") as sparse:
        sparse.truncate(6_000_000)
    first = storage.read(str(file), ALL)
    assert storage.read(str(large), ALL) == bytes(6_000_000)
    assert first == CONTENT
    tracemalloc.start()
    for _ in range(20):
        storage.read(str(file), ALL)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < len(CONTENT)


@pytest.mark.parametrize("is_ahead", [False, True])
def test_what_is_too_large_is_not_read(tmp_path: Path, is_ahead: bool) -> None:
    path = str(tmp_path / "sparse")
    with open(path, "wb") as file:
        file.truncate(5_000_000_000)
    storage, before = LocalStorage(), descriptors()
    if is_ahead:
        storage.prefetch([path], 0)
    with pytest.raises(ContentTooLargeError, match="it has 5,000,000,000 bytes, and 4,999,999,999 may be read") as raised:
        storage.read(path, 4_999_999_999)
    assert (raised.value.n_bytes, raised.value.max_bytes) == (5_000_000_000, 4_999_999_999)
    assert descriptors() == before


def make(kind: str, path: Path) -> str:
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "empty file":
        path.touch()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        return "/dev/zero"
    elif kind == "memory":
        return "/proc/self/mem"
    elif kind == "long name":
        return str(path) + "x" * 300
    return str(path)


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("directory", ValueError, "not a regular file but a directory"),
        ("FIFO", ValueError, "not a regular file but a FIFO"),
        ("socket", OSError, "No such device or address"),
        ("device", ValueError, "not a regular file but a character device"),
        ("memory", ValueError, "an empty file"),
        ("empty file", ValueError, "an empty file"),
        ("missing", FileNotFoundError, "No such file"),
        ("loop", OSError, "Too many levels of symbolic links"),
        ("long name", OSError, "File name too long"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, error: type[Exception], said: str) -> None:
    path, before = make(kind, tmp_path / "x"), descriptors()
    storage = LocalStorage()
    with pytest.raises(error, match=said):
        storage.read(path, ALL)
    storage.prefetch([path], 0)  # says nothing yet
    assert descriptors() == before
    with pytest.raises(error, match=said):
        storage.read(path, ALL)
    assert descriptors() == before


@pytest.mark.parametrize("slow_s", [10.0, 0.0], ids=["inline", "by threads"])
def test_files_are_open_before_they_are_taken(file: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float) -> None:
    monkeypatch.setattr(read_ahead, "SLOW_OPEN_S", slow_s)
    ahead = ReadAhead()
    for path in copies(file, 20):
        ahead.ask([path, path, "/nowhere"])
        opened = ahead.take(path)
        assert opened is not None
        fd, n_bytes = opened
        assert (os.pread(fd, 3, 0), n_bytes) == (b"\0\1\2", 10_000)
        os.close(fd)
        assert ahead.take(path) is None  # once
        with pytest.raises(FileNotFoundError):
            ahead.take("/nowhere")
    assert (ahead._threads is None) == (slow_s == 10.0)
    ahead.ask(copies(file, 5))
    ahead.close()  # the fixture looks for what is left open


def test_no_more_files_are_open_than_allowed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "MAX_OPEN", 4)
    paths, before = copies(file, 100), descriptors()
    ahead = ReadAhead()
    ahead.ask(paths)
    assert descriptors() == before + 4
    taken = [ahead.take(path) for path in paths]
    assert taken[4:] == [None] * 96
    for opened in taken[:4]:
        assert opened is not None
        os.close(opened[0])
    assert descriptors() == before


@pytest.mark.parametrize("slow_s", [10.0, 0.0], ids=["inline", "by threads"])
def test_where_no_more_can_be_opened_the_rest_was_not_asked_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    """Asking ahead says nothing of a limit on open files: the file is opened when it is its turn."""
    monkeypatch.setattr(read_ahead, "SLOW_OPEN_S", slow_s)
    storage, paths = LocalStorage(), copies(file, 20)
    for _ in range(2):  # the threads, if any, are there
        storage.prefetch([str(file)], 0)
        storage.read(str(file), ALL)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, hard))
    try:
        storage.prefetch(paths, 0)
        for path in reversed(paths):  # what was opened ahead of them leaves nothing for the first of these
            assert storage.read(path, ALL) == CONTENT
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        storage.close()
