"""Random generators inside of a source: `np.random.default_rng(0)` in a dataset, or those of albumentations' Compose.

Each worker has a copy of such a generator, and chance decides which worker loads which sample. So these generators are treated
like the global ones: before a sample is loaded, each is set to a state that depends on the sample's seed and on the number of
the generator. The random numbers of a sample are then the same for any number of workers, and differ between samples.

Setting a generator of NumPy's takes 15 us. So generators are set only from the first task on that uses one; that task is filled
again. Workers find the generators when they unpickle the source. For workers=0 and start_method="fork" the source is pickled
just to find them. Generators that are made later (in `start`, or with the first sample) are found among its attributes.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np

MAX_LOOKED_AT = 2000  # objects that are searched for generators made later
MAX_ELEMENTS = 100  # of one object that are searched
_made: list[Any] = []  # generators that were unpickled, and not taken yet


class OwnGenerators:
    """The generators of a source."""

    def __init__(self, found: list[Any]) -> None:
        self._found = found
        self._before = self.states()
        self._looked = False
        self.are_set = False  # whether each sample sets them

    def set(self, seed: int) -> None:
        """Set all of them for a sample, if `are_set`."""
        if self.are_set:
            for number, generator in enumerate(self._found):
                _set(generator, (seed + number * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)

    def were_used(self, source: Any) -> bool:
        """After a task: whether it was the first to use one of them. Then the task must be filled again."""
        if not self._looked:
            self._looked = True
            known = {id(generator) for generator in self._found}
            if new := [generator for generator in _reached_from(source) if id(generator) not in known]:
                self._found += new
                self._before = self.states()
                self.are_set = True
                return True
        if self.are_set or not self._found or not any(map(_differ, self._before, self.states())):
            return False
        self.are_set = True
        return True

    def states(self) -> list[Any]:
        """Their states, for `restore`."""
        return [_state(generator) for generator in self._found]

    def restore(self, states: list[Any]) -> None:
        """Set their states."""
        for generator, state in zip(self._found, states, strict=False):  # more generators may have been found since
            _restore(generator, state)


def reached_from(source: Any) -> OwnGenerators:
    """The generators among the attributes and elements of a source."""
    return OwnGenerators(list(_reached_from(source)))


def is_generator(value: Any) -> bool:
    """Whether a value is a random generator of NumPy's, Python's or torch's."""
    return isinstance(value, np.random.Generator | np.random.RandomState | random.Random) or _is_torchs(value)


def _is_torchs(value: Any) -> bool:
    kind = type(value)
    return kind.__name__ == "Generator" and kind.__module__ == "torch._C" and value.device.type == "cpu"


def noted(reduced: tuple[Any, ...]) -> tuple[Any, ...]:
    """A generator's `__reduce_ex__`, changed so that the process that unpickles the generator notes it."""
    make, arguments, *rest = reduced
    return note_made, (make, arguments), *rest


def note_made(make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Make a generator, and note it."""
    made = make(*arguments)
    _made.append(made)
    return made


def note(generators: list[Any]) -> None:
    """Note generators that exist already."""
    _made.extend(generators)


def take_made() -> list[Any]:
    """The generators that were noted since the last call."""
    taken, _made[:] = list(_made), []
    return taken


def in_modules(names: list[str]) -> list[tuple[str, str]]:
    """(module, name) of generators that are globals of modules."""
    return [(module, name) for module in names for name, value in vars(sys.modules[module]).items() if is_generator(value)]


def of_modules(places: list[tuple[str, str]]) -> list[Any]:
    """The generators at these places in this process."""
    found = (vars(sys.modules[module]).get(name) for module, name in places if module in sys.modules)
    return [value for value in found if is_generator(value)]


def _reached_from(source: Any) -> Iterator[Any]:
    """The generators among the attributes and elements of an object, breadth first."""
    waiting, seen = deque([source]), set[int]()
    while waiting and len(seen) < MAX_LOOKED_AT:
        value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if is_generator(value):
            yield value
        elif isinstance(value, Mapping | list | tuple | set | frozenset | deque):
            with suppress(Exception):  # whatever a library's container raises: it is not the user's
                waiting += list(itertools.islice(value.values() if isinstance(value, Mapping) else value, MAX_ELEMENTS))
        elif not isinstance(value, type | np.ndarray | ModuleType) and not _is_storage(value):
            waiting += list(getattr(value, "__dict__", {}).values())
            waiting += [cell.cell_contents for cell in getattr(value, "__closure__", None) or () if _is_filled(cell)]
            waiting += [
                part for name in ("func", "args", "keywords", "__self__") if (part := getattr(value, name, None)) is not None
            ]


def _is_storage(value: Any) -> bool:
    """Whether it is a storage, which draws nothing that a sample depends on, and has connections and threads."""
    return all(callable(getattr(type(value), name, None)) for name in ("prefetch", "read", "close"))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _set(generator: Any, seed: int) -> None:
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        bits.state = type(bits)(seed).state
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed & 0xFFFFFFFF)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    else:
        generator.manual_seed(seed)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random):
        return generator.getstate() if not isinstance(generator, random.SystemRandom) else None
    return generator.get_state()


def _differ(one: Any, other: Any) -> bool:
    """Whether two states differ: dicts, tuples, arrays and tensors of numbers."""
    if isinstance(one, dict):
        return any(_differ(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple):
        return any(map(_differ, one, other))
    return bool(one != other) if isinstance(one, int | float | str | None) else not np.array_equal(one, other)


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        if state is not None:
            generator.setstate(state)
    else:
        generator.set_state(state)
