"""Decides which arrays and tensors consist of their elements in memory only, and so can be sent as bytes.

Both checks accept known kinds, and refuse all others: a dtype is accepted if `made_dtype` makes an equal dtype from its
description; a tensor, if torch's dispatcher treats it as a plain one. All others are refused, or pickled if that is allowed.
"""

from __future__ import annotations

import functools
import re
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import torch

ml_dtypes: Any = None  # imported here, and never because of bytes that a worker sent
with suppress(ImportError):
    import ml_dtypes

# `dtype.str` of dtypes without Python objects. NumPy accepts more, and divides by zero for "m8[0s]" and "m8[s/0]": SIGFPE
SIMPLE = re.compile(r"[<>|][biufcmMSUV]\d{1,10}(\[([1-9]\d{0,8})?[A-Za-z]+\])?")
BYTES_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # used for dtypes that NumPy does not have

# -- dtypes -----------------------------------------------------------------------------------------------------------


def described(dtype: np.dtype[Any]) -> Any:
    """A description from which `made_dtype` makes the dtype. None: it cannot (Python objects, or dtypes of an unknown
    package)."""
    return None if dtype.hasobject else _described(dtype)


@functools.lru_cache(256)
def _described(dtype: np.dtype[Any]) -> Any:
    if ml_dtypes is not None and getattr(ml_dtypes, dtype.name, None) is dtype.type:
        return {"of": "ml_dtypes", "name": dtype.name}
    told: Any = dtype.str
    if dtype.subdtype is not None:
        told = [described(dtype.subdtype[0]), list(dtype.subdtype[1])]
    elif dtype.fields is not None and dtype.type is np.void:
        fields: Any = [(*dtype.fields[name], None)[:3] for name in dtype.names or ()]
        if not all(title is None or type(title) is str for _, _, title in fields):
            return None
        told = {
            "names": list(dtype.names or ()),
            "formats": [described(field) for field, _, _ in fields],
            "offsets": [offset for _, offset, _ in fields],
            "titles": [title for _, _, title in fields],
            "itemsize": dtype.itemsize,
            "aligned": dtype.isalignedstruct,
        }
    try:
        return told if made_dtype(told) == dtype and msgspec.msgpack.encode(told) else None
    except (TypeError, ValueError):
        return None


def made_dtype(told: Any) -> np.dtype[Any]:
    """The dtype of a description by `described`.

    Raises:
        TypeError: the dtype is not allowed. One of Python objects is not, because a worker's bytes would be used as pointers.
    """
    if isinstance(told, dict) and "of" in told:
        found = getattr(ml_dtypes, told["name"], None)
        if not (isinstance(found, type) and issubclass(found, np.generic)):
            raise TypeError(f"{told['name']!r} is no dtype of ml_dtypes in the trainer")
        return np.dtype(found)
    if isinstance(told, dict):
        formats = [made_dtype(one) for one in told["formats"]]
        ends = [offset + field.itemsize for offset, field in zip(told["offsets"], formats, strict=True)]
        if max(ends, default=0) > told["itemsize"]:  # NumPy adds offsets up in 32 bits
            raise TypeError(f"a dtype of {told['itemsize']} bytes with fields up to {max(ends)} is no dtype")
        titled = {"titles": told["titles"]} if any(title is not None for title in told["titles"]) else {}
        spec: Any = {name: told[name] for name in ("names", "offsets", "itemsize")} | {"formats": formats} | titled
        made: np.dtype[Any] = np.dtype(spec, align=told["aligned"])
    elif isinstance(told, list):
        made = np.dtype((made_dtype(told[0]), tuple(told[1])))
    elif isinstance(told, str) and SIMPLE.fullmatch(told):
        made = np.dtype(told)
    else:
        raise TypeError(f"{told!r} is no dtype")
    return made


# -- tensors and arrays -----------------------------------------------------------------------------------------------


def is_plain(value: Any) -> bool:
    """Whether a tensor consists only of its elements in CPU memory, dense and strided: its dispatch keys are in `_plain_keys`.
    All others (nested, sparse, quantized, zero and meta tensors, wrappers) have other dispatch keys."""
    return type(value) is torch.Tensor and torch._C._dispatch_keys(value).raw_repr() in _plain_keys()


@functools.cache
def _plain_keys() -> frozenset[int]:
    real, number = torch.empty(0), torch.empty(0, dtype=torch.complex64)
    plain = [real, number, number.conj(), number.conj().imag]
    with torch.inference_mode():
        real, number = torch.empty(0), torch.empty(0, dtype=torch.complex64)
        plain += [real, number, number.conj(), number.conj().imag]
    return frozenset(torch._C._dispatch_keys(tensor).raw_repr() for tensor in plain)


def kind_of(tensor: torch.Tensor) -> str:
    """A name, for messages, of a tensor that is not plain."""
    kind = type(tensor)
    if kind is not torch.Tensor:
        return f"a {kind.__module__}.{kind.__qualname__}"
    if tensor.is_nested:
        return "a nested torch.Tensor"
    if tensor.layout is not torch.strided:
        return f"a torch.Tensor of layout {tensor.layout}"
    if tensor.is_quantized or tensor.is_meta:
        return f"a torch.Tensor that is {'quantized' if tensor.is_quantized else 'on the meta device'}"
    return f"a torch.Tensor that is not plain memory ({torch._C._dispatch_keys(tensor)})"


def stored_order(tensor: torch.Tensor) -> list[int] | None:
    """The axes in memory order, if the tensor is contiguous in that order, and not in its own. Else None."""
    if tensor.is_contiguous():
        return None
    order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    return order if tensor.permute(order).is_contiguous() else None


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory as an array, of integers if NumPy does not have the dtype."""
    if not has_numpy_dtype(tensor.dtype):
        tensor = tensor.detach().resolve_conj().resolve_neg().view(BYTES_OF[tensor.dtype.itemsize])
    return np.asarray(tensor.numpy(force=True))


def as_tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of this dtype over an array's memory."""
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


@functools.cache
def has_numpy_dtype(dtype: torch.dtype) -> bool:
    """Whether NumPy has this dtype of torch."""
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return False
    return True


@functools.cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The NumPy dtype in which tensors of this dtype are stored."""
    return as_array(torch.empty(0, dtype=dtype)).dtype


@functools.cache
def name_of(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """torch.float32 for float32."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is no dtype of torch")
    return dtype
