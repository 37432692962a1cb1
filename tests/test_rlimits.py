"""Limits of the system: it works, or says at the start which one is too low. No traceback, no hang, nothing left.

What cannot be had here: ENOSPC of the ring itself. A memfd lies on a tmpfs of the kernel's own that has no size, so neither a
full nor an absent /dev/shm concerns it; what bounds it is RLIMIT_FSIZE (EFBIG), RLIMIT_AS, cgroups, and the machine.
"""

from __future__ import annotations

import gc
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import Batch, Loader, RingloadError
from tests.conftest import Injected, Times, descriptors, leftovers
from tests.deaths import N, epochs, loader, members
from tests.helpers import LOGGED, Truth
from tests.ram import ROOT

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]  # many interpreters, under --stress

METHODS = ["forkserver", "spawn", "fork"]
MB = 1 << 20


def verified(batch: Batch) -> list[int]:
    """Its samples, each of which was looked at."""
    assert (batch["x"] == batch.index[:, None]).all()
    return list(map(int, batch.index))


def attempt(method: Any, ring_bytes: int = 64 * MB) -> None:
    """Try to load; say "ok", or ringload's own error. Nothing may be left either way."""
    before = descriptors()

    def load(index: int, rng: np.random.Generator, out: Any) -> None:
        out["x"][:] = index

    options: dict[str, Any] = {"fields": {"x": ((100_000,), "uint8")}, "n_samples": 60, "start_method": method}
    # beside the ring: what two workers take, with the modules that this one imports
    try:
        with Loader(load, 6, workers=2, ram_budget=150_000_000 + ring_bytes, **options) as made:
            for _ in range(3):
                assert sorted(index for batch in made for index in verified(batch)) == list(range(60))
        said = "ok"
    except RingloadError as error:
        said = f"{type(error).__name__}: {error}"
    gc.collect()
    deadline_s = time.monotonic() + 1.0
    while left := leftovers(set()):
        assert time.monotonic() < deadline_s, left
    assert descriptors() == before
    print(said)


# what is limited, to how much; "before" the interpreter is up, as by ulimit, or just before the loader is made
LIMIT = """
import resource, sys
when, kind, n = sys.argv[1], getattr(resource, "RLIMIT_" + sys.argv[2]), int(sys.argv[3])
if when == "before":
    resource.setrlimit(kind, (n, n))
from tests.test_rlimits import attempt
import ringload.loader
if when == "after":
    resource.setrlimit(kind, (n, n))
attempt(sys.argv[4], int(sys.argv[5]) if sys.argv[5:] else 64 << 20)
"""


def said_by(command: list[str], code: str, *arguments: object) -> str:
    """What a script says in an interpreter that `command` starts. It has to succeed, and to say nothing on stderr."""
    done = subprocess.run(
        [*command, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # NumPy's threads, as many as CPUs, count as processes and take memory
    )
    assert (LOGGED.sub("", done.stderr), done.returncode) == ("", 0)
    return done.stdout


TOO_MANY_FILES = r"ConfigError: cannot start.*: Too many open files; this process may have \d+ files open \(RLIMIT_NOFILE"
NO_PROCESS = r"Resource temporarily unavailable; is there a limit on processes \(RLIMIT_NPROC, ulimit -u, or pids.max"


LIMITS: list[tuple[str, str, int, str]] = [
    ("before", "NOFILE", 32, "ok"),
    ("after", "NOFILE", 18, f"ok|{TOO_MANY_FILES}"),  # by how many the interpreter has
    ("after", "NOFILE", 14, TOO_MANY_FILES),
    ("after", "NOFILE", 9, TOO_MANY_FILES),
    ("before", "FSIZE", 10 * MB, r"BudgetError: no segment of .*RLIMIT_FSIZE \(ulimit -f\) too low"),
    ("after", "FSIZE", 0, r"BudgetError: (no segment of|cannot reserve) .*RLIMIT_FSIZE \(ulimit -f\) too low"),
    ("before", "MEMLOCK", 0, "ok"),
    ("before", "SIGPENDING", 0, "ok"),  # the lifeline is a signal
    ("before", "STACK", 256 << 10, "ok"),
    ("before", "STACK", 64 << 10, "ok|WorkerDiedError: the fork server was killed"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("when", "kind", "n", "said"), LIMITS, ids=[f"{kind} {n} {when}" for when, kind, n, _ in LIMITS])
def test_what_is_limited_suffices_or_is_named(method: str, when: str, kind: str, n: int, said: str, injected: Injected) -> None:
    user = as_another(54321) if kind == "MEMLOCK" and os.geteuid() == 0 else []  # root may lock what it likes
    assert re.match(said, said_by(user, LIMIT, when, kind, n, method))
    injected(f"RLIMIT_{kind}", 1)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def restart_with(spare: int, method: Any) -> None:
    """All are killed when this process may open only so many files more; say "ok", or ringload's own error."""
    before, limits = descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with loader(Truth(N), start_method=method, ram_budget="auto") as made:
            assert epochs(made, 1)
            pids, free = members(made), [fd for fd in range(1000) if not is_open(fd)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], limits[1]))
            for pid in pids:  # the server first: nobody tells of the others
                os.kill(pid, signal.SIGKILL)
            found = epochs(made, 10)  # more than the ring holds
            with loader(Truth(N), workers=0) as calm:
                assert found == epochs(calm, 11)[-len(found) :]
            assert made.stats.n_restarts == 1  # all at once
        said = "ok"
    except RingloadError as error:
        said = f"{type(error).__name__}: {error}"
        del error
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    del made
    gc.collect()
    assert not leftovers(set())
    assert descriptors() == before
    print(said)


