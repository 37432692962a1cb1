"""Bad samples of every kind, in every `on_error` mode, through real workers: named, bounded, and nobody else's trouble."""

from __future__ import annotations

import ast
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image, PngImagePlugin

import ringload
from ringload import Arrays, ConfigError, ImageFrame, Loader, SampleError
from ringload.workers.fill import MAX_REASON, MAX_TRACEBACK, MAX_WHERE, bounded
from tests.conftest import Injected, Times
from tests.helpers import check, photo
from tests.hostile import CASES, HEIGHT, NAMES, THE_BAD, WIDTH, Hostile
from tests.hostile_functions import (
    ATTACKS,
    IN_A_PROCESS_OF_ITS_OWN,
    OF_A_ROW,
    Attacked,
    AttackedRows,
    CannotAskAhead,
    ForksAndWaits,
    Refused,
    RudeError,
    SlowToStart,
)

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

MODES = pytest.mark.parametrize("on_error", ["raise", "skip", "replace"])
N_GOOD = 7


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that nobody can look and write into, with one for payloads in it; those of pytest are root's alone."""
    folder = Path(tempfile.mkdtemp())
    (folder / "payloads").mkdir()
    for one in (folder, folder / "payloads"):
        one.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def hostile(folder: Path) -> tuple[Hostile, dict[int, np.ndarray]]:
    """A source of good files with one of CASES between each two, and what the good ones show."""
    for seed in range(N_GOOD):
        Image.fromarray(photo(seed, HEIGHT, WIDTH)).save(folder / f"{seed}.png")
    paths: list[str] = []
    truth: dict[int, np.ndarray] = {}
    for number, case in enumerate(CASES.values()):
        path = folder / f"{number}.jpg"
        made = str(case.make(path, folder / "payloads") or path)
        for row, one in enumerate([f"{number % N_GOOD}.png", made, f"{(number + 3) % N_GOOD}.png"]):
            if row != THE_BAD:
                truth[len(paths)] = photo(int(Path(one).stem), HEIGHT, WIDTH)
            elif not case.said or case.opened:  # before it is opened by a worker, it may take another's place
                truth[len(paths)] = shown(made)
            paths.append(one)
    source = Hostile(pd.DataFrame({"path": paths}), root=folder, size=(HEIGHT, WIDTH), max_pixels=2_000_000)
    for number, case in enumerate(CASES.values()):
        if case.listed is not None:
            case.listed(folder / f"{number}.jpg")
        if case.opened is not None:
            (folder / f"{number}.jpg").chmod(0o666)
    return source, truth


