"""The loader from end to end, with samples that tell whether they are right: order, bytes, state, errors, leases."""

from __future__ import annotations

import json
import os
import pickle
import queue
import random
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringload
from ringload import (
    AllSlotsLentError,
    Arrays,
    BudgetError,
    ConfigError,
    Field,
    ImageFrame,
    Loader,
    LoaderClosedError,
    RingloadError,
    SampleError,
    StallError,
    TooManyBadSamplesError,
)
from ringload.loader import _Pass
from ringload.options import n_workers
from ringload.system.cgroups import usable_cpus
from tests.helpers import Truth, TruthRows, check, content, truth

CREWS = [
    pytest.param(0, "forkserver", id="in process"),
    pytest.param(1, "forkserver", id="1 worker"),
    pytest.param(5, "forkserver", id="5 workers"),
    pytest.param(2, "spawn", id="2 spawned"),
    pytest.param(2, "fork", id="2 forked"),
]
WITH_AND_WITHOUT = pytest.mark.parametrize("workers", [0, 2])


def loader(source: Any = None, batch_size: int = 8, **options: Any) -> Loader:
    options = {"workers": 2, "ram_budget": "600MB", "seed": 5, **options}
    return Loader(source if source is not None else Truth(100), batch_size, **options)


def epochs(made: Loader, n: int) -> list[dict[str, bytes]]:
    """Every byte of `n` epochs, verified."""
    found = []
    for _ in range(n):
        for batch in made:
            check(batch)
            found += content([batch])
    return found


@pytest.fixture(scope="module")
def expected() -> list[dict[str, bytes]]:
    with loader(workers=0) as made:
        return epochs(made, 2)


# -- the same bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Truth, TruthRows])
@pytest.mark.parametrize(("workers", "method"), CREWS)
def test_the_same_bytes_from_any_crew(workers: int, method: Any, kind: Any, expected: Any) -> None:
    with loader(kind(100), workers=workers, start_method=method) as made:
        assert epochs(made, 2) == expected
        assert made.workers == workers


def test_epochs_and_seeds_differ(expected: Any) -> None:
    half = len(expected) // 2
    assert expected[:half] != expected[half:]
    with loader(seed=6) as made:
        assert epochs(made, 1) != expected[:half]


@WITH_AND_WITHOUT
def test_each_sample_comes_once_an_epoch(workers: int) -> None:
    with loader(workers=workers, batch_size=10) as made:
        assert len(made) == 10
        for epoch in range(3):
            batches = list(made)
            assert [(batch.epoch, batch.number) for batch in batches] == [(epoch, number) for number in range(10)]
            assert sorted(np.concatenate([check(batch) for batch in batches])) == list(range(100))


@WITH_AND_WITHOUT
def test_without_shuffling(workers: int) -> None:
    with loader(workers=workers, shuffle=False) as made:
        for _ in range(2):
            assert np.concatenate([check(batch) for batch in made]).tolist() == list(range(96))


@WITH_AND_WITHOUT
@pytest.mark.parametrize(("last", "rows"), [("drop", [8, 8]), ("keep", [8, 8, 5]), ("pad", [8, 8, 8])])
def test_what_does_not_fill_a_batch(workers: int, last: Any, rows: list[int]) -> None:
    with loader(Truth(21), workers=workers, last=last) as made:
        assert len(made) == len(rows)
        for _ in range(2):
            batches = list(made)
            assert [len(batch["image"]) for batch in batches] == rows
            assert ("valid" in batches[0]) == (last == "pad")
            samples = np.concatenate([check(batch) for batch in batches])
            assert len(set(samples.tolist())) == len(samples) == (16 if last == "drop" else 21)


