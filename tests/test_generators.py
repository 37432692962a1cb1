"""Generators of random numbers that a source has of its own: the same bytes for any number of workers, and in each run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ringload import ImageFrame, Loader
from ringload.packing.generators import OwnGenerators
from ringload.packing.pack import generators_of
from tests.helpers import content, run_quietly

N = 48
FIELDS = {"x": ((), "int64"), "y": ((), "float64")}


class Own:
    """Draws from generators that it has from its beginning; every third sample only."""

    fields = FIELDS

    def __init__(self) -> None:
        self.deep = {"rng": [np.random.default_rng(0)]}
        self.legacy, self.python, self.other = (
            np.random.RandomState(3),
            random.Random(5),
            np.random.Generator(np.random.MT19937(1)),
        )
        self.draw = self.python.random  # a method holds its generator

    def __len__(self) -> int:
        return N

    def load(self, index: int, rng: Any, out: Any) -> None:
        out["x"] = index
        out["y"] = 0
        if index % 3 == 0:
            first = self.deep["rng"][0].random() + self.legacy.random_sample()
            out["y"] = first + self.draw() + self.other.random()


class Late(Own):
    """Makes its generator with the first sample."""

    def __init__(self) -> None:
        self.rng: Any = None

    def load(self, index: int, rng: Any, out: Any) -> None:
        if self.rng is None:
            self.rng = {"it": np.random.default_rng(7)}
        out["x"], out["y"] = index, self.rng["it"].random()


class Started(Own):
    """Makes it in `start`, as one that is the worker's own."""

    def __init__(self) -> None:
        pass

    def start(self, worker: Any) -> None:
        self.rng = random.Random(worker.id)

    def load(self, index: int, rng: Any, out: Any) -> None:
        out["x"], out["y"] = index, self.rng.random()


class Rows(Own):
    """Several samples in one call."""

    load = None  # type: ignore[assignment]

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        out["x"][:], out["y"][:] = indices, self.deep["rng"][0].random(len(indices))


def closure() -> Any:
    rng = np.random.default_rng(1)

    def load(index: int, _: Any, out: Any) -> None:
        out["x"], out["y"] = index, rng.random()

    return load


MAKERS = {"own": Own, "late": Late, "started": Started, "rows": Rows, "closure": closure}


def loaded(source: Any, **options: Any) -> list[dict[str, bytes]]:
    if not hasattr(source, "fields"):
        options |= {"fields": FIELDS, "n_samples": N}
    with Loader(source, 8, ram_budget="300MB", epochs=2, **options) as loader:
        return content(batch.copy() for _ in range(2) for batch in loader)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_bytes_for_any_number_of_workers_and_start_method(kind: str) -> None:
    expected = loaded(MAKERS[kind](), workers=0)
    for options in (
        {"workers": 1},
        {"workers": 3},
        {"workers": 2, "start_method": "spawn"},
        {"workers": 2, "start_method": "fork"},
    ):
        assert loaded(MAKERS[kind](), **options) == expected, options
    drawn = np.concatenate([np.frombuffer(batch["y"]) for batch in expected])
    drawn = drawn[drawn > 0]
    assert len(set(drawn.tolist())) == len(drawn)  # of other samples, and in the next epoch, other numbers


def test_the_seed_decides_and_the_trainers_own_generators_stay_as_they_are() -> None:
    source = Own()
    before = source.deep["rng"][0].bit_generator.state, source.python.getstate()
    assert loaded(source, workers=0, seed=1) != loaded(source, workers=0, seed=2)
    assert (source.deep["rng"][0].bit_generator.state, source.python.getstate()) == before
    assert loaded(source, workers=2, seed=1) == loaded(Own(), workers=0, seed=1)


def test_one_that_nobody_draws_from_costs_nothing() -> None:
    class Unused(Own):
        def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
            out["x"][:], out["y"][:] = len(indices), 0

        load = None  # type: ignore[assignment]

    with Loader(Unused(), 8, workers=2, ram_budget="300MB") as loader:
        assert {int(x) for batch in loader for x in batch["x"]} != {1}  # rows still come several at a time


def test_a_global_of_the_users_module_is_one_of_the_source_too(tmp_path: Path) -> None:
    (tmp_path / "mydata.py").write_text(
        "import numpy as np\nrng = np.random.default_rng(0)\ndef load(index, _, out): out['x'] = rng.integers(1 << 40)\n"
    )
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import ringload, mydata
        told = set()
        for workers, method in ((0, "forkserver"), (1, "forkserver"), (3, "forkserver"), (2, "spawn"), (2, "fork")):
            options = {"fields": {"x": ((), "int64")}, "n_samples": 32, "ram_budget": "300MB", "start_method": method}
            with ringload.Loader(mydata.load, 4, workers=workers, **options) as loader:
                told.add(b"".join(batch["x"].tobytes() for batch in loader))
        print(len(told))
    """
    assert run_quietly(code, tmp_path) == "1\n"


def test_generators_of_torch_are_found_and_set() -> None:
    code = """
        import torch
        import ringload
        generator = torch.Generator()
        def load(index, _, out): out["x"] = int(torch.randint(1 << 40, (), generator=generator))
        told = set()
        for workers in (0, 1, 3):
            options = {"fields": {"x": ((), "int64")}, "n_samples": 32, "ram_budget": "2GB"}
            with ringload.Loader(load, 4, workers=workers, **options) as loader:
                batches = [batch["x"].tolist() for batch in loader]
                told.add(str(batches))
        print(len(told), len({x for batch in batches for x in batch}))
    """
    assert run_quietly(code) == "1 32\n"


@pytest.mark.parametrize("seed", [1, None])
def test_albumentations_in_a_function_of_ones_own(tmp_path: Path, seed: int | None) -> None:
    albumentations = pytest.importorskip("albumentations")
    for index in range(16):
        Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(tmp_path / f"{index}.png")
    table = pd.DataFrame({"path": [str(tmp_path / f"{index}.png") for index in range(16)]})
    dropout = albumentations.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(4, 4), hole_width_range=(4, 4), p=0.8)
    augment = albumentations.Compose([albumentations.OneOf([dropout, dropout], p=1)], seed=seed)
    told = []
    for workers in (0, 1, 3):
        source = ImageFrame(table, size=(32, 32), transform=lambda image, rng: augment(image=image)["image"])
        with Loader(source, 4, workers=workers, ram_budget="4GB") as loader:
            told.append([batch["image"].tobytes() for batch in loader])
    assert told[0] == told[1] == told[2]
    assert len(set(told[0])) == 4


def test_generators_are_found_wherever_a_source_has_them() -> None:
    source = Own()
    found = generators_of(source)._found
    assert {id(one) for one in found} == {
        id(one) for one in (source.deep["rng"][0], source.legacy, source.python, source.other)
    }
    assert len(generators_of([Own(), iter(())])._found) >= 4  # one that cannot be pickled has them too
    assert not OwnGenerators([]).were_used([1, {"a": {2}}])
