"""Modules that the trainer has and workers cannot import: what is defined there goes by value."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ringload.packing.importable import goes_by_name
from tests.helpers import run_quietly

MODULE = """
import numpy as np
OFFSET = 40
def helper(index): return index + OFFSET
class Source:
    fields = {"x": ((), "int64")}
    def __len__(self): return 8
    def load(self, index, rng, out): out["x"] = helper(index)
"""
USE = """
for method in ("forkserver", "spawn"):
    with ringload.Loader(Source(), 8, workers=1, shuffle=False, ram_budget="300MB", start_method=method) as loader:
        print([batch["x"].tolist() for batch in loader] == [[40 + i for i in range(8)]])
"""
WAYS = {
    "loaded from its path": """
import importlib.util
spec = importlib.util.spec_from_file_location("mine", folder / "mine.py")
mine = sys.modules["mine"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mine)
from mine import Source
""",
    "loaded from its path, under the name of a package that is not there": """
import importlib.util
spec = importlib.util.spec_from_file_location("no_package.mine", folder / "mine.py")
mine = sys.modules["no_package.mine"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mine)
Source = mine.Source
""",
    "made by exec": """
import types
mine = sys.modules["mine"] = types.ModuleType("mine")
exec((folder / "mine.py").read_text(), mine.__dict__)
from mine import Source
""",
    "made by exec, with the name of a module that can be imported": """
import types
sys.path.insert(0, str(folder / "other"))
mine = sys.modules["mine"] = types.ModuleType("mine")
exec((folder / "mine.py").read_text(), mine.__dict__)
from mine import Source
""",
    "on a path that was put back": """
sys.path.insert(0, str(folder))
import mine
sys.path.remove(str(folder))
from mine import Source
""",
    "another would be found now": """
sys.path.insert(0, str(folder))
import mine
sys.path.insert(0, str(folder / "other"))
from mine import Source
""",
    "of a package on a path that was put back": """
sys.path.insert(0, str(folder))
from package.inner import mine
sys.path.remove(str(folder))
Source = mine.Source
""",
    "in the directory that was, by '' in sys.path": """
sys.path.insert(0, "")
os.chdir(folder)
import mine
os.chdir("/")
from mine import Source
""",
    "of a function that refers to the module": """
sys.path.insert(0, str(folder))
import mine
sys.path.remove(str(folder))
class Source:
    fields = {"x": ((), "int64")}
    def __len__(self): return 8
    def load(self, index, rng, out): out["x"] = mine.helper(index)
""",
    "one that can be imported": """
sys.path.insert(0, str(folder))
from mine import Source
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in ("mine.py", "package/__init__.py", "package/inner/__init__.py", "package/inner/mine.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(MODULE if path.endswith("mine.py") else "")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text("raise RuntimeError('this one is not the one')\n")
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
def test_a_source_of_a_module_that_is(way: str, folder: Path) -> None:
    head = "import os, pathlib, sys\nimport ringload\nfolder = pathlib.Path(sys.argv[1])\n"
    assert run_quietly(head + WAYS[way] + USE, folder) == "True\nTrue\n"


SPAWNED = """
import multiprocessing, sys
import ringload

OFFSET = 40
class Source:
    fields = {"x": ((), "int64")}
    def __len__(self): return 8
    def load(self, index, rng, out): out["x"] = index + OFFSET

def work(number):
    with ringload.Loader(Source(), 8, workers=1, shuffle=False, ram_budget="300MB") as loader:
        print([batch["x"].tolist() for batch in loader] == [[40 + i for i in range(8)]], flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    child = context.Process(target=work, args=(0,))
    child.start(); child.join()
    with context.Pool(1) as pool: pool.map(work, [0])
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_what_a_script_defines_is_there_in_its_children_and_their_workers(method: str, tmp_path: Path) -> None:
    """In a child that multiprocessing spawns, the script is the module `__mp_main__`."""
    (tmp_path / "script.py").write_text(SPAWNED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, str(tmp_path / "script.py"), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_installed_packages_go_by_name_under_each_of_their_names() -> None:
    import cv2  # noqa: F401
    import pandas as pd  # noqa: F401

    by_value = {name for name in list(sys.modules) if not goes_by_name(name)}
    assert not {
        name for name in by_value if name.partition(".")[0] in ("numpy", "cv2", "pandas", "os", "importlib", "ringload")
    }
    assert goes_by_name("no such module")


def test_cloudpickles_list_of_modules_is_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cloudpickle

    from ringload.packing.pack import pack

    made = types.ModuleType("made_here")
    exec(MODULE, made.__dict__)
    monkeypatch.setitem(sys.modules, "made_here", made)
    before = cloudpickle.list_registry_pickle_by_value()
    assert b"OFFSET" in pack(made.Source()).data
    assert cloudpickle.list_registry_pickle_by_value() == before
    cloudpickle.register_pickle_by_value(made)
    try:
        pack(made.Source())
        assert "made_here" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(made)
