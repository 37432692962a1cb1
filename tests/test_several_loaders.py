"""Loaders among others: nested, many, in pools and threads; and what the trainer starts meanwhile, which inherits nothing."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest

from ringload import Loader, LoaderClosedError
from ringload.engine.engine import Engine
from ringload.workers import templates
from ringload.workers.supervisor import WorkerSupervisor
from tests.conftest import Injected, Times, descriptors
from tests.helpers import Truth, check, run_quietly
from tests.moments import Moment, gone, moments

pytestmark = pytest.mark.fault

METHODS = pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])


def make(n: int = 200, **options: Any) -> Loader:
    return Loader(Truth(n), 4, **{"workers": 2, "ram_budget": "200MB", "start_method": "fork", **options})


def total(n: int, method: Any, workers: int) -> int:
    """What a loader of `n` samples delivers in an epoch: the sum of their indices."""
    with make(n, workers=workers, start_method=method) as made:
        return sum(int(check(batch).sum()) for batch in made)


class Nested(Truth):
    """Loads by a loader of its own: one that lives as long as the source, and one for some samples."""

    def __init__(self, n: int, method: str) -> None:
        super().__init__(n)
        self.method = method
        self.inner: Any = None

    def start(self, worker: Any) -> None:
        self.made = make(40, workers=1, start_method=self.method)
        self.inner = iter(self.made)

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        batch = next(self.inner, None)
        if batch is None:
            self.inner = iter(self.made)
        else:
            check(batch)
        if index % 12 == 3:
            assert total(20, self.method, 1) == sum(range(20))
        super().load(index, rng, out)


@pytest.mark.parametrize(("workers", "method"), [(0, "fork"), (2, "fork"), (2, "forkserver"), (1, "spawn")])
def test_a_loader_inside_a_source(workers: int, method: Any) -> None:
    source = Nested(24, method)
    with Loader(source, 4, workers=workers, start_method=method, ram_budget="300MB") as made:
        for _ in range(2):
            assert sum(len(check(batch)) for batch in made) == 24
    if workers == 0:
        source.made.close()
    source.inner = None


@METHODS
def test_a_loader_inside_the_loop_of_another(method: Any) -> None:
    with make(12, start_method=method) as outer:
        for batch in outer:
            assert total(20, method, 1) == sum(range(20))
            check(batch)


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_a_loader_inside_a_pools_worker(context: str) -> None:
    """Such a worker is a daemon, which multiprocessing forbids to have children of its kind."""
    code = """
        import multiprocessing, sys
        from tests.test_several_loaders import total
        methods = ["forkserver", "spawn", "fork"]
        with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
            assert pool.starmap(total, [(40, method, 2) for method in methods]) == [sum(range(40))] * 3
    """
    run_quietly(code, context)


@pytest.mark.timeout(600)
@METHODS
def test_many_one_after_another_take_nothing_more(method: Any, times: Times, injected: Injected) -> None:
    process, rss, n = psutil.Process(), [], times(50, 300) if method == "fork" else times(5, 300)
    total(40, method, 2)
    before = descriptors(), threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(n):
        assert total(40, method, 2) == sum(range(40))
        rss.append(process.memory_info().rss)
    assert not gone()
    assert not [one for one in gc.get_objects() if isinstance(one, Loader | Engine | WorkerSupervisor)]
    assert (descriptors(), threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
    # A ring that was kept would be 300 kB of touched pages at least: 12 MB after 40 loaders. The allocator's noise is 1 MB.
    assert rss[-1] - rss[min(9, n // 2)] < 8 << 20
    injected("loaders one after another", n)


# -- what the trainer starts meanwhile --------------------------------------------------------------------------------


def in_a_fork(work: Callable[[], int]) -> int:
    """Fork, and `work` in the child. Returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return pid


