"""Who cannot be killed, as in a hung disk's driver: that is an error, and an end, not a hang."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ringload import LoaderClosedError, StallError
from ringload.workers import supervisor as pool_module
from tests.conftest import Injected
from tests.deaths import METHODS, Gated, loader, members, stall

pytestmark = pytest.mark.fault


@pytest.fixture
def frozen() -> Iterator[Any]:
    """A function that freezes processes: they do not end by SIGKILL, as in a hung disk's driver, until they are thawed."""
    folder = Path(f"/sys/fs/cgroup/freezer/ringload-{os.getpid()}")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("needs root and a freezer cgroup of version 1")
    pidfds = []

    def freeze(*pids: int) -> None:
        for pid in pids:
            pidfds.append(os.pidfd_open(pid))
            (folder / "cgroup.procs").write_text(str(pid))
        (folder / "freezer.state").write_text("FROZEN")
        while (folder / "freezer.state").read_text() != "FROZEN\n":
            pass

    yield freeze
    (folder / "freezer.state").write_text("THAWED")
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 20)[0]  # the kill was only waiting for that
        os.close(pidfd)
    folder.rmdir()


@pytest.mark.parametrize("who", ["a worker", "the server", "both"])
@pytest.mark.parametrize("method", METHODS)
def test_who_cannot_be_killed_is_an_end_not_a_hang(
    method: Any, who: str, tmp_path: Path, frozen: Any, injected: Injected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that it may still write to is not used again."""
    monkeypatch.setattr(pool_module, "END_S", 0.3)
    with loader(Gated(tmp_path / "gate"), workers=1, stall_timeout=0.5, start_method=method) as made:
        iterator = iter(made)
        stall(iterator, "sample 32")
        server, worker_id = members(made)
        victims = {"a worker": [worker_id], "the server": [server], "both": [server, worker_id]}[who]
        frozen(*victims)
        if who == "the server":
            os.kill(worker_id, signal.SIGKILL)
        made._engine._state.settings = replace(made._engine._state.settings, sample_timeout=0.1, stall_timeout=20)
        with pytest.raises(StallError, match=r"have not ended 0.3 s after SIGKILL") as caught:
            next(iterator)
        for pid in victims:
            assert str(pid) in str(caught.value)
        with pytest.raises(LoaderClosedError, match="it ended with UnkillableError"):
            next(iterator)
        made.close()
    if who != "a worker":
        (Path(f"/sys/fs/cgroup/freezer/ringload-{os.getpid()}") / "freezer.state").write_text("THAWED")
        os.waitpid(server, 0)
    injected("a process that SIGKILL does not end", len(victims))
