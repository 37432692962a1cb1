"""`ringload.torch.DataLoader` gives what torch's gives: values, dtypes, containers, order, errors."""

from __future__ import annotations

import pickle
import random
import re
import sys
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, namedtuple
from collections.abc import Callable, Iterator
from enum import Enum, IntEnum, IntFlag
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from msgspec.msgpack import Ext as Extension  # noqa: E402
from torch.utils.data import (  # noqa: E402
    BatchSampler,
    Dataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler  # noqa: E402

import ringload  # noqa: E402
from ringload.torch import DataLoader  # noqa: E402
from ringload.torch.dataloader.values import HEAD, Ext, decode, pack  # noqa: E402

TorchLoader = torch.utils.data.DataLoader
Point = namedtuple("Point", ["x", "y"])
FORK: dict[str, Any] = {
    "num_workers": 2,
    "multiprocessing_context": "fork",
}  # starts at once: a server of its own imports torch


class Samples(Dataset):
    """`n` samples, each made by a function of its index."""

    def __init__(self, make: Callable[[int], Any], n: int = 23) -> None:
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def same(ours: Any, theirs: Any) -> None:
    """Both are the same: types, dtypes, shapes, values."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.is_contiguous() == theirs.is_contiguous()
        bits, others = (one.resolve_conj().reshape(-1).contiguous().view(torch.uint8) for one in (ours, theirs))
        assert torch.equal(bits, others)  # NaN too
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == theirs or ours != ours


def tensor(i: int) -> Any:
    return torch.arange(12.0).reshape(3, 4) * i


SAMPLES: dict[str, Callable[[int], Any]] = {
    "tensor": tensor,
    "tensor and int": lambda i: (tensor(i), i),
    "0-dim tensor": lambda i: torch.tensor(i),
    "empty tensor": lambda i: torch.empty(0, 3),
    "bfloat16": lambda i: tensor(i).bfloat16(),
    "float8": lambda i: tensor(i).to(torch.float8_e5m2),
    "bool tensor": lambda i: tensor(i) > 3,
    "complex tensor": lambda i: torch.complex(tensor(i), tensor(1)).conj(),
    "permuted tensor": lambda i: tensor(i).permute(1, 0),
    "expanded tensor": lambda i: torch.tensor([float(i)]).expand(3),
    "uint16 array": lambda i: np.full((2, 3), i, np.uint16),
    "array": lambda i: np.full((2, 3), i, np.float64)[:, ::2],
    "0-dim array": lambda i: np.array(i, np.int32),
    "numpy scalars": lambda i: [np.float32(i), np.int16(i), np.bool_(i % 2), np.float64(i), np.uint8(i)],
    "int": lambda i: i,
    "float": lambda i: i / 7,
    "nan": lambda i: float("nan"),
    "bool": lambda i: i % 2 == 0,
    "largest int": lambda i: 2**63 - 1 - i,
    "string": lambda i: f"näme {i}\n" * (i % 5),
    "odd string": lambda i: "\ud800\x00",
    "bytes": lambda i: b"\x00\xff" * i,
    "empty list": lambda i: [],
    "tuple": lambda i: (i, str(i), tensor(i)),
    "list": lambda i: [i, [i + 1, (i + 2,)]],
    "named tuple": lambda i: Point(i, {"a": tensor(i), "b": [i, str(i)]}),
    "nested dict": lambda i: {"image": tensor(i), "meta": {"id": i, "name": str(i), 7: i / 2, ("a", 1): (i,)}},
    "ordered dict": lambda i: OrderedDict(b=i, a=str(i)),
    "dict of other order": lambda i: {"a": 1, "b": 2} if i % 2 else {"b": 3, "a": 4},
    "extra key later": lambda i: {"a": i} | ({"b": i} if i == 7 else {}),
    "int or float": lambda i: i if i < 13 else i / 2,
    "float or int": lambda i: i / 2 if i % 2 else i,
    "bool or int": lambda i: i if i % 3 else True,
    "two dtypes": lambda i: tensor(i).double() if i == 9 else tensor(i),
    "tensor or array": lambda i: tensor(i) if i % 5 else tensor(i).numpy(),
    "long string later": lambda i: "x" * (100_000 if i == 17 else i),
    "many numbers": lambda i: ([i] * 20, (i / 3,) * 20, [2**63 - 1 - i] * 16, (-i,) * 15, [1] * 19 + [i / 2], [True] * 16),
    "part varies": lambda i: (tensor(i), [i, "a" if i < 8 else "b" * i, i if i < 11 else float(i)]),
}
REFUSED: dict[str, Callable[[int], Any]] = {
    "numbers too large": lambda i: [2**63 + i] * 16,
    "many of varying length": lambda i: {"ids": list(range(10 + i % 5 * (i // 5 == 2)))},
    "none": lambda i: (i, None),
    "ragged tensors": lambda i: torch.zeros(3 + i % 2),
    "ragged from the third batch on": lambda i: (i, np.zeros(3 if i < 11 else i)),
    "ragged lists": lambda i: [1] * (1 + i % 3),
    "missing key": lambda i: {"a": 1, "b": 2} if i != 6 else {"a": 1},
    "too large an int": lambda i: 2**63 if i == 12 else i,
    "strings in an array": lambda i: np.array(["a", "b"]),
    "big-endian": lambda i: np.zeros(3, ">f4"),
    "complex number": lambda i: complex(i, 1),
    "date": lambda i: np.datetime64("2026-11-24"),
}


def outcomes(loader: Any) -> Iterator[Any]:
    """Each batch, or the class of the error in its place."""
    batches = iter(loader)
    while True:
        try:
            yield next(batches)
        except StopIteration:
            return
        except Exception as error:
            yield type(error)


@pytest.mark.parametrize("kind", [*SAMPLES, *REFUSED])
def test_collates_as_torch(kind: str) -> None:
    data = Samples((SAMPLES | REFUSED)[kind])
    theirs = list(outcomes(TorchLoader(data, 5)))
    assert (kind in REFUSED) == any(isinstance(one, type) for one in theirs)
    same(list(outcomes(DataLoader(data, 5, **FORK))), theirs)
    same(list(outcomes(DataLoader(data, 5))), theirs)


class Color(IntEnum):
    RED = 1
    BLUE = 2


class WorkerReport(str, Enum):
    YES = "yes"


class Access(IntFlag):
    READ = 1
    WRITE = 2


class Strict:
    """Nothing of a class's own runs while its objects are made."""

    def __init__(self, *args: Any) -> None:
        raise AssertionError("made by its class")

    __setattr__ = __setitem__ = __setstate__ = extend = update = __init__


class Whole(Strict, int): ...


class Part(Strict, float): ...


class Text(Strict, str): ...


class Pair(Strict, tuple): ...


class Row(Strict, list): ...


class Table(Strict, dict): ...


class Ordered(Strict, OrderedDict): ...


class Counts(defaultdict): ...


class Items(list): ...


class Named(namedtuple("Named", "a b")):  # with a __dict__, and arguments of its own
    def __new__(cls, both: Any) -> Any:
        return super().__new__(cls, both, both)


class Encoding(UserDict):
    """As that of Hugging Face is: with attributes, and those of its content."""

    def __init__(self, data: Any, n_sequences: int) -> None:
        super().__init__(data)
        self._n_sequences = n_sequences

    def __getattr__(self, name: str) -> Any:
        return self.data[name]


class AttrDict(dict):
    """A well known trick: its content as attributes."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys)
        self.__dict__ = self


def made(kind: Any, content: Any = (), **attributes: Any) -> Any:
    """An object of a class that is Strict."""
    base = kind.__mro__[2]
    one = base.__new__(kind, content) if base in (int, float, str, tuple) else base.__new__(kind)
    if base is list:
        list.extend(one, content)
    for key, part in dict(content).items() if issubclass(base, dict) else ():
        base.__setitem__(one, key, part)
    one.__dict__.update(attributes)
    return one


OF_CLASSES: dict[str, Callable[[int], Any]] = {
    "int": lambda i: made(Whole, i),
    "float": lambda i: made(Part, i / 2),
    "str": lambda i: made(Text, f"{i}", about=i),
    "list": lambda i: made(Row, [i, str(i), tensor(i)], about={3: i}),
    "collated list": lambda i: Items([i, tensor(i)]),
    "tuple": lambda i: made(Pair, (i, (i,))),
    "named tuple": lambda i: Named(i),
    "dict": lambda i: made(Table, {"a": tensor(i), 7: i}, about=made(Table, about=i)),
    "ordered dict": lambda i: made(Ordered, {"b": i, "a": i}),
    "counter": lambda i: Counter({"a": i, "b": 1}),
    "defaultdict": lambda i: defaultdict(list, a=i),
    "defaultdict without": lambda i: defaultdict(None, {i // 9: i}),
    "subclass of defaultdict": lambda i: Counts(int, a=i),
    "IntEnum": lambda i: (Color(1 + i % 2), i),
    "str Enum": lambda i: {WorkerReport.YES: WorkerReport.YES},
    "IntFlag": lambda i: Access.READ,
    "UserDict": lambda i: Encoding({"ids": tensor(i), "n": i}, i),
    "UserList": lambda i: UserList([i, i]),
    "torch.Size": lambda i: (tensor(i).shape, torch.Size([i])),
    "AttrDict": lambda i: AttrDict(a=i, b=[i]),
}


def contents(value: Any) -> Any:
    """Types, content and attributes, by repr."""
    about = contents(dict(vars(value))) if hasattr(value, "__dict__") and not isinstance(value, torch.Tensor | Enum) else None
    if isinstance(value, dict):
        parts: Any = [getattr(value, "default_factory", None), *((contents(k), contents(v)) for k, v in dict(value).items())]
    elif isinstance(value, list | tuple):
        parts = [contents(one) for one in value]
    else:
        parts = (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else repr(value)
    return type(value), parts, about


def test_objects_of_classes_are_sent_as_they_are() -> None:
    data = Samples(lambda i: {name: make(i) for name, make in OF_CLASSES.items()}, 7)
    ours = list(DataLoader(data, 3, collate_fn=list, **FORK))
    assert contents(ours) == contents([[data[i] for i in rows] for rows in ([0, 1, 2], [3, 4, 5], [6])])


@pytest.mark.parametrize("batch_size", [3, None])
def test_objects_of_classes_are_collated_as_torch(batch_size: Any) -> None:
    def collates(make: Any) -> bool:
        return not any(isinstance(one, type) for one in outcomes(TorchLoader(Samples(make, 3), batch_size)))

    kinds = {name: make for name, make in OF_CLASSES.items() if collates(make)}
    assert len(kinds) > 12
    data = Samples(lambda i: {name: make(i) for name, make in kinds.items()}, 7)
    assert contents(list(DataLoader(data, batch_size, **FORK))) == contents(list(TorchLoader(data, batch_size)))


class Slotted(list):
    __slots__ = ("more",)


class Deleting(dict):
    def __del__(self) -> None: ...


def test_objects_of_other_classes_are_refused() -> None:
    class Inner(dict): ...

    class Shadowed(dict): ...

    Shadowed.__qualname__ = "Deleting"  # another class of that name is there
    masked, maximum = np.ma.masked_array([1], [0]), torch.max(torch.zeros(1), 0)
    values = [Slotted([1]), Deleting(a=1), Inner(), Shadowed(), defaultdict(tensor), Access(3), masked, maximum]
    batches = iter(DataLoader(Samples(values.__getitem__, len(values)), 1, collate_fn=list, **FORK))
    for _ in values:
        with pytest.raises(TypeError, match=r"batch\[0\] is a .*allow_pickle=True"):
            next(batches)
    assert next(batches, None) is None


def test_what_was_not_encoded_makes_nothing(monkeypatch: Any) -> None:
    """A worker that reads hostile files may write anything: nothing is imported, unpickled or called."""
    lazy = ModuleType("lazy")
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    lazy.__getattr__ = lambda name: pytest.fail("was asked for")  # type: ignore[method-assign]
    nothing: list[Any] = [None, {}]
    texts: list[tuple[int, Any]] = [
        (Ext.OBJECT, [__name__, "Deleting", {"a": 1}, {}]),
        (Ext.OBJECT, [__name__, "Samples", *nothing]),
        (Ext.OBJECT, [__name__, "Slotted", [], {}]),
        (Ext.OBJECT, [__name__, "Row", Extension(Ext.OBJECT, pack([__name__, "Row", [], {}])), {}]),
        (Ext.OBJECT, [__name__, "Row", [], []]),
        (Ext.OBJECT, ["subprocess", "Popen", "ls", {}]),
        (Ext.OBJECT, ["lazy", "Row", *nothing]),
        (Ext.OBJECT, ["no.such.module", "Row", *nothing]),
        (Ext.ARRAY, ["|O", [1], 0]),
        (Ext.ARRAY, [{"of": "ml_dtypes", "name": "finfo"}, [1], 0]),
        (
            Ext.ARRAY,
            [{"names": ["a"], "formats": ["|O"], "offsets": [0], "titles": [None], "itemsize": 8, "aligned": False}, [1], 0],
        ),
        (Ext.ARRAY, [["|O", [2]], [1], 0]),
        (Ext.TENSOR, ["nn", [1], 0, None, False]),
        (77, 1),
    ]
    before = set(sys.modules)
    for code, content in texts:
        with pytest.raises(TypeError, match=r"is no (class in the trainer|dtype)|no content of|not allowed"):
            decode(written(pack(Extension(code, pack(content))), 64), False)
    for text in (
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 2000,
        pack(Extension(Ext.ARRAY, pack(["<i8", [1 << 40], 0]))),
    ):
        with pytest.raises((ValueError, TypeError, RecursionError)):
            decode(written(text, 64), False)
    with pytest.raises(ValueError, match="longer"):
        decode(written(pack(1), 1 << 40), False)
    assert set(sys.modules) == before


def test_a_pickle_is_read_where_that_is_allowed() -> None:
    data = written(pack(Extension(Ext.PICKLED, pickle.dumps({1, 2}))), 0)
    assert decode(data, True) == {1, 2}
    with pytest.raises(TypeError, match="an extension of code 10 is not allowed"):
        decode(data, False)


def written(text: bytes, n_data: int) -> Any:
    """What a worker might write that is not itself any more."""
    room = np.zeros(4096, np.uint8)
    HEAD.pack_into(room, 0, len(text), n_data, 1)
    room[HEAD.size : HEAD.size + len(text)] = np.frombuffer(text, np.uint8)
    return room


@pytest.mark.parametrize("kind", ["tensor and int", "string", "named tuple", "nested dict", "numpy scalars"])
def test_samples_without_batches_as_torch(kind: str) -> None:
    data = Samples(SAMPLES[kind])
    same(list(DataLoader(data, None, **FORK)), list(TorchLoader(data, None)))
    same(list(DataLoader(data, None)), list(TorchLoader(data, None)))


def collate(samples: list[Any]) -> Any:
    """Pads to the longest: each batch has a shape of its own."""
    longest = max(len(sample) for sample in samples)
    padded = torch.stack([torch.nn.functional.pad(sample, (0, longest - len(sample))) for sample in samples])
    return {"padded": padded, "n": [len(sample) for sample in samples], "last": padded.permute(1, 0), "names": ("a", None)}


def test_collate_fn() -> None:
    data = Samples(lambda i: torch.arange(float(i * i)))
    for options in (FORK, {}):
        same(list(DataLoader(data, 4, collate_fn=collate, **options)), list(TorchLoader(data, 4, collate_fn=collate)))
    large = Samples(lambda i: torch.full((3, i * 1000), i))  # the second batch does not fit where the first did
    same(list(DataLoader(large, 2, collate_fn=list, **FORK)), list(TorchLoader(large, 2, collate_fn=list)))
    numbers = Samples(SAMPLES["many numbers"], 3)
    same(list(DataLoader(numbers, 2, collate_fn=list, **FORK)), list(TorchLoader(numbers, 2, collate_fn=list)))
    ours = next(iter(DataLoader(data, 4, collate_fn=collate, **FORK)))
    assert ours["last"].stride() == next(iter(TorchLoader(data, 4, collate_fn=collate)))["last"].stride()


class Many(Samples):
    """Knows how to get several."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        assert type(indices) is list
        return [(self.make(i), len(indices)) for i in indices]


def test_many_in_one_call() -> None:
    same(list(DataLoader(Many(tensor), 5, **FORK)), list(TorchLoader(Many(tensor), 5)))
    same(list(DataLoader(Many(tensor), 5)), list(TorchLoader(Many(tensor), 5)))
    rows = Samples(lambda indices: np.array(indices) * 2)
    options = {"batch_size": None, "sampler": BatchSampler(SequentialSampler(rows), 4, False)}
    same(list(DataLoader(rows, **options, **FORK)), list(TorchLoader(rows, **options)))


def test_keys_of_any_kind() -> None:
    table = Samples(lambda key: str(key))
    for keys in (["a", ("b", 1), 2**70, np.int64(3), None], [1, 2, "x" * 5000], [torch.tensor(3), 4.5, True]):
        same(list(DataLoader(table, 2, sampler=keys, **FORK)), list(TorchLoader(table, 2, sampler=keys)))
        same(list(DataLoader(table, None, sampler=keys, **FORK)), list(TorchLoader(table, None, sampler=keys)))


def test_batch_samplers() -> None:
    data = Samples(lambda i: (i, tensor(i)))
    for batches in ([[3], [1, 2, 3, 4], [], [5] * 9, (6, 7)], (range(i) for i in range(1, 12))):
        batches = list(batches)
        same(
            list(outcomes(DataLoader(data, batch_sampler=batches, **FORK))),
            list(outcomes(TorchLoader(data, batch_sampler=batches))),
        )

    def endless() -> Iterator[list[int]]:
        while True:
            yield [0, 1]

    class Endless:
        def __iter__(self) -> Iterator[list[int]]:
            return endless()

    batches = iter(DataLoader(data, batch_sampler=Endless(), **FORK))
    for _ in range(20):
        same(next(batches), [torch.tensor([0, 1]), torch.stack([tensor(0), tensor(1)])])


def test_a_batch_sampler_that_uses_one_list_again() -> None:
    class Again:
        def __iter__(self) -> Iterator[list[int]]:
            keys = [0, 0]
            for i in range(12):
                keys[:] = [i, i + 1]
                yield keys

    for options in (FORK, {}):
        seen = [batch.tolist() for batch in DataLoader(Samples(lambda i: i), batch_sampler=Again(), **options)]
        assert seen == [[i, i + 1] for i in range(12)]


def test_batches_that_begin_empty() -> None:
    data = Samples(lambda i: i)
    orders: list[list[list[int]]] = [[[], [], [1]], [[]] * 9 + [[1, 2]], [[]]]
    for batches in orders:
        ours = outcomes(DataLoader(data, batch_sampler=batches, **FORK | {"prefetch_factor": 1}))
        same(list(ours), list(outcomes(TorchLoader(data, batch_sampler=batches))))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_order_is_torchs(n_workers: int) -> None:
    data = Samples(lambda i: i, 40)
    own = FORK if n_workers else {}

    def samplers() -> Iterator[dict[str, Any]]:
        yield {"shuffle": True}
        yield {"shuffle": True, "generator": torch.Generator().manual_seed(5)}
        yield {"sampler": RandomSampler(data, replacement=True, num_samples=70, generator=torch.Generator().manual_seed(2))}
        yield {"sampler": WeightedRandomSampler([1.0] * 40, 30)}
        yield {"sampler": SubsetRandomSampler(range(0, 40, 3))}
        yield {"batch_sampler": BatchSampler(RandomSampler(data), 6, True)}

    def passes(kind: Any, options: dict[str, Any], **more: Any) -> list[Any]:
        torch.manual_seed(11)
        batch = {} if "batch_sampler" in options else {"batch_size": 7}
        loader = kind(data, **batch, **options, **more)
        seen = [[batch.tolist() for batch in loader] for _ in range(3)]
        return [*seen, len(loader), torch.rand(1).item()]  # the generator is left as torch leaves it

    for ours, theirs in zip(samplers(), samplers(), strict=True):
        assert passes(DataLoader, ours, **own) == passes(TorchLoader, theirs, **own)


def test_distributed_sampler() -> None:
    data = Samples(lambda i: i, 25)
    seen = []
    for rank in range(2):
        samplers = [DistributedSampler(data, 2, rank, shuffle=True, drop_last=True) for _ in range(2)]
        loaders = DataLoader(data, 4, sampler=samplers[0], **FORK), TorchLoader(data, 4, sampler=samplers[1])
        for epoch in range(2):
            for sampler in samplers:
                sampler.set_epoch(epoch)
            ours, theirs = ([batch.tolist() for batch in loader] for loader in loaders)
            assert ours == theirs
            seen += [(epoch, index) for batch in ours for index in batch]
    assert len(seen) == len(set(seen)) == 2 * 24
    with pytest.raises(ValueError, match="rank"):
        DistributedSampler(data, 2, 2)


def test_batches_are_the_users_own() -> None:
    data = Samples(lambda i: (torch.full((1000,), i), str(i)), 200)
    loader = DataLoader(data, 5, **FORK)
    batches = list(loader)
    assert len(batches) == len(loader) == 40
    for number, (rows, names) in enumerate(batches):
        assert names == tuple(str(i) for i in range(number * 5, number * 5 + 5))
        assert torch.equal(rows, torch.arange(number * 5, number * 5 + 5).repeat_interleave(1000).reshape(5, 1000))
        rows += 1  # nobody minds
    same(next(iter(loader)), next(iter(TorchLoader(data, 5))))


class OddError(Exception):
    """One that cannot be made from a text."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first, second)


def fail(i: int) -> int:
    if i in FAILING:
        raise FAILING[i](1, 2) if FAILING[i] is OddError else FAILING[i](f"bad sample {i}")
    return i


FAILING = {1: ValueError, 2: KeyError, 5: StopIteration, 10: OddError, 11: ValueError, 19: KeyError}


@pytest.mark.parametrize("collate_fn", [None, list])
def test_an_error_is_raised_in_its_batchs_place(collate_fn: Any) -> None:
    for options in (FORK, {}):
        loader = DataLoader(Samples(fail, 22), 2, collate_fn=collate_fn, **options)
        batches, seen, texts = iter(loader), [], []
        for _ in range(11):
            try:
                seen.append([int(i) for i in next(batches)])
            except Exception as error:
                seen.append(type(error))
                texts.append(str(error))
        with pytest.raises(StopIteration):
            next(batches)
        odd = RuntimeError if options else OddError
        assert seen == [
            ValueError,
            KeyError,
            RuntimeError,
            [6, 7],
            [8, 9],
            odd,
            [12, 13],
            [14, 15],
            [16, 17],
            KeyError,
            [20, 21],
        ]
        if options:
            begin = r"Caught \w+ in DataLoader worker process [01].\nOriginal Traceback \(most recent"
            assert all(re.match(begin, text) and ("bad sample" in text or "OddError: (1, 2)" in text) for text in texts)


def test_a_sampler_that_fails() -> None:
    class Failing:
        def __iter__(self) -> Iterator[int]:
            yield from range(6)
            raise LookupError("no more")

    seen = list(outcomes(DataLoader(Samples(lambda i: i), 2, sampler=Failing(), **FORK)))
    assert [one if isinstance(one, type) else one.tolist() for one in seen] == [[0, 1], [2, 3], [4, 5], LookupError]


def test_what_cannot_be_sent_is_named() -> None:
    data = Samples(lambda i: {"a": [i, {1, 2}]})
    with pytest.raises(TypeError, match=r"batch\[0\]\['a'\]\[1\] is a builtins.set.*allow_pickle=True"):
        next(iter(DataLoader(data, 2, collate_fn=list, **FORK)))
    with pytest.raises(TypeError, match=r"sample\['a'\]\[1\] is a builtins.set.*allow_pickle=True"):
        next(iter(DataLoader(data, 2, **FORK)))
    same(list(DataLoader(data, 2, collate_fn=list, allow_pickle=True, **FORK)), list(TorchLoader(data, 2, collate_fn=list)))


def test_strict_refuses_by_name() -> None:
    data = Samples(lambda i: {"a": torch.zeros(3), "b": (str(i), i if i < 13 else float(i))})
    with pytest.raises(ringload.ConfigError, match=r"sample\['b'\]\[0\] \(a str\)"):
        list(DataLoader(data, 2, strict=True, **FORK))
    data = Samples(lambda i: {"a": torch.zeros(3), "b": (i, i if i < 13 else float(i))})
    batches = iter(DataLoader(data, 2, strict=True, **FORK))
    for _ in range(6):
        next(batches)
    with pytest.raises(ringload.ConfigError, match=r"sample\['b'\]\[1\] \(its type"):
        next(batches)


def draws(i: int) -> list[float]:
    return [i, random.random(), float(np.random.normal()), torch.rand(1).item()] if i >= 3 else [i, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("collate_fn", [None, list])
def test_draws_do_not_depend_on_workers(collate_fn: Any) -> None:
    data = Samples(draws, 30)
    seen = []
    for options in ({}, FORK, FORK | {"num_workers": 3}, FORK | {"prefetch_factor": 5}):
        torch.manual_seed(1)
        random.seed(2)
        np.random.seed(3)
        loader = DataLoader(data, 4, shuffle=True, collate_fn=collate_fn, **options)
        seen.append((list(loader), list(loader), random.random(), np.random.rand(), torch.rand(1).item()))
    for other in seen[1:]:
        same(other, seen[0])
    values = {
        float(row) for batch in seen[0][0] + seen[0][1] for row in (batch[1] if collate_fn is None else [s[1] for s in batch])
    }
    assert len(values) == 2 * 27 + 1  # all differ, from epoch to epoch too, but for those that draw nothing


def test_arguments() -> None:
    data = Samples(lambda i: i)
    for wrong in (
        {"num_workers": -1},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"persistent_workers": True},
        {"batch_sampler": [[1]], "batch_size": 2},
        {"batch_sampler": [[1]], "shuffle": True},
        {"sampler": [1], "shuffle": True},
        {"batch_size": None, "drop_last": True},
        {"multiprocessing_context": "fork"},
        {"num_workers": 1, "multiprocessing_context": "threads"},
        {"snapshot_every_n_steps": 0},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            DataLoader(data, **wrong)
    loader = DataLoader(data, 5, drop_last=True)
    assert len(loader) == len(list(loader)) == 4
    for name in ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers"):
        with pytest.raises(ValueError, match=name):
            setattr(loader, name, 1)
    with pytest.raises(ValueError, match="timeout"):
        iter(DataLoader(data, timeout=1))
    with pytest.warns(UserWarning, match="worker"):
        DataLoader(data, num_workers=10_000)
    if not torch.cuda.is_available():
        with pytest.warns(RuntimeWarning, match="no CUDA") as caught:
            next(iter(DataLoader(data, pin_memory=True)))
        assert caught[0].filename == __file__, "a warning names the line of the user's code"
    assert isinstance(loader, TorchLoader)
