"""Templates: the processes from which the fork servers of all loaders are forked. Each batch is verified, as everywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from PIL import Image

from ringload import Field, ImageFrame, Loader
from ringload.packing.installed import installed_modules
from ringload.workers import templates
from ringload.workers.template import CLONE
from tests.helpers import Truth, check, order_of, run_quietly
from tests.test_supervisor import alive

pytestmark = pytest.mark.skipif(not CLONE, reason="templates are for x86-64 and AArch64")
OPTIONS: dict[str, Any] = {"workers": 2, "ram_budget": "200MB"}


@pytest.fixture(autouse=True)
def no_templates() -> Iterator[None]:
    """Before each test, so that none has the template of another."""
    end_templates()
    yield
    end_templates()


def end_templates() -> None:
    for template in templates.running():
        template.end()
        template.reap()


def template_of(loader: Loader) -> int:
    """The pid of the template that has forked a loader's server; -1 if an interpreter has started the server."""
    supervisor = loader._engine._state.workers._supervisor
    return supervisor._template.pid if supervisor._server == [0] else -1


def server_of(loader: Loader) -> int:
    return int(loader._engine._state.workers._supervisor.server_pid)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    assert pid > 1  # -1 would be all processes there are
    os.kill(pid, number)


def verify(loader: Loader) -> None:
    """One epoch of a loader of Truth."""
    epoch = loader.epoch
    got = [index for batch in loader for index in check(batch).tolist()]
    assert got == order_of(loader, epoch)


def until(found: Callable[[], Any], limit_s: float = 30.0) -> Any:
    deadline_s = time.monotonic() + limit_s
    while not (result := found()):
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    return result


# -- sharing ----------------------------------------------------------------------------------------------------------


def test_loaders_share_a_template_one_after_another_and_at_a_time() -> None:
    seen, servers = set(), set()
    for _ in range(2):
        with Loader(Truth(40), 4, **OPTIONS) as one, Loader(Truth(60), 4, **OPTIONS) as other:
            verify(one)
            verify(other)
            seen |= {template_of(one), template_of(other)}
            servers |= {server_of(one), server_of(other)}
            assert {psutil.Process(server_of(made)).ppid() for made in (one, other)} == {os.getpid()}
    assert seen == {template.pid for template in templates.running()}
    assert len(seen) == 1
    assert len(servers) == 4


def test_it_starts_with_the_construction_of_the_first_loader() -> None:
    with Loader(Truth(40), 4, **OPTIONS):
        (template,) = templates.running()
        assert template.is_alive()


def test_loaders_of_several_threads() -> None:
    failures = []

    def load() -> None:
        try:
            for _ in range(3):
                with Loader(Truth(40), 4, **OPTIONS) as loader:
                    verify(loader)
                    assert template_of(loader) > 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(templates.running()) == 1


class Tells(Truth):
    """Says what a worker has of the trainer's."""

    def __init__(self) -> None:
        super().__init__(8)
        self.fields |= {"variable": Field((), "S64"), "directory": Field((), "S256"), "test": Field((), "S256")}

    def load(self, index: int, rng: Any, out: Any) -> None:
        super().load(index, rng, out)
        out["variable"] = os.environ.get("RINGLOAD_TEST_VARIABLE", "none").encode()
        out["directory"] = os.getcwd().encode()
        out["test"] = os.environ.get("PYTEST_CURRENT_TEST", "none").encode()
        print(f"sample {index} of {os.environ.get('RINGLOAD_TEST_VARIABLE')}")


