"""The server: a clean process that forks the producers, watches them, and reserves the ring's memory.

Why there is one: forking the trainer would copy locks that its threads hold (TensorFlow and torch start many), and a fresh
interpreter for each producer costs 100 ms and more. The server is fresh, has one thread, has imported numpy and the
decoders, and forks a producer in a few milliseconds; so a death costs milliseconds. It knows nothing of batches.

How all this ends: the server leads a session and process group of its own, so that Ctrl-C does not reach it. On the read
end of a pipe, the lifeline, it has set O_ASYNC, F_SETOWN to its group, and F_SETSIG to SIGKILL. The trainer alone has the
write end. When that closes, by close() or because the trainer ended in any way, the kernel sends SIGKILL to the whole group:
1 ms, whatever its members are doing, also when they are stopped (fcntl(2), "Managing signals").

Every member holds the write end of a second pipe, `alive`. When the trainer finds it hung up, no member is left, and so
nobody who could still write to the ring: a process's memory is given up before its descriptors are (do_exit in the kernel).

Messages are JSON, one a packet, on a socket pair:
    trainer: {"start": {n_producers, killers, careful}} | {"clear": n} | {"exit": true}
    server:  {"ready": pid} | {"started": [pid, ...]} | {"died": [[producer, pid, status], ...]} | {"cleared": n,
              "reserved": slots} | {"reserved": slots} | {"short": reason}
"""

from __future__ import annotations

import fcntl
import importlib
import io
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ringload.errors import BudgetError
from ringload.ring.limits import require
from ringload.shared import refused, reserve, zero
from ringload.workers import worker

RESERVE_BYTES = 16 << 20  # reserved at a time: 5 ms, after which messages and deaths are looked at
START_S, PAUSES = 1.0, 4  # how long reserving goes slowly: with pauses so many times as long, by a fifth of a CPU
PACKET_BYTES = 1 << 17  # what a start may say of killers: see `suspects.TOLD`


@dataclass(frozen=True)
class Config:
    """What the trainer tells its server on the command line: descriptors, and what to import and to reserve."""

    socket: int
    lifeline: int
    alive: int
    ring: int
    job: int
    others: tuple[int, ...]  # descriptors that producers need under the same numbers
    spawn: bool
    preload: tuple[str, ...]
    slots_start: int
    slot_bytes: int
    n_reserved: int
    n_slots: int

    @property
    def for_producers(self) -> tuple[int, ...]:
        return (self.lifeline, self.alive, self.ring, self.job, *self.others)

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.socket, *self.for_producers)


