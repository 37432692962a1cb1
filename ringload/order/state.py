"""The order's part of a loader's state: where the trainer is, independent of batch size, ranks and workers.

    {"version": 2, "epoch": e, "position": n, "step": p, "grid": [r, s], "seed": ..., "order": {...}}

The first `start + position * step` positions of the epoch are gone: of samples, or of batches for an order by batch. `start` is
s in the epoch r, in which a loader with another step went on; in all others it is 0. Version 1 had the batch size and the shard
instead of both. The state of a stream has `marks`, too: where each part goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.order.batched import NO_CHUNK, Batched
from ringload.order.loader_order import NO_GRID, LoaderOrder
from ringload.order.stream import StreamOrder
from ringload.order.weighted import Drawn

Change = tuple[object, str, Any]  # (object, name of its attribute, value)

VERSION = 2
NEEDED = ("epoch", "position", "step", "grid", "seed", "order")
OF_VERSION_1 = ("epoch", "position", "seed", "n_samples", "batch_size")


def state_of(order: LoaderOrder, seed: int, epoch: int, number: int) -> dict[str, Any]:
    """The state of a trainer that receives batch `number` of `epoch` next."""
    return {
        "version": VERSION,
        "epoch": epoch,
        "position": number,
        "step": order.step(epoch),
        "grid": list(order.grid),
        "seed": seed,
        "order": order.state(epoch, order.start(epoch) + number * order.step(epoch)),
        **({"marks": order.marks()} if isinstance(order, StreamOrder) else {}),
    }


def read_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of this version, with integers.

    Raises:
        ConfigError: it is no state of a loader.
    """
    if not isinstance(state, Mapping):
        raise ConfigError(f"this is not a state of a ringload.Loader, but {short(state)}")
    made = _of_version_1(state) if state.get("version") == 1 else dict(state)
    if missing := [name for name in NEEDED if name not in made]:
        raise ConfigError(f"this is not a state of a ringload.Loader: it lacks {missing}")
    if made.get("version") != VERSION:
        raise ConfigError(f"the state has version {short(made.get('version'))}, and this ringload reads 1 and {VERSION}")
    for name in ("epoch", "position", "step"):
        value, least = made[name], int(name == "step")
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ConfigError(f"the state has {name}={short(value)}: that is an integer, {least} or more")
        made[name] = int(value)
    grid = made["grid"]
    if not isinstance(grid, list | tuple) or len(grid) != 2 or not all(isinstance(one, int) for one in grid) or grid[1] < 0:
        raise ConfigError(f"the state has grid={short(grid)}: that is [epoch, position]")
    if not isinstance(made["order"], Mapping):
        raise ConfigError(f"the state has order={short(made['order'])}: that is a dict")
    return made


def _of_version_1(state: Mapping[str, Any]) -> dict[str, Any]:
    needed = (*OF_VERSION_1, *(() if "order" in state else ("shard", "shuffle")))
    if missing := [name for name in needed if name not in state]:
        raise ConfigError(f"this is not a state of a ringload.Loader: it lacks {missing}")
    if "order" in state:  # of the user's own
        step, order = 1, {"kind": state["order"], "n_samples": state["n_samples"]}
    else:
        step = state["batch_size"] * state["shard"][1]
        order = {"kind": "shuffle" if state["shuffle"] else "sequence", "n_samples": state["n_samples"]}
    kept = {name: state[name] for name in ("epoch", "position", "seed", "source") if name in state}
    return {"version": VERSION, "step": step, "grid": list(NO_GRID), "order": order, **kept}


def position_of(state: Mapping[str, Any]) -> int:
    """How many positions of its epoch are gone."""
    epoch, start = state["grid"]
    return int((start if epoch == state["epoch"] else 0) + state["position"] * state["step"])


def order_difference(there: Mapping[str, Any], here: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """What another order has in its state, in words; "" if it is the same, but for some names."""
    saved, own = {"seed": there["seed"], **there["order"]}, {"seed": here["seed"], **here["order"]}
    names = [name for name in {**saved, **own} if saved.get(name) != own.get(name) and name not in ("values", *without)]
    return ", ".join(f"{name}: {short(saved.get(name))} there, {short(own.get(name))} here" for name in names)


def resumed(order: LoaderOrder, state: Mapping[str, Any]) -> tuple[int, int, list[Change]]:
    """(epoch, number) of the batch with which this order goes on, and what changes in it at the same time."""
    if isinstance(order, StreamOrder):
        return state["epoch"], state["position"], order.adopted(state)
    epoch, position = state["epoch"], position_of(state)
    if position >= (n := order.n_positions(epoch)) + state["step"]:
        raise ConfigError(f"the state is at position {position:,} of an epoch of {n:,}")
    number, grid, n_batches = order.place(epoch, position)
    if position and number >= n_batches:  # what is left is no batch for each rank
        epoch, number, grid = epoch + 1, 0, NO_GRID
    return epoch, number, [*beginning(order, grid), *_adopted(order, state, (epoch, position))]


def beginning(order: LoaderOrder, grid: tuple[int, int] = NO_GRID) -> list[Change]:
    """What changes in an order that gets this grid."""
    return [] if order.grid == grid else [(order, "grid", grid)]


def reweighted(order: LoaderOrder, weights: Any, epoch: int, number: int) -> list[Change]:
    """What changes in an order that gets other weights from a batch on."""
    drawn = _drawn(order)
    if drawn is None:
        raise ConfigError("reweight() is for a loader with order=ringload.Weighted(...), with replacement")
    pieces = drawn.reweighted(weights, (epoch, order.start(epoch) + number * order.step(epoch)))
    return [(drawn, "pieces", pieces), (order, "chunk", NO_CHUNK)]


def weights_there(order: LoaderOrder, state: Mapping[str, Any]) -> Any:
    """The weights that are in force in a state, if this order or the state has them."""
    drawn = _drawn(order)
    if drawn is None:
        return None
    known = drawn.known(state["order"].get("weights"))
    return known if known is not None else state["order"].get("values")


def _adopted(order: LoaderOrder, state: Mapping[str, Any], start: tuple[int, int]) -> list[Change]:
    drawn, values = _drawn(order), weights_there(order, state)
    if drawn is None or values is None or drawn.is_only(state["order"].get("weights")):
        return []
    return [(drawn, "pieces", drawn.reweighted(values, start)), (order, "chunk", NO_CHUNK)]


def _drawn(order: LoaderOrder) -> Drawn | None:
    inner = order.by_position.order if isinstance(order, Batched) else None
    return inner if isinstance(inner, Drawn) else None
