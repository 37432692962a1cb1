"""The arguments of `Arrays` by their kind: arrays in memory, arrays on disk, or refused with a message.

`np.asarray` alone would take too much: it reads a file of any size, turns 1 and "a" into strings and a missing value into NaN,
and makes one Python object of a generator or of a sparse matrix. So it is called for known kinds only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Set
from math import prod
from typing import Any

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.packing.tensors import as_array, is_tensor
from ringload.sources.disk_arrays import DiskArray, Hdf5Array, PickledArray, content_of, identity_of

IN_MEMORY = frozenset(("torch", "tensorflow", "jax", "jaxlib", "keras", "pandas", "pyarrow", "polars"))
NUMBERS = (bool, int, float, complex, np.number, np.bool_)
READ_ALL = "give x[:], if all of it fits into memory"
ONE_SAMPLE = "give the loader a function load(index, rng, out) that writes one sample"
STRINGS = "Give numbers, np.unique(x, return_inverse=True)[1], or bytes of one length, np.char.encode(x.astype(str))"
PAD = f"Pad them to one length, or {ONE_SAMPLE}"


def rows_of(name: str, value: Any) -> np.ndarray | DiskArray:
    """The array `(N, ...)` that was given as `name`.

    Raises:
        ConfigError: it is no array, or has no rows of one shape and one dtype.
    """
    try:
        array = _rows_of(value)
    except _RefusedError as error:
        raise ConfigError(f"array {name!r} {error}") from error.__cause__
    if not array.shape:
        raise ConfigError(f"array {name!r} is a single number; arrays have one row a sample")
    if array.dtype.hasobject:
        raise ConfigError(f"array {name!r} {_objects(array)}")
    if 0 in array.shape[1:]:
        raise ConfigError(f"array {name!r} is {array.shape}: its rows are empty")
    return array


class _RefusedError(Exception):
    """The message goes on after the array's name."""


def _rows_of(value: Any) -> np.ndarray | DiskArray:
    kind = type(value)
    packages = {one.__module__.partition(".")[0] for one in kind.__mro__}
    type_text = f"is of type {kind.__module__.partition('.')[0]}.{kind.__qualname__}".replace(" builtins.", " ")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        n_masked = int(np.count_nonzero(np.ma.getmaskarray(value)))
        raise _RefusedError(f"has {n_masked} masked values: fill them, array.filled(value)")
    if isinstance(value, np.ndarray | np.generic | bool | int | float | complex):
        return np.asarray(value)
    if "ringload" in packages:
        made: DiskArray = value  # of another function of ringload
        return made
    if "h5py" in packages:
        return _of_h5py(value, type_text)
    if isinstance(value, str | bytes | Mapping | Set):
        raise _RefusedError(f"{type_text}, which is no array: each argument is one array, such as Arrays(x=images, y=labels)")
    if isinstance(value, Iterator) and not hasattr(value, "shape"):
        raise _RefusedError(f"{type_text}, which can be read only once, in order: give list(x), or {ONE_SAMPLE}")
    if hasattr(value, "nnz"):
        raise _RefusedError(
            f"{type_text}, which is sparse, and rows in the ring are dense: give x.toarray(), if that "
            f"fits into memory, or {ONE_SAMPLE}, such as out['x'] = x[[index]].toarray()[0]"
        )
    if isinstance(value, list | tuple):
        return _of_list(value, type_text)
    if "pandas" in packages:
        return _of_pandas(value, type_text)
    if packages & {"pyarrow", "polars"} and hasattr(value, "columns"):
        raise _RefusedError(f"{type_text}: give one of its columns, or several as one array")
    if packages & IN_MEMORY or _is_buffer(value):
        if hasattr(value, "__array__") or _is_buffer(value):
            return _in_memory(value, type_text)
        padded = "x.to_tensor(), which pads its rows" if hasattr(value, "to_tensor") else "an array with rows of one shape"
        raise _RefusedError(f"{type_text}, which NumPy cannot make an array of: give {padded}, or {ONE_SAMPLE}")
    if all(hasattr(value, part) for part in ("shape", "dtype", "__getitem__")):
        return _on_disk(value, type_text)
    raise _RefusedError(f"{type_text}, which is no array: give np.asarray(x), if that has the right content, or {ONE_SAMPLE}")


# -- in memory --------------------------------------------------------------------------------------------------------


def _is_buffer(value: Any) -> bool:
    if isinstance(value, range) or hasattr(value, "__array_interface__") or hasattr(value, "__array_struct__"):
        return True
    try:
        memoryview(value).release()
    except (TypeError, BufferError, ValueError):
        return False
    return True


