from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ringload import ConfigError, Field
from ringload.bad_sample import BETWEEN, LEFT_OUT, Bad, bounded, end_of
from ringload.order.loader_order import LoaderOrder
from ringload.protocols import PAD, Job
from ringload.ring.layout import KEY
from ringload.sources.bind import bind
from ringload.workers.fill import N_SUBSTITUTES, Filler
from ringload.workers.records import MAX_TEXT_BYTES
from tests.helpers import SHAPE, Truth, TruthRows, epoch_order, rows_of, truth

ORDER = epoch_order(20, 6, seed=3)
LAYOUT: Any = None  # nothing of it is read where rows are filled


def filler_of(source: Any, on_error: Any, poison: dict[int, str] | None = None) -> Filler:
    return Filler(Job(source, LAYOUT, 3, 20, on_error), bind(source), poison)


def fill(
    source: Any,
    on_error: Any,
    epoch: int,
    number: int,
    start: int,
    stop: int,
    slot: dict[str, np.ndarray],
    *noted: Any,
    order: LoaderOrder = ORDER,
    poison: dict[int, str] | None = None,
) -> list[Bad]:
    """Fill rows of a batch of an order, whose indices and keys are written into the slot first."""
    slot["index"][start:stop] = slot[KEY][start:stop] = rows_of(order, epoch, number).index[start:stop]
    return filler_of(source, on_error, poison).fill(epoch, start, stop, slot, *noted)


def slot_for(source: Any, batch_size: int = 6, valid: bool = False) -> dict[str, np.ndarray]:
    """A slot that still holds another batch."""
    slot = {name: np.full((batch_size, *field.shape), 77, field.dtype) for name, field in source.fields.items()}
    slot["index"], slot[KEY] = np.full(batch_size, 777), np.full(batch_size, 778)
    if valid:
        slot["valid"] = np.ones(batch_size, bool)
    return slot


class Failing(Truth):
    """Some samples cannot be loaded."""

    def __init__(self, bad: set[int], error: Any = None) -> None:
        super().__init__(20)
        self.bad, self.error = bad, error

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index in self.bad:
            raise self.error or ValueError("no such luck")

    def describe(self, index: int) -> str:
        return f"file {index}"


class FailingRows(Failing, TruthRows):
    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        TruthRows.load_rows(self, indices, rngs, out)
        if self.bad & set(indices.tolist()):
            raise self.error or ValueError("no such luck")

    load = None  # type: ignore[assignment]


def verify(slot: dict[str, np.ndarray], rows: range) -> None:
    for row in rows:
        index = int(slot["index"][row])
        assert slot["label"][row] == index
        np.testing.assert_array_equal(slot["image"][row], truth(index, int(slot["draw"][row])))


@pytest.mark.parametrize("source", [Truth(20), TruthRows(20)])
def test_rows_are_filled_and_no_others(source: Any) -> None:
    slot = slot_for(source)
    assert fill(source, "raise", 1, 2, 2, 5, slot) == []
    verify(slot, range(2, 5))
    assert (slot["image"][[0, 1, 5]] == 77).all()
    assert (slot["index"][[0, 1, 5]] == 777).all()


@pytest.mark.parametrize("cuts", [[0, 6], [0, 1, 2, 3, 4, 5, 6], [0, 4, 6]])
def test_how_a_batch_is_cut_changes_nothing(cuts: list[int]) -> None:
    results = []
    for source in (Truth(20), TruthRows(20)):
        for one_by_one in (False, True):
            slot, filler = slot_for(source), filler_of(source, "raise")
            slot["index"][:] = slot[KEY][:] = rows_of(ORDER, 4, 1).index
            for start, stop in pairwise(cuts):
                filler.fill(4, start, stop, slot, one_by_one=one_by_one)
            results.append({name: array.tobytes() for name, array in slot.items()})
    whole = slot_for(Truth(20))
    fill(Truth(20), "raise", 4, 1, 0, 6, whole)
    assert all(result == {name: array.tobytes() for name, array in whole.items()} for result in results)