def shown(path: str) -> np.ndarray:
    """A good image, by Pillow, which refuses large texts; the loader may differ by rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 30)
        patch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1 << 40)
        return by_pillow(path)


def by_pillow(path: str) -> np.ndarray:
    with Image.open(path) as image:
        wide = np.asarray(image) >> 8 if image.mode.startswith("I") else None
        return np.asarray((image if wide is None else Image.fromarray(wide.astype(np.uint8))).convert("RGB"))


def right(row: np.ndarray, expected: np.ndarray, exact: bool) -> None:
    assert np.abs(row.astype(int) - expected).mean() <= (0 if exact else 1.5)


@MODES
def test_files_of_every_kind(hostile: Any, folder: Path, on_error: Any, injected: Injected) -> None:
    source, truth = hostile
    options: dict[str, Any] = {"shuffle": False, "epochs": 1, "max_bad": 1000, "ram_budget": "800MB"}
    with Loader(source, 3, workers=2, on_error=on_error, **options) as made:
        iterator = iter(made)
        for number, case in enumerate(CASES.values()):
            bad = 3 * number + THE_BAD
            if on_error == "raise" and case.said:
                with pytest.raises(SampleError, match=re.escape(f"sample {bad} (")) as caught:
                    next(iterator)
                assert len(str(caught.value)) <= MAX_WHERE + MAX_REASON + MAX_TRACEBACK + 100
                told(caught.value, source, bad, case.said)
                continue
            batch = next(iterator)
            assert batch.number == number
            for row, index in enumerate(batch.index.tolist()):
                assert index == 3 * number + row or (on_error == "replace" and row == THE_BAD)
                if on_error == "skip" and row == THE_BAD and case.said:
                    assert not batch["valid"][row]
                    assert not batch["image"][row].any()
                else:
                    right(batch["image"][row], truth[index], exact=index % 3 != THE_BAD)
        assert next(iterator, None) is None
        said = {3 * number + THE_BAD: case.said for number, case in enumerate(CASES.values()) if case.said}
        assert [one.index for one in made.stats.bad] == list(said)
        for one in made.stats.bad:
            told(one, source, one.index, said[one.index])
            assert (on_error == "replace") == (one.replaced_by in truth)
    assert not list((folder / "payloads").iterdir()), "a payload ran"
    injected("bad or hostile file in a batch", len(said))


def told(bad: Any, source: Hostile, index: int, said: str) -> None:
    """An error, or an entry of the statistics, names the sample, its path and the reason."""
    assert (bad.index, bad.where) == (index, bounded(source.describe(index), MAX_WHERE))
    assert re.search(said, bad.reason), f"{NAMES[index // 3]}: {bad.reason}"
    assert "\n" not in bad.reason
    assert len(bad.reason) <= MAX_REASON
    assert len(bad.traceback) <= MAX_TRACEBACK


# -- users' functions -------------------------------------------------------------------------------------------------


HOW = [
    pytest.param(workers, kind, on_error, marks=[pytest.mark.stress] if is_more_of_the_same else [])
    for kind in (Attacked, AttackedRows)
    for on_error in ("raise", "skip", "replace")
    for workers in (0, 2)
    for is_more_of_the_same in [kind is AttackedRows and (on_error == "replace" or workers == 0)]
]


@pytest.mark.parametrize(("workers", "kind", "on_error"), HOW)
def test_functions_that_do_what_they_should_not(
    workers: int, kind: Any, on_error: Any, times: Times, injected: Injected, capfd: Any
) -> None:
    names = ATTACKS.keys() - (OF_A_ROW if kind is AttackedRows else set()) - (set() if workers else IN_A_PROCESS_OF_ITS_OWN)
    attacks = [name for name in ATTACKS if name in names] * times(1, 4)
    options: dict[str, Any] = {"shuffle": False, "epochs": 1, "max_bad": 10_000, "ram_budget": "600MB", "restarts": None}
    with Loader(kind(attacks), 3, workers=workers, on_error=on_error, **options) as made:
        iterator = iter(made)
        for number, name in enumerate(attacks):
            said = ATTACKS[name][1]
            if on_error == "raise" and said:
                with pytest.raises(SampleError, match=said) as caught:
                    next(iterator)
                assert caught.value.index == 3 * number + THE_BAD
                assert len(str(caught.value)) <= MAX_WHERE + MAX_REASON + MAX_TRACEBACK + 100
                continue
            batch = next(iterator)
            rows = check(batch).tolist()
            whole = [3 * number, 3 * number + 1, 3 * number + 2]
            if on_error == "replace" and said:
                assert rows[THE_BAD] != whole[THE_BAD]
                del rows[THE_BAD]
            assert rows == (whole[::2] if said else whole), name
        assert next(iterator, None) is None
        reasons = {one.index: one.reason for one in made.stats.bad}
        for number, name in enumerate(attacks):
            reason = reasons.get(3 * number + THE_BAD, "")
            assert bool(reason) == bool(ATTACKS[name][1])
            assert re.search(ATTACKS[name][1], reason), name
            assert len(reason) <= MAX_REASON
            assert "\n" not in reason
    injected("hostile user's function in a batch", len(attacks))


@pytest.mark.parametrize("attack", ["closing descriptors", "closing descriptors and opening others"])
def test_who_closed_the_descriptors_is_blamed_and_not_who_is_loaded_next(attack: str, injected: Injected) -> None:
    options: dict[str, Any] = {"shuffle": False, "epochs": 1, "restarts": None, "stall_timeout": 20, "ram_budget": "600MB"}
    with Loader(Attacked([attack]), 3, workers=1, on_error="skip", **options) as made:  # a task of three rows
        assert [check(batch).tolist() for batch in made] == [[0, 2]]
        assert [bad.index for bad in made.stats.bad] == [1]
        injected("descriptors are closed in the middle of a task", made.stats.n_restarts)


def test_what_takes_the_place_of_the_descriptors_is_not_written_to(tmp_path: Path, injected: Injected) -> None:
    def load(index: int, rng: Any, out: Any) -> None:
        if index == 1:  # the last row of its task
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.closerange(3, 4096)
            for n in range(40):
                os.open(tmp_path / f"{os.getpid()}-{n}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        out["x"] = index

    options: dict[str, Any] = {"fields": {"x": ((), "int64")}, "n_samples": 4, "shuffle": False, "epochs": 1, "restarts": None}
    with Loader(load, 2, workers=1, on_error="skip", ram_budget="600MB", stall_timeout=20, **options) as made:
        assert [batch["x"].tolist() for batch in made] == [[0, 0], [2, 3]]
        assert [bad.index for bad in made.stats.bad] == [1]
        injected("the worker's descriptors are replaced by files of the user's", made.stats.n_restarts)
    assert len(list(tmp_path.iterdir())) >= 80
    assert not any(file.stat().st_size for file in tmp_path.iterdir())


def test_who_is_slow_to_start_is_at_no_sample() -> None:
    """With nothing in hand yet, nobody exceeds `sample_timeout`, nor is named in an error."""
    with Loader(SlowToStart(40), 8, workers=2, sample_timeout=0.1, epochs=1, ram_budget="600MB") as made:
        assert made._engine._state.workers.current_work() == {}
        assert sum(len(check(batch)) for batch in made) == 40
        assert made.stats.n_restarts == 0


@pytest.mark.parametrize("where", ["start", "prefetch"])
def test_a_fork_of_a_worker_is_no_second_one(where: str, tmp_path: Path, injected: Injected) -> None:
    options: dict[str, Any] = {"workers": 1, "epochs": 2, "ram_budget": "600MB", "stall_timeout": 20}
    with Loader(ForksAndWaits(where, tmp_path), 8, **options) as made:
        for _ in range(2):
            assert sum(len(check(batch)) for batch in made) == 40
        assert [int(one.name) for one in tmp_path.iterdir()] == made._engine._state.workers._supervisor.pids
        assert made.stats.n_restarts == 0
    injected(f"os.fork in a source's {where}", 1)


@pytest.mark.parametrize(
    ("error", "named"), [((FileNotFoundError, 2, "none", "gone.bin"), "'gone.bin'"), ((RudeError,), "RudeError: <")]
)
def test_who_cannot_ask_ahead_loads_without(error: Any, named: str, injected: Injected, capfd: Any) -> None:
    with Loader(CannotAskAhead(*error), 8, workers=2, epochs=2, ram_budget="600MB") as made:
        for _ in range(2):
            assert sum(len(check(batch)) for batch in made) == 40
        assert (made.stats.n_restarts, made.stats.n_bad) == (0, 0)
    said = capfd.readouterr().err
    assert 1 <= said.count(": RuntimeWarning: ") <= 2, said  # each worker, once
    assert named in said
    injected("an exception in a source's prefetch", 1)


def test_without_workers_the_error_of_a_start_is_the_users() -> None:
    with pytest.raises(ConnectionRefusedError, match="the data set's server says no") as caught:
        Loader(Refused(40), 8, workers=0, ram_budget="600MB")
    assert type(caught.value) is ConnectionRefusedError


# -- nothing is unpickled ---------------------------------------------------------------------------------------------


def test_nothing_but_the_source_is_ever_unpickled() -> None:
    """`unpack` and `read_job` read what the trainer itself has written into a memfd; `ringload.torch.DataLoader` what its
    workers have, where the user says allow_pickle=True."""
    found = set()
    for path in Path(ringload.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if re.fullmatch(
                    r"(pickle|cloudpickle|np|numpy|torch|joblib|marshal)\.(loads?|Unpickler)|pd\.read_pickle|eval|exec", name
                ):
                    found.add((path.name, name))
            assert not isinstance(node, ast.keyword) or node.arg != "allow_pickle"
    assert found == {("unpack.py", "pickle.Unpickler"), ("worker.py", "pickle.loads"), ("values.py", "pickle.loads")}


def test_tables_and_arrays_that_would_be_unpickled_are_refused(tmp_path: Path) -> None:
    for suffix in (".pkl", ".npy", ".pt"):
        with pytest.raises(ConfigError, match=r"neither \.csv nor \.parquet"):
            ImageFrame(tmp_path / f"table{suffix}", size=(8, 8))
    with pytest.raises(ConfigError, match="holds Python objects"):
        Arrays(x=np.array([{}, []], object))


# -- frames -----------------------------------------------------------------------------------------------------------


def test_odd_frames(photos: Path, tmp_path: Path) -> None:
    """Paths as bytes and as Path, the same ones again, an index that repeats, a path that leads out of the root."""
    names = ["a/00.jpg", b"a/00.jpg", Path("b/01.jpg"), "a/00.jpg", f"../{photos.name}/b/01.jpg", str(photos / "b/01.jpg")]
    df = pd.DataFrame({"path": names, "label": list("xyxyxy")}, index=[7, 7, 7, 7, 7, 7])
    source = ImageFrame(df, label="label", root=photos, size=(16, 16), max_pixels=10**6)
    with Loader(source, 6, workers=2, shuffle=False, epochs=1, ram_budget="600MB") as made:
        (batch,) = made
        assert batch["label"].tolist() == [0, 1, 0, 1, 0, 1]
        for row, same in enumerate([0, 0, 2, 0, 2, 2]):
            np.testing.assert_array_equal(batch["image"][row], batch["image"][same])
        assert (batch["image"][0] != batch["image"][2]).any()
    with pytest.raises(ConfigError, match=r"'path' has 1 missing values \(NaN\), first in rows 7"):
        ImageFrame(df.assign(path=["a", "b", "c", "d", "e", np.nan]), size=(16, 16))


def anonymous_bytes() -> list[int]:
    """What each worker has of its own: beside what is shared, and what it has of files."""
    workers = [one for one in psutil.Process().children(recursive=True) if re.fullmatch(r"ringload:\d+", one.name())]
    statuses = [Path(f"/proc/{one.pid}/status").read_text() for one in workers]
    return [int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) * 1024 for status in statuses]


def test_workers_hold_no_million_rows(photos: Path, times: Times, injected: Injected) -> None:
    """A million rows take 60 MB and more as a frame, 8 MB and more as a column of addresses."""
    used, most = [], times(300_000, 10_000_000)
    table = pd.read_csv(photos / "photos.csv")
    with Loader(ImageFrame(table, root=photos, size=(16, 16)), 24, workers=0, shuffle=False) as made:
        images = next(iter(made)).copy()["image"]
    for n in (24, most):
        source = ImageFrame(table.iloc[np.arange(n) % 24], label="multi", root=photos, size=(16, 16), max_pixels=10**6)
        with Loader(source, 8, workers=2, ram_budget="900MB") as made:
            iterator = iter(made)
            for _ in range(3):
                batch = next(iterator)
                assert (batch["label"] == batch.index % 3).all()
                for row, index in enumerate(batch.index % 24):
                    np.testing.assert_array_equal(batch["image"][row], images[index])
            used.append(max(anonymous_bytes()))
    assert used[1] - used[0] < 2_000_000
    injected("rows of a table", most)