def _in_memory(value: Any, type_text: str) -> np.ndarray:
    missing = getattr(value, "null_count", 0)  # an attribute of pyarrow's columns, a method of polars'
    if n_missing := missing() if callable(missing) else missing:
        raise _RefusedError(f"{type_text} with {n_missing} missing values: fill them, x.fill_null(value)")
    if is_tensor(value) and (extended := _of_tensor(value)) is not None:
        return extended
    try:
        array = np.asarray(value)
    except Exception as error:  # each package has its own classes of errors
        raise _RefusedError(f"{type_text}, which NumPy cannot make an array of: {error}") from error
    return array


def _of_tensor(tensor: Any) -> np.ndarray | None:
    """A tensor of a dtype that ml_dtypes adds to NumPy; None for others."""
    name = str(tensor.dtype).removeprefix("torch.")
    array = as_array(tensor)
    if array is None or array.dtype.name == name:
        return None
    try:
        import ml_dtypes
    except ImportError:
        raise _RefusedError(
            f"is a tensor of {tensor.dtype}, which NumPy lacks without ml_dtypes: pip install ml_dtypes, or give x.float()"
        ) from None
    scalar: Any = getattr(ml_dtypes, name, None)
    if scalar is None or np.dtype(scalar).itemsize != array.dtype.itemsize:
        raise _RefusedError(f"is a tensor of {tensor.dtype}, which NumPy and ml_dtypes lack: give x.float()")
    extended: np.ndarray = array.view(scalar)
    return extended


