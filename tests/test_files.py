from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from ringload.data import files
from ringload.data.files import ReadAhead, open_regular, read_whole


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)) * 50)
    return path


def test_a_regular_file_is_opened_and_read(file: Path) -> None:
    fds: list[int] = []
    n_bytes = open_regular(os.fsencode(file), fds)
    (fd,) = fds
    assert n_bytes == 10_000
    assert not os.get_inheritable(fd)
    small, large = bytearray(10), bytearray(20_000)
    assert bytes(read_whole(fd, n_bytes, large)) == file.read_bytes()
    assert bytes(read_whole(fd, n_bytes, small)) == file.read_bytes()  # does not fit: memory of its own
    os.truncate(file, 77)
    assert bytes(read_whole(fd, n_bytes, large)) == file.read_bytes()  # it shrank since
    os.close(fd)


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
    path, fds = make(kind, tmp_path / "x"), list[int]()
    with pytest.raises(error, match=said):
        open_regular(path, fds)
    for fd in fds:
        os.close(fd)
    ahead = ReadAhead()
    before = len(os.listdir("/proc/self/fd"))
    ahead.ask([(0, path)])  # says nothing yet
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(error, match=said):
        ahead.take(0)
    ahead.close()


@pytest.mark.parametrize("slow_s", [10.0, 0.0], ids=["inline", "by threads"])
def test_files_are_open_before_they_are_taken(file: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float) -> None:
    monkeypatch.setattr(files, "SLOW_OPEN_S", slow_s)
    ahead = ReadAhead()
    for key in range(0, 40, 2):
        ahead.ask([(key, str(file)), (key, str(file)), (key + 1, "/nowhere")])
        opened = ahead.take(key)
        assert opened is not None
        fd, n_bytes = opened
        assert (os.pread(fd, 3, 0), n_bytes) == (b"\0\1\2", 10_000)
        os.close(fd)
        with pytest.raises(FileNotFoundError):
            ahead.take(key + 1)
    assert (ahead._threads is None) == (slow_s == 10.0)
    ahead.ask((key, str(file)) for key in range(5))
    ahead.close()  # the fixture looks for what is left open


def test_no_more_files_are_open_than_allowed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_OPEN", 4)
    before = len(os.listdir("/proc/self/fd"))
    ahead = ReadAhead()
    ahead.ask((key, str(file)) for key in range(100))
    assert len(os.listdir("/proc/self/fd")) == before + 4
    taken = [ahead.take(key) for key in range(100)]
    assert taken[4:] == [None] * 96
    for opened in taken[:4]:
        assert opened is not None
        os.close(opened[0])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("slow_s", [10.0, 0.0], ids=["inline", "by threads"])
def test_where_no_more_can_be_opened_the_rest_was_not_asked_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    """Whoever asks ahead says nothing of a limit on open files: the file is opened when it is its turn."""
    monkeypatch.setattr(files, "SLOW_OPEN_S", slow_s)
    ahead = ReadAhead()
    ahead.ask([(-1, str(file))])
    for key in (-1, -2):  # the threads, if any, are there
        ahead.ask([(key, str(file))])
        os.close((ahead.take(key) or (-1, 0))[0])
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, hard))
    try:
        ahead.ask((key, str(file)) for key in range(20))
        for key in reversed(range(20)):  # what was opened ahead of them leaves nothing for the first of these
            fds: list[int] = []
            assert ahead.open(key, str(file), fds) == 10_000
            os.close(fds[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        ahead.close()
