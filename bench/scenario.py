"""The classes of scenarios and goals, and the works that they load. `bench.scenarios` lists the scenarios."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench import data

N_PHOTOS = 2944  # the whole batches of 64 in 3,000 photographs


@dataclass(frozen=True)
class Goal:
    """The least or most that ringload's figure shall be, divided by that of `peer` if there is one."""

    limit: float
    at_least: bool
    peer: str = ""


@dataclass(frozen=True)
class Scenario:
    """One figure of ringload and its peers.

    `number` is the scenario's number in the issue that asked for it. `metric` is a key of the result of `bench.measure`; `more`
    says whether larger is better. `options` are given to the method. To measure the steady state, ringload gets memory for 16
    batches, so that each page of the ring is soon used; in other scenarios for 64, as by default.
    """

    name: str
    number: int
    title: str
    metric: str
    unit: str
    more: bool
    peers: tuple[str, ...]
    work: dict[str, Any] = field(default_factory=dict)
    method: str = "rate"
    quick: tuple[str, ...] = ()  # the peers of make bench-quick; empty: not part of it
    options: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)  # options for ringload
    workers: int = 2
    seconds: float = 2.0
    warm_s: float = 1.0
    goals: tuple[Goal, ...] = ()
    of: str = ""
    needs_root: bool = False


def at_least(limit: float, peer: str = "") -> Goal:
    return Goal(limit, True, peer)


def at_most(limit: float, peer: str = "") -> Goal:
    return Goal(limit, False, peer)


def photos(batch_size: int, n_samples: int = 10 * N_PHOTOS, size: int = 224) -> dict[str, Any]:
    """All photographs."""
    n_samples -= n_samples % batch_size
    work = {"kind": "photos", "folder": str(data.PHOTOS), "batch_size": batch_size, "size": size, "n_samples": n_samples}
    return work | {"n_files": N_PHOTOS}


def remote(batch_size: int = 64) -> dict[str, Any]:
    """The same, each once, from a web server."""
    return photos(batch_size, N_PHOTOS) | {"kind": "remote"}


def files_of(kind: str, batch_size: int) -> dict[str, Any]:
    """The photographs of 500 pixels for the "recipe"; photographs as "12mp", "png" or "webp" files."""
    folder, n_files = {
        "recipe": ("of-500", data.N_500),
        "12mp": ("12mp", data.N_LARGE),
        "png": ("png", data.N_CONVERTED),
        "webp": ("webp", data.N_CONVERTED),
    }[kind]
    work = {"kind": kind, "folder": str(data.ROOT / folder), "batch_size": batch_size, "size": 224}
    return work | {"n_samples": 10 * n_files, "n_files": None}


def table(n_rows: int) -> dict[str, Any]:
    n_samples = n_rows - n_rows % 256
    return photos(256, n_samples) | {"n_files": None, "table": str(data.ROOT / f"rows-{n_samples}.parquet")}


def rows(batch_size: int, shape: tuple[int, ...], dtype: str = "uint8", n_rows: int = 512) -> dict[str, Any]:
    n_samples = batch_size * max(64, 20_000 // batch_size)
    return {"kind": "rows", "batch_size": batch_size, "shape": shape, "dtype": dtype, "n_rows": n_rows, "n_samples": n_samples}


def sleeps(batch_size: int, cost_s: float, **more: Any) -> dict[str, Any]:
    return {"kind": "sleeps", "batch_size": batch_size, "cost_s": cost_s, "n_samples": batch_size * 1000} | more
