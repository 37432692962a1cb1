"""Globals of the user's modules, as workers are given them.

A worker imports the modules of a source anew. What a script has set in them (`settings.SIZE = args.size`) would not be there,
and the same source would give other samples with workers=1 than with workers=0. So these go with a source: the globals of
those of the user's own modules that it can reach (by what they import, in functions too), and the attributes of the classes
there, if they are numbers, strings, or arrays up to 1 MB; lists, dicts and sets of them; Namespaces and dataclasses of them; or
functions and classes that the script itself has put there. Containers are changed in place, as other modules may have them
under other names.

Not sent: objects of other classes, and what a module has computed from a global when it was imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import sys
import types
from collections.abc import Iterable, Iterator
from datetime import date, time, timedelta
from enum import Enum
from functools import partial
from typing import Any

import numpy as np

from ringload.packing.importable import goes_by_name, is_users
from ringload.packing.tensors import is_tensor
from ringload.system.after_import import after_import

MAX_VALUES = 10_000  # in one global: a larger table is left as the module makes it
MAX_ARRAY_BYTES = 1 << 20
MAX_DEPTH = 30  # of containers in containers
PLAIN = (type(None), bool, int, float, complex, str, bytes, date, time, timedelta, pathlib.PurePath, np.generic, Enum, range)


def globals_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Module -> its globals and, under names such as `Config.size`, its classes' attributes: of the modules `names`."""
    return {name: values for name in names if (values := dict(_values(sys.modules[name])))}


def reachable(names: Iterable[str]) -> list[str]:
    """The user's own modules among `names`, and what they import."""
    waiting, found = list(names), dict[str, None]()
    while waiting:
        name = waiting.pop()
        if name in found or not _is_users(name):
            continue
        found[name] = None
        waiting += _imported_by(sys.modules[name])
    return list(found)


def _is_users(name: str) -> bool:
    return name not in ("__main__", "__mp_main__") and is_users(name) and goes_by_name(name)


def _imported_by(module: types.ModuleType) -> Iterator[str]:
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    for value in list(vars(module).values()):
        if isinstance(value, types.ModuleType):
            yield value.__name__
        else:
            home = getattr(value if isinstance(value, type | types.FunctionType) else type(value), "__module__", None)
            if isinstance(home, str):
                yield home
        for code in _codes(value):
            for name in code.co_names:  # of an import within a function, among others
                yield from (one for one in (name, f"{package}.{name}") if one in sys.modules)


def _codes(value: Any) -> Iterator[types.CodeType]:
    """The code of a function, or of a class's."""
    if isinstance(value, types.FunctionType):
        yield value.__code__
    elif isinstance(value, type):
        for part in list(vars(value).values()):
            yield from _codes(getattr(part, "__func__", part) if not isinstance(part, type) else None)


def _values(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(module).items()):
        if name.startswith("__"):
            continue
        if _can_go(value):
            yield name, value
        elif isinstance(value, type) and value.__module__ == module.__name__ and not issubclass(value, Enum):
            for key, part in list(vars(value).items()):
                if not key.startswith("__") and _can_go(part):
                    yield f"{name}.{key}", part


def _can_go(value: Any) -> bool:
    if isinstance(value, types.FunctionType | type):
        home = value.__module__
        return isinstance(home, str) and (home == "__main__" or not goes_by_name(home))
    return _n_values(value, MAX_VALUES) >= 0


def _n_values(value: Any, left: int, depth: int = 0) -> int:
    """`left`, less the values in this one; negative where there are more, or others than are sent."""
    if isinstance(value, PLAIN):
        return left - 1
    if isinstance(value, np.ndarray) or is_tensor(value):
        is_small = value.nbytes <= MAX_ARRAY_BYTES and not getattr(value.dtype, "hasobject", False)
        return left - 1 if is_small else -1
    parts: Iterable[Any]
    if isinstance(value, dict):
        parts = itertools.chain(value.keys(), value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif _is_namespace(value):
        parts = vars(value).values()
    else:
        return -1
    for part in parts:
        if depth == MAX_DEPTH or (left := _n_values(part, left - 1, depth + 1)) < 0:
            return -1
    return left


def _is_namespace(value: Any) -> bool:
    is_dataclass = dataclasses.is_dataclass(value) and not isinstance(value, type)
    of_argparse = getattr(sys.modules.get("argparse"), "Namespace", types.SimpleNamespace)
    return (is_dataclass or isinstance(value, of_argparse | types.SimpleNamespace)) and hasattr(value, "__dict__")


def set_globals(found: dict[str, dict[str, Any]]) -> None:
    """Set in this process's modules what another process had; in one that is not imported yet, when it is."""
    for name, values in found.items():
        after_import(name, partial(set_in, values))


def set_in(values: dict[str, Any], module: types.ModuleType) -> None:
    for path, value in values.items():
        owner_name, _, name = path.rpartition(".")
        owner = getattr(module, owner_name, None) if owner_name else module
        if owner is None:
            continue  # a class that this process's module has not
        own = vars(owner).get(name)
        merged = _merged(own, value)
        if merged is not own:
            with contextlib.suppress(AttributeError, TypeError):  # a class that refuses it: its own import has set it
                setattr(owner, name, merged)


def _merged(own: Any, value: Any) -> Any:
    """`own`, if it is equal to `value` or could be made so in place; else `value`."""
    if type(own) is not type(value):
        return value
    if isinstance(own, dict):
        for key in own.keys() - value.keys():
            dict.__delitem__(own, key)
        for key, part in value.items():
            dict.__setitem__(own, key, _merged(own[key], part) if key in own else part)
    elif isinstance(own, list):
        merged = [_merged(*pair) for pair in zip(own, value, strict=False)]
        list.__setitem__(own, slice(None), merged + value[len(own) :])
    elif isinstance(own, set):
        set.intersection_update(own, value)
        set.update(own, value)
    elif _is_namespace(own):
        _merged(vars(own), vars(value))
    elif isinstance(own, np.ndarray) and own.shape == value.shape and own.dtype == value.dtype and own.flags.writeable:
        own[...] = value
    else:
        return own if isinstance(own, PLAIN) and own == value else value
    return own
