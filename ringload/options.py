"""The arguments of a loader, checked and converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ringload.checks import checked_seed, flag, integer, named, one_of, short
from ringload.errors import ConfigError
from ringload.order.explicit import NO_END
from ringload.packing.installed import installed_modules
from ringload.protocols import Observer, Workers
from ringload.sources.bind import bind
from ringload.sources.function import FunctionSource
from ringload.system.cgroups import usable_cpus
from ringload.workers.fill import OnError
from ringload.workers.supervisor import StartMethod


@dataclass(frozen=True)
class Options:
    """The arguments of `Loader`. Times are in seconds."""

    batch_size: int
    n_workers: int
    own_workers: Workers | None  # the user's own
    ram_budget: int | float | str
    seed: int
    on_error: OnError
    max_bad: int
    sample_timeout: float | None
    stall_timeout: float
    restarts: int | None
    start_method: StartMethod
    copy: bool
    worker_setup: Callable[[], Any] | None
    epochs: int | None
    observers: tuple[Observer, ...]

    @classmethod
    def checked(
        cls,
        n_samples: int,
        batch_size: Any,
        workers: Any,
        ram_budget: Any,
        seed: Any,
        on_error: Any,
        max_bad: Any,
        sample_timeout: Any,
        stall_timeout: Any,
        restarts: Any,
        start_method: Any,
        copy: Any,
        worker_setup: Any,
        epochs: Any,
        observers: Any,
    ) -> Options:
        """The arguments of `Loader`, checked.

        Raises:
            ConfigError: one is not valid.
        """
        if worker_setup is not None and not callable(worker_setup):
            raise ConfigError(f"worker_setup is a function without arguments, not {short(worker_setup)}")
        is_own = hasattr(workers, "post") and not isinstance(workers, type)
        return cls(
            batch_size=integer("batch_size", batch_size, 1),
            n_workers=workers.n_workers if is_own else n_workers(workers),
            own_workers=workers if is_own else None,
            ram_budget=ram_budget,
            seed=checked_seed(seed),
            on_error=one_of("on_error", on_error, ("raise", "skip", "replace")),
            max_bad=max(10, n_samples // 100) if max_bad is None else integer("max_bad", max_bad, 0),
            sample_timeout=None if sample_timeout is None else _seconds("sample_timeout", sample_timeout),
            stall_timeout=_seconds("stall_timeout", stall_timeout),
            restarts=None if restarts is None else integer("restarts", restarts, 0),
            start_method=one_of("start_method", start_method, ("forkserver", "spawn", "fork")),
            copy=flag("copy", copy),
            worker_setup=worker_setup,
            epochs=None if epochs is None else integer("epochs", epochs, 0),
            observers=_observers(observers),
        )


def n_known(source: Any) -> int:
    """How many samples a source has; 0 for a stream."""
    n_samples = len(source)
    return n_samples if n_samples < NO_END else 0


def check_stream(options: Options, is_own_order: bool) -> None:
    """Refuse what a stream cannot do."""
    if not is_own_order:
        raise ConfigError("a Stream comes in the order of its parts: leave out order= and shuffle=, and shuffle in its factory")
    if options.on_error == "replace":
        raise ConfigError("a Stream has no other sample to take the place of a bad one: on_error is 'raise' or 'skip'")
    if options.own_workers is not None and not options.own_workers.keeps_parts:
        raise ConfigError(
            f"{named(options.own_workers)} does not say keeps_parts = True, which a Stream needs: one worker fills all batches "
            "of a part, in their order"
        )


def checked_shard(shard: Any) -> tuple[int, int]:
    """(rank, world)."""
    if not isinstance(shard, list | tuple) or len(shard) != 2:
        raise ConfigError(f"shard is (rank, world) or 'auto', not {short(shard)}")
    return integer("rank", shard[0], 0), integer("world", shard[1], 1)


def _observers(observers: Any) -> tuple[Observer, ...]:
    methods = ("on_batch", "on_bad", "on_death", "on_restart", "on_growth", "on_seek")
    for observer in observers:
        if lacking := [method for method in methods if not callable(getattr(observer, method, None))]:
            raise ConfigError(
                f"{named(observer)} is no observer, it lacks {', '.join(lacking)}: derive it from ringload.Observer"
            )
    return tuple(observers)


def n_workers(workers: int | Literal["auto"]) -> int:
    """The number of workers that `workers` asks for."""
    if workers == "auto":
        return max(1, usable_cpus() - 1)
    if not isinstance(workers, int) or isinstance(workers, bool) or not 0 <= workers <= 4096:
        raise ConfigError(f"workers is 'auto' or an integer from 0 to 4096, not {short(workers)}")
    return workers


def preload(source: Any, setup: Any = None) -> tuple[str, ...]:
    """What is imported before workers are forked: the source's module, if it is part of ringload, and the modules of installed
    packages that its code and `setup` import. A user's module is imported by each worker, so that workers do not share files or
    connections that it opens."""
    module = type(source).__module__
    return (*((module,) if module.startswith("ringload.") else ()), *installed_modules(source, setup))


def as_source(source: Any, fields: Mapping[str, Any] | None, n_samples: int | None, threads: int | None) -> Any:
    """The source, or a source that calls the function, which has `fields` and `n_samples`."""
    if not hasattr(source, "fields") or isinstance(source, type):
        if not callable(source) or isinstance(source, type):
            raise no_source(source)
        return FunctionSource(source, fields, n_samples, 1 if threads is None else threads)
    if fields is not None or n_samples is not None or threads is not None:
        raise ConfigError(
            f"{type(source).__name__} has its own fields and length: leave out fields=, n_samples= and threads=, which are for "
            "functions (a source of your own may have an attribute `threads`)"
        )
    bind(source)
    if not hasattr(source, "__len__"):
        raise ConfigError(f"{type(source).__name__} has no __len__, which gives the number of samples")
    return source


def no_source(value: Any) -> ConfigError:
    """The error for an object that is no source."""
    from ringload.terms import of_source

    return ConfigError(f"{named(value)} is no source of samples: {of_source(value)}")


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, int | float | np.number) or not value > 0:
        raise ConfigError(f"{name} is a positive number of seconds, not {short(value)}")
    return float(value)