@WITH_AND_WITHOUT
@pytest.mark.parametrize("last", ["drop", "keep", "pad"])
def test_shards_share_an_epoch(workers: int, last: Any) -> None:
    counts: Counter[int] = Counter()
    lengths = set()
    for rank in range(3):
        with loader(workers=workers, last=last, shard=(rank, 3), batch_size=7) as made:
            lengths.add(len(made))
            counts.update(np.concatenate([check(batch) for batch in made]).tolist())
    assert len(lengths) == 1
    assert max(counts.values()) <= (2 if last == "keep" else 1)
    assert counts.total() == {"drop": 84, "keep": 102, "pad": 100}[last]


@pytest.mark.parametrize("start_method", ["forkserver", "spawn", "fork"])
def test_images_are_the_same_from_any_crew(photos: Path, start_method: Any) -> None:
    def shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.roll(image, int(rng.integers(20)), axis=int(np.random.randint(2)))

    source = ImageFrame(
        photos / "photos.csv",
        label={"kind": "multi", "two": "bi"},
        root=photos,
        size=(32, 40),
        resize="random_crop",
        flip=True,
        dtype="float32",
        transform=shift,
        max_pixels=100_000,
    )
    found = []
    for workers in (0, 1, 3):
        with loader(source, 5, workers=workers, start_method=start_method) as made:
            found.append([part for _ in range(2) for part in content(made)])
    assert found[0] == found[1] == found[2]


@WITH_AND_WITHOUT
def test_arrays_and_memory_maps(tmp_path: Path, workers: int) -> None:
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.int16, (500, 30, 4))
    x[:] = np.arange(x.size).reshape(x.shape) % 30_000
    y = np.arange(500) * 7
    with loader(Arrays(x=np.load(tmp_path / "x.npy", mmap_mode="r"), y=y), 50, workers=workers) as made:
        for batch in made:
            np.testing.assert_array_equal(batch["x"], x[batch.index])
            np.testing.assert_array_equal(batch["y"], y[batch.index])


def test_large_arrays_of_a_source_are_shared_and_counted() -> None:
    table = np.arange(4_000_000)

    def load(index: int, rng: Any, out: Any) -> None:
        out["x"] = table[index * 1000 : index * 1000 + 3]

    with loader(load, 10, fields={"x": ((3,), "i8")}, n_samples=4000) as made:
        assert 0 <= made.plan().index_bytes - table.nbytes < 1 << 16
        for batch in made:
            np.testing.assert_array_equal(batch["x"], batch.index[:, None] * 1000 + np.arange(3))
            break


# -- epochs, iterations, state ----------------------------------------------------------------------------------------


@WITH_AND_WITHOUT
def test_a_broken_epoch_is_over_and_a_kept_iterator_goes_on(workers: int, expected: Any) -> None:
    with loader(workers=workers) as made:
        for batch in made:
            check(batch)
            if batch.number == 3:
                break
        iterator = iter(made)
        first = content([next(iterator) for _ in range(2)])
        assert first == expected[12:14]  # the second epoch
        assert content(iterator) == expected[14:]
        assert next(iterator, None) is None
        assert made.epoch == 2
        third = [batch.epoch for batch in made]
        assert third == [2] * 12


@WITH_AND_WITHOUT
def test_a_second_iterator_ends_the_first(workers: int) -> None:
    with loader(workers=workers) as made:
        one = iter(made)
        next(one)
        other = iter(made)
        assert next(other).epoch == 1
        with pytest.raises(RingloadError, match="this pass over the loader is over"):
            next(one)
        assert [batch.number for batch in other] == list(range(1, 12))


@WITH_AND_WITHOUT
def test_set_epoch(workers: int, expected: Any) -> None:
    with loader(workers=workers) as made:
        made.set_epoch(1)
        assert content(made) == expected[12:]
        made.set_epoch(0)
        iterator = iter(made)
        assert content([next(iterator)]) == expected[:1]
        made.set_epoch(0)
        assert content(made) == expected[:12]


