"""Encodes values that do not fit into a field of the ring as bytes, so that a worker can send them to the trainer.

Values are None, numbers, strings, bytes, arrays, tensors, lists, tuples and dicts of them, and objects of the classes that
`classes` accepts. Decoding gives equal values of the same types, in newly allocated memory. Pickle is used only if allowed.

    bytes 0..23    bytes of the text, bytes of the data, and the number of rows: see `HEAD`
    then           the text: MessagePack, by msgspec
    then           the data: the arrays one after the other, each at a multiple of 64 bytes from the beginning of the data

Several consecutive rows may be encoded together, into their joint bytes: as a list of columns, one for each part of the
samples.

MessagePack has None, bool, int of 64 bits, float, str, bytes, list and dict. All other types are extensions, see `Ext`. msgspec
itself would encode tuples and sets as lists, and Enums as their values. So `Encoder` checks the exact type of each value, one
container at a time, and passes only lists and dicts of the types in LEAVES to msgspec.
"""

from __future__ import annotations

import math
import pickle
import struct
from typing import Any

import cloudpickle
import msgspec
import numpy as np
import torch
from msgspec.msgpack import Ext as Extension

from ringload.torch.dataloader import kinds
from ringload.torch.dataloader.classes import made_again, taken_apart

ALIGNMENT_BYTES = 64
HEAD = struct.Struct("<QQQ")  # bytes of the text, bytes of the data, rows
PLAIN = frozenset((type(None), bool, int, float, str, bytes))  # the types of MessagePack, without list and dict
LEAVES = PLAIN | {complex, np.ndarray, np.memmap, torch.Tensor}  # msgspec encodes these, or calls `Encoder._encodable`
EMPTY = np.empty(0, np.uint8)
MAX_EMPTY = 1 << 20  # the most elements of 0 bytes: copying them takes time, and with some dtypes memory

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.decode


class Ext:
    """Codes and payloads of extensions. The payload is MessagePack, unless said otherwise. `start` is an offset in the data."""

    TUPLE = 1  # a list
    INT = 2  # its bytes, little-endian, signed: used if an int of the value has more than 64 bits
    STR = 3  # UTF-8 with "surrogatepass": used if a str of the value has lone surrogates
    DICT = 4  # [keys, values]: used if the type of a key is not in LEAVES
    OBJECT = 5  # [module, name, content, attributes]: see `classes`
    COMPLEX = 6  # [real, imaginary]
    ARRAY = 7  # [dtype, shape, start]: see `kinds.described`
    SCALAR = 8  # the same, for a scalar of NumPy
    TENSOR = 9  # [dtype, shape, start, order, requires_grad]: order of the axes in memory; null: their own
    PICKLED = 10  # a pickle


