"""Settings of the trainer's process and of its libraries that workers get: `SWITCHES` and `LIBRARY_GLOBALS`.

A worker is a fresh interpreter. It sets this state before it has the source; in a module that is not imported yet, after the
import. (`module_globals` sends globals of the user's modules.) Not sent: handlers of logging; filters for warnings of classes
that are not Python's; and the seed of hash(str), which each interpreter chooses, unless PYTHONHASHSEED sets it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from ringload.packing.module_globals import set_in
from ringload.system.after_import import after_import


class Switch(NamedTuple):
    """State of a module that the trainer has imported. `alters_samples`: it can change samples, not only messages."""

    module: str
    read: Callable[[Any], Any]
    set: Callable[[Any, Any], Any]
    alters_samples: bool = False


SWITCHES = (
    Switch(  # by its name: unpickling a dtype would import torch in every worker
        "torch",
        lambda torch: str(torch.get_default_dtype()).removeprefix("torch."),
        lambda torch, value: torch.set_default_dtype(getattr(torch, value)),
        True,
    ),
    Switch(
        "torch",
        lambda torch: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda torch, value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        True,
    ),
    Switch("decimal", lambda decimal: _without_flags(decimal), lambda decimal, value: decimal.setcontext(value), True),
    Switch(
        "locale", lambda locale: locale.setlocale(locale.LC_ALL), lambda locale, value: locale.setlocale(locale.LC_ALL, value)
    ),
    Switch("numpy", lambda numpy: numpy.geterr(), lambda numpy, value: numpy.seterr(**value)),
    Switch("logging", lambda logging: _levels(logging), lambda logging, value: _set_levels(logging, *value)),
    Switch("warnings", lambda warnings: _filters(warnings), lambda warnings, value: _set_filters(warnings, value)),
    Switch("sys", lambda sys: sys.getrecursionlimit(), lambda sys, value: sys.setrecursionlimit(value)),
    Switch("csv", lambda csv: csv.field_size_limit(), lambda csv, value: csv.field_size_limit(value)),
    Switch("socket", lambda socket: socket.getdefaulttimeout(), lambda socket, value: socket.setdefaulttimeout(value)),
    Switch(
        "multiprocessing.process",  # the key by which processes of one program trust each other
        lambda process: bytes(process.current_process().authkey),
        lambda process, value: setattr(process.current_process(), "authkey", value),
    ),
)
LIBRARY_GLOBALS = {
    "PIL.Image": ("MAX_IMAGE_PIXELS", "WARN_POSSIBLE_FORMATS"),
    "PIL.ImageFile": ("LOAD_TRUNCATED_IMAGES", "MAXBLOCK", "SAFEBLOCK"),
    "PIL.PngImagePlugin": ("MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY"),
    "PIL.TiffImagePlugin": ("READ_LIBTIFF", "WRITE_LIBTIFF", "IFD_LEGACY_API", "STRIP_SIZE"),
    "PIL.GifImagePlugin": ("LOADING_STRATEGY",),
}


def switches(that_alter_samples: bool = False) -> list[tuple[int, Any]]:
    """The settings of this process: (number in SWITCHES, state), and (-1, (module, its globals))."""
    found: list[tuple[int, Any]] = []
    for number, switch in enumerate(SWITCHES):
        if (switch.alters_samples or not that_alter_samples) and (module := sys.modules.get(switch.module)) is not None:
            found.append((number, switch.read(module)))
    for name, names in LIBRARY_GLOBALS.items():
        if (module := sys.modules.get(name)) is not None:
            found.append((-1, (name, {key: getattr(module, key) for key in names if hasattr(module, key)})))
    return found


def set_switches(found: Iterable[tuple[int, Any]]) -> None:
    """Apply the settings of another process; in a module that is not imported yet, after its import."""
    for number, state in found:
        if number >= 0:
            after_import(SWITCHES[number].module, partial(_apply, number, state))
        else:
            name, values = state
            after_import(name, partial(set_in, values))


def _apply(number: int, state: Any, module: types.ModuleType) -> None:
    if SWITCHES[number].read(module) != state:  # setting may take longer than reading: one of torch's imports for seconds
        SWITCHES[number].set(module, state)


def _without_flags(decimal: Any) -> Any:
    """The context without its flags, which computing sets."""
    context = decimal.getcontext().copy()
    context.clear_flags()
    return context


def _levels(logging: Any) -> tuple[int, dict[str, int]]:
    loggers = logging.root.manager.loggerDict.items()
    levels = {name: one.level for name, one in loggers if isinstance(one, logging.Logger) and one.level}
    return logging.root.manager.disable, levels | {"": logging.root.level}


def _set_levels(logging: Any, disabled: int, levels: dict[str, int]) -> None:
    logging.disable(disabled)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _filters(warnings: Any) -> list[Any]:
    """The filters, without those for classes that would have to be imported."""
    return [one for one in warnings.filters if one[2].__module__ == "builtins"]


def _set_filters(warnings: Any, filters: list[Any]) -> None:
    of_others = [one for one in warnings.filters if one[2].__module__ != "builtins"]
    warnings.filters[:] = filters + of_others
    warnings._filters_mutated()