@pytest.mark.parametrize("position", [0, 1, 7, 11, 12, 17])
@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 3), (3, 1)])
def test_resuming_with_other_workers(before: int, after: int, position: int, expected: Any) -> None:
    with loader(workers=before) as made:
        stream = (batch for _ in range(2) for batch in made)
        for _ in range(position):
            next(stream)
        state = json.loads(json.dumps(made.state_dict()))  # what runs ahead is not in it
        assert (state["epoch"], state["position"]) == divmod(position, 12)
    with loader(workers=after) as made:
        made.load_state_dict(state)
        assert content(made) == expected[position : (12 if position < 12 else 24)]
        assert made.epoch == state["epoch"] + 1


@WITH_AND_WITHOUT
def test_a_pass_beyond_the_last_epoch_is_empty(workers: int) -> None:
    with loader(workers=workers, epochs=3) as made:
        made.set_epoch(7)
        assert list(made) == []
        made.set_epoch(2)
        assert [batch.epoch for batch in made] == [2] * 12


def test_threads_that_share_an_iterator_share_its_epoch() -> None:
    with loader(Truth(400), 4, epochs=3) as made:
        for epoch in range(3):
            iterator = iter(made)
            got: queue.Queue[tuple[int, int]] = queue.Queue()

            def take(iterator: Any = iterator, got: Any = got) -> None:
                for batch in iterator:
                    check(batch)
                    got.put((batch.epoch, batch.number))

            threads = [threading.Thread(target=take) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(got.get() for _ in range(got.qsize())) == [(epoch, number) for number in range(100)]


@pytest.mark.parametrize("seed", [np.int32(5), np.uint8(5), np.int64(5)])
def test_numbers_of_numpys_are_numbers(seed: Any, expected: Any) -> None:
    with loader(workers=0, seed=seed, shuffle=np.True_) as made:
        assert content(made) == expected[:12]
        assert json.loads(json.dumps(made.state_dict()))["seed"] == 5


def test_going_back_and_forth(expected: Any) -> None:
    with loader(ram_budget="600MB") as made:
        rng = random.Random(0)
        for _ in range(40):
            epoch, position = rng.randrange(2), rng.randrange(12)
            made.load_state_dict({**made.state_dict(), "epoch": epoch, "position": position})
            iterator = iter(made)
            n = rng.randrange(1, 4)
            got = content([batch for batch, _ in zip(iterator, range(n), strict=False)])
            assert got == expected[epoch * 12 + position :][: len(got)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 9}, "seed: 9 there, 5 here"),
        ({"order": {"kind": "shuffle", "n_samples": 99}}, "n_samples: 99 there, 100 here"),
        ({"order": {"kind": "sequence", "n_samples": 100}}, "kind: 'sequence' there, 'shuffle' here"),
        ({"order": "shuffle"}, "order='shuffle'"),
        ({"position": 14}, "position 112 of an epoch of 100"),
        ({"position": "x"}, "position='x'"),
        ({"epoch": -1}, "epoch=-1: that is an integer, 0 or more"),
        ({"step": 0}, "step=0: that is an integer, 1 or more"),
        ({"version": 3}, "version 3, and this ringload reads 1 and 2"),
    ],
)
def test_states_of_another_order_are_refused(change: dict[str, Any], said: str) -> None:
    with loader(workers=0) as made:
        with pytest.raises(ConfigError, match=said):
            made.load_state_dict({**made.state_dict(), **change})
        with pytest.raises(ConfigError, match="lacks"):
            made.load_state_dict({"epoch": 0})


def test_without_workers_a_sample_is_loaded_when_its_batch_is_asked_for() -> None:
    loaded: list[int] = []

    def load(index: int, rng: Any, out: Any) -> None:
        loaded.append(index)
        out["x"] = index

    fields = {"x": ringload.Field((), "int64")}
    with Loader(load, 4, fields=fields, n_samples=24, workers=0, ram_budget="600MB") as made:
        assert not loaded
        for n_epochs in (1, 2):
            for number, batch in enumerate(made):
                assert len(loaded) == 24 * (n_epochs - 1) + 4 * (number + 1)
                assert loaded[-4:] == batch["x"].tolist()
            assert len(loaded) == 24 * n_epochs


