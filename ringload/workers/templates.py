"""The templates of this process: clean processes that have imported what workers need. A fork server is a fork of one.

A fresh interpreter takes 0.3 s until it has numpy and the decoders, and seconds until it has torch. So each set of modules is
imported once, in a template, which is started when the first loader is made that needs it, and forks a server for that loader
and for each later one (see `template` for how). This module is the trainer's side.

Guarantees:
1. A server has the same state as one that was started by an interpreter of its own: a template is used only by loaders with
   the same interpreter options, environment, `sys.path`, and whatever else a process has from the one that starts it
   (`environment.inherited`). Where there is no such template, and none can be started, an interpreter starts the server.
2. A server is the trainer's child. The death of a template ends no server; the next loader gets another template.
3. Templates end with the trainer, by a lifeline as servers do. A fork of the trainer has none of them.
4. A template that ends before it has forked a server is not replaced: then interpreters start the servers.
"""

from __future__ import annotations

import array
import json
import os
import resource
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import starmap
from operator import itemgetter

from ringload.system import forks
from ringload.system.deaths import be_taken_first
from ringload.system.interrupts import new_rlock
from ringload.workers.environment import Surroundings, inherited
from ringload.workers.fork_server import Config
from ringload.workers.interpreter import interpreter
from ringload.workers.pipes import End, close, pipe
from ringload.workers.template import CLONE, MAX_FDS

MOST = 3  # templates at a time: the one with torch takes 150 MB, and idles
END_S = 1.0  # how long one may take to end when the trainer does
CHANGES_ALWAYS = ("PYTEST_CURRENT_TEST",)  # variables that no import depends on: servers are given their present values


@dataclass(frozen=True)
class Key:
    """What a template has of its own. Loaders with the same share it."""

    options: tuple[str, ...]
    path: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    inherited: tuple[str, ...]
    modules: tuple[str, ...]

    @classmethod
    def of(cls, surroundings: Surroundings, modules: Sequence[str]) -> Key:
        environment = sorted(pair for pair in surroundings.environment.items() if pair[0] not in CHANGES_ALWAYS)
        return cls(surroundings.options, surroundings.path, tuple(environment), surroundings.inherited, tuple(modules))


class Template:
    """One of them: its process, and the descriptors that tie it to this one."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.is_proven = False  # it has forked a server that served
        self._pids: list[int] = []  # noted in one step with its start
        self._ended: list[tuple[int, int]] = []  # what waitpid said, noted in one step
        self.ends: list[End] = []  # the socket of requests, and the lifeline

    @property
    def pid(self) -> int:
        return self._pids[0] if self._pids else -1

    def start(self, surroundings: Surroundings) -> None:
        """Start it, and do not wait for what it imports."""
        requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lifeline_out, lifeline = pipe()
        self.ends = [requests, lifeline]
        try:
            fds = theirs.fileno(), lifeline_out.fileno()
            message = json.dumps({"fds": fds, "modules": self.key.modules})
            start = interpreter("ringload.workers.template", message, fds, surroundings)
            self._pids.extend(starmap(start, ((),)))
            be_taken_first(self.pid)  # and so its forks, which have this from it
        finally:
            close((theirs, lifeline_out))

    def ask(self, config: Config, note_fd: int, surroundings: Surroundings) -> None:
        """Have a server forked. Does not wait for it.

        Raises:
            OSError: the request was not sent.
        """
        variables = {name: surroundings.environment.get(name) for name in CHANGES_ALWAYS}
        message = json.dumps({"config": asdict(config), "environment": variables}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (1, 2, note_fd, *config.fds)))]
        requests = self.ends[0]
        assert isinstance(requests, socket.socket)
        requests.sendmsg([message], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def is_alive(self) -> bool:
        """False: it has ended, and was reaped."""
        if self._pids and not self._ended:
            ending = select.poll()  # one whose descriptors are closed is not a zombie yet
            if self.is_open:
                ending.register(self.ends[0], 0)  # a hang-up is always told
            options = 0 if ending.poll(0) else os.WNOHANG
            with suppress(ChildProcessError):  # the user's code waits for any child
                self._ended.extend(filter(itemgetter(0), map(partial(os.waitpid, self.pid), (options,))))
                return not self._ended
            self._ended.append((self.pid, 0))
        return False

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return bool(self.ends) and self.ends[0].fileno() >= 0

    @property
    def has_failed(self) -> bool:
        """Whether it ended before it has forked a server, and nobody has told it to end."""
        return self.is_open and not self.is_proven and not self.is_alive() and bool(self._ended)

    @property
    def exit_code(self) -> int:
        """1 of one that could not import ringload, which nobody else can either; -1 of any other."""
        return 1 if self.has_failed and os.waitstatus_to_exitcode(self._ended[0][1]) == 1 else -1

    def retire(self) -> None:
        """Have it end when it has done what it was asked for."""
        self.ends[0].close()

    def end(self) -> None:
        """Have the kernel end it at once. Nothing is signalled by its number, which somebody else may have by now."""
        close(self.ends)

    def reap(self) -> None:
        """After `end`."""
        deadline_s = time.monotonic() + END_S
        while self.is_alive() and time.monotonic() < deadline_s:
            time.sleep(0.0005)


class _Templates:
    """All of this process."""

    def __init__(self) -> None:
        self.all: list[Template] = []
        self._unusable: set[Key] = set()
        self._lock = new_rlock()

    def drop(self) -> None:
        """In a fork of the process: they are the parent's."""
        for template in self.all:
            template.end()
        self.all = []
        self._lock = new_rlock()  # another thread may have held it

    def find(self, surroundings: Surroundings, modules: Sequence[str]) -> Template | None:
        """See `find` below."""
        key = Key.of(surroundings, modules)
        with self._lock:
            self._bury()
            for template in self.all:
                if template.key == key and template.is_open:
                    return template
            if key in self._unusable or key.inherited != inherited():
                return None
            forks.keep(self)
            template = Template(key)
            self.all.append(template)  # first: an interruption leaves none that nobody knows
            try:
                template.start(surroundings)
            except OSError:
                self.all.remove(template)
                template.end()
                return None
            for one in [one for one in self.all if one.is_open][:-MOST]:
                one.retire()
            return template

    def _bury(self) -> None:
        """Forget those that have ended."""
        for template in [one for one in self.all if not one.is_alive()]:
            if template.has_failed:
                self._unusable.add(template.key)
            template.end()
            self.all.remove(template)

    def __del__(self) -> None:
        """At the trainer's end: end them, and reap them, as not every container has an init. An exit handler would be too
        early: while it waits, daemon threads that iterate would go on, and would print that their loaders are closed."""
        for template in self.all:
            template.end()
        for template in self.all:
            template.reap()


_templates = _Templates()


def find(surroundings: Surroundings, modules: Sequence[str]) -> Template | None:
    """The template for these modules, which is started if there is none. None: a server is to be started by an interpreter.

    `modules`: those of ringload must be there; of others, what cannot be imported, or is not safe to be imported before a
    fork, is left out."""
    can_be = CLONE and surroundings.inherited and surroundings.directory is not None and _is_open(1) and _is_open(2)
    return _templates.find(surroundings, modules) if can_be else None


def can_carry(config: Config) -> bool:
    """Whether a server's descriptors can be sent to a template, and have their numbers in a fork of it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    highest = max(config.fds) + len(config.fds) + 16
    return len(config.fds) <= MAX_FDS - 3 and min(config.fds) > 2 and (highest < hard or hard == resource.RLIM_INFINITY)


def running() -> list[Template]:
    """The templates of this process."""
    return list(_templates.all)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
