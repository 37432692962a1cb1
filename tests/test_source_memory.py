"""What a source takes in each worker is measured there, and counted: promise 4 for sources of Python objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
import pytest

from ringload import Arrays, BudgetError, Loader
from ringload.ring.plan import Room
from ringload.workers import templates
from ringload.workers.current_work import CurrentWorkTable
from tests.helpers import run_quietly


class Rows:
    """A list of dicts, which takes 10 times its pickle."""

    fields = {"x": ((1000,), "float32")}  # noqa: RUF012

    def __init__(self, n: int) -> None:
        self.rows = [{"a": i, "b": str(i), "c": [i, i + 1, 1.5 * i]} for i in range(n)]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int, rng: Any, out: Any) -> None:
        out["x"][:] = self.rows[index]["a"]


def pss_of_children() -> int:
    """Of a loader: what templates of earlier tests take is not its."""
    stay = {template.pid for template in templates.running()}
    children = psutil.Process().children(recursive=True)
    return sum(process.memory_full_info().pss for process in children if process.pid not in stay)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_slots_are_given_up_for_objects(method: Any) -> None:
    with Loader(Rows(150_000), 64, workers=2, ram_budget="500MB", start_method=method) as loader:
        n_slots = loader.plan().n_slots
        for number, batch in enumerate(loader):
            assert (batch["x"][:, 7] == batch.index).all()
            if number > n_slots:
                break
        engine = loader._engine
        while engine._state.n_reserved < engine._state.goal:  # on a fast machine batches come before slots
            loader.poll()
        assert engine._state.goal < n_slots
        assert loader.plan().n_slots == loader.stats.n_slots == engine._state.goal
        del batch
        batches = iter(loader)
        held = [next(batches) for _ in range(loader.plan().n_slots)]
        assert len({batch["x"].ctypes.data for batch in held}) == len(held), "one slot is lent twice"
        taken = engine._state.workers.own_bytes()
        assert taken is not None
        assert taken[0] > 100e6
        assert pss_of_children() < 500e6


def test_what_does_not_fit_is_refused_before_the_first_batch() -> None:
    with Loader(Rows(200_000), 64, workers=2, ram_budget="250MB") as loader, pytest.raises(BudgetError) as caught:
        next(iter(loader))
    assert "in each of 2 workers" in str(caught.value)
    assert "raise ram_budget by" in str(caught.value)


def test_modules_that_a_source_imports_are_counted_and_said_to_be_too_much() -> None:
    code = """
        import warnings
        import torch
        import ringload
        class Data(torch.utils.data.Dataset):
            fields = {"x": ((), "int64")}
            def __len__(self): return 64
            def load(self, index, rng, out): out["x"] = index
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with ringload.Loader(Data(), 8, workers=2, ram_budget="250MB") as loader:
                print(sum(1 for _ in loader))
        print([str(one.message) for one in caught if "for the modules that the source imports" in str(one.message)] != [])
        with ringload.Loader(Data(), 8, workers=2, ram_budget="2GB") as loader:
            print(sum(1 for _ in loader))
    """
    assert run_quietly(code) == "8\nTrue\n8\n"


def test_a_plain_source_keeps_all_its_slots() -> None:
    with Loader(Arrays(x=np.zeros((20_000, 100), np.float32)), 64, workers=2, ram_budget="250MB") as loader:
        while loader._engine._state.n_reserved < loader.plan().n_slots:
            for _ in loader:
                pass
        assert loader._engine._state.goal == loader.plan().n_slots


def test_claims_of_who_has_started() -> None:
    claims = CurrentWorkTable(np.zeros(128, np.uint8).data)
    claims.started(0, 5, 7)
    assert claims.own_bytes(2) == (10, 14)  # the other one will take as much
    claims.started(1, 6, 1)
    claims.write(1, 1, 2, 3, 4, 5)
    assert claims.own_bytes(2) == (12, 14)
    claims.clear_started(2)
    assert claims.own_bytes(2) is None
    claims.started(1, -5, 0)  # at least a byte: it has started
    assert claims.own_bytes(2) == (2, 0)
    claims.clear_started(2)
    assert claims.own_bytes(2) is None


@pytest.mark.parametrize(("own_bytes", "n_slots"), [(0, 10), (100, 10), (101, 9), (300, 8), (301, 7), (10_000, -89)])
def test_room(own_bytes: int, n_slots: int) -> None:
    assert Room(100, 100).n_slots(10, own_bytes) == n_slots
