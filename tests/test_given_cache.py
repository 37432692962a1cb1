"""`Loader(cache=...)`: a folder, or memory that the workers share. The same bytes with it and without it."""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import ringload
from ringload import BudgetError, ConfigError, Field, FunctionSource, ImageFrame, Loader
from ringload.sources.row_memory import HEAD_BYTES, RowMemory
from tests.deaths import kill_all, members
from tests.helpers import Truth, photo
from tests.test_cached import LOOKS, SIZE, N, Slow, assert_same, epochs, table  # noqa: F401 (a fixture)

RECORD_BYTES = 1920  # of 20 x 30 x 3 bytes, with their mark, in memory


def ram_of(loader: Loader) -> list[RowMemory]:
    return loader._cache._memories


@pytest.mark.parametrize("look", LOOKS)
def test_memory_gives_the_same_to_the_bit(table: pd.DataFrame, look: str) -> None:  # noqa: F811
    frame = ImageFrame(table, label="label", size=SIZE, **LOOKS[look])
    assert_same(epochs(frame, 3, cache="ram"), epochs(frame, 3))


@pytest.mark.parametrize("start", [{"workers": 0}, {"workers": 2}, {"start_method": "fork"}, {"start_method": "spawn"}])
def test_the_second_epoch_decodes_nothing(tmp_path: Path, start: dict[str, Any]) -> None:
    source = Slow(str(tmp_path / "log"))
    kept = epochs(source, 3, cache="ram", **start)
    assert (tmp_path / "log").stat().st_size == N
    assert_same(kept, epochs(source, 3))


def test_a_folder_is_as_by_cached(table: pd.DataFrame, tmp_path: Path) -> None:  # noqa: F811
    """The file is the same one, which another loader reads."""
    frame = ImageFrame(table, size=SIZE, flip=True)
    assert_same(epochs(frame, 2, cache=tmp_path / "cache", cache_bytes="1MB"), epochs(frame, 2))
    cached = frame.cached(tmp_path / "cache", "1MB")
    assert (cached.n_filled(), len(os.listdir(tmp_path / "cache"))) == (N, 1)
    record = 20 * 30 * 3 + 48
    with Loader(frame, 6, workers=0, cache=str(tmp_path / "cache"), cache_bytes=64 + 5 * record) as loader:
        assert loader.source.n_kept == 5
    with Loader(frame, 6, workers=0, cache=str(tmp_path / "cache")) as loader:
        assert (loader.source.n_kept, loader.source.path) == (N, cached.path)


def test_memory_that_is_too_small_keeps_the_first_samples(tmp_path: Path) -> None:
    source = Slow(str(tmp_path / "log"))
    with Loader(source, 6, workers=2, epochs=3, seed=3, ram_budget="500MB", cache="ram", cache_bytes=7 * 128) as loader:
        batches = [
            {name: np.array(batch[name]) for name in batch} | {"index": batch.index.copy()} for _ in "abc" for batch in loader
        ]
        assert ram_of(loader)[0].are_marked(np.arange(N)).tolist() == [True] * 7 + [False] * (N - 7)
    assert (tmp_path / "log").stat().st_size == 7 + 3 * (N - 7)
    assert_same(batches, epochs(source, 3))


def test_a_state_goes_on_with_a_cache_or_without(table: pd.DataFrame, tmp_path: Path) -> None:  # noqa: F811
    frame = ImageFrame(table, size=SIZE, flip=True)
    expected = epochs(frame, 2)
    state: dict[str, Any] = {}
    got = []
    for options in ({"cache": "ram"}, {}, {"cache": tmp_path}, {"cache": "ram"}):
        with Loader(frame, 6, workers=1, epochs=2, seed=3, ram_budget="500MB", **options) as loader:
            if state:
                loader.load_state_dict(state)
            batches = iter(loader)
            for _ in range(2):
                batch = next(batches)
                got.append({"image": batch["image"].copy(), "index": batch.index.copy()})
            state = loader.state_dict()
    assert_same(got, expected)


