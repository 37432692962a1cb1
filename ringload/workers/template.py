"""A template: a clean process that has imported what workers need, and forks a fork server for each loader that asks.

It gets a request as one packet on a socket: the server's `Config` as JSON, and with it (SCM_RIGHTS) the trainer's stdout and
stderr, the page in which the server's pid is noted, and the descriptors that the config names, in its order.

The trainer has to know the server's pid, whoever is killed when, and has to reap it: so the server is made the trainer's child
(CLONE_PARENT), and the kernel itself notes its pid, in a page that the trainer maps, before the server runs
(CLONE_PARENT_SETTID). No function of the C library does that, so the system call is made as it is, with one thread. What the C
library does at a fork beside that (locks, the number of the thread) it does when the server forks the workers.

A request may be taken back: there is one byte in the lifeline's pipe, and only who reads it, the template or the trainer, may
go on. The `alive` pipe of a request hangs up when nobody is left who has or could fork that server: neither it and its workers,
nor this process, nor the packet on its way.

What is imported here is in all forks. That is safe for a module that only defines things. One that starts a thread or opens a
descriptor is found out by this: then the template begins anew without that module, which workers then import themselves.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import mmap
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from ringload.packing.unpack import note_shared_imports
from ringload.system.segment import PAGE_BYTES, anonymous_bytes, refused
from ringload.workers.fork_server import Config, arm_lifeline, become_server, close_all_but, config_of
from ringload.workers.worker import be_called

CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine, 0) if sys.maxsize > 1 << 32 else 0  # the system call's number
CLONE_PARENT, CLONE_PARENT_SETTID = 0x8000, 0x100000  # of sched.h
MAX_FDS = 253  # in one packet (SCM_MAX_FD of the kernel)
PACKET_BYTES = 1 << 18
UNUSABLE = 77  # exit code: threads that ringload's own modules, or what the interpreter starts with, have started


def main() -> None:
    """The entry: `argv` is (what, descriptors and modules as JSON, *sys.path)."""
    told = json.loads(sys.argv[1])
    requests, lifeline = told["fds"]
    close_all_but({0, 1, 2, requests, lifeline})
    arm_lifeline(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    be_called("ringload:templ")  # the kernel keeps 15 characters
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # what it is sent are more; a server sets its own limit
    imported_bytes = _import(told)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):  # it lives longer than who may read what the trainer's stdout is now
        os.dup2(null, fd)
    os.close(null)
    gc.collect()
    gc.freeze()  # so that collections in workers copy none of this
    _serve(socket.socket(fileno=requests), lifeline, imported_bytes)


def _import(told: dict[str, Any]) -> int:
    """Returns what the modules take that are not ringload's."""
    before, taken_bytes = _state(), 0
    # What may have to be left out comes before what takes long.
    for name in sorted(told["modules"], key=lambda name: name.partition(".")[0] in ("ringload", "torch")):
        if name.partition(".")[0] == "ringload":
            importlib.import_module(name)
            if _state() != before:
                os._exit(UNUSABLE)
            continue
        before_bytes = anonymous_bytes()
        with suppress(BaseException):  # workers say it, if they need the module
            importlib.import_module(name)
        if _state() != before:
            told["modules"].remove(name)
            for fd in told["fds"]:
                os.set_inheritable(fd, True)
            arguments = [json.dumps(told) if one == sys.argv[1] else one for one in sys.orig_argv[1:]]
            os.execv(sys.executable, [sys.executable, *arguments])  # which ends the other threads
        taken_bytes += anonymous_bytes() - before_bytes
    return taken_bytes


def _state() -> tuple[int, list[str]]:
    """How many threads there are, and which descriptors."""
    return len(os.listdir("/proc/self/task")), os.listdir("/proc/self/fd")  # listing has one of its own each time


def _serve(requests: socket.socket, lifeline: int, imported_bytes: int) -> None:
    """Until the trainer closes its end."""
    while True:
        data, ancillary, _, _ = requests.recvmsg(PACKET_BYTES, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
        if not data:
            return
        fds = [fd for _, _, packed in ancillary for fd in memoryview(packed).cast("i")]
        if len(os.listdir("/proc/self/task")) != 1:
            os._exit(UNUSABLE)
        message = json.loads(data)
        config = config_of(message["config"])
        try:
            if len(fds) == 3 + len(config.fds):
                _fork(config, message["environment"], fds, (requests.fileno(), lifeline), imported_bytes)
        finally:  # of this process alone: a server does not come back
            for fd in fds:
                os.close(fd)


def _fork(config: Config, environment: dict[str, str | None], fds: list[int], own: tuple[int, int], n_bytes: int) -> None:
    at = dict(zip(config.fds, fds[3:], strict=True))
    try:
        if not os.read(at[config.lifeline], 1):
            return  # the trainer is gone
    except BlockingIOError:
        return  # it was taken back
    error = _clone(fds[2])
    if error is None:
        status = 1
        try:
            _settle(at, fds, own)
            for name, value in environment.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            note_shared_imports(n_bytes, config.n_workers)
            become_server(config)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    elif error:
        said = str(refused("the fork server cannot be started", OSError(error, os.strerror(error))))
        with suppress(OSError), socket.socket(fileno=os.dup(at[config.socket])) as theirs:
            theirs.send(json.dumps({"died": [[-1, -1, 0, said]]}).encode(), socket.MSG_NOSIGNAL)


def _clone(note_fd: int) -> int | None:
    """Fork a child of the trainer. None in the child; here an errno, or 0."""
    with mmap.mmap(note_fd, PAGE_BYTES) as page:
        note = ctypes.c_int.from_buffer(page)
        note.value = 0  # so that its page is there
        syscall = ctypes.PyDLL(None, use_errno=True).syscall  # which keeps the lock of the interpreter, as os.fork does
        syscall.argtypes, syscall.restype = [ctypes.c_long] * 6, ctypes.c_long
        arguments = CLONE, CLONE_PARENT | CLONE_PARENT_SETTID | signal.SIGCHLD, 0, ctypes.addressof(note), 0, 0
        ctypes.pythonapi.PyOS_BeforeFork()
        pid = syscall(*arguments)
        if pid == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            del note
            return None
        error = ctypes.get_errno()
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        del note
    return error if pid < 0 else 0


def _settle(at: dict[int, int], fds: list[int], own: tuple[int, int]) -> None:
    """In the server: lead a session, and have the descriptors under the numbers that the config names, and no others."""
    os.setsid()
    above = max(*at, *fds, *own) + 1
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for number, fd in ({1: fds[0], 2: fds[1]} | at).items()}
    for fd in (*fds, *own):
        os.close(fd)
    for number, fd in moved.items():
        os.dup2(fd, number, inheritable=number < 3)
        os.close(fd)
