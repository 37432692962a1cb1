"""The exceptions that ringload defines.

RingloadError
    ConfigError         an argument, a table or a source cannot be used (also a ValueError)
        BudgetError     the loader does not fit into the memory that it may use (also a MemoryError)
    UnknownFieldError   a batch has no field of that name (also a KeyError)
    SampleError         one sample is bad: it could not be read, decoded, or written into its row
        TooManyBadSamplesError  more samples were bad than `max_bad` allows
    ContentTooLargeError        a storage's content has more bytes than the caller allows (also a ValueError)
    WorkerDiedError     workers died more often than `restarts` allows
        ClusterLostError        the Ray cluster is gone, and with it all workers
    StallError          no task was finished for too long; names the stuck worker and its sample (also a TimeoutError)
    AllSlotsLentError   the trainer keeps a batch in every slot, so that none is free; says what to do
    LoaderClosedError   the loader is closed, or this process is a fork of the process that made it
"""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Iterable
from typing import Any, TypeVar

Kept = TypeVar("Kept", bound=BaseException)


class RingloadError(Exception):
    """The base class of ringload's errors."""


class ConfigError(RingloadError, ValueError):
    """An argument, a table or a source cannot be used; the message says what, where, and what to do."""


class BudgetError(ConfigError, MemoryError):
    """The loader does not fit into memory; the message has the arithmetic and the least budget that is enough."""


class UnknownFieldError(RingloadError, KeyError):
    """A batch, or a row, has no field of that name. Arguments: the name, and the fields that exist."""

    def __init__(self, name: Any, fields: Iterable[str]) -> None:
        super().__init__(name, tuple(fields))

    def __str__(self) -> str:  # made only when it is shown, as `in` and get() raise this error, too
        from ringload.checks import no_field

        return no_field(*self.args)


class SampleError(RingloadError):
    """One sample is bad.

    Attributes: `index` (of the sample in its source), `where` (its path, or the source's own description), `reason` (one line),
    `traceback` (of the user's function, else "").
    """

    def __init__(self, message: str, *, index: int = -1, where: str = "", reason: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.index = index
        self.where = where
        self.reason = reason
        self.traceback = traceback


class TooManyBadSamplesError(SampleError):
    """More samples were bad than `max_bad` allows; the attributes are those of the last one."""


class ContentTooLargeError(RingloadError, ValueError):
    """A storage's content has `n_bytes`, more than the `max_bytes` that the caller allows."""

    def __init__(self, n_bytes: int, max_bytes: int) -> None:
        super().__init__(n_bytes, max_bytes)
        self.n_bytes, self.max_bytes = n_bytes, max_bytes

    def __str__(self) -> str:
        return f"it has {self.n_bytes:,} bytes, and {self.max_bytes:,} may be read"


class WorkerDiedError(RingloadError):
    """Workers died more often than `restarts` allows.

    Attributes describe the last death: `pid`, `cause` (the signal or exit code, and its usual reason), `samples` (the indices
    that the worker was loading).
    """

    def __init__(self, message: str, *, pid: int = -1, cause: str = "", samples: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.pid = pid
        self.cause = cause
        self.samples = samples


class ClusterLostError(WorkerDiedError):
    """The Ray cluster is gone, and with it all workers; the message says what does not answer."""


class StallError(RingloadError, TimeoutError):
    """No task was finished for too long; the message names the stuck worker and its sample.

    Attributes: `limit_s`, the time limit that was reached, in seconds: `stall_timeout`, or the limit for a start of workers.
    """

    def __init__(self, message: str, *, limit_s: float = 0.0) -> None:
        super().__init__(message)
        self.limit_s = limit_s


class AllSlotsLentError(RingloadError):
    """The trainer keeps a batch in every slot, so that none is free; the message says since when, and what to do.

    Raised at once if no other thread can release a batch; else after `stall_timeout`, with a RuntimeWarning after 5 s.
    """


class LoaderClosedError(RingloadError):
    """The loader is closed, or this process is a fork of the process that made it."""


def missing(part: str, package: str, error: ImportError) -> ImportError:
    """The ImportError for a `part` of ringload whose `package` cannot be imported."""
    return ImportError(f"{part} needs {package} ({error}): pip install {package}", name=error.name, path=error.path)


class OriginalError(Exception):
    """The traceback of a kept exception, as text; it is set as the first cause of that exception."""


def without_frames(error: Kept) -> Kept:
    """Replace an exception's traceback by text, so that an object can keep the exception and raise it later.

    A traceback refers to its frames, these refer to their callers, and all of them to their variables. If an object keeps an
    exception, and one of these frames has the object in a variable, that is a reference cycle: the object, with all that it
    owns (processes, memory, descriptors), is freed only when the garbage collector runs. For the same reason a function that
    raises an exception from a variable deletes the variable.
    """
    text = "".join(traceback.format_exception(error))
    had_frames = False
    todo: list[Any] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            had_frames |= one.__traceback__ is not None
            one.__traceback__ = None
            is_group = isinstance(one, getattr(builtins, "BaseExceptionGroup", ()))
            todo += [one.__cause__, one.__context__, *(getattr(one, "exceptions", ()) if is_group else ())]
    first = error
    while (before := _shown_before(first)) is not None and id(before) in seen:
        seen.remove(id(before))
        first = before
    if had_frames:
        first.__cause__ = OriginalError(f"\n{text}")
    return error


def _shown_before(error: BaseException) -> Any:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__
