"""Turns errors in workers into the exceptions of torch's DataLoader: an exception of the same class, with the worker's
traceback in its text. Messages of deaths and time-outs begin with torch's own text, for programs that match it.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ringload.bad_sample import Bad
from ringload.checks import warn
from ringload.engine.schedule import UNUSABLE
from ringload.errors import ConfigError, SampleError, StallError, WorkerDiedError
from ringload.system.deaths import Death
from ringload.torch.dataloader.classes import class_called

NameOf = Callable[[int, int], str]  # (number of a batch, index of a row) -> the sample's name in messages


class WorkerKilledError(SampleError, RuntimeError):
    """A sample kills its worker again and again, or takes too long. A SampleError, and a RuntimeError as with torch."""


class _Said(str):
    """The text of a KeyError. As KeyError shows the repr of its argument, the repr is the text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def raised(bad: Bad, name: str, deaths: Sequence[Death]) -> Exception:
    """The exception for a bad row of this `name`. `deaths`: all deaths of workers so far."""
    if not bad.error_class:  # no exception was raised: its worker was killed
        death = next((one for one in reversed(deaths) if one.cause in bad.reason), None)
        text = f"{_died(death)} {name} {bad.reason}"
        return WorkerKilledError(text, index=bad.index, reason=bad.reason)
    module, kind_name = bad.error_class
    text = f"Caught {kind_name} in DataLoader worker process {bad.worker_id}.\nOriginal {bad.traceback or bad.reason}"
    kind = class_called(module, kind_name)
    if kind is None or not issubclass(kind, Exception) or issubclass(kind, StopIteration | StopAsyncIteration):
        return RuntimeError(text)  # a StopIteration would end the iteration silently
    try:
        error = kind(_Said(text) if kind is KeyError else text)
    except Exception:  # the class takes other arguments
        return RuntimeError(text)
    return error if isinstance(error, Exception) else RuntimeError(text)


def died(error: WorkerDiedError, name: str, deaths: Sequence[Death], restarts: int | None) -> RuntimeError:
    """The error for workers that died too often. `name`: the sample that the last of them was loading, "" if unknown."""
    death = deaths[-1] if deaths else None
    at_work = f"It was loading {name}: {error.cause}" if name else error.cause
    return RuntimeError(f"{_died(death)} {at_work}. That is more than restarts={restarts} deaths within a minute")


def _died(death: Death | None) -> str:
    """A sentence on a death, with torch's text."""
    if death is None or death.pid < 0:
        return "DataLoader worker (pid(s) unknown) exited unexpectedly."
    if death.reason:
        return f"DataLoader worker (pid(s) {death.pid}) exited unexpectedly: {death.reason}."
    code = os.waitstatus_to_exitcode(death.status)
    if code < 0:
        return f"DataLoader worker (pid {death.pid}) is killed by signal: {signal.strsignal(-code) or -code}."
    return f"DataLoader worker (pid(s) {death.pid}) exited unexpectedly with exit code {code}."


def timed_out(error: StallError, timeout_s: float, name_of: NameOf) -> RuntimeError:
    """The error for a pass in which no task was finished for too long, or whose workers do not start."""
    said = re.sub(r"sample (\d+) of batch (\d+) of epoch \d+", lambda told: name_of(int(told[2]), int(told[1])), str(error))
    limit_s = timeout_s if error.limit_s == timeout_s else f"{error.limit_s:g}"
    if "has begun" in said:
        said += ". At their start, workers import what the dataset needs, and call worker_init_fn: one of these hangs"
    return RuntimeError(f"DataLoader timed out after {limit_s} seconds: {said}")


def unusable_in_worker(error: Exception) -> ConfigError | None:
    """The error for a dataset or function that was sent, but cannot be unpickled in workers. None: `error` is another error."""
    text = str(error)
    if type(error) is not ConfigError or not text.startswith(UNUSABLE):
        return None
    return ConfigError(
        "the dataset, the collate_fn or the worker_init_fn cannot be used in a DataLoader worker, which imports what they need "
        'by name. To let workers inherit it, use multiprocessing_context="fork". The worker says:\n'
        f"{text.removeprefix(UNUSABLE)}"
    )


def no_attribute(loader: Any, name: str) -> NoReturn:
    """A DataLoader's `__getattr__`. Accelerate asks for `_is_accelerate_prepared` before it replaces a loader."""
    if name == "_is_accelerate_prepared":
        warn(
            "accelerator.prepare() replaces this ringload.torch.DataLoader by a loader of torch's own class: to keep it, use "
            "ringload.torch.prepare(accelerator, loader)",
            RuntimeWarning,
        )
    raise AttributeError(f"{type(loader).__name__!r} object has no attribute {name!r}")
