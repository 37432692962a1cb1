"""Binding a source: attributes that a source lacks get their defaults here, in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.checks import integer, named
from ringload.errors import ConfigError
from ringload.fields import Worker


@dataclass(frozen=True)
class BoundSource:
    """A source with all attributes of `ringload.protocols.Source`. One of `load` and `load_rows` may be None.

    `is_own`: the source is ringload's, so that its `describe` cannot kill a worker.
    """

    source: Any
    names: tuple[str, ...]  # of its fields
    load: Callable[..., Any] | None
    load_rows: Callable[..., None] | None
    prefetch: Callable[[np.ndarray], None] | None
    is_ready: Callable[[np.ndarray], bool] | None
    forget: Callable[[np.ndarray], None] | None
    start: Callable[[Worker], None]
    describe: Callable[[int], str]
    begin_task: Callable[[dict[str, np.ndarray]], None] | None
    load_again: Callable[[], bool] | None
    end_task: Callable[[], None] | None
    scratch_bytes: int
    refuses_large: bool
    random: bool
    global_random: bool
    calls_user_code: bool
    is_own: bool
    order_fields: tuple[str, ...]  # that `order` writes
    rows_of: Callable[[np.ndarray], Any]
    ahead_bytes: int
    order: Any  # of a loader that is given none; None: ringload's shuffle
    threads: int  # of a worker, that call `load` at once


def bind(source: Any) -> BoundSource:
    """The source, with defaults for attributes that it lacks.

    Raises:
        ConfigError: it has neither `load` nor `load_rows`.
    """
    load, load_rows = getattr(source, "load", None), getattr(source, "load_rows", None)
    prefetch, is_ready, forget = (getattr(source, name, None) for name in ("prefetch", "is_ready", "forget"))
    if prefetch is not None and inspect.iscoroutinefunction(inspect.unwrap(prefetch)):
        from ringload.sources.async_prefetch import AsyncPrefetch

        tasks = AsyncPrefetch(prefetch)
        prefetch, is_ready, forget = tasks.prefetch, tasks.is_ready, tasks.forget
    if load is None and load_rows is None:
        from ringload.terms import of_source

        neither = "has neither load(index, rng, out) nor load_rows(indices, rngs, out)"
        raise ConfigError(f"{named(source)} {neither}: {of_source(source)}")
    threads = integer(f"{named(source)}.threads", getattr(source, "threads", 1), 1)
    is_own = type(source).__module__.startswith("ringload.") and getattr(source, "is_own", True)
    draws = bool(getattr(source, "random", True))
    global_random = draws and bool(getattr(source, "global_random", True))
    return BoundSource(
        source=source,
        names=tuple(source.fields),
        load=load,
        load_rows=load_rows,
        prefetch=prefetch,
        is_ready=is_ready,
        forget=forget,
        start=getattr(source, "start", _nothing),
        describe=getattr(source, "describe", _no_description),
        begin_task=getattr(source, "begin_task", None),
        load_again=getattr(source, "load_again", None),
        end_task=getattr(source, "end_task", None),
        scratch_bytes=getattr(source, "scratch_bytes", 0) * threads,
        refuses_large=getattr(source, "refuses_large", False),
        random=draws,
        global_random=global_random,
        calls_user_code=global_random or not is_own or getattr(source, "calls_user_code", False),
        is_own=is_own,
        order_fields=getattr(source, "order_fields", ()),
        rows_of=getattr(source, "rows_of", _themselves),
        ahead_bytes=getattr(source, "ahead_bytes", 0),
        order=getattr(source, "default_order", None),
        threads=threads,
    )


def _nothing(worker: Worker) -> None:
    pass


def _no_description(index: int) -> str:
    return ""


def _themselves(indices: np.ndarray) -> np.ndarray:
    return indices