@pytest.mark.timeout(600)
def test_forks_at_random_moments_while_another_thread_iterates(times: Times, injected: Injected) -> None:
    rng, n = random.Random(1), times(30, 600)
    with make(400) as made:
        stop, errors = threading.Event(), []

        def iterate() -> None:
            try:
                while not stop.is_set():
                    for batch in made:
                        check(batch)
            except BaseException:
                errors.append(sys.exc_info()[1])

        def use() -> int:
            try:
                next(iter(made))
            except LoaderClosedError as error:
                made.close()
                return 0 if "fork" in str(error) else 1
            return 2

        thread = threading.Thread(target=iterate)
        thread.start()
        for _ in range(n):
            stop.wait(rng.uniform(0, 0.003))
            assert os.waitstatus_to_exitcode(os.waitpid(in_a_fork(use), 0)[1]) == 0
        stop.set()
        thread.join()
        assert errors == []
    injected("fork of the trainer while another thread is in next()", n)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_fork_while_a_loader_is_made_holds_nothing_of_it(method: Any, times: Times, injected: Injected) -> None:
    """As another thread may make it, at any moment. It lives on; still the loader closes at once, and leaves nothing."""
    made: list[Loader] = []

    def construct() -> None:
        made[:] = [make(start_method=method)]

    at = list(moments(construct, times(40, 900)))
    for k in at:
        made.clear()
        out, into = os.pipe()
        pids: list[int] = []

        def wait(out: int = out, into: int = into) -> int:
            os.close(into)
            os.read(out, 1)  # until the parent lets it go
            return 0

        def fork(wait: Any = wait, pids: list[int] = pids) -> None:
            if "_execute_child" not in {frame.name for frame in traceback.extract_stack()}:  # Popen itself would wait for it
                pids.append(in_a_fork(wait))

        with Moment(k, fork):
            construct()
        made[0].close()  # StallError, after 10 s, if the fork kept a descriptor of the workers' side
        children = {child.pid for child in psutil.Process().children(recursive=True)}
        children -= {template.pid for template in templates.running()}
        os.close(into)
        os.close(out)
        for pid in pids:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert children == set(pids)
    injected("fork of the trainer while a loader is made", len(at))


@pytest.mark.timeout(600)
def test_what_is_started_meanwhile_inherits_no_descriptor(times: Times, injected: Injected) -> None:
    """Not even with close_fds=False, and whatever another thread is just opening."""
    n, stop = times(15, 300), threading.Event()

    def make_many() -> None:
        while not stop.is_set():
            for method in ("fork", "forkserver", "spawn"):
                with make(40, start_method=method) as made:
                    for batch in made:
                        check(batch)

    code = "import os\nfor fd in range(3, 200):\n try: print(os.readlink(f'/proc/self/fd/{fd}'))\n except OSError: pass"
    thread = threading.Thread(target=make_many)
    thread.start()
    try:
        for _ in range(n):
            done = subprocess.run([sys.executable, "-Sc", code], stdout=subprocess.PIPE, close_fds=False, text=True, check=True)
            links = done.stdout.split("\n")
            assert not [link for link in links if link.startswith(("/memfd:ringload", "socket:", "anon_inode:"))], links
            assert not [link for link in links if link.startswith("pipe:")], links
    finally:
        stop.set()
        thread.join()
    injected("subprocess.Popen(close_fds=False) while loaders are made", n)


def _child(connection: Any) -> None:
    connection.send(total(20, "forkserver", 1))


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_meanwhile(context: Any) -> None:
    chosen = multiprocessing.get_context(context)
    with make() as made:
        iterator = iter(made)
        for _ in range(3):
            check(next(iterator))
            ours, theirs = chosen.Pipe()
            process = chosen.Process(target=_child, args=(theirs,))
            process.start()
            check(next(iterator))
            assert ours.recv() == sum(range(20))
            process.join()
            assert process.exitcode == 0
            process.close()
            ours.close()
            theirs.close()
        assert sum(1 for batch in iterator if check(batch) is not None) == 50 - 6
    if context == "forkserver":
        multiprocessing.forkserver._forkserver._stop()
    if context != "fork":
        multiprocessing.resource_tracker._resource_tracker._stop()


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_running_loader_and_its_iterator_cannot_be_copied_and_go_on(send: Any) -> None:
    with make() as made:
        iterator = iter(made)
        check(next(iterator))
        for what in (made, iterator):
            with pytest.raises(pickle.PicklingError, match="state_dict") if what is made else suppress(pickle.PicklingError):
                send(what)
        assert [batch.number for batch in iterator] == list(range(1, 50))


def test_a_thread_makes_it_and_ends_and_another_iterates() -> None:
    made: list[Loader] = []
    seen: list[int] = []
    for work in (lambda: made.append(make()), lambda: seen.extend(int(check(batch).sum()) for batch in made[0])):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert sum(seen) == sum(range(200))
    for batch in made[0]:
        check(batch)
    made[0].close()
