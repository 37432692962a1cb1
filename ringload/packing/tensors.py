"""Tensors of torch in a source, sent like arrays: shared, mapped again, or as their bytes.

torch itself would pickle each tensor as an archive of a kilobyte, in 40 us, and a copy for each worker. This module does not
import torch: where there is a tensor, torch was imported.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

INTEGERS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}  # bytes -> integers in place of a dtype that NumPy lacks


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor, of no subclass."""
    torch = sys.modules.get("torch")
    return torch is not None and type(value) is getattr(torch, "Tensor", None)


def as_array(tensor: Any) -> np.ndarray | None:
    """A view of a plain tensor's memory, of integers where NumPy lacks the dtype. None for other tensors."""
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
    return array if array.nbytes <= tensor.untyped_storage().nbytes() else None  # larger if it was expanded


def tensor_again(array: np.ndarray, dtype: Any) -> Any:
    """The tensor of an array's memory."""
    if array.flags.writeable:
        tensor = sys.modules["torch"].from_numpy(array)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the array is read-only: the trainer was warned of that
            tensor = sys.modules["torch"].from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


@functools.cache
def looks_into(dtype: np.dtype[Any]) -> Callable[[np.ndarray], Any] | None:
    """A function that makes a tensor in the memory of an array of this dtype; None where torch lacks the dtype.

    torch does not accept arrays of bfloat16 and float8, which are of ml_dtypes: they are viewed as integers first."""
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
    """The tensor of these bytes, in new memory."""
    return tensor_again(np.ndarray(shape, dtype_of_array, bytearray(data)), dtype)


def is_shared(tensor: Any) -> bool:
    """Whether a plain tensor is in shared memory. (torch's method of that name makes an object of each storage: 5 us.)"""
    return bool(tensor.untyped_storage().is_shared())
