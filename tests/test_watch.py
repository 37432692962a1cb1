"""A source that is changed between epochs: workers load from it as it is now, or a word is said."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import Arrays, ConfigError, ImageFrame, Loader
from ringload.packing import watch as watch_module
from ringload.packing.pack import pack
from ringload.packing.watch import CHANGED, LATE, PIECE_BYTES, Watch
from tests.helpers import run_quietly

METHODS = ["forkserver", "spawn", "fork"]
BIG = PIECE_BYTES // 8  # int64 a piece


class Source:
    """Each sample says what the source is like."""

    fields = {"x": ((), "int64")}  # noqa: RUF012

    def __init__(self) -> None:
        self.strength = 0
        self.table = np.zeros(3 * BIG, np.int64)
        self.rows = [[0] for _ in range(5000)]
        self.names = {f"name {i}": 0 for i in range(3000)}
        self.nested = {"deep": [0]}
        self.n = 8

    def __len__(self) -> int:
        return self.n

    def load(self, index: int, rng: Any, out: Any) -> None:
        parts = self.strength, int(self.table.sum()), self.rows[4321][0], self.names["name 17"], self.nested["deep"][0]
        out["x"] = sum(parts)


def of_one_epoch(loader: Loader) -> set[int]:
    return {int(x) for batch in loader for x in batch["x"]}


CHANGES: dict[str, Any] = {
    "an attribute": lambda source: setattr(source, "strength", 1),
    "an element of a large array": lambda source: source.table.__setitem__(2 * BIG + 5, 1),
    "another array": lambda source: setattr(source, "table", source.table + (np.arange(3 * BIG) == 7)),
    "the content of an element of a list": lambda source: source.rows[4321].__setitem__(0, 1),
    "an element of a list": lambda source: source.rows.__setitem__(4321, [1]),
    "an entry of a dict": lambda source: source.names.__setitem__("name 17", 1),
    "what is deep in it": lambda source: source.nested["deep"].__setitem__(0, 1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", METHODS)
def test_a_change_between_epochs_is_seen_in_the_next(change: str, method: Any) -> None:
    source = Source()
    with Loader(source, 4, workers=2, ram_budget="400MB", start_method=method) as loader:
        assert [of_one_epoch(loader) for _ in range(2)] == [{0}, {0}]
        CHANGES[change](source)
        assert [of_one_epoch(loader) for _ in range(2)] == [{1}, {1}]
        assert loader.stats.n_restarts == 0  # which counts deaths


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("look", ["stats", "plan", "peek", "state_dict"])
def test_what_was_filled_when_the_loader_was_looked_at_is_no_older(look: str, workers: int) -> None:
    """Without workers, a look at the loader fills the batch that comes next."""
    source = Source()
    with Loader(source, 4, workers=workers, ram_budget="400MB") as loader:
        for strength in range(3):
            source.strength = strength
            if look == "peek":
                assert {*loader.peek()["x"].tolist()} == {strength}
            assert of_one_epoch(loader) == {strength}
            getattr(loader, look)() if look != "stats" else loader.stats


def test_a_change_before_the_first_epoch_counts_and_what_comes_back_is_the_old() -> None:
    source = Source()
    with Loader(source, 4, workers=1, ram_budget="400MB") as loader:
        for strength in (3, 0, 5, 5):
            source.strength = strength
            assert of_one_epoch(loader) == {strength}


def test_workers_go_on_where_nothing_was_changed() -> None:
    def pids(loader: Loader) -> set[int]:
        return set(loader._engine._state.workers.processes().values())

    source = Source()
    with Loader(source, 4, workers=2, ram_budget="400MB") as loader:
        of_one_epoch(loader)
        before = pids(loader)
        for _ in range(5):
            of_one_epoch(loader)
        assert pids(loader) == before
        source.strength = 1
        of_one_epoch(loader)
        assert not pids(loader) & before


def test_asking_for_a_state_or_a_fingerprint_changes_nothing(photos: Path) -> None:
    source = ImageFrame(photos / "photos.csv", label="multi", size=(16, 16), flip=True)
    with Loader(source, 8, workers=1, ram_budget="3GB") as loader:
        for _ in loader:
            pass
        before = loader._engine._state.workers.processes()
        loader.state_dict()
        assert (len(source.labels), source.class_names, len(source.filenames)) == (24, ["a", "b", "c"], 24)
        for _ in loader:
            pass
        assert loader._engine._state.workers.processes() == before
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()


def test_arrays_that_are_written_to_between_epochs() -> None:
    x, y = np.zeros((2000, 100)), np.zeros((2000, 5), np.int64)  # both are large
    with Loader(Arrays(x=x, y=y), 500, workers=2, ram_budget="400MB", shuffle=False) as loader:
        for value in (0, 1, 1, 2):
            x[1999, 99] = y[1_999] = value
            seen = {name: np.concatenate([batch[name] for batch in loader]) for name in ("x", "y")}
            assert (seen["x"][1999, 99], seen["y"][1999, 0]) == (value, value)


@pytest.mark.parametrize("what", ["fields", "n"])
def test_another_length_or_other_fields_are_refused_with_the_remedy(what: str) -> None:
    source: Any = Source()
    with Loader(source, 4, workers=1, ram_budget="400MB") as loader:
        of_one_epoch(loader)
        setattr(source, what, {"x": ((2,), "int64")} if what == "fields" else 12)
        with pytest.raises(ConfigError, match=r"other fields or another length.*make a new Loader"):
            iter(loader)
        setattr(source, what, Source.fields if what == "fields" else 8)
        assert of_one_epoch(loader) == {0}


def test_a_fork_whose_source_cannot_be_compared_is_made_anew() -> None:
    code = """
        import threading, ringload
        lock = threading.Lock()
        class Source:
            fields = {"x": ((), "int64")}
            strength = 0
            def __len__(self): return 8
            def load(self, index, rng, out):
                with lock: out["x"] = self.strength
        source = Source()
        with ringload.Loader(source, 4, workers=1, ram_budget="400MB", start_method="fork") as loader:
            for source.strength in (0, 1, 1, 2):
                print(*{int(x) for batch in loader for x in batch["x"]})
    """
    assert run_quietly(code).split() == ["0", "1", "1", "2"]


def test_a_change_while_a_worker_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    source = Source()
    with Loader(source, 2, workers=2, ram_budget="400MB", restarts=None) as loader:
        for strength in range(6):
            source.strength = strength
            batches = iter(loader)
            got = {int(x) for x in next(batches)["x"]}
            for process in psutil.Process().children(recursive=True):
                if strength % 2 or process.name() == "ringload:server":
                    process.kill()
            assert got | {int(x) for batch in batches for x in batch["x"]} == {strength}


# -- what is looked at when -------------------------------------------------------------------------------------------


def test_large_data_are_looked_at_in_turn_and_what_is_found_late_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "LEAST_PIECES", 1)
    monkeypatch.setattr(watch_module, "SHARE", 0.0)
    array = np.zeros(5 * BIG, np.int64)
    watch = Watch([array], pack([array]))
    array[4 * BIG + 1] = 1
    assert [watch.changed([array]) for _ in range(5)] == ["", "", "", "", LATE]


def test_small_data_are_compared_whole_however_slow_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SHARE", 0.0)
    for source in (np.zeros(64 * BIG, np.int64), np.zeros((64_000, 1), np.int64)):
        watch = Watch([source])
        source[-1:] = 1  # an element of the last piece
        assert [watch.changed([source]) for _ in range(2)] == [CHANGED, CHANGED]


@pytest.mark.parametrize("is_packed", [False, True])
def test_arrays_of_all_layouts_are_compared_by_their_content(is_packed: bool) -> None:
    array = np.arange(600_000.0).reshape(1000, 600)
    sources = [array, array.T, array[:, ::2], array[::-1], array.astype(">f4"), array.astype("S9"), array.view("i2")]
    for source in sources:
        mine = source.copy(order="K") if source.flags.forc else source
        watch = Watch([mine], pack([mine]) if is_packed else None)
        assert not watch.changed([mine])
        assert not watch.changed([mine.copy(order="K")])  # an equal one
        last = mine[-1, -1]
        mine[-1, -1] = mine[0, 1]
        assert watch.changed([mine])
        mine[-1, -1] = last
        assert not watch.changed([mine])
        assert watch.changed([mine[:-1]])


def test_arrays_that_nobody_can_write_to_are_not_read() -> None:
    array = np.zeros(40_000_000, np.int64)
    array.flags.writeable = False
    watch = Watch([array])
    begin = time.process_time()
    for _ in range(3):
        assert not watch.changed([array])
    assert watch._known[0].n_pieces == 0
    assert time.process_time() - begin < 60  # for a reader: it does not take what reading a GB takes
    assert watch.changed([array.copy()])


def test_strings_and_bytes_are_compared_by_identity() -> None:
    blob, text = bytes(100_000), "x" * 100_000
    watch = Watch({"a": blob, "b": text})
    assert not watch.changed({"a": blob, "b": text})
    assert watch.changed({"a": blob, "b": text + "y"})


def test_tensors_of_a_list_are_compared() -> None:
    code = """
        import torch
        from ringload.packing.watch import Watch
        data = [(torch.full((10,), float(i)), i) for i in range(3000)]
        watch = Watch(data)
        print(repr(watch.changed(data)))
        data[2500][0][3] = -1
        print(repr(watch.changed(data)))
        data[2500][0][3] = 2500
        print(repr(watch.changed(data)))
        data[10] = (torch.full((10,), 10.0), 10)
        print(repr(watch.changed(data)))
    """
    assert run_quietly(code) == "''\n'it was changed'\n''\n'it was changed'\n"
