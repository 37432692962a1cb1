"""`python -m tests.breaks [--only PATTERN] [--list]`: try the breaks, one at a time.

Each is made in a copy of ringload/ and tests/ in a temporary folder, in which its tests are run by pytest, with a /dev/shm of
their own where this is root. What a broken build leaves behind is ended by this process, to which the kernel gives the
orphans of all that it has started (PR_SET_CHILD_SUBREAPER); it ends nobody else's. Tells of each break whether it was

    caught            every test that is named failed, and said what it should
    NOT CAUGHT        one of them passed, or was skipped
    ERROR ELSEWHERE   one failed, but with other words

and ends with status 1 if any was not caught.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.breaks import Break, broken
from tests.breaks.report import LIMIT_VARIABLE, METHOD_VARIABLE, REPORT_VARIABLE
from tests.breaks.table import TABLE

ROOT = Path(__file__).parent.parent.parent
PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
START_S = 60.0  # what pytest may take beside its tests
PATIENCE_S = 20.0  # for who was asked to end
OWN_SHM = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh"]
Report = dict[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.breaks", description="Try the breaks, one at a time.")
    parser.add_argument("--only", metavar="PATTERN", default="", help="those whose name, rows or tests this is found in")
    parser.add_argument("--list", action="store_true", help="print the table and run nothing")
    arguments = parser.parse_args()
    chosen = [one for one in TABLE if re.search(arguments.only, "\n".join((one.name, *one.rows, *one.tests)))]
    if arguments.list:
        for one in chosen:
            print(f"{one.name}: {', '.join(one.tests)}")
        return 0
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it, and so theirs
    results = []
    for number, one in enumerate(chosen, 1):
        begin_s = time.monotonic()
        verdict, why = attempt(one)
        results.append((one, verdict, why))
        print(f"[{number}/{len(chosen)}] {verdict:<15} {one.name} ({time.monotonic() - begin_s:.0f} s): {why}", flush=True)
    print("\n| undone | verdict | by |\n|---|---|---|")
    for one, verdict, why in results:
        print(f"| {one.name} | {verdict} | {why} |")
    n_caught = sum(verdict == "caught" for _, verdict, _ in results)
    print(f"\n{n_caught} of {len(results)} breaks were caught, by {len({t for one, *_ in results for t in one.tests})} tests")
    return 0 if n_caught == len(results) else 1


def attempt(one: Break) -> tuple[str, str]:
    """Try one break: (verdict, the words by which it was caught, or what happened instead)."""
    with tempfile.TemporaryDirectory(prefix="ringload-break-") as name:
        folder = Path(name)
        for part in ("ringload", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / part, folder)
        for edit in one.edits:
            path = folder / "ringload" / edit.file
            path.write_text(broken(path.read_text(), edit))
        reports, output, status = run_tests(one, folder)
    return judge(one, reports, output, status)


def run_tests(one: Break, folder: Path) -> tuple[list[Report], str, int]:
    """Run a break's tests in its copy: (what pytest reported, what it printed, its exit status)."""
    report, printed = folder / "report.jsonl", folder / "printed"
    report.touch()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.breaks.report", "-p", "no:cacheprovider", "--tb=short"]
    command += [f"--basetemp={folder / 'tmp'}", *(f"tests/{test}" for test in one.tests)]
    environment = {**os.environ, LIMIT_VARIABLE: str(one.limit_s), REPORT_VARIABLE: str(report), "PYTHONDONTWRITEBYTECODE": "1"}
    environment[METHOD_VARIABLE] = "thread" if one.has_alarms else "signal"  # by which a test fails as any other, and cleans up
    own_shm = OWN_SHM if os.geteuid() == 0 and shutil.which("unshare") else []
    with printed.open("w") as out:
        process: subprocess.Popen[Any] = subprocess.Popen(
            [*own_shm, *command], cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            for number in (0, signal.SIGINT, signal.SIGKILL):
                if number:  # a test that the limit does not end: first so that it can still clean up
                    out.write(f"\nTimeout: the tests were sent {signal.Signals(number).name}\n")
                    out.flush()
                    process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE_S if number else START_S + 2 * one.limit_s * len(one.tests))
                    break
        finally:
            thaw(process.pid)
            end_all(process)
            remove_groups(process.pid)
    return (
        [json.loads(line) for line in report.read_text().splitlines()],
        printed.read_text(errors="replace"),
        process.returncode,
    )


def end_all(process: subprocess.Popen[Any]) -> None:
    """Kill and reap whatever the tests have left: all of it is a child of this process by now, or of one that is."""
    deadline_s = time.monotonic() + PATIENCE_S
    while left := psutil.Process().children(recursive=True):
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.poll()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"cannot be killed: {left}")
        time.sleep(0.01)


def groups(pid: int) -> list[Path]:
    """The cgroups that the tests of a process have made, and were ended before they could remove."""
    return list(Path("/sys/fs/cgroup").glob(f"*/ringload-{pid}*"))


def thaw(pid: int) -> None:
    for folder in groups(pid):
        if (state := folder / "freezer.state").exists():
            state.write_text("THAWED")  # no kill reaches who is frozen


def remove_groups(pid: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while (left := groups(pid)) and time.monotonic() < deadline_s:
        for folder in left:
            with suppress(OSError):  # who was killed is on its way out
                folder.rmdir()


def judge(one: Break, reports: list[Report], output: str, status: int) -> tuple[str, str]:
    """Whether each test that is named failed as it should: (verdict, by what)."""
    failed = [report for report in reports if report["outcome"] == "failed"]
    whys = []
    for test in one.tests:
        mine = [report for report in failed if re.fullmatch(re.escape(f"tests/{test}") + r"(\[.*\])?", report["test"])]
        mine = [report for report in mine if report["when"] == "call"] or mine  # what a failed test leaves is no wonder
        right = [found for report in mine if (found := said(one.says, report))]
        if not right and not any(report["test"].startswith(f"tests/{test}") and report["when"] == "call" for report in reports):
            right = [found[0] for found in [re.search(one.says, output)] if found]  # it ended pytest itself
        if not right:
            told = f"{mine[0]['when']} said: {mine[0]['message'] or last_line(mine[0]['text'])}" if mine else last_line(output)
            return ("ERROR ELSEWHERE" if mine or status > 1 else "NOT CAUGHT", f"{test}: {one_line(told)}")
        whys.append(right[0])
    return "caught", one_line(whys[0])


def said(pattern: str, report: Report) -> str:
    """The line of a failure that has the words; "" if none has."""
    for text in (report["message"], report["text"]):
        if (found := re.search(pattern, text)) is not None:
            begin, end = text.rfind("\n", 0, found.start()) + 1, text.find("\n", found.end())
            return text[begin : end if end >= 0 else None].strip() or found[0]
    return ""


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing was printed")


def one_line(text: str) -> str:
    return " ".join(text.split())[:160].replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
