"""Files that nobody has thought of: a hundred thousand damaged ones, and none may do harm."""

from __future__ import annotations

import ast
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ringload import ImageFrame, Loader
from tests.conftest import Injected, Times
from tests.fuzzing import make_input
from tests.helpers import photo

pytestmark = pytest.mark.fault

SEED = 20261124
N_PROCESSES = 2
HANG_S = 60  # without a new input: it waits for something; one that computes has ended itself by then
KINDS = {"", "OSError", "ValueError", "SyntaxError", "DecompressionBombError"}  # of error; "": an image after all
RARE = {"MemoryError", "OverflowError", "struct.error", "TypeError", "KeyError", "IndexError", "AttributeError", "EOFError"}


class Attacker:
    """A process that decodes the inputs `start:stop`."""

    def __init__(self, start: int, stop: int, folder: Path, files: ExitStack) -> None:
        self._folder = folder
        self._says = folder / f"says-{start}"
        self._progress = folder / f"progress-{start}"
        self._progress.write_bytes(bytes(8))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzzing", *map(str, (SEED, start, stop)), str(self._progress)],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=files.enter_context(self._says.open("w")),
            text=True,
        )
        files.callback(self._process.wait)
        files.callback(self._process.kill)

    def outcome(self) -> Counter[str]:
        """Kind of error -> how many inputs. An input that does harm is left in the folder."""
        last = -1
        while True:
            try:
                said, _ = self._process.communicate(timeout=HANG_S)
                break
            except subprocess.TimeoutExpired:
                if last == (last := self._number()):
                    self._process.kill()
        if self._process.returncode != 0:
            path = self._folder / f"input-{self._number()}"
            path.write_bytes(make_input(SEED, self._number()))
            ended = f"{path.name} of seed {SEED} ended its process with {self._process.returncode}"
            pytest.fail(f"{ended}; it is in {path}; the last lines of stderr: {self._says.read_text()[-500:]}")
        return Counter(ast.literal_eval(said))

    def _number(self) -> int:
        return int.from_bytes(self._progress.read_bytes(), "little")


@pytest.mark.timeout(1200)
def test_damaged_images_do_no_harm(tmp_path: Path, times: Times, injected: Injected) -> None:
    """No crash, no hang, no byte outside of the row, nothing that was in memory before, no memory without end."""
    n = times(1500, 100_000)
    bounds = np.linspace(0, n, N_PROCESSES + 1).astype(int).tolist()
    with ExitStack() as files:
        attackers = [Attacker(start, stop, tmp_path, files) for start, stop in pairwise(bounds)]
        found = sum((attacker.outcome() for attacker in attackers), Counter[str]())
    assert found.total() == n
    assert found.keys() <= KINDS | RARE, found
    assert found[""] > n // 20, "too few are decoded to the end"
    assert sum(found[kind] for kind in RARE) < n // 100, found
    injected("damaged image that is decoded", n)


def test_damaged_images_through_the_ring(tmp_path: Path, times: Times, injected: Injected) -> None:
    """Each between two good ones: its row is zeros, or what one process alone makes of it; the others are right."""
    n = times(200, 2000)
    for seed in range(5):
        Image.fromarray(photo(seed, 20, 24)).save(tmp_path / f"{seed}.png")
    paths = []
    for number in range(n):
        (tmp_path / f"damaged-{number}").write_bytes(make_input(SEED + 1, number))
        paths += [f"{number % 5}.png", f"damaged-{number}", f"{(number + 2) % 5}.png"]
    source = ImageFrame(pd.DataFrame({"path": paths}), root=tmp_path, size=(20, 24), max_pixels=1 << 20)
    n_bad = 0
    with warnings.catch_warnings(), Loader(source, 9, workers=2, on_error="skip", max_bad=n, epochs=1, last="keep") as made:
        warnings.simplefilter("ignore")
        for batch in made:
            for row, index in enumerate(batch.index.tolist()):
                if not batch["valid"][row]:
                    assert index % 3 == 1
                    assert not batch["image"][row].any()
                    n_bad += 1
                elif index % 3 == 1:
                    np.testing.assert_array_equal(batch["image"][row], alone(source, index))
                else:
                    np.testing.assert_array_equal(batch["image"][row], photo(int(paths[index][0]), 20, 24))
        assert made.stats.n_bad == n_bad > n // 2
        assert made.stats.n_restarts == 0
    injected("damaged image in a batch", n)


def alone(source: ImageFrame, index: int) -> np.ndarray:
    image = np.zeros(source.fields["image"].shape, np.uint8)
    source.load(index, None, {"image": image})
    return image
