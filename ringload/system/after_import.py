"""Do something to a module once it is imported, and import nothing for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


def after_import(name: str, action: Action) -> None:
    """Call `action(module)` when module `name` has been imported; at once, if it is."""
    if (module := sys.modules.get(name)) is not None:
        action(module)
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    finder = next(finder for finder in sys.meta_path if isinstance(finder, _Finder))
    finder.actions.setdefault(name, []).append(action)


class _Finder:
    """Finds what the finders behind it find, with a loader that does the rest. It does without importlib.abc, whose import
    takes 10 ms."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.actions:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find: Any = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find is not None else None
            if spec is not None:
                if spec.loader is not None:  # else a namespace, which has no code
                    spec.loader = _Loader(spec.loader, self.actions.pop(name))  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Executes a module by its own loader, which it is given back then."""

    def __init__(self, loader: Any, actions: list[Action]) -> None:
        self._loader, self._actions = loader, actions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        for action in self._actions:
            action(module)
