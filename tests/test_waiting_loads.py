"""A user's `load` that waits: by threads, or by a `prefetch` that is a coroutine."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import ringload
from ringload import ConfigError, FunctionSource, Loader, SampleError
from ringload.sources.async_prefetch import AsyncPrefetch
from ringload.system.arrivals import ARRIVALS
from tests.helpers import Truth, check, content, run

OPTIONS: dict[str, Any] = {"ram_budget": "600MB", "seed": 5}
FIELDS = Truth().fields


class Threaded(Truth):
    """Its truth, by threads."""

    threads = 8

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        time.sleep(0.001)
        super().load(index, rng, out)


class Meeting(Threaded):
    """Samples that can be loaded only if 8 threads load at once."""

    def start(self, worker: Any) -> None:
        self.barrier = threading.Barrier(8)

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        self.barrier.wait(60)
        super().load(index, rng, out)


class Later(Truth):
    """Samples that a coroutine has to have read before: `load` has no other way to them."""

    def __init__(self, n: int = 100, folder: str = "") -> None:
        super().__init__(n)
        self.folder = folder

    def start(self, worker: Any) -> None:
        self.there: dict[int, int] = {}

    async def prefetch(self, indices: np.ndarray) -> None:
        for index in indices.tolist():
            while self.folder and index == 0 and not os.path.exists(f"{self.folder}/go"):
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.001)
            self.there[index] = index

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(self.there[index], rng, out)


class Plain(Truth):
    """The same samples, without threads."""


def batches_of(source: Any, **options: Any) -> list[dict[str, bytes]]:
    with Loader(source, 16, **{**OPTIONS, **options}) as made:
        return content(made) + content(made)


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "method"), [(0, "forkserver"), (1, "fork"), (2, "forkserver"), (2, "spawn")])
def test_threads_load_the_same_bytes(workers: int, method: Any) -> None:
    assert batches_of(Threaded(), workers=workers, start_method=method) == batches_of(Plain(), workers=0)


def test_so_many_threads_load_at_once() -> None:
    with Loader(Meeting(64), 16, workers=2, **OPTIONS) as made:  # 8 rows for each
        assert sum(len(check(batch)) for batch in made) == 64


def test_threads_go_on_with_the_next_task() -> None:
    """Samples of two batches, a task each, that can be loaded only if all of them are loaded at once."""

    class Two(Meeting):
        threads = 16

        def start(self, worker: Any) -> None:
            self.barrier = threading.Barrier(16)

    with Loader(Two(64), 8, workers=1, epochs=2, **OPTIONS) as made:
        assert [sum(len(check(batch)) for batch in made) for _ in range(2)] == [64, 64]


def test_threads_of_a_function() -> None:
    options: dict[str, Any] = {"fields": FIELDS, "n_samples": 100}
    expected = batches_of(Truth().load, workers=0, **options)
    assert batches_of(Threaded().load, workers=2, threads=4, **options) == expected
    source = FunctionSource(Threaded().load, FIELDS, 100, threads=4)
    assert source.split(0.5)[0].threads == 4
    mixed = ringload.mix({"a": source, "b": FunctionSource(Truth().load, FIELDS, 100)})
    assert mixed.threads == 1  # the other one does not allow more


@pytest.mark.parametrize("on_error", ["raise", "skip", "replace"])
def test_bad_samples_among_those_of_threads(on_error: Any) -> None:
    class Bad(Threaded):
        def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
            if index % 10 == 3:
                raise ValueError(f"no {index}")
            super().load(index, rng, out)

    class BadAlone(Bad):
        threads = 1

    options: dict[str, Any] = {"on_error": on_error, "max_bad": 100, "shuffle": False}
    if on_error == "raise":
        with Loader(Bad(), 16, workers=2, **options, **OPTIONS) as made, pytest.raises(SampleError, match="no 3") as raised:
            next(iter(made))
        assert raised.value.index == 3
        return
    assert batches_of(Bad(), workers=2, **options) == batches_of(BadAlone(), workers=0, **options)


def test_a_death_among_threads_is_blamed_on_its_sample(tmp_path: Path) -> None:
    class Deadly(Threaded):
        def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
            if index == 21:
                os._exit(3)
            super().load(index, rng, out)

    with Loader(Deadly(), 16, workers=2, shuffle=False, on_error="skip", **OPTIONS) as made:
        good = np.concatenate([check(batch) for batch in made])
        assert sorted(set(range(96)) - set(good.tolist())) == [21]


def test_a_death_by_what_is_read_for_another_task_is_blamed_on_its_own_sample() -> None:
    """Sample 13, of the second task, ends the process while sample 5 of the first is loaded."""

    class Deadly(Truth):
        def start(self, worker: Any) -> None:
            self.is_asked, self.ends = threading.Event(), threading.Event()

        def prefetch(self, indices: np.ndarray) -> None:
            if 13 in indices:
                self.is_asked.set()
                threading.Thread(target=self.end, daemon=True).start()

        def end(self) -> None:
            self.ends.wait()
            os._exit(3)

        def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
            if index in (5, 13) and self.is_asked.is_set():
                self.ends.set()
                time.sleep(60)
            super().load(index, rng, out)

    with Loader(Deadly(32), 8, workers=1, shuffle=False, on_error="skip", epochs=1, **OPTIONS) as made:
        good = np.concatenate([check(batch) for batch in made])
        assert sorted(set(range(32)) - set(good.tolist())) == [13]
        assert made.stats.n_restarts == 3  # once while 5 was loaded, and twice while 13 was


def test_the_others_of_a_task_with_a_deadly_sample_are_waited_for(tmp_path: Path) -> None:
    class Deadly(Later):
        def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
            if index == 21:
                os._exit(3)
            super().load(index, rng, out)

    with Loader(Deadly(), 16, workers=2, shuffle=False, on_error="skip", max_bad=3, **OPTIONS) as made:
        good = [np.concatenate([check(batch) for batch in made]) for _ in range(3)]
        for one in good:
            assert sorted(set(range(96)) - set(one.tolist())) == [21]


@pytest.mark.parametrize("threads", [0, -1, 1.5, "4", True])
def test_threads_of_another_kind_are_refused(threads: Any) -> None:
    with pytest.raises(ConfigError, match="threads"):
        FunctionSource(Truth().load, FIELDS, 10, threads=threads)
    with pytest.raises(ConfigError, match="threads"):
        Loader(Truth().load, 4, fields=FIELDS, n_samples=10, threads=threads, workers=0)


def test_threads_are_for_functions() -> None:
    with pytest.raises(ConfigError, match=r"leave out fields=, n_samples= and threads="):
        Loader(Truth(), 4, threads=4, workers=0)


# -- coroutines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "forkserver"), (2, "spawn")])
def test_a_coroutine_has_ended_before_its_samples_are_loaded(workers: int, method: Any) -> None:
    assert batches_of(Later(), workers=workers, start_method=method) == batches_of(Plain(), workers=0)


def test_a_part_and_a_mix_wait_for_coroutines(tmp_path: Path) -> None:
    part = ringload.mix({"a": Later(), "b": Later(50)}).subset(np.arange(0, 150, 2))
    plain = ringload.mix({"a": Plain(), "b": Plain(50)}).subset(np.arange(0, 150, 2))
    assert batches_of(part, workers=2) == batches_of(plain, workers=0)


def test_a_slow_coroutine_holds_up_its_own_task_alone(tmp_path: Path) -> None:
    with Loader(Later(100, str(tmp_path)), 4, workers=1, shuffle=False, **OPTIONS) as made:
        taken: list[Any] = []
        waiting = threading.Thread(target=lambda: taken.append(next(iter(made))))
        waiting.start()
        while made.poll().n_full < 2:
            assert waiting.is_alive()
        (tmp_path / "go").touch()
        waiting.join()
        assert check(taken.pop()).tolist() == [0, 1, 2, 3]


def test_the_same_samples_are_asked_for_again_while_they_are_read() -> None:
    """As those of the next epoch are: the first to be asked for is the first to be loaded."""
    gates, n_asked = [threading.Event(), threading.Event()], count()

    async def coroutine(indices: np.ndarray) -> None:
        gate = gates[next(n_asked)]
        while not gate.is_set():
            await asyncio.sleep(0.001)

    tasks, samples = AsyncPrefetch(coroutine), np.array([3, 1, 2])
    tasks.prefetch(samples)
    tasks.prefetch(samples)
    for gate in (gates[1], gates[0]):  # the second ends first
        assert not tasks.is_ready(samples)
        n_ended = ARRIVALS.n_ended
        gate.set()
        assert ARRIVALS.wait(n_ended)
    for _ in range(2):
        assert tasks.is_ready(samples)
        tasks.forget(samples)
    assert not tasks._under_way
    assert tasks.is_ready(np.array([7]))  # not asked for
    assert tasks._loop is not None
    tasks._loop.call_soon_threadsafe(tasks._loop.stop)
    for thread in threading.enumerate():
        if thread.name == "ringload-prefetch":
            thread.join()
    while tasks._loop.is_running():
        time.sleep(0.001)
    tasks._loop.close()


class Sorts(Later):
    """Its coroutine changes the indices that it is given."""

    async def prefetch(self, indices: np.ndarray) -> None:
        indices.sort()
        await super().prefetch(indices)


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        return function(*arguments)

    return called


class Decorated(Later):
    prefetch = decorated(Later.prefetch)


@pytest.mark.parametrize("kind", [Sorts, Decorated])
def test_coroutines_of_other_kinds(kind: Any) -> None:
    assert batches_of(kind(), workers=2) == batches_of(Plain(), workers=0)


def test_a_coroutine_that_ends_the_process_is_a_death_that_names_its_samples() -> None:
    class Exits(Later):
        async def prefetch(self, indices: np.ndarray) -> None:
            if 9 in indices:
                sys.exit(3)
            await super().prefetch(indices)

        def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
            Truth.load(self, index, rng, out)  # also without

    with Loader(Exits(32), 8, workers=1, shuffle=False, epochs=1, **OPTIONS) as made:
        assert sum(len(check(batch)) for batch in made) == 32
        assert made.stats.n_restarts == 1  # the batch of its samples is blamed at once


def test_packed_rows_wait_for_coroutines() -> None:
    class Tokens(Later):
        def __init__(self) -> None:
            super().__init__(40)
            self.fields = {"tokens": ringload.Field((4,), "int64")}

        def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
            out["tokens"][:] = self.there[index]

    packed = ringload.Packed(Tokens(), np.full(40, 2), 8, "tokens")
    with Loader(packed, 2, workers=1, **OPTIONS) as made:
        seen = [row for batch in made for row in batch["tokens"].copy()]
    assert sorted(np.concatenate(seen)[::2].tolist()) == list(range(40))


class Around:
    """A user's class around an ImageFrame. Image `n` is of level `n` alone."""

    threads, random = 8, False

    def __init__(self, folder: Path) -> None:
        for level in range(200):
            Image.new("L", (30, 30), level).save(folder / f"{level}.bmp")
        table = pd.DataFrame({"path": [f"{level}.bmp" for level in range(200)]})
        self.frame = ringload.ImageFrame(table, root=folder, size=(30, 30), color="gray")
        self.fields = self.frame.fields

    def __len__(self) -> int:
        return len(self.frame)

    def start(self, worker: Any) -> None:
        sys.setswitchinterval(1e-6)
        self.frame.start(worker)

    def load(self, index: int, rng: Any, out: Any) -> None:
        self.frame.load(index, None, out)


