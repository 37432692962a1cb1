"""The peers: loaders that a user could choose instead of ringload, and yardsticks, which measure the limits of the machine.

A peer's module has `open_stream(work, workers, **options) -> Stream`. Its docstring says how its documentation recommends to
tune it, with a link. It imports its framework at the top; if that fails, `Peer.absent` gives the reason.
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

from bench.work import IMAGES, Work

Kind = str  # of work: "rows", "sleeps", or one of IMAGES
INSTALLED = "peers.json"  # in the environment's folder: package -> {"version": ...} or {"absent": why}; bench.install writes it


@dataclass(frozen=True)
class Stream:
    """An endless stream of batches, in the peer's own form. Each `n_samples / batch_size` batches are one epoch.

    `arrays(batch)` gives `index (B,) int` and `payload (B, ...)`, without a copy where the peer allows it.
    """

    batches: Iterator[Any]
    arrays: Callable[[Any], tuple[np.ndarray, np.ndarray]]
    close: Callable[[], None]
    settles_after: int = 0  # batches until all memory for batches ahead has been used once


@dataclass(frozen=True)
class Peer:
    """One row of the tables: a module of this package, with options."""

    name: str
    title: str
    module: str
    kinds: tuple[Kind, ...]
    packages: tuple[str, ...] = ()  # distributions that it needs in addition to ringload's
    options: dict[str, Any] = field(default_factory=dict)
    titles: dict[Kind, str] = field(default_factory=dict)  # for kinds of work for which it is used in another way
    is_yardstick: bool = False  # no stream, but `rate(work, workers, seconds)`: the limit of the machine

    def called(self, kind: Kind) -> str:
        """Its title for this kind of work; without its decoder if the work needs none."""
        if kind in IMAGES:
            return self.titles.get(kind, self.title)
        return self.title.removesuffix(", ringload's decoder").removesuffix(", Pillow")

    def absent(self) -> str:
        """The reason why it cannot run here, or ""."""
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
        """Import its module, and with it its framework."""
        return importlib.import_module(f"bench.peers.{self.module}")

    def open(self, work: Work, workers: int, **more: Any) -> Stream:
        """Start it."""
        stream: Stream = self.load().open_stream(work, workers, **(self.options | more))
        return stream


ALL = ("photos", "rows", "sleeps")
LINEAR, AREA = "OpenCV's INTER_LINEAR, not antialiased", "OpenCV's INTER_AREA, antialiased"
TORCH = "torch DataLoader"
PEERS = {
    peer.name: peer
    for peer in (
        Peer("ringload", "ringload", "ring", (*IMAGES, "rows", "sleeps")),
        Peer("ringload-default", "ringload, its default budget", "ring", ("photos",)),
        Peer("ringload-shards", "ringload, TarShards", "ring", ("photos", "remote"), options={"shards": True}),
        Peer("roofline", "the same decoder, no transport", "yardsticks", IMAGES, is_yardstick=True),
        Peer("copying", "plain copies, no transport", "yardsticks", ("rows",), is_yardstick=True),
        Peer("naive", "hand-written generator, Pillow", "naive", ALL),
        Peer("keras", "Keras PyDataset, Pillow", "keras_pydataset", ALL, ("tensorflow",)),
        Peer("torch", "torch DataLoader, ringload's decoder", "torch_loader", ALL, ("torch",), {"decoder": "own"}),
        Peer(
            *("torch-pillow", "torch DataLoader, Pillow", "torch_loader", ("photos", "png", "webp"), ("torch",)),
            options={"decoder": "pillow"},
            titles=dict.fromkeys(("png", "webp"), f"{TORCH}, Pillow, antialiased"),
        ),
        Peer(
            *("torch-draft", f"{TORCH}, Pillow's draft mode, antialiased", "torch_loader", ("12mp",), ("torch",)),
            options={"decoder": "pillow-draft"},
        ),
        Peer(
            *("torch-opencv", f"{TORCH}, {LINEAR}", "torch_loader", ("recipe", "12mp", "png", "webp"), ("torch",)),
            options={"decoder": "opencv"},
            titles={
                "recipe": f"{TORCH}, simplejpeg and {LINEAR}",
                "12mp": f"{TORCH}, simplejpeg scaled by 1/8 and {LINEAR}",
            },
        ),
        Peer(
            *("torch-area", f"{TORCH}, simplejpeg and {AREA}", "torch_loader", ("recipe",), ("torch",)),
            options={"decoder": "opencv-area"},
        ),
        Peer(
            *("torch-vision", "torch DataLoader, torchvision", "torch_vision", ("photos", "recipe")),
            packages=("torch", "torchvision"),
            titles={"recipe": f"{TORCH}, torchvision, antialiased"},
        ),
        Peer(
            *("torch-remote", "torch DataLoader, 64 threads, ringload's decoder", "torch_remote", ("remote",), ("torch",)),
        ),
        Peer("torch-numpy", "torch DataLoader, NumPy batches", "torch_loader", ("rows",), ("torch",), {"as_numpy": True}),
        Peer(
            *("tfdata", "tf.data, AUTOTUNE", "tfdata", (*IMAGES, "rows"), ("tensorflow",)),
            titles={
                "recipe": "tf.data, decode_and_crop_jpeg, not antialiased",
                "12mp": "tf.data, decode_jpeg scaled by 1/8, not antialiased",
                "png": "tf.data, decode_png, not antialiased",
                "webp": "tf.data, decode_webp, not antialiased",
                "remote": "tf.data, a function that 64 threads call, not antialiased",
            },
        ),
        Peer(
            *("grain", "Grain, ringload's decoder", "grain_loader", (*ALL, "recipe"), ("grain",)),
            titles={"recipe": f"Grain, simplejpeg and {LINEAR}"},
        ),
        Peer("spdl", "SPDL, threads", "spdl_loader", ALL, ("spdl",)),
        Peer(
            *("dali", "DALI, on the CPU", "dali", ("photos", "recipe"), ("nvidia-dali",)),
            titles={"recipe": "DALI on the CPU, image_random_crop, antialiased"},
        ),
        Peer("webdataset", "WebDataset, Pillow", "webdataset_loader", ("photos", "remote"), ("torch", "webdataset")),
        Peer("litdata", "LitData, Pillow", "litdata_loader", ("photos", "remote"), ("torch", "litdata")),
    )
}


def installed() -> dict[str, dict[str, str]]:
    """The results of bench.install in this environment."""
    path = Path(sys.prefix) / INSTALLED
    return json.loads(path.read_text()) if path.exists() else {}
