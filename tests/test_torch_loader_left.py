"""What is left gives back what it has by reference counting alone: no exception that is kept leads back to who keeps it."""

from __future__ import annotations

import gc
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import Dataset  # noqa: E402

import ringload  # noqa: E402
from ringload.bridge.device_prefetch import DevicePrefetcher, PendingTransfers  # noqa: E402
from ringload.errors import ConfigError, OriginalError, without_frames  # noqa: E402
from ringload.storage.read_ahead import ReadAhead  # noqa: E402
from ringload.torch import DataLoader  # noqa: E402
from ringload.workers import templates  # noqa: E402
from tests.helpers import Truth, run  # noqa: E402

FORK: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


class Numbers(Dataset):
    """0 to 11; some fail, each in a way of its own."""

    def __init__(self, failing: dict[int, Callable[[], Any]] | None = None) -> None:
        self.failing = failing or {}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return self.failing[index]() if index in self.failing else index


def fail(kind: type[BaseException]) -> Any:
    raise kind("mine")


class Failing:
    """A sampler that ends with an error."""

    def __iter__(self) -> Iterator[int]:
        yield from range(6)
        raise LookupError("no more")


def exactly(loader: Any) -> None:
    batches = iter(loader)
    for _ in range(len(loader)):
        next(batches)


def zipped(loader: Any) -> None:
    for _ in zip(range(3), loader, strict=True):
        pass


def first(loader: Any) -> None:
    next(iter(loader))


def broken(loader: Any) -> None:
    for _ in loader:
        break


def caught(loader: Any) -> None:
    """All batches and errors, but for the end."""
    batches = iter(loader)
    for _ in range(3):
        try:
            next(batches)
        except StopIteration:
            return
        except Exception as error:
            seen.append(type(error))


seen: list[type[Exception]] = []


WAYS: dict[str, tuple[Callable[[Any], None], dict[str, Any]]] = {
    "exactly": (exactly, {}),
    "zipped": (zipped, {}),
    "first": (first, {}),
    "broken": (broken, {}),
    "a bad sample": (caught, {"dataset": Numbers({5: lambda: fail(ValueError)})}),
    "an exhausted iterator": (caught, {"dataset": Numbers({5: lambda: fail(StopIteration)})}),
    "what torch does not collate": (caught, {"dataset": Numbers({5: lambda: None})}),
    "what cannot be sent": (caught, {"dataset": Numbers({5: lambda: {1}}), "collate_fn": list}),
    "a sampler's error": (caught, {"sampler": Failing()}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_pass_that_is_left_gives_its_ring_back(way: str) -> None:
    leave, options = WAYS[way]
    loader = DataLoader(**{"dataset": Numbers(), "batch_size": 4, **FORK, "persistent_workers": True, **options})
    seen.clear()
    leave(loader)
    assert bool(seen) == (leave is caught)
    ring = loader._ring
    assert ring is not None
    server = ring.feed._workers._supervisor.server_pid
    for _ in range(3):
        leave(loader)
        assert loader._ring is ring
    assert ring.feed._workers._supervisor.server_pid == server


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [FORK, {}], ids=["workers", "none"])
def test_nothing_is_left_of_a_loader(way: str, options: Any) -> None:
    leave, more = WAYS[way]
    loader = DataLoader(**{"dataset": Numbers(), "batch_size": 4, **options, **more})
    leave(loader)
    batches = iter(loader)
    loader.state_dict()
    gone = [weakref.ref(loader), weakref.ref(batches)]
    del batches, loader
    assert [one() for one in gone] == [None, None]
    stay = {template.pid for template in templates.running()}
    children = [child for child in psutil.Process().children(recursive=True) if child.pid not in stay]
    assert not [child for child in children if child.name().startswith("ringload")]


def test_a_state_before_the_first_pass_begins_none() -> None:
    loader = DataLoader(Numbers(), 4, **FORK)
    loader.load_state_dict(loader.state_dict())
    assert loader.state_dict()["_num_yielded"] == 0
    gone = weakref.ref(loader)
    del loader
    assert gone() is None


def test_one_server_for_all_validations() -> None:
    """Lightning counts batches and asks for no more; Hugging Face's Trainer evaluates by the same loader."""
    code = """
    import gc, os, pathlib, sys, tempfile, warnings
    warnings.simplefilter("ignore")
    import lightning, psutil, torch, transformers
    from ringload.torch import DataLoader

    gc.collect(); gc.disable()
    servers = set()
    def look(*_):
        servers.update(child.pid for child in psutil.Process().children() if child.name() == "ringload:server")

    class Data(torch.utils.data.Dataset):
        def __len__(self): return 16
        def __getitem__(self, i): return {"x": torch.full((2,), float(i)), "labels": torch.tensor(i % 2)}

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)
        def forward(self, x, labels):
            logits = self.layer(x)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}
        def training_step(self, batch, number): return self(**batch)["loss"]
        def validation_step(self, batch, number): look(); return self(**batch)["loss"]
        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 0.01)

    options = dict(num_workers=1)
    trainer = lightning.Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    model = Model()
    trainer.fit(model, torch.utils.data.DataLoader(Data(), 8), DataLoader(Data(), 4, **options))
    print("lightning", len(servers))
    del trainer, model
    gc.collect()
    servers.clear()

    class Trainer(transformers.Trainer):
        loader = DataLoader(Data(), 4, **options)
        def get_eval_dataloader(self, dataset=None): return self.loader
    arguments = transformers.TrainingArguments(tempfile.mkdtemp(), report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(Model(), arguments, eval_dataset=Data())
    for _ in range(4):
        trainer.evaluate()
        look()
    print("trainer", len(servers))
    """
    done = run(code, timeout=110)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith(("lightning", "trainer"))]
    assert told == ["lightning 1", "trainer 1"]