@WITH_AND_WITHOUT
def test_the_number_of_epochs(workers: int, expected: Any) -> None:
    with loader(workers=workers, epochs=2) as made:
        assert epochs(made, 4) == expected
        assert list(made) == []
        made.set_epoch(1)
        assert content(made) == expected[12:]


def test_producing_does_not_stop_at_an_epochs_end() -> None:
    with loader(Truth(40), epochs=3) as made:
        iterator = iter(made)
        next(iterator)
        deadline_s = time.monotonic() + 20
        while made.poll().n_full < 14 and time.monotonic() < deadline_s:  # 5 batches an epoch, 15 in all
            time.sleep(0.005)
        assert made.stats.n_full == 14


# -- bad samples ------------------------------------------------------------------------------------------------------


class Failing(Truth):
    """Samples that cannot be loaded: every index in `bad`."""

    def __init__(self, n: int, bad: set[int]) -> None:
        super().__init__(n)
        self.bad = bad

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index in self.bad:
            raise ValueError("no such luck")

    def describe(self, index: int) -> str:
        return f"/data/{index}.jpg"


@WITH_AND_WITHOUT
def test_a_bad_sample_is_raised_and_the_iteration_goes_on(workers: int) -> None:
    with loader(Failing(100, {17, 40}), 10, workers=workers, shuffle=False) as made:
        iterator, numbers, errors = iter(made), [], []
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                break
            except SampleError as error:
                errors.append(error)
                continue
            check(batch)
            numbers.append(batch.number)
        assert numbers == [0, 2, 3, 5, 6, 7, 8, 9]
        assert [error.index for error in errors] == [17, 40]
        assert errors[0].where == "/data/17.jpg"
        assert errors[0].reason == "ValueError: no such luck"
        assert "test_loader.py" in errors[0].traceback
        assert "sample 17 (/data/17.jpg): ValueError: no such luck" in str(errors[0])
        assert made.stats.n_bad == 2


@WITH_AND_WITHOUT
@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_a_bad_sample_is_skipped_or_replaced_counted_and_named(workers: int, on_error: Any) -> None:
    bad = {3, 17, 40, 41}
    with loader(Failing(100, bad), 10, workers=workers, shuffle=False, on_error=on_error) as made:
        seen: list[int] = []
        for batch in made:
            assert batch["image"].shape == (10, 8, 6, 3)
            rows = check(batch)
            if on_error == "skip":
                assert set(batch.index[~batch["valid"]].tolist()) == bad & set(range(batch.number * 10, batch.number * 10 + 10))
            seen += rows.tolist()
        assert not set(seen) & bad
        assert len(seen) == (96 if on_error == "skip" else 100)
        assert sorted(one.index for one in made.stats.bad) == sorted(bad)
        assert made.stats.n_bad == 4


@WITH_AND_WITHOUT
def test_too_many_bad_samples(workers: int) -> None:
    with loader(Failing(100, set(range(30))), 10, workers=workers, shuffle=False, on_error="skip", max_bad=12) as made:
        iterator = iter(made)
        next(iterator)
        with pytest.raises(
            TooManyBadSamplesError, match=r"13 samples were bad, more than max_bad=12; the last: sample 12 \(/data/12.jpg\)"
        ):
            next(iterator)


