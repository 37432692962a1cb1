"""Sends objects of classes without pickle: which parts of an object are sent, and how the object is made from them.

    class                                               sent parts               how the object is made
    Enum                                                its name                 the member of that name
    defaultdict, torch.Size, and subclasses of these    content, attributes      by the base class, then its `__dict__`
        and of int, float, str, tuple, list, dict, OrderedDict
    subclasses of UserDict and UserList                 attributes               the same

A worker reads files that may be hostile, so the trainer does not trust the class name that it receives. It looks the name up
among classes that are already imported: it imports nothing, evaluates no property, and runs no code of the class while it makes
the object, except the hash and comparison of dict keys. So `__init__`, `__reduce__` and `__setstate__` are not called. Objects
with state outside `__dict__` (`__slots__`, C), and classes with `__del__`, are not sent.
"""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict, UserDict, UserList, defaultdict
from collections.abc import Callable
from enum import Enum
from types import BuiltinFunctionType, ModuleType
from typing import Any

import torch

IMMUTABLE = (int, float, str, tuple, torch.Size)
HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set for all classes that Python code defines
# Factories of a defaultdict are sent by their position in this list.
FACTORIES: list[Any] = [None, int, float, str, bool, list, dict, set, tuple]
# An object's content, by the methods of the base class: its own class may override them.
CONTENT: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    tuple: lambda value: list(tuple.__iter__(value)),
    torch.Size: lambda value: list(tuple.__iter__(value)),
    list: list.copy,
    dict: dict.copy,
    OrderedDict: lambda value: dict(OrderedDict.items(value)),
    defaultdict: lambda value: [FACTORIES.index(value.default_factory), dict(dict.items(value))],
    object: lambda value: None,
}


def is_named_tuple(value: Any) -> bool:
    """Whether torch's collation takes `value` for a named tuple."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def taken_apart(value: Any) -> tuple[Any, dict[Any, Any]] | None:
    """The content and attributes from which `made_again` makes an equal object. None: the object cannot be sent."""
    kind: Any = type(value)
    if (base := base_of(kind)) is None or class_called(kind.__module__, kind.__qualname__) not in (None, kind):
        return None
    if isinstance(value, Enum):
        return (value.name, {}) if kind.__members__.get(value.name) is value else None  # flags may have no name
    if base is defaultdict and value.default_factory not in FACTORIES:
        return None
    return CONTENT[base](value), dict(getattr(value, "__dict__", ()))


def made_again(module: str, name: str, content: Any, attributes: Any) -> Any:
    """Make an object of the class that has this name in this process."""
    kind = class_called(module, name)
    if kind is None or (base := base_of(kind)) is None:
        raise TypeError(
            f"{module}.{name} is no class in the trainer of which objects can be made: import it, at a module's top level"
        )
    if type(content) not in (int, float, str, list, dict, type(None)) or type(attributes) is not dict:
        raise TypeError(f"the data are no content of a {module}.{name}")
    if issubclass(kind, Enum):
        return kind.__members__[content]
    made = base.__new__(kind, content) if base in IMMUTABLE else base.__new__(kind)
    if base is list:
        list.extend(made, content)
    elif base is defaultdict:
        vars(defaultdict)["default_factory"].__set__(made, FACTORIES[content[0]])
        dict.update(made, content[1])
    elif base in (dict, OrderedDict):
        for key, part in content.items():
            base.__setitem__(made, key, part)
    if attributes:
        object.__getattribute__(made, "__dict__").update(attributes)
    return made


@functools.cache
def base_of(kind: Any) -> Any:
    """The base class, of those in CONTENT, that holds all state of an object but its `__dict__`. None: there is other state."""
    if "<locals>" in kind.__qualname__:
        return None
    of_python = []
    for base in kind.__mro__:
        if not base.__flags__ & HEAP_TYPE or isinstance(vars(base).get("__new__"), BuiltinFunctionType):
            break
        of_python.append(base)
    if any(vars(one).get("__slots__") or isinstance(vars(one).get("__dict__"), property) for one in of_python):
        return None
    if hasattr(kind, "__del__") or base not in CONTENT:
        return None
    return base if base is not object or issubclass(kind, UserDict | UserList | Enum) else None


def class_called(module: str, name: str) -> Any:
    """The class of this name at the top level of an imported module, or None."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = vars(found).get(part) if isinstance(found, ModuleType | type) else None  # a module's __getattr__ may import
    return found if isinstance(found, type) else None
