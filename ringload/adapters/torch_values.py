"""Values of any shape as bytes: how what does not fit into a field of the ring travels from a producer to the trainer.

In: None, numbers, strings, bytes, arrays, tensors, lists, tuples, dicts of them, and objects of the classes that
`torch_classes` knows. Out: the same, of the same types, in memory of their own. No pickle, unless it is allowed.

    bytes 0..15    bytes of the text, bytes of the data: see `HEAD`
    then           the text: JSON, one expression a value (below)
    then           the data: arrays one behind the other, each at a multiple of 64 bytes from the data's beginning

    None, True, 1, 1.5, "text"     themselves; a dict whose keys are all strings: a JSON object
    ["l", ...] ["t", ...]          list, tuple
    ["L", dtype, n, start]         list of ints or of floats; "U": tuple
    ["d", [key, value], ...]       dict with other keys; "o": OrderedDict
    ["k", module, name, content, attributes]           of a class: see `torch_classes`
    ["c", re, im]                  complex
    ["b", n, start]                bytes
    ["a", dtype, shape, start]     array; "g": NumPy scalar
    ["T", dtype, shape, start, order, requires_grad]   tensor, its axes stored in this order, or null
    ["p", n, start]                pickled
"""

from __future__ import annotations

import functools
import json
import pickle
import struct
from array import array
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cloudpickle
import numpy as np
import torch

from ringload.adapters.torch_classes import made_again, taken_apart

ALIGNMENT_BYTES = 64
HEAD = struct.Struct("<QQ")  # bytes of the text, bytes of the data
PLAIN = frozenset((type(None), bool, int, float, str))  # what JSON has
MANY = 16  # numbers in a list that are sent as an array: token ids, say
BYTES_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # for dtypes that NumPy has not


