"""Everything that ringload raises of its own.

RingloadError
    ConfigError         an argument, a table or a source cannot be used (also a ValueError)
        BudgetError     what was asked for does not fit into the memory there is (also a MemoryError)
    SampleError         one sample is bad: it could not be read, decoded, or written into its row
        TooManyBad      more samples were bad than `max_bad` allows
    ProducerDied        producers died more often than `restarts` allows
    Stalled             nothing has been finished for too long; names who is stuck on what (also a TimeoutError)
    Starved             every slot is lent and none comes back; names who holds which since when
    Closed              the loader is closed, or this process is a fork of the one that made it
"""

from __future__ import annotations


class RingloadError(Exception):
    """The base of every error of ringload's own."""


class ConfigError(RingloadError, ValueError):
    """An argument, a table or a source cannot be used; the message says what, where, and what to do."""


class BudgetError(ConfigError, MemoryError):
    """What was asked for does not fit into memory; the message holds the arithmetic and the least that would do."""


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


class TooManyBad(SampleError):
    """More samples were bad than `max_bad` allows; the attributes are those of the last one."""


class ProducerDied(RingloadError):
    """Producers died more often than `restarts` allows.

    Attributes of the last death: `pid`, `cause` (the signal or exit code, and what usually lies behind it), `samples` (the
    indices it had in hand).
    """

    def __init__(self, message: str, *, pid: int = -1, cause: str = "", samples: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.pid = pid
        self.cause = cause
        self.samples = samples


class Stalled(RingloadError, TimeoutError):
    """Nothing has been finished for too long; the message names who is stuck on what."""


class Starved(RingloadError):
    """Every slot is lent and none comes back; the message names who holds which since when."""


class Closed(RingloadError):
    """The loader is closed, or this process is a fork of the one that made it."""
