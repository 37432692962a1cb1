"""The peers: what a user could pick instead of ringload, and the yardsticks that nothing can beat.

A peer's module has `open_stream(work, workers, **options) -> Stream`; each says in its docstring how its own documentation
would have it tuned, and where. It imports its framework at its top; where that is missing, `Peer.absent` says why.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.work import Work

Kind = str  # of work: "photos", "rows", "sleeps"
INSTALLED = "peers.json"  # in the environment's folder: package -> {"version": ...} or {"absent": why}; bench.install writes it


@dataclass(frozen=True)
class Stream:
    """Batches without an end, in the peer's own form: each `n_samples / batch_size` of them are one epoch.

    `arrays(batch)` gives `index (B,) int` and `payload (B, ...)`, without a copy where the peer allows it.
    """

    batches: Iterator[Any]
    arrays: Callable[[Any], tuple[np.ndarray, np.ndarray]]
    close: Callable[[], None]
    settles_after: int = 0  # batches, until what it fills ahead has all been used once


@dataclass(frozen=True)
class Peer:
    """One row of the tables: a module of this package, with options."""

    name: str
    title: str
    module: str
    kinds: tuple[Kind, ...]
    packages: tuple[str, ...] = ()  # distributions that it needs, beside ringload's own
    options: dict[str, Any] = field(default_factory=dict)
    is_yardstick: bool = False  # it has no stream: its `rate(work, workers, seconds)` is what the machine can do

    def called(self, kind: Kind) -> str:
        """Its title beside that kind of work: without its decoder where nothing is decoded."""
        if kind == "photos":
            return self.title
        return self.title.removesuffix(", ringload's decoder").removesuffix(", Pillow")

    def absent(self) -> str:
        """Why it cannot be run here; "" if it can."""
        told = installed()
        for package in self.packages:
            if why := told.get(package, {}).get("absent"):
                return f"{package}: {why}"
        try:
            self.load()
        except Exception as error:  # a wheel that does not fit fails to load in many ways
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""

    def load(self) -> Any:
        """Import its module, and so its framework."""
        return importlib.import_module(f"bench.peers.{self.module}")

    def open(self, work: Work, workers: int, **more: Any) -> Stream:
        """Start it."""
        stream: Stream = self.load().open_stream(work, workers, **(self.options | more))
        return stream


ALL = ("photos", "rows", "sleeps")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("ringload", "ringload", "ring", ALL),
        Peer("ringload-default", "ringload, its default budget", "ring", ("photos",)),
        Peer("roofline", "the same decoder, no transport", "yardsticks", ("photos",), is_yardstick=True),
        Peer("copying", "plain copies, no transport", "yardsticks", ("rows",), is_yardstick=True),
        Peer("naive", "generator by hand, Pillow", "naive", ALL),
        Peer("keras", "Keras PyDataset, Pillow", "keras_pydataset", ALL, ("tensorflow",)),
        Peer("torch", "torch DataLoader, ringload's decoder", "torch_loader", ALL, ("torch",), {"decoder": "own"}),
        Peer("torch-pillow", "torch DataLoader, Pillow", "torch_loader", ("photos",), ("torch",), {"decoder": "pillow"}),
        Peer(
            *("torch-vision", "torch DataLoader, torchvision", "torch_vision", ("photos",)),
            packages=("torch", "torchvision"),
        ),
        Peer("torch-numpy", "torch DataLoader, NumPy batches", "torch_loader", ("rows",), ("torch",), {"as_numpy": True}),
        Peer("tfdata", "tf.data, AUTOTUNE", "tfdata", ("photos", "rows"), ("tensorflow",)),
        Peer("grain", "Grain, ringload's decoder", "grain_loader", ALL, ("grain",)),
        Peer("spdl", "SPDL, threads", "spdl_loader", ALL, ("spdl",)),
        Peer("dali", "DALI, on the CPU", "dali", ("photos",), ("nvidia-dali",)),
        Peer("webdataset", "WebDataset, Pillow", "webdataset_loader", ("photos",), ("torch", "webdataset")),
        Peer("litdata", "LitData, Pillow", "litdata_loader", ("photos",), ("torch", "litdata")),
    )
}


def installed() -> dict[str, dict[str, str]]:
    """What bench.install noted in this environment."""
    path = Path(sys.prefix) / INSTALLED
    return json.loads(path.read_text()) if path.exists() else {}
