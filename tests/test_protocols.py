"""The seams: what a user plugs in works as ringload's own does."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

import ringload
from ringload import Arrays, ConfigError, ImageFrame, Loader, Observer, RingloadError, Rows
from tests.deaths import kill_all, members
from tests.helpers import Truth, check, content, photo
from tests.threads import ThreadWorkers


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        cv2.imwrite(str(folder / f"{number}.jpg"), photo(number, 60, 80))
    return pd.DataFrame({"path": [f"{folder}/{number}.jpg" for number in range(40)], "label": np.arange(40) % 4})


def source(frame: pd.DataFrame) -> ImageFrame:
    return ImageFrame(frame, path="path", label="label", size=(32, 32), resize="random_crop", flip=True)


# -- orders -----------------------------------------------------------------------------------------------------------


def test_an_image_table_by_torchs_weighted_sampler(frame: pd.DataFrame) -> None:
    """Ten lines of a user's."""
    torch = pytest.importorskip("torch")
    from torch.utils.data import WeightedRandomSampler

    class Weighted:
        def __init__(self, weights: Any, batch_size: int) -> None:
            self.weights, self.batch_size = weights, batch_size

        def n_batches(self, epoch: int) -> int:
            return len(self.weights) // self.batch_size

        def rows(self, epoch: int, number: int) -> Rows:
            generator = torch.Generator().manual_seed(epoch)
            drawn = list(WeightedRandomSampler(self.weights, len(self.weights), generator=generator))
            places = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
            return Rows(np.array(drawn)[places], key=places)

    weights = np.where(frame["label"] == 3, 10.0, 1.0).tolist()
    given = {}
    for workers in (0, 1, 2):
        with Loader(source(frame), 8, workers=workers, order=Weighted(weights, 8), seed=2) as loader:
            assert len(loader) == 5
            given[workers] = [content([batch.copy()]) for _ in range(3) for batch in loader]
    assert given[0] == given[1] == given[2]
    with Loader(source(frame), 8, workers=2, order=Weighted(weights, 8), seed=2) as loader:
        indices = np.concatenate([batch.index for _ in range(3) for batch in loader])
        assert (frame["label"].to_numpy()[indices] == 3).mean() > 0.5
        state = loader.state_dict()
        by_place: dict[int, list[bytes]] = {}
        for batch in loader:
            for row, index in enumerate(batch.index.tolist()):
                by_place.setdefault(index, []).append(batch["image"][row].tobytes())
    repeated = [looks for looks in by_place.values() if len(looks) > 1]
    assert repeated, "samples come twice"
    assert all(len(set(looks)) == len(looks) for looks in repeated), "and draw something else each time"
    with Loader(source(frame), 8, workers=1, order=Weighted(weights, 8), seed=2) as again:
        again.load_state_dict(state)
        assert (again.epoch, again.position) == (state["epoch"], state["position"])


class Fixed:
    """An order that says what it is told to."""

    def __init__(self, rows: Any, n: Any = 3) -> None:
        self._rows, self._n = rows, n

    def n_batches(self, epoch: int) -> Any:
        return self._n

    def rows(self, epoch: int, number: int) -> Any:
        return self._rows


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (Fixed(np.arange(4), 0), r"order.n_batches\(0\) is 0: it has to be an integer, 1 or more"),
        (Fixed(np.arange(4), "x"), r"order.n_batches\(0\) is 'x'"),
        (Fixed(np.arange(9)), r"order.rows\(0, 0\) has 9 rows: a batch has 1 to batch_size=4"),
        (Fixed(np.array([], int)), r"has 0 rows"),
        (Fixed(np.array([0, 20])), r"index has 0 to 20; it has to be from 0 to 19"),
        (Fixed(np.array([-1, 2])), r"index has -1 to 2"),
        (Fixed(np.zeros((2, 2), int)), r"index is an array of integers \(n,\)"),
        (Fixed(np.zeros(2)), r"index is an array of integers \(n,\)"),
        (Fixed(Rows(np.arange(2), np.arange(3))), r"has 2 indices and 3 keys"),
        (Fixed(Rows(np.arange(2), np.array([-1, 0]))), r"key has -1 to 0"),
        (Fixed, r"order= is 'shuffle', 'sequence', .* not the class tests.Fixed"),
        ("random", r"order= is 'shuffle', 'sequence', .* not 'random'"),
        ({"a": 1}, r"order= is 'shuffle', 'sequence', .* not an object of class dict"),
    ],
)
def test_an_order_that_cannot_be_is_named(order: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said), Loader(Truth(20), 4, workers=0, order=order) as loader:
        next(iter(loader))


