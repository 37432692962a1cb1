"""What workers of `ringload.torch.DataLoader` encode: any value of the promised kinds comes back as it was, and bytes that no
encoder has written do no harm."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from enum import Enum, IntEnum
from typing import Any
from unittest.mock import patch

import hypothesis.extra.numpy as st_numpy
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from msgspec.msgpack import Ext as Extension  # noqa: E402

from ringload.torch.dataloader.values import HEAD, Encoder, Ext, NoRoomError, decode, decode_rows, pack, written_bytes  # noqa: E402

common = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
Point = namedtuple("Point", ["x", "y"])
MAGIC = 0xA5  # what a room has where nothing was written


class Color(Enum):
    RED = "red"
    GREEN = (1, 2)


class Level(IntEnum):
    LOW = 1


class Words(list): ...


class Table(dict): ...


class Name(str): ...


def with_attributes(one: Any, attributes: dict[str, Any]) -> Any:
    one.__dict__.update(attributes)
    return one


# -- values ----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # with lone surrogates
NUMBERS = st.integers() | st.integers(-(1 << 66), 1 << 66) | st.floats() | st.complex_numbers() | st.booleans()
KEYS = st.recursive(
    st.none() | NUMBERS | TEXT | st.binary(max_size=5) | st.sampled_from([*Color, *Level]),
    lambda keys: st.lists(keys, max_size=3).map(tuple),
    max_leaves=4,
)
DTYPES = st.one_of(
    st_numpy.scalar_dtypes(),
    st_numpy.array_dtypes(st_numpy.scalar_dtypes(), min_size=1, max_size=3),
)
ARRAYS = st_numpy.arrays(DTYPES, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4))
OF_TORCH = st.sampled_from(
    [dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and "q" not in str(dtype)]
)


@st.composite
def tensors(draw: Any) -> Any:
    """Of any dtype, with any bytes; their axes in any order, some with gaps."""
    dtype = draw(OF_TORCH)
    shape = draw(st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4))
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    bits = bytearray(draw(st.binary(min_size=n_bytes, max_size=n_bytes)))
    if dtype is torch.bool:
        bits = bytearray(bit & 1 for bit in bits)
    made = (torch.frombuffer(bits, dtype=torch.uint8) if bits else torch.empty(0, dtype=torch.uint8)).view(dtype).reshape(shape)
    made = made.permute(draw(st.permutations(range(len(shape)))))
    if shape and draw(st.booleans()):
        made = made[..., ::2]
    return made.requires_grad_(draw(st.booleans())) if dtype.is_floating_point or dtype.is_complex else made


def containers(values: Any) -> Any:
    lists, attributes = st.lists(values, max_size=4), st.dictionaries(TEXT, values, max_size=2)
    dicts = st.dictionaries(KEYS, values, max_size=4) | st.dictionaries(TEXT, values, max_size=4)
    return st.one_of(
        lists,
        lists.map(tuple),
        dicts,
        dicts.map(OrderedDict),
        dicts.map(lambda one: defaultdict(list, one)),
        dicts.map(UserDict),
        st.tuples(values, values).map(Point._make),
        st.builds(with_attributes, lists.map(Words), attributes),
        st.builds(with_attributes, dicts.map(Table), attributes),
        st.builds(with_attributes, TEXT.map(Name), attributes),
    )


SCALARS = st_numpy.scalar_dtypes().flatmap(lambda dtype: st_numpy.arrays(dtype, ()).map(lambda array: array[()]))
VALUES = st.recursive(KEYS | ARRAYS | SCALARS | tensors(), containers, max_leaves=12)


def strides(one: Any) -> list[int]:
    return [stride for stride, length in zip(one.stride(), one.shape, strict=True) if length > 1]


def bits(tensor: Any) -> Any:
    """Integers of its elements' bytes, for dtypes of which torch can compute nothing."""
    parts = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    return parts.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parts.itemsize])


