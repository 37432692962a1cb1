"""After every test, nothing of ringload's is left: no process, descriptor, mapping, zombie, or file in /dev/shm.

But for this process's templates, from which the fork servers of its loaders are forked: they stay until it ends, and a test in
test_shared_server.py sees that they do end. Each may have its socket and its lifeline, and no mapping.

Faults: tests that are marked `fault` inject some, as often as `times` says: a few in `make test`, very many in `make stress`,
which alone runs what is marked `stress`. What was injected, and what was lost by it, they tell `injected`, and a table of it
ends the run; with `--report FILE` it is written there, between two lines that say so.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from ringload.storage import registry
from ringload.workers import templates
from tests.helpers import photo

Injected = Callable[..., None]  # injected(what, n, lost=0)
Times = Callable[[int, int], int]  # times(in make test, in make stress)
LONGEST = ("test_soak.py", "test_kills.py")  # of make stress
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000  # of sched.h and sys/mount.h
LONG = (  # more of a kind that make test runs once; run by make stress, as make test has 20 minutes
    "test_budget.py::test_what_takes_more_than_others_stays_within_the_budget[webp]",
    "test_cli.py::test_the_demo_trains[folder]",
    "test_dtypes.py::test_every_dtype[keras on jax]",
    "test_dtypes.py::test_every_dtype[keras on tensorflow]",
    "test_dtypes.py::test_every_dtype[keras on torch]",
    "test_examples.py::test_examples_learn_and_are_given_each_sample_once_an_epoch[ray_workers]",
    "test_generators.py::test_albumentations_in_a_function_of_ones_own[None]",
    "test_huggingface_stream.py::test_deaths_and_states_lose_and_repeat_no_row[{'parts': 2, 'shuffle': 5}-True]",
    "test_kept.py::test_outputs_of_keras_on_torch",
    "test_keras.py::test_a_step_never_sees_the_bytes_of_another_batch[jax]",
    "test_keras.py::test_a_step_never_sees_the_bytes_of_another_batch[torch]",
    "test_keras.py::test_what_reaches_the_step_and_what_becomes_of_it[jax]",
    "test_keras.py::test_what_reaches_the_step_and_what_becomes_of_it[torch]",
    "test_keras.py::test_who_evaluates_is_told_what_is_left_out_and_a_loader_that_nobody_has_is_closed[jax]",
    "test_keras.py::test_who_evaluates_is_told_what_is_left_out_and_a_loader_that_nobody_has_is_closed[torch]",
    "test_keras_callbacks.py::test_what_a_checkpoint_holds_and_where_costs_are_told[jax]",
    "test_keras_callbacks.py::test_what_a_checkpoint_holds_and_where_costs_are_told[torch]",
    "test_native.py::test_nothing_is_read_behind_the_pixels[no vectors]",
    "test_ranks.py::test_lightning_before_it_has_begun_and_after[before]",
    "test_ranks.py::test_lightning_before_it_has_begun_and_after[within]",
    "test_ray_workers.py::test_a_head_that_dies[None]",
    "test_ray_workers.py::test_substitutes_that_kill_are_found_and_no_innocent_sample_is_blamed[1]",
    "test_several_loaders.py::test_a_fork_while_a_loader_is_made_holds_nothing_of_it[forkserver]",
    "test_several_loaders.py::test_many_one_after_another_take_nothing_more[forkserver]",
    "test_stream.py::test_keras[torch]",
    "test_stream_orders.py::test_endless_streams_in_adapters[keras]",
    "test_torch_loader_workers.py::test_the_start_does_not_count_for_the_timeout[True]",
)
LONG_KINDS = re.compile(  # the same, of all tests that this matches
    r"test_kills\.py::test_a_kill_during_a_reset\[all-|test_rlimits\.py::.*\bspawn\]"
    r"|test_interrupts\.py::test_(a_close|the_replacement|an_interruption_before).*\[(fork|spawn)\]"
)
INJECTED = "injected"  # the name of a property of a test
REPORT_BEGIN, REPORT_END = "<!-- begin: written by make stress -->", "<!-- end -->"

SESSION = f"RINGLOAD_TESTS={os.getpid()}"  # in the environment of every script that the tests start
os.environ["RINGLOAD_TESTS"] = SESSION.partition("=")[2]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ringload")
    group.addoption("--stress", action="store_true", help="inject faults in the numbers of make stress")
    group.addoption("--report", type=Path, metavar="FILE", help="write the table of what was injected into FILE")


def pytest_configure(config: pytest.Config) -> None:
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:  # as by nohup, or a shell's &: scripts of tests would ignore it, too
            signal.signal(number, handler)
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0:
        have_a_dev_shm_of_our_own()


def have_a_dev_shm_of_our_own() -> None:
    """So that what the other worker's tests have there for a moment is not taken for what a test of this one has left."""
    libc = ctypes.CDLL(None, use_errno=True)
    for done in (
        libc.unshare(CLONE_NEWNS),
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, None),
    ):
        if done != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for name in {name for marker in item.iter_markers("needs") for name in marker.args}:
            if find_spec(name) is None:
                item.add_marker(pytest.mark.skip(f"{name} is not installed"))
        if item.nodeid.endswith(LONG) or LONG_KINDS.search(item.nodeid):
            item.add_marker(pytest.mark.stress)
    if config.getoption("--stress"):
        items.sort(key=lambda item: item.path.name not in LONGEST)  # first, and so side by side
    else:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("stress")])
        items[:] = [item for item in items if not item.get_closest_marker("stress")]


