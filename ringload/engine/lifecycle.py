"""The life of an engine: one state, which the thread that holds `lock` writes, and a request to close, which anyone may make.

    NEW, until its workers are opened
     |
     |       begin                      an interruption leaves it there:
    OPEN ------------> INCONSISTENT ---> the next session starts over
     ^                    |  |
     +--------------------+  |  close_requested, seen at the next step
        end of a session     v
                          CLOSING ----> CLOSED        FORKED: in a fork of the trainer, for good
                             (workers end, memory is let go of)

The problem: KeyboardInterrupt can come between any two instructions, and `close` may come from another thread, or from a signal
handler that interrupts `next_batch` in the same thread. So neither may wait for the lock. `close` leaves `close_requested`
and wakes the thread that is inside, which takes everything down when its session ends; `wake_lock` keeps it from waking workers
that are being closed. While the slot table is touched the state is INCONSISTENT. A session that finds it so starts over:
workers are cleared, the slot table is made anew, and what was not received yet is posted again. Loading is idempotent, so that
this costs time and nothing else.
"""

from __future__ import annotations

from enum import Enum

from ringload.errors import AllSlotsLentError, LoaderClosedError, RingloadError, StallError
from ringload.system.interrupts import new_lock, new_rlock
from ringload.workers.supervisor import UnkillableError

FORKED_TEXT = "this process is a fork of the one that made the loader; make a loader of its own here"


class State(Enum):
    """See the module's text."""

    NEW = "new"
    OPEN = "open"
    INCONSISTENT = "inconsistent"
    CLOSING = "closing"
    CLOSED = "closed"
    FORKED = "forked"


class Lifecycle:
    """The state of one engine, its locks, and the reason of its end."""

    def __init__(self) -> None:
        self.state = State.NEW
        self.close_requested = False
        self.lock = new_lock()  # one thread at a time is inside
        self.wake_lock = new_rlock()  # held while workers are woken from outside
        self._reason = ""  # what closed it, if no user did; the error itself would keep the loader alive by its traceback
        self.untold: RingloadError | None = None  # the error, until a call has raised it

    @property
    def is_closed(self) -> bool:
        """Whether workers have been closed, or are being closed now."""
        return self.state in (State.CLOSING, State.CLOSED, State.FORKED)

    def refuse(self) -> None:
        """Raise what tells that it is closed."""
        error, self.untold = self.untold, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        raise LoaderClosedError(FORKED_TEXT if self.state is State.FORKED else f"the loader is closed{self._reason}")

    def fail(self, error: BaseException) -> None:
        """A session ends with an error. LoaderClosedError, StallError and AllSlotsLentError are raised while the slot table is
        consistent, as is a warning that the user has made an error. After any other error workers cannot go on. After an
        interruption nothing is known: the state stays INCONSISTENT."""
        if isinstance(error, LoaderClosedError | StallError | AllSlotsLentError) and not isinstance(error, UnkillableError):
            self.state = State.OPEN
        elif isinstance(error, Warning) and self.state is State.OPEN:
            pass
        elif isinstance(error, Exception):
            self.close_requested, self._reason = True, f": it ended with {type(error).__name__}: {error}"

    def begin_closing(self) -> None:
        """From here on no other thread wakes workers."""
        with self.wake_lock:
            if self.state is not State.FORKED:
                self.state = State.CLOSING

    def end_closing(self) -> None:
        """Everything is taken down."""
        if self.state is not State.FORKED:
            self.state = State.CLOSED

    def fork(self) -> None:
        """In a fork of the trainer: the threads that held the locks are not here to release them."""
        self.lock, self.wake_lock = new_lock(), new_rlock()
        self.close_requested, self.state = True, State.FORKED
