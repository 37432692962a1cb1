"""The order's part of a loader's state: where the trainer is, independent of batch size, ranks and workers.

    {"version": 2, "epoch": e, "position": n, "start": s, "step": p, "seed": ..., "order": {...}}

The first `start + position * step` positions of the epoch are gone: of samples, or of batches for an order by batch. Version 1
had the batch size and the shard instead, and `start` was 0. The state of a stream has `marks`, too: where each part goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.order.batched import LoaderOrder
from ringload.order.choose import ByEpoch
from ringload.order.stream import StreamOrder
from ringload.order.weighted import Drawn

VERSION = 2
NEEDED = ("epoch", "position", "start", "step", "seed", "order")
OF_VERSION_1 = ("epoch", "position", "seed", "n_samples", "batch_size")


def state_of(order: LoaderOrder, seed: int, epoch: int, number: int) -> dict[str, Any]:
    """The state of a trainer that receives batch `number` of `epoch` next."""
    return {
        "version": VERSION,
        "epoch": epoch,
        "position": number,
        "start": order.start(epoch),
        "step": order.step(epoch),
        "seed": seed,
        "order": order.state(epoch),
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
    for name in ("epoch", "position", "start", "step"):
        value, least = made[name], int(name == "step")
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ConfigError(f"the state has {name}={short(value)}: that is an integer, {least} or more")
        made[name] = int(value)
    if not isinstance(made["order"], Mapping):
        raise ConfigError(f"the state has order={short(made['order'])}: that is a dict")
    return made


def _of_version_1(state: Mapping[str, Any]) -> dict[str, Any]:
    if missing := [name for name in OF_VERSION_1 if name not in state]:
        raise ConfigError(f"this is not a state of a ringload.Loader: it lacks {missing}")
    if "order" in state:  # of the user's own
        step, order = 1, {"kind": state["order"], "n_samples": state["n_samples"]}
    else:
        step = state["batch_size"] * state["shard"][1]
        order = {"kind": "shuffle" if state["shuffle"] else "sequence", "n_samples": state["n_samples"]}
    kept = {name: state[name] for name in ("epoch", "position", "seed", "source") if name in state}
    return {"version": VERSION, "start": 0, "step": step, "order": order, **kept}


def order_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What another order has in its state, in words; "" if it is the same."""
    saved, own = {"seed": there["seed"], **there["order"]}, {"seed": here["seed"], **here["order"]}
    names = [name for name in {**saved, **own} if saved.get(name) != own.get(name) and name != "values"]
    return ", ".join(f"{name}: {short(saved.get(name))} there, {short(own.get(name))} here" for name in names)


def resumed(order: LoaderOrder, state: Mapping[str, Any]) -> tuple[int, int]:
    """(epoch, number) of the batch with which this order goes on."""
    if isinstance(order, StreamOrder):
        order.adopt(state)
    epoch, position = state["epoch"], state["start"] + state["position"] * state["step"]
    if position > (n := order.n_positions(epoch)):
        raise ConfigError(f"the state is at position {position:,} of an epoch of {n:,}")
    number = order.resume(epoch, position)
    if number and number >= order.n_batches(epoch):  # what is left is no batch for each rank
        order.resume(epoch, 0)
        return epoch + 1, 0
    return epoch, number


def reweight(order: LoaderOrder, weights: Any, epoch: int, number: int) -> None:
    """Put other weights in force from a batch on."""
    inner = getattr(getattr(order, "by_position", None), "order", None)
    if not isinstance(inner, Drawn):
        raise ConfigError("reweight() is for a loader with order=ringload.Weighted(...), with replacement")
    inner.reweight(weights, (epoch, order.start(epoch) + number * order.step(epoch)))
    order.forget()  # type: ignore[attr-defined]


def adopt_weights(order: LoaderOrder, state: Mapping[str, Any]) -> None:
    """Put the weights in force that a state has in it, from its position on."""
    inner = getattr(getattr(order, "by_position", None), "order", None)
    values = state["order"].get("values")
    if values is not None and isinstance(inner, Drawn) and inner.state()["weights"] != state["order"].get("weights"):
        inner.reweight(values, (state["epoch"], state["start"] + state["position"] * state["step"]))
        order.forget()  # type: ignore[attr-defined]


def is_arithmetic(order: LoaderOrder) -> bool:
    """Whether later epochs are known without running the user's code."""
    return not isinstance(order, ByEpoch) and "listed" not in order.state(0)
