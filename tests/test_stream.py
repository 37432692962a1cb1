"""Streams: the order, the ends of parts, deaths at any row, resuming, and what cannot be done."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import random
import signal
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringload
from ringload import ConfigError, Field, Loader, SampleError, Stream, TooManyBadSamplesError
from ringload.engine.lifecycle import State
from ringload.order.stream_note import NOTE, NOTE_BYTES, write_note
from tests.deaths import first_time, kill_all, members
from tests.helpers import run
from tests.threads import ThreadWorkers

FIELDS = {"part": Field((), "int64"), "epoch": Field((), "int64"), "row": Field((), "int64"), "data": Field((50,), "uint8")}
LENGTHS = [23, 6, 0, 17, 1]
WORKERS = pytest.mark.parametrize("workers", [0, 1, 2, 3])
Row = tuple[int, int, int]  # part, epoch, row


def made_row(part: int, epoch: int, row: int) -> dict[str, Any]:
    return {"part": part, "epoch": epoch, "row": row, "data": np.full(50, (7 * part + 3 * epoch + row) % 251, np.uint8)}


class Finite:
    """Generators of known lengths, which can be opened again. Reading some rows ends the worker, once."""

    def __init__(self, lengths: list[int], folder: Path | None = None, deadly: Iterable[Row] = ()) -> None:
        self.lengths, self.folder, self.deadly = lengths, folder, set(deadly)

    def __call__(self, part: int, n_parts: int, epoch: int) -> Any:
        assert n_parts == len(self.lengths)
        return self.rows(part, epoch)

    def rows(self, part: int, epoch: int, first: int = 0) -> Iterator[dict[str, Any]]:
        for row in range(first, self.lengths[part]):
            yield self.row(part, epoch, row)

    def row(self, part: int, epoch: int, row: int) -> dict[str, Any]:
        if (part, epoch, row) in self.deadly and first_time(self.folder / f"{part}-{epoch}-{row}"):  # type: ignore[operator]
            os.kill(os.getpid(), signal.SIGKILL)
        return made_row(part, epoch, row)


class Seekable(Finite):
    """The same with places. Where nothing was read, opening begins at a place that nobody knows."""

    def __call__(self, part: int, n_parts: int, epoch: int) -> Place:
        return Place(self, part, epoch)


class Place:
    def __init__(self, of: Finite, part: int, epoch: int) -> None:
        self.of, self.part, self.epoch, self.at, self.n_seeks = of, part, epoch, 0, 0

    def __iter__(self) -> Place:
        return self

    def __next__(self) -> dict[str, Any]:
        if self.at >= self.of.lengths[self.part]:
            raise StopIteration
        self.at += 1
        return self.of.row(self.part, self.epoch, self.at - 1)

    def state(self) -> Any:
        return {"at": self.at, "of": [self.part, self.epoch]}

    def seek(self, state: Any) -> None:
        assert state["of"] == [self.part, self.epoch]
        self.at = state["at"]


class Slowly:
    """Each opening takes its time, so that kills come while rows are read."""

    def __init__(self, factory: Any) -> None:
        self.factory = factory

    def __call__(self, part: int, n_parts: int, epoch: int) -> Any:
        time.sleep(0.02)
        return self.factory(part, n_parts, epoch)


class Queue:
    """What was read from it is gone: a number in a file, for each part."""

    def __init__(self, folder: Path, deadly: Iterable[int] = ()) -> None:
        self.folder, self.deadly = folder, set(deadly)

    def __call__(self, part: int, n_parts: int, epoch: int) -> Iterator[dict[str, Any]]:
        while True:
            with open(self.folder / f"queue-{part}", "a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                row = os.fstat(file.fileno()).st_size
                file.write(b"x")
            if row in self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            yield made_row(part, 0, row)


def stream(factory: Any = None, parts: int = len(LENGTHS), **options: Any) -> Stream:
    return Stream(factory or Finite(LENGTHS), FIELDS, parts=parts, **options)


def loader(source: Any = None, batch_size: int = 4, **options: Any) -> Loader:
    options = {"workers": 2, "ram_budget": "600MB", "last": "keep", "restarts": None, **options}
    return Loader(source if source is not None else stream(), batch_size, **options)


def rows_in(batch: Any) -> list[Row]:
    """The rows of a batch, verified."""
    n_rows = int(batch["valid"].sum()) if "valid" in batch else len(batch["row"])
    rows = [tuple(int(batch[name][at]) for name in ("part", "epoch", "row")) for at in range(n_rows)]
    for at, (part, epoch, row) in enumerate(rows):
        np.testing.assert_array_equal(batch["data"][at], made_row(part, epoch, row)["data"])
    assert set(batch) - {"valid"} == set(FIELDS)
    return rows  # type: ignore[return-value]


def batches_of(lengths: list[int], size: int, epoch: int, last: str = "keep") -> list[list[Row]]:
    """The batches of an epoch: each part in its turn."""
    parts = [[(part, epoch, row) for row in range(n)] for part, n in enumerate(lengths)]
    cut = [[rows[at : at + size] for at in range(0, len(rows), size)] for rows in parts]
    turns = [part[turn] for turn in range(max(map(len, cut))) for part in cut if turn < len(part)]
    return [rows for rows in turns if last != "drop" or len(rows) == size]


# -- order and ends ---------------------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("last", ["keep", "drop", "pad"])
def test_the_order_is_fixed_and_ends_are_exact(workers: int, last: Any) -> None:
    with loader(workers=workers, last=last) as made:
        for epoch in range(3):
            batches = list(made)
            assert [rows_in(batch) for batch in batches] == batches_of(LENGTHS, 4, epoch, last)
            if last == "pad":
                assert all(len(batch["row"]) == 4 for batch in batches)
        assert (made.epoch, made.position) == (3, 0)
        n_rows = sum(len(rows) for epoch in range(3) for rows in batches_of(LENGTHS, 4, epoch, last))
        assert made.stats.n_samples == n_rows or last == "pad"


@pytest.mark.parametrize("lengths", [[8], [4, 4], [0, 0, 0], [1], [0, 9]])
@pytest.mark.parametrize("workers", [0, 2])
def test_ends_at_the_end_of_a_batch_and_empty_parts(lengths: list[int], workers: int) -> None:
    with loader(stream(Finite(lengths), len(lengths)), workers=workers) as made:
        for epoch in range(2):
            assert [rows_in(batch) for batch in made] == batches_of(lengths, 4, epoch)


def test_indices_name_parts_and_rows() -> None:
    with loader(workers=0) as made:
        for batch in made:
            assert [(int(at) % 5, int(at) // 5) for at in batch.index] == [(part, row) for part, _, row in rows_in(batch)]


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_have_parts_of_their_own(workers: int) -> None:
    lengths = [9, 3, 5, 8]
    found = []
    for rank in range(2):
        with loader(stream(Finite(lengths), 2), workers=workers, shard=(rank, 2)) as made:
            found += [row for batch in made for row in rows_in(batch)]
    assert sorted(found) == [(part, 0, row) for part, n in enumerate(lengths) for row in range(n)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_break_begins_the_next_epoch(workers: int) -> None:
    with loader(workers=workers) as made:
        for batch in made:
            assert rows_in(batch) == batches_of(LENGTHS, 4, 0)[0]
            break
        assert [rows_in(batch) for batch in made] == batches_of(LENGTHS, 4, 1)
        made.set_epoch(0)
        assert [rows_in(batch) for batch in made] == batches_of(LENGTHS, 4, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_peeking_takes_nothing(workers: int) -> None:
    expected = batches_of([0, 5], 4, 0)
    with loader(stream(Finite([0, 5]), 2), workers=workers) as made:
        assert rows_in(made.peek()) == expected[0]
        assert made.peek().index.tolist() == [1, 3, 5, 7]
        found = []
        for batch in made:
            found.append(rows_in(batch))
            assert rows_in(made.peek()) == (expected + batches_of([0, 5], 4, 1))[len(found)]
        assert found == expected


def test_copies_and_epochs() -> None:
    with loader(copy=True, epochs=2) as made:
        for epoch in range(2):
            assert [rows_in(batch) for batch in made] == batches_of(LENGTHS, 4, epoch)
        assert list(made) == []


# -- steps ------------------------------------------------------------------------------------------------------------


def repeated(part: int, n: int) -> Iterator[Row]:
    return ((part, epoch, row) for epoch in itertools.count() for row in range(n))


def endless(lengths: list[int], size: int) -> Iterator[list[Row]]:
    """All batches of parts that are opened again and again."""
    parts = [repeated(part, n) for part, n in enumerate(lengths)]
    while True:
        for part in parts:
            yield list(itertools.islice(part, size))


@WORKERS
def test_epochs_of_steps_go_on(workers: int) -> None:
    lengths = [10, 3, 1]
    expected = endless(lengths, 4)
    with loader(stream(Finite(lengths), 3, steps=7), workers=workers) as made:
        for _ in range(3):
            assert len(made) == 7
            assert [rows_in(batch) for batch in made] == list(itertools.islice(expected, 7))
        for at, batch in enumerate(made):
            assert rows_in(batch) == next(expected)
            if at == 4:
                break  # no row is lost by it
        assert [rows_in(batch) for batch in made] == list(itertools.islice(expected, 7))


def test_queues_lose_nothing_without_deaths(tmp_path: Path) -> None:
    with warnings.catch_warnings(), loader(stream(Queue(tmp_path), 2, steps=5, replays=False)) as made:
        warnings.simplefilter("error")
        found = [row for _ in range(3) for batch in made for row in rows_in(batch)]
    assert sorted(found) == [(0, 0, row) for row in range(32)] + [(1, 0, row) for row in range(28)]


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Finite, Seekable])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_deaths_at_any_row_change_nothing(kind: Any, workers: int, tmp_path: Path) -> None:
    draw = random.Random(workers)
    every = [(part, epoch, row) for part, n in enumerate(LENGTHS) for epoch in range(2) for row in range(n)]
    deadly = draw.sample(every, 8)
    source = stream(kind(LENGTHS, tmp_path, deadly), replays=kind is Finite)
    with warnings.catch_warnings(), loader(source, workers=workers) as made:
        warnings.simplefilter("ignore" if kind is Seekable else "error")
        for epoch in range(2):
            assert [rows_in(batch) for batch in made] == batches_of(LENGTHS, 4, epoch)
        assert made.stats.n_restarts >= 2
    assert len(list(tmp_path.iterdir())) == len(deadly)


def test_a_batch_that_was_given_up_ends_no_worker() -> None:
    """A worker may be left the last batch of what was taken back, of which only the first has a mark."""
    source = stream(Finite([3, 2]), 2)
    note = np.zeros((4, NOTE_BYTES // 4), np.uint8)
    write_note({"id": 0, "part": 1, "n_parts": 2, "seed": 0, "mark": None}, note)
    before = note.copy()
    with pytest.raises(RuntimeError, match="has no reader"):
        source.begin_task({NOTE: note})
    source.end_task()
    assert (note == before).all()


@pytest.mark.parametrize("kind", [Finite, Seekable])
def test_kills_at_random_moments_change_nothing(kind: Any) -> None:
    draw, lengths, n_killed = random.Random(3), [60, 31, 90], 0
    expected = endless(lengths, 4)
    with loader(stream(Slowly(kind(lengths)), 3, steps=50), workers=2) as made:
        while n_killed < 6:
            for batch in made:
                assert rows_in(batch) == next(expected)
                if draw.random() < 0.1 and (pids := members(made)[1:]):
                    time.sleep(draw.random() * 0.01)
                    n_killed += kill_all([draw.choice(pids)])


def test_the_server_dies() -> None:
    expected = endless([50], 4)
    with loader(stream(Seekable([50]), 1, steps=30), workers=1) as made:
        for at, batch in enumerate(made):
            assert rows_in(batch) == next(expected)
            if at == 10:
                kill_all(members(made)[:1])


def test_deaths_lose_rows_of_a_queue_and_say_how_many(tmp_path: Path) -> None:
    source = stream(Queue(tmp_path, {9, 30, 31, 77}), 2, steps=40, replays=False)
    with (
        pytest.warns(RuntimeWarning, match="up to [0-9,]+ rows that were read and not received are lost") as told,
        loader(source, ram_budget="auto") as made,
    ):
        found = [row for batch in made for row in rows_in(batch)]
    most = sum(int(str(one.message).partition("up to ")[2].partition(" rows")[0].replace(",", "")) for one in told)
    for part in range(2):
        rows = [row for at, _, row in found if at == part]
        assert rows == sorted(set(rows)), "none comes twice"
        assert 1 <= rows[-1] + 1 - len(rows) <= most
    assert len(found) == 160


def test_a_row_that_always_kills_ends_the_run(tmp_path: Path) -> None:
    class Poison(Finite):
        def row(self, part: int, epoch: int, row: int) -> dict[str, Any]:
            if row == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().row(part, epoch, row)

    with (
        loader(stream(Poison([9]), 1), workers=1, restarts=3) as made,
        pytest.raises(ringload.WorkerDiedError, match="sample 5 of batch 1 of epoch 0 in hand"),
    ):
        list(made)


@pytest.mark.parametrize("kind", [Finite, Seekable])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interruption_changes_nothing(kind: Any, workers: int) -> None:
    with loader(stream(kind(LENGTHS)), workers=workers) as made:
        found = []
        for batch in made:
            found.append(rows_in(batch))
            made._engine._state.life.state = State.INCONSISTENT  # what an interruption leaves
        assert found == batches_of(LENGTHS, 4, 0)


class Interrupted(Finite):
    """Reading some rows is interrupted, once."""

    def row(self, part: int, epoch: int, row: int) -> dict[str, Any]:
        if row in (4, 6, 8) and first_time(self.folder / f"{part}-{row}"):  # type: ignore[operator]
            raise KeyboardInterrupt
        return super().row(part, epoch, row)


def test_an_interruption_within_a_row_without_workers(tmp_path: Path) -> None:
    with loader(stream(Interrupted(LENGTHS, tmp_path)), workers=0) as made:
        found: list[list[Row]] = []
        iterator = iter(made)
        while True:
            try:
                found.append(rows_in(next(iterator)))
            except KeyboardInterrupt:
                continue
            except StopIteration:
                break
        assert found == batches_of(LENGTHS, 4, 0)


# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Finite, Seekable])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (3, 1)])
def test_resuming_anywhere(kind: Any, before: int, after: int) -> None:
    expected = batches_of(LENGTHS, 4, 0) + batches_of(LENGTHS, 4, 1)
    states: list[tuple[int, str]] = []
    with loader(stream(kind(LENGTHS)), workers=before) as made:
        for _ in range(2):
            states.append((len(states), json.dumps(made.state_dict())))
            for _ in made:
                states.append((len(states), json.dumps(made.state_dict())))
            states.pop()  # the same as that at the begin of the next epoch
    with loader(stream(kind(LENGTHS)), workers=after) as made:
        for at, state in random.Random(1).sample(states, 6):
            made.load_state_dict(json.loads(state))
            epoch = made.epoch
            found = [rows_in(batch) for batch in made] + ([rows_in(batch) for batch in made] if epoch == 0 else [])
            assert found == expected[at:]


@pytest.mark.parametrize("kind", [Finite, Seekable])
def test_resuming_with_another_batch_size(kind: Any) -> None:
    lengths = [40, 21]
    with loader(stream(kind(lengths), 2, steps=10)) as made:
        taken = [row for batch, _ in zip(made, range(7), strict=False) for row in rows_in(batch)]
        state = json.loads(json.dumps(made.state_dict()))
        assert made.position == 8  # zip has taken one more
        taken += [(1, 0, row) for row in range(12, 16)]
    with loader(stream(kind(lengths), 2, steps=10), 3, workers=0) as made:
        made.load_state_dict(state)
        rest = [row for _ in range(2) for batch in made for row in rows_in(batch)]
    for part in range(2):
        rows = [(epoch, row) for at, epoch, row in taken + rest if at == part]
        assert rows == [(n // lengths[part], n % lengths[part]) for n in range(len(rows))]


def test_adapters_may_be_a_batch_behind() -> None:
    with loader(stream(Seekable([40, 21]), 2, steps=9)) as made:
        expected = [rows_in(batch) for batch, _ in zip(made, range(5), strict=False)]
        state = made.state_dict() | {"position": made.position - 2}
        made.load_state_dict(state)
        assert rows_in(next(iter(made))) == expected[-1]
        with pytest.raises(ConfigError, match="changed to batch 3000 of epoch 0, and does not say where its parts are"):
            made.load_state_dict(state | {"position": 3000})


def test_states_of_other_streams_are_refused() -> None:
    with loader(workers=0) as made, loader(stream(Finite([5]), 1), workers=0) as other:
        with pytest.raises(ConfigError, match="parts: 5 there, 1 here"):
            other.load_state_dict(made.state_dict())
        state = made.state_dict()
        del state["marks"]
        with pytest.raises(ConfigError, match="no valid 'marks'"):
            made.load_state_dict(state)


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.needs("torch")
@pytest.mark.parametrize("steps", [None, 12])
def test_torch_batches(steps: int | None) -> None:
    batches_type = pytest.importorskip("ringload.torch").Batches
    with loader(stream(Seekable([40, 21]), 2, steps=steps)) as made:
        batches = batches_type(made)
        iterator = iter(batches)
        for _ in range(5):
            next(iterator)
        state = json.loads(json.dumps(batches.state_dict()))
        rest = [batch["row"].tolist() for batch in iterator]
        batches.load_state_dict(state)
        assert [batch["row"].tolist() for batch in batches] == rest


KERAS = """
    import itertools, keras, ringload.keras
    from tests.test_stream import Finite, endless, loader, rows_in, stream

    def fit(made, epochs, steps=None, **options):
        model = keras.Sequential([keras.Input((50,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(ringload.keras.dataset(made, "data", "row", **options), epochs=epochs, steps_per_epoch=steps, verbose=0)

    with loader(stream(Finite([40, 21]), 2, steps=7)) as made:
        fit(made, 3)
        expected = itertools.islice(endless([40, 21], 4), 21, 28)
        assert [rows_in(batch) for batch in made] == list(expected)
    with loader(stream(Finite([4000, 4000]), 2)) as made:
        fit(made, 3, 7, repeat=True)
        try: fit(made, 1)
        except TypeError as error: assert "give Stream(steps=...)" in str(error)
        else: raise AssertionError
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", [pytest.param("torch", marks=pytest.mark.needs("torch"))])
def test_keras(backend: str) -> None:
    done = run(KERAS, timeout=280, env={**os.environ, "KERAS_BACKEND": backend})
    assert done.returncode == 0, done.stderr


# -- errors -----------------------------------------------------------------------------------------------------------


class Raising(Finite):
    """Row 5 raises: in a generator, or in an iterator that goes on."""

    def row(self, part: int, epoch: int, row: int) -> dict[str, Any]:
        if row == 5:
            raise ValueError("no such luck")
        return super().row(part, epoch, row)


class RaisingPlaces(Raising, Seekable):
    pass


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_an_iterator_is_that_of_its_row(workers: int) -> None:
    with loader(stream(RaisingPlaces([11, 3]), 2), workers=workers, on_error="skip") as made:
        rows = [row for batch in made for row, valid in zip(rows_in_all(batch), batch["valid"], strict=True) if valid]
        assert rows == [(0, 0, row) for row in range(4)] + [(1, 0, row) for row in range(3)] + [
            (0, 0, row) for row in (4, 6, 7, 8, 9, 10)
        ]
        assert made.stats.n_bad == 1
        assert made.stats.bad[0].where == "row 5 of part 0 of 2"


def rows_in_all(batch: Any) -> list[Any]:
    return [tuple(int(batch[name][at]) for name in ("part", "epoch", "row")) for at in range(len(batch["row"]))]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_generator_is_never_taken_for_its_end(workers: int) -> None:
    with loader(stream(Raising([11]), 1), workers=workers) as made:
        iterator = iter(made)
        next(iterator)
        with pytest.raises(SampleError, match=r"row 5 of part 0 of 1\): ValueError: no such luck"):
            next(iterator)
        for _ in range(3):
            with pytest.raises(SampleError, match="part 0 goes on no more: its generator has raised ValueError"):
                next(iterator)
    with loader(stream(Raising([11]), 1), workers=workers, on_error="skip") as made, pytest.raises(TooManyBadSamplesError):
        list(made)


def stops(part: int, n_parts: int, epoch: int) -> Any:
    raise StopIteration


BAD_ROWS = [
    (lambda *_: [(1, 2)], "a row of a stream is a dict of field -> value, not an object of class tuple"),
    (lambda *_: [{"part": 1}], "lacks the fields ['epoch', 'row', 'data']"),
    (lambda *_: [made_row(0, 0, 0) | {"more": 1}], "there is no field 'more'"),
    (lambda *_: [made_row(0, 0, 0) | {"data": np.zeros(3)}], "field 'data' takes (50,) uint8, got (3,) float64"),
    (lambda *_: 7, "'int' object is not iterable"),
    (stops, "part 0 of the stream cannot be opened"),
]


@pytest.mark.parametrize(("factory", "said"), BAD_ROWS)
def test_bad_rows(factory: Any, said: str) -> None:
    with loader(stream(factory, 1), workers=0) as made, pytest.raises(SampleError) as raised:
        list(made)
    assert said in str(raised.value)


class BadState(Place):
    said: Any = None

    def state(self) -> Any:
        return self.said


class BadStates(Finite):
    def __init__(self, said: Any) -> None:
        super().__init__([9])
        self.said = said

    def __call__(self, part: int, n_parts: int, epoch: int) -> BadState:
        made = BadState(self, part, epoch)
        made.said = self.said
        return made


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("said", "text"), [({1, 2}, "what JSON cannot hold"), ("x" * 5000, "and there is room for 4,000")])
def test_states_that_cannot_be_kept(said: Any, text: str, workers: int) -> None:
    with pytest.raises(ConfigError, match=text), loader(stream(BadStates(said), 1), workers=workers) as made:
        list(made)


class Changing:
    """Each opening gives fewer rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, part: int, n_parts: int, epoch: int) -> Iterator[dict[str, Any]]:
        for row in range(9 if first_time(self.folder / "opened") else 2):
            yield made_row(0, 0, row)


def test_a_stream_that_does_not_replay_is_noticed(tmp_path: Path) -> None:
    with loader(stream(Changing(tmp_path), 1), workers=0) as made:
        next(iter(made))
        state = made.state_dict()
    with loader(stream(Changing(tmp_path), 1), workers=0) as made:
        made.load_state_dict(state)
        with pytest.raises(SampleError, match="was opened again, and has 2 rows; 4 were read before"):
            next(iter(made))


def test_an_empty_part_cannot_be_repeated() -> None:
    source = stream(Finite([3, 0]), 2, steps=5)
    with loader(source, workers=0) as made, pytest.raises(SampleError, match="part 1 of the stream has no rows"):
        list(made)


def test_what_a_stream_cannot_do() -> None:
    others: list[dict[str, Any]] = [{"shuffle": True}, {"order": "shuffle"}, {"order": [[1, 2]]}]
    for options in others:
        with pytest.raises(ConfigError, match="a Stream comes in the order of its parts"):
            loader(workers=0, **options)
    with pytest.raises(ConfigError, match="on_error is 'raise' or 'skip'"):
        loader(on_error="replace")
    with pytest.raises(ConfigError, match="does not say keeps_parts = True"):
        loader(workers=ThreadWorkers(2))
    with pytest.raises(ConfigError, match=r"a Stream takes factory\(part, n_parts, epoch\)"):
        Stream([1, 2], FIELDS)
    for wrong in ("parts", "steps", "replays"):
        with pytest.raises(ConfigError, match=wrong):
            stream(**{wrong: 0})
    with loader(workers=0) as made, pytest.raises(TypeError, match=r"give Stream\(steps=...\)"):
        len(made)
    with loader(workers=0, shuffle=False) as made:
        assert "Stream of 5 parts: part () int64" in repr(made)