class NoRoomError(Exception):
    """A value does not fit; it takes `n_bytes`."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(n_bytes)
        self.n_bytes = n_bytes


class UnsendableError(Exception):
    """A part of a value cannot be encoded. The message is a predicate, to be put after the path of the part."""


class Encoder:
    """Encodes values. `path` is the name of a value in messages, such as sample["boxes"][0]."""

    def __init__(self, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self._pack = msgspec.msgpack.Encoder(enc_hook=self._encodable).encode
        self._leaves = LEAVES
        self._arrays: list[tuple[int, np.ndarray]] = []  # (start in the data, array)
        self._end = 0  # of the data

    def encode(self, value: Any, path: str, into: np.ndarray) -> None:
        """Write `value` into `into` (n,) uint8.

        Raises:
            NoRoomError: it does not fit. TypeError: a part cannot be encoded; the message has the path and type of the part.
        """
        self._write(value, into, 1, [[value]], [path])

    def encode_rows(self, rows: list[list[Any]], paths: list[str], into: np.ndarray) -> None:
        """Write `rows`, lists of values, into `into` (n, k) uint8, the bytes of as many rows. `paths` are those of the columns.

        Raises:
            NoRoomError: a row does not fit; `n_bytes` is for the largest row. TypeError: see `encode`.
        """
        columns = list(map(list, zip(*rows, strict=True)))
        try:
            self._write(columns, into.reshape(-1), len(rows), columns, paths)
        except NoRoomError:
            raise NoRoomError(max(self.n_bytes([[value] for value in row], "row") for row in rows)) from None

    def n_bytes(self, value: Any, path: str) -> int:
        """The bytes that a value takes. Raises TypeError as `encode` does."""
        try:
            self.encode(value, path, EMPTY)
        except NoRoomError as error:
            return error.n_bytes
        raise AssertionError("no value fits into 0 bytes")

    def _write(self, value: Any, into: np.ndarray, n_rows: int, columns: list[list[Any]], paths: list[str]) -> None:
        """Write a value that consists of `columns`; parts of a column have its path."""
        try:
            try:
                text = self._pack(self._encodable(value))
            except (OverflowError, UnicodeEncodeError):  # an int of more than 64 bits, or a str with lone surrogates
                self._arrays, self._end, self._leaves = [], 0, LEAVES - {int, str}  # so that each int and str is checked
                text = self._pack(self._encodable(value))
            start = _aligned(HEAD.size + len(text))
            if start + self._end > len(into):
                raise NoRoomError(start + self._end)
            view = into.data
            HEAD.pack_into(view, 0, len(text), self._end, n_rows)
            view[HEAD.size : HEAD.size + len(text)] = text
            for offset, array in self._arrays:
                np.ndarray(array.shape, array.dtype, view, start + offset)[...] = array
        except UnsendableError:
            for path, column in zip(paths, columns, strict=True):
                for part in column:
                    self._blame(path, part)
            raise
        finally:
            self._arrays, self._end, self._leaves = [], 0, LEAVES  # keeps no array alive

    def _blame(self, path: str, value: Any) -> None:
        """Raise a TypeError with the path of the part of a value that cannot be encoded, if there is one. Called only after a
        failure, so that other values do not pay for paths."""
        try:
            return self._write(value, EMPTY, 1, [], [])
        except NoRoomError:
            return None
        except UnsendableError as error:
            why = str(error)
        kind = type(value)
        if kind is list or kind is tuple:
            parts = [(f"[{number}]", part) for number, part in enumerate(value)]
        elif kind is dict:
            parts, why = [(f"[{key!r}]", part) for key, part in value.items()], f"has a key that {why}"
        else:
            content, attributes = taken_apart(value) or (None, None)
            parts = [(".__dict__", attributes), ("", content)]
        for where, part in parts:
            self._blame(path + where, part)
        raise TypeError(f"{path} {why}") from None

    def _encodable(self, value: Any) -> Any:
        """The value that msgspec encodes instead. msgspec calls this for types in LEAVES that it cannot encode itself."""
        kind, leaves = type(value), self._leaves
        if kind is list or kind is tuple:
            if not leaves.issuperset(map(type, value)):
                value = [part if type(part) in leaves else self._encodable(part) for part in value]
            return value if kind is list else Extension(Ext.TUPLE, self._pack(value))
        if kind is dict and leaves.issuperset(map(type, value)):
            if leaves.issuperset(map(type, value.values())):
                return value
            return {key: part if type(part) in leaves else self._encodable(part) for key, part in value.items()}
        if kind is dict:
            return Extension(Ext.DICT, self._pack([self._encodable([*value]), self._encodable([*value.values()])]))
        if isinstance(value, (np.ndarray, np.generic)):
            return self._array(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if kind is complex:
            return Extension(Ext.COMPLEX, pack([value.real, value.imag]))
        if kind in leaves:
            return value
        if kind is int:
            return Extension(Ext.INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
        if kind is str:
            return Extension(Ext.STR, value.encode("utf-8", "surrogatepass"))
        if (apart := taken_apart(value)) is not None:
            return Extension(Ext.OBJECT, self._pack([kind.__module__, kind.__qualname__, *map(self._encodable, apart)]))
        return self._pickled(value, f"a {kind.__module__}.{kind.__qualname__}")

    def _array(self, value: Any) -> Extension:
        kind, dtype = type(value), value.dtype
        is_array = kind is np.ndarray or kind is np.memmap
        told = kinds.described(dtype) if (is_array or kind is dtype.type) and dtype.metadata is None else None
        if told is None:
            return self._pickled(value, f"a {kind.__module__}.{kind.__qualname__} of dtype {dtype}")
        place = pack([told, value.shape, self._add(np.asarray(value))])
        return Extension(Ext.ARRAY if is_array else Ext.SCALAR, place)

    def _tensor(self, value: torch.Tensor) -> Extension:
        if not (value.is_cpu or value.is_meta):
            raise UnsendableError(f"is a tensor on {value.device}: return it in CPU memory, and move batches in the trainer")
        if value.requires_grad and value.grad_fn is not None:
            raise UnsendableError("is a tensor with a graph (grad_fn), which cannot be sent: return tensor.detach()")
        if not kinds.is_plain(value):
            return self._pickled(value, kinds.kind_of(value))
        order = kinds.stored_order(value)
        start = self._add(kinds.as_array(value if order is None else value.permute(order)))
        return Extension(Ext.TENSOR, pack([kinds.name_of(value.dtype), value.shape, start, order, value.requires_grad]))

    def _add(self, array: np.ndarray) -> int:
        """Reserve bytes for an array in the data; returns their offset."""
        start = _aligned(self._end)
        self._arrays.append((start, array))
        self._end = start + array.nbytes
        return start

    def _pickled(self, value: Any, told: str) -> Extension:
        if not self._allow_pickle:
            why = " that is defined inside a function" if "<locals>" in type(value).__qualname__ else ""
            raise UnsendableError(
                f"is {told}{why}, which cannot be sent without pickle: return numbers, strings, arrays, tensors, or lists, "
                "tuples, dicts of them; or make the DataLoader with allow_pickle=True"
            )
        try:
            try:
                return Extension(Ext.PICKLED, pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
            except Exception:  # a class or function that pickle cannot import by name
                return Extension(Ext.PICKLED, cloudpickle.dumps(value))
        except Exception as error:  # a __reduce__ may raise any of them
            raise UnsendableError(f"is {told}, which cannot be pickled: {type(error).__name__}: {error}") from error


def written_bytes(written: np.ndarray) -> int:
    """How many bytes of `written` were used."""
    n_text, n_data, _ = HEAD.unpack_from(written.data, 0)
    return int(_aligned(HEAD.size + n_text) + n_data)


def decode(written: np.ndarray, allow_pickle: bool) -> Any:
    """Decode the bytes `written` (n,) uint8 into newly allocated memory. The bytes may come from a worker that hostile files
    have taken over: unpickles nothing, unless that is allowed, and imports nothing.

    Raises:
        TypeError, ValueError, msgspec.MsgspecError and others: `Encoder` has not written these bytes.
    """
    return _Decoder(written.data, allow_pickle).read(0)[0]


def decode_rows(written: np.ndarray, allow_pickle: bool) -> list[list[Any]]:
    """Decode the columns that were encoded, in one or more pieces, into the rows of `written` (B, k) uint8. See `decode`."""
    n_rows, n_bytes = written.shape
    decoder = _Decoder(written.reshape(-1).data, allow_pickle)
    columns: list[list[Any]] = []
    row = 0
    while row < n_rows:
        piece, n = decoder.read(row * n_bytes)
        for column, more in zip(columns, piece, strict=row > 0):
            column += more
        columns = columns or piece
        row += max(1, n)
    if not {n_rows}.issuperset(map(len, columns)):
        raise ValueError("the encoded columns do not have one value for each row")
    return columns


class _Decoder:
    """Decodes the bytes of `view`."""

    def __init__(self, view: memoryview, allow_pickle: bool) -> None:
        self._view, self._allow_pickle = view, allow_pickle
        self._data = view  # the data of the piece that is being read

    def read(self, first: int) -> tuple[Any, int]:
        """The value whose encoding begins at `first`, and its number of rows."""
        n_text, n_data, n_rows = HEAD.unpack_from(self._view, first)
        begin, start = first + HEAD.size, first + _aligned(HEAD.size + n_text)
        if start + n_data > len(self._view):
            raise ValueError("the encoded value is longer than its bytes")
        self._data = self._view[start : start + n_data]
        return unpack(self._view[begin : begin + n_text], ext_hook=self._extension), n_rows

    def _extension(self, code: int, payload: memoryview) -> Any:
        """The value of an extension."""
        match code:
            case Ext.TUPLE:
                return tuple(unpack(payload, ext_hook=self._extension))
            case Ext.TENSOR:
                return self._tensor(*unpack(payload))
            case Ext.ARRAY | Ext.SCALAR:
                told, shape, start = unpack(payload)
                array = self._array(kinds.made_dtype(told), shape, start)
                return array if code == Ext.ARRAY else array[()]
            case Ext.DICT:
                return dict(zip(*unpack(payload, ext_hook=self._extension), strict=True))
            case Ext.OBJECT:
                return made_again(*unpack(payload, ext_hook=self._extension))
            case Ext.COMPLEX:
                return complex(*unpack(payload))
            case Ext.INT:
                return int.from_bytes(payload, "little", signed=True)
            case Ext.STR:
                return bytes(payload).decode("utf-8", "surrogatepass")
            case Ext.PICKLED if self._allow_pickle:
                return pickle.loads(payload)
        raise TypeError(f"an extension of code {code} is not allowed")

    def _array(self, dtype: np.dtype[Any], shape: list[int], start: int) -> np.ndarray:
        if not dtype.itemsize and not 0 <= math.prod(shape) <= MAX_EMPTY:  # NumPy divides by the itemsize where shape is -1
            raise TypeError(f"an array of shape {shape} whose elements have 0 bytes is not allowed")
        return np.ndarray(shape, dtype, self._data[start:]).copy()  # NumPy takes a negative offset, and reads before the buffer

    def _tensor(self, name: str, shape: list[int], start: int, order: list[int] | None, requires_grad: bool) -> torch.Tensor:
        dtype = kinds.torch_dtype(name)
        stored = shape if order is None else [shape[axis] for axis in order]
        tensor = kinds.as_tensor(self._array(kinds.numpy_dtype(dtype), stored, start), dtype)
        if order is not None:
            tensor = tensor.permute(*np.argsort(order).tolist())
        return tensor.requires_grad_(requires_grad) if requires_grad else tensor


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