def test_a_source_that_is_changed_is_loaded_again(tmp_path: Path) -> None:
    class Shifted(Slow):
        shift = 0

        def load(self, index: int, rng: Any, out: Any) -> None:
            super().load(index, rng, out)
            out["n"] = index + self.shift

    for workers in (0, 2):
        source = Shifted(str(tmp_path / "log"))
        with Loader(source, 6, workers=workers, ram_budget="500MB", cache="ram") as loader:
            for source.shift in (0, 100, 100, 300):
                for batch in loader:
                    np.testing.assert_array_equal(batch["n"], batch.index + source.shift)


def test_a_file_that_has_changed_is_decoded_again(table: pd.DataFrame) -> None:  # noqa: F811
    frame = ImageFrame(table, size=SIZE)
    with Loader(frame, N, workers=0, shuffle=False, epochs=4, ram_budget="500MB", cache="ram") as loader:
        seen = []
        for epoch in range(4):
            if epoch == 2:
                Image.fromarray(photo(77, 40, 40)).save(table["path"][2])
            seen += [batch["image"].copy() for batch in loader]
    np.testing.assert_array_equal(seen[0], seen[1])
    expected = epochs(frame, 1, shuffle=False)
    np.testing.assert_array_equal(seen[3], np.concatenate([batch["image"] for batch in expected]))
    assert not np.array_equal(seen[3][2], seen[0][2])


# -- mixes, parts, other sources ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["ram", "folder"])
def test_each_source_of_a_mix_has_a_cache(table: pd.DataFrame, tmp_path: Path, where: str) -> None:  # noqa: F811
    frame = ImageFrame(table, size=SIZE, flip=True)
    crops = ImageFrame(table[:10], size=SIZE, resize="random_crop")
    mixed = ringload.mix({"a": frame.subset(range(9)), "b": frame.subset(range(9, N))}, {"a": 1, "b": 3})
    cache = "ram" if where == "ram" else tmp_path / "cache"
    assert_same(epochs(mixed, 3, cache=cache), epochs(mixed, 3))
    both = ringload.mix({"a": frame, "b": crops})
    with Loader(both, 6, workers=0, cache=cache, cache_size=(40, 50), cache_bytes=100_000) as loader:
        assert [one.n_kept for one in loader.source.sources.values()] == [22, 9]
    with pytest.raises(ConfigError, match=r"mix: source 'b': Cached: .*Truth may draw from `rng`"):
        Loader(_mix_of_truths(), 6, cache=cache)


def _mix_of_truths() -> Any:
    plain = Truth()
    plain.random = False
    plain.fingerprint = lambda: "plain"
    return ringload.mix({"a": plain, "b": Truth()})


@pytest.mark.parametrize("kind", [Slow, ImageFrame])
def test_parts(table: pd.DataFrame, tmp_path: Path, kind: Any) -> None:  # noqa: F811
    """In a folder they share the file of the whole; in memory there is room for the part alone."""
    source = Slow(str(tmp_path / "log")) if kind is Slow else ImageFrame(table, size=SIZE, flip=True)
    parts = [ringload.Part(source, rows) for rows in (np.arange(12)[::-1], np.arange(6, 24))]
    for part in parts:
        expected = epochs(part, 3)
        assert_same(epochs(part, 3, cache="ram"), expected)
        assert_same(epochs(part, 3, cache=tmp_path / "cache"), expected)
        with Loader(part, 6, workers=0, cache="ram") as loader:
            assert ram_of(loader)[0].n_kept == len(part)
    assert len(os.listdir(tmp_path / "cache")) == 1
    assert ringload.Cached(source, tmp_path / "cache", "1MB").n_filled() == N


