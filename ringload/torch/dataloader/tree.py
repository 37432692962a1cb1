"""The structure of samples: which of their parts have fields of the ring, and which are encoded together into one field.

The trainer makes a tree from the decoded samples of the first batch. Its leaves are `Fixed` (a number, array or tensor of the
same shape and dtype in every sample: a field of the ring, whose rows are the collated batch) and `Encoded` (any other value:
encoded, and collated in the trainer by torch's `default_collate`). Its inner nodes are tuples, lists and dicts of the same
structure.

Workers check each sample against the tree and write it into its row (`writer`). If a sample differs, they report the node, and
the trainer makes that node `Encoded`. The trainer builds batches (`build`). The result equals `default_collate` of the samples:
a field has the dtype of `default_collate([leaf])`, and a value that `default_collate` refuses is encoded, so that it raises in
the trainer.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from ringload.fields import Field
from ringload.torch.dataloader.classes import class_called, is_named_tuple
from ringload.torch.dataloader.kinds import as_array, as_tensor, is_plain, name_of, numpy_dtype, torch_dtype

NUMBERS = (bool, int, float)
INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True)
class Fixed:
    """A leaf with a field. `kind` is "tensor", "array", or the type name of a number; `given` is the dtype in samples, `dtype`
    that of torch in batches."""

    path: str
    field: str
    kind: str
    shape: tuple[int, ...]
    given: str
    dtype: str


@dataclass(frozen=True)
class Encoded:
    """A part that is encoded; `why`, for messages."""

    path: str
    why: str


@dataclass(frozen=True)
class Inner:
    """A container. `kind` is list, tuple, dict, OrderedDict, or (module, name) of a named tuple; `keys` are those of a dict."""

    path: str
    kind: Any
    keys: tuple[Any, ...]
    children: tuple[Node, ...]


Node = Fixed | Encoded | Inner


def plan(samples: list[Any]) -> Node:
    """The tree that fits all of these samples."""
    names = (f"f{number}" for number in itertools.count())
    return _plan(samples, "sample", names)


def _plan(values: list[Any], path: str, names: Iterator[str]) -> Node:
    first = values[0]
    kind = type(first)
    is_named = is_named_tuple(first) and class_called(kind.__module__, kind.__qualname__) is kind
    if kind in (list, tuple, dict, OrderedDict) or is_named:
        if not all(type(value) is kind and _keys(value) == _keys(first) for value in values) or not len(first):
            return Encoded(path, f"a {kind.__name__} that differs from sample to sample" if len(first) else "empty")
        if is_named:
            parts = [(f"{path}.{name}", [value[i] for value in values]) for i, name in enumerate(first._fields)]
            told: Any = (kind.__module__, kind.__qualname__)
        else:
            parts = [(f"{path}[{key!r}]", [value[key] for value in values]) for key in _keys(first)]
            told = kind
        keys = _keys(first) if isinstance(first, dict) else ()
        return Inner(path, told, keys, tuple(_plan(part, where, names) for where, part in parts))
    leaf = _leaf(first, path)
    if isinstance(leaf, Encoded):
        return leaf
    if not all(fits(leaf, value) for value in values):
        return Encoded(path, "its type, shape or dtype differs from sample to sample")
    return replace(leaf, field=next(names))


def _keys(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, dict) else tuple(range(len(value)))


def _leaf(value: Any, path: str) -> Fixed | Encoded:
    kind = type(value)
    if is_plain(value):
        told, shape, given = "tensor", tuple(value.shape), name_of(value.dtype)
    elif kind in (np.ndarray, np.memmap):
        told, shape, given = "array", value.shape, value.dtype.str
    elif kind in NUMBERS or isinstance(value, np.number | np.bool_):
        told, shape, given = kind.__name__, (), ""
    else:
        return Encoded(path, f"a {kind.__name__}")
    try:
        collated = default_collate([value])
    except Exception:  # torch raises it again when the batch is collated
        return Encoded(path, f"a {told} that torch does not collate")
    if type(collated) is not torch.Tensor or collated.shape != (1, *shape) or not collated.numel():
        return Encoded(path, f"a {told} of shape {shape}")
    leaf = Fixed(path, "", told, shape, given, name_of(collated.dtype))
    return leaf if fits(leaf, value) else Encoded(path, f"a {told} out of range")


def fits(leaf: Fixed, value: Any) -> bool:
    """Whether a value has the kind, shape and dtype of its field."""
    if leaf.kind == "tensor":
        return (
            type(value) is torch.Tensor
            and is_plain(value)
            and not value.requires_grad
            and (tuple(value.shape), name_of(value.dtype)) == (leaf.shape, leaf.given)
        )
    if leaf.kind == "array":
        return type(value) in (np.ndarray, np.memmap) and value.shape == leaf.shape and value.dtype.str == leaf.given
    return type(value).__name__ == leaf.kind and (type(value) is not int or value in INT64)


def leaves(node: Node) -> Iterator[Fixed | Encoded]:
    """The leaves, in the order of the parts of samples."""
    if isinstance(node, Inner):
        for child in node.children:
            yield from leaves(child)
    else:
        yield node


def nodes(node: Node) -> Iterator[Node]:
    """All nodes, each before its children. A node's number is its position here."""
    yield node
    if isinstance(node, Inner):
        for child in node.children:
            yield from nodes(child)


