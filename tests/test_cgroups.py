"""What this process may use: real cgroups where root may make them, and files as the kernel writes them for the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ringload.system import cgroups as limits
from ringload.system.cgroups import OomKills, usable_cpus, usable_memory
from tests.helpers import run_quietly


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def proc(tmp_path: Path, version: int, path: str, root: str = "/", *, mount: str = "cg") -> Path:
    """A /proc that says where the groups of one controller are."""
    mounted = tmp_path / mount
    kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,memory,cpu")
    line = f"0::{path}\n" if version == 2 else f"3:devices:/other\n4:memory,cpu:{path}\n"
    escaped = str(mounted).replace(" ", "\\040")
    write(
        tmp_path / "proc",
        {
            "self/cgroup": line,
            "self/mountinfo": "24 1 0:22 / /proc rw - proc proc rw\n"
            f"31 24 0:27 {root} {escaped} rw shared:9 - {kind} {kind} {options}\n",
        },
    )
    return tmp_path / "proc"


def test_without_groups_it_is_the_machines(tmp_path: Path) -> None:
    usable = usable_memory(tmp_path)
    assert abs(usable.n_bytes - psutil.virtual_memory().available) < 500_000_000
    assert "this machine" in usable.bound
    assert usable_cpus(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("words", [[], ["MemTotal:", "8000000", "kB", "MemFree:", "4000000", "kB"]])
def test_a_machine_that_does_not_say_what_is_available_has_some(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 3.14, and what only looks like it."""
    really = limits._words
    monkeypatch.setattr(limits, "_words", lambda path: words if path == Path("/proc/meminfo") else really(path))
    assert usable_memory(tmp_path).n_bytes > 1_000_000_000
    folder = proc(tmp_path, 2, "/job")
    write(tmp_path / "cg/job", {"memory.max": "1000000\n", "memory.current": "700000\n"})
    assert usable_memory(folder).n_bytes == 300_000


def test_v2_the_least_of_all_groups_above_counts(tmp_path: Path) -> None:
    folder = proc(tmp_path, 2, "/job/step")
    write(
        tmp_path / "cg",
        {
            "job/step/memory.max": "max\n",
            "job/step/memory.current": "5\n",
            "job/memory.max": "1000000\n",
            "job/memory.current": "700000\n",
            "job/memory.stat": "anon 3\ninactive_file 100000\nactive_file 7\n",
            "job/cpu.max": "150000 100000\n",
            "job/step/cpu.max": "max 100000\n",
        },
    )
    usable = usable_memory(folder)
    assert usable.n_bytes == 400_000
    assert usable.bound == f"left of the memory limit of cgroup {tmp_path / 'cg' / 'job'}"
    assert usable_cpus(folder) == 1


def test_v1_limits_and_quotas(tmp_path: Path) -> None:
    folder = proc(tmp_path, 1, "/job")
    write(
        tmp_path / "cg",
        {
            "memory.limit_in_bytes": "9223372036854771712\n",
            "memory.usage_in_bytes": "1\n",
            "job/memory.limit_in_bytes": "2000000\n",
            "job/memory.usage_in_bytes": "500000\n",
            "job/memory.stat": "cache 1\ntotal_inactive_file 1000\n",
            "job/cpu.cfs_quota_us": "-1\n",
            "job/cpu.cfs_period_us": "100000\n",
        },
    )
    assert usable_memory(folder).n_bytes == 1_501_000
    assert usable_cpus(folder) == len(os.sched_getaffinity(0))
    (tmp_path / "cg/job/cpu.cfs_quota_us").write_text("20000")
    assert usable_cpus(folder) == 1


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    folder = proc(tmp_path, 2, "/", "/docker/abc", mount="a mount")
    write(tmp_path / "a mount", {"memory.max": "1000\n", "memory.current": "2000\n"})
    assert usable_memory(folder).n_bytes == 0
    folder = proc(tmp_path, 2, "/docker/abc/inner", "/docker/abc", mount="a mount")
    write(tmp_path / "a mount", {"inner/memory.max": "900\n", "inner/memory.current": "2\n", "memory.max": "max"})
    assert usable_memory(folder).n_bytes == 898


@pytest.fixture
def group() -> Iterator[Path]:
    """A real memory cgroup of version 1, limited to 300 MB."""
    path = Path(f"/sys/fs/cgroup/memory/ringload-test-{os.getpid()}")
    try:
        path.mkdir()
    except OSError:
        pytest.skip("needs root and a memory cgroup of version 1")
    (path / "memory.limit_in_bytes").write_text("300000000")
    yield path
    path.rmdir()


def test_a_real_limit_is_seen(group: Path) -> None:
    code = """
        import os, sys
        open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
        from ringload.system.cgroups import usable_memory
        print(usable_memory().n_bytes, usable_memory().bound)
    """
    n_bytes, bound = run_quietly(code, group).split(" ", 1)
    assert 100_000_000 < int(n_bytes) < 300_000_000
    assert bound == f"left of the memory limit of cgroup {group}\n"


def test_affinity_is_seen() -> None:
    code = "import os; os.sched_setaffinity(0, {0}); from ringload.system.cgroups import usable_cpus; print(usable_cpus())"
    assert run_quietly(code) == "1\n"


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_oom_killer_has_done_is_told_once(tmp_path: Path, version: int) -> None:
    folder = proc(tmp_path, version, "/job")
    limit, events = [("memory.limit_in_bytes", "memory.oom_control"), ("memory.max", "memory.events")][version - 1]
    write(tmp_path / "cg/job", {limit: "1000000\n", events: "oom 1\noom_kill 3\n"})
    kills = OomKills(folder)
    assert kills.news() == ""
    write(tmp_path / "cg/job", {events: "oom 1\noom_kill 5\n"})
    bound = f"the OOM killer has ended 2 processes of cgroup {tmp_path / 'cg/job'}, whose memory limit is 1,000,000 bytes"
    assert kills.news() == f"out of memory: {bound}"
    assert kills.news() == ""
    assert OomKills(tmp_path / "nothing").news() == ""
