"""State of the trainer's process that samples depend on: workers have it, or a word is said."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringload
from ringload import ConfigError, Loader
from tests.helpers import run_quietly

METHODS = ["forkserver", "spawn", "fork"]

SETTINGS = """
import argparse, dataclasses, enum, types
import numpy as np

SIZE = 1
NAMES = ["a"]
TABLE = {"deep": {"x": 1}, "gone": 0}
KINDS = {"a"}
MEAN = np.zeros(3)
ARGS = argparse.Namespace(lr=1, nested=types.SimpleNamespace(y=1))
POINT = None
augment = None
COLOR = None

class Config:
    size = 1
    steps = [1]

@dataclasses.dataclass
class Options:
    depth: int = 1
OPTIONS = Options()

class Color(enum.Enum):
    RED = 1
    BLUE = 2

class Tree(dict):
    pass
TREE = Tree(a=1)
BIG = list(range(20_000))
"""
DATA = """
import settings
from settings import TABLE, NAMES  # other names for what is changed in place

class Source:
    fields = {"x": ((), "S1000")}
    def __len__(self): return 8
    def load(self, index, rng, out):
        import lately  # of which nobody knows at the start
        s = settings
        told = [s.SIZE, NAMES, TABLE, sorted(s.KINDS), s.MEAN.tolist(), s.ARGS.lr, s.ARGS.nested.y, s.POINT, s.Config.size]
        told += [s.Config.steps, s.OPTIONS.depth, s.COLOR, s.TREE, type(s.TREE).__name__, s.augment(2), lately.LATE, s.BIG[:3]]
        out["x"] = repr(told).encode()
"""
SCRIPT = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import ringload, data, settings, lately

settings.SIZE = 5
settings.NAMES.append("b")
settings.TABLE["deep"]["x"] = 2
del settings.TABLE["gone"]
settings.KINDS.add("z")
settings.MEAN[:] = 1.5
settings.ARGS.lr, settings.ARGS.nested.y = 2, 3
settings.POINT = (1, pathlib.Path("/p"))
settings.Config.size = 7
settings.Config.steps = [2, 3]
settings.OPTIONS.depth = 4
settings.COLOR = settings.Color.BLUE
settings.TREE.update(b=2)
settings.augment = lambda x: x * 21
settings.BIG[0] = 0
lately.LATE = 9

def told(workers, method="forkserver"):
    with ringload.Loader(data.Source(), 8, workers=workers, start_method=method, ram_budget="300MB") as loader:
        return {bytes(x) for batch in loader for x in batch["x"]}

here = told(0)
print(here)
print([told(1, method) == here for method in ("forkserver", "spawn", "fork")])
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "settings.py").write_text(SETTINGS)
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "lately.py").write_text("LATE = 1\n")
    return tmp_path


def test_what_a_script_has_set_in_its_modules_is_there_in_workers(modules: Path) -> None:
    here, same = run_quietly(SCRIPT, modules).splitlines()
    assert "[5, ['a', 'b'], {'deep': {'x': 2}}, ['a', 'z'], [1.5, 1.5, 1.5], 2, 3, (1, PosixPath('/p')), 7, [2, 3], 4" in here
    assert same == "[True, True, True]"


def test_what_it_sets_between_epochs_is_seen_in_the_next(modules: Path) -> None:
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import ringload, data, settings
        settings.augment = lambda x: 0
        with ringload.Loader(data.Source(), 8, workers=2, ram_budget="300MB") as loader:
            for size in (3, 4, 4, 5):
                settings.SIZE = size
                print({bytes(x)[:2].decode() for batch in loader for x in batch["x"]}, loader.stats.n_restarts)
    """
    assert run_quietly(code, modules) == "{'[3'} 0\n{'[4'} 0\n{'[4'} 0\n{'[5'} 0\n"


SWITCHES = """
import sys
import csv, decimal, logging, warnings
import numpy as np
import ringload
from PIL import Image, ImageFile, PngImagePlugin

logging.getLogger().setLevel(logging.INFO)
logging.getLogger("mine").setLevel(7)
logging.disable(3)
ImageFile.LOAD_TRUNCATED_IMAGES = True
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = 77
np.seterr(divide="raise", over="ignore")
warnings.filterwarnings("ignore", message="of mine")
sys.setrecursionlimit(1234)
csv.field_size_limit(99)
decimal.getcontext().prec = 5

def told():
    warnings.warn("of mine")
    try: division = str(np.float64(1) / np.float64(0))
    except FloatingPointError: division = "FloatingPointError"
    return [
        logging.getLogger().level, logging.getLogger("mine").level, logging.root.manager.disable,
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, division,
        sys.getrecursionlimit(), csv.field_size_limit(), str(decimal.Decimal(1) / 3),
    ]

def load(index, rng, out): out["x"] = repr(told()).encode()

for method in ("forkserver", "spawn", "fork"):
    options = {"fields": {"x": ((), "S500")}, "n_samples": 4, "start_method": method, "ram_budget": "300MB"}
    with ringload.Loader(load, 4, workers=1, **options) as loader:
        (batch,) = loader
        assert {bytes(x).decode() for x in batch["x"]} == {repr(told())}, (batch["x"][0], told())
print("done")
"""


def test_switches_of_libraries_are_as_in_the_trainer() -> None:
    assert run_quietly(SWITCHES) == "done\n"


