"""Two hosts without Ray: examples/two_hosts.py under torchrun, once for each "host", with two ranks on each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]
ROOT = Path(__file__).parent.parent
HOSTS, RANKS = 2, 2  # ranks on each host

# Notes what this rank's loader gives, and then runs the example that torchrun was to run.
NOTES = """
import json, os, runpy, sys
from pathlib import Path
import torch
import ringload.loader

torch.set_num_threads(1)
folder, example = Path(sys.argv[1]), sys.argv[2]
given, next_batch = {}, ringload.loader._Pass.__next__

def noting(one):
    batch = next_batch(one)
    assert batch["label"].shape == (24,)
    given.setdefault(batch.epoch, []).append(batch.index.tolist())
    return batch

ringload.loader._Pass.__next__ = noting
defined = runpy.run_path(example, run_name="__main__")
said = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "GROUP_RANK", "LOCAL_RANK")}
(folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(said | {"given": given, "n": defined["N_IMAGES"]}))
"""


def test_shards_of_two_hosts_are_disjoint_and_have_as_many_batches(tmp_path: Path) -> None:
    script = tmp_path / "notes.py"
    script.write_text(NOTES)
    (tmp_path / "said").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={HOSTS}", f"--nproc-per-node={RANKS}"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={tmp_path / 'meeting'}", "--rdzv-conf=store_type=file", "--rdzv-id=1"]
    command += ["--local-addr=127.0.0.1", str(script), str(tmp_path / "said"), str(ROOT / "examples" / "two_hosts.py")]
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
    hosts = [subprocess.Popen(command, env=os.environ | quiet, **options) for _ in range(HOSTS)]
    try:
        printed = [host.communicate(timeout=110)[0] for host in hosts]
    finally:
        for host in hosts:
            host.terminate()  # torchrun ends its ranks then
            host.wait()
    for host, text in zip(hosts, printed, strict=True):
        assert host.returncode == 0, text
    said = [json.loads((tmp_path / "said" / f"rank-{rank}.json").read_text()) for rank in range(HOSTS * RANKS)]
    assert [(one["RANK"], one["WORLD_SIZE"]) for one in said] == [(rank, HOSTS * RANKS) for rank in range(HOSTS * RANKS)]
    assert sorted((one["GROUP_RANK"], one["LOCAL_RANK"]) for one in said) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    orders = []
    for epoch in map(str, range(4)):
        shares = [one["given"][epoch] for one in said]
        assert {len(batches) for batches in shares} == {said[0]["n"] // (24 * HOSTS * RANKS)}
        indices = [index for batches in shares for batch in batches for index in batch]
        assert sorted(indices) == list(range(said[0]["n"]))  # so no two ranks have the same
        orders.append(indices)
    assert len({tuple(order) for order in orders}) == len(orders)
