"""The trainer's handle on its producers: start them, hear of their deaths, kill them all and know that they are gone.

The pool knows processes and no batches. Its producers are children of a server (see `server`), which it starts by a fresh
interpreter ("forkserver"; "spawn", where the server starts a fresh one for each producer too), or by forking the trainer
("fork"). It has no thread: who waits for a batch polls `fd` in the same call.

Guarantees:
1. `clear` returns only when no producer is left, by the server's waitpid or by the hang-up of a pipe that all of them hold.
2. `close` leaves no process, descriptor or zombie behind. So does the end of the trainer, by the lifeline.
3. A fork of the trainer never signals the producers, and does not keep them alive: it drops its descriptors.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ringload import forks
from ringload.errors import RingloadError, Stalled
from ringload.shared import Segment, refused
from ringload.workers.deaths import Death, be_taken_first, oom_kills
from ringload.workers.server import PACKET_BYTES, Config, become_server
from ringload.workers.worker import Job, Start, message_of

StartMethod = Literal["forkserver", "spawn", "fork"]

END_S = 10.0  # how long a killed process may take to end: more means that the kernel cannot end it (a hung disk, say)
# Producers run beside each other: a pool of threads in each would only get in the others' way.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


class Unending(Stalled):
    """A killed process does not end: it may write to the ring at any time, so that this must not be used again."""


@dataclass
class Event:
    """What the server has told since it was last asked."""

    died: list[Death]
    n_reserved: int | None = None
    short: str = ""
    server_died: bool = False


class Pool:
    """Owns the server's process and the descriptors that tie it to the trainer."""

    def __init__(self, job: Job, segments: list[Segment], method: StartMethod, preload: tuple[str, ...]) -> None:
        """`segments` are those that the job's descriptors refer to; the pool closes them with itself."""
        self._job, self._segments, self._method, self._preload = job, segments, method, preload
        if method != "fork":
            data = np.frombuffer(pickle.dumps(job), np.uint8)
            self._segments = [Segment(0), *segments]
            self._segments[0].write(0, data)
        self._ours: tuple[socket.socket | io.FileIO, ...] = ()  # what ties the server to this process
        self._theirs: tuple[socket.socket | io.FileIO, ...] = ()  # the other ends, until the server has them
        self._pid_of_owner = os.getpid()
        self._server: list[int] = []  # its pid, if there is one: noted in one step with its start, which nothing interrupts
        self._ready = False
        self._n_reserved = 0
        self._n_oom_kills = 0  # there were when the present producers were started
        self._n_clears = 0  # how often `clear` was asked for: an answer that nobody waited for is told from the present one
        self.pids: list[int] = []
        forks.keep(self)

    @property
    def fd(self) -> int:
        """Readable when the server has something to tell, or has died."""
        return self._socket.fileno()

    @property
    def server_pid(self) -> int:
        return self._server[0] if self._server else -1

    def start(self, start: Start, n_reserved: int) -> None:
        """Have producers started, and the slots from `n_reserved` on reserved. Does not wait for either."""
        self._n_reserved = max(self._n_reserved, n_reserved)
        self._n_oom_kills = oom_kills()
        if not self._server:
            try:
                self._start_server()
            except OSError as error:
                raise refused("cannot start the server of the producers", error) from error
        self._send({"start": message_of(start)})

    def events(self) -> Event:
        """What there is to hear, without waiting."""
        event = Event([])
        while self._server:
            try:
                packet = self._socket.recv(PACKET_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                packet = b""
            if not packet:
                event.server_died = True
                break
            self._note(json.loads(packet), event)
        return event

    def clear(self) -> Event:
        """Kill all producers and wait until they are gone. Returns what was heard meanwhile.

        Raises:
            Unending: a process does not end within `END_S`.
        """
        _close(self._theirs)  # or this process, whose start of them was interrupted, would seem to be one of them
        event = Event([], self._n_reserved)  # again, should an interruption have come before this was heeded
        if not self._server:  # one came after its end
            self._close_fds()
            return event
        deadline_s = time.monotonic() + END_S
        self._n_clears += 1
        self._send({"clear": self._n_clears})
        while self._server and not event.server_died:
            if not _readable(self.fd, deadline_s):
                break
            packet = self._recv()
            if not packet:
                event.server_died = True
            elif self._note(json.loads(packet), event):
                self.pids = []
                return event
        self._end_server(kill=True)
        return event

    def renew(self, job: Job) -> None:
        """After `clear`: what is started next does another job, in the same segments and with the same descriptors; all slots
        of its ring are reserved. A server that was forked has the old job, so there will be a new one."""
        self._job = job
        self._n_reserved = job.layout.n_slots
        if self._method == "fork":
            self._end_server(kill=True)
        else:
            self._segments[0].replace(np.frombuffer(pickle.dumps(job), np.uint8))

    def close(self) -> None:
        """End all processes, within milliseconds. Again is nothing; in a fork of the trainer too."""
        try:
            if os.getpid() != self._pid_of_owner:
                self.drop()
            elif self._server:
                self._send({"exit": True})  # so that the server reaps its producers: not every container has an init
                self._end_server(kill=False)
            else:
                self._close_fds()  # an interruption came just before that
        finally:
            for segment in self._segments:
                segment.close()

    def drop(self) -> None:
        """In a fork of the trainer: forget the producers, which belong to the parent."""
        self._server = []
        self._close_fds()

    def _note(self, message: dict[str, Any], event: Event) -> bool:
        """Enter a message of the server into `event`. True: it was the answer to `clear`."""
        if "ready" in message:
            self._ready = True
        elif "started" in message:
            self.pids = message["started"]
        elif "reserved" in message:
            event.n_reserved = self._n_reserved = min(message["reserved"], self._job.layout.n_slots)  # of another, perhaps
        elif "short" in message:
            event.short = message["short"]
        if "died" in message:
            hungry = not 0 <= self._n_oom_kills == oom_kills()
            event.died += [replace(Death(*one), hungry=hungry) for one in message["died"]]
        return message.get("cleared") == self._n_clears

    def _start_server(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lifeline_out, lifeline_in = _pipe()
        self._alive, alive_in = _pipe()
        self._ours, self._theirs = (self._socket, lifeline_in, self._alive), (theirs, lifeline_out, alive_in)
        layout = self._job.layout
        config = Config(
            socket=theirs.fileno(),
            lifeline=lifeline_out.fileno(),
            alive=alive_in.fileno(),
            ring=self._job.ring_fd,
            job=self._segments[0].fd,
            others=(*astuple(self._job.channel), *(segment.fd for segment in self._segments[1:])),
            spawn=self._method == "spawn",
            preload=self._preload,
            slots_start=layout.slots_start,
            slot_bytes=layout.slot_bytes,
            n_reserved=self._n_reserved,
            n_slots=layout.n_slots,
        )
        self._ready = False
        try:
            if self._method == "fork":
                self._fork_server(config)
            else:
                self._exec_server(config)
            be_taken_first(self.server_pid)  # from here, as it takes memory before its first line; its producers inherit it
        finally:  # what was interrupted is ended by `close`
            _close(self._theirs)

    def _exec_server(self, config: Config) -> None:
        code = "import sys; sys.path[:] = sys.argv[2:]; from ringload.workers.server import main; main()"
        path = [os.path.abspath(entry) for entry in sys.path]
        # The descriptors that it is to have are copied and copied back, without their flag: dup2(fd, fd) takes glibc 2.29.
        spare = 0 if 0 not in config.fds else next(fd for fd in count(3) if fd not in config.fds)  # 0, if stdin was closed
        kept = [(os.POSIX_SPAWN_DUP2, *pair) for fd in config.fds for pair in ((fd, spare), (spare, fd))]
        end = (os.POSIX_SPAWN_CLOSE, spare) if spare else (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        spawn = partial(os.posix_spawn, file_actions=[*kept, end], setsid=True, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
        arguments = [sys.executable, "-c", code, json.dumps(asdict(config)), *path]
        environment = {"PYTHONHASHSEED": "0", **os.environ, **ONE_THREAD}
        self._server.extend(map(spawn, [sys.executable], [arguments], [environment]))  # Popen may be interrupted half-way

    def _fork_server(self, config: Config) -> None:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # none, where they were closed
            stream.flush()  # or what they hold would be written twice
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # not for a child that has yet to leave the group
            forks.fork_for(self, self._server)
        finally:
            if self._server == [0]:
                self._be_server(config, mask)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _be_server(self, config: Config, mask: set[int]) -> None:
        """In the child. Does not return."""
        try:
            os.setsid()
            _discard_interruption()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _close(self._ours)  # this process must not keep its own lifeline open
            kept, self._theirs = self._theirs, ()  # they are its own now: `drop` in its producers must close none of them
            become_server(config, self._job)
            del kept
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _end_server(self, kill: bool) -> None:
        """Wait until the server and all producers are gone; kill them first, or when they take too long."""
        if not self._server:
            return
        (server,) = self._server
        _close(self._theirs)  # as in `clear`
        alive = self._alive.fileno()
        if not _hung_up(alive, time.monotonic() + (0.0 if kill else 1.0)):
            # The server was not reaped, so its number, which is also its group's, belongs to nobody else.
            with suppress(ProcessLookupError):  # the user's code waits for any child, and no producer is left
                os.killpg(server, signal.SIGKILL)
        gone = _hung_up(alive, time.monotonic() + END_S)
        pids = self.pids
        code = _exit_code(server, 0 if gone else os.WNOHANG)  # it may be the one that hangs
        self.pids, self._server = [], []  # if an interruption comes before, the next one does it again
        self._close_fds()
        if not gone:
            pids = [pid for pid in (server, *pids) if Path(f"/proc/{pid}/exe").exists()]
            raise Unending(
                f"processes {pids} have not ended {END_S:g} s after SIGKILL: they hang in the kernel, perhaps in I/O"
            )
        if kill and not self._ready and code >= 0:  # by a signal: as any other death, it may be made good
            raise RingloadError(
                f"the server of the producers ended at its start (exit code {code}); what it said is on stderr. "
                f"It runs {sys.executable}"
            )

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._socket.send(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server died; who reads its socket next learns of it

    def _recv(self) -> bytes:
        try:
            return self._socket.recv(PACKET_BYTES)
        except ConnectionResetError:
            return b""

    def _close_fds(self) -> None:
        _close(self._ours + self._theirs)


def _exit_code(pid: int, options: int) -> int:
    """Wait for a process of this one's; what it ended with, -signal or an exit status."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, options)[1])
    except ChildProcessError:
        return 0  # the user's code waits for any child


def _discard_interruption() -> None:
    """A SIGINT that waits behind the mask was sent to the group that this process has left."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, handler if handler is not None else signal.SIG_DFL)  # None: not one of Python's


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    """A pipe, whose ends close themselves where an interruption leaves them to nobody, and are never closed twice."""
    out, into = os.pipe2(os.O_CLOEXEC)
    return io.FileIO(out), io.FileIO(into, "w")


def _close(ends: tuple[socket.socket | io.FileIO, ...]) -> None:
    for end in ends:
        end.close()


def _readable(fd: int, deadline_s: float) -> bool:
    wait = select.poll()
    wait.register(fd, select.POLLIN)
    return bool(wait.poll(max(0.0, deadline_s - time.monotonic()) * 1000))


def _hung_up(fd: int, deadline_s: float) -> bool:
    """Wait until the last write end of a pipe is closed; False if that takes until the deadline."""
    return _readable(fd, deadline_s)  # nobody ever writes to it: what makes it readable is the hang-up
