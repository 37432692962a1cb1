"""Checks of arguments that many modules need, and short texts for values in messages."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import reprlib
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np

from ringload.errors import ConfigError

MAX_SHOWN = 200  # characters of one value in a message
MAX_LISTED = 20  # values of a list in a message
MAX_COMPARED = 1000  # names, to find a similar one
Made = TypeVar("Made", bound=Callable[..., Any])

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, MAX_SHOWN, MAX_SHOWN


def flag(name: str, value: Any) -> bool:
    """A bool.

    Raises:
        ConfigError: it is not a bool, so its truth value may not be what the user meant.
    """
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} is True or False, not {short(value)}")
    return bool(value)


def integer(name: str, value: Any, least: int) -> int:
    """An integer from `least` on. A float is refused, even if it is whole.

    Raises:
        ConfigError: it is not an integer, or too small.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is an integer from {least} on, not {short(value)}")
    return int(value)


def checked_seed(seed: Any) -> int:
    """A seed. Raises ConfigError if it is not an unsigned integer of 64 bits."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed is an integer from 0 to 2**64 - 1, not {short(seed)}")
    return int(seed)


def two_numbers(values: Any) -> tuple[float, float] | None:
    """Two finite numbers that differ; None for all else."""
    try:
        one, other = (float(value) for value in values)
    except (TypeError, ValueError):
        return None
    return (one, other) if one != other and np.isfinite([one, other]).all() else None


def height_width(size: Any) -> tuple[int, int]:
    """A size in pixels.

    Raises:
        ConfigError: it is not two integers.
    """
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise ConfigError(f"size is (height, width) in pixels, not {short(size)}")
    if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in size):
        raise ConfigError(f"size is (height, width) in pixels, two integers, not {short(size)}")
    return int(size[0]), int(size[1])


def one_of(name: str, value: Any, known: Collection[str]) -> Any:
    """One of the strings in `known`.

    Raises:
        ConfigError: it is none of them. If it is a value of another library, the message has ringload's name for it.
    """
    if isinstance(value, str) and value in known:
        return value
    from ringload.terms import of_value

    *others, last = map(repr, known)
    raise ConfigError(f"{name} is {', '.join(others)} or {last}, not {short(value)}{of_value(name, value)}")


def nearest(name: Any, known: Collection[str]) -> str:
    """The end of a message that asks whether a similar name of `known` was meant; "" if there is none."""
    from difflib import get_close_matches

    there = {one.lower(): one for one in itertools.islice(known, MAX_COMPARED) if isinstance(one, str)}
    found = get_close_matches(name.lower(), there, 1) if isinstance(name, str) else []
    return f"; did you mean {short(there[found[0]])}?" if found else ""


def no_field(name: Any, known: Collection[str], what: str = "field") -> str:
    """The message for a field that does not exist."""
    return f"there is no {what} {short(name)}; the {what}s are {listed(list(known))}{nearest(name, known)}"


def in_our_words(passes_on_to: Callable[..., Any] | None = None, but: Collection[str] = ()) -> Callable[[Made], Made]:
    """A decorator of a function or constructor: an unknown argument raises a TypeError that names ringload's own argument for
    it. The `**options` are arguments of `passes_on_to`, a function or a class, except those in `but`."""

    def decorate(function: Made) -> Made:
        names = _arguments_of(function)
        if passes_on_to is not None:
            names += [
                name for name in _arguments_of(vars(passes_on_to).get("__init__", passes_on_to)) if name not in (*names, *but)
            ]
        known = tuple(name for name in names if name != "self")
        called = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*arguments: Any, **options: Any) -> Any:
            for option in options:
                if option not in known:
                    from ringload.terms import of_argument

                    raise TypeError(f"{called}() has no argument {option!r}: {of_argument(called, option, known)}")
            return function(*arguments, **options)

        return checked  # type: ignore[return-value]

    return decorate


def fixed_once_made(self: Any, name: str, value: Any) -> None:
    """The `__setattr__` of a class whose objects do not change: setting an attribute would have no effect. The constructor ends
    with the names of its attributes in `self._fixed`. New attributes of a user, or of a subclass, can be set.

    Raises:
        AttributeError: `name` is an argument of the constructor, or an attribute that the constructor has set.
    """
    if not name.startswith("_") and "_fixed" in self.__dict__:
        kind = next(one for one in type(self).__mro__ if one.__module__.startswith("ringload."))
        arguments, there = _arguments_of(vars(kind)["__init__"]), getattr(type(self), name, None)
        is_property = isinstance(there, property) and there.fset is None
        if name in self._fixed or is_property or (type(self) is kind and name in arguments):
            from ringload.terms import of_attribute

            raise AttributeError(of_attribute(kind.__name__, name, value, arguments))
    object.__setattr__(self, name, value)


def _arguments_of(function: Callable[..., Any]) -> list[str]:
    code = inspect.unwrap(function).__code__
    return list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def short(value: Any) -> str:
    """A short text for a value, of at most MAX_SHOWN characters."""
    text = _short.repr(value.item() if isinstance(value, np.number | np.bool_ | np.str_) else value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 50]} ... {text[-45:]}"


def named(value: Any) -> str:
    """A text for an object: a plain value itself, else its class."""
    kind = value if isinstance(value, type) else type(value)
    if isinstance(value, str | bytes | int | float | None):
        return short(value)
    library = kind.__module__.partition(".")[0]
    name = kind.__name__ if library in ("builtins", "__main__") else f"{library}.{kind.__name__}"
    return f"the class {name}" if kind is value else f"an object of class {name}"


def listed(values: Sequence[Any]) -> str:
    """A text for values: all of them, or the first ones and the number of others."""
    shown = ", ".join(short(value) for value in values[:MAX_LISTED])
    n_others = len(values) - MAX_LISTED
    return f"[{shown}, ... and {n_others:,} others]" if n_others > 0 else f"[{shown}]"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called ringload, or Keras."""
    depth, frame = 2, sys._getframe(1)  # `warnings` counts this function as 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("ringload", "keras"):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)


def bytes_of(name: str, given: Any) -> int:
    """A number of bytes, from an int or a text such as "100GB" or "64 MiB".

    Raises:
        ConfigError: it is neither, or not positive.
    """
    amount = given
    if isinstance(given, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B\s*", given)):
        base = 1024 if match[3] else 1000
        amount = int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
    if isinstance(amount, bool) or not isinstance(amount, int) or amount <= 0:
        raise ConfigError(f'{name} is a number of bytes, or a text such as "100GB", not {short(given)}')
    return amount