def pytest_collection_finish(session: pytest.Session) -> None:
    freeze()


def freeze() -> None:
    """What is there now is not looked at by the collections after each test: 1 ms in place of 300, where TensorFlow, torch and
    JAX are imported."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # it knows of its own share alone
        return
    counts: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") != "call":  # the reports of a test's setup and teardown have the same
                continue
            for what, n, lost in (value for name, value in report.user_properties if name == INJECTED):
                counts[what] += n
                losses[what] += lost
    if not counts:
        return
    rows = [f"| {what} | {n:,} | {losses[what]:,} |" for what, n in sorted(counts.items())]
    table = "\n".join(["| injected | times | samples lost, wrong or repeated |", "|---|---:|---:|", *rows])
    terminalreporter.section("injected faults")
    terminalreporter.write_line(table)
    path: Path | None = config.getoption("--report")
    if path is not None and exitstatus == 0:
        before, _, rest = path.read_text().partition(REPORT_BEGIN)
        path.write_text(f"{before}{REPORT_BEGIN}\n{table}\n{REPORT_END}{rest.partition(REPORT_END)[2]}")


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Times:
    """How often to inject a fault."""
    stress = bool(request.config.getoption("--stress"))
    return lambda short, long: long if stress else short


@pytest.fixture
def injected(request: pytest.FixtureRequest) -> Injected:
    """Tell what was injected how often, and how many samples were lost, wrong or repeated by it."""

    def tell(what: str, n: int, lost: int = 0) -> None:
        request.node.user_properties.append((INJECTED, (what, n, lost)))  # which reach the process that prints the table
        assert lost == 0

    return tell


def of_templates() -> set[int]:
    """The descriptors that tie templates to this process."""
    ends = [end for template in templates.running() for end in template.ends]
    return {end.fileno() for end in ends if isinstance(end, socket.socket) or not end.closed}


def descriptors() -> Counter[str]:
    """What this process has open of the kinds that ringload opens: kind -> how many."""
    kinds: Counter[str] = Counter()
    for fd in {*map(int, os.listdir("/proc/self/fd"))} - of_templates():
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that listed them
        if target.startswith(("/memfd:ringload", "pipe:", "socket:", "anon_inode:[event", "anon_inode:[pidfd")):
            kinds[target.split(":[")[0]] += 1
    return kinds


def mapped() -> list[str]:
    """The processes that are ringload's, or map a segment of it, and that this test session has started; orphans too."""
    found = []
    mine = {process.pid for process in psutil.Process().children(recursive=True)} | {os.getpid()}
    stay = {template.pid for template in templates.running()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) not in mine and SESSION.encode() not in (folder / "environ").read_bytes():
                continue  # first, as it is quick
            name = (folder / "comm").read_text().strip()
            is_named = name.startswith("ringload:") and int(folder.name) not in stay
            if "memfd:ringload" not in (folder / "maps").read_text() and not is_named:
                continue
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":  # that is an orphan which init has yet to reap
                found.append(f"{folder.name} ({name})")
        except (OSError, IndexError):
            continue  # it ended
    return found


def leftovers(before: set[int]) -> str:
    """What should not be there, in words; "" if nothing."""
    stay = {template.pid for template in templates.running() if template.is_alive()}  # which reaps those that have died
    children = [p for p in psutil.Process().children(recursive=True) if p.pid not in before | stay]
    parts = [f"child {p.pid} {p.name()} {p.status()}" for p in children if p.is_running()]
    parts += [f"a mapping in process {process}" for process in mapped()]
    return "; ".join(parts)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that a test registers is gone after it."""
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    n_modules = len(sys.modules)
    fds, shm = descriptors(), set(os.listdir("/dev/shm"))
    yield
    gc.collect()
    deadline_s = time.monotonic() + 1.0  # what the kernel kills is gone within milliseconds, not at once
    while (left := leftovers(before)) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert not left
    assert not descriptors() - fds, "descriptors are left open"
    assert not set(os.listdir("/dev/shm")) - shm
    if len(sys.modules) > n_modules + 100:  # a framework was imported
        freeze()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 photo-like JPEG files in 3 folders, and the table photos.csv of them."""
    root = tmp_path_factory.mktemp("photos")
    rows = ["object_id,bi,multi,path"]
    for index in range(24):
        name = "abc"[index % 3]
        (root / name).mkdir(exist_ok=True)
        path = f"{name}/{index:02d}.jpg"
        Image.fromarray(photo(index, 90 + index, 120)).save(root / path, quality=95)
        rows.append(f"photo-{index:02d},{index % 2},{name},{path}")
    (root / "photos.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
