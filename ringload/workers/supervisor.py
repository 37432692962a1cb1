"""The trainer's handle on its workers: start them, hear of their deaths, kill them all and know that they are gone.

The pool knows processes and no batches. Its workers are children of a server (see `fork_server`), which is forked by a process
that the loaders share ("forkserver"; see `templates`), or which the pool starts by a fresh interpreter ("spawn", where the
server starts a fresh one for each worker too), or by forking the trainer ("fork"). It has no thread: who waits for a batch
polls `fd` in the same call.

Guarantees:
1. `clear` returns only when no worker is left, by the server's waitpid or by the hang-up of a pipe that all of them hold.
2. `close` leaves no process, descriptor or zombie behind, but for the template, which is for later loaders, too. So does the
   end of the trainer, by the lifeline; it ends the template as well.
3. A fork of the trainer never signals the workers, and does not keep them alive: it drops its descriptors.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import starmap
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ringload.errors import RingloadError, StallError
from ringload.protocols import Event, Owner
from ringload.system import forks
from ringload.system.deaths import Death, be_taken_first, oom_kills
from ringload.system.resource_tracker import tracker_fd
from ringload.system.segment import PAGE_BYTES, Segment, refused
from ringload.workers import templates
from ringload.workers.environment import Surroundings
from ringload.workers.fork_server import PACKET_BYTES, Config, become_server
from ringload.workers.interpreter import interpreter
from ringload.workers.pipes import End, close, pipe
from ringload.workers.start import Start, message_of
from ringload.workers.worker import WorkerJob, written

StartMethod = Literal["forkserver", "spawn", "fork"]

END_S = 10.0  # how long a killed process may take to end: more means that the kernel cannot end it (a hung disk, say)
ASKED = 0  # in place of the pid of a server that a template was asked for: the kernel notes that pid
PATIENCE_S = 60.0  # how long a template may import: more means that it hangs


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
        self._ours: tuple[End, ...] = ()  # what ties the server to this process
        self._theirs: tuple[End, ...] = ()  # the other ends, until the server has them
        self._pid_of_owner = os.getpid()
        self._surroundings = Surroundings.of_this_process()
        self._server: list[int] = []  # its pid, if there is one: noted in one step with its start, which nothing interrupts
        self._taken_back: list[bytes] = []  # of a server that a template was asked for: what lets the template fork it
        self._pid_page = Segment(PAGE_BYTES if method == "forkserver" else 0)  # the pid of such a server
        self._page: Any = bytes(4)
        if method == "forkserver":
            self._pid_page.reserve(0, PAGE_BYTES)
            self._page = mmap.mmap(self._pid_page.fd, PAGE_BYTES)
            templates.find(self._surroundings, preload)  # so that it is there when the first start needs it
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
        """-1: there is none, or not yet."""
        pid = self._server[0] if self._server else -1
        return pid if pid != ASKED else int.from_bytes(self._page[:4], sys.byteorder) or -1

    @property
    def starting_pid(self) -> int:
        """The process that is to become the server, or is to fork it."""
        return self._template.pid if self._server == [ASKED] and self.server_pid < 0 else self.server_pid

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
        close(self._theirs)  # or this process, whose start of them was interrupted, would seem to be one of them
        event = Event([], self._n_reserved, self._goal)  # again, should an interruption have come before this was heeded
        if not self._server:  # one came after its end
            self._close_fds()
            return event
        if not self._may_run:  # the interruption of a reset came after its `clear`
            return event
        if self._takes_back():  # then there is nobody to answer
            self._end_server(kill=True)
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
            if not self._server:  # or what an interruption cut short is done again, which needs the pid
                self._page = bytes(4)
            for owner in (self._written, self._pid_page, *self._owners):
                owner.close()

    def drop(self) -> None:
        """In a fork of the trainer: forget the workers, which belong to the parent."""
        self._server = []
        self._close_fds()

    def _note(self, message: dict[str, Any], event: Event) -> bool:
        """Enter a message of the server into `event`. True: it was the answer to `clear`."""
        if "ready" in message:
            self._ready = True
            if self._server == [ASKED]:
                self._template.is_proven = True
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
        self._lifeline_out, self._lifeline = pipe()
        self._alive, alive_in = pipe()
        self._ours, self._theirs = (self._socket, self._lifeline, self._alive), (theirs, self._lifeline_out, alive_in)
        layout, as_it_was = self._job.layout, self._surroundings
        config = Config(
            socket=theirs.fileno(),
            lifeline=self._lifeline_out.fileno(),
            alive=alive_in.fileno(),
            ring=self._job.ring_fd,
            job=self._written.fd,
            others=(*self._job.channel.all, *(owner.fd for owner in self._owners if owner.fd != self._job.ring_fd)),
            spawn=self._method == "spawn",
            preload=tuple(name for name in self._preload if name.startswith("ringload.") and self._method != "spawn"),
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
            elif self._method == "spawn" or not self._ask_for_server(config):
                self._exec_server(config)
            be_taken_first(self.server_pid)  # from here, as it takes memory before its first line; its workers inherit it
        finally:  # what was interrupted is ended by `close`
            close(self._theirs)

    def _ask_for_server(self, config: Config) -> bool:
        """Ask a template for it. No answer comes: the kernel notes the server's pid. False: there is no template to ask."""
        template = templates.find(self._surroundings, self._preload) if templates.can_carry(config) else None
        if template is None:
            return False
        self._template, self._asked_s, self._taken_back = template, time.monotonic(), []
        self._page[:4] = bytes(4)
        theirs, lifeline_out, alive_in = self._theirs
        self._ours, self._theirs = (*self._ours, lifeline_out), (theirs, alive_in)  # it stays open here, for `_takes_back`
        os.set_blocking(lifeline_out.fileno(), False)
        os.write(self._lifeline.fileno(), b"1")
        self._server = [ASKED]  # first: what was not sent in the end can be taken back as well
        try:
            template.ask(config, self._pid_page.fd, self._surroundings)
        except OSError:
            self._server = []
        return bool(self._server)

    def _takes_back(self) -> bool:
        """Whether there is a server to come, which then does not come any more."""
        if self._server == [ASKED] and not self._taken_back:
            with suppress(BlockingIOError):
                # Nothing is read where `_end_server` has closed the lifeline: then the template has taken the byte.
                self._taken_back.extend(filter(None, map(os.read, (self._lifeline_out.fileno(),), (1,))))
        return self._server == [ASKED] and bool(self._taken_back)

    def _exec_server(self, config: Config) -> None:
        message = json.dumps(asdict(config))
        start = interpreter("ringload.workers.fork_server", message, config.fds, self._surroundings)
        self._server.extend(starmap(start, ((),)))

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
            close(self._ours)  # this process must not keep its own lifeline open
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
        close(self._theirs)  # as in `clear`
        is_asked, gone = self._server == [ASKED], self._takes_back()
        alive = self._alive.fileno()
        if not gone and not _hung_up(alive, time.monotonic() + (0.0 if kill else 1.0)):
            if is_asked:
                self._lifeline.close()  # which ends one, too, that is being forked at this moment
            # The server was not reaped, so its number, which is also its group's, belongs to nobody else.
            if self.server_pid > 0:
                with suppress(ProcessLookupError):  # the user's code waits for any child, and no worker is left
                    os.killpg(self.server_pid, signal.SIGKILL)
        gone = gone or _hung_up(alive, time.monotonic() + END_S)
        if is_asked and (not gone or (self.server_pid < 0 and time.monotonic() - self._asked_s > PATIENCE_S)):
            self._template.end()  # it hangs
            gone = gone or _hung_up(alive, time.monotonic() + END_S / 2)
        pids, server = self.pids, self.server_pid
        # Who is waited for may be the one that hangs.
        code = self._template.exit_code if server < 0 else _exit_code(server, 0 if gone else os.WNOHANG)
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
        close(self._ours + self._theirs)


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


def _readable(fd: int, deadline_s: float) -> bool:
    wait = select.poll()
    wait.register(fd, select.POLLIN)
    return bool(wait.poll(max(0.0, deadline_s - time.monotonic()) * 1000))


def _hung_up(fd: int, deadline_s: float) -> bool:
    """Wait until the last write end of a pipe is closed; False if that takes until the deadline."""
    return _readable(fd, deadline_s)  # nobody ever writes to it: what makes it readable is the hang-up
