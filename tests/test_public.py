"""The public face, the layers, and what importing costs."""

from __future__ import annotations

import ast
import json
from contextlib import nullcontext
from pathlib import Path

import pytest

import ringload
from tests.helpers import run_quietly

PACKAGE = Path(ringload.__file__).parent
# The layers, from the lowest. A module may import from its own layer and from those below it.
LAYERS = [
    {"errors", "checks", "terms"},
    {"system"},
    {"fields", "bad_sample", "protocols"},
    {"order", "state", "storage", "packing", "stats", "log", "bad_samples"},
    {"images"},
    {"sources"},
    {"ring"},
    {"workers"},
    {"engine"},
    {"options"},
    {"loader"},
    {"bridge"},
    {"jax", "keras", "ray", "tf", "torch"},
    {"insight", "__main__"},
]
FRAMEWORKS = {"tensorflow", "torch", "keras", "jax", "ray"}


def layer(module: str) -> int:
    """The number of the layer of a module of ringload."""
    package = module.partition(".")[0]
    (found,) = [number for number, packages in enumerate(LAYERS) if package in packages]
    return found


def imports(path: Path) -> set[str]:
    """What a module imports, wherever in its text, but for types."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_imports_go_one_way(path: Path) -> None:
    own = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for name in imports(path):
        if name.startswith("ringload."):
            assert layer(name.removeprefix("ringload.")) <= layer(own), f"{own} imports {name}"
        if layer(own) < layer("torch"):
            assert name.partition(".")[0] not in FRAMEWORKS


# Which modules may be longer than 300 lines, and why. No function is longer than 50, its arguments and docstring not counted.
LONG_MODULES = {
    "loader.py": "the docstring of Loader lists every argument and guarantee",
    "images/decoder.py": "one way through limits, turns, JPEG and Pillow",
    "sources/image_table.py": "the docstring of ImageFrame lists every argument",
    "workers/supervisor.py": "one state machine: start, clear, renew, close",
    "ray/workers.py": "the docstring of Workers lists every argument",
    "torch/dataloader/ring.py": "one state machine: learn, lay out, correct",
    "torch/dataloader/iterators.py": "two kinds of passes that share their ends",
    "torch/dataloader/loader.py": "its text lists what differs from torch's",
    "torch/dataloader/values.py": "one format, both directions",
    "engine/engine.py": "what a loader calls",
    "protocols.py": "all seams in one file, each with an example",
}


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_modules_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300 or str(path.relative_to(PACKAGE)) in LONG_MODULES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            n_lines = (node.end_lineno or 0) - first.lineno + 1
            assert n_lines <= 50, f"{node.name} has {n_lines} lines"


def test_the_exceptions_are_long() -> None:
    for name in LONG_MODULES:
        assert len((PACKAGE / name).read_text().splitlines()) > 300, name


def test_rings_know_no_processes_and_pools_no_batches() -> None:
    for path in (PACKAGE / "ring").glob("*.py"):
        assert not imports(path) & {"subprocess", "multiprocessing", "signal"}
    assert not [name for name in imports(PACKAGE / "workers" / "supervisor.py") if name.startswith("ringload.ring")]


def test_the_public_names_are_there() -> None:
    assert ringload.__all__ == sorted(ringload.__all__)
    for name in ringload.__all__:
        value = getattr(ringload, name)
        assert value.__doc__
    assert set(ringload.__all__) <= set(dir(ringload))
    with pytest.raises(AttributeError, match="no attribute 'nix'"):
        _ = ringload.nix


FORMER_NAMES = [
    ("Closed", "LoaderClosedError"),
    ("Producer", "Worker"),
    ("ProducerDied", "WorkerDiedError"),
    ("Stalled", "StallError"),
    ("Starved", "AllSlotsLentError"),
    ("TooManyBad", "TooManyBadSamplesError"),
    ("UnknownField", "UnknownFieldError"),
]


@pytest.mark.parametrize(("old", "new"), FORMER_NAMES)
def test_a_former_name_warns_and_gives_the_same_class(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"ringload.{old} is called ringload.{new} now"):
        assert getattr(ringload, old) is getattr(ringload, new)
    assert old not in dir(ringload)


def test_what_a_source_is_told_has_its_former_name() -> None:
    worker = ringload.Worker(1, 3, 0, nullcontext)
    with pytest.warns(DeprecationWarning, match="renamed to n_workers"):
        assert worker.n_producers == 3


def test_importing_is_cheap_and_asks_for_no_framework() -> None:
    code = """
        import sys, ringload
        names = {"tensorflow", "torch", "keras", "jax", "pandas", "cv2", "numpy", "psutil"}
        print(sorted(names & set(sys.modules)))
        ringload.Loader, ringload.ImageFrame, ringload.generator_from_df
        print(sorted({"tensorflow", "torch", "keras", "jax", "pandas"} & set(sys.modules)))
    """
    assert run_quietly(code) == "[]\n[]\n"


# The framework that each adapter needs, and what pip installs.
NEEDED = {
    "torch": ("torch", "torch msgspec typing_extensions"),
    "keras": ("keras", "tensorflow"),
    "tf": ("tensorflow", "tensorflow"),
    "jax": ("jax", "jax"),
    "ray": ("ray", "'ray[data,train]'"),
}


def test_a_framework_that_is_missing_is_named_with_the_remedy() -> None:
    code = """
        import importlib, json, sys
        for adapter, (framework, packages) in json.loads(sys.argv[1]).items():
            sys.modules[framework] = None
            import ringload
            try:
                getattr(ringload, adapter)
            except ImportError as error:
                assert f"ringload.{adapter} needs" in str(error) and str(error).endswith(f": pip install {packages}"), error
            else:
                raise AssertionError(adapter)
    """
    assert run_quietly(code, json.dumps(NEEDED)) == ""


def test_help_needs_no_framework() -> None:
    """`help()` asks for every name in `dir()`, and a name that is not there has to be an AttributeError."""
    said = run_quietly("""
import pydoc, sys
import ringload
text = pydoc.render_doc(ringload, renderer=pydoc.plaintext)
assert "class Loader" in text and "generator_from_df" in text
assert not {"torch", "tensorflow", "keras", "jax", "ray"} & sys.modules.keys()
print("done")
""")
    assert said == "done\n"
