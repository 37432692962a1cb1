"""Finds the object that cannot be sent to workers: its kind, and its place in the source."""

from __future__ import annotations

import functools
import io
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import cloudpickle
import numpy as np

LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.local)
OF_MULTIPROCESSING = {f"multiprocessing.{name}" for name in ("synchronize", "queues", "sharedctypes", "connection", "pool")}
MAX_LOOKED_AT = 100_000  # objects that are searched


def culprit_in(source: Any, root: str | None = None) -> str | None:
    """A text for the place and kind of the first object in `source`, named `root`, that cannot be pickled; depth first."""
    stack = [(source, getattr(source, "__name__", type(source).__name__) if root is None else root)]
    seen: set[int] = set()
    keep = []  # so that no id is reused
    while stack and len(seen) < MAX_LOOKED_AT:
        obj, name = stack.pop()
        if id(obj) in seen:
            continue
        seen.add(id(obj))
        keep.append(obj)
        if (kind := _kind(obj)) is not None:
            return f"{name.lstrip('.')} is {kind}"
        parts = list(_parts(obj, name))
        if not parts and not _can_be_sent(obj):
            return f"{name.lstrip('.')} is a {type(obj).__name__}, which cannot be pickled"
        stack += reversed(parts)
    return None


def _kind(obj: Any) -> str | None:
    """A text for an object of a kind that can never be sent; else None."""
    if is_inherited(obj):
        kind = type(obj)
        return "a lock" if isinstance(obj, LOCKS[:2]) else f"a {kind.__module__}.{kind.__qualname__}, which is only inherited"
    if isinstance(obj, types.GeneratorType):
        return "a generator"
    if is_open_file(obj):
        return f"an open file ({str(getattr(obj, 'name', '?'))!r})"
    return None


def is_inherited(obj: Any) -> bool:
    """Whether only a forked process can have the object."""
    kind: Any = type(obj)
    return _is_inherited(kind)


@functools.cache
def _is_inherited(kind: Any) -> bool:
    return issubclass(kind, LOCKS) or any(base.__module__ in OF_MULTIPROCESSING for base in kind.__mro__)


def is_open_file(obj: Any) -> bool:
    if not isinstance(obj, io.IOBase) or isinstance(obj, io.BytesIO | io.StringIO):
        return False
    return obj not in (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__)


def _parts(obj: Any, name: str) -> Iterator[tuple[Any, str]]:
    """The objects that are pickled with an object: (part, its name)."""
    if isinstance(obj, type | types.ModuleType | np.ndarray | str | bytes):
        return
    if isinstance(obj, types.FunctionType):
        if not _is_importable(obj):
            for variable, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
                with suppress(ValueError):  # a variable that has no value yet
                    yield cell.cell_contents, f"{name} -> variable {variable!r}"
            for variable in obj.__code__.co_names:
                if variable in obj.__globals__:
                    yield obj.__globals__[variable], f"{name} -> global {variable!r}"
        return
    if isinstance(obj, types.MethodType):
        yield obj.__self__, f"{name}.__self__"
        return
    if isinstance(obj, functools.partial):
        yield obj.func, f"{name}.func"
        yield obj.args, f"{name}.args"
        yield obj.keywords, f"{name}.keywords"
    if isinstance(obj, Mapping):
        yield from ((value, f"{name}[{key!r}]") for key, value in obj.items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((value, f"{name}[{number}]") for number, value in enumerate(obj))
    yield from ((value, f"{name}.{key}") for key, value in getattr(obj, "__dict__", {}).items())


def _is_importable(function: types.FunctionType) -> bool:
    if function.__module__ == "__main__":
        return False
    return getattr(sys.modules.get(function.__module__), function.__qualname__, None) is function


def _can_be_sent(obj: Any) -> bool:
    try:
        cloudpickle.dumps(obj)
    except Exception:  # any error: the message then names this object
        return False
    return True