def fields(node: Node) -> dict[str, Field]:
    """The fields of the ring that a tree needs."""
    fixed = [leaf for leaf in leaves(node) if isinstance(leaf, Fixed)]
    return {leaf.field: Field(leaf.shape, numpy_dtype(torch_dtype(leaf.dtype))) for leaf in fixed}


def without(node: Node, numbers: set[int], why: str, count: Iterator[int] | None = None) -> Node:
    """The tree, with the nodes of these numbers made `Encoded`."""
    count = itertools.count() if count is None else count
    is_out = next(count) in numbers
    if isinstance(node, Inner):
        node = replace(node, children=tuple(without(child, numbers, why, count) for child in node.children))
    return Encoded(node.path, why) if is_out else node


# -- in workers -----------------------------------------------------------------------------------------------------


class MisfitError(Exception):
    """A sample differs from the tree at node `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


Write = Callable[[Any, int, dict[str, np.ndarray], list[Any]], None]


def writer(node: Node, count: Iterator[int] | None = None) -> Write:
    """`write(sample, row, rows, to_encode)` writes fixed leaves into their rows, and appends the others to `to_encode`.

    Raises:
        MisfitError, from `write`.
    """
    count = itertools.count() if count is None else count
    number = next(count)
    if isinstance(node, Encoded):
        return lambda value, row, rows, to_encode: to_encode.append(value)
    if isinstance(node, Fixed):
        return _writer_of_leaf(node, number)
    return _writer_of_container(node, number, [writer(child, count) for child in node.children])


def _writer_of_leaf(leaf: Fixed, number: int) -> Write:
    field, shape = leaf.field, leaf.shape
    if leaf.kind == "tensor":
        given = torch_dtype(leaf.given)
        is_numpys = numpy_dtype(given) == as_array(torch.empty(0, dtype=given)).dtype and _is_numpys(given)

        def write_tensor(value: Any, row: int, rows: dict[str, np.ndarray], to_encode: list[Any]) -> None:
            if not is_plain(value) or value.dtype is not given or value.shape != shape or value.requires_grad:
                raise MisfitError(number)
            plain = is_numpys and not value.is_conj() and not value.is_neg()
            rows[field][row] = value.numpy() if plain else as_array(value)

        return write_tensor
    if leaf.kind == "array":
        dtype = np.dtype(leaf.given)

        def write_array(value: Any, row: int, rows: dict[str, np.ndarray], to_encode: list[Any]) -> None:
            if type(value) not in (np.ndarray, np.memmap) or value.dtype != dtype or value.shape != shape:
                raise MisfitError(number)
            rows[field][row] = value

        return write_array

    def write_number(value: Any, row: int, rows: dict[str, np.ndarray], to_encode: list[Any]) -> None:
        if not fits(leaf, value):
            raise MisfitError(number)
        rows[field][row] = value

    return write_number


def _is_numpys(dtype: torch.dtype) -> bool:
    return bool(torch.from_numpy(np.empty(0, numpy_dtype(dtype))).dtype == dtype)


def _writer_of_container(node: Inner, number: int, children: list[Write]) -> Write:
    if node.keys:
        keyed = list(zip(node.keys, children, strict=True))

        def write_dict(value: Any, row: int, rows: dict[str, np.ndarray], to_encode: list[Any]) -> None:
            if type(value) is not node.kind or tuple(value) != node.keys:
                raise MisfitError(number)
            for key, write in keyed:
                write(value[key], row, rows, to_encode)

        return write_dict
    n, kind = len(children), node.kind

    def write_sequence(value: Any, row: int, rows: dict[str, np.ndarray], to_encode: list[Any]) -> None:
        its = type(value)
        if (its is not kind and (its.__module__, its.__qualname__) != kind) or len(value) != n:
            raise MisfitError(number)
        for write, part in zip(children, value, strict=True):
            write(part, row, rows, to_encode)

    return write_sequence


# -- in the trainer ---------------------------------------------------------------------------------------------------


def build(node: Node, take: Callable[[str], np.ndarray], decoded: Iterator[list[Any]], gather: type = list) -> Any:
    """A batch: `take(field)` copies a field's rows out of the slot; `decoded` gives, for each part that was encoded, the list
    of its values, one a sample.

    Raises:
        the exception of `default_collate` for an encoded part.
    """
    if isinstance(node, Fixed):
        return as_tensor(take(node.field), torch_dtype(node.dtype))
    if isinstance(node, Encoded):
        return default_collate(gather(next(decoded)))  # of strings, torch returns this list or tuple itself
    gather = list if node.keys else tuple
    parts = [build(child, take, decoded, gather) for child in node.children]
    if node.kind in (dict, OrderedDict):
        return node.kind(zip(node.keys, parts, strict=True))
    return parts if node.kind in (list, tuple) else class_called(*node.kind)(*parts)