class Server:
    """Owns the producers: it is their parent, and reaps each of them."""

    def __init__(self, config: Config, job: worker.Job | None = None) -> None:
        self._config = config
        self._job = job
        self._socket = socket.socket(fileno=config.socket)
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> (producer, pid)
        self._n_reserved = config.n_reserved
        self._n_reported = config.n_reserved
        self._begin_s = time.monotonic()
        self._took_s = 0.005  # the last step of reserving
        self._poll = select.poll()
        self._poll.register(config.socket, select.POLLIN)

    def serve(self) -> None:
        """Until the trainer says so or is gone."""
        self._send({"ready": os.getpid()})
        while True:
            busy = self._n_reserved < self._config.n_slots
            events = dict(self._poll.poll(self._pause_ms() if busy else None))
            if any(fd in events for fd in self._children):
                self._send({"died": self._reap(fd for fd in list(self._children) if fd in events)})
            if self._config.socket in events and not self._obey(self._recv()):
                return
            if busy:
                begin_s = time.monotonic()
                self._reserve_some()
                self._took_s = time.monotonic() - begin_s

    def _recv(self) -> bytes:
        try:
            return self._socket.recv(PACKET_BYTES)
        except ConnectionResetError:  # the trainer's end is closed, with something in it that was not read
            return b""

    def _pause_ms(self) -> float:
        """At first, mostly pause: the producers need the CPUs for the first batch."""
        left_s = self._begin_s + START_S - time.monotonic()
        return max(0.0, min(PAUSES * self._took_s, left_s)) * 1000

    def _obey(self, packet: bytes) -> bool:
        """Do what a message says. False: it was the last."""
        message: dict[str, Any] = json.loads(packet) if packet else {"exit": True}  # nothing: the trainer's end is closed
        if "start" in message:
            self._start(message["start"])
        else:
            for pidfd in self._children:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._reap(list(self._children))
            if "exit" in message:
                return False
            self._send({"cleared": message["clear"], "reserved": self._n_reported})  # the trainer may have lost that message
        return True

    def _start(self, message: dict[str, Any]) -> None:
        start = worker.start_of(message)
        for producer in range(start.n_producers):
            try:
                self._start_one(message, start, producer)
            except OSError as error:  # told as a death, so that what passes is made good
                self._send({"died": [[-1, -1, 0, str(refused(f"producer {producer} cannot be started", error))]]})
                return
        self._send({"started": [pid for _, pid in self._children.values()]})

    def _start_one(self, message: dict[str, Any], start: worker.Start, producer: int) -> None:
        pid = self._spawn(message, producer) if self._config.spawn else self._fork(start, producer)
        try:
            pidfd = os.pidfd_open(pid)  # no race: nobody but this process can reap it
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._children[pidfd] = (producer, pid)
        self._poll.register(pidfd, select.POLLIN)

    def _fork(self, start: worker.Start, producer: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            for pidfd in self._children:
                os.close(pidfd)
            self._socket.close()
            job = self._job if self._job is not None else worker.read_job(self._config.job)
            worker.run(job, start, producer)
        except SystemExit as end:  # reported already, or sys.exit in a user's function
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:  # KeyboardInterrupt, GeneratorExit from a user's function: its traceback, then a death
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def _spawn(self, message: dict[str, Any], producer: int) -> int:
        for fd in self._config.for_producers:
            os.set_inheritable(fd, True)
        code = "import sys; sys.path[:] = sys.argv[4:]; from ringload.workers.worker import main; main()"
        arguments = [json.dumps(message), str(producer), str(self._config.job), *sys.path]
        try:
            return os.posix_spawn(sys.executable, [sys.executable, "-c", code, *arguments], os.environ)
        finally:
            for fd in self._config.for_producers:
                os.set_inheritable(fd, False)

    def _reap(self, pidfds: Any) -> list[tuple[int, int, int]]:
        """Wait for these producers' ends: [(producer, pid, wait status)]."""
        dead = []
        for pidfd in pidfds:
            producer, pid = self._children.pop(pidfd)
            _, status = os.waitpid(pid, 0)
            self._poll.unregister(pidfd)
            os.close(pidfd)
            dead.append((producer, pid, status))
        return dead

    def _reserve_some(self) -> None:
        """Reserve the next slots; report when they have doubled, and at the end: each report wakes the trainer."""
        config = self._config
        first = self._n_reserved
        stop = min(config.n_slots, first + max(1, RESERVE_BYTES // config.slot_bytes))
        start = config.slots_start + first * config.slot_bytes
        try:
            require((stop - first) * config.slot_bytes)
            reserve(config.ring, start, start + (stop - first) * config.slot_bytes)
            zero(config.ring, start, start + (stop - first) * config.slot_bytes)
        except BudgetError as error:
            self._send({"reserved": first})
            self._send({"short": str(error)})
            self._n_reported, self._n_reserved = first, config.n_slots  # nothing more is tried
            return
        self._n_reserved = stop
        if stop == config.n_slots or stop >= 2 * self._n_reported:
            self._send({"reserved": stop})
            self._n_reported = stop

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._socket.send(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the trainer is gone; so is this process in a moment


def arm_lifeline(fd: int) -> None:
    """Have the kernel kill this process group when the last write end of pipe `fd` is closed."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([fd], [], [], 0)[0]:  # it closed before it was armed
        os._exit(1)


def become_server(config: Config, job: worker.Job | None = None) -> None:
    """Serve in this process, which leads its session."""
    arm_lifeline(config.lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker.be_called("ringload:server")
    for fd in config.fds:
        os.set_inheritable(fd, False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a producer ends by SIGKILL: what it printed shall be out by then
    for module in config.preload:
        importlib.import_module(module)
    Server(config, job).serve()


def main() -> None:
    """The entry of a fresh server: `argv` is (what, config as JSON, *sys.path)."""
    values = json.loads(sys.argv[1])
    config = Config(**{**values, "others": tuple(values["others"]), "preload": tuple(values["preload"])})
    _close_all_but({0, 1, 2, *config.fds})
    become_server(config)


def _close_all_but(kept: set[int]) -> None:
    """Close what native code of the trainer's has opened to be inherited: this process outlives who else uses it."""
    for last, following in pairwise([*sorted(kept), os.sysconf("SC_OPEN_MAX")]):
        if last + 1 < following:  # closerange(0, 0) closes all there are (CPython 3.11)
            os.closerange(last + 1, following)
