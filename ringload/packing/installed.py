"""The modules of installed packages that the code of a source imports: what a process may import once, before it forks workers.

Found without importing or pickling anything: by the source's class and functions, the modules of the user's that define them,
and what those import; and by the objects that the source holds (its transforms, a dataset that it wraps). What is missed is
imported by each worker, as the user's own modules always are.

Modules of the user's are left to workers because they may open files or connections, start threads, draw random numbers, or
read settings that the script changes; installed packages seldom do.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from ringload.packing.importable import goes_by_name, is_users

MOST_OBJECTS, MOST_ITEMS = 2000, 50  # that are looked at; of one container
FRAMEWORKS = {"torch", "keras", "tf", "jax", "ray"}  # modules of ringload that import what may start threads
PACKAGES = ("/site-packages/", "/dist-packages/")


def installed_modules(*roots: Any) -> tuple[str, ...]:
    """The names of modules of installed packages, and of ringload, that the code of these objects imports, sorted."""
    waiting, seen, names = list(roots), dict[int, Any](), set[str]()
    while waiting and len(seen) < MOST_OBJECTS:
        value = waiting.pop()
        if id(value) not in seen:
            seen[id(value)] = value  # kept, so that no other object gets its id
            with suppress(Exception):  # of a user's __getattribute__, say
                waiting += _parts(value)
            if isinstance(value, types.ModuleType):
                names.add(value.__name__)
            elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) and isinstance(value.__module__, str):
                names.add(value.__module__)
    return tuple(sorted(filter(_is_of_a_package, names)))


def _parts(value: Any) -> Iterator[Any]:
    """What is to be looked at because of an object."""
    if isinstance(value, types.ModuleType):
        if is_users(value.__name__) and value.__name__ != "__main__" and goes_by_name(value.__name__):
            for part in list(vars(value).values()):  # its import makes all of that
                yield part if isinstance(part, types.ModuleType) else sys.modules.get(_home(part))
    elif isinstance(value, type | types.FunctionType):
        if not is_users(value.__module__):
            return
        if value.__module__ != "__main__" and goes_by_name(value.__module__):
            yield sys.modules[value.__module__]
        elif isinstance(value, type):
            yield from (*value.__bases__, *(part for part in vars(value).values()))
        else:
            yield from (value.__globals__.get(name) for name in _names(value.__code__))
            yield from (cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType())
    elif isinstance(value, list | tuple):
        yield from value[:MOST_ITEMS]
    elif isinstance(value, dict):
        yield from list(value.values())[:MOST_ITEMS]
    elif isinstance(value, partial | types.MethodType | staticmethod | classmethod):
        yield from (value.func, value.args, value.keywords) if isinstance(value, partial) else (value.__func__,)
        yield getattr(value, "__self__", None)
    elif value is not None:
        yield type(value)
        yield from list(_state(value).values())[:MOST_ITEMS]


def _state(value: Any) -> dict[str, Any]:
    """The attributes of an object. Of ringload's own, those that workers get: an ImageFrame keeps its table. The user's
    __getstate__ is not called: it may do anything."""
    if type(value).__module__.partition(".")[0] == "ringload" and "__getstate__" in vars(type(value)):
        state: dict[str, Any] = value.__getstate__()
        return state
    return getattr(value, "__dict__", {})


def _home(value: Any) -> str:
    home = getattr(value if isinstance(value, type | types.FunctionType) else type(value), "__module__", None)
    return home if isinstance(home, str) else ""


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_of_a_package(name: str) -> bool:
    file, (package, *inner) = getattr(sys.modules.get(name), "__file__", None), name.split(".")
    if package in ("numpy", "ringload"):  # of which numpy is there already
        return package == "ringload" and not FRAMEWORKS.intersection(inner)
    return isinstance(file, str) and any(map(file.__contains__, PACKAGES))