def test_bad_files_of_every_kind_through_the_ring(photos: Path, tmp_path: Path) -> None:
    good = sorted(photos.rglob("*.jpg"))[0].read_bytes()
    (tmp_path / "good.jpg").write_bytes(good)
    (tmp_path / "short.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    names = ["good", "missing", "short", "empty", "text", "folder", "fifo", "good"]
    import pandas as pd

    df = pd.DataFrame({"path": [f"{name}.jpg" for name in names]})
    source = ImageFrame(df, root=tmp_path, size=(16, 16), max_pixels=100_000)
    for workers in (0, 2):
        with loader(source, 8, workers=workers, shuffle=False, on_error="skip") as made:
            (batch,) = made
            assert batch["valid"].tolist() == [name == "good" for name in names]
            np.testing.assert_array_equal(batch["image"][0], batch["image"][7])
            assert batch["image"][0].any()
            assert not batch["image"][1:7].any()
            reasons = {bad.where.rpartition("/")[2]: bad.reason for bad in made.stats.bad}
    for name, said in (
        ("missing", "No such file"),
        ("short", "truncated"),
        ("empty", "an empty file"),
        ("text", "cannot identify"),
        ("folder", "a directory"),
        ("fifo", "a FIFO"),
    ):
        assert said in reasons[f"{name}.jpg"]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_so_many_bad_samples_that_their_words_fill_the_pipe(on_error: Any) -> None:
    def load(index: int, rng: Any, out: Any) -> None:
        raise ValueError("x" * 3000)

    options: dict[str, Any] = {"fields": {"x": ((), "i8")}, "n_samples": 3000, "stall_timeout": 30, "max_bad": 3000}
    with loader(load, 1500, on_error=on_error, epochs=1, **options) as made:
        if on_error == "raise":
            with pytest.raises(SampleError):
                list(made)
        else:
            assert [int(batch["valid"].sum()) for batch in made] == [0, 0]
            assert made.stats.n_bad == 3000


def test_what_a_function_does_to_its_indices_is_its_own() -> None:
    class Sorting(TruthRows):
        def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
            super().load_rows(indices, rngs, out)
            indices.sort()

    with loader(Sorting(100)) as made:
        for batch in made:
            check(batch)


# -- leases -----------------------------------------------------------------------------------------------------------


def test_what_is_kept_stays_right_in_any_order_of_letting_go() -> None:
    rng = random.Random(1)
    kept: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
    with loader(ram_budget="150MB") as made:
        n_slots = made.plan().n_slots
        made_slots = min(n_slots - 3, 20)
        for _ in range(30):
            for batch in made:
                check(batch)
                kept.append((batch.number, batch["image"][2:5], batch["draw"].copy()[2:5], batch.index.copy()[2:5]))
                while len(kept) > rng.randrange(1, made_slots):
                    _, image, draws, indices = kept.pop(rng.randrange(len(kept)))
                    for row in range(3):
                        np.testing.assert_array_equal(image[row], truth(int(indices[row]), int(draws[row])))
                    del image


def test_batches_outlive_the_loader() -> None:
    with loader() as made:
        batches = [batch for batch, _ in zip(made, range(3), strict=False)]
    del made
    for batch in batches:
        check(batch)
        batch["image"][:] = 7  # it is the trainer's
        batch.release()
        with pytest.raises(LoaderClosedError, match="released"):
            _ = batch["image"]


@WITH_AND_WITHOUT
def test_copies_need_no_slot(workers: int, expected: Any) -> None:
    with loader(workers=workers, copy=True, ram_budget="130MB") as made:
        batches = [batch for _ in range(2) for batch in made]
        assert content(batches) == expected
        assert all(batch["image"].base is None for batch in batches)


def test_who_keeps_everything_is_told_and_can_go_on(recwarn: pytest.WarningsRecorder) -> None:
    class Wide(Truth):
        def __init__(self) -> None:
            super().__init__(1000)
            self.fields |= {"wide": Field((1 << 20,), "u1")}

        def load(self, index: int, rng: Any, out: Any) -> None:
            super().load(index, rng, out)
            out["wide"][:1] = 1

    with loader(Wide(), ram_budget="170MB", stall_timeout=3) as made:
        iterator = iter(made)
        kept: list[ringload.Batch] = []
        said = r"every slot .* is lent .* batch 0 of epoch 0 for \d+ s"
        with pytest.raises(AllSlotsLentError, match=said) as caught:
            kept.extend(iterator)
        assert len(kept) == made.plan().n_slots >= 3
        assert "copy" in str(caught.value)
        last = kept[-1].number
        kept.clear()
        assert check(next(iterator)).size == 8
        assert made.position == last + 2


def test_holding_many_while_the_ring_is_still_reserved() -> None:
    class Large(Truth):
        def __init__(self) -> None:
            super().__init__(1000)
            self.fields |= {"wide": Field((5_000_000,), "u1")}

        def load(self, index: int, rng: Any, out: Any) -> None:
            super().load(index, rng, out)
            out["wide"][:1] = 1

    with warnings.catch_warnings(), loader(Large(), 6, ram_budget="2GB") as made:
        warnings.simplefilter("error")
        iterator = iter(made)
        kept = [next(iterator) for _ in range(20)]
        assert len({array["draw"].ctypes.data for array in kept}) == 20


def test_writing_into_a_batch_changes_no_other() -> None:
    with loader(ram_budget="130MB") as made:
        for _ in range(5):
            for batch in made:
                check(batch)
                batch["image"][:] = 255
                batch["label"][:] = -1


def test_rows_are_aligned_for_every_framework() -> None:
    with loader(batch_size=7) as made:
        for batch in made:
            assert all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in batch.values())