class NoRoom(Exception):
    """A value does not fit; `n_bytes` is what it takes."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(n_bytes)
        self.n_bytes = n_bytes


class Encoder:
    """Writes values into bytes. `path` in messages is the value's, such as sample["boxes"][0]."""

    def __init__(self, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self._data: list[tuple[int, np.ndarray]] = []
        self._end = 0

    def encode(self, value: Any, path: str, into: np.ndarray) -> None:
        """Write `value` into `into` (n,) uint8.

        Raises:
            NoRoom: it takes more. TypeError: something in it cannot be encoded; the message names its path and type.
        """
        self._write(lambda: self._expression(value, path), into)

    def encode_all(self, values: list[Any], paths: list[str], into: np.ndarray) -> None:
        """Write a list of values, each of which has a path of its own."""
        self._write(lambda: ["l", *map(self._expression, values, paths)], into)

    def _write(self, expression: Callable[[], Any], into: np.ndarray) -> None:
        self._data, self._end = [], 0
        try:
            text = json.dumps(expression(), separators=(",", ":")).encode()
            start = _aligned(HEAD.size + len(text))
            if start + self._end > len(into):
                raise NoRoom(start + self._end)
            HEAD.pack_into(into.data, 0, len(text), self._end)
            into[HEAD.size : HEAD.size + len(text)] = np.frombuffer(text, np.uint8)
            for offset, array in self._data:
                where = into[start + offset : start + offset + array.nbytes]
                np.ndarray(array.shape, array.dtype, where)[...] = array
        finally:
            self._data = []  # keeps nothing alive

    def _expression(self, value: Any, path: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is bytes:
            return ["b", len(value), self._add(np.frombuffer(value, np.uint8))]
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if kind in (np.ndarray, np.memmap) and not (value.dtype.hasobject or value.dtype.fields):
            return ["a", value.dtype.str, list(value.shape), self._add(value)]
        if isinstance(value, np.generic) and not (value.dtype.hasobject or value.dtype.fields):
            return ["g", value.dtype.str, [], self._add(np.asarray(value))]
        if kind is complex:
            return ["c", value.real, value.imag]
        if kind in (list, tuple):
            kinds = set(map(type, value))
            if len(value) >= MANY and (kinds == {int} or kinds == {float}):
                with suppress(OverflowError):  # an int of more than 64 bits
                    numbers = array("q" if int in kinds else "d", value)
                    start = self._add(np.frombuffer(numbers, np.uint8))
                    return ["L" if kind is list else "U", numbers.typecode, len(value), start]
            if kinds <= PLAIN:
                return ["l" if kind is list else "t", *value]
            return ["l" if kind is list else "t", *(self._expression(v, f"{path}[{i}]") for i, v in enumerate(value))]
        if kind is dict and all(type(key) is str for key in value):
            return {key: self._expression(v, f"{path}[{key!r}]") for key, v in value.items()}
        if kind in (dict, OrderedDict):
            of_keys = [self._expression(key, f"a key of {path}") for key in value]
            of_values = [self._expression(v, f"{path}[{key!r}]") for key, v in value.items()]
            return ["d" if kind is dict else "o", *zip(of_keys, of_values, strict=True)]
        if (apart := taken_apart(value)) is not None:
            parts = self._expression(apart[0], path), self._expression(apart[1], f"vars({path})")
            return ["k", kind.__module__, kind.__qualname__, *parts]
        return self._pickled(value, path)

    def _tensor(self, value: torch.Tensor, path: str) -> Any:
        if value.device.type not in ("cpu", "meta"):
            raise TypeError(f"{path} is a tensor on {value.device}: return it in CPU memory, and move batches in the trainer")
        if type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_quantized or value.is_meta:
            return self._pickled(value, path)
        order = stored_order(value)
        array = as_array(value.permute(order) if order is not None else value)
        return ["T", name_of(value.dtype), list(value.shape), self._add(array), order, value.requires_grad]

    def _pickled(self, value: Any, path: str) -> Any:
        if not self._allow_pickle:
            kind = type(value)
            why = " that is defined inside a function" if "<locals>" in kind.__qualname__ else ""
            raise TypeError(
                f"{path} is a {kind.__module__}.{kind.__qualname__}{why}, which cannot be sent without pickle: return "
                "numbers, strings, arrays, tensors, or lists, tuples, dicts of them; or make the DataLoader with "
                "allow_pickle=True"
            )
        data = cloudpickle.dumps(value)
        return ["p", len(data), self._add(np.frombuffer(data, np.uint8))]

    def _add(self, array: np.ndarray) -> int:
        """Where an array's bytes will be."""
        start = _aligned(self._end)
        self._data.append((start, array))
        self._end = start + array.nbytes
        return start


def encoded_bytes(write: Callable[[np.ndarray], None]) -> int:
    """What an encoding takes."""
    try:
        write(np.empty(0, np.uint8))
    except NoRoom as there_is:
        return there_is.n_bytes
    raise AssertionError("nothing fits into no room")


def written_bytes(written: np.ndarray) -> int:
    """What was used of `written`."""
    n_text, n_data = HEAD.unpack_from(written.data, 0)
    return int(_aligned(HEAD.size + n_text) + n_data)


def decode(written: np.ndarray, allow_pickle: bool) -> Any:
    """What was encoded into `written` (n,) uint8: in memory of its own. A process that reads hostile files
    may have written it."""
    n_text, n_data = HEAD.unpack_from(written.data, 0)
    text = json.loads(written[HEAD.size : HEAD.size + n_text].tobytes())
    start = _aligned(HEAD.size + n_text)
    return _value(text, written[start : start + n_data], allow_pickle)


def _value(text: Any, data: np.ndarray, allow_pickle: bool) -> Any:
    if isinstance(text, dict):
        return {key: _value(value, data, allow_pickle) for key, value in text.items()}
    if not isinstance(text, list):
        return text
    kind, rest = text[0], text[1:]
    match kind:
        case "l" | "t":
            if not PLAIN.issuperset(map(type, rest)):
                rest = [_value(value, data, allow_pickle) for value in rest]
            return rest if kind == "l" else tuple(rest)
        case "L" | "U":
            numbers = _array(rest, data).tolist()
            return numbers if kind == "L" else tuple(numbers)
        case "d" | "o":
            pairs = ((_value(key, data, allow_pickle), _value(value, data, allow_pickle)) for key, value in rest)
            return dict(pairs) if kind == "d" else OrderedDict(pairs)
        case "k":
            return made_again(rest[0], rest[1], *(_value(value, data, allow_pickle) for value in rest[2:]))
        case "c":
            return complex(*rest)
        case "b":
            return data[rest[1] : rest[1] + rest[0]].tobytes()
        case "p" if allow_pickle:
            return pickle.loads(data[rest[1] : rest[1] + rest[0]].tobytes())
        case "a" | "g":
            copied = _array(rest, data).copy()
            return copied if kind == "a" else copied[()]
        case "T":
            return _tensor(rest, data)
    raise AssertionError(f"an expression {kind!r}")


def _array(text: list[Any], data: np.ndarray) -> np.ndarray:
    """A view into the data."""
    told, shape, start = np.dtype(text[0]), *text[1:]
    if told.hasobject:  # whoever wrote it would choose what is taken for a pointer
        raise TypeError(f"an array of {told} is no data")
    return np.ndarray(shape, told, data, start)


def _tensor(text: list[Any], data: np.ndarray) -> torch.Tensor:
    dtype, shape, start, order, requires_grad = text
    stored = shape if order is None else [shape[axis] for axis in order]
    tensor = as_tensor(np.ndarray(stored, numpy_dtype(torch_dtype(dtype)), data, start).copy(), torch_dtype(dtype))
    if order is not None:
        tensor = tensor.permute(*np.argsort(order).tolist())
    return tensor.requires_grad_(requires_grad)


# -- tensors and arrays -----------------------------------------------------------------------------------------------


def stored_order(tensor: torch.Tensor) -> list[int] | None:
    """Its axes in the order in which they lie in memory, if that is another than theirs and nothing lies between."""
    if tensor.is_contiguous():
        return None
    order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    return order if tensor.permute(order).is_contiguous() else None


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory as an array; of integers, where NumPy has no such dtype."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if not has_numpy_dtype(tensor.dtype):
        tensor = tensor.contiguous().view(BYTES_OF[tensor.dtype.itemsize])
    return np.asarray(tensor.numpy())


def as_tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The tensor of this dtype in an array's memory."""
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


@functools.cache
def has_numpy_dtype(dtype: torch.dtype) -> bool:
    """Whether NumPy has it."""
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return False
    return True


@functools.cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """What a tensor of this dtype is stored as."""
    return as_array(torch.empty(0, dtype=dtype)).dtype


def name_of(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """The other way round."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
