"""The table of breaks is as true as the sources are now. That the breaks are caught, `python -m tests.breaks` shows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import ringload
from tests.breaks import broken
from tests.breaks.table import TABLE
from tests.conftest import REPORT_BEGIN, REPORT_END

HOME, TESTS = Path(ringload.__file__).parent, Path(__file__).parent
RELIABILITY = TESTS.parent / "RELIABILITY.md"
NAMES = [one.name for one in TABLE]


@cache
def source(file: str) -> str:
    return (HOME / file).read_text()


@cache
def functions(file: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_break_is_found_once_and_its_tests_are_there() -> None:
    for one in TABLE:
        for edit in one.edits:
            assert edit.old != edit.new, one.name
            broken(source(edit.file), edit)
        assert re.compile(one.says)
        for test in one.tests:
            file, _, rest = test.partition("::")
            assert rest.partition("[")[0] in functions(file), test


@pytest.mark.slow
def test_the_parameters_of_the_tests_of_breaks_are_there() -> None:
    with_parameters = sorted({test for one in TABLE for test in one.tests if "[" in test})
    files = sorted({str(TESTS / test.partition("::")[0]) for test in with_parameters})
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:xdist", *files]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent).stdout.splitlines()
    there = {line.partition("/")[2] for line in listed}
    missing = [test for test in with_parameters if test not in there]
    skipped = [test for test in missing if not any(line.startswith(test.partition("::")[0]) for line in there)]
    assert not set(missing) - set(skipped), "of a file whose package is not installed, no test is collected"


def test_no_two_breaks_have_a_name() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_what_is_not_there_once_is_an_error() -> None:
    edit = TABLE[0].edits[0]
    for text in ("", edit.old * 2):
        with pytest.raises(ValueError, match=r"has this [02] times, not once"):
            broken(text, edit)


def test_every_row_of_the_table_of_injections_has_a_break() -> None:
    text = RELIABILITY.read_text().partition(REPORT_BEGIN)[2].partition(REPORT_END)[0]
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 100
    patterns = [pattern for one in TABLE for pattern in one.rows]
    assert [row for row in rows if not any(re.fullmatch(pattern, row) for pattern in patterns)] == []


def test_every_file_of_fault_tests_has_a_break() -> None:
    files = {path.name for path in TESTS.glob("test_*.py") if "mark.fault" in path.read_text()} - {Path(__file__).name}
    assert len(files) > 15
    assert files - {test.partition("::")[0] for one in TABLE for test in one.tests} == set()