# -- waiting ----------------------------------------------------------------------------------------------------------


class Blocking(Truth):
    """One sample takes for ever, unless its file is there."""

    def __init__(self, n: int, index: int, gate: Path) -> None:
        super().__init__(n)
        self.index, self.gate = index, gate

    def load(self, index: int, rng: Any, out: Any) -> None:
        super().load(index, rng, out)
        while index == self.index and not self.gate.exists():
            time.sleep(0.01)


def test_a_stall_names_who_is_stuck_on_what(tmp_path: Path) -> None:
    with loader(Blocking(100, 13, tmp_path / "gate"), shuffle=False, stall_timeout=1.5) as made:
        iterator = iter(made)
        check(next(iterator))
        with pytest.raises(
            StallError, match=r"nothing was finished for 1.5 s: worker \d \(pid \d+\) has had sample 13 of batch 1"
        ):
            next(iterator)
        (tmp_path / "gate").touch()
        assert next(iterator).number == 1  # it goes on


def test_a_sample_that_takes_too_long_is_ended_and_bad(tmp_path: Path) -> None:
    source = Blocking(40, 13, tmp_path / "gate")
    with loader(source, shuffle=False, sample_timeout=0.4, on_error="skip") as made:
        seen = np.concatenate([check(batch) for batch in made])
        assert sorted({*range(40)} - set(seen.tolist())) == [13]
        (bad,) = made.stats.bad
        assert "sample_timeout=0.4" in bad.reason
        assert made.stats.n_restarts >= 2


def test_the_close_of_another_thread_ends_a_wait(tmp_path: Path) -> None:
    made = loader(Blocking(100, 0, tmp_path / "gate"), shuffle=False)
    caught: queue.Queue[BaseException] = queue.Queue()

    def take() -> None:
        try:
            next(iter(made))
        except BaseException as error:
            caught.put(error)

    thread = threading.Thread(target=take)
    thread.start()
    while not made._engine._state.life.lock.locked():
        time.sleep(0.001)
    made.close()
    assert isinstance(caught.get(timeout=20), LoaderClosedError)
    thread.join()


