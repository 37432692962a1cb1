"""What arguments are checked for in many places, and how values are shown in messages: never longer than a few lines."""

from __future__ import annotations

import functools
import inspect
import itertools
import reprlib
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np

from ringload.errors import ConfigError

MAX_SHOWN = 200  # characters of one value in a message
MAX_LISTED = 20  # values of a list in a message
MAX_COMPARED = 1000  # names, to find the one that was meant
Made = TypeVar("Made", bound=Callable[..., Any])

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, MAX_SHOWN, MAX_SHOWN


def flag(name: str, value: Any) -> bool:
    """A bool.

    Raises:
        ConfigError: it is something else, which has a truth value, too, and maybe not the one that was meant.
    """
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} is True or False, not {short(value)}")
    return bool(value)


def integer(name: str, value: Any, least: int) -> int:
    """An integer from `least` on; a float is none, even if it is whole.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is an integer from {least} on, not {short(value)}")
    return int(value)


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
    """A string out of several.

    Raises:
        ConfigError: it is none of them; the message says what it is here, if another library has it.
    """
    if isinstance(value, str) and value in known:
        return value
    from ringload.terms import of_value

    *others, last = map(repr, known)
    raise ConfigError(f"{name} is {', '.join(others)} or {last}, not {short(value)}{of_value(name, value)}")


def nearest(name: Any, known: Collection[str]) -> str:
    """A question behind a message, if one of those that are known is like the name; else ""."""
    from difflib import get_close_matches

    there = {one.lower(): one for one in itertools.islice(known, MAX_COMPARED) if isinstance(one, str)}
    found = get_close_matches(name.lower(), there, 1) if isinstance(name, str) else []
    return f"; did you mean {short(there[found[0]])}?" if found else ""


def no_field(name: Any, known: Collection[str], what: str = "field") -> str:
    """What is said of a field that is not there."""
    return f"there is no {what} {short(name)}; the {what}s are {listed(list(known))}{nearest(name, known)}"


def in_our_words(passes_on_to: type | None = None, but: Collection[str] = ()) -> Callable[[Made], Made]:
    """A decorator of a function, or of a constructor: an argument that it has not raises a TypeError that says what does its
    work here. Its `**options` are those of the constructor of `passes_on_to`, `but` for some."""

    def decorate(function: Made) -> Made:
        names = _arguments_of(function)
        if passes_on_to is not None:
            names += [name for name in _arguments_of(vars(passes_on_to)["__init__"]) if name not in (*names, *but)]
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
    """The `__setattr__` of a class whose objects stay what they were made: setting an attribute would change nothing. The
    constructor ends by naming its attributes in `self._fixed`. Attributes of the user's own, and of subclasses, can be set.

    Raises:
        AttributeError: it is an argument of the constructor, or an attribute that this has set.
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
    """A value in a message, bounded."""
    text = _short.repr(value.item() if isinstance(value, np.number | np.bool_ | np.str_) else value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 50]} ... {text[-45:]}"


def named(value: Any) -> str:
    """What an object is, in a message: itself if that is short and plain, else its class."""
    kind = value if isinstance(value, type) else type(value)
    if isinstance(value, str | bytes | int | float | None):
        return short(value)
    library = kind.__module__.partition(".")[0]
    name = kind.__name__ if library in ("builtins", "__main__") else f"{library}.{kind.__name__}"
    return f"the class {name}" if kind is value else f"an object of class {name}"


def listed(values: Sequence[Any]) -> str:
    """Some values in a message: all of them, or the first and how many others there are."""
    shown = ", ".join(short(value) for value in values[:MAX_LISTED])
    n_others = len(values) - MAX_LISTED
    return f"[{shown}, ... and {n_others:,} others]" if n_others > 0 else f"[{shown}]"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called ringload, or Keras."""
    depth, frame = 2, sys._getframe(1)  # `warnings` counts this function as 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("ringload", "keras"):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
