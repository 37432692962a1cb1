"""Finds users' code that calls `hash()`, which gives other numbers for strings in workers than in the trainer.

Each interpreter chooses a seed for hash(str), unless PYTHONHASHSEED sets it, and only forks inherit the seed. A source that
splits its data by hash(name) would have another split in workers than in the trainer.
"""

from __future__ import annotations

import builtins
import os
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any


def calls_hash(met: Iterable[Any]) -> str:
    """The message for the first of these functions, or methods of these classes, that calls Python's `hash`; "" if none does,
    or if PYTHONHASHSEED is set."""
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
