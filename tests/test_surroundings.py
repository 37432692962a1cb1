"""What workers have of the trainer's process from their start; and that workers which are started later have the same."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ringload import Loader
from tests.helpers import run_quietly

METHODS = ["forkserver", "spawn", "fork"]
# Megabytes a batch, so that few are ahead.
SIZES = dict.fromkeys(("directory", "variable", "umask", "cpus", "limit", "path"), ((2000,), "S256"))


def tell(index: int, rng: Any, out: Any) -> None:
    """Everything that a restart could take from elsewhere; `limit` is one that no test of ringload needs."""
    umask = os.umask(0)
    os.umask(umask)
    found = {
        "directory": os.getcwd(),
        "variable": os.environ.get("RINGLOAD_TEST_VARIABLE", "none"),
        "umask": oct(umask),
        "cpus": str(sorted(os.sched_getaffinity(0))),
        "limit": str(resource.getrlimit(resource.RLIMIT_RTTIME)[0]),
        "path": str("/nowhere" in sys.path),
    }
    for name, value in found.items():
        out[name][:] = value.encode()


def kill(name: str) -> None:
    for process in psutil.Process().children(recursive=True):
        if process.name() == name:
            process.kill()


@pytest.mark.parametrize("method", METHODS)
def test_a_new_server_has_the_surroundings_of_the_first(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RINGLOAD_TEST_VARIABLE", "first")
    cpus, umask, limit = os.sched_getaffinity(0), os.umask(0o027), resource.getrlimit(resource.RLIMIT_RTTIME)
    try:
        fields = {"fields": SIZES, "n_samples": 100_000}
        with Loader(tell, 2, workers=1, ram_budget="300MB", start_method=method, restarts=None, **fields) as loader:
            first = next(iter(loader)).copy()
            monkeypatch.chdir("/")
            monkeypatch.setenv("RINGLOAD_TEST_VARIABLE", "second")
            monkeypatch.syspath_prepend("/nowhere")
            os.umask(0o077)
            os.sched_setaffinity(0, {min(cpus)})
            resource.setrlimit(resource.RLIMIT_RTTIME, (10_000_000, limit[1]))
            for epoch, which in ((10, "ringload:0"), (20, "ringload:server")):
                n_restarts = loader.stats.n_restarts
                kill(which)
                for _ in loader:  # until the death is known; then what was filled before is left
                    if loader.stats.n_restarts > n_restarts:
                        break
                loader.set_epoch(epoch)
                later = next(iter(loader)).copy()
                assert {name: later[name][0, 0] for name in SIZES} == {name: first[name][0, 0] for name in SIZES}
    finally:
        os.sched_setaffinity(0, cpus)
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_RTTIME, limit)
    assert first["directory"][0, 0] == os.fsencode(tmp_path)
    assert first["path"][0, 0] == b"False"


def test_a_trainer_whose_directory_was_removed_can_load(tmp_path: Path) -> None:
    code = """
        import os, sys, numpy as np
        os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])
        import ringload
        with ringload.Loader(ringload.Arrays(x=np.arange(8)), 4, workers=1, ram_budget="200MB", shuffle=False) as loader:
            print([batch["x"].tolist() for batch in loader])
    """
    gone = tmp_path / "gone"
    gone.mkdir()
    assert run_quietly(code, gone, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}) == (
        "[[0, 1, 2, 3], [4, 5, 6, 7]]\n"
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_trainer_with_thousands_of_descriptors_loads_and_recovers(method: str) -> None:
    """select() knows no descriptor from 1,024 on, and descriptors of workers have the numbers of the trainer's."""
    code = """
        import os, resource, sys, numpy as np, psutil
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1500)]
        import ringload
        source = ringload.Arrays(x=np.arange(4000))
        with ringload.Loader(source, 4, workers=2, ram_budget="200MB", shuffle=False, start_method=sys.argv[1]) as loader:
            batches = iter(loader)
            got = next(batches)["x"].tolist()
            for process in psutil.Process().children():
                process.kill()
            for batch in batches:
                got += batch["x"].tolist()
        print(got == list(range(4000)), loader.stats.n_restarts > 0)
    """
    assert run_quietly(code, method) == "True True\n"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("options", "debug"), [(["-O"], "False"), (["-W", "error", "-X", "dev"], "True")])
def test_workers_have_the_options_of_the_interpreter(method: str, options: list[str], debug: str) -> None:
    """With asserts, or without; and nothing warns where warnings are errors."""
    code = """if True:
        import sys
        import ringload
        def load(index, rng, out): out["x"] = __debug__
        options = {"fields": {"x": ((), "bool")}, "n_samples": 4, "start_method": sys.argv[1]}
        with ringload.Loader(load, 4, workers=1, ram_budget="200MB", **options) as loader:
            for batch in loader: print(batch["x"][0])
    """
    command = [sys.executable, *options, "-c", code, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)
    assert (done.stdout, done.stderr) == (f"{debug}\n", "")


def test_a_kill_of_everything_is_survived_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of samples, as scripts have them that change their directory later."""
    monkeypatch.setattr("ringload.ring.plan.MAX_SLOTS", 4)  # or all batches were there when workers are killed
    monkeypatch.chdir(tmp_path)
    for index in range(16):
        np.save(f"{index}.npy", np.float32(index))

    def load(index: int, rng: Any, out: Any) -> None:
        out["x"][:] = np.load(f"{index}.npy")

    fields = {"fields": {"x": ((1000,), "float32")}, "n_samples": 16}
    with Loader(load, 4, workers=2, ram_budget="200MB", shuffle=False, **fields) as loader:
        for _ in range(3):
            assert [batch["x"][:, 0].tolist() for batch in loader] == [[4 * k + i for i in range(4)] for k in range(4)]
            monkeypatch.chdir("/")
            for process in psutil.Process().children(recursive=True):
                os.kill(process.pid, signal.SIGKILL)