def test_a_switch_that_alters_samples_is_seen_in_the_next_epoch() -> None:
    code = """
        import ringload
        from PIL import ImageFile
        def load(index, rng, out): out["x"] = ImageFile.LOAD_TRUNCATED_IMAGES
        fields = {"fields": {"x": ((), "bool")}, "n_samples": 4}
        with ringload.Loader(load, 4, workers=1, ram_budget="300MB", **fields) as loader:
            for ImageFile.LOAD_TRUNCATED_IMAGES in (False, True, False):
                print(*[batch["x"].all() for batch in loader])
    """
    assert run_quietly(code) == "False\nTrue\nFalse\n"


def test_worker_setup_is_called_once_a_worker_before_the_first_sample() -> None:
    code = """
        import os, sys
        import ringload
        STATE = "none"
        def setup():
            global STATE
            STATE = f"set {os.getpid()}"
        def load(index, rng, out): out["x"], out["right"] = STATE.encode(), STATE == f"set {os.getpid()}"
        fields = {"x": ((), "S40"), "right": ((), "bool")}
        for method in ("forkserver", "spawn", "fork"):
            options = {"fields": fields, "n_samples": 16, "start_method": method, "ram_budget": "300MB"}
            with ringload.Loader(load, 8, workers=2, worker_setup=setup, **options) as loader:
                print(all(batch["right"].all() for batch in loader))
        with ringload.Loader(load, 8, workers=0, worker_setup=setup, **options) as loader:
            print({x.decode() for batch in loader for x in batch["x"]})
    """
    assert run_quietly(code) == "True\nTrue\nTrue\n{'none'}\n"


def test_a_worker_setup_that_fails_says_so_and_none_but_functions_are_taken() -> None:
    def setup() -> None:
        raise ValueError("no such switch")

    def load(index: int, rng: Any, out: Any) -> None:
        out["x"] = index

    options: dict[str, Any] = {"fields": {"x": ((), "int64")}, "n_samples": 8, "ram_budget": "300MB"}
    with (
        Loader(load, 4, workers=1, worker_setup=setup, **options) as loader,
        pytest.raises(ConfigError, match="no such switch"),
    ):
        next(iter(loader))
    with pytest.raises(ConfigError, match="worker_setup is a function without arguments"):
        Loader(load, 4, workers=1, worker_setup="threads", **options)


HASH = """
    import ringload
    class Source:
        fields = {"x": ((), "int64")}
        def __len__(self): return 4
        def __hash__(self): return hash("none of these")
        def load(self, index, rng, out): out["x"] = %s
    with ringload.Loader(Source(), 4, workers=1, ram_budget="300MB") as loader:
        for batch in loader: pass
"""


@pytest.mark.parametrize(
    ("expression", "seed", "is_said"),
    [
        ("hash('name') % 7", None, True),
        ("sum(hash(c) for c in 'name') % 7", "random", True),
        ("hash('name') % 7", "5", False),
        ("len('hash')", None, False),
        ("self.hash() if hasattr(self, 'hash') else 1", None, False),
    ],
)
def test_hash_of_strings_is_the_trainers_or_is_said_to_be_another(
    expression: str, seed: str | None, is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if seed is not None:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    command = [sys.executable, "-c", textwrap.dedent(HASH % expression)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(ringload.__file__).parent.parent)
    assert done.returncode == 0
    assert ("RuntimeWarning: __main__.Source.load calls hash()" in done.stderr) == is_said
    assert is_said or not done.stderr


def test_workers_have_the_trainers_hash_seed_where_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "123")
    code = """
        import ringload
        def load(index, rng, out): out["x"] = hash("a name")
        fields = {"fields": {"x": ((), "int64")}, "n_samples": 4, "ram_budget": "300MB"}
        for n in (0, 1):
            with ringload.Loader(load, 4, workers=n, **fields) as loader:
                print({x for batch in loader for x in batch["x"].tolist()} == {hash("a name")})
    """
    assert run_quietly(code) == "True\nTrue\n"


def test_a_module_that_is_imported_late_is_set_then_and_keeps_its_loader(tmp_path: Path) -> None:
    from ringload.system.after_import import after_import

    name = f"late_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("X = 1\n")
    sys.path.insert(0, str(tmp_path))
    seen: list[int] = []
    try:
        after_import(name, lambda module: seen.append(module.X))
        assert not seen
        module = __import__(name)
        assert seen == [1]
        assert type(module.__loader__).__name__ == type(module.__spec__.loader).__name__ == "SourceFileLoader"
        after_import(name, lambda module: seen.append(module.X + 1))
        assert seen == [1, 2]
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop(name, None)


def test_containers_that_contain_themselves_are_left_out(modules: Path) -> None:
    from ringload.packing.module_globals import globals_of

    (modules / "cyclic.py").write_text("LOOP = []\nLOOP.append(LOOP)\nX = 1\n")
    sys.path.insert(0, str(modules))
    try:
        importlib.import_module("cyclic")
        assert globals_of(["cyclic"]) == {"cyclic": {"X": 1}}
    finally:
        sys.path.remove(str(modules))
        sys.modules.pop("cyclic", None)


def test_np_arrays_keep_their_place_where_they_are_set(modules: Path) -> None:
    from types import ModuleType

    from ringload.packing.module_globals import set_in

    module = ModuleType("m")
    array = module.A = np.zeros(3)
    set_in({"A": np.ones(3), "B": 2}, module)
    assert module.A is array
    assert array.tolist() == [1, 1, 1]
    assert module.B == 2
