from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

import ringload.images.jpeg
import ringload.images.resample
from ringload.insight.cli import main
from tests.helpers import run


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


def test_the_version_says_what_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = call("--version")
    assert code == 0
    assert output.startswith(f"ringload {ringload.__version__}\nJPEG: ")
    assert f"resampling: _resample.c; alpha: cykooz-resizer {version('cykooz-resizer')}" in output
    assert f"PNG: isal {version('isal')}, _png.c" in output
    monkeypatch.setattr(ringload.images.jpeg, "native", None)
    monkeypatch.setattr(ringload.images.plain, "native", None)
    monkeypatch.setattr(ringload.images.resample, "native", None)
    monkeypatch.setattr(ringload.images.resample, "cykooz_resizer", None)
    code, output = call("--version")
    assert code == 0
    assert f"JPEG: simplejpeg {version('simplejpeg')}. _jpeg.c is not built" in output
    assert f"PNG: pillow {version('pillow')}. _png.c is not built" in output
    assert f"resampling: pillow {version('pillow')}. _resample.c is not built" in output


@pytest.mark.parametrize("ram", ["auto", "0.5", "50%", "1.0", "2e11", "80GiB", "80 G", "80_000_000_000"])
def test_budgets_of_every_form(ram: str) -> None:
    code, output = call("plan", "--batch", "8", "--ram", ram)
    assert code == 0, output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("plan --ram 1MB", "the least that would do is"),
        ("plan --ram 300MB --batch 2000", "Raise --ram, or lower --batch or workers"),
        ("plan --ram lots", "--ram is bytes"),
        ("plan --ram 100TB --here", "memory available"),
        ("plan --ram 64", "--ram='64' is 64 bytes: did you mean \"64GB\"?"),
        ("plan --batch none", "not an integer"),
        ("plan --batch 0", "0 is less than 1"),
        ("plan --batch -1", "-1 is less than 1"),
        ("plan --samples 0", "0 is less than 1"),
        ("plan --max-pixels 0", "0 is less than 1"),
        ("plan --workers -1", "-1 is less than 0"),
        ("plan --size", "requires 2 arguments"),
        ("plan --size --batch 8", "'--batch' is not an integer"),
        ("demo --images . --label kind", "--label: only for a table, --frame FILE"),
        ("demo --frame s3://bucket/table.csv", "URLs are not read"),
        ("plan --workers some", "not an integer"),
        ("plan --size 0 5", "0 is less than 1"),
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


@pytest.mark.parametrize("size", ["--size 96", "--size=96", "--size 96 96", "--batch 8 --size 96"])
def test_one_number_is_a_square(size: str) -> None:
    others = ("--ram", "4GB", "--workers", "1", "--batch", "8")
    (code, output), (_, wanted) = call("plan", *size.split(), *others), call("plan", "--size", "96", "96", *others)
    available = r"[\d.]+ \wB memory available"  # which changes from one call to the next
    assert re.sub(available, "", output) == re.sub(available, "", wanted)
    assert code == 0


def test_the_module_is_the_command() -> None:
    done = run("import runpy, sys; sys.argv[1:] = ['plan', '--batch', '0']; runpy.run_module('ringload', run_name='__main__')")
    assert (done.returncode, done.stdout) == (2, "")
    assert "python -m ringload plan" in done.stderr
    assert "0 is less than 1" in done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("missing", "said"), [("keras", "Keras is not installed"), ("tensorflow", "one of its backends")])
def test_a_demo_without_keras_ends_with_one_line(missing: str, said: str, photos: Path) -> None:
    code = "import sys; sys.modules[sys.argv.pop(1)] = None; from ringload.insight.cli import main; main()"
    done = run(code, missing, "demo", "--images", photos, timeout=280, env={**os.environ, "KERAS_BACKEND": "tensorflow"})
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the demo trains a Keras model: ")
    assert said in done.stderr
    assert "pip install tensorflow" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize("what", ["folder", "table"])
def test_the_demo_trains(what: str, photos: Path, tmp_path: Path) -> None:
    given = ["--images", str(photos)]
    if what == "table":
        table = (photos / "photos.csv").read_text().replace("object_id,bi,multi,path", "id,bi,kind,file")
        (tmp_path / "table.csv").write_text(table)
        given = ["--frame", str(tmp_path / "table.csv"), "--path", "file", "--label", "kind", "--root", str(photos)]
    arguments = ["demo", *given, "--size", "32", "--batch", "8", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-c", "from ringload.insight.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for said in ("24 images of 3 classes", "images/s", "the trainer waited", "ring", "hand-written generator"):
        assert said in done.stdout
    assert "Traceback" not in done.stderr