# -- exceptions that are kept elsewhere -------------------------------------------------------------------------------


class Copied:
    """A copy of a batch that is made at once."""

    def __init__(self, batch: Any) -> None:
        self.values = {name: array.copy() for name, array in batch.items()}

    def begin(self) -> None: ...
    def done(self) -> bool:
        return True

    def wait(self) -> None: ...
    def receive(self) -> Any:
        return self.values


def test_an_error_that_comes_ahead_does_not_keep_its_iteration() -> None:
    def copied(batch: Any) -> Any:
        if batch.number == 1:
            raise ValueError("no room on the device")
        return Copied(batch)

    with ringload.Loader(Truth(20), 4, workers=1, ram_budget="200MB", start_method="fork") as loader:
        ahead = DevicePrefetcher(loader, copied, PendingTransfers())
        next(loader_is_ready(loader))
        next(ahead)
        assert isinstance(ahead._error, ValueError)
        with pytest.raises(ValueError, match="no room") as raised:
            next(ahead)
        assert "copied" in str(raised.value.__cause__)
        gone = weakref.ref(ahead)
        del ahead, raised
        assert gone() is None
        ahead = DevicePrefetcher(loader, copied, PendingTransfers())
        gone = weakref.ref(ahead)
        del ahead
        assert gone() is None


def loader_is_ready(loader: Any) -> Iterator[None]:
    """Two batches are full: the first is given, and the second copied ahead."""
    while loader._engine.n_full < 2:
        loader._engine.poll()
    yield


def test_what_jax_refuses_does_not_keep_its_caller() -> None:
    pytest.importorskip("jax")
    from ringload.jax import _given

    class Marker: ...

    def refused() -> Any:
        marker = Marker()
        with pytest.raises(ConfigError, match="too large"):
            _given(without_frames(ConfigError("too large")))
        return weakref.ref(marker)

    assert refused()() is None


class Broken(Truth):
    def start(self, worker: Any) -> None:
        raise ValueError("no start")


def test_an_error_that_was_not_told_yet_does_not_keep_its_loader() -> None:
    loader = ringload.Loader(Broken(), 4, workers=1, ram_budget="200MB", start_method="fork")
    batches = iter(loader)
    while loader._engine._state.life.untold is None:
        loader._engine.poll()
    with pytest.raises(ConfigError, match="no start"):
        next(batches)
    gone = weakref.ref(loader)
    del batches, loader
    assert gone() is None


def test_a_file_that_cannot_be_opened_does_not_keep_who_asked(tmp_path: Path) -> None:
    ahead = ReadAhead()
    ahead.ask([str(tmp_path / "none"), str(tmp_path)])
    for path, kind in ((tmp_path / "none", FileNotFoundError), (tmp_path, ValueError)):
        with pytest.raises(kind):
            ahead.take(str(path))
    ahead.ask([str(tmp_path / "none")])
    gone = weakref.ref(ahead)
    del ahead
    assert gone() is None


def test_an_exception_that_is_kept_shows_where_it_was_raised() -> None:
    def inner(depth: int) -> None:
        kept = np.zeros(3)
        alive.append(weakref.ref(kept))
        if depth:
            inner(depth - 1)
        raise KeyError("in the middle")

    def outer() -> None:
        try:
            inner(2)
        except KeyError as error:
            raise ValueError("at the end") from error

    alive: list[Any] = []
    kept: Any = None
    try:
        outer()
    except ValueError as error:
        kept = without_frames(error)
    assert [one() for one in alive] == [None] * 3
    assert isinstance(kept.__cause__, KeyError)
    assert isinstance(kept.__cause__.__cause__, OriginalError)
    shown = "".join(traceback.format_exception(kept))
    assert shown.index("inner(depth - 1)") < shown.index("outer()") < shown.rindex("KeyError: 'in the middle'")
    assert without_frames(kept) is kept
    loop = ValueError("a loop")
    loop.__cause__ = KeyError("of causes")
    loop.__cause__.__context__ = loop
    assert without_frames(loop) is loop
