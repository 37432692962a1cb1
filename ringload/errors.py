"""Everything that ringload raises of its own.

RingloadError
    ConfigError         an argument, a table or a source cannot be used (also a ValueError)
        BudgetError     what was asked for does not fit into the memory there is (also a MemoryError)
    UnknownFieldError        a batch has no field of that name (also a KeyError)
    SampleError         one sample is bad: it could not be read, decoded, or written into its row
        TooManyBadSamplesError      more samples were bad than `max_bad` allows
    ContentTooLargeError    a storage's content has more bytes than it may have (also a ValueError)
    WorkerDiedError        workers died more often than `restarts` allows
    StallError             nothing has been finished for too long; names who is stuck on what (also a TimeoutError)
    AllSlotsLentError             every batch that was given is kept, so that no slot is free for another; says what to do
    Closed              the loader is closed, or this process is a fork of the one that made it
"""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Iterable
from typing import Any, TypeVar

Kept = TypeVar("Kept", bound=BaseException)


class RingloadError(Exception):
    """The base of every error of ringload's own."""


class ConfigError(RingloadError, ValueError):
    """An argument, a table or a source cannot be used; the message says what, where, and what to do."""


class BudgetError(ConfigError, MemoryError):
    """What was asked for does not fit into memory; the message holds the arithmetic and the least that would do."""


class UnknownFieldError(RingloadError, KeyError):
    """A batch, or a row, has no field of that name. Arguments: the name; the fields that there are."""

    def __init__(self, name: Any, fields: Iterable[str]) -> None:
        super().__init__(name, tuple(fields))

    def __str__(self) -> str:  # made when it is shown: `in` and get() raise it, too
        from ringload.checks import no_field

        return no_field(*self.args)


class SampleError(RingloadError):
    """One sample is bad.

    Attributes: `index` (of the sample in its source), `where` (its path, or what the source says of it), `reason` (one
    line), `traceback` (of the user's own function, else "").
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
    """A storage's content has `n_bytes`, which are more than the `max_bytes` that it was asked for."""

    def __init__(self, n_bytes: int, max_bytes: int) -> None:
        super().__init__(n_bytes, max_bytes)
        self.n_bytes, self.max_bytes = n_bytes, max_bytes

    def __str__(self) -> str:
        return f"it has {self.n_bytes:,} bytes, and {self.max_bytes:,} may be read"


class WorkerDiedError(RingloadError):
    """Workers died more often than `restarts` allows.

    Attributes of the last death: `pid`, `cause` (the signal or exit code, and what usually lies behind it), `samples` (the
    indices it had in hand).
    """

    def __init__(self, message: str, *, pid: int = -1, cause: str = "", samples: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.pid = pid
        self.cause = cause
        self.samples = samples


class StallError(RingloadError, TimeoutError):
    """Nothing has been finished for too long; the message names who is stuck on what.

    Attributes: `limit_s`, the limit that was reached, in seconds: `stall_timeout`, or that of a start.
    """

    def __init__(self, message: str, *, limit_s: float = 0.0) -> None:
        super().__init__(message)
        self.limit_s = limit_s


class AllSlotsLentError(RingloadError):
    """Every batch that was given is kept, so that no slot of the ring is free; the message says since when, and what to do.

    Raised at once where no other thread could give one back; else after `stall_timeout`, with a RuntimeWarning after 5 s.
    """


class LoaderClosedError(RingloadError):
    """The loader is closed, or this process is a fork of the one that made it."""


def missing(part: str, package: str, error: ImportError) -> ImportError:
    """The error where `part` of ringload is used, and the `package` that this part needs cannot be imported."""
    return ImportError(f"{part} needs {package} ({error}): pip install {package}", name=error.name, path=error.path)


class OriginalError(Exception):
    """The traceback of an exception that was kept, as text: it stands as the first cause of that exception."""


def without_frames(error: Kept) -> Kept:
    """Make an exception fit to be kept in an object, and raised later: its traceback becomes text.

    A traceback holds its frames, these hold their callers, and all of them hold their variables. So an object that keeps an
    exception, and is a variable of one of the frames, is no longer freed when the last reference to it goes, but by the garbage
    collector, some time: with all that it owns (processes, memory, descriptors). For the same reason a function that raises
    an exception which it has in a variable deletes the variable.
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