def test_batches_of_an_order_may_differ_in_size() -> None:
    class Growing:
        def n_batches(self, epoch: int) -> int:
            return 4 + epoch

        def rows(self, epoch: int, number: int) -> Rows:
            return Rows(np.arange(number, number + number % 5 + 1))

    with Loader(Truth(400), 5, workers=2, order=Growing()) as loader:
        for epoch in range(3):
            assert len(loader) == 4 + epoch
            batches = [check(batch).tolist() for batch in loader]
            assert batches == [list(range(number, number + number % 5 + 1)) for number in range(4 + epoch)]


def test_an_order_of_ones_own_outlives_deaths(frame: pd.DataFrame) -> None:
    class Twice:
        def n_batches(self, epoch: int) -> int:
            return 30

        def rows(self, epoch: int, number: int) -> Rows:
            return Rows(np.random.default_rng((epoch, number)).integers(0, 400, 6), np.arange(6 * number, 6 * number + 6))

    with Loader(Truth(400), 6, workers=0, order=Twice(), seed=4) as calm:
        right = [content([batch]) for batch in calm]
    with Loader(Truth(400), 6, workers=2, order=Twice(), seed=4, restarts=None) as loader:
        for number, batch in enumerate(loader):
            assert content([batch]) == right[number]
            if number % 5 == 2:
                kill_all(members(loader)[1:2])


# -- workers ----------------------------------------------------------------------------------------------------------


def test_threads_fill_the_ring_with_the_same_bytes(frame: pd.DataFrame) -> None:
    with (
        Loader(source(frame), 6, workers=0, seed=3) as calm,
        Loader(source(frame), 6, workers=ThreadWorkers(3), seed=3) as loader,
    ):
        assert loader.workers == 3
        for _ in range(3):
            assert content(loader) == content(calm)
        loader.set_epoch(7)
        calm.set_epoch(7)
        assert content(loader) == content(calm)
        assert loader.stats.n_samples == 6 * 6 * 4


def test_bad_samples_of_threads(tmp_path: Path, frame: pd.DataFrame) -> None:
    table = frame.copy()
    table.loc[5, "path"] = str(tmp_path / "nothing.jpg")
    bad = ImageFrame(table, path="path", label="label", size=(8, 8))
    with Loader(bad, 8, workers=ThreadWorkers(2), on_error="skip", shuffle=False) as loader:
        first = next(iter(loader))
        assert first["valid"].tolist() == [True] * 5 + [False] + [True] * 2
        assert [one.index for one in loader.stats.bad] == [5]


class Growth(Observer):
    """What it was told of the ring."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_growth(self, n_slots: int, goal: int) -> None:
        self.seen.append((n_slots, goal))


def test_growth_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again when workers have died, and their server says again how much is reserved."""
    monkeypatch.setattr("ringload.loader.FIRST_BYTES", 1)
    growth = Growth()
    with Loader(Truth(400), 4, workers=2, ram_budget="200MB", restarts=None, observers=[growth]) as loader:
        n_slots = loader.plan().n_slots
        while not growth.seen or growth.seen[-1] != (n_slots, n_slots):
            loader.poll()
        for n_restarts in range(1, 4):
            kill_all(members(loader)[1:])
            while loader.stats.n_restarts < n_restarts:
                loader.set_epoch(0)
                for _, batch in zip(range(50), loader, strict=False):
                    check(batch)
        assert growth.seen == sorted(set(growth.seen))


# -- observers and logging --------------------------------------------------------------------------------------------