@pytest.mark.parametrize("kind", [Failing, FailingRows])
@pytest.mark.parametrize("on_error", ["raise", "skip", "replace"])
def test_a_bad_sample_is_told_and_its_row_is_as_asked(kind: Any, on_error: Any) -> None:
    bad = {int(rows_of(ORDER, 0, 0).index[0:6][2])}
    source = kind(bad)
    slot = slot_for(source, valid=on_error == "skip")
    problems = fill(source, on_error, 0, 0, 0, 6, slot)
    (problem,) = problems
    assert (problem.index, problem.where, problem.reason) == (*bad, f"file {problem.index}", "ValueError: no such luck")
    assert "in load" in problem.traceback
    verify(slot, range(2))
    verify(slot, range(3, 6))
    if on_error == "replace":
        assert slot["index"][2] == problem.replaced_by not in bad
        verify(slot, range(2, 3))
        again = slot_for(source)
        assert fill(source, on_error, 0, 0, 2, 3, again) == problems  # by the same sample, whoever does it
    else:
        assert problem.replaced_by == -1
        assert slot["index"][2] == problem.index
        assert not slot["image"][2].any()
        assert slot["label"][2] == slot["draw"][2] == 0
    if on_error == "skip":
        assert slot["valid"].tolist() == [True, True, False, True, True, True]


def test_if_no_substitute_can_be_loaded_either() -> None:
    source = Failing(set(range(20)))
    problems = fill(source, "replace", 0, 0, 0, 1, slot_for(source))
    assert problems[0].replaced_by == -1
    assert N_SUBSTITUTES > 1


def test_padding_is_zeros() -> None:
    order = epoch_order(20, 6, seed=3, last="pad")
    for source in (Truth(20), TruthRows(20)):
        slot = slot_for(source, valid=True)
        fill(source, "raise", 0, 3, 0, 6, slot, order=order)
        assert slot["index"].tolist()[2:] == [PAD] * 4
        assert slot["valid"].tolist() == [True] * 2 + [False] * 4
        assert not slot["image"][2:].any()
        verify(slot, range(2))
        fill(source, "raise", 0, 3, 4, 6, slot, order=order)  # nothing but padding


def test_what_is_claimed() -> None:
    claims: list[tuple[int, int, int]] = []
    indices = rows_of(ORDER, 0, 0).index[1:4].tolist()
    fill(Truth(20), "raise", 0, 0, 1, 4, slot_for(Truth()), lambda *claim: claims.append(claim))
    assert claims == [(index, row, row + 1) for index, row in zip(indices, range(1, 4), strict=True)]
    claims.clear()
    fill(TruthRows(20), "raise", 0, 0, 1, 4, slot_for(Truth()), lambda *claim: claims.append(claim))
    assert claims == [(-1, 1, 4)]
    claims.clear()
    fill(TruthRows(20), "raise", 0, 0, 1, 4, slot_for(Truth()), lambda *claim: claims.append(claim), True)
    assert [claim[0] for claim in claims] == indices


def test_killers_are_bad_without_being_tried() -> None:
    index = int(rows_of(ORDER, 0, 0).index[0:6][1])
    for source in (Truth(20), TruthRows(20)):
        slot = slot_for(source)
        problems = fill(source, "skip", 0, 0, 0, 6, slot, poison={index: "killed twice"})
        assert problems == [Bad(index, "", "killed twice", "")]
        verify(slot, range(1))
        verify(slot, range(2, 6))


def returns(index: int, rng: Any, out: Any) -> Any:
    out["x"] = 1
    return {"x": 1}


def forgets(index: int, rng: Any, out: Any) -> None:
    pass


def wrong_shape(index: int, rng: Any, out: Any) -> None:
    out["x"] = np.zeros(3)


def wrong_dtype(index: int, rng: Any, out: Any) -> None:
    out["x"] = np.float64(1.5)


def wrong_name(index: int, rng: Any, out: Any) -> None:
    out["y"] = 1


class RudeError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


def rude(index: int, rng: Any, out: Any) -> None:
    raise RudeError


def endless(index: int, rng: Any, out: Any) -> None:
    endless(index, rng, out)


def verbose(index: int, rng: Any, out: Any) -> None:
    raise ValueError("x" * 10_000_000)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (returns, r"load\(\) returned a dict; it has to write into `out`"),
        (forgets, r"load\(\) did not write the fields \['x'\]"),
        (wrong_shape, r"field 'x' takes \(\) int64, got \(3,\) float64"),
        (wrong_dtype, r"field 'x' takes \(\) int64, got \(\) float64"),
        (wrong_name, "there is no field 'y'; the fields are"),
        (rude, "RudeError: <exception str"),
        (endless, "RecursionError"),
        (verbose, r"ValueError: xxx.* \.\.\. xxx"),
    ],
)
def test_functions_that_go_wrong_in_every_way(load: Any, said: str) -> None:
    from ringload.sources.function import FunctionSource

    source = FunctionSource(load, {"x": Field((), "i8")}, 20)
    (problem,) = fill(source, "raise", 0, 0, 0, 1, slot_for(source))
    import re

    assert re.search(said, problem.reason)
    assert len(problem.pack(MAX_TEXT_BYTES).encode()) <= MAX_TEXT_BYTES


