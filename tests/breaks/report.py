"""A plugin of pytest for the broken copy: bounds each test, and writes what failed, a line of JSON each, for the runner."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import ringload

LIMIT_VARIABLE, METHOD_VARIABLE = "RINGLOAD_BREAK_LIMIT_S", "RINGLOAD_BREAK_METHOD"
REPORT_VARIABLE = "RINGLOAD_BREAK_REPORT"
MAX_TEXT = 20_000  # characters of a failure, from its end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    assert Path(ringload.__file__).parent.parent == Path.cwd(), "it is not the broken copy that is tested"
    for item in items:
        limit = pytest.mark.timeout(float(os.environ[LIMIT_VARIABLE]), method=os.environ[METHOD_VARIABLE])
        item.add_marker(limit, append=False)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    crash = getattr(report.longrepr, "reprcrash", None)
    with open(os.environ[REPORT_VARIABLE], "a") as file:
        json.dump(
            {
                "test": report.nodeid,
                "when": report.when,
                "outcome": report.outcome,
                "message": getattr(crash, "message", ""),
                "text": report.longreprtext[-MAX_TEXT:] if report.failed else "",
            },
            file,
        )
        file.write("\n")
