"""Modules that a worker cannot import by name: their functions and classes are sent by value.

A worker is a fresh interpreter with the trainer's `sys.path`. Pickle sends a function or a class by the name of its module, for
any module in `sys.modules`. Some modules exist only in the trainer: a script under the name that multiprocessing gives it in a
child (`__mp_main__`), a module that was loaded from a path or made by `exec`, a module whose folder was removed from
`sys.path`, and a module in whose place `sys.path` would find another. Modules of installed packages are not checked: some have
several names, or are made at run time.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.machinery import BYTECODE_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec
from types import FunctionType, ModuleType
from typing import Any


def goes_by_name(name: str) -> bool:
    """Whether a worker that imports module `name` gets the module that this process has under that name."""
    return _goes_by_name(name, id(sys.modules.get(name)), tuple(sys.path), _directory() if "" in sys.path else "")


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return ""


@cache
def _goes_by_name(name: str, module_id: int, path: tuple[str, ...], directory: str) -> bool:
    """`goes_by_name`, cached by all that the result depends on."""
    module, package = sys.modules.get(name), sys.modules.get(name.partition(".")[0])
    if not isinstance(module, ModuleType) or is_installed(getattr(package, "__file__", None) or ""):
        return True  # not a module: pickle treats it in its own way
    file = getattr(module, "__file__", None)
    if file is None:
        return not _has_python_code(module)
    if not file.endswith((*SOURCE_SUFFIXES, *BYTECODE_SUFFIXES)):
        return True
    parent = name.rpartition(".")[0]
    spec = None if parent and not goes_by_name(parent) else _found(name, parent)
    return spec is not None and spec.has_location and os.path.realpath(file) == os.path.realpath(spec.origin or "")


def _has_python_code(module: ModuleType) -> bool:
    """Whether a module has functions of Python, as one made by `exec` has, and not of native code."""
    made_there = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    methods = (method for value in made_there if isinstance(value, type) for method in vars(value).values())
    return any(isinstance(value, FunctionType) for value in (*made_there, *methods))


@cache
def is_users(name: str | None) -> bool:
    """Whether a module is the user's: Python code that is not of an installed package."""
    if name is None or name.partition(".")[0] == "ringload":
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str):
        return name == "__main__"  # a notebook, or -c
    return file.endswith((*SOURCE_SUFFIXES, *BYTECODE_SUFFIXES)) and not is_installed(file)


def is_installed(file: str) -> bool:
    """Whether a file is of the standard library or of an installed package."""
    return file.startswith(_installed_folders()) or "/site-packages/" in file or "/dist-packages/" in file


@cache
def _installed_folders() -> tuple[str, ...]:
    import site  # not needed in workers, which start sooner without
    import sysconfig

    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")} | {site.getusersitepackages()}
    return tuple(f"{folder}/" for folder in folders)


def _found(name: str, parent: str) -> ModuleSpec | None:
    """The spec that an import of `name` would find, if it was not imported yet."""
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and path is None:
        return None
    for finder in sys.meta_path:
        find: Any = getattr(finder, "find_spec", None)
        if find is not None and (spec := find(name, path, None)) is not None:
            return spec  # type: ignore[no-any-return]
    return None