def test_threads_that_share_an_image_frame_get_their_own_images(tmp_path: Path) -> None:
    with Loader(Around(tmp_path), 40, workers=1, **OPTIONS) as made:
        for _ in range(6):
            for batch in made:
                assert (batch["image"] == batch.index[:, None, None, None]).all()


def test_scratch_is_that_of_all_threads() -> None:
    class Large(Threaded):
        scratch_bytes = 10_000_000

    with Loader(Large(), 4, workers=1, **OPTIONS) as made:
        assert made.plan().max_sample_bytes == 80_000_000


class FailsAtTimes(Truth):
    """Each other call of `prefetch` fails. A file has the numbers of the others."""

    def __init__(self, folder: Path, text: str = "no network") -> None:
        super().__init__(40)
        self.folder, self.text, self.n_calls = folder, text, 0

    def prefetch(self, indices: np.ndarray) -> None:
        self.n_calls += 1
        if self.n_calls % 2:
            raise ValueError(self.text.format(self.n_calls))
        with open(self.folder / "ahead", "a") as file:
            file.write(f"{self.n_calls} ")

    def check(self) -> None:
        ahead = [int(number) for number in (self.folder / "ahead").read_text().split()]
        assert ahead == list(range(2, 2 * len(ahead) + 1, 2))
        assert len(ahead) > 2


