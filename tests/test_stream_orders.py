"""Streams in windows and by arrival: each row once, the same order where it is promised, deaths and states; and adapters."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import ringload
from ringload import ConfigError, Loader
from ringload.order.stream import MAX_UNFILLED
from tests.helpers import run
from tests.moments import Moment, interrupt, moments
from tests.test_stream import LENGTHS, Finite, Queue, Raising, Row, Seekable, endless, loader, made_row, rows_in, stream

WINDOW = 5
ALL = [[(part, epoch, row) for part, n in enumerate(LENGTHS) for row in range(n)] for epoch in range(3)]


def rows_of(made: Loader) -> list[Row]:
    """An epoch."""
    return [row for batch in made for row in rows_in(batch)]


# -- windows ----------------------------------------------------------------------------------------------------------


def test_rows_are_shuffled_within_their_windows() -> None:
    found: dict[int, list[list[list[Row]]]] = {}
    for workers, kind, seed in ((0, Finite, 0), (1, Seekable, 0), (3, Finite, 0), (2, Finite, 1)):
        with loader(stream(kind(LENGTHS), shuffle=WINDOW), workers=workers, seed=seed) as made:
            epochs = [rows_of(made) for _ in range(2)]
        for epoch, rows in enumerate(epochs):
            assert sorted(rows) == ALL[epoch]
            for part, n in enumerate(LENGTHS):
                order = [row for at, _, row in rows if at == part]
                windows = [order[at : at + WINDOW] for at in range(0, n, WINDOW)]
                assert [sorted(one) for one in windows] == [list(range(at, min(at + WINDOW, n))) for at in range(0, n, WINDOW)]
        assert [row[2] for row in epochs[0]] != [row[2] for row in epochs[1]]
        found.setdefault(seed, []).append(epochs)
    assert found[0][0] == found[0][1] == found[0][2] != found[1][0]
    first, second = ([row for part, _, row in found[0][0][0] if part == 0][at : at + WINDOW] for at in (0, WINDOW))
    assert [row + WINDOW for row in first] != second, "each window has an order of its own"


@pytest.mark.parametrize("steps", [None, 6])
@pytest.mark.parametrize("kind", [Finite, Seekable])
def test_windows_are_the_same_after_deaths(kind: Any, steps: int | None, tmp_path: Path) -> None:
    lengths = [23, 6, 17, 1]
    with loader(stream(kind(lengths), 4, shuffle=WINDOW, steps=steps), workers=0) as made:
        expected = [[rows_in(batch) for batch in made] for _ in range(2)]
    every = [(part, 0, row) for part, n in enumerate(lengths) for row in range(n)]
    deadly = random.Random(5).sample(every[:40], 5)
    with loader(stream(kind(lengths, tmp_path, deadly), 4, shuffle=WINDOW, steps=steps), workers=2) as made:
        assert [[rows_in(batch) for batch in made] for _ in range(2)] == expected
        assert made.stats.n_restarts >= 1


@pytest.mark.parametrize("kind", [Finite, Seekable])
def test_a_state_may_be_within_a_window(kind: Any) -> None:
    with loader(stream(kind(LENGTHS), shuffle=WINDOW), 3, workers=0) as made:
        expected, states = [], []
        for batch in made:
            expected.append(rows_in(batch))
            states.append(json.dumps(made.state_dict()))
    with loader(stream(kind(LENGTHS), shuffle=WINDOW), 3, workers=1) as made:
        for at in random.Random(2).sample(range(len(states) - 1), 4):
            made.load_state_dict(json.loads(states[at]))
            assert [rows_in(batch) for batch in made] == expected[at + 1 :]
    with loader(stream(kind(LENGTHS)), 3, workers=0) as made, pytest.raises(ConfigError, match="shuffle: 5 there, None here"):
        made.load_state_dict(json.loads(states[0]))


def test_a_queue_says_how_many_rows_of_windows_it_may_lose(tmp_path: Path) -> None:
    source = stream(Queue(tmp_path, {30}), 1, steps=20, shuffle=8, replays=False)
    with (
        pytest.warns(RuntimeWarning, match="up to [0-9,]+ rows that were read and not received are lost") as told,
        loader(source, workers=1) as made,
    ):
        found = [row for _, _, row in rows_of(made)]
    assert len(found) == len(set(found)) == 80
    most = sum(int(str(one.message).partition("up to ")[2].partition(" rows")[0].replace(",", "")) for one in told)
    assert 1 <= max(found) + 1 - 80 <= most + 8  # 8: the window of which the last rows are left


def test_an_error_within_a_window_is_that_of_its_row() -> None:
    class Places(Raising, Seekable):
        pass

    with loader(stream(Places([11]), 1, shuffle=4), workers=0, on_error="skip") as made:
        rows = [int(row) for batch in made for row, valid in zip(batch["row"], batch["valid"], strict=True) if valid]
        assert sorted(rows) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
        assert made.stats.n_bad == 1


def test_windows_are_in_the_budget() -> None:
    small, large = (stream(Finite([100]), 1, shuffle=n) for n in (0, 1_000_000))
    with loader(small, workers=0) as made, loader(large, workers=0) as larger:
        row_bytes = sum(field.row_bytes for field in made.fields.values())
        assert larger.plan().index_bytes - made.plan().index_bytes == 1_000_000 * row_bytes
    with pytest.raises(ringload.BudgetError):
        loader(stream(Finite([100]), 1, shuffle=100_000_000), workers=0)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="shuffle is"):
            stream(shuffle=wrong)


# -- by arrival -------------------------------------------------------------------------------------------------------


def at_most_once_each(rows: list[Row], part: int) -> list[tuple[int, int]]:
    return [(epoch, row) for at, epoch, row in rows if at == part]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_by_arrival_each_row_comes_once_in_the_order_of_its_part(workers: int) -> None:
    with loader(stream(order="arrival"), workers=workers) as made:
        for epoch in range(3):
            rows = rows_of(made)
            assert sorted(rows) == ALL[epoch]
            for part, n in enumerate(LENGTHS):
                assert at_most_once_each(rows, part) == [(epoch, row) for row in range(n)]
        assert (made.epoch, made.position) == (3, 0)


class Blocked(Finite):
    """Part 0 waits before its row 4 until the pipe `go` is opened: by the test, or by part 1 at row 100."""

    def row(self, part: int, epoch: int, row: int) -> dict[str, Any]:
        if (part, row) == (0, 4) or (part, row) == (1, 100):
            with open(self.folder / "go", "r" if part == 0 else "w"):  # type: ignore[operator]
                pass
        return super().row(part, epoch, row)


def test_a_slow_part_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """While it waits, the other part fills the slots, not every other one."""
    os.mkfifo(tmp_path / "go")
    with loader(stream(Blocked([40, 100], tmp_path), 2, order="arrival"), workers=2) as made:
        iterator = iter(made)
        first = [rows_in(next(iterator)) for _ in range(2)]
        while made.poll().n_full < 20:
            pass
        with open(tmp_path / "go", "w"):
            parts = [rows_in(next(iterator))[0][0] for _ in range(20)]
        assert parts.count(0) <= MAX_UNFILLED, (first, parts)
        assert len(list(iterator)) == 35 - 22


def test_the_others_go_on_while_the_trainer_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    with loader(stream(Blocked([8, 200], tmp_path), 2, order="arrival"), workers=2) as made:
        assert sorted(rows_of(made)) == [(0, 0, row) for row in range(8)] + [(1, 0, row) for row in range(200)]


@pytest.mark.parametrize("steps", [None, 40])
@pytest.mark.parametrize(("kind", "order"), [(Finite, "arrival"), (Seekable, "arrival"), (Seekable, "turns")])
def test_deaths_then_states_with_other_batch_sizes_lose_nothing(
    kind: Any, order: str, steps: int | None, tmp_path: Path
) -> None:
    lengths, draw = [40, 21, 60], random.Random(4)
    deadly = draw.sample([(part, 0, row) for part, n in enumerate(lengths) for row in range(n)], 6)
    rows: list[Row] = []
    state: Any = None
    for part_of_run in range(3):
        with loader(stream(kind(lengths, tmp_path, deadly), 3, order=order, steps=steps), 4 - part_of_run) as made:
            if state is not None:
                made.load_state_dict(json.loads(state))
            iterator = iter(made)
            for batch in itertools.islice(iterator, 9) if part_of_run < 2 else iterator:
                rows += rows_in(batch)
            state = json.dumps(made.state_dict())
    for part, n in enumerate(lengths):
        found = at_most_once_each(rows, part)
        assert found == [(at // n, at % n) for at in range(len(found))]
        assert steps is not None or len(found) == n


def test_a_state_a_batch_behind_and_one_of_turns() -> None:
    with loader(stream(Seekable([40, 21]), 2, order="arrival", steps=9)) as made:
        taken = [rows_in(batch) for batch, _ in zip(made, range(5), strict=False)]
        state = json.loads(json.dumps(made.state_dict())) | {"position": made.position - 2}
        made.load_state_dict(state)
        again = [rows_in(batch) for batch in made]
        rows = [row for batch in taken[:4] + again for row in batch]  # zip has taken a sixth
        for part, n in enumerate((40, 21)):
            found = at_most_once_each(rows, part)
            assert found == [(at // n, at % n) for at in range(len(found))]
    with loader(stream(Seekable([40, 21]), 2, steps=9)) as made, pytest.raises(ConfigError, match="order: 'arrival' there"):
        made.load_state_dict(state)
    with pytest.raises(ConfigError, match='order is "turns" or "arrival"'):
        stream(order="shuffle")


# -- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 6])
def test_an_interrupted_seek_changes_all_or_nothing(steps: int | None) -> None:
    """Whatever call within `set_epoch` is interrupted: the stream goes on with what was due, or where it was sent to."""
    lengths = [9, 6]
    expected, seen = endless(lengths, 4), set()
    with loader(stream(Finite(lengths), 2), workers=0) as made:
        epoch = [rows_in(batch) for batch in made]
    with loader(stream(Finite(lengths), 2, steps=steps), workers=0) as made:
        assert len(list(zip(itertools.islice(made, 1), expected, strict=False))) == 1  # so that it has to move
        for k in moments(lambda: made.set_epoch(0), 200):
            made.set_epoch(0)
            taken = [rows_in(batch) for batch in itertools.islice(made, 1)]  # of the part that is not next
            assert steps is None or taken == [next(expected)]
            with suppress(KeyboardInterrupt), Moment(k, interrupt):
                made.set_epoch(0)
            due, rest = made._engine.due, []
            while (received := made._engine.next_batch(due[0])) is not None:
                rest.append(rows_in(received[0]))
            assert rest == (epoch[due[1] :] if steps is None else list(itertools.islice(expected, len(rest))))
            seen.add(due)
    assert seen == {(0, 1), (0, 0)}


# -- adapters ---------------------------------------------------------------------------------------------------------


def endless_rows(part: int, n_parts: int, epoch: int) -> Iterator[dict[str, Any]]:
    return (made_row(part, 0, row) for row in itertools.count())


KERAS = """
    import itertools, keras, numpy as np, ringload.keras
    from tests.test_stream import loader, rows_in, stream
    from tests.test_stream_orders import endless_rows

    for order in ("turns", "arrival"):
        seen = []
        class Seeing(keras.callbacks.Callback):
            def on_train_batch_end(self, number, logs=None):
                seen.append(number)
        with loader(stream(endless_rows, 2, steps=7, order=order, shuffle=6)) as made:
            model = keras.Sequential([keras.Input((50,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
            data = ringload.keras.dataset(made, "data", "row")
            assert len(data) == 7
            model.fit(data, epochs=3, verbose=0, callbacks=[Seeing()])
            assert seen == list(range(7)) * 3 and (made.epoch, made.position) == (3, 0)
            rows = [row for batch in made for row in rows_in(batch)]
            if order == "turns":  # 21 batches of 4 rows were before: 11 of part 0, whose windows of 6 begin at 42
                assert {row for part, _, row in rows if part == 0} <= set(range(42, 66))
    print("done")
"""

JAX = """
    import itertools, jax, ringload.jax
    from tests.test_stream import loader, stream
    from tests.test_stream_orders import endless_rows

    with loader(stream(endless_rows, 2, steps=7)) as made:
        batches = ringload.jax.Batches(made, jax.devices()[0])
        for epoch in range(3):
            parts = [int(batch["part"][0]) for batch in batches]
            assert parts == [(7 * epoch + at) % 2 for at in range(7)], parts
    with loader(stream(endless_rows, 2)) as made:
        rows = [batch["row"].tolist() for batch in itertools.islice(ringload.jax.Batches(made, jax.devices()[0]), 40)]
        assert rows == [list(range(at // 2 * 4, at // 2 * 4 + 4)) for at in range(40)]
    print("done")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("code", "env"),
    [
        pytest.param(KERAS, {"KERAS_BACKEND": "torch"}, marks=pytest.mark.needs("keras", "torch"), id="keras"),
        pytest.param(JAX, {"JAX_PLATFORMS": "cpu"}, marks=pytest.mark.needs("jax"), id="jax"),
    ],
)
def test_endless_streams_in_adapters(code: str, env: dict[str, str]) -> None:
    done = run(code, timeout=280, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"


@pytest.mark.needs("torch")
def test_endless_streams_in_torch() -> None:
    batches_type = pytest.importorskip("ringload.torch").Batches
    with loader(stream(endless_rows, 2, steps=7, shuffle=6)) as made:
        found = [[(int(batch["part"][0]), batch["row"].tolist()) for batch in batches_type(made)] for _ in range(3)]
        for part in range(2):
            rows = [row for epoch in found for at, rows in epoch if at == part for row in rows]
            assert sorted(rows[:36]) == list(range(36))
        assert [len(epoch) for epoch in found] == [7] * 3
    with loader(stream(endless_rows, 1)) as made:
        taken = list(itertools.islice(iter(batches_type(made)), 40))
        assert [row for batch in taken for row in batch["row"].tolist()] == list(range(160))