def _of_list(value: Any, type_text: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception as error:  # rows may have their own classes of errors
        shapes = list(map(_shape, value))
        other = next((row for row, shape in enumerate(shapes) if shape is None or shape != shapes[0]), None)
        if other is None:
            raise _RefusedError(f"{type_text}, which NumPy cannot make an array of: {error}") from error
        raise _RefusedError(
            f"has rows of different lengths: row {other} is {short(value[other])}, row 0 is {short(value[0])}. {PAD}"
        ) from None
    is_text = array.dtype.kind in "SU"
    if is_text or (array.dtype.kind == "f" and array.size and np.abs(array).max() >= 2**53):
        flat = np.array(value, object).reshape(-1)
        kinds = set(map(type, flat))
        are_integers = all(issubclass(kind, int | np.integer) for kind in kinds)  # NumPy makes large ones float64
        if are_integers or (is_text and len(kinds) > 1):
            names = " and ".join(sorted(kind.__name__ for kind in kinds))
            raise _RefusedError(
                f"{type_text} of {names}, which NumPy would make {array.dtype}: choose a dtype, np.array(x, dtype)"
            )
        if is_text and (odd := next((place for place, one in enumerate(flat) if one[-1:] in ("\0", b"\0")), None)) is not None:
            raise _RefusedError(
                f"has a NUL at the end of row {odd * len(array) // len(flat)}, which NumPy drops from strings and bytes: give "
                f"np.frombuffer(row, 'uint8') of each, of one length, or {ONE_SAMPLE}"
            )
    return array


def _shape(row: Any) -> tuple[int, ...] | None:
    try:
        shape: tuple[int, ...] = np.shape(row)
    except Exception:  # of any class: the row has no shape
        return None
    return shape


def _of_pandas(value: Any, type_text: str) -> np.ndarray:
    import pandas as pd

    dtypes = set(value.dtypes) if isinstance(value, pd.DataFrame) else {getattr(value, "dtype", None)}
    if len(dtypes) > 1:
        raise _RefusedError(
            f"{type_text} with columns of {' and '.join(sorted(map(str, dtypes)))}: convert "
            "them to one dtype, x.to_numpy('float32')"
        )
    dtype = dtypes.pop() if dtypes else None
    if isinstance(dtype, pd.CategoricalDtype):
        raise _RefusedError("is categorical: give the numbers of the classes, x.cat.codes (-1 is missing), or np.asarray(x)")
    numpy_dtype = getattr(dtype, "numpy_dtype", None)  # of nullable dtypes, and of pyarrow's
    if numpy_dtype is None or numpy_dtype.kind == "O":
        return _in_memory(value, type_text)
    missing = np.asarray(pd.isna(value)).any(axis=tuple(range(1, value.ndim)))
    if missing.any():
        raise _RefusedError(
            f"{type_text} of {dtype} with {int(missing.sum())} missing values, first in row {int(missing.argmax())}: fill "
            "them, x.fillna(value), or drop those rows"
        )
    return np.asarray(value.to_numpy(dtype=numpy_dtype))


def _objects(array: np.ndarray | DiskArray) -> str:
    """The message for an array of Python objects."""
    if not isinstance(array, np.ndarray) or array.dtype != object or not array.size:
        return f"is of {array.dtype}, maybe strings or lists of any length: rows have no fixed size. {STRINGS}, or {ONE_SAMPLE}"
    place, odd = next(
        ((place, one) for place, one in enumerate(array.flat) if not isinstance(one, NUMBERS)), (0, array.flat[0])
    )
    row, kind, shape = place // prod(array.shape[1:]), type(odd), _shape(odd)
    text = f"holds Python objects, which have no fixed size: row {row} has {short(odd)} ({kind.__name__})"
    if isinstance(odd, NUMBERS):
        return f"{text}. Convert them, x.astype('int64')"
    if kind is bytes and array.ndim == 1:
        return f"{text}. Give bytes of one length as rows of uint8, np.frombuffer(row, 'uint8') of each, or {ONE_SAMPLE}"
    if kind is str and all(type(one) is kind for one in array.flat):
        return f"{text}. {STRINGS}"
    if not shape or array.ndim > 1:
        return f"{text}. Give numbers in its place, or {ONE_SAMPLE}"
    if (other := next((other for other, one in enumerate(array) if _shape(one) != shape), None)) is None:
        return f"{text}. Give one array of them, np.stack(x)"
    return f"{text}, row {other} has {short(array[other])}. {PAD}"


# -- on disk ----------------------------------------------------------------------------------------------------------


def _of_h5py(dataset: Any, type_text: str) -> Hdf5Array:
    h5py: Any = sys.modules["h5py"]
    if not isinstance(dataset, h5py.Dataset):
        raise _RefusedError(f"{type_text}: give an h5py.Dataset, such as file['x']; {READ_ALL}")
    if not dataset:
        raise _RefusedError("is a dataset of an HDF5 file that is closed: open it again, h5py.File(path)")
    file, name = dataset.file, dataset.name
    path = os.path.abspath(os.fsdecode(file.filename))
    if dataset.shape is None:
        raise _RefusedError(f"is the dataset {name!r} of {path}, which is empty (it has no shape)")
    if file.driver not in ("sec2", "stdio"):
        raise _RefusedError(
            f"is a dataset of an HDF5 file that is open by driver={file.driver!r}, which workers cannot open again by its "
            f"name: open it by h5py.File(path), without a driver, or {READ_ALL}"
        )
    if file.mode != "r" or file.swmr_mode:
        raise _RefusedError(
            f"is a dataset of {path}, which is open for writing, while workers read it: close it, and open it by "
            f"h5py.File(path, 'r'); {READ_ALL}"
        )
    try:
        status = os.stat(path)
        with h5py.File(path, "r") as again:
            is_same = name is not None and name in again and again[name].id == dataset.id
    except OSError as error:
        raise _RefusedError(f"is a dataset of an HDF5 file that cannot be opened again: {error}") from error
    if not is_same:
        raise _RefusedError(
            f"is not the dataset {name!r} of {path} any more: the file was replaced, or an external link leads to the dataset. "
            f"Open the file that the dataset is in; or {READ_ALL}"
        )
    return Hdf5Array(h5py, path, name, dataset, identity_of(status))


def _on_disk(value: Any, type_text: str) -> np.ndarray | PickledArray:
    if getattr(getattr(value, "variable", None), "_in_memory", False):  # of xarray
        return np.asarray(value)
    store = getattr(value, "store", None)  # of zarr
    store = getattr(store, "_store", store)  # a store may wrap another
    if isinstance(store, dict) or any(word in type(store).__name__ for word in ("Memory", "KVStore")):
        raise _RefusedError(f"{type_text} in memory ({type(store).__name__}), which each worker would copy: {READ_ALL}")
    first = None
    try:
        shape, dtype = tuple(map(int, value.shape)), np.dtype(value.dtype)
        if shape and shape[0]:
            row = np.asarray(value[0:1])
            if (row.shape, row.dtype) != ((1, *shape[1:]), dtype):
                raise ValueError(f"x[0:1] is {row.shape} {row.dtype}, of an array that is {shape} {dtype}")
            first = content_of(row)
    except Exception as error:  # each package has its own classes of errors
        raise _RefusedError(f"{type_text}, whose rows NumPy cannot read: {error}. {READ_ALL.capitalize()}") from error
    chunks = _chunks(value)
    chunk_bytes = prod(chunks) * dtype.itemsize if chunks else 0
    return PickledArray(value, shape, dtype, chunk_bytes, chunks[0] if chunks else 0, first)


def _chunks(value: Any) -> tuple[int, ...]:
    """The shape of the largest chunk, of which one row costs reading all; () without chunks."""
    chunks = getattr(value, "shards", None) or getattr(value, "chunks", None) or ()
    return tuple(max(one) if isinstance(one, tuple) else int(one) for one in chunks)
