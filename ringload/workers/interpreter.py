"""Starting a fresh interpreter in given surroundings, with given descriptors under the numbers that they have here."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection
from functools import partial
from itertools import count

from ringload.workers.environment import Surroundings

# Workers run beside each other: a pool of threads in each would only get in the others' way.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


def interpreter(module: str, message: str, fds: Collection[int], as_it_was: Surroundings) -> Callable[[], int]:
    """The call that starts an interpreter, which calls `main` of a module, and returns its pid. The caller notes the pid in the
    same step (see `interrupts`): Popen may be interrupted half-way. `argv` is (what, message, *sys.path)."""
    code = f"import sys; sys.path[:] = sys.argv[2:]; from {module} import main; main()"
    # The descriptors that it is to have are copied and copied back, without their flag: dup2(fd, fd) takes glibc 2.29.
    spare = 0 if 0 not in fds else next(fd for fd in count(3) if fd not in fds)  # 0, if stdin was closed
    kept = [(os.POSIX_SPAWN_DUP2, *pair) for fd in fds for pair in ((fd, spare), (spare, fd))]
    end = (os.POSIX_SPAWN_CLOSE, spare) if spare else (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    spawn = partial(os.posix_spawn, file_actions=[*kept, end], setsid=True, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
    arguments = [sys.executable, *as_it_was.options, "-c", code, message, *as_it_was.path]
    environment = {"PYTHONHASHSEED": "0", **as_it_was.environment, **ONE_THREAD}
    return partial(spawn, sys.executable, arguments, environment)
