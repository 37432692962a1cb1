"""Objects of classes without pickle: what is sent of them, and how they are made again of it.

    class                                               what is sent             how it is made
    Enum                                                its name                 the member
    defaultdict, torch.Size, and subclasses of these    content, attributes      by the base class, then its `__dict__`
        and of int, float, str, tuple, list, dict, OrderedDict
    subclasses of UserDict and UserList                 attributes               the same

A process that reads hostile files may have written which class it is, so a name reaches no further than to the classes that are
there: nothing is imported, no attribute is computed to find it, and no code of the class runs while an object is made (but that
of a key's hash and comparison). So `__init__`, `__reduce__` and `__setstate__` are not called, and what has its state elsewhere
(`__slots__`, C) or is told of its end (`__del__`) is not sent.
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
HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: of all classes that Python code defines
FACTORIES: list[Any] = [None, int, float, str, bool, list, dict, set, tuple]  # of a defaultdict: sent as their places here
CONTENT: dict[type, Callable[[Any], Any]] = {  # what an object is to its base class, whatever its own class says
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
    """As torch's collation tells it."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def taken_apart(value: Any) -> tuple[Any, dict[Any, Any]] | None:
    """Content and attributes, of which `made_again` makes the same. None: it cannot."""
    kind: Any = type(value)
    if (base := base_of(kind)) is None or class_called(kind.__module__, kind.__qualname__) not in (None, kind):
        return None
    if isinstance(value, Enum):
        return (value.name, {}) if kind.__members__.get(value.name) is value else None  # flags may have no name
    if base is defaultdict and value.default_factory not in FACTORIES:
        return None
    return CONTENT[base](value), dict(getattr(value, "__dict__", ()))


def made_again(module: str, name: str, content: Any, attributes: Any) -> Any:
    """An object of this process's class of that name."""
    kind = class_called(module, name)
    if kind is None or (base := base_of(kind)) is None:
        raise TypeError(f"{module}.{name} is no class here of which objects can be made: import it, at a module's top level")
    if type(content) not in (int, float, str, list, dict, type(None)) or type(attributes) is not dict:
        raise TypeError(f"this is no content of a {module}.{name}")
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
    """The one of CONTENT that holds what objects of this class have, beside their `__dict__`; None: there is more to them."""
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
    """A class that this process has at a module's top level, or None."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = vars(found).get(part) if isinstance(found, ModuleType | type) else None  # a module's __getattr__ may import
    return found if isinstance(found, type) else None