def test_packed_rows_and_groups(tmp_path: Path) -> None:
    class Tokens(Slow):
        def __init__(self) -> None:
            self.path = str(tmp_path / "log")
            self.fields = {"tokens": Field((9,), "int64")}

        def load(self, index: int, rng: Any, out: Any) -> None:
            with open(self.path, "ab") as file:
                file.write(b".")
            out["tokens"] = index * 10 + np.arange(9)

    packed = ringload.Packed(Tokens(), np.arange(N) % 9 + 1, 20, "tokens")
    expected = epochs(packed, 3)
    before = (tmp_path / "log").stat().st_size
    assert_same(epochs(packed, 3, cache="ram"), expected)
    assert (tmp_path / "log").stat().st_size - before <= N
    assert_same(epochs(packed, 3, cache=tmp_path / "cache"), expected)


def test_a_table_of_parquet_has_its_order(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pd.DataFrame({"x": np.arange(N), "y": np.arange(N) / 3}).to_parquet(tmp_path / "t.parquet", row_group_size=5)
    source = ringload.ParquetTable(str(tmp_path / "t.parquet"))
    assert_same(epochs(source, 3, cache="ram"), epochs(source, 3))


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda: FunctionSource(print, {"x": Field((), "int64")}, 9), {}, "cache=: a function load"),
        (Truth, {}, "Cached: an object of class tests.Truth may draw from `rng`"),
        (lambda: Slow(""), {"cache": 5}, "cache is a folder on a local disk, or 'ram', not 5"),
        (lambda: Slow(""), {"cache": ""}, "cache is a folder on a local disk, or 'ram', not ''"),
        (lambda: Slow(""), {"cache_bytes": "much"}, "cache_bytes is a number of bytes, or a text such as"),
        (lambda: Slow(""), {"cache_bytes": 100}, "cache_bytes=100 has no room for a row, which takes 128 bytes: raise it"),
        (lambda: Slow(""), {"cache": None, "cache_bytes": 100}, "cache_bytes= is for cache=: give a folder"),
        (lambda: Slow(""), {"cache": None, "cache_size": (9, 9)}, "cache_size= is for cache=: give a folder"),
        (lambda: Slow(""), {"cache_size": (9, 9)}, "size= is for images with resize='random_crop'"),
        (lambda: ringload.Stream(lambda part: [], {"x": Field((), "int64")}), {}, "Stream have no index, by which"),
    ],
)
def test_what_is_refused(make: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Loader(make(), 3, workers=0, **({"cache": "ram"} | options))


def test_what_is_kept_already(table: pd.DataFrame, tmp_path: Path) -> None:  # noqa: F811
    cached = ImageFrame(table, size=SIZE).cached(tmp_path, "1MB")
    for source in (cached, cached.subset([1, 2, 3]), ringload.mix({"a": cached.subset([1, 2, 3])})):
        for cache in ("ram", tmp_path / "other"):
            with pytest.raises(ConfigError, match=r"are kept already, by cached\(\): leave out cache="):
                Loader(source, 3, workers=0, cache=cache)


def test_the_generator_has_a_cache(table: pd.DataFrame, tmp_path: Path) -> None:  # noqa: F811
    options: dict[str, Any] = {"workers": 1, "epochs": 2, "ram_budget": "500MB", "flip": True}
    plain, *others = (
        [(x.copy(), y.copy()) for x, y in ringload.generator_from_df(table, 6, SIZE, "label", **options, **cache)]
        for cache in ({}, {"cache": "ram"}, {"cache": str(tmp_path / "cache"), "cache_bytes": "1MB"})
    )
    for other in others:
        for (x, y), (expected_x, expected_y) in zip(other, plain, strict=True):
            np.testing.assert_array_equal(x, expected_x)
            np.testing.assert_array_equal(y, expected_y)


# -- memory ---------------------------------------------------------------------------------------------------------------


def test_the_plan_has_a_row_of_the_cache(table: pd.DataFrame) -> None:  # noqa: F811
    frame = ImageFrame(table, size=SIZE)
    for options, n_kept, said in [
        ({}, N, "room for 100% of the decoded samples, which take 46.1 kB; once for all workers"),
        ({"cache_bytes": 6 * RECORD_BYTES}, 6, "room for 25% of the decoded samples"),
        ({"cache_bytes": "1GB"}, N, "room for 100% of the decoded samples"),
    ]:
        with Loader(frame, 6, workers=1, ram_budget="500MB", cache="ram", **options) as loader:
            plan = loader.plan()
            assert ram_of(loader)[0].n_kept == n_kept
        assert plan.cache_bytes == n_kept * RECORD_BYTES
        assert ("cache", plan.cache_bytes) in [row[:2] for row in plan.rows()]
        assert sum(row[1] for row in plan.rows()) == plan.total_bytes <= plan.budget_bytes
        assert said in repr(plan)
    large = ImageFrame(pd.concat([table] * 500), size=(300, 400))  # 4.3 GB
    with Loader(large, 6, workers=1, ram_budget="500MB", cache="ram") as loader:
        plan = loader.plan()
        assert 0 < ram_of(loader)[0].n_kept < len(large)
    assert plan.total_bytes <= plan.budget_bytes
    assert plan.n_slots < 64  # neither has all that it wants: a half each
    assert 0.8 < plan.cache_bytes / plan.ring_bytes < 1.25
    with pytest.raises(BudgetError, match=r"cache 2\.0 GB .* or cache_bytes"):
        Loader(large, 6, workers=1, ram_budget="500MB", cache="ram", cache_bytes="2GB")


def test_a_ring_of_64_batches_is_enough_beside_a_cache(table: pd.DataFrame) -> None:  # noqa: F811
    frame = ImageFrame(pd.concat([table] * 500), size=(100, 100))
    with Loader(frame, 6, workers=1, ram_budget="700MB", cache="ram") as loader:
        plan = loader.plan()
    assert 64 <= plan.n_slots <= 66
    assert plan.budget_bytes - plan.total_bytes < 3 * plan.slot_bytes
    with pytest.raises(BudgetError, match=r"cache='ram': what ram_budget leaves, .* bytes, has no room for a row"):
        Loader(ImageFrame(table, size=(3000, 4000)), 1, workers=0, ram_budget=3 * 36_004_000 + 400_000, cache="ram")


def test_memory_ends_with_the_loader(table: pd.DataFrame) -> None:  # noqa: F811
    frame = ImageFrame(table, size=SIZE)
    expected = epochs(frame, 1, workers=0, shuffle=False)
    before = len(os.listdir("/proc/self/fd"))
    for workers in (0, 1):
        with Loader(frame, 6, workers=workers, ram_budget="500MB", cache="ram") as loader:
            for _ in loader:
                pass
            source = loader.source
        del _
        assert source.n_kept == 0
        assert_same(epochs(source, 1, workers=0, shuffle=False), expected)  # all of them are loaded
        del loader, source
        assert len(os.listdir("/proc/self/fd")) <= before + (1 if workers else 0)  # a template of workers


# -- deaths ---------------------------------------------------------------------------------------------------------------


def test_a_row_counts_when_its_mark_is_written() -> None:
    """Processes are killed between any two calls of `keep`: their rows are not there, and the next process writes them."""
    memory = RowMemory(1000, 10)
    memory.allocate(10**6)
    row, scratch = np.frombuffer(os.urandom(1000), np.uint8), np.zeros(1000, np.uint8)
    n_died = 0
    for call in range(1, 100):
        pid = os.fork()
        if pid == 0:
            _die_before(call)
            memory.keep(4, (7, 8), (30, 40), row)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
        n_died += died
        found = memory.find(4, (7, 8), scratch)
        if not died:
            break
        if found is not None:  # the mark was written before
            np.testing.assert_array_equal(found[1], row)
            memory.begin_anew()
    assert n_died >= 4
    found = memory.find(4, (7, 8), scratch)
    assert found is not None
    assert found[0] == (30, 40)
    np.testing.assert_array_equal(found[1], row)
    assert memory.find(4, (7, 9), scratch) is memory.find(5, (7, 8), scratch) is memory.find(10, (7, 8), scratch) is None
    with pytest.raises(ValueError, match="read-only"):
        found[1][0] = 1


def _die_before(call: int) -> None:
    """Kill this process before its nth call of a function in C."""
    n_calls = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal n_calls
        n_calls += event == "c_call"
        if n_calls == call:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def test_rows_are_written_once() -> None:
    """Another version is loaded each time: readers may look into the row. A row that is being written is left alone."""
    memory = RowMemory(1000, 10)
    memory.allocate(5 * memory.record_bytes)
    scratch = np.zeros(1000, np.uint8)
    first = np.full(1000, 1, np.uint8)
    memory.keep(2, (1, 1), (3, 3), first)
    memory.keep(2, (2, 2), (4, 4), np.full(1000, 2, np.uint8))
    memory.keep(7, (1, 1), (3, 3), first)  # beyond
    assert memory.n_kept == 5
    found = memory.find(2, (1, 1), scratch)
    assert found is not None
    np.testing.assert_array_equal(found[1], first)
    assert memory.find(2, (2, 2), scratch) is None
    read, write = os.pipe()
    go, gone = os.pipe()
    pid = os.fork()
    if pid == 0:
        fcntl.lockf(memory._fd, fcntl.LOCK_EX, 1, 3 * memory.record_bytes)
        os.write(write, b"x")
        os.read(go, 1)
        os._exit(0)
    os.read(read, 1)
    memory.keep(3, (1, 1), (3, 3), first)
    assert memory.find(3, (1, 1), scratch) is None
    os.write(gone, b"x")
    os.waitpid(pid, 0)
    memory.keep(3, (1, 1), (3, 3), first)
    assert memory.find(3, (1, 1), scratch) is not None
    for fd in (read, write, go, gone):
        os.close(fd)


class DiesWriting(Slow):
    """Its worker is killed the first time that it has written the half of some rows to memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder / "log"))
        self.folder = str(folder)
        self.fields = {"x": Field((5000,), "int64"), "n": Field((), "int64")}

    def load(self, index: int, rng: Any, out: Any) -> None:
        out["x"] = index * 7 + np.arange(5000)
        out["n"] = index
        if index % 5 == 2:
            _write_half(os.path.join(self.folder, str(index)))


def _write_half(marker: str) -> None:
    """The next pwrite of a row writes the half of it, and this process is killed."""
    real = os.pwrite

    def pwrite(fd: int, data: Any, start: int) -> int:
        if len(data) <= 48:  # a mark
            return real(fd, data, start)
        os.pwrite = real
        if os.path.exists(marker):
            return real(fd, data, start)
        Path(marker).touch()
        real(fd, memoryview(data)[: len(data) // 2], start)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    os.pwrite = pwrite


def _check(batch: Any) -> None:
    np.testing.assert_array_equal(batch["n"], batch.index)
    np.testing.assert_array_equal(batch["x"], batch.index[:, None] * 7 + np.arange(5000))


@pytest.mark.fault
def test_workers_are_killed_while_they_write_a_row(tmp_path: Path) -> None:
    with Loader(DiesWriting(tmp_path), 6, workers=2, epochs=4, ram_budget="500MB", restarts=None, cache="ram") as loader:
        for _ in range(4):
            for batch in loader:
                _check(batch)
        assert (loader.stats.n_batches, loader.stats.n_restarts > 0) == (16, True)
        memory = ram_of(loader)[0]
        assert memory.are_marked(np.arange(N)).all()
    assert len([name for name in os.listdir(tmp_path) if name.isdigit()]) == 5


@pytest.mark.fault
def test_workers_are_killed_at_any_time(table: pd.DataFrame, times: Any) -> None:  # noqa: F811
    frame = ImageFrame(table, size=(300, 400))
    n = times(12, 200)
    expected = [batch["image"] for batch in epochs(frame, 1, shuffle=False)]
    n_killed = 0
    options: dict[str, Any] = {"workers": 2, "shuffle": False, "ram_budget": "210MB", "restarts": None}
    with Loader(frame, 6, epochs=n, cache="ram", cache_bytes=20 * 370_000, **options) as loader:
        for number, batch in enumerate(loader):
            np.testing.assert_array_equal(batch["image"], expected[number % 4])
            if number % 4 == 1:
                n_killed += kill_all(members(loader)[1:])
        for epoch in range(1, n):
            for number, batch in enumerate(loader):
                np.testing.assert_array_equal(batch["image"], expected[number])
                if number == epoch % 4:
                    n_killed += kill_all(members(loader)[1:])
    assert n_killed >= 2


@pytest.mark.fault
def test_nothing_is_left_when_the_trainer_is_killed(table: pd.DataFrame, tmp_path: Path) -> None:  # noqa: F811
    code = """
        import sys
        import pandas as pd
        from ringload import ImageFrame, Loader
        loader = Loader(ImageFrame(pd.read_csv(sys.argv[1]), size=(300, 400)), 6, workers=2, ram_budget="500MB", cache="ram")
        for batch in loader:
            pass
        memory = loader._cache._memories[0]
        print(memory._file[1], *loader._engine._state.workers.processes().values(), flush=True)
        sys.stdin.read()
    """
    table.to_csv(tmp_path / "t.csv", index=False)
    shm = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "t.csv")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        _, *pids = map(int, run.stdout.readline().split())
        fds = [os.pidfd_open(pid) for pid in pids]
        run.kill()
        for fd in fds:
            assert select.select([fd], [], [], 30)[0]  # the process has ended, and with it its copy of the memory
            os.close(fd)
    assert set(os.listdir("/dev/shm")) <= shm


def test_two_ranks_share_a_folder(table: pd.DataFrame, tmp_path: Path) -> None:  # noqa: F811
    """At once: one file, each sample in it, and each rank has its rows of the right samples."""
    code = """
        import sys
        import numpy as np, pandas as pd
        from ringload import ImageFrame, Loader
        frame = ImageFrame(pd.read_csv(sys.argv[1]), size=(20, 30), flip=True)
        shard = (int(sys.argv[3]), 2)
        made = []
        for options in ({}, {"cache": sys.argv[2]}):
            with Loader(frame, 3, workers=1, epochs=3, seed=1, ram_budget="500MB", shard=shard, **options) as loader:
                made.append([(batch.index.copy(), batch["image"].copy()) for _ in range(3) for batch in loader])
        for (index, image), (kept_index, kept_image) in zip(*made, strict=True):
            assert (index == kept_index).all() and (image == kept_image).all()
        print(len(made[0]))
    """
    table.to_csv(tmp_path / "t.csv", index=False)
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "t.csv"), str(tmp_path / "cache")]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    assert [rank.communicate(timeout=100)[0] for rank in ranks] == ["12\n"] * 2
    assert len(os.listdir(tmp_path / "cache")) == 1
    assert ImageFrame(table, size=SIZE).cached(tmp_path / "cache", "1MB").n_filled() == N


def test_a_descriptor_of_another_file_is_not_taken_for_the_memory(tmp_path: Path) -> None:
    memory = RowMemory(100, 10)
    memory.allocate(10**4)
    memory.keep(1, (0, 0), (0, 0), np.ones(100, np.uint8))
    copy, scratch = pickle.loads(pickle.dumps(memory)), np.zeros(100, np.uint8)
    assert copy.find(1, (0, 0), scratch) is not None
    late = pickle.loads(pickle.dumps(memory))
    fd = memory._fd
    with open(tmp_path / "other", "wb") as other:
        other.write(bytes(5000))
        other.flush()
        memory.close()
        os.dup2(other.fileno(), fd)
        late.keep(1, (0, 0), (0, 0), np.ones(100, np.uint8))
        assert (late.n_kept, late.find(1, (0, 0), scratch)) == (0, None)
        os.close(fd)
    assert (tmp_path / "other").read_bytes() == bytes(5000)
    assert HEAD_BYTES == 64
