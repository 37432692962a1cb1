"""Memory, measured while it runs: all processes of ringload together stay within the budget, and within a cgroup's limit."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from ringload import Arrays, ImageFrame, Loader
from tests.helpers import photo, run


class Watch:
    """The peak of the PSS of the producers, their server, and the ring as this process maps it."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.005):
            total_bytes = sum(part.pss for part in me.memory_maps(grouped=False) if "memfd:ringload" in part.path)
            for process in me.children(recursive=True):
                try:
                    total_bytes += process.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            self.peak_bytes = max(self.peak_bytes, total_bytes)


def verify(source: Any, batch_size: int, budget_bytes: int, workers: int, n_epochs: int) -> None:
    watch = Watch()
    with Loader(source, batch_size, workers=workers, ram_budget=budget_bytes) as made, watch.watching():
        for _ in range(n_epochs):
            for batch in made:
                for array in batch.values():
                    array.max()  # the trainer's mapping touches every page, too
        assert made.plan().total_bytes <= budget_bytes
    assert made.plan().server_bytes / 4 < watch.peak_bytes <= budget_bytes


@pytest.mark.parametrize("workers", [1, 4])
def test_large_images_of_every_kind_stay_within_the_budget(tmp_path: Path, workers: int) -> None:
    """At 6 megapixels, Pillow takes a hundred megabytes for one image: so it is one at a time."""
    names = []
    image = Image.fromarray(photo(1, 2000, 3000))
    kinds: list[tuple[str, dict[str, Any]]] = [("jpg", {}), ("jpg", {"progressive": True}), ("png", {"compress_level": 1})]
    for index, (suffix, options) in enumerate(kinds):
        names.append(f"{index}.{suffix}")
        image.save(tmp_path / names[-1], **options)
    source = ImageFrame(pd.DataFrame({"path": names * 6}), root=tmp_path, size=(224, 224), max_pixels=6_000_000)
    verify(source, 4, 420_000_000, workers, 3)


def test_a_full_ring_of_arrays_stays_within_the_budget() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2000, 64, 64, 3), np.uint8)
    verify(Arrays(x=x), 100, 250_000_000, 2, 12)


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
IN_A_GROUP = """
import json, sys
from pathlib import Path
import numpy as np
import ringload
group = Path(sys.argv[1])
(group / "cgroup.procs").write_text("0")
def load(index, rng, out): out["x"][:] = index % 251
try:
    options = dict(fields={"x": ((1_000_000,), "u1")}, n_samples=2000, workers=2, ram_budget=json.loads(sys.argv[2]))
    with ringload.Loader(load, 4, **options) as made:
        for batch in made:
            assert (batch["x"][:, ::1000] == (batch.index % 251)[:, None]).all()
        print(made.plan().total_bytes)
except ringload.BudgetError as error:
    print(error)
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory cgroup (v1) of 600 MB."""
    if not os.access(MEMORY_GROUPS, os.W_OK):
        pytest.skip("no writable memory cgroup (v1) here")
    made = MEMORY_GROUPS / f"ringload-{os.getpid()}"
    made.mkdir()
    (made / "memory.limit_in_bytes").write_text("600000000")
    yield made
    made.rmdir()


@pytest.mark.parametrize("budget", ["auto", 0.5, 0.9])
def test_inside_a_limit_nothing_is_killed(group: Path, budget: Any) -> None:
    done = run(IN_A_GROUP, group, json.dumps(budget))
    assert (done.stderr, done.returncode) == ("", 0)
    assert int(done.stdout) < 600_000_000
    assert int((group / "memory.max_usage_in_bytes").read_text()) < 600_000_000
    assert "oom_kill 0" in (group / "memory.oom_control").read_text()


def test_what_a_limit_does_not_allow_is_refused(group: Path) -> None:
    done = run(IN_A_GROUP, group, json.dumps("2GB"))
    assert (done.stderr, done.returncode) == ("", 0)
    assert "left of the memory limit of cgroup" in done.stdout
    assert int((group / "memory.max_usage_in_bytes").read_text()) < 200_000_000
