"""torch's tensors within a source, sent as arrays are: shared, mapped again, or as their bytes.

torch itself pickles each tensor as an archive of a kilobyte, in 40 us, and a copy for each worker. Nothing here imports torch:
where there is a tensor, torch was imported.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

INTEGERS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}  # by their bytes: in place of dtypes that NumPy has not


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor, of no subclass."""
    torch = sys.modules.get("torch")
    return torch is not None and type(value) is getattr(torch, "Tensor", None)


def as_array(tensor: Any) -> np.ndarray | None:
    """A view of a plain tensor's memory, of integers where NumPy has no such dtype. None for other tensors."""
    torch: Any = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.requires_grad or tensor.is_quantized:
        return None
    if tensor.is_conj() or tensor.is_neg() or tensor.is_nested or tensor._is_zerotensor():
        return None
    try:
        array: np.ndarray = tensor.numpy()
    except TypeError:
        if tensor.dtype.itemsize not in INTEGERS:
            return None
        array = tensor.view(getattr(torch, INTEGERS[tensor.dtype.itemsize])).numpy()
    return array if array.nbytes <= tensor.untyped_storage().nbytes() else None  # else it was expanded


def tensor_again(array: np.ndarray, dtype: Any) -> Any:
    """The tensor of an array's memory."""
    if array.flags.writeable:
        tensor = sys.modules["torch"].from_numpy(array)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what may not be written to: so it is in the trainer, which was warned
            tensor = sys.modules["torch"].from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


@functools.cache
def looks_into(dtype: np.dtype[Any]) -> Callable[[np.ndarray], Any] | None:
    """What makes a tensor that looks into an array of this dtype; None where torch has no such dtype.

    NumPy has bfloat16 and float8 by ml_dtypes alone, which torch does not know: they are looked into as integers, first."""
    torch: Any = sys.modules["torch"]
    try:
        torch.from_numpy(np.empty(0, dtype))
    except (TypeError, ValueError):
        extended = getattr(torch, dtype.name, None) if dtype.type.__module__ == "ml_dtypes" else None
        if not (isinstance(extended, torch.dtype) and extended.is_floating_point and extended.itemsize == dtype.itemsize):
            return None
        integers = INTEGERS[dtype.itemsize]
        return lambda array: torch.from_numpy(array.view(integers)).view(extended)
    looking: Callable[[np.ndarray], Any] = torch.from_numpy
    return looking


def small_tensor(data: bytes, dtype_of_array: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """The tensor of these bytes, in memory of its own."""
    return tensor_again(np.ndarray(shape, dtype_of_array, bytearray(data)), dtype)


def is_shared(tensor: Any) -> bool:
    """Whether a plain tensor lies in shared memory. (torch's own method of that name makes an object of each storage: 5 us.)"""
    return bool(tensor.untyped_storage().is_shared())
