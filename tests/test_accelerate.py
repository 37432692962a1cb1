"""Accelerate, Hugging Face's Trainer and Lightning keep ringload's loaders: the real frameworks, in real processes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import run
from tests.test_torch_ddp import in_two_processes

QUIET = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}

BEGIN = """
import json, os, sys, tempfile, warnings
import numpy as np, torch
import ringload, ringload.torch
from ringload import ConfigError
from tests.helpers import Truth, order_of, rows_of

torch.set_num_threads(1)

class Few(Truth):
    '''Truth whose draw is its index. Notes what it loads.'''
    loaded = []
    def load(self, index, rng, out):
        super().load(index, rng, out)
        out["draw"] = index
        self.loaded.append(index)

class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 20
    def __getitem__(self, index):
        return torch.tensor(index), {"square": torch.tensor(index**2)}

def made(n=22, batch_size=4, **options):
    return ringload.Loader(Few(n), batch_size, **{"workers": 0, "shard": "auto", "seed": 3, "last": "keep"} | options)

def draws(batches):
    return [batch["draw"].tolist() for batch in batches]

def refused(call):
    try:
        call()
    except ConfigError as error:
        return str(error)
    raise AssertionError("it was not refused")
"""

ONE = """
import accelerate
from ringload.torch.accelerate import PreparedBatches

accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
with made() as loader, made() as twin:
    batches = ringload.torch.Batches(loader)
    assert accelerator.prepare(loader) is loader and accelerator.prepare(batches) is batches
    epochs = [[rows_of(twin.order, epoch, number).index.tolist() for number in range(6)] for epoch in range(8)]
    prepared = ringload.torch.prepare(accelerator, loader)
    assert accelerator.prepare(prepared) is prepared and isinstance(prepared, torch.utils.data.DataLoader)
    assert len(prepared) == 6 and len(prepared.dataset) == 22 and prepared.total_batch_size == 4

    model = torch.nn.Linear(1, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    n_steps, ends = 0, []
    for batch in prepared:
        with accelerator.accumulate(model):
            n_steps += accelerator.sync_gradients
            ends.append(accelerator.gradient_state.end_of_dataloader)
    assert n_steps == 2 and ends == [False] * 5 + [True]  # 4 batches, then the 2 that are left
    assert not accelerator.gradient_state.in_dataloader

    assert draws(prepared) == epochs[1]
    for number, batch in enumerate(prepared):  # epoch 2
        if number == 3:
            state = json.loads(json.dumps(prepared.state_dict()))
            folder = tempfile.mkdtemp()
            accelerator.save_state(folder)
            break
    assert (state["epoch"], state["position"]) == (2, 4)
    assert draws(prepared) == epochs[3]  # a break ends an epoch
    accelerator.load_state(folder)
    assert draws(prepared) == epochs[2][4:]
    assert draws(prepared) == epochs[3]
    with made(batch_size=8) as other:  # goes on with another batch size
        again = ringload.torch.prepare(accelerator, other)
        again.load_state_dict(state)
        assert sum(draws(again), []) == sum(epochs[2][4:], [])
        assert again.state_dict()["epoch"] == 3
    accelerator.load_state(folder)
    assert draws(accelerator.skip_first_batches(prepared, 5)) == epochs[2][5:]  # numbers are those of the epoch
    assert draws(prepared) == epochs[3]
    prepared.set_epoch(1)
    Few.loaded.clear()
    skipping = accelerator.skip_first_batches(prepared, 4)
    assert len(skipping) == 2
    for number, batch in enumerate(skipping):
        if number == 0:
            assert prepared.state_dict()["position"] == 5
    assert prepared.state_dict()["epoch"] == 2
    assert draws(prepared) == epochs[2]
    assert not set(Few.loaded) & set(sum(epochs[1][:4], [])) - set(sum(epochs[2], [])), "what is skipped is not loaded"
    renamed = ringload.torch.prepare(accelerator, ringload.torch.Batches(loader, fields={"pixels": "image"}))
    assert {name: pixels.device for name, pixels in next(iter(renamed)).items()} == {"pixels": accelerator.device}
    on_meta = PreparedBatches(batches, torch.device("meta"))
    assert next(iter(on_meta))["image"].device.type == "meta"

    for wrong in ([], model):
        assert "give other objects to accelerator.prepare()" in refused(lambda: ringload.torch.prepare(accelerator, wrong))
with made(shard=(1, 2)) as loader:
    said = refused(lambda: ringload.torch.prepare(accelerator, loader))
    assert "has shard=(1, 2), and the Accelerator is rank 0 of 1: make the loader after" in said
    for name in ("split_batches", "dispatch_batches"):
        how = accelerate.utils.DataLoaderConfiguration(**{name: True})
        said = refused(lambda: ringload.torch.prepare(accelerate.Accelerator(cpu=True, dataloader_config=how), loader))
        assert f"the Accelerator has {name}=True" in said

for stateful in (False, True):
    how = accelerate.utils.DataLoaderConfiguration(use_stateful_dataloader=stateful)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=how)
    def drop_in(kind=ringload.torch.DataLoader, **options):
        return kind(Squares(), 3, shuffle=True, generator=torch.Generator().manual_seed(5), **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = drop_in(allow_pickle=True, num_workers=1)
        prepared = ringload.torch.prepare(accelerator, ours)
        assert not [one for one in caught if "ringload" in str(one.message)]
        caught.clear()
        assert type(accelerator.prepare(drop_in()).base_dataloader) is not ringload.torch.DataLoader
        assert [one for one in caught if "replaces this ringload.torch.DataLoader" in str(one.message)]
    assert type(prepared.base_dataloader) is ringload.torch.DataLoader and prepared.base_dataloader.allow_pickle
    wanted = accelerator.prepare(drop_in(torch.utils.data.DataLoader))
    for _ in range(0 if stateful else 2):  # torchdata's draws others than torch's
        for (index, squares), (wanted_index, wanted_squares) in zip(prepared, wanted, strict=True):
            assert torch.equal(index, wanted_index) and torch.equal(squares["square"], wanted_squares["square"])
    if not stateful:
        skipping = ringload.torch.skip_first_batches(prepared, 5)
        assert type(skipping.base_dataloader) is ringload.torch.DataLoader and skipping.base_dataloader.allow_pickle
        wanted = accelerator.skip_first_batches(wanted, 5)
        assert [index.tolist() for index, _ in skipping] == [index.tolist() for index, _ in wanted]
        assert sum(len(index) for index, _ in skipping) == 5  # 20 samples in batches of 3: 3 and 2 are left
        skipping.base_dataloader.close()
    if stateful:
        for number, (index, _) in enumerate(prepared):
            if number == 2:
                state = json.loads(json.dumps(prepared.state_dict()))
                rest = []
            elif number > 2:
                rest += index.tolist()
        again = ringload.torch.prepare(accelerator, drop_in())
        again.load_state_dict(state)
        assert sum((index.tolist() for index, _ in again), []) == rest and len(rest) == 11
    ours.close()
    prepared.base_dataloader.close()
assert not hasattr(ours, "no_such_attribute")

class Counting(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(9))

said = refused(lambda: ringload.torch.prepare(accelerator, ringload.torch.DataLoader(Counting(), 3)))
assert "Accelerate would read Counting, an IterableDataset" in said
with made() as loader:
    prepared = ringload.torch.prepare(accelerator, loader)
    assert draws(ringload.torch.skip_first_batches(prepared, 4)) == draws(accelerator.skip_first_batches(prepared, 4))
print("done")
"""

TWO = """
import accelerate

rank, file = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT="1")
accelerator = accelerate.Accelerator(cpu=True)
assert (accelerator.process_index, accelerator.num_processes) == (rank, 2)
said = {"rank": rank}
for last in ("drop", "keep", "pad"):
    with made(51, 8, last=last) as loader:
        prepared = ringload.torch.prepare(accelerator, loader)
        with made(51, 8, last=last) as twin:
            own = draws(ringload.torch.Batches(twin))
        gathered, mine = [], []
        with accelerator.join_uneven_inputs([], even_batches=False):
            for batch in prepared:
                mine.append(batch["draw"].tolist())
                valid = batch.get("valid", torch.ones(len(batch["draw"]), dtype=torch.bool))
                found, valid = accelerator.gather_for_metrics((batch["draw"].clone(), valid.clone()))
                gathered += found[valid].tolist()
        assert mine == own
        said[last] = gathered
    accelerator.free_memory()
