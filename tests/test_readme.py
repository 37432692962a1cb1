"""The README's wrappers, each run as it is shown, in an interpreter of its own that has what the text around it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import run

README = (Path(__file__).parent.parent / "README.md").read_text()
BEGIN = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import numpy as np
import ringload
def range(n, really=range): return really(min(n, 2))  # epochs
labels, device, seen = np.arange(96), None, []
source = ringload.Arrays(image=np.zeros((96, 8, 8, 3), "uint8") + labels[:, None, None, None].astype("uint8"), label=labels)
loader = ringload.Loader(source, 32, workers=2, ram_budget="200MB")
def step(images, labels):
    images, labels = np.asarray(images), np.asarray(labels)
    assert (images.reshape(len(labels), -1) == labels[:, None]).all()
    seen.extend(labels.tolist())
"""
KERAS = """
import keras
import tempfile; os.chdir(tempfile.mkdtemp())
model = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(96)])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
really_fit = model.fit
def fit(*data, epochs, **options): return really_fit(*data, epochs=min(epochs, 2), verbose=0, **options)
model.fit = fit
"""
RAY = """
import json, tempfile
import ray, ray.train
import ringload.ray, ringload.torch
from ray.train.torch import TorchTrainer
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
loader.close()
del range
"""
TRAINED = """
ray.init("local", include_dashboard=False, num_cpus=1, object_store_memory=80 << 20, logging_level="ERROR")
run = ray.train.RunConfig(storage_path=tempfile.mkdtemp())
made = TorchTrainer(train, scaling_config=ray.train.ScalingConfig(num_workers=1), run_config=run).fit()
with made.checkpoint.as_directory() as directory, open(f"{directory}/ringload-train.json") as file:
    state = json.load(file)
assert (state["epoch"], state["position"]) == (2, 0), state
ray.shutdown()
"""
BATCHES = """
assert sorted(seen) == sorted([*labels] * 2), len(seen)
"""
SECTIONS = {
    "### Keras 3": (KERAS, 'assert loader.epoch == 2 and len(model.history.history["stall_share"]) == 2'),
    "### TensorFlow": ("", BATCHES),
    "### PyTorch": ("", BATCHES),
    "Or keep your Dataset": (
        "dataset = [(np.full(3, label, 'uint8'), int(label)) for label in labels]",
        "assert sorted(seen) == np.arange(96).tolist()",
    ),
    "With Accelerate, call": (
        """
import accelerate, torch
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
""",
        "assert len(seen) == len(set(seen)) == 64",  # batches of 64
    ),
    "### JAX": ("", BATCHES),
    "### Ray": (RAY, TRAINED),
    "## Workers on Ray": ("", BATCHES),
    "## Orders": ("loader.close()", "assert len(seen) == 96 and len(set(seen)) < 80"),
    "**Mixing**": ("loader.close()", "assert len(seen) == 32"),
    "**Elastic resume**": (
        "loader.close()",
        "assert len(taken) == 2 and sum(len(batch.index) for batch in loader) == 8",
    ),
    "**Large tables**": (
        """
import tempfile, pandas as pd
from PIL import Image
loader.close()
os.chdir(tempfile.mkdtemp())
Image.new("RGB", (9, 9)).save("a.png")
source = ringload.ImageFrame(pd.DataFrame({"path": ["a.png"]}), size=(9, 9))
""",
        "assert source.filenames == ['a.png'] and source.fields['image'].shape == (224, 224, 3)",
    ),
    "## Plug in your own": (
        "",
        """
with ringload.Loader(source, 32, workers=1, order=HardFirst(np.arange(96.0))) as made:
    for batch in made:
        step(batch["image"], batch["label"])
assert seen == labels[::-1].tolist()
""",
    ),
}


NEEDS = {
    "With Accelerate, call": "accelerate",
    "### Keras 3": "tensorflow",
    "### TensorFlow": "tensorflow",
    "### JAX": "jax",
    "### Ray": "ray",
    "## Workers on Ray": "ray",
}


@pytest.mark.parametrize(
    "section", [pytest.param(section, marks=pytest.mark.needs(NEEDS.get(section, "torch"))) for section in SECTIONS]
)
def test_what_the_readme_shows_runs(section: str) -> None:
    before, after = SECTIONS[section]
    found = re.search(r"```python\n(.*?)```", README[README.index(section) :], re.DOTALL)
    assert found is not None
    shown = found[1]
    assert 1 <= len(shown.strip().splitlines()) <= 16
    done = run(f"{BEGIN}{before}\n{shown}\n{after}\nloader.close()\nprint('done')", timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
