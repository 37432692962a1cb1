"""`loader.peek()`: the batch that comes next, seen and not taken."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import numpy as np
import pytest

from ringload import ConfigError, Loader, SampleError
from tests.helpers import Truth, check, content

N, BATCH = 60, 5


def loader(source: Any = None, **options: Any) -> Loader:
    return Loader(Truth(N) if source is None else source, BATCH, **{"workers": 2, "ram_budget": "200MB", "seed": 3, **options})


@pytest.mark.parametrize("options", [{"workers": 0}, {}, {"copy": True}, {"start_method": "fork", "last": "pad"}], ids=str)
def test_what_is_peeked_at_comes_next_and_nothing_is_moved(options: dict[str, Any]) -> None:
    with loader(**options) as made, loader(workers=0, last=options.get("last", "drop")) as calm:
        for epoch in range(2):
            before = made.state_dict()
            peeked = [made.peek() for _ in range(2)]
            assert made.state_dict() == before
            assert (made.epoch, made.position) == (epoch, 0)
            assert made.stats.n_batches == epoch * len(made)
            expected = content(calm)
            assert content(made) == expected
            assert content(peeked) == [expected[0]] * 2  # still: it is a copy
            for batch in peeked:
                check(batch)
                assert (batch.epoch, batch.number) == (epoch, 0)


def test_it_lends_nothing() -> None:
    with loader(workers=0) as made:
        first, n_bytes = (
            made._engine._state.leases._first,
            made._engine._state.layout.n_slots * made._engine._state.layout.slot_bytes,
        )
        kept = [made.peek() for _ in range(made.plan().n_slots + 1)]
        for batch in kept:
            for array in batch.values():
                assert not first <= array.ctypes.data < first + n_bytes
        assert len(made._engine._state.ring.lent) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_in_the_middle_of_an_iteration_it_is_what_the_iteration_gives_next(workers: int) -> None:
    with loader(workers=workers) as made:
        iterator = iter(made)
        for number in range(len(made)):
            peeked = made.peek()
            assert (peeked.epoch, peeked.number) == (0, number)
            assert content([peeked]) == content([next(iterator)])
        assert next(iterator, None) is None
        assert content([made.peek()]) == content([next(iter(made))])
        left = made.peek()  # that iteration was left after its first batch
        assert (left.epoch, left.number) == (1, 1)
        assert next(iter(made)).epoch == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_where_the_loader_was_sent(workers: int) -> None:
    with loader(workers=workers) as made:
        made.peek()
        made.set_epoch(7)
        assert made.peek().epoch == 7
        made.load_state_dict(made.state_dict() | {"epoch": 4, "position": 6})
        peeked = made.peek()
        assert (peeked.epoch, peeked.number) == (4, 6)
        rest = content(made)
        assert len(rest) == len(made) - 6
        assert content([peeked]) == rest[:1]


def test_all_epochs_are_over() -> None:
    with loader(workers=0, epochs=1) as made:
        made.peek()
        assert len(list(made)) == len(made)
        with pytest.raises(ConfigError, match=r"no batch to peek at: all epochs=1 of the loader are over"):
            made.peek()


class Bad(Truth):
    """The first two samples are bad."""

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        super().load(index, rng, out)
        if index < 2:
            raise OSError(f"no such thing as {index}")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("on_error", ["raise", "skip", "replace"])
def test_a_bad_sample_is_told_and_is_counted_once_when_its_batch_is_received(workers: int, on_error: Any) -> None:
    with loader(Bad(N), workers=workers, shuffle=False, on_error=on_error) as made:
        if on_error == "raise":
            for _ in range(2):
                with pytest.raises(SampleError, match=r"sample 0.*no such thing as 0"):
                    made.peek()
            assert made.stats.n_bad == 0
            iterator = iter(made)
            with pytest.raises(SampleError, match=r"sample 0.*no such thing as 0"):
                next(iterator)
            assert made.stats.n_bad == 1
            assert len(check(next(iterator))) == BATCH
            return
        peeked = made.peek()
        assert len(check(peeked)) == (3 if on_error == "skip" else BATCH)
        assert made.stats.n_bad == 0
        assert content(itertools.islice(made, 1)) == content([peeked])
        assert made.stats.n_bad == 2


class Constant:
    """Each value is what `value` is."""

    fields: ClassVar[dict[str, Any]] = {"x": ((3,), "int64")}

    def __init__(self) -> None:
        self.value = 1

    def __len__(self) -> int:
        return N

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        out["x"][:] = self.value


def test_it_is_of_the_source_as_it_is_now() -> None:
    source = Constant()
    with loader(source) as made:
        assert (made.peek()["x"] == 1).all()
        source.value = 7
        assert (made.peek()["x"] == 7).all()
        assert (next(iter(made))["x"] == 7).all()
