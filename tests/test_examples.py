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
example = runpy.run_path(sys.argv.pop(1), run_name="__main__")  # which is left with no arguments
print("given:", json.dumps([[order, epoch, batches] for (order, epoch), batches in given.items()]))
"""

# Afterwards, with what an example has defined. How often each sample was trained is part of the model, and so of a checkpoint.
MORE = {
    "hf_trainer": """
import contextlib, tempfile
import numpy as np, torch
from transformers import TrainerCallback, TrainingArguments
import ringload
from tests.helpers import order_of, truths

class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(())), []
        self.register_buffer("counts", torch.zeros(48))
    def forward(self, pixel_values, labels):
        np.testing.assert_array_equal(pixel_values.numpy(), truths(labels, [0]))
        self.counts[labels] += 1
        self.seen += labels.tolist()
        return {"loss": self.weight**2}

class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        if state.global_step == 5: raise ArithmeticError("before this step is saved")

source = ringload.Arrays(image=truths(range(48), [0]), label=np.arange(48))
said = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
often = {"save_steps": 1, "gradient_accumulation_steps": 5, "num_train_epochs": 3}
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
    def train(*callbacks, **how):
        options = TrainingArguments(folder, per_device_train_batch_size=4, **said, **often)
        with ringload.Loader(source, 4, workers=1, ram_budget="200MB") as loader:
            trainer = example["RingTrainer"](Counts(), options, callbacks=[example["Resume"](), *callbacks])
            trainer.loader = loader
            try: trainer.train(**how)
            except ArithmeticError: assert callbacks
            return trainer, [order_of(loader, epoch) for epoch in range(3)]
    trainer, (first, second, third) = train(Fails())
    assert trainer.model.seen == first + second[:40]  # 12 batches an epoch are 3 steps: of 5, 5 and 2
    trainer, _ = train(resume_from_checkpoint=True)
    assert trainer.model.seen == second[20:] + third, trainer.model.seen
    assert trainer.model.counts.tolist() == [3] * 48
    assert (trainer.state.global_step, trainer.state.epoch) == (9, 3), trainer.state
""",
}

QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


NEEDS = {
    "keras_fit": ["tensorflow"],
    "ray_workers": ["ray"],
    "hf_trainer": ["transformers", "accelerate"],
    "lightning_train": ["lightning"],
    "huggingface_dataset": ["datasets"],
    "lmdb_images": ["lmdb"],
    "hdf5_arrays": ["h5py"],
    "ray_data": ["ray"],
}


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=pytest.mark.needs(*NEEDS.get(path.stem, []))) for path in EXAMPLES]
)
def test_examples_learn_and_are_given_each_sample_once_an_epoch(path: Path) -> None:
    done = run(NOTES + MORE.get(path.stem, ""), path, timeout=110, env=os.environ | QUIET)
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
