"""Ray Data: a pipeline's blocks in the ring, from a real local Ray, with every payload verified. The checks are in
tests/ray_data_child.py, and share one Ray, as it takes seconds to start."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.needs("ray", "pyarrow"), pytest.mark.timeout(390), pytest.mark.slow]
HOME = Path(__file__).parent
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME.parent)}
CHECKS = [
    method.name
    for node in ast.parse((HOME / "ray_data_child.py").read_text()).body
    if isinstance(node, ast.ClassDef) and node.name == "Checks"
    for method in node.body
    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each check says: its traceback, or nothing."""
    command = [sys.executable, "-m", "tests.ray_data_child", str(tmp_path_factory.mktemp("ray"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, env=os.environ | QUIET, cwd=HOME.parent)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout.rpartition("results:")[2])
    return said


@pytest.mark.parametrize("check", CHECKS)
def test_blocks_of_ray_data(check: str, results: dict[str, str]) -> None:
    assert results[check] == "", results[check]