RESTART = "import sys; from tests.test_rlimits import restart_with; restart_with(int(sys.argv[1]), sys.argv[2])"


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.stress), "fork"])
def test_files_suffice_for_another_server_or_their_limit_is_named(method: str, times: Times, injected: Injected) -> None:
    spares = times((5, 16), tuple(range(3, 17)))
    said = [said_by([], RESTART, spare, method) for spare in spares]
    assert all(re.match(f"ok$|{TOO_MANY_FILES}", one) for one in said), said
    assert said[-1] == "ok\n"
    injected("RLIMIT_NOFILE at a restart of the server", len(spares))


def test_no_file_for_another_server_is_named(injected: Injected) -> None:
    for spare in range(3):
        assert re.match(TOO_MANY_FILES, said_by([], RESTART, spare, "fork"))
    injected("RLIMIT_NOFILE at a restart of the server", 3)


FILES_AHEAD = """
import resource, sys
n = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))
import numpy as np, pandas as pd
from ringload import ImageFrame, Loader
from tests.helpers import content
root = sys.argv[2]
table = pd.read_csv(f"{root}/photos.csv").iloc[np.arange(480) % 24]
source = ImageFrame(table, root=root, size=(16, 16), max_pixels=10**6)
options = {"shuffle": False, "epochs": 2, "ram_budget": "600MB"}
with Loader(source, 48, workers=0, **options) as calm, Loader(source, 48, workers=2, start_method="fork", **options) as made:
    for _ in range(2):
        assert content(made) == content(calm)
print("ok")
"""


@pytest.mark.parametrize("n", [30, 64])
def test_files_that_are_opened_ahead_are_no_more_than_may_be(n: int, photos: Path, injected: Injected) -> None:
    assert said_by([], FILES_AHEAD, n, photos) == "ok\n"
    injected("RLIMIT_NOFILE with a source that opens files", 1)


@pytest.mark.parametrize("method", METHODS)
def test_address_space_suffices_or_is_named(method: str, times: Times, injected: Injected) -> None:
    """The ring is 400 MB, and one MB more after the other is allowed; fork maps it twice in a worker."""
    said = []
    for allowed in np.linspace(300 * MB, 1300 * MB, times(4, 21), dtype=int):
        said.append(said_by([], LIMIT, "before", "AS", allowed, method, 400 * MB))
        assert re.match(r"ok$|BudgetError: cannot map .*RLIMIT_AS|ConfigError: [^\n]*\ncannot map .*RLIMIT_AS", said[-1])
    assert said[0] != "ok\n" == said[-1]
    injected("RLIMIT_AS", len(said))


