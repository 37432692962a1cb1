"""Everything at once, for long: see `tests.soaking`. RINGLOAD_SOAK_SEED=n repeats a failure's decisions, though not the moments
at which the kernel switches; RINGLOAD_SOAK_S is how many seconds it takes."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from tests.conftest import Injected, mapped
from tests.helpers import LOGGED
from tests.soaking import HANG_S

pytestmark = pytest.mark.fault

SHORT_S, LONG_S = 6.0, 1200.0
SHORT_SEED = 7  # the short one makes the same decisions each time


def soak(seed: int, seconds: float, photos: Path) -> dict[str, int]:
    """Run the script and watch it. Returns what it has counted."""
    print(f"RINGLOAD_SOAK_SEED={seed} RINGLOAD_SOAK_S={seconds:g}")
    said: deque[str] = deque(maxlen=40)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.soaking", str(seed), str(seconds), str(photos)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with selectors.DefaultSelector() as wait, process:
        wait.register(process.stdout, selectors.EVENT_READ)
        wait.register(process.stderr, selectors.EVENT_READ)
        last_s = time.monotonic()
        while wait.get_map():
            events = wait.select(1.0)
            if time.monotonic() - last_s > 2 * HANG_S:  # it should have ended itself by then
                process.kill()
            for key, _ in events:
                last_s = time.monotonic()
                line = key.fileobj.readline()
                if not line:
                    wait.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    said.append(line)
                elif not LOGGED.fullmatch(line):  # deaths are logged
                    said.append(f"stderr: {line}")
    tail = "".join(said)
    assert process.returncode == 0, f"seed {seed}: exit status {process.returncode}, and what it was doing:\n{tail}"
    assert "stderr: " not in tail, f"seed {seed}: {tail}"
    counts: dict[str, int] = json.loads(said[-1])
    return counts


def verify(seed: int, seconds: float, photos: Path, injected: Injected) -> None:
    seed = int(os.environ.get("RINGLOAD_SOAK_SEED", seed))
    counts = soak(seed, float(os.environ.get("RINGLOAD_SOAK_S", seconds)), photos)
    assert not mapped()
    for what, n in counts.items():
        injected(f"soak: {what}", n)


def test_a_short_soak(photos: Path, injected: Injected, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--stress"):
        pytest.skip("the long one is run")
    verify(SHORT_SEED, SHORT_S, photos, injected)


@pytest.mark.stress
@pytest.mark.timeout(LONG_S + 3 * HANG_S)
def test_a_long_soak(photos: Path, injected: Injected) -> None:
    verify(time.time_ns() % 1_000_000, LONG_S, photos, injected)
