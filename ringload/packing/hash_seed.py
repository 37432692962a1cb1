"""Users' code that calls `hash()`, whose numbers for strings workers do not have.

Python chooses a seed for hash(str) anew for each interpreter, unless PYTHONHASHSEED says it, and it cannot be handed on: only
forks have it. A source that splits its data by hash(name) has another split in workers than in the trainer; so that is said.
"""

from __future__ import annotations

import builtins
import os
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any


def calls_hash(met: Iterable[Any]) -> str:
    """Which of these functions, or of the methods of these classes, calls Python's own `hash`, in words; "" if none does, or if
    PYTHONHASHSEED is set."""
    if not sys.flags.hash_randomization or os.environ.get("PYTHONHASHSEED", "random") != "random":
        return ""
    for function in _functions(met):
        is_pythons = function.__globals__.get("hash", builtins.hash) is builtins.hash
        if is_pythons and any(map(_loads_hash, _codes(function.__code__))):
            return (
                f"{function.__module__}.{function.__qualname__} calls hash(), which for a string gives other numbers in "
                "workers than in the trainer: set PYTHONHASHSEED in the environment before Python starts, or use zlib.crc32"
            )
    return ""


def _functions(met: Iterable[Any]) -> Iterator[types.FunctionType]:
    for one in met:
        methods = vars(one).values() if isinstance(one, type) else (one,)
        for method in methods:
            function = getattr(method, "__func__", method)
            if isinstance(function, types.FunctionType) and function.__name__ != "__hash__":
                yield function


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _loads_hash(code: types.CodeType) -> bool:
    if "hash" not in code.co_names:
        return False
    import dis  # seldom needed, and never in workers

    return any(one.argval == "hash" and one.opname in ("LOAD_GLOBAL", "LOAD_NAME") for one in dis.get_instructions(code))
