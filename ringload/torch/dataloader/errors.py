"""What went wrong in a worker, raised as torch's DataLoader does: by an exception of its class, its traceback in the text; and
deaths and time-outs in torch's own words, for whoever matches these.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Sequence

from ringload.bad_sample import Bad
from ringload.engine.schedule import UNUSABLE
from ringload.errors import ConfigError, SampleError, StallError, WorkerDiedError
from ringload.system.deaths import Death
from ringload.torch.dataloader.classes import class_called

NameOf = Callable[[int, int], str]  # (batch's number, row's index) -> what the user calls it


class WorkerKilledError(SampleError, RuntimeError):
    """A sample that kills its worker again and again, or takes too long: a SampleError, and a RuntimeError as with torch."""


class _Said(str):
    """The text of a KeyError, which shows the repr of what it has."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def raised(bad: Bad, name: str, deaths: Sequence[Death]) -> Exception:
    """The exception for a bad row, which is called `name`; `deaths` are those of the workers so far."""
    if not bad.error_class:  # no exception: its worker was killed
        death = next((one for one in reversed(deaths) if one.cause in bad.reason), None)
        text = f"{_died(death)} {name} {bad.reason}"
        return WorkerKilledError(text, index=bad.index, reason=bad.reason)
    module, kind_name = bad.error_class
    text = f"Caught {kind_name} in DataLoader worker process {bad.worker_id}.\nOriginal {bad.traceback or bad.reason}"
    kind = class_called(module, kind_name)
    if kind is None or not issubclass(kind, Exception) or issubclass(kind, StopIteration | StopAsyncIteration):
        return RuntimeError(text)  # a StopIteration would end the iteration, and nobody would know
    try:
        error = kind(_Said(text) if kind is KeyError else text)
    except Exception:  # a class that wants other arguments
        return RuntimeError(text)
    return error if isinstance(error, Exception) else RuntimeError(text)


def died(error: WorkerDiedError, name: str, deaths: Sequence[Death], restarts: int | None) -> RuntimeError:
    """For workers that died too often, the last of them at what is called `name`, if that is known."""
    death = deaths[-1] if deaths else None
    at_work = f"It loaded {name} then: {error.cause}" if name else error.cause
    return RuntimeError(f"{_died(death)} {at_work}. These are more than restarts={restarts} deaths within a minute")


def _died(death: Death | None) -> str:
    """A death in torch's words, up to the point behind them."""
    if death is None or death.pid < 0:
        return "DataLoader worker (pid(s) unknown) exited unexpectedly."
    if death.reason:
        return f"DataLoader worker (pid(s) {death.pid}) exited unexpectedly: {death.reason}."
    code = os.waitstatus_to_exitcode(death.status)
    if code < 0:
        return f"DataLoader worker (pid {death.pid}) is killed by signal: {signal.strsignal(-code) or -code}."
    return f"DataLoader worker (pid(s) {death.pid}) exited unexpectedly with exit code {code}."


def timed_out(error: StallError, timeout_s: float, name_of: NameOf) -> RuntimeError:
    """For a pass in which nothing was finished for too long, or whose workers do not start."""
    said = re.sub(r"sample (\d+) of batch (\d+) of epoch \d+", lambda told: name_of(int(told[2]), int(told[1])), str(error))
    limit_s = timeout_s if error.limit_s == timeout_s else f"{error.limit_s:g}"
    if "has begun" in said:
        said += ". They import what the dataset needs, and call worker_init_fn: one of these hangs"
    return RuntimeError(f"DataLoader timed out after {limit_s} seconds: {said}")


def unusable_in_worker(error: Exception) -> ConfigError | None:
    """For what workers cannot be given: it was sent, and cannot be made again there. None: it is another error."""
    text = str(error)
    if type(error) is not ConfigError or not text.startswith(UNUSABLE):
        return None
    return ConfigError(
        "the dataset, the collate_fn or the worker_init_fn cannot be used in a DataLoader worker, which imports what they need "
        f'by name; multiprocessing_context="fork" inherits it instead. The worker says:\n{text.removeprefix(UNUSABLE)}'
    )