class Diary(Observer):
    def __init__(self) -> None:
        self.said: list[Any] = []

    def on_batch(self, epoch: int, number: int, n_rows: int, wait_s: float) -> None:
        assert wait_s >= 0
        self.said.append(("batch", epoch, number, n_rows))

    def on_bad(self, bad: Any, outcome: str) -> None:
        self.said.append(("bad", bad.index, outcome))

    def on_death(self, death: Any, samples: Any) -> None:
        self.said.append(("death", death.cause.partition(":")[0], list(samples)))

    def on_restart(self, n_workers: int, n_batches: int) -> None:
        self.said.append(("restart", n_workers))

    def on_seek(self, epoch: int, number: int) -> None:
        self.said.append(("seek", epoch, number))


class Deadly(Truth):
    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if index == 7:
            os.kill(os.getpid(), signal.SIGSEGV)
        if index == 9:
            raise ValueError("not this one")
        super().load(index, rng, out)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="ringload"):
        yield caplog


def test_observers_are_told_and_the_log_says_it(logged: pytest.LogCaptureFixture) -> None:
    diary = Diary()
    with Loader(Deadly(20), 4, workers=1, shuffle=False, on_error="skip", epochs=2, observers=[diary]) as loader:
        assert [batch.number for batch in loader] == [0, 1, 2, 3, 4]
        loader.set_epoch(0)
    batches = [one for one in diary.said if one[0] == "batch"]
    assert batches == [("batch", 0, number, 4) for number in range(5)]
    assert [one for one in diary.said if one[0] == "death"] == [("death", "SIGSEGV", [7])] * 2
    assert diary.said.count(("restart", 1)) == 2
    assert [one for one in diary.said if one[0] == "bad"] == [("bad", 7, "skipped"), ("bad", 9, "skipped")]
    assert ("seek", 0, 0) in diary.said
    levels = {
        name: [record.getMessage() for record in logged.records if record.levelname == name] for name in ("WARNING", "INFO")
    }
    assert sum("died while it was loading sample 7: SIGSEGV" in text for text in levels["WARNING"]) == 2
    assert any("sample 9 was skipped: ValueError: not this one" in text for text in levels["WARNING"])
    assert any("1 workers are started again" in text for text in levels["INFO"])
    assert any("goes on at batch 0 of epoch 0" in text for text in levels["INFO"])


def test_thousands_of_bad_samples_are_a_few_lines_of_the_log(logged: pytest.LogCaptureFixture) -> None:
    class Bad(Truth):
        def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
            raise ValueError("none")

    with Loader(Bad(2000), 50, workers=0, on_error="skip", max_bad=3000) as loader:
        list(loader)
        assert loader.stats.n_bad == 2000
    assert len(logged.records) == 10


def test_an_observer_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="is no observer, it lacks on_batch, on_bad"):
        Loader(Arrays(x=np.arange(8)), 2, workers=0, observers=[object()])  # type: ignore[list-item]


def test_what_an_observer_raises_is_raised() -> None:
    class Rude(Observer):
        def on_batch(self, epoch: int, number: int, n_rows: int, wait_s: float) -> None:
            raise LookupError("rude")

    with Loader(Arrays(x=np.arange(8)), 2, workers=0, observers=[Rude()]) as loader:
        with pytest.raises(LookupError, match="rude"):
            next(iter(loader))
        with pytest.raises((LookupError, RingloadError)):
            next(iter(loader))


def test_the_examples_of_the_protocols_run() -> None:
    """Of their docstrings, which users copy."""
    import inspect
    import textwrap

    names: dict[str, Any] = {"ringload": ringload, "np": np, "source": Arrays(x=np.arange(640))}
    for protocol in (ringload.Source, ringload.Order, ringload.Observer):
        text = inspect.getdoc(protocol) or ""
        example = text.partition("Example:\n")[2].partition("\n\nOptional")[0]
        exec(textwrap.dedent(example), names)
    with Loader(names["Squares"](), 8, workers=0) as loader:
        batch = next(iter(loader))
        assert (batch["x"] == batch.index**2).all()
    order = names["Weighted"](np.ones(640), 5, 8)
    with Loader(names["source"], 8, workers=1, order=order, observers=[names["CountDeaths"]()]) as loader:
        assert len(list(loader)) == 5