def test_the_close_of_a_signal_handler_ends_a_wait(tmp_path: Path) -> None:
    made = loader(Blocking(100, 0, tmp_path / "gate"), shuffle=False)
    previous = signal.signal(signal.SIGALRM, lambda *_: made.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(LoaderClosedError):
            next(iter(made))
    finally:
        signal.signal(signal.SIGALRM, previous)


class Interrupted(BaseException):
    """As KeyboardInterrupt, but pytest does not end for it."""


@pytest.fixture
def interrupt_soon() -> Iterator[Callable[[float], None]]:
    """A function that has `Interrupted` raised after some seconds, if `next` of a loader is running then."""

    def interrupt(number: int, frame: Any) -> None:
        while frame is not None:
            if frame.f_code is _Pass.__next__.__code__:
                raise Interrupted
            frame = frame.f_back

    previous = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("seed", range(4))
def test_interruptions_at_any_moment_break_nothing(interrupt_soon: Any, seed: int) -> None:
    rng, n_interrupted = random.Random(seed), 0
    with loader(Truth(400), 4, restarts=None, ram_budget="200MB") as made:
        iterator, numbers = iter(made), []
        while True:
            interrupt_soon(rng.uniform(0.00002, 0.002))
            try:
                batch = next(iterator, None)
            except Interrupted:
                n_interrupted += 1
                continue
            if batch is None:
                break
            check(batch)
            numbers.append(batch.number)
        interrupt_soon(0)
    assert n_interrupted
    assert numbers == sorted(set(numbers))  # none twice, none out of order
    assert len(numbers) >= 100 - n_interrupted  # the one that was being handed over may be lost
    assert made.epoch == 1


def test_interruptions_while_waiting_lose_nothing(interrupt_soon: Any, expected: Any) -> None:
    class Slow(Truth):
        def load(self, index: int, rng: Any, out: Any) -> None:
            super().load(index, rng, out)
            time.sleep(0.01)

    with loader(Slow(100)) as made:
        iterator, n_interrupted = iter(made), 0
        found: list[dict[str, bytes]] = []
        while len(found) < 12:
            interrupt_soon(0.015)  # a batch takes 0.04
            try:
                batch = next(iterator)
            except Interrupted:
                n_interrupted += 1
                continue
            found += content([batch])
        interrupt_soon(0)
        assert n_interrupted > 10
        assert found == expected[:12]


# -- several, and what they may not -----------------------------------------------------------------------------------


def test_two_loaders_side_by_side(expected: Any) -> None:
    with loader() as one, loader(workers=1) as other:
        for left, right, truth_ in zip(one, other, expected[:12], strict=True):
            assert content([left]) == content([right]) == [truth_]


def test_a_source_may_be_used_by_several_loaders(photos: Path) -> None:
    source = ImageFrame(photos / "photos.csv", label="multi", root=photos, size=(16, 16), max_pixels=100_000)
    with loader(source, 4, workers=0) as one, loader(source, 4, workers=0) as other, loader(source, 4) as third:
        for a, b, c in zip(one, other, third, strict=True):
            assert content([a]) == content([b]) == content([c])


def test_a_loader_cannot_be_pickled_and_says_what_can() -> None:
    with loader(workers=0) as made, pytest.raises(pickle.PicklingError, match="state_dict"):
        pickle.dumps(made)


def test_after_close_nothing_can_be_asked() -> None:
    made = loader()
    iterator = iter(made)
    next(iterator)
    made.close()
    made.close()
    with pytest.raises(LoaderClosedError):
        next(iterator)
    with pytest.raises(LoaderClosedError):
        iter(made)


def test_stats_count_what_was_received() -> None:
    with loader() as made:
        for batch in made:
            check(batch)
        stats = made.stats
        assert (stats.n_batches, stats.n_samples, stats.n_bad, stats.n_restarts) == (12, 96, 0, 0)
        assert 0 <= stats.stall_s <= stats.elapsed_s
        assert 0 <= stats.stall_share <= 1
        assert stats.busy_s > 0
        assert stats.n_slots == made.plan().n_slots
        assert "96 samples" in str(stats)


def test_stats_and_plan_only_read() -> None:
    """What has ended is entered by `next` and `poll`."""
    with loader() as made:
        del (batch := [next(iter(made))])[:]
        ended, lent = made._engine._state.leases.released, made._engine._state.ring.lent
        assert (ended.qsize(), len(lent)) == (1, 1)
        assert made.stats.n_batches == 1
        assert made.plan().n_slots == made.stats.n_slots
        assert (ended.qsize(), len(lent), batch) == (1, 1, [])
        assert made.poll().n_batches == 1
        assert (ended.qsize(), len(lent)) == (0, 0)


def test_workers_auto_leaves_one_cpu_for_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert n_workers("auto") == max(1, usable_cpus() - 1)
    monkeypatch.setattr("ringload.options.usable_cpus", lambda: 12)
    assert n_workers("auto") == 11


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"batch_size": 101}, "100 samples do not fill a batch of 101"),
        ({"workers": -1}, "workers is 'auto' or an integer"),
        ({"workers": True}, "workers is 'auto' or an integer"),
        ({"ram_budget": "lots"}, "ram_budget is bytes"),
        ({"ram_budget": "1PB"}, "ram_budget is bytes"),
        ({"ram_budget": 1.5}, "did you mean .1.5GB"),
        ({"seed": -1}, "seed is an integer"),
        ({"last": "most"}, "last is"),
        ({"shard": (2, 2)}, "shard is"),
        ({"shard": 3}, "shard is"),
        ({"on_error": "ignore"}, "on_error is"),
        ({"start_method": "thread"}, "start_method is"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"max_bad": -1}, "max_bad"),
        ({"restarts": -1}, "restarts"),
        ({"sample_timeout": 0}, "sample_timeout"),
        ({"stall_timeout": 0}, "stall_timeout"),
        ({"source": 3}, "3 is no source of samples: give ringload.ImageFrame"),
        ({"source": lambda i, r, o: None}, "fields="),
        ({"source": type("Nothing", (), {"fields": {"x": ((), "i8")}, "__len__": lambda self: 30})()}, "neither load"),
    ],
)
@WITH_AND_WITHOUT
def test_bad_arguments_are_refused_at_once(arguments: dict[str, Any], said: str, workers: int) -> None:
    with pytest.raises(ConfigError, match=said):
        loader(**{"workers": workers, **arguments})


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_budget_that_is_too_small_says_what_would_do(workers: int) -> None:
    with pytest.raises(
        BudgetError, match=r"ram_budget='1MB' is 1.0 MB, and the least that would do is .* slots of .* = "
    ) as caught:
        loader(Truth(100_000), 10_000, workers=workers, ram_budget="1MB")
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, ValueError)


