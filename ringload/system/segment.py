"""A segment: memory that several processes map, and that no name, file or lock outlives.

A segment is one memfd, so it needs no room in /dev/shm and is gone with the last process that has it open, however
they end. The name `ringload` shows in /proc/PID/maps alone.

Invariants:
- Bytes are touched only after they were reserved. `posix_fallocate` turns a shortage into an error here; a page that
  tmpfs cannot supply at its first touch would be a SIGBUS, which no Python code survives.
- The mapping stays as long as any array looks into it.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
from contextlib import suppress

import numpy as np

from ringload.errors import BudgetError, ConfigError, RingloadError
from ringload.system.interrupts import FdOwner

PAGE_BYTES = mmap.PAGESIZE
FAULT_AROUND_BYTES = 1 << 16  # what the kernel maps at once when a page is read that exists already
ZEROS = bytes(1 << 20)


def round_up(n_bytes: int, unit: int = PAGE_BYTES) -> int:
    """The least multiple of `unit` that is not below `n_bytes`."""
    return -(-n_bytes // unit) * unit


class Segment(FdOwner):
    """Owns a memfd of `n_bytes`, of which a growing prefix is reserved. Mappings stay valid when it is closed."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self.n_bytes = n_bytes
        self.fd = self._open(os.memfd_create, "ringload", os.MFD_CLOEXEC)
        try:
            self._truncate(n_bytes)
        except BudgetError:
            self.close()
            raise

    def _truncate(self, n_bytes: int) -> None:
        try:
            os.ftruncate(self.fd, n_bytes)
        except OSError as error:  # RLIMIT_FSIZE counts memfds too
            raise BudgetError(
                f"no segment of {n_bytes:,} bytes: {error.strerror}; is RLIMIT_FSIZE (ulimit -f) too low?"
            ) from error

    def reserve(self, start: int, stop: int) -> None:
        """Make bytes `start:stop` the segment's own.

        Raises:
            BudgetError: the system has no memory left for them.
        """
        reserve(self.fd, start, stop)

    def map(self) -> np.ndarray:
        """The whole segment as `(n_bytes,) uint8`, shared with every process that maps it."""
        return map_shared(self.fd, self.n_bytes)

    def write(self, start: int, data: np.ndarray) -> None:
        """Reserve room for the contiguous array `data` at byte `start` and copy it there, without mapping it."""
        self.reserve(start, start + data.nbytes)
        view = data.reshape(-1).view(np.uint8).data
        written = 0
        while written < len(view):  # one pwrite moves at most 2 GiB
            written += os.pwrite(self.fd, view[written : written + (1 << 30)], start + written)

    def resize(self, n_bytes: int) -> None:
        """Give all memory back, and begin anew with `n_bytes`, none of them reserved. Nobody may look into the old ones."""
        self._truncate(0)
        self._truncate(n_bytes)
        self.n_bytes = n_bytes

    def replace(self, data: np.ndarray) -> None:
        """Hold nothing but the contiguous array `data`."""
        self.resize(0)
        self.write(0, data)


def reserve(fd: int, start: int, stop: int) -> None:
    """`Segment.reserve` for a process that has only the descriptor."""
    try:
        os.posix_fallocate(fd, start, stop - start)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
        remedy = "is RLIMIT_FSIZE (ulimit -f) too low?" if error.errno == errno.EFBIG else "lower ram_budget"
        raise BudgetError(f"cannot reserve bytes {start:,} to {stop:,} of shared memory: {error.strerror}; {remedy}") from error


def zero(fd: int, start: int, stop: int) -> None:
    """Write zeros to reserved bytes, so that their pages are there when they are read (see `map_in`)."""
    while start < stop:
        start += os.pwrite(fd, ZEROS[: stop - start], start)


def map_in(array: np.ndarray) -> None:
    """Map the pages of a contiguous array of a segment into this process, before it is written to.

    A first write maps a page, a first read the 16 around it, and those of shared memory may then be written to. In
    microseconds a page: 1.3 by writing, 0.2 by reading; 0.002 where it is mapped (2-core EPYC VM, Linux 6.18, November 2026).
    """
    array.reshape(-1).view(np.uint8)[::FAULT_AROUND_BYTES].max()


def map_shared(fd: int, n_bytes: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> np.ndarray:
    """The first `n_bytes` of a segment as `(n_bytes,) uint8`, by its descriptor."""
    try:
        return np.frombuffer(mmap.mmap(fd, n_bytes, prot=prot), np.uint8)
    except OSError as error:  # RLIMIT_AS, or no address space left
        raise BudgetError(f"cannot map {n_bytes:,} bytes: {error.strerror}; is RLIMIT_AS (ulimit -v) too low?") from error


def anonymous_bytes() -> int:
    """This process's memory that no file backs; 0 where /proc does not tell."""
    with suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0


def refused(what: str, error: OSError) -> ConfigError:
    """The error that says which limit of the system was met when `what` was asked for."""
    if error.errno == errno.EMFILE:
        n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        why = f"this process may have {n_files:,} files open (RLIMIT_NOFILE, ulimit -n): raise that"
    elif error.errno == errno.EAGAIN:
        why = "is there a limit on processes (RLIMIT_NPROC, ulimit -u, or pids.max of a cgroup)? Raise that, or lower workers"
    else:
        why = "the system refuses it"
    return ConfigError(f"{what}: {error.strerror}; {why}")


def said_as_refused(error: OSError) -> Exception:
    """What the system refuses at the start of processes, in ringload's words; ringload's own errors as they are."""
    return error if isinstance(error, RingloadError) else refused("cannot start", error)