def test_what_the_trainer_has_changed_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Directory and stdout by the same template; the environment by another, but for what pytest changes all the time."""
    pids = []
    for variable, directory, test in (("a", "/", "x"), ("a", str(tmp_path), "y"), ("b", "/", "x"), ("a", "/", "z")):
        monkeypatch.setenv("RINGLOAD_TEST_VARIABLE", variable)
        monkeypatch.setenv("PYTEST_CURRENT_TEST", test)
        monkeypatch.chdir(directory)
        with Loader(Tells(), 4, **OPTIONS) as loader:
            for batch in loader:
                check(batch)
                for name, value in (("variable", variable), ("directory", directory), ("test", test)):
                    assert set(batch[name]) == {value.encode()}
            pids.append(template_of(loader))
        said = capfd.readouterr().out  # lines of two workers may mix
        assert all(f"sample {n} of {variable}" in said for n in range(8))
    assert pids[0] == pids[1] == pids[3] != pids[2]
    assert min(pids) > 0


def test_only_some_templates_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    loaders = []
    for number in range(templates.MOST + 2):
        monkeypatch.setenv("RINGLOAD_TEST_VARIABLE", str(number))
        loaders.append(Loader(Truth(40), 4, **OPTIONS))  # the first is asked for a server, and retired before it has it
    for loader in loaders:
        verify(loader)
        assert loader.stats.n_restarts == 0
        loader.close()
    until(lambda: len([one for one in templates.running() if one.is_alive()]) == templates.MOST)


def test_what_cannot_be_sent_to_a_template_is_started_by_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet holds 253 descriptors at most."""
    monkeypatch.setattr(templates, "MAX_FDS", 8)
    with Loader(Truth(40), 4, **OPTIONS) as loader:
        verify(loader)
        assert template_of(loader) == -1


# -- deaths -----------------------------------------------------------------------------------------------------------


def test_a_template_that_was_killed_is_replaced_and_nobody_else_notices() -> None:
    with Loader(Truth(400), 4, **OPTIONS) as one:
        batches = iter(one)
        check(next(batches))
        server = server_of(one)
        kill(template_of(one))
        with Loader(Truth(40), 4, **OPTIONS) as other:
            verify(other)
            assert template_of(other) not in (-1, template_of(one))
        for batch in batches:
            check(batch)
        assert (server_of(one), one.stats.n_restarts) == (server, 0)


def test_a_server_is_replaced_by_another_template() -> None:
    with Loader(Truth(4000), 4, **OPTIONS, restarts=None) as loader:
        batches = iter(loader)
        got = check(next(batches)).tolist()
        first = template_of(loader)
        kill(first)
        kill(server_of(loader))
        got += [index for batch in batches for index in check(batch).tolist()]
        assert got == order_of(loader, 0)
        assert template_of(loader) not in (-1, first)


def test_a_template_that_is_killed_when_it_was_asked_costs_a_restart() -> None:
    with Loader(Truth(40), 4, **OPTIONS) as loader:
        verify(loader)
        pid = template_of(loader)
    kill(pid, signal.SIGSTOP)
    with Loader(Truth(40), 4, **OPTIONS) as loader:
        assert server_of(loader) == -1
        kill(pid)
        verify(loader)
        assert loader.stats.n_restarts == 1
        assert template_of(loader) not in (-1, pid)


def test_one_that_dies_before_it_has_forked_anything_is_not_tried_again() -> None:
    with Loader(Truth(40), 4, **OPTIONS) as loader:
        kill(template_of(loader))
        verify(loader)
    for _ in range(2):
        with Loader(Truth(40), 4, **OPTIONS) as loader:
            verify(loader)
            assert (template_of(loader), loader.stats.n_restarts) == (-1, 0)
    templates._templates._unusable.clear()


def test_what_was_not_forked_yet_is_taken_back() -> None:
    """By a close() that does not wait for a template, which may be importing for seconds."""
    with Loader(Truth(40), 4, **OPTIONS) as loader:
        verify(loader)
        pid = template_of(loader)
    kill(pid, signal.SIGSTOP)
    loader = Loader(Truth(40), 4, **OPTIONS)
    begin_s = time.monotonic()
    loader.close()
    assert time.monotonic() - begin_s < 5  # END_S is twice as long
    kill(pid, signal.SIGCONT)
    with Loader(Truth(40), 4, **OPTIONS) as loader:
        verify(loader)
        assert template_of(loader) == pid
        servers = [one for one in psutil.Process().children() if one.name() == "ringload:server"]
        assert [one.pid for one in servers] == [server_of(loader)]


