"""The public face, the layers, and what importing costs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import ringload
from tests.helpers import run_quietly

PACKAGE = Path(ringload.__file__).parent
# A module may import from its own layer and from those before it.
LAYERS = [
    {"errors", "forks", "shared"},
    {"data"},
    {"ring"},
    {"workers"},
    {"engine", "insight.stats"},
    {"loader", "feed"},
    {"adapters", "insight", "jax", "keras", "tf", "torch"},
]
# What the budget of a plan is made of: the ring measures fields, and fields are data's.
FRAMEWORKS = {"tensorflow", "torch", "keras", "jax"}


def layer(module: str) -> int:
    """The number of the layer that a module of ringload's is in."""
    found = [number for number, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")]
    return min(found)


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
        if layer(own) < len(LAYERS) - 1:
            assert name.partition(".")[0] not in FRAMEWORKS


def test_rings_know_no_processes_and_pools_no_batches() -> None:
    for path in (PACKAGE / "ring").glob("*.py"):
        assert not imports(path) & {"subprocess", "multiprocessing", "signal"}
    assert not [name for name in imports(PACKAGE / "workers" / "pool.py") if name.startswith("ringload.ring")]


def test_the_public_names_are_there() -> None:
    assert ringload.__all__ == sorted(ringload.__all__)
    for name in ringload.__all__:
        value = getattr(ringload, name)
        assert value.__doc__
    assert set(ringload.__all__) <= set(dir(ringload))
    with pytest.raises(AttributeError, match="no attribute 'nix'"):
        _ = ringload.nix


def test_importing_is_cheap_and_asks_for_no_framework() -> None:
    code = """
        import sys, ringload
        names = {"tensorflow", "torch", "keras", "jax", "pandas", "cv2", "numpy", "psutil"}
        print(sorted(names & set(sys.modules)))
        ringload.Loader, ringload.ImageFrame, ringload.generator_from_df
        print(sorted({"tensorflow", "torch", "keras", "jax", "pandas"} & set(sys.modules)))
    """
    assert run_quietly(code) == "[]\n[]\n"


# The framework that each adapter needs, and the extra that brings it.
NEEDED = {"torch": ("torch", "torch"), "keras": ("keras", "tf"), "tf": ("tensorflow", "tf"), "jax": ("jax", "jax")}


def test_a_framework_that_is_missing_is_named_with_the_remedy() -> None:
    code = """
        import importlib, json, sys
        for adapter, (framework, extra) in json.loads(sys.argv[1]).items():
            sys.modules[framework] = None
            import ringload
            try:
                getattr(ringload, adapter)
            except ImportError as error:
                assert f"ringload.{adapter} needs" in str(error) and f"pip install 'ringload[{extra}]'" in str(error), error
            else:
                raise AssertionError(adapter)
    """
    assert run_quietly(code, json.dumps(NEEDED)) == ""
