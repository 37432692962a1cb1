"""`ringload.state`: compares the states that the ranks of one run have saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.order.state import NEEDED, read_state

__all__ = ["merge"]

TOP = (*(name for name in NEEDED if name != "order"), "source")


def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the one state that all ranks agree on, for `load_state_dict` of any number of ranks.

        state = ringload.state.merge([json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))])

    All ranks have the same state if each of them has received the same number of batches. So one rank's state is enough, and
    `merge` is for checking that the ranks were at the same batch.

    Arguments:
        states: the `state_dict()` of each rank's `Loader` or `Batches`, in the order of the ranks. They may be of version 1.

    Raises:
        ConfigError: the states differ; the message names which ranks differ, and in what. Or one of them is not a state.
    """
    if not isinstance(states, list | tuple) or not states:
        raise ConfigError(f"merge() takes a list with the state of each rank, not {short(states)}")
    read = [_parts(state, rank) for rank, state in enumerate(states)]
    names = list(dict.fromkeys(name for parts in read for name in parts))
    if told := [differs for name in names if (differs := _differs(name, [parts.get(name) for parts in read]))]:
        raise ConfigError(
            f"the states of the ranks differ in {'; in '.join(told)}. Make all loaders with the same arguments, and call "
            "state_dict() on every rank after the same batch"
        )
    return read_state(states[0])


def _parts(state: Any, rank: int) -> dict[str, Any]:
    """What has to agree: the order's parts each for itself."""
    try:
        read = read_state(state)
    except ConfigError as error:
        raise ConfigError(f"rank {rank}: {error}") from error
    return {name: read.get(name) for name in TOP} | {f"order.{name}": value for name, value in read["order"].items()}


def _differs(name: str, values: list[Any]) -> str:
    """Which ranks have which value; "" if all have the same."""
    groups: list[tuple[Any, list[str]]] = []
    for rank, value in enumerate(values):
        found = next((ranks for other, ranks in groups if other == value), None)
        if found is None:
            groups.append((value, [str(rank)]))
        else:
            found.append(str(rank))
    if len(groups) == 1:
        return ""
    return f"{name}: " + ", ".join(f"{short(value)} on rank {' and '.join(ranks)}" for value, ranks in groups)
