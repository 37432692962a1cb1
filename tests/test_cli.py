from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ringload.insight.cli import main


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(main, arguments)
    return result.exit_code, result.output


def test_the_plan_of_the_readme() -> None:
    code, output = call(
        *["plan", "--size", "224", "224", "--batch", "256", "--ram", "64GB", "--workers", "12", "--samples", "30_000_000"]
    )
    assert code == 0
    for said in ("64.0 GB", "38.5 MB", "12"):
        assert said in output


@pytest.mark.parametrize("ram", ["auto", "0.5", "50%", "2e11", "80GiB"])
def test_budgets_of_every_form(ram: str) -> None:
    code, output = call("plan", "--batch", "8", "--ram", ram)
    assert code == 0, output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("plan --ram 1MB", "the least that would do is"),
        ("plan --ram lots", "ram_budget is bytes"),
        ("plan --ram 100TB --here", "memory available"),
        ("plan --batch none", "not an integer"),
        ("plan --workers some", "not an integer"),
        ("plan --size 0 5", "positive"),
        ("demo", "give --images DIR"),
        ("demo --images nowhere", "nowhere is not a folder"),
        ("demo --frame nowhere.csv", "cannot read the table"),
    ],
)
def test_what_cannot_be_is_an_error_and_no_traceback(arguments: str, said: str) -> None:
    code, output = call(*arguments.split())
    assert code != 0
    assert said in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_the_demo_trains_on_a_folder(photos: Path) -> None:
    arguments = ["demo", "--images", str(photos), "--size", "32", "32", "--batch", "8", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-c", "from ringload.insight.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for said in ("24 images of 3 classes", "images/s", "the trainer waited", "ring", "by hand"):
        assert said in done.stdout
    assert "Traceback" not in done.stderr
