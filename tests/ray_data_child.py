"""The child of test_ray_data.py: one local Ray, and checks that are made one after another. It prints what failed, as JSON.

Each row carries its own truth: its pixels and numbers are functions of its `id`, and are made by tasks of Ray.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import ray.data

import ringload
import ringload.ray
from ringload import ConfigError, Loader, SampleError
from ringload.ray.data import Blocks
from tests.deaths import kill_all, members
from tests.helpers import content, truths

N, FIRST, EVERY = 480, 100, 7  # the rows 100 to 479, but for each seventh: blocks of many sizes, and one that is empty
IDS = [row for row in range(FIRST, N) if row % EVERY]
LOST = "Its blocks may be lost once the program that has called from_dataset() has ended"
OPTIONS: dict[str, Any] = {"ram_budget": "400MB", "seed": 5, "last": "keep"}


def heavy(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The pipeline's step that makes a row of its id."""
    ids = batch["id"][(batch["id"] >= FIRST) & (batch["id"] % EVERY != 0)]
    return {
        "id": ids,
        "image": truths(ids, np.zeros_like(ids)),
        "values": (ids[:, None] + np.arange(12) / 8).astype(np.float32),
        "odd": ids % 2 == 1,
    }


def executed() -> Any:
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    return ray.data.range(N, override_num_blocks=6).map_batches(heavy).materialize()


def verify(batch: Any) -> list[int]:
    """Compare every row with its truth. Returns the ids."""
    ids = np.array(batch["id"])
    np.testing.assert_array_equal(batch["image"], truths(ids, np.zeros_like(ids)))
    np.testing.assert_array_equal(batch["values"], (ids[:, None] + np.arange(12) / 8).astype(np.float32))
    np.testing.assert_array_equal(batch["odd"], ids % 2 == 1)
    np.testing.assert_array_equal(ids, np.array(IDS)[batch.index])
    made: list[int] = ids.tolist()
    return made


def refused(call: Callable[[], Any], said: str, error: Any = ConfigError) -> None:
    with pytest.raises(error, match=said):
        call()


class Owner:
    """An actor that owns a block which is still being made."""

    def made(self) -> list[Any]:
        return [ray.remote(num_cpus=0)(lambda: threading.Event().wait()).remote()]