with made(48, 4) as loader:  # 6 batches a rank
    prepared = ringload.torch.prepare(accelerator, loader)
    whole, _ = draws(prepared), draws(prepared)
    prepared.set_epoch(0)
    for number, batch in enumerate(prepared):
        if number == 1:
            accelerator.save_state(file + "-state")
            break
    accelerator.wait_for_everyone()
    accelerator.load_state(file + "-state")
    assert draws(prepared) == whole[2:]
    prepared.set_epoch(0)
    assert draws(accelerator.skip_first_batches(prepared, 4)) == whole[4:]
    said["state"] = json.loads(json.dumps(prepared.state_dict()))
data = ringload.torch.prepare(accelerator, ringload.torch.DataLoader(Squares(), 4))
assert type(data.base_dataloader) is ringload.torch.DataLoader
said["drop_in"] = sum((accelerator.gather_for_metrics(index).tolist() for index, _ in data), [])
torch.distributed.barrier()
torch.distributed.destroy_process_group()
print(json.dumps(said))
"""

TRAINER = """
import transformers

FIELDS = {"draw": "draw", "label": "label"}

class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(())), []
    def forward(self, draw, label):
        if self.training:
            self.seen.append(draw.tolist())
        return {"loss": self.weight**2, "logits": draw[:, None].float()}

class Trainer(transformers.Trainer):
    def get_train_dataloader(self):
        batches = ringload.torch.Batches(loader, self.args.device, FIELDS)
        return ringload.torch.prepare(self.accelerator, batches)
    def get_eval_dataloader(self, eval_dataset=None):
        return ringload.torch.prepare(self.accelerator, ringload.torch.Batches(validation, None, FIELDS))

