"""Memory, measured while it runs: all that is ringload's stays within the budget, and within a cgroup's limit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from ringload import Arrays, ImageFrame, Loader
from tests.conftest import Injected, Times
from tests.ram import Group, Watch, blocks, check_blocks, memory_group, run_in, save_blocks
from tests.test_formats import in_scans

pytestmark = pytest.mark.fault

ROOM_BYTES = 8_000_000  # what the trainer of these tests may come to have beside what it had at the start


def images_within(group: Group | None, folder: Path, n_pixels: int, budget_bytes: int, workers: int, n_epochs: int) -> None:
    """Epochs over images, each row verified, in a group whose limit is the budget and what this trainer has. Tells the peak."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: int(name.partition(".")[0]))
    source = ImageFrame(pd.DataFrame({"path": names}), root=folder, size=(64, 64), max_pixels=n_pixels)
    watch = Watch()
    if group is not None:
        group.limit(group.own_bytes + budget_bytes + ROOM_BYTES)
    with Loader(source, 4, workers=workers, ram_budget=budget_bytes, last="keep") as made, watch.watching():
        for _ in range(n_epochs):
            seen = []
            for batch in made:
                for index, image in zip(batch.index, batch["image"], strict=True):
                    check_blocks(int(index), image)
                seen += batch.index.tolist()
            assert sorted(seen) == list(range(len(names)))
        assert made.stats.n_restarts == 0
        plan = made.plan()
    assert plan.server_bytes / 4 < watch.peak_bytes <= plan.total_bytes <= budget_bytes
    print(watch.peak_bytes)


IMAGES_WITHIN = """
    import sys
    from pathlib import Path
    from tests.ram import Group
    from tests.test_budget import images_within
    images_within(Group(int(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]), *map(int, sys.argv[4:]))
"""


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("workers", "mixed"), [(1, True), (4, True), (4, False)])
def test_images_up_to_the_pixel_limit_stay_within_the_budget(
    tmp_path: Path, workers: int, mixed: bool, times: Times, injected: Injected
) -> None:
    """At 12 megapixels, Pillow takes two hundred megabytes for one image: so it is one at a time."""
    n_pixels, n_images, n_epochs = times(12_000_000, 24_000_000), times(18, 36) if mixed else 8, times(2, 8)
    save_blocks(tmp_path, n_images, n_pixels, mixed)
    budget_bytes = {1: times(430_000_000, 720_000_000), 4: times(620_000_000, 910_000_000)}[
        workers
    ]  # little more than the least
    with memory_group(1 << 40) as group:
        arguments = (group.version, group.folder, tmp_path, n_pixels, budget_bytes, workers, n_epochs)
        out, err, code = run_in(group.folder, IMAGES_WITHIN, *arguments, timeout_s=300)
        assert (err, code) == ("", 0)
        assert group.oom_kills == 0
    print(f"{workers} workers: peak {int(out) / 1e6:.0f} MB of {budget_bytes / 1e6:.0f} MB", file=sys.stderr)
    n_huge = n_images // 3 if mixed else n_images
    injected("an image of max_pixels inside a cgroup that has no more than the budget", n_huge * n_epochs)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["webp", "scans", "tiff"])
def test_what_takes_more_than_others_stays_within_the_budget(tmp_path: Path, kind: str, injected: Injected) -> None:
    """WebP, JPEG in scans of its own components, which libjpeg holds as a whole, and 16 bits a value; max_pixels not given."""
    height, width, n_images = 3000, 4000, 6
    for index in range(n_images):
        pixels = blocks(index, height, width)
        if kind == "webp":
            Image.fromarray(np.dstack([pixels, pixels[:, :, 0] | 1])).save(tmp_path / f"{index}.webp", method=0, quality=50)
        elif kind == "scans":
            (tmp_path / f"{index}.jpg").write_bytes(in_scans(pixels))
        else:
            tifffile.imwrite(tmp_path / f"{index}.tif", pixels.astype(np.uint16) * 257, photometric="rgb")
    names = sorted(path.name for path in tmp_path.iterdir())
    source, watch = ImageFrame(pd.DataFrame({"path": names}), root=tmp_path, size=(64, 64)), Watch()
    with Loader(source, 2, workers=2, ram_budget="650MB", epochs=2) as made, watch.watching():
        for _ in range(2):
            for batch in made:
                for index, image in zip(batch.index, batch["image"], strict=True):
                    check_blocks(int(index), image)
        plan = made.plan()
    assert plan.max_sample_bytes == 325_000_000
    assert watch.peak_bytes <= plan.total_bytes <= 650_000_000
    injected("an image that takes more memory than others of its size", n_images * 2)


def test_a_full_ring_of_arrays_stays_within_the_budget() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2000, 64, 64, 3), np.uint8)
    watch = Watch()
    with Loader(Arrays(x=x), 100, workers=2, ram_budget=250_000_000) as made, watch.watching():
        for _ in range(12):
            for batch in made:
                np.testing.assert_array_equal(batch["x"], x[batch.index])
        plan = made.plan()
    assert plan.ring_bytes + plan.index_bytes < watch.peak_bytes <= plan.total_bytes <= 250_000_000


IN_A_GROUP = """
    import json, sys
    import numpy as np
    import ringload
    def load(index, rng, out): out["x"][:] = index % 251
    try:
        options = dict(fields={"x": ((1_000_000,), "u1")}, n_samples=2000, workers=2, ram_budget=json.loads(sys.argv[1]))
        with ringload.Loader(load, 4, **options) as made:
            for batch in made:
                assert (batch["x"][:, ::1000] == (batch.index % 251)[:, None]).all()
            print(made.plan().total_bytes)
    except ringload.BudgetError as error:
        print(error)
"""


@pytest.fixture
def group() -> Iterator[Group]:
    with memory_group(600_000_000) as made:
        yield made


def peak_bytes(group: Group) -> int:
    return int((group.folder / ("memory.max_usage_in_bytes" if group.version == 1 else "memory.peak")).read_text())


@pytest.mark.parametrize("budget", ["auto", 0.5, 0.9, 1.0])
def test_inside_a_limit_nothing_is_killed(group: Group, budget: Any, injected: Injected) -> None:
    out, err, code = run_in(group.folder, IN_A_GROUP, json.dumps(budget))
    assert (err, code) == ("", 0)
    assert int(out) < 600_000_000
    assert peak_bytes(group) < 600_000_000
    assert group.oom_kills == 0
    injected("a cgroup's memory limit that the budget is a share of", 1)


@pytest.mark.parametrize("budget", ["2GB", 599_000_000])
def test_what_a_limit_does_not_allow_is_refused(group: Group, budget: Any, injected: Injected) -> None:
    """With the arithmetic, before anything is reserved or started: the trainer itself has some of the limit."""
    out, err, code = run_in(group.folder, IN_A_GROUP, json.dumps(budget))
    assert (err, code) == ("", 0)
    said = "2.0 GB" if budget == "2GB" else "599.0 MB"
    assert f"ram_budget={budget!r} is {said}, and " in out
    assert f"MB is left of the memory limit of cgroup {group.folder}" in out
    assert peak_bytes(group) < 200_000_000
    injected("a budget above a cgroup's memory limit", 1)
