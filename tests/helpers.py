"""What many tests need: data that carry their own truth, and scripts in interpreters of their own."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ringload import Batch, Field, Loader
from ringload.order.choose import loader_order
from ringload.order.loader_order import LoaderOrder
from ringload.order.state import resumed
from ringload.protocols import Binding, Last, Rows
from ringload.system.interrupts import set_together

SHAPE = (8, 6, 3)


def truth(index: int, draw: int = 0) -> np.ndarray:
    """`SHAPE uint8`: pixels that are a function of the sample's index, and of a random draw."""
    cells = np.arange(np.prod(SHAPE), dtype=np.int64)
    return ((cells * 2654435761 + index * 40503 + draw * 97) % 251).astype(np.uint8).reshape(SHAPE)


def truths(indices: Any, draws: Any) -> np.ndarray:
    """The same for several samples: `(n, *SHAPE) uint8`."""
    cells = np.arange(np.prod(SHAPE), dtype=np.int64)
    ahead = np.asarray(indices, np.int64)[:, None] * 40503 + np.asarray(draws, np.int64)[:, None] * 97
    return ((cells * 2654435761 + ahead) % 251).astype(np.uint8).reshape(-1, *SHAPE)


class Truth:
    """`n` samples, each of which can be told to be right or wrong by itself."""

    def __init__(self, n: int = 100) -> None:
        self.n = n
        self.fields = {"image": Field(SHAPE, "uint8"), "label": Field((), "int64"), "draw": Field((), "int64")}

    def __len__(self) -> int:
        return self.n

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        draw = int(rng.integers(1 << 30))
        out["image"] = truth(index, draw)
        out["label"] = index
        out["draw"] = draw


class TruthRows(Truth):
    """The same, several samples in one call."""

    def load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        draws = [int(rng.integers(1 << 30)) for rng in rngs]
        out["image"][:], out["label"][:], out["draw"][:] = truths(indices, draws), indices, draws

    load = None  # type: ignore[assignment]


def check(batch: Batch) -> np.ndarray:
    """Verify every row of a batch of Truth. Returns the indices of its rows that are samples."""
    valid = batch["valid"] if "valid" in batch else np.ones(len(batch["label"]), bool)
    for row, index in enumerate(batch.index):
        if not valid[row]:
            assert not batch["image"][row].any()
            assert batch["label"][row] == 0
            continue
        assert batch["label"][row] == index
        np.testing.assert_array_equal(batch["image"][row], truth(int(index), int(batch["draw"][row])))
    return batch.index[valid]


def order_of(loader: Loader, epoch: int) -> list[int]:
    """The samples of an epoch, by arithmetic."""
    return [int(index) for number in range(len(loader)) for index in rows_of(loader.order, epoch, number).index]


def rows_of(order: LoaderOrder, epoch: int, number: int) -> Rows:
    """The rows of a batch, which are known."""
    rows = order.rows(epoch, number)
    assert rows is not None
    return rows


def go_on(order: LoaderOrder, state: dict[str, Any]) -> tuple[int, int]:
    """As a loader resumes: (epoch, number) of the batch with which it goes on."""
    epoch, number, changes = resumed(order, state)
    set_together(*changes)
    return epoch, number


def epoch_order(
    n_samples: int,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    last: Last = "drop",
    rank: int = 0,
    world: int = 1,
    order: Any = None,
) -> LoaderOrder:
    """The order of a loader with these arguments."""
    binding = Binding(n_samples, batch_size, seed, lambda name: np.empty(0), last=last)
    return loader_order(order or ("shuffle" if shuffle else "sequence"), binding, rank, world)


def content(batches: Iterable[Batch]) -> list[dict[str, bytes]]:
    """Every byte of some batches, to compare."""
    return [{"index": b.index.tobytes()} | {name: array.tobytes() for name, array in b.items()} for b in batches]


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """`(height, width, 3) uint8`: smooth, as photographs are, so that JPEG keeps it nearly as it is."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phase = seed * 0.7
    channels = [128 + 100 * np.sin(9 * x + phase + c) * np.cos(7 * y - phase * c) for c in range(3)]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


# what Python prints of `logging.getLogger("ringload")` where nobody has configured logging
LOGGED = re.compile(
    r"^(sample \d+ .*was (skipped|replaced): |worker \d+ (\(pid \d+\) died|cannot be started)"
    r"|the fork server (was killed|cannot be started)).*\n",
    re.MULTILINE,
)


def run(code: str, *arguments: object, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own, from a file with no main guard."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=Path(__file__).parent.parent,
        **options,
    )


def run_quietly(code: str, *arguments: object, **options: Any) -> str:
    """The same; it must succeed and say nothing on stderr, but what is logged of faults. Returns its stdout."""
    done = run(code, *arguments, **options)
    assert LOGGED.sub("", done.stderr) == ""
    assert done.returncode == 0
    return done.stdout
