"""Where users' code is defined: scripts without a main guard, -c, stdin, a REPL, a notebook, a module. Nothing runs twice."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
with open(os.environ["COUNT"], "a") as count:  # how often this is run
    count.write("once\\n")
import numpy as np
import ringload

OFFSET = 7
TABLE = np.arange(200_000)

class Source:
    fields = {"x": ((3,), "int64")}
    def __len__(self): return 40
    def load(self, index, rng, out): out["x"] = TABLE[index] + OFFSET + np.arange(3)

def function(index, rng, out): out["x"] = helper(index)
def helper(index): return TABLE[index] + OFFSET + np.arange(3)
def closure():
    offset = OFFSET
    def load(index, rng, out): out["x"] = TABLE[index] + offset + np.arange(3)
    return load

fields = {"fields": Source.fields, "n_samples": 40}
sources = [(Source(), {}), (function, fields), (closure(), fields)]
sources.append((lambda index, rng, out: out.__setitem__("x", helper(index)), fields))
n = 0
for method in ("forkserver", "spawn", "fork"):
    for source, options in sources:
        with ringload.Loader(source, 8, workers=2, start_method=method, ram_budget="200MB", **options) as loader:
            for batch in loader:
                assert (batch["x"] == batch.index[:, None] + 7 + np.arange(3)).all()
                n += 1
print("batches:", n)
"""


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    return tmp_path / "count"


def verify(done: subprocess.CompletedProcess[str], count: Path) -> None:
    assert "batches: 60" in done.stdout
    assert done.returncode == 0
    assert count.read_text() == "once\n"


def test_a_script_without_a_main_guard(count: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stderr == ""
    verify(done, count)


def test_a_module_run_by_its_name(count: Path, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "train.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "-m", "package.train"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stderr == ""
    verify(done, count)


def test_a_module_beside_the_script_is_found(count: Path, tmp_path: Path) -> None:
    """Functions of importable modules are sent by name, and the workers look for them where the script does."""
    (tmp_path / "mine.py").write_text(SCRIPT.partition("\nfields = {")[0])
    script = """
        import mine, ringload
        with ringload.Loader(mine.Source(), 8, workers=2, ram_budget="200MB") as loader:
            print("batches:", 12 * len(list(loader)))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stderr == ""
    assert "batches: 60" in done.stdout
    assert set(count.read_text().split()) == {"once"}


def test_python_minus_c(count: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    verify(done, count)


def test_standard_input(count: Path) -> None:
    done = subprocess.run([sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    verify(done, count)


def test_a_repl(count: Path) -> None:
    lines = ["import os", f"exec({SCRIPT!r})", ""]
    done = subprocess.run([sys.executable, "-i", "-q"], input="\n".join(lines), capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    verify(done, count)


def test_a_notebook(count: Path, tmp_path: Path) -> None:
    head, _, tail = SCRIPT.partition("\nfields = {")
    cells = [head, "fields = {" + tail]
    code = """
        import json, sys, nbformat, nbclient
        cells = [nbformat.v4.new_code_cell(cell) for cell in json.load(sys.stdin)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
        print(json.dumps([[out["name"], out["text"]] for cell in notebook.cells for out in cell.outputs]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], input=json.dumps(cells), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["stdout", "batches: 60\n"]]
    assert count.read_text() == "once\n"


def test_what_a_worker_prints_is_seen(count: Path) -> None:
    code = """
        import ringload
        def load(index, rng, out):
            print("loading", index)
            out["x"] = index
        with ringload.Loader(load, 2, fields={"x": ((), "i8")}, n_samples=4, workers=1, ram_budget="200MB", epochs=1) as loader:
            list(loader)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert sorted(done.stdout.split("\n")[:-1]) == [f"loading {index}" for index in range(4)]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_import_no_more_than_they_need(count: Path, method: str) -> None:
    code = f"""
        import pandas, psutil, ringload, numpy as np
        names = ["pandas", "psutil", "tensorflow", "torch", "keras", "rich", "click", "cv2", "PIL"]
        def load(index, rng, out):
            import sys
            out["x"] = [name in sys.modules for name in names]
        options = dict(fields={{"x": ((9,), "?")}}, n_samples=4, ram_budget="200MB", start_method={method!r})
        with ringload.Loader(load, 2, workers=1, **options) as loader:
            for batch in loader:
                print([name for name, there in zip(names, batch["x"][0]) if there])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_standard_streams_that_are_closed(method: str, closed: str, tmp_path: Path) -> None:
    """As a daemon's may be: the ring's own descriptors get their numbers."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
        import ringload
        from tests.helpers import Truth, check
        with ringload.Loader(Truth(40), 4, workers=2, ram_budget="200MB", start_method={method!r}) as made:
            assert [len(check(batch)) for batch in made] == [4] * 10
            os.fstat(0)  # or this would test nothing
        open(sys.argv[1], "w").write("done")
        """)
    )
    told = tmp_path / "told"
    status = subprocess.run(["sh", "-c", f'"$0" "$@" {closed}', sys.executable, script, told], timeout=60).returncode
    assert (status, told.read_text()) == (0, "done")