class Fails(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        if state.global_step == 5: raise ArithmeticError("before this step is saved")

folder = tempfile.mkdtemp()
def train(*callbacks, **how):
    options = transformers.TrainingArguments(
        folder, per_device_train_batch_size=4, per_device_eval_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True,
        logging_strategy="no", save_steps=1, gradient_accumulation_steps=2, num_train_epochs=2, label_names=["label"],
    )
    trainer = Trainer(Counts(), options, callbacks=list(callbacks),
                      compute_metrics=lambda given: {"n": len(given.predictions), "sum": float(given.predictions.sum())})
    try:
        trainer.train(**how)
    except ArithmeticError:
        assert callbacks
    return trainer

with made(22, shard=(0, 1)) as validation:
    with made(22) as loader, made(22) as twin:
        epochs = [[rows_of(twin.order, epoch, number).index.tolist() for number in range(6)] for epoch in range(2)]
        seen = train(Fails()).model.seen  # 6 batches an epoch are 3 steps: stops in the second epoch
        assert seen == epochs[0] + epochs[1][:4], seen
    with made(22) as loader:
        trainer = train(resume_from_checkpoint=True)
        assert trainer.model.seen == epochs[1][2:], (trainer.model.seen, epochs)
        assert trainer.state.global_step == 6 and trainer.num_examples(trainer.get_train_dataloader()) == 22
        found = trainer.evaluate()
        assert (found["eval_n"], found["eval_sum"]) == (22, sum(range(22))), found
print("done")
"""

LIGHTNING = """
import lightning

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []
    def training_step(self, batch, number):
        drawn = batch["draw"] if isinstance(batch, dict) else batch[0]
        self.seen.append(drawn.tolist())
        return self.layer(drawn[:, None].float()).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

def fit(data, **options):
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, strategy=options.pop("strategy", "auto"), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=2, **options)
    model = Model()
    trainer.fit(model, data)
    return model.seen, trainer.train_dataloader

os.environ.update(MASTER_ADDR="127.0.0.1")
for strategy in ("auto", "ddp"):  # ddp: Lightning puts a DistributedSampler into DataLoaders, also with one process
    with made(22, shard=(0, 1)) as loader, made(22, shard=(0, 1)) as twin:
        batches = ringload.torch.Batches(loader)
        seen, used = fit(batches, strategy=strategy)
        assert used is batches
        assert seen == [rows_of(twin.order, epoch, number).index.tolist() for epoch in range(2) for number in range(6)]
    ours = ringload.torch.DataLoader(Squares(), 4, shuffle=True, allow_pickle=True)
    seen, used = fit(ours, strategy=strategy)
    assert type(used) is ringload.torch.DataLoader and used.allow_pickle
    assert type(used.sampler).__name__ == {"auto": "RandomSampler", "ddp": "DistributedSampler"}[strategy], used.sampler
    assert sorted(sum(seen[:5], [])) == list(range(20)) and seen[:5] != seen[5:]
    kept = fit(ours, strategy=strategy, use_distributed_sampler=False)[1]
    assert kept is ours

fabric = lightning.Fabric(accelerator="cpu", devices=1)
fabric.launch()
with made(22, shard=(0, 1)) as loader:
    batches = ringload.torch.Batches(loader)
    try:
        fabric.setup_dataloaders(batches)
    except TypeError as error:
        assert "Only PyTorch DataLoader are currently supported" in str(error)
    else:
        raise AssertionError("Fabric takes Batches now: README.md says that it refuses them")
    assert sum(len(fabric.to_device(batch)["draw"]) for batch in batches) == 22
ours = ringload.torch.DataLoader(Squares(), 4, num_workers=1)
wrapped = fabric.setup_dataloaders(ours)
assert wrapped._dataloader is ours and len(wrapped) == 5
assert [index.tolist() for index, _ in wrapped] == [list(range(at, at + 4)) for at in range(0, 20, 4)]
ours.close()
print("done")
"""


def says_done(code: str) -> None:
    done = run(BEGIN + code, timeout=110, env=os.environ | QUIET)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done", done.stdout


@pytest.mark.needs("accelerate")
def test_accelerate_in_one_process() -> None:
    says_done(ONE)


@pytest.mark.needs("accelerate")
def test_accelerate_in_two_processes(tmp_path: Path) -> None:
    """Each rank has its own share, and metrics are of each sample once."""
    both: list[dict[str, Any]] = in_two_processes(BEGIN + TWO, tmp_path)
    assert [said.pop("rank") for said in both] == [0, 1]
    assert both[0] == both[1]
    for last, n in (("drop", 48), ("keep", 51), ("pad", 51)):
        assert len(both[0][last]) == len(set(both[0][last])) == n, json.dumps(both[0][last])
    assert sorted(both[0]["drop_in"]) == list(range(20))


@pytest.mark.needs("accelerate", "transformers")
def test_trainer_resumes_within_an_epoch_and_evaluates_each_sample_once() -> None:
    says_done(TRAINER)


@pytest.mark.needs("lightning")
def test_lightning_keeps_the_loader() -> None:
    says_done(LIGHTNING)
