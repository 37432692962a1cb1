"""The server: a clean process that forks the workers, watches them, and reserves the ring's memory.

Why there is one: forking the trainer would copy locks that its threads hold (TensorFlow and torch start many), and a fresh
interpreter for each worker costs 100 ms and more. The server is fresh, or a fork of a process that is (see `template`). It has
one thread, has imported numpy and the decoders, and forks a worker in a few milliseconds; so a death costs milliseconds. It
knows nothing of batches.

How all this ends: the server leads a session and process group of its own, so that Ctrl-C does not reach it. On the read
end of a pipe, the lifeline, it has set O_ASYNC, F_SETOWN to its group, and F_SETSIG to SIGKILL. The trainer alone has the
write end. When that closes, by close() or because the trainer ended in any way, the kernel sends SIGKILL to the whole group:
1 ms, whatever its members are doing, also when they are stopped (fcntl(2), "Managing signals").

Every member holds the write end of a second pipe, `alive`. When the trainer finds it hung up, no member is left, and so
nobody who could still write to the ring: a process's memory is given up before its descriptors are (do_exit in the kernel).

Messages are JSON, one a packet, on a socket pair:
    trainer: {"start": {n_workers, killers, careful, alone}} | {"clear": n} | {"exit": true}
    server:  {"ready": pid} | {"started": [pid, ...]} | {"died": [[worker, pid, status], ...]} | {"cleared": n,
              "reserved": slots} | {"reserved": slots} | {"goal": slots, "short": reason}
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
from ringload.ring.layout import CURRENT_WORK_BYTES
from ringload.ring.plan import Room
from ringload.system.cgroups import require
from ringload.system.resource_tracker import share_tracker
from ringload.system.segment import refused, reserve, zero
from ringload.workers import environment, worker
from ringload.workers.current_work import own_bytes
from ringload.workers.start import Start, start_of

ASK_MS = 20  # how often the claims are read until a worker has its source
RESERVE_BYTES = 16 << 20  # reserved at a time: 5 ms, after which messages and deaths are looked at
START_S, PAUSES = 1.0, 4  # how long reserving goes slowly: with pauses so many times as long, by a fifth of a CPU
PACKET_BYTES = 1 << 17  # what a start may say of killers: see `blame.MAX_KNOWN`


@dataclass(frozen=True)
class Config:
    """What the trainer tells its server as it starts: descriptors, and what to import and to reserve."""

    socket: int
    lifeline: int
    alive: int
    ring: int
    job: int
    others: tuple[int, ...]  # descriptors that workers need under the same numbers
    spawn: bool
    preload: tuple[str, ...]
    slots_start: int
    slot_bytes: int
    n_reserved: int
    n_slots: int
    goal: int | None  # how many will be reserved, if an earlier server has found that out
    n_workers: int
    own_bytes: int  # this and the next: see `plan.Room`
    bytes_per_slot: int
    directory: str | None  # this and what follows: see `environment`
    umask: int
    cpus: tuple[int, ...]
    limits: tuple[int, ...]
    options: tuple[str, ...]
    tracker: int  # see `resource_tracker`

    @property
    def for_workers(self) -> tuple[int, ...]:
        tracker = (self.tracker,) if self.tracker >= 0 else ()
        return (self.lifeline, self.alive, self.ring, self.job, *self.others, *tracker)

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.socket, *self.for_workers)


class ForkServer:
    """Owns the workers: it is their parent, and reaps each of them."""

    def __init__(self, config: Config, job: worker.WorkerJob | None = None) -> None:
        self._config = config
        self._job = job
        self._socket = socket.socket(fileno=config.socket)
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> (worker, pid)
        self._n_reserved = config.n_reserved
        self._n_reported = config.n_reserved
        self._begin_s = time.monotonic()
        self._took_s = 0.005  # the last step of reserving
        self._goal = config.n_reserved if config.goal is None else config.goal  # so many slots are to be reserved
        self._is_known = config.n_reserved == config.n_slots or config.goal is not None
        self._poll = select.poll()
        self._poll.register(config.socket, select.POLLIN)

    def serve(self) -> None:
        """Until the trainer says so or is gone."""
        with self._socket:
            self._send({"ready": os.getpid()})
            self._serve()

    def _serve(self) -> None:
        while True:
            if not self._is_known:
                self._ask_for_goal()
            busy = self._n_reserved < self._goal
            events = dict(self._poll.poll(self._pause_ms() if busy else None if self._is_known else ASK_MS))
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
        """At first, mostly pause: the workers need the CPUs for the first batch."""
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
        start = start_of(message)
        for worker_id in range(start.n_workers):
            try:
                self._start_one(message, start, worker_id)
            except OSError as error:  # told as a death, so that what passes is made good
                self._send({"died": [[-1, -1, 0, str(refused(f"worker {worker_id} cannot be started", error))]]})
                return
        self._send({"started": [pid for _, pid in self._children.values()]})

    def _start_one(self, message: dict[str, Any], start: Start, worker_id: int) -> None:
        pid = self._spawn(message, worker_id) if self._config.spawn else self._fork(start, worker_id)
        try:
            pidfd = os.pidfd_open(pid)  # no race: nobody but this process can reap it
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._children[pidfd] = (worker_id, pid)
        self._poll.register(pidfd, select.POLLIN)

    def _fork(self, start: Start, worker_id: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            for pidfd in self._children:
                os.close(pidfd)
            self._socket.close()
            job = self._job if self._job is not None else worker.read_job(self._config.job)
            worker.run(job, start, worker_id)
        except SystemExit as end:  # reported already, or sys.exit in a user's function
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:  # KeyboardInterrupt, GeneratorExit from a user's function: its traceback, then a death
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def _spawn(self, message: dict[str, Any], worker_id: int) -> int:
        for fd in self._config.for_workers:
            os.set_inheritable(fd, True)
        code = "import sys; sys.path[:] = sys.argv[5:]; from ringload.workers.worker import main; main()"
        arguments = [json.dumps(message), str(worker_id), str(self._config.job), str(self._config.tracker), *sys.path]
        try:
            return os.posix_spawn(sys.executable, [sys.executable, *self._config.options, "-c", code, *arguments], os.environ)
        finally:
            for fd in self._config.for_workers:
                os.set_inheritable(fd, False)

    def _reap(self, pidfds: Any) -> list[tuple[int, int, int]]:
        """Wait for these workers' ends: [(worker, pid, wait status)]."""
        dead = []
        for pidfd in pidfds:
            worker_id, pid = self._children.pop(pidfd)
            _, status = os.waitpid(pid, 0)
            self._poll.unregister(pidfd)
            os.close(pidfd)
            dead.append((worker_id, pid, status))
        return dead

    def _ask_for_goal(self) -> None:
        """Once a worker has its source: slots are given up for what that takes beyond the plan."""
        config = self._config
        taken = own_bytes(os.pread(config.ring, config.n_workers * CURRENT_WORK_BYTES, 0), config.n_workers)
        if taken is None:
            return
        self._is_known = True
        self._goal = max(self._n_reserved, Room(config.own_bytes, config.bytes_per_slot).n_slots(config.n_slots, sum(taken)))
        if self._goal < config.n_slots:
            self._send({"goal": self._goal})

    def _reserve_some(self) -> None:
        """Reserve the next slots; report when they have doubled, and at the end: each report wakes the trainer."""
        config = self._config
        first = self._n_reserved
        stop = min(self._goal, first + max(1, RESERVE_BYTES // config.slot_bytes))
        start = config.slots_start + first * config.slot_bytes
        try:
            require((stop - first) * config.slot_bytes)
            reserve(config.ring, start, start + (stop - first) * config.slot_bytes)
            zero(config.ring, start, start + (stop - first) * config.slot_bytes)
        except BudgetError as error:
            self._send({"reserved": first})
            self._send({"goal": first, "short": str(error)})
            self._n_reported, self._goal = first, first  # nothing more is tried
            return
        self._n_reserved = stop
        if stop == self._goal or stop >= 2 * self._n_reported:
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
    closed = select.poll()  # as everywhere here: select() knows no descriptor from 1,024 on
    closed.register(fd, 0)  # a hang-up is always told
    if closed.poll(0):  # it closed before it was armed
        os._exit(1)


def become_server(config: Config, job: worker.WorkerJob | None = None) -> None:
    """Serve in this process, which leads its session."""
    arm_lifeline(config.lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker.be_called("ringload:server")
    environment.restore(config.directory, config.umask, config.cpus, config.limits)
    for fd in config.fds:
        os.set_inheritable(fd, False)
    share_tracker(config.tracker)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a worker ends by SIGKILL: what it printed shall be out by then
    for module in config.preload:
        importlib.import_module(module)
    ForkServer(config, job).serve()


def main() -> None:
    """The entry of a fresh server: `argv` is (what, config as JSON, *sys.path)."""
    config = config_of(json.loads(sys.argv[1]))
    close_all_but({0, 1, 2, *config.fds})
    become_server(config)


def config_of(values: dict[str, Any]) -> Config:
    """A Config as it comes out of JSON."""
    values = values | {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Config(**values)


def close_all_but(kept: set[int]) -> None:
    """Close what native code of the trainer's has opened to be inherited: this process outlives who else uses it."""
    for last, following in pairwise([*sorted(kept), os.sysconf("SC_OPEN_MAX")]):
        if last + 1 < following:  # closerange(0, 0) closes all there are (CPython 3.11)
            os.closerange(last + 1, following)