def as_another(uid: int) -> list[str]:
    """Be another user, whose processes are counted, and who may read what root has installed."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root, and setpriv of util-linux")
    capabilities = "-all,+dac_read_search"
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] + [
        f"--{kind}-caps={capabilities}" for kind in ("inh", "ambient")
    ]


@pytest.mark.parametrize("method", METHODS)
def test_processes_suffice_or_their_limit_is_named(method: str, times: Times, injected: Injected) -> None:
    limits = times((1, 3, 4, 11), tuple(range(1, 12)))
    said = [said_by(as_another(54321), LIMIT, "after", "NPROC", n, method) for n in limits]
    assert all(re.match(rf"ok$|(ConfigError|WorkerDiedError): .*{NO_PROCESS}", one) for one in said)
    assert said[0] != "ok\n" == said[-1]
    injected("RLIMIT_NPROC", len(said))


@pytest.fixture
def pids() -> Iterator[Path]:
    folder = Path(f"/sys/fs/cgroup/pids/ringload-{os.getpid()}")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("needs root and a pids cgroup of version 1")
    yield folder
    folder.rmdir()


@pytest.mark.parametrize("method", METHODS)
def test_a_cgroup_without_pids_is_named(pids: Path, method: str, times: Times, injected: Injected) -> None:
    code = "import sys; from tests.test_rlimits import attempt; attempt(sys.argv[1])"
    join = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(pids)]
    said = []
    for n in (1, *times((3, 8), tuple(range(2, 9)))):
        (pids / "pids.max").write_text(str(n))
        said.append(said_by(join, code, method))
        assert re.match(rf"ok$|(ConfigError|WorkerDiedError): .*{NO_PROCESS}", said[-1])
    assert said[0] != "ok\n" == said[-1]
    injected("pids.max of a cgroup", len(said))


DEV = "for n in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 /dev/${n%:*} c 1 ${n#*:}; done"
SHM = {
    "64 KB": "mount -t tmpfs -o size=64k none /dev/shm",
    "full": "mount -t tmpfs -o size=64k none /dev/shm && cat /dev/zero > /dev/shm/full 2> /dev/null; test -s /dev/shm/full",
    "read-only": "mount -t tmpfs -o ro none /dev/shm",
    "absent": f"mount -t tmpfs none /dev && {DEV} && ! test -e /dev/shm",
}


@pytest.mark.parametrize(("how", "method"), [*((how, "forkserver") for how in SHM), ("absent", "spawn"), ("absent", "fork")])
def test_the_ring_needs_no_dev_shm(how: str, method: str, injected: Injected) -> None:
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root, and unshare of util-linux")
    code = "import sys; from tests.test_rlimits import attempt; attempt(sys.argv[1])"
    command = ["unshare", "--mount", "sh", "-c", f'{SHM[how]} && exec "$@"', "sh"]
    assert said_by(command, code, method) == "ok\n"
    injected(f"/dev/shm {how}", 1)


PROC = {
    "read-only": "mount --bind /proc /proc && mount -o remount,bind,ro /proc && ! test -w /proc/self/comm",
    "without MemAvailable": 'sed /MemAvailable/d /proc/meminfo > "$0" && mount --bind "$0" /proc/meminfo',
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", PROC)
def test_proc_may_be_otherwise(how: str, method: str, tmp_path: Path, injected: Injected) -> None:
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root, and unshare of util-linux")
    code = "import sys; from tests.test_rlimits import attempt; attempt(sys.argv[1])"
    command = ["unshare", "--mount", "sh", "-c", f'{PROC[how]} && exec "$@"', str(tmp_path / "meminfo")]
    assert said_by(command, code, method) == "ok\n"
    injected(f"/proc {how}", 1)


IMAGES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import cv2, numpy as np, pandas as pd
from ringload import ImageFrame, Loader
from ringload.ring import plan
plan.MAX_SLOTS = 4  # so few that most batches are cut by what a sample costs: into one task
paths = [f"{sys.argv[1]}/{n}.png" for n in range(256)]
for n, path in enumerate(paths):
    cv2.imwrite(path, np.full((4, 4, 3), n, np.uint8))
source = ImageFrame(pd.DataFrame({"path": paths}), size=(4, 4), max_pixels=10_000)
with Loader(source, 128, workers=1, epochs=20, ram_budget="300MB", start_method=sys.argv[2]) as made:
    for _ in range(20):
        for batch in made:
            assert (batch["image"] == batch.index.reshape(-1, 1, 1, 1)).all()
print("ok")
"""


@pytest.mark.parametrize("method", METHODS)
def test_files_are_asked_for_ahead_as_far_as_they_can_be_open(method: str, tmp_path: Path, injected: Injected) -> None:
    assert said_by([], IMAGES, tmp_path, method) == "ok\n"
    injected("RLIMIT_NOFILE", 1)


def test_this_process_has_kept_its_limits() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