class Checks:
    """Each method is a check, in this order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = ringload.ray.from_dataset(executed())
        self.expected: list[dict[str, bytes]] = []  # two epochs, as the trainer itself loads them

    def payloads(self) -> None:
        assert {name: (field.shape, field.dtype.name) for name, field in self.source.fields.items()} == {
            "id": ((), "int64"), "image": ((8, 6, 3), "uint8"), "values": ((12,), "float32"), "odd": ((), "bool"),
        }  # fmt: skip
        with Loader(self.source, 32, workers=0, **OPTIONS) as loader:
            for _ in range(2):
                batches = [batch.copy() for batch in loader]
                assert sorted(one for batch in batches for one in verify(batch)) == IDS
                self.expected += content(batches)
        assert self.expected[: len(batches)] != self.expected[len(batches) :]

    def any_number_of_workers(self) -> None:
        for workers in (1, 2):
            with Loader(self.source, 32, workers=workers, **OPTIONS) as loader:
                assert content(batch.copy() for _ in range(2) for batch in loader) == self.expected, workers

    def killed_workers(self) -> None:
        few = {**OPTIONS, "ram_budget": "auto"}  # 64 slots, of the 190 batches of two epochs
        with Loader(self.source, 4, workers=0, **few) as loader:
            expected = content(batch.copy() for _ in range(2) for batch in loader)
        with Loader(self.source, 4, workers=2, restarts=None, **few) as loader:
            got = []
            for epoch in range(2):
                for number, batch in enumerate(loader):
                    got += content([batch])
                    if number in (1, 40) and not epoch:
                        kill_all(members(loader)[1:])
            assert loader.stats.n_restarts > 0
        assert got == expected

    def resumed(self) -> None:
        with Loader(self.source, 32, workers=1, **OPTIONS) as loader:
            passing = iter(loader)
            before = [one for _ in range(4) for one in verify(next(passing))]
            state = json.loads(json.dumps(loader.state_dict()))
        again = ringload.ray.from_dataset(executed())  # as another program executes it
        with Loader(again, 20, workers=1, **OPTIONS) as loader:
            loader.load_state_dict(state)
            assert sorted([*before, *(one for batch in loader for one in verify(batch))]) == IDS
        other = ringload.ray.from_dataset(executed().random_shuffle(seed=1))
        with Loader(other, 32, workers=0, **OPTIONS) as loader:
            refused(lambda: loader.load_state_dict(state), "belongs to another order|other content")

    def data_frames_of_pandas(self) -> None:
        dataset = ray.data.from_blocks([pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}), pd.DataFrame({"a": [3], "b": [2.5]})])
        source = ringload.ray.from_dataset(dataset, ["b", "a"])
        assert list(source.fields) == ["b", "a"]
        with Loader(source, 3, workers=1, shuffle=False, ram_budget="300MB") as loader:
            (batch,) = loader
            assert (batch["a"].tolist(), batch["b"].tolist()) == ([1, 2, 3], [0.5, 1.5, 2.5])

    def what_is_refused(self) -> None:
        frame = pd.DataFrame(
            {
                "n": [1, 2],
                "name": ["a", "b"],
                "ragged": [np.zeros(2), np.zeros(3)],
                "day": pd.to_datetime(["2026-11-30"] * 2),
                "gap": pd.array([1, None], "Int64"),
            }
        )
        dataset = ray.data.from_pandas(frame)
        take = ringload.ray.from_dataset
        refused(
            lambda: take(dataset), r"column 'name' is of large_string, .*Convert it in the pipeline \(dataset.map_batches\), or"
        )
        for name, said in (("ragged", "struct|lists of different"), ("day", "is of timestamp"), ("gap", "1 missing values")):
            refused(lambda name=name: take(dataset, [name]), f"column '{name}' .*({said})")
        assert list(take(dataset, ["n"]).fields) == ["n"]
        refused(lambda: take(dataset, ["m"]), "there is no column 'm'|no column 'm'")
        refused(lambda: take(dataset, "n"), "fields is a list of names of columns, not 'n'")
        refused(lambda: take(dataset, []), "fields is a list of names of columns, not an empty one")
        refused(lambda: take(frame), "takes a ray.data.Dataset, not .*DataFrame")
        refused(lambda: take(dataset.filter(lambda row: False)), "the dataset has no rows")

    def another_shape_in_a_later_block(self) -> None:
        blocks = [pd.DataFrame({"x": list(np.zeros((2, n)))}) for n in (3, 4)]
        source = ringload.ray.from_dataset(ray.data.from_blocks(blocks))
        with Loader(source, 2, workers=1, shuffle=False, ram_budget="300MB") as loader:
            passing = iter(loader)
            assert next(passing)["x"].shape == (2, 3)
            refused(lambda: next(passing), r"column 'x' of block 1 is \(2, 4\) float64, not \(2, 3\)", SampleError)

    def forks_of_the_trainer(self) -> None:
        with Loader(self.source, 32, workers=1, start_method="fork", **OPTIONS) as loader:
            refused(lambda: next(iter(loader)), "a fork of the trainer cannot use its connection to Ray: leave", SampleError)

    def a_program_that_has_ended(self) -> None:
        path = self.folder / "source"
        command = [sys.executable, "-m", "tests.ray_data_child", "another", str(path), ray.get_runtime_context().gcs_address]
        subprocess.run(command, check=True, capture_output=True, timeout=100)
        with Loader(pickle.loads(path.read_bytes()), 32, workers=1, **OPTIONS) as loader:
            assert sorted(one for batch in loader for one in verify(batch)) == IDS  # Ray keeps the blocks while it has room

    def blocks_that_are_lost_with_their_owner(self) -> None:
        owner = ray.remote(num_cpus=0)(Owner).remote()
        (ref,) = ray.get(owner.made.remote())
        blocks = Blocks([ref], ray.get_runtime_context().gcs_address)
        ray.kill(owner)
        refused(lambda: blocks.table(0), f"(?s)block 0 of .*OwnerDiedError.*{re.escape(LOST)}", OSError)

    def a_cluster_that_has_ended(self) -> None:
        with Loader(self.source, 32, workers=1, restarts=0, **OPTIONS) as loader:
            passing = iter(loader)
            verify(next(passing))
            kill_all(members(loader)[1:])  # the next worker has to connect again
            ray.shutdown()
            ended = (SampleError, ringload.WorkerDiedError)
            refused(lambda: [*passing, *loader, *loader], "cannot be read from Ray|died", ended)


def main(folder: Path, only: str = "") -> None:
    """Make the checks whose names have `only` in them."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.init("local", include_dashboard=False, num_cpus=1, object_store_memory=80 << 20, logging_level="ERROR")
    results = {}
    checks = Checks(folder)
    for name, method in vars(Checks).items():
        if not name.startswith("_") and only in name:
            try:
                method(checks)
                results[name] = ""
            except (Exception, pytest.fail.Exception):
                results[name] = traceback.format_exc()
    ray.shutdown()
    print("results:", json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1] == "another":
        ray.init(sys.argv[3], logging_level="ERROR")
        Path(sys.argv[2]).write_bytes(pickle.dumps(ringload.ray.from_dataset(executed())))
        os._exit(0)  # as a program that was killed
    main(Path(sys.argv[1]), *sys.argv[2:])
