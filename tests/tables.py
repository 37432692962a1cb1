"""What the tests of tables share: encoded images whose pixels tell their index, and the check of all samples of an epoch."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ringload import Loader
from tests.deaths import kill_all, members
from tests.helpers import SHAPE, truth

N = 60
SIZE = SHAPE[:2]
NAMES = ["cat", "ant", "bee"]  # not in sorted order
ROOM: dict[str, Any] = {"ram_budget": "600MB", "seed": 3}


def png(index: int) -> bytes:
    """The image `truth(index)`, in a file without loss."""
    file = io.BytesIO()
    Image.fromarray(truth(index)).save(file, "png")
    return file.getvalue()


def open_files(folder: object) -> list[str]:
    """The files of a folder that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that listed them
        if name.startswith(str(folder)):
            found.append(name)
    return found


def check_epoch(source: Any, rows: Sequence[int] | None = None, *, kills: int = 0, **options: Any) -> list[int]:
    """Verify each sample of an epoch: sample i is row `rows[i]` of the table. Its indices, in their order. `kills`: how many
    workers are killed meanwhile."""
    rows, seen = range(N) if rows is None else rows, []
    with pytest.MonkeyPatch.context() as patched:
        if kills:
            patched.setattr("ringload.ring.plan.MAX_SLOTS", 4)  # or all batches were there when workers are killed
        made = Loader(source, 7, last="keep", **{**ROOM, **options})
    with made:
        for batch in made:
            if kills and (alive := members(made)[1:]):
                kills -= kill_all(alive[:1])
            for place, index in enumerate(batch.index.tolist()):
                row = rows[index]
                if "image" in batch:
                    np.testing.assert_array_equal(batch["image"][place], truth(row))
                if "number" in batch:
                    assert (batch["number"][place], batch["number"].dtype) == (row, np.int16)
                    assert batch["pair"][place].tolist() == [row, row + 0.5]
                if "label" in batch:
                    assert batch["label"][place] == row % 3
            seen += batch.index.tolist()
    assert kills == 0
    assert sorted(seen) == list(range(len(rows)))
    return seen