def same(one: Any, other: Any) -> None:
    """Types, order, bits: all that is promised."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        about = (one.dtype, one.shape, one.requires_grad)
        assert about == (other.dtype, other.shape, other.requires_grad)
        order = sorted(range(one.dim()), key=lambda axis: -other.stride(axis))
        if other.permute(order).is_contiguous():  # else there are gaps, which do not travel
            assert one.numel() == 0 or strides(one) == strides(other)
        assert torch.equal(bits(one), bits(other))
    elif isinstance(one, np.ndarray | np.generic):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes() or repr(one.tolist()) == repr(other.tolist())  # but for gaps between fields
    elif isinstance(one, Enum):
        assert one is other
    elif isinstance(one, dict):
        assert getattr(one, "default_factory", None) is getattr(other, "default_factory", None)
        same(list(dict.items(one)), list(dict.items(other)))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for part, there in zip(one, other, strict=True):
            same(part, there)
    elif not hasattr(one, "__dict__"):
        assert repr(one) == repr(other)  # NaN and -0.0, too
    if not isinstance(one, torch.Tensor | Enum) and hasattr(one, "__dict__"):
        assert not isinstance(one, str) or str(one) == str(other)
        same(vars(one), vars(other))


def arrays_of(value: Any) -> list[Any]:
    """The memory of the arrays and tensors in a value."""
    if isinstance(value, torch.Tensor):
        return [bits(value).numpy()]
    if isinstance(value, np.ndarray):
        return [value]
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [array for part in parts for array in arrays_of(part)]


@pytest.mark.slow
@common
@given(VALUES)
@example({"s": ["\ud800", 1 << 70, {"\udfff": (1 << 64) - 1, -(1 << 63): -(1 << 63) - 1}], "n": [1, True, None, 1.0]})
@example([1 << 64, np.zeros((0, 3)), torch.zeros(2, 0).T, b"", "", (), {}, [], np.float64(1), np.str_("a"), np.bytes_(b"a")])
@example({1: 1, 1.5: 2, None: 3, b"b": 4, (): 5, False: 6} | {"a": 7, 1j: 8, float("nan"): 9, ("a", (1 << 70,)): 10})
def test_values_come_back_as_they_were(value: Any) -> None:
    encoder = Encoder(allow_pickle=False)
    n_bytes = encoder.n_bytes(value, "sample")
    with pytest.raises(NoRoomError) as short:
        encoder.encode(value, "sample", np.empty(n_bytes - 1, np.uint8))
    assert short.value.n_bytes == n_bytes
    room = np.full(n_bytes + 64, MAGIC, np.uint8)
    encoder.encode(value, "sample", room[:n_bytes])
    assert (room[n_bytes:] == MAGIC).all()
    assert written_bytes(room) == n_bytes
    made = decode(room[:n_bytes], False)
    for array in arrays_of(made):
        assert array.flags.writeable
        assert array.flags.aligned
        assert not np.may_share_memory(array, room)
    same(made, value)


@pytest.mark.slow
@common
@given(st.lists(st.tuples(VALUES, TEXT), min_size=1, max_size=5), st.integers(1, 5))
def test_rows_come_back_as_they_were(rows: list[tuple[Any, str]], n_first: int) -> None:
    """Written in two pieces, as a task writes them whose first rows are small."""
    encoder = Encoder(allow_pickle=False)
    needed = max(encoder.n_bytes([[value] for value in row], "row") for row in rows)
    pieces = [piece for piece in (rows[:n_first], rows[n_first:]) if piece]
    with pytest.raises(NoRoomError) as short:
        encoder.encode_rows([list(row) for row in rows], ["a", "b"], np.empty((len(rows), 1), np.uint8))
    assert short.value.n_bytes == needed
    rooms, row = np.empty((len(rows), 64 * -(-needed // 64)), np.uint8), 0
    for piece in pieces:
        encoder.encode_rows([list(row) for row in piece], ["a", "b"], rooms[row : row + len(piece)])
        row += len(piece)
    same(decode_rows(rooms, False), [list(column) for column in zip(*rows, strict=True)])


def test_where_a_large_array_lies_and_what_is_kept() -> None:
    """At a multiple of 64 bytes, with nothing of it in the text; and the encoder keeps nothing alive."""
    encoder, room = Encoder(allow_pickle=False), np.zeros(1 << 12, np.uint8)
    array = np.arange(256, dtype=np.uint8)
    n_references = sys.getrefcount(array)
    encoder.encode([b"x", array, (array[:100],)], "sample", room)
    assert sys.getrefcount(array) == n_references
    found = room.tobytes().find(array.tobytes())
    assert found > 0
    assert found % 64 == 0
    assert HEAD.unpack_from(room.data, 0)[0] < 64


# -- what cannot be sent ----------------------------------------------------------------------------------------------

REFUSED: list[tuple[Any, str]] = [
    ({1, 2}, "sample is a builtins.set,"),
    ([0, frozenset()], "sample[1] is a builtins.frozenset,"),
    ({"a": ({"b": bytearray()},)}, "sample['a'][0]['b'] is a builtins.bytearray,"),
    ({7: [memoryview(b"")]}, "sample[7][0] is a builtins.memoryview,"),
    (OrderedDict(a=[1, range(2)]), "sample['a'][1] is a builtins.range,"),
    (Point(1, [object]), "sample[1][0] is a builtins.type,"),
    (UserDict({"a": {1}}), "sample.__dict__['data']['a'] is a builtins.set,"),
    (with_attributes(Words([1, {2}]), {"a": 1}), "sample[1] is a builtins.set,"),
    (with_attributes(Words([1]), {"a": [{2}]}), "sample.__dict__['a'][0] is a builtins.set,"),
    ({(1, frozenset()): 1}, "sample has a key that is a builtins.frozenset,"),
    ([{"a": {frozenset(): 1, "b": {1}}}], "sample[0]['a']['b'] is a builtins.set,"),
    ({"s": "\ud800", "a": [1 << 70, {1}]}, "sample['a'][1] is a builtins.set,"),
]


@pytest.mark.parametrize(("value", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_refused_is_named(value: Any, words: str) -> None:
    encoder, room = Encoder(allow_pickle=False), np.zeros(4096, np.uint8)
    with pytest.raises(TypeError) as error:
        encoder.encode(value, "sample", room)
    assert str(error.value).startswith(
        f"{words} which cannot be sent without pickle: return numbers, strings, arrays, tensors,"
    )
    assert not room.any()
    with pytest.raises(TypeError) as error:
        encoder.encode_rows([["a", 1], ["b", value]], ["name", "sample"], np.zeros((2, 64), np.uint8))
    assert str(error.value).startswith(words)


# -- what no encoder has written -------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    "<i8 |O T |V0 |S0 <U3 |S2147483647 >M8[3s] bool float32 quint8 bfloat16 names of ml_dtypes Words Point Color RED "
    f"subprocess Popen collections OrderedDict defaultdict torch Size Tensor {__name__}".split()
)
CONTENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.integers(-(1 << 63), 1 << 63) | st.floats() | WORDS | st.binary(),
    lambda parts: st.one_of(
        st.lists(parts, max_size=5),
        st.dictionaries(WORDS, parts, max_size=3),
        st.builds(lambda code, part: Extension(code, pack(part)), st.integers(-1, 12), parts),
    ),
    max_leaves=15,
)
LENGTHS = st.sampled_from([-(1 << 40), -1, 0, 1, 2, 3, 8, 64, (1 << 31) - 1, 1 << 40, 1 << 62])
SHAPES = st.lists(LENGTHS, max_size=3)


def fields(parts: Any) -> Any:
    two = {"names": st.just(["a", "b"]), "formats": st.tuples(parts, parts), "offsets": st.tuples(LENGTHS, LENGTHS)}
    return st.fixed_dictionaries({**two, "titles": st.just([None, None]), "itemsize": LENGTHS, "aligned": st.booleans()})


PLACES = st.builds(
    lambda code, dtype, shape, start, rest: Extension(code, pack([dtype, shape, start, *rest])),
    st.sampled_from([Ext.ARRAY, Ext.SCALAR, Ext.TENSOR]),
    st.recursive(WORDS, lambda parts: st.tuples(parts, SHAPES) | fields(parts), max_leaves=4),
    SHAPES,
    LENGTHS,
    st.sampled_from([[], [], [None, False], [None, True], [[0], False], [[1, 0], False], [[0, 0], False], [[-1, 5], 1]]),
)
OVERFLOWING = {"names": ["a"], "formats": ["|S2147483647"], "offsets": [64], "titles": [None], "itemsize": 64, "aligned": False}


@st.composite
def changed(draw: Any) -> bytes:
    """What an encoder has written, with some bytes of it others."""
    value = draw(VALUES)
    encoder = Encoder(allow_pickle=False)
    room = np.zeros(encoder.n_bytes(value, "sample"), np.uint8)
    encoder.encode(value, "sample", room)
    for _ in range(draw(st.integers(1, 4))):
        room[draw(st.integers(0, len(room) - 1))] = draw(st.integers(0, 255))
    return room.tobytes()


def framed(text: bytes) -> bytes:
    return HEAD.pack(len(text), 64, 1) + text + bytes(-(HEAD.size + len(text)) % 64 + 64)


@pytest.mark.slow
@settings(common, max_examples=200)
@given(st.binary(max_size=200) | st.builds(lambda part: framed(pack(part)), CONTENTS | PLACES | st.lists(PLACES)) | changed())
@example(framed(pack(Extension(Ext.ARRAY, pack(["|V0", [1 << 60], 0])))))  # a copy takes years
@example(framed(pack(Extension(Ext.ARRAY, pack(["|S0", [1 << 40], 0])))))  # a copy takes a terabyte
@example(framed(pack(Extension(Ext.ARRAY, pack(["|V0", [-1], 0])))))  # NumPy divides by zero, and the process is gone
@example(framed(pack(Extension(Ext.ARRAY, pack(["<m8[s/0]", [1], 0])))))
@example(framed(pack(Extension(Ext.ARRAY, pack(["|i1", [4], -(1 << 40)])))))  # before the data
@example(framed(pack(Extension(Ext.ARRAY, pack([OVERFLOWING, [1], 0])))))  # behind the data
@example(framed(b"\x91" * 100_000))
def test_bytes_that_no_encoder_has_written_do_no_harm(garbage: bytes) -> None:
    modules = set(sys.modules)
    room = np.frombuffer(garbage, np.uint8)
    with patch.object(pickle, "loads", lambda data: pytest.fail("was unpickled")):
        for read in (lambda: decode(room, False), lambda: decode_rows(room[None], False)):
            try:
                read()
            except Exception:  # whatever says that this is no data
                pass
    assert set(sys.modules) == modules


def test_extensions_in_extensions_end_in_an_error() -> None:
    text = pack(1)
    for _ in range(20_000):
        text = b"\xc9" + len(text).to_bytes(4, "big") + bytes([Ext.TUPLE]) + text
    with pytest.raises((RecursionError, TypeError)):
        decode(np.frombuffer(framed(text), np.uint8), False)