def test_long_and_strange_texts_fit_into_a_record() -> None:
    for character in ("x", "ü", "\udcff", "\n", "\U0001f600"):
        bad = Bad(1, character * 800, character * 500, character * 2000)
        text = bad.pack(MAX_TEXT_BYTES).encode("utf-8", "replace")
        assert len(text) <= MAX_TEXT_BYTES
        again = Bad.unpack(text.decode(), 1, 3)
        assert (again.index, again.worker_id, again.replaced_by) == (1, 3, -1)


class Global(Truth):
    """Draws from the global generators."""

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        draw = int(np.random.randint(1 << 30)) ^ random.getrandbits(20)
        out["image"], out["label"], out["draw"] = truth(index, draw), index, draw


def test_global_generators_depend_on_the_sample_alone() -> None:
    whole, parts = slot_for(Global()), slot_for(Global())
    fill(Global(20), "raise", 0, 0, 0, 6, whole)
    for row in reversed(range(6)):
        np.random.random(7)
        fill(Global(20), "raise", 0, 0, row, row + 1, parts)
    assert all((whole[name] == parts[name]).all() for name in whole)
    assert len(set(whole["draw"].tolist())) == 6
    other = slot_for(Global())
    fill(Global(20), "raise", 1, 0, 0, 6, other)
    assert (other["draw"] != whole["draw"]).any()


def test_sources_that_draw_nothing_get_no_generator() -> None:
    class Plain(Truth):
        random = False

        def load(self, index: int, rng: Any, out: Any) -> None:
            assert rng is None
            out["image"], out["label"], out["draw"] = truth(index), index, 0

    random.seed(5)
    state = random.getstate()
    slot = slot_for(Plain())
    assert fill(Plain(20), "raise", 0, 0, 0, 6, slot) == []
    assert random.getstate() == state
    verify(slot, range(6))


def test_a_source_that_loads_nothing_is_refused() -> None:
    class Empty:
        def __init__(self) -> None:
            self.fields = {"x": Field((), "i8")}

    with pytest.raises(ConfigError, match="Empty has neither load"):
        bind(Empty())


def test_shapes_are_those_of_the_helpers() -> None:
    assert Truth().fields["image"] == Field(SHAPE, "u1")


class Assigning(TruthRows):
    """Puts arrays of its own into `out`, in place of writing into those that are there; one may have a wrong shape."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__(20)
        self.bad = bad

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        out["draw"][:] = [int(rngs[row].integers(1 << 30)) for row in range(len(indices))]
        out["label"] = indices
        images = np.stack([truth(int(index), int(draw)) for index, draw in zip(indices, out["draw"], strict=True)])
        out["image"] = images[:, :-1] if self.bad & set(indices.tolist()) else images


def test_arrays_that_are_assigned_are_written() -> None:
    slot = slot_for(Assigning(set()))
    assert fill(Assigning(set()), "raise", 1, 0, 0, 6, slot) == []
    verify(slot, range(6))
    wrong = int(slot["index"][2])
    slot = slot_for(Assigning({wrong}))
    (bad,) = fill(Assigning({wrong}), "skip", 1, 0, 0, 6, slot)
    assert bad.index == wrong
    assert "field 'image' takes" in bad.reason
    for row in (0, 1, 3, 4, 5):
        verify(slot, range(row, row + 1))


def test_a_text_that_is_too_long_is_cut_to_its_limit_wherever_its_lines_end() -> None:
    for width in range(1, 80):
        text = "".join(f"{number:0{width}d}\n" for number in range(200))
        for n in (50, 51, 101):
            last, both = end_of(text, n), bounded(text, n)
            assert len(last) <= n
            assert len(both) == n or both == text
            assert text.endswith(last.removeprefix(LEFT_OUT))
            beginning, _, end = both.partition(BETWEEN)
            assert text.startswith(beginning)
            assert text.endswith(end)
