"""The trainer's handle on its workers: start them, hear of their deaths, kill them all and know that they are gone.

The pool knows processes and no batches. Its workers are children of a server (see `fork_server`), which it starts by a fresh
interpreter ("forkserver"; "spawn", where the server starts a fresh one for each worker too), or by forking the trainer
("fork"). It has no thread: who waits for a batch polls `fd` in the same call.

Guarantees:
1. `clear` returns only when no worker is left, by the server's waitpid or by the hang-up of a pipe that all of them hold.
2. `close` leaves no process, descriptor or zombie behind. So does the end of the trainer, by the lifeline.
3. A fork of the trainer never signals the workers, and does not keep them alive: it drops its descriptors.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ringload.errors import RingloadError, StallError
from ringload.protocols import Event, Owner
from ringload.system import forks
from ringload.system.deaths import Death, be_taken_first, oom_kills
from ringload.system.resource_tracker import tracker_fd
from ringload.system.segment import Segment, refused
from ringload.workers.environment import Surroundings
from ringload.workers.fork_server import PACKET_BYTES, Config, become_server
from ringload.workers.worker import Start, WorkerJob, message_of, written

StartMethod = Literal["forkserver", "spawn", "fork"]

END_S = 10.0  # how long a killed process may take to end: more means that the kernel cannot end it (a hung disk, say)
# Workers run beside each other: a pool of threads in each would only get in the others' way.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


class UnkillableError(StallError):
    """A killed process does not end: it may write to the ring at any time, so that this must not be used again."""


class WorkerSupervisor:
    """Owns the server's process and the descriptors that tie it to the trainer."""

    def __init__(self, job: WorkerJob, owners: Sequence[Owner], method: StartMethod, preload: tuple[str, ...]) -> None:
        """`owners` are of the descriptors that the job refers to, that of the ring first; the pool closes them with itself."""
        self._job, self._owners, self._method, self._preload = job, owners, method, preload
        self._written = Segment(0)  # the job, for servers that are not forked
        if method != "fork":
            self._write(job)
        self._ours: tuple[socket.socket | io.FileIO, ...] = ()  # what ties the server to this process
        self._theirs: tuple[socket.socket | io.FileIO, ...] = ()  # the other ends, until the server has them
        self._pid_of_owner = os.getpid()
        self._surroundings = Surroundings.of_this_process()
        self._server: list[int] = []  # its pid, if there is one: noted in one step with its start, which nothing interrupts
        self._ready = False
        self._n_reserved = 0
        self._goal: int | None = None
        self._n_oom_kills = 0  # there were when the present workers were started
        self._n_clears = 0  # how often `clear` was asked for: an answer that nobody waited for is told from the present one
        self._may_run = False  # whether workers may have been started since the last `clear`
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
        """Have workers started, and the slots from `n_reserved` on reserved. Does not wait for either."""
        self._n_reserved = max(self._n_reserved, n_reserved)
        self._n_oom_kills = oom_kills()
        self._may_run = True
        if not self._server:
            try:
                self._start_server()
            except OSError as error:
                raise refused("cannot start the fork server", error) from error
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
        """Kill all workers and wait until they are gone. Returns what was heard meanwhile.

        Raises:
            UnkillableError: a process does not end within `END_S`.
        """
        _close(self._theirs)  # or this process, whose start of them was interrupted, would seem to be one of them
        event = Event([], self._n_reserved, self._goal)  # again, should an interruption have come before this was heeded
        if not self._server:  # one came after its end
            self._close_fds()
            return event
        if not self._may_run:  # the interruption of a reset came after its `clear`
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
                self.pids, self._may_run = [], False
                return event
        self._end_server(kill=True)
        return event

    def renew(self, job: WorkerJob) -> None:
        """After `clear`: what is started next does another job, in the same segments and with the same descriptors; all slots
        of its ring are reserved. A server that was forked has the old job, so there will be a new one."""
        self._job = job
        self._n_reserved, self._goal = job.layout.n_slots, None
        if self._method == "fork":
            self._end_server(kill=True)
        else:
            self._write(job)

    def renew_source(self, source: Any, setup: Callable[[], Any] | None, owners: Sequence[Owner]) -> None:
        """After `clear`: what is started next has another source (see `Job`), in the same ring. `owners` are those of its
        descriptors, which a server of the one before has not: there will be a new one."""
        self._end_server(kill=True)
        ring, *before = self._owners
        self._owners = [ring, *owners]
        for owner in before:
            owner.close()
        job = self._job.of_source(source, setup=setup)
        if self._method == "fork":
            self._job = job
        else:
            self._write(job)

    def _write(self, job: WorkerJob) -> None:
        """For servers that are not forked; then this process need not keep the packed source."""
        self._written.replace(np.frombuffer(written(job), np.uint8))
        self._job = job.of_source(None)

    def close(self) -> None:
        """End all processes, within milliseconds. Again is nothing; in a fork of the trainer too."""
        try:
            if os.getpid() != self._pid_of_owner:
                self.drop()
            elif self._server:
                self._send({"exit": True})  # so that the server reaps its workers: not every container has an init
                self._end_server(kill=False)
            else:
                self._close_fds()  # an interruption came just before that
        finally:
            for owner in (self._written, *self._owners):
                owner.close()

    def drop(self) -> None:
        """In a fork of the trainer: forget the workers, which belong to the parent."""
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
        elif "goal" in message:
            event.goal = self._goal = min(message["goal"], self._job.layout.n_slots)
            event.short = message.get("short", "")
        if "died" in message:
            maybe_oom = not 0 <= self._n_oom_kills == oom_kills()
            event.died += [replace(Death(*one), maybe_oom=maybe_oom) for one in message["died"]]
        return message.get("cleared") == self._n_clears

    def _start_server(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lifeline_out, lifeline_in = _pipe()
        self._alive, alive_in = _pipe()
        self._ours, self._theirs = (self._socket, lifeline_in, self._alive), (theirs, lifeline_out, alive_in)
        layout, as_it_was = self._job.layout, self._surroundings
        config = Config(
            socket=theirs.fileno(),
            lifeline=lifeline_out.fileno(),
            alive=alive_in.fileno(),
            ring=self._job.ring_fd,
            job=self._written.fd,
            others=(*astuple(self._job.channel), *(owner.fd for owner in self._owners if owner.fd != self._job.ring_fd)),
            spawn=self._method == "spawn",
            preload=self._preload,
            slots_start=layout.slots_start,
            slot_bytes=layout.slot_bytes,
            n_reserved=self._n_reserved,
            n_slots=layout.n_slots,
            goal=self._goal,
            n_workers=layout.n_workers,
            own_bytes=self._job.room.own_bytes,
            bytes_per_slot=self._job.room.slot_bytes,
            directory=as_it_was.directory,
            umask=as_it_was.umask,
            cpus=as_it_was.cpus,
            limits=as_it_was.limits,
            options=as_it_was.options,
            tracker=tracker_fd(),
        )
        self._ready = False
        try:
            if self._method == "fork":
                self._fork_server(config)
            else:
                self._exec_server(config)
            be_taken_first(self.server_pid)  # from here, as it takes memory before its first line; its workers inherit it
        finally:  # what was interrupted is ended by `close`
            _close(self._theirs)

    def _exec_server(self, config: Config) -> None:
        code = "import sys; sys.path[:] = sys.argv[2:]; from ringload.workers.fork_server import main; main()"
        # The descriptors that it is to have are copied and copied back, without their flag: dup2(fd, fd) takes glibc 2.29.
        spare = 0 if 0 not in config.fds else next(fd for fd in count(3) if fd not in config.fds)  # 0, if stdin was closed
        kept = [(os.POSIX_SPAWN_DUP2, *pair) for fd in config.fds for pair in ((fd, spare), (spare, fd))]
        end = (os.POSIX_SPAWN_CLOSE, spare) if spare else (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        spawn = partial(os.posix_spawn, file_actions=[*kept, end], setsid=True, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
        as_it_was = self._surroundings
        arguments = [sys.executable, *as_it_was.options, "-c", code, json.dumps(asdict(config)), *as_it_was.path]
        environment = {"PYTHONHASHSEED": "0", **as_it_was.environment, **ONE_THREAD}
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
            os.environ.clear()
            os.environ.update(self._surroundings.environment)
            sys.path[:] = self._surroundings.path
            kept, self._theirs = self._theirs, ()  # they are its own now: `drop` in its workers must close none of them
            become_server(config, self._job)
            del kept
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _end_server(self, kill: bool) -> None:
        """Wait until the server and all workers are gone; kill them first, or when they take too long."""
        if not self._server:
            return
        (server,) = self._server
        _close(self._theirs)  # as in `clear`
        alive = self._alive.fileno()
        if not _hung_up(alive, time.monotonic() + (0.0 if kill else 1.0)):
            # The server was not reaped, so its number, which is also its group's, belongs to nobody else.
            with suppress(ProcessLookupError):  # the user's code waits for any child, and no worker is left
                os.killpg(server, signal.SIGKILL)
        gone = _hung_up(alive, time.monotonic() + END_S)
        pids = self.pids
        code = _exit_code(server, 0 if gone else os.WNOHANG)  # it may be the one that hangs
        self.pids, self._server = [], []  # if an interruption comes before, the next one does it again
        self._close_fds()
        if not gone:
            pids = [pid for pid in (server, *pids) if Path(f"/proc/{pid}/exe").exists()]
            raise UnkillableError(
                f"processes {pids} have not ended {END_S:g} s after SIGKILL: they hang in the kernel, perhaps in I/O"
            )
        if kill and not self._ready and code >= 0:  # by a signal: as any other death, it may be made good
            raise RingloadError(
                f"the fork server ended at its start (exit code {code}); what it said is on stderr. It runs {sys.executable}"
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