def test_what_the_template_has_begun_with_is_not_taken_back() -> None:
    """Also where a close() has closed the lifeline already, and was interrupted: the server's pid is yet to come."""
    with Loader(Truth(40), 4, **OPTIONS) as loader:
        verify(loader)
        pid = template_of(loader)
    kill(pid, signal.SIGSTOP)
    loader = Loader(Truth(40), 4, **OPTIONS)
    supervisor = loader._engine._state.workers._supervisor
    os.read(supervisor._lifeline_out.fileno(), 1)  # as the template would
    supervisor._lifeline.close()
    assert not supervisor._takes_back()
    kill(pid, signal.SIGCONT)
    loader.close()


def test_one_that_hangs_with_a_request_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has begun with the request, so that this cannot be taken back."""
    monkeypatch.setattr("ringload.workers.supervisor.END_S", 0.3)
    with Loader(Truth(40), 4, **OPTIONS) as loader:
        verify(loader)
        pid = template_of(loader)
    kill(pid, signal.SIGSTOP)
    loader = Loader(Truth(40), 4, **OPTIONS)
    os.read(loader._engine._state.workers._supervisor._lifeline_out.fileno(), 1)  # as the template would
    loader.close()
    assert not alive(pid)
    with Loader(Truth(40), 4, **OPTIONS) as loader:
        verify(loader)


# -- the trainer ------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
import ringload
from ringload.workers import templates
from tests.helpers import Truth, check
def load():
    with ringload.Loader(Truth(40), 4, workers=2, ram_budget="200MB") as loader:
        for batch in loader: check(batch)
        return loader._engine._state.workers._supervisor._template.pid
"""
ENDS = {
    "the end of the script": "",
    "an error": "sys.stderr = open(os.devnull, 'w'); raise ValueError",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGKILL while it is stopped": "os.kill(pid, signal.SIGSTOP); os.kill(os.getpid(), signal.SIGKILL)",
    "os._exit": "os._exit(0)",
    "SIGKILL while it imports": "templates._templates.__init__(); ringload.Loader(Truth(40), 4, workers=2); "
    "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGKILL, and a fork lives on": "child = os.fork() or (os.close(1), time.sleep(60), os._exit(0))\n"
    "print(child, flush=True); os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_with_the_trainer(end: str) -> None:
    code = SCRIPT + "pid = load()\nprint(pid, flush=True)\n" + ENDS[end]
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.wait(30)
        assert not alive(pid)
        if child := process.stdout.read().strip():
            kill(int(child))


def test_a_script_that_ends_reaps_it() -> None:
    """Not every container has an init that would."""
    code = SCRIPT + "import ctypes\npid = load()\n" + "class Late:\n    def __del__(self): pass\nprint(pid)"
    wrapper = f"""
        import ctypes, os, subprocess, sys
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # this process gets the orphans
        done = subprocess.run([sys.executable, "-c", {code!r}], capture_output=True, text=True)
        try:
            print("an orphan:", os.waitpid(-1, 0))
        except ChildProcessError:
            print(done.stdout.strip().isdigit(), done.stderr)
    """
    assert run_quietly(wrapper).split() == ["True"]


def test_a_fork_of_the_trainer_has_templates_of_its_own() -> None:
    code = (
        SCRIPT
        + """
first = load()
child = os.fork()
if child == 0:
    assert templates.running() == []
    own = load()
    assert own != first and os.path.exists(f"/proc/{first}")
    sys.exit(0)  # with finalizers
assert os.waitpid(child, 0)[1] == 0
assert load() == first
print("done")
"""
    )
    assert run_quietly(code) == "done\n"


def test_a_hard_limit_or_a_user_that_changes_needs_another() -> None:
    code = (
        SCRIPT
        + """
import resource
pids = [load()]
soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (0, 1 << 20))
pids.append(load())
os.nice(1)
pids.append(load())
pids.append(load())
print(len(set(pids)), pids[2] == pids[3])
"""
    )
    assert run_quietly(code) == "3 True\n"


# -- imports ----------------------------------------------------------------------------------------------------------


class Packages:
    """A folder of packages that look installed, and one of the user's modules. Each import is noted: "name pid"."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed, self.own, self._log = folder / "site-packages", folder / "own", folder / "log"
        for one in (self.installed, self.own):
            one.mkdir()
            monkeypatch.syspath_prepend(one)
        self._monkeypatch, self._names = monkeypatch, list[str]()

    def write(self, folder: Path, name: str, text: str = "") -> None:
        note = f"import os\nwith open({str(self._log)!r}, 'a') as log: log.write('{name} %d\\n' % os.getpid())\n"
        (folder / f"{name}.py").write_text(note + textwrap.dedent(text))
        self._names.append(name)

    def source(self, name: str) -> Any:
        """Import a module of the user's, and forget which imports were noted."""
        invalidate_caches()
        module = import_module(name)
        for one in self._names:
            if one in sys.modules:
                self._monkeypatch.setitem(sys.modules, one, sys.modules[one])
        self._log.write_text("")
        return module

    def imports(self, name: str) -> list[int]:
        """The processes that have imported it."""
        return [int(line.split()[1]) for line in self._log.read_text().splitlines() if line.split()[0] == name]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    return Packages(tmp_path, monkeypatch)


def test_what_the_sources_module_imports_is_imported_once(packages: Packages) -> None:
    packages.write(packages.installed, "rl_transforms", "def scale(x): return x * 2")
    packages.write(
        packages.own,
        "rl_source",
        """
        import rl_transforms
        class Source:
            fields = {"x": ((), "int64")}
            def __len__(self): return 24
            def load(self, index, rng, out): out["x"] = rl_transforms.scale(index)
        """,
    )
    source = packages.source("rl_source").Source()
    pids = set()
    for _ in range(2):
        with Loader(source, 4, shuffle=False, **OPTIONS) as loader:
            assert [batch["x"].tolist() for batch in loader] == [[2 * (4 * k + i) for i in range(4)] for k in range(6)]
            pids.add(template_of(loader))
    assert packages.imports("rl_transforms") == list(pids)
    own = packages.imports("rl_source")
    assert own  # by each worker that has begun, as it may open what must not be shared
    assert not pids & set(own)


def test_a_function_of_the_script_is_followed_to_what_it_imports() -> None:
    code = """
        import sys, tempfile, os
        folder = tempfile.mkdtemp() + "/site-packages"; os.mkdir(folder); sys.path.insert(0, folder)
        open(folder + "/rl_used.py", "w").write("import os\\npid = os.getpid()\\n")
        open(folder + "/rl_other.py", "w").write("import os\\npid = os.getpid()\\n")
        import rl_used, rl_other
        import ringload
        from ringload.workers import templates
        def help(out): out["x"] = rl_used.pid
        def load(index, rng, out): help(out)
        options = {"fields": {"x": ((), "int64")}, "n_samples": 8, "workers": 2, "ram_budget": "200MB"}
        with ringload.Loader(load, 4, **options) as loader:
            pids = {int(x) for batch in loader for x in batch["x"]}
            template = loader._engine._state.workers._supervisor._template
        print(pids == {template.pid}, template.key.modules[-1])
    """
    assert run_quietly(code) == "True rl_used\n"


def test_what_is_not_safe_is_left_to_the_workers(packages: Packages) -> None:
    """A thread, or an open descriptor: a fork has no thread, and would share the descriptor's position."""
    packages.write(packages.installed, "rl_good")
    packages.write(
        packages.installed,
        "rl_thread",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()",
    )
    packages.write(packages.installed, "rl_file", "import os\nfile = open(os.devnull)")
    packages.write(
        packages.installed, "rl_broken", "import sys\nif open('/proc/self/comm').read() == 'ringload:templ\\n': sys.exit(3)"
    )
    packages.write(
        packages.own,
        "rl_source_of_all",
        """
        import rl_broken, rl_good, rl_thread, rl_file
        class Source:
            fields = {"x": ((), "int64")}
            def __len__(self): return 24
            def load(self, index, rng, out): out["x"] = index
        """,
    )
    source = packages.source("rl_source_of_all").Source()
    with Loader(source, 4, shuffle=False, **OPTIONS) as loader:
        assert [batch["x"].tolist() for batch in loader] == [[4 * k + i for i in range(4)] for k in range(6)]
        template = template_of(loader)
        assert psutil.Process(template).num_threads() == 1
        workers = {one.pid for one in psutil.Process(server_of(loader)).children()}
    assert set(packages.imports("rl_good")) == {template}
    for name in ("rl_thread", "rl_file"):
        assert template in packages.imports(name)
        assert set(packages.imports(name)) & workers
        assert set(packages.imports(name)) <= workers | {template}
    assert len(packages.imports("rl_thread")) <= 2 + 3  # each worker; the template, which begins anew for each that is not safe


def test_a_package_that_ends_the_process_is_survived(packages: Packages) -> None:
    packages.write(
        packages.installed, "rl_deadly", "import os, sys\nif open('/proc/self/comm').read() == 'ringload:templ\\n': os._exit(5)"
    )
    packages.write(
        packages.own,
        "rl_source_of_deadly",
        """
        import rl_deadly
        from tests.helpers import Truth
        class Source(Truth): pass
        """,
    )
    source = packages.source("rl_source_of_deadly").Source(40)
    with Loader(source, 4, **OPTIONS) as loader:
        verify(loader)
        assert (template_of(loader), loader.stats.n_restarts) == (-1, 1)
    templates._templates._unusable.clear()


@pytest.mark.needs("torch")
def test_the_drop_in_imports_torch_and_what_the_dataset_imports_once(packages: Packages) -> None:
    from ringload.torch import DataLoader

    packages.write(packages.installed, "rl_transforms_of_dataset", "def scale(x): return x * 2")
    packages.write(
        packages.own,
        "rl_dataset",
        """
        import os, sys
        had_torch = "torch" in sys.modules
        import torch
        import ringload.torch
        import rl_transforms_of_dataset
        class Dataset(torch.utils.data.Dataset):
            def __len__(self): return 24
            def __getitem__(self, index): return torch.tensor(rl_transforms_of_dataset.scale(index)), had_torch, os.getpid()
        """,
    )
    dataset = packages.source("rl_dataset").Dataset()
    loaders = [DataLoader(dataset, batch_size=4, num_workers=2) for _ in range(2)]
    (template,) = templates.running()  # which has begun, before anything is iterated
    for loader in loaders:
        pids = set()
        for number, (values, had_torch, by) in enumerate(loader):
            assert values.tolist() == [2 * (4 * number + i) for i in range(4)]
            assert had_torch.all()
            pids |= set(by.tolist())
        assert pids <= set(packages.imports("rl_dataset"))
        loader.close()
    assert packages.imports("rl_transforms_of_dataset") == [template.pid]
    assert [name for name in template.key.modules if "ringload.torch" in name] == ["ringload.torch.dataloader.iterable_source"]
    assert template in templates.running()


def test_the_table_of_images_is_not_what_workers_need(tmp_path: Path) -> None:
    """It stays in the trainer: so pandas is not imported for it. What a transform of the user's imports is."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    table = pd.DataFrame({"path": [str(tmp_path / "a.png")]})
    with_pandas = installed_modules(ImageFrame(table, size=(8, 8), transform=lambda image, rng: (pd.DataFrame, image)[1]))
    assert "pandas" not in installed_modules(ImageFrame(table, size=(8, 8)))
    assert "pandas" in with_pandas
