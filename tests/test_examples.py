"""Every script in examples/ runs as it stands, in an interpreter of its own: it learns, and is given each sample once."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.helpers import run
from tests.moments import HOME

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

# Notes what a loader gives, by order and epoch: whichever of two loaders gave it, where one goes on where the other was left.
NOTES = """
import collections, json, runpy, sys
import ringload.loader

given = collections.defaultdict(list)
next_batch = ringload.loader._Pass.__next__

def noting(one):
    batch = next_batch(one)
    given[repr(one._loader.order), batch.epoch].append(batch.index[batch.index >= 0].tolist())  # but for padding
    return batch

ringload.loader._Pass.__next__ = noting
runpy.run_path(sys.argv.pop(1), run_name="__main__")  # which is left with no arguments
print("given:", json.dumps([[order, epoch, batches] for (order, epoch), batches in given.items()]))
"""

QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": "1",
    "DO_NOT_TRACK": "1",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_examples_learn_and_are_given_each_sample_once_an_epoch(path: Path) -> None:
    done = run(NOTES, path, timeout=110, env=os.environ | QUIET)
    assert done.returncode == 0, done.stderr
    assert not re.search(rf"{re.escape(HOME)}|Traceback|ResourceWarning", done.stderr), done.stderr
    said, _, given = done.stdout.rpartition("given: ")
    losses = [float(loss) for loss in re.findall(r"loss\W{1,4}([0-9.]+(?:e-?[0-9]+)?)", said)]
    assert len(losses) > 2
    assert losses[-1] < losses[0] / 2, losses
    epochs = [([index for batch in batches for index in batch], order, epoch) for order, epoch, batches in json.loads(given)]
    for indices, order, epoch in epochs:
        assert len(set(indices)) == len(indices), (order, epoch)
    trained = [indices for indices, order, _ in epochs if "shuffle=True" in order]
    assert len(trained) >= 3
    assert {tuple(sorted(indices)) for indices in trained} == {tuple(range(len(trained[0])))}  # every epoch whole
    assert len({tuple(indices) for indices in trained}) == len(trained)  # and in an order of its own