def test_a_budget_beyond_what_there_is_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"memory available on this machine|left of the memory limit"):
        loader(ram_budget="100TB")


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_source_that_fails_to_start_is_told(method: Any) -> None:
    class BadStart(Truth):
        def start(self, worker: Any) -> None:
            raise RuntimeError("no database")

    with loader(BadStart(100), start_method=method) as made:
        with pytest.raises(ConfigError, match="RuntimeError: no database"):
            next(iter(made))
        with pytest.raises(LoaderClosedError, match="it ended with ConfigError"):
            next(iter(made))


def test_who_looks_at_statistics_takes_no_error_away() -> None:
    class BadStart(Truth):
        def start(self, worker: Any) -> None:
            raise RuntimeError("no database")

    with loader(BadStart(100)) as made:
        deadline_s = time.monotonic() + 20
        while not made._engine._state.life.close_requested and time.monotonic() < deadline_s:
            assert made.poll().n_batches == 0
            time.sleep(0.01)
        with pytest.raises(ConfigError, match="no database"):
            next(iter(made))


def test_a_stuck_sample_is_ended_while_others_go_on() -> None:
    def load(index: int, rng: Any, out: Any) -> None:
        time.sleep(1000 if index == 0 else 0.02)
        out["x"] = index

    options: dict[str, Any] = {"fields": {"x": ((), "i8")}, "n_samples": 4000, "shuffle": False, "on_error": "replace"}
    with loader(load, 2, sample_timeout=0.5, **options) as made:
        batch = next(iter(made))
        assert 0 not in batch.index
        assert made.stats.n_full < 1000  # it did not wait until the others had filled the ring


def test_public_names_are_what_the_design_says() -> None:
    with loader(workers=0, ram_budget=200_000_000) as made:
        plan = made.plan()
        assert plan.total_bytes <= 200_000_000
        assert isinstance(plan, ringload.Plan)
        assert isinstance(made.stats, ringload.Stats)
        assert made.fields == Truth().fields