class CoroutineFailsAtTimes(FailsAtTimes):
    async def prefetch(self, indices: np.ndarray) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().prefetch(indices)


@pytest.mark.parametrize("kind", [FailsAtTimes, CoroutineFailsAtTimes])
def test_an_error_of_reading_ahead_is_of_one_task_alone(
    kind: type[FailsAtTimes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = kind(tmp_path)
    assert batches_of(source, workers=1) == batches_of(Truth(40), workers=0)
    source.check()
    assert (
        capfd.readouterr().err.count("loaded without being read ahead: prefetch() or is_ready() raised ValueError: no net") == 1
    )


def test_errors_of_reading_ahead_with_many_texts_are_said_a_few_times(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def is_failing(indices: np.ndarray) -> None:
        raise ValueError(f"not {indices.tolist()}")

    source = Truth(120)
    source.prefetch = is_failing
    assert batches_of(source, workers=1) == batches_of(Truth(120), workers=0)
    said = capfd.readouterr().err
    assert said.count("raised ValueError: not [") == 10
    assert said.count("further errors of this worker are not shown") == 1


@pytest.mark.parametrize("kind", ["FailsAtTimes", "CoroutineFailsAtTimes"])
def test_warnings_that_are_errors_end_no_worker(kind: str, tmp_path: Path) -> None:
    done = run(
        f"""
        import warnings
        from pathlib import Path
        import sys
        import ringload
        from tests.helpers import check
        from tests.test_waiting_loads import {kind}

        def strict():
            warnings.simplefilter("error")

        options = {{"workers": 1, "ram_budget": "200MB", "restarts": 0, "worker_setup": strict}}
        with ringload.Loader({kind}(Path(sys.argv[1])), 4, **options) as made:
            seen = [index for batch in made for index in check(batch)]
            assert sorted(seen) == list(range(40))
        """,
        tmp_path,
    )
    assert (done.returncode, done.stderr.count("ringload: samples are loaded without being read ahead")) == (0, 1), done.stderr
    FailsAtTimes(tmp_path).check()
