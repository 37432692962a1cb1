"""Kinds of arrays, scalars and tensors: `ringload.torch.DataLoader` gives what torch's gives, or refuses it by its name."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import Dataset  # noqa: E402

from ringload.torch import DataLoader  # noqa: E402

TorchLoader = torch.utils.data.DataLoader
FORK: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "fork"}


class Values(Dataset):
    """Each sample is what one of some functions gives."""

    def __init__(self, makers: list[Callable[[], Any]]) -> None:
        self.makers = makers

    def __len__(self) -> int:
        return len(self.makers)

    def __getitem__(self, index: int) -> Any:
        return self.makers[index]()


def outcomes(loader: Any) -> list[Any]:
    """Each batch, or the error in its place."""
    seen, batches = [], iter(loader)
    while True:
        try:
            seen.append(next(batches))
        except StopIteration:
            return seen
        except Exception as error:
            seen.append(error)


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray | np.generic):
        assert one.dtype == other.dtype
        assert one.dtype.names == other.dtype.names
        bits = [
            part.tolist() if part.dtype.fields else part.tobytes() for part in (one, other)
        ]  # but for what lies between fields
        assert (one.shape, repr(bits[0])) == (other.shape, repr(bits[1]))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for part, there in zip(one, other, strict=True):
            same(part, there)
    else:
        assert one == other


EXTENSION = [
    getattr(ml_dtypes, name)
    for name in dir(ml_dtypes)
    if isinstance(getattr(ml_dtypes, name), type) and issubclass(getattr(ml_dtypes, name), np.generic)
]
RECORD = np.dtype([("id", ">i4"), ("box", "f4", (2, 3)), ("name", "U5"), ("inner", [("a", "i1"), ("when", "M8[us]")])])
ALIGNED = np.dtype([("a", "i1"), ("b", "f8"), (("a title", "c"), "c16")], align=True)
GAPS = np.dtype({"names": ["x", "y"], "formats": ["i2", "S3"], "offsets": [4, 9], "itemsize": 20})
ARRAYS: dict[str, Callable[[], Any]] = {
    "datetime64": lambda: np.array(["2026-11-28", "NaT"], "M8[ns]"),
    "datetime64 of days": lambda: np.array(["2026-11-28"], "M8[D]"),
    "timedelta64": lambda: np.array([1, -5], "m8[25s]"),
    "complex64": lambda: np.array([[1 + 2j]], np.complex64),
    "longdouble": lambda: np.array([1, 1 / np.longdouble(3)]),
    "clongdouble": lambda: np.array([1j], np.clongdouble),
    "unicode": lambda: np.array(["", "näme", "\ud83d\ude00"]),
    "bytes": lambda: np.array([b"", b"\x00\xffx"]),
    "void": lambda: np.array([b"abc", b"de"], "V3"),
    "big-endian": lambda: np.arange(3, dtype=">f4"),
    "structured": lambda: np.ones(3, RECORD),
    "aligned": lambda: np.ones((2, 2), ALIGNED),
    "with gaps": lambda: np.zeros(4, GAPS),
    "no fields": lambda: np.zeros(2, []),
    "of no length": lambda: np.zeros((0, 3), RECORD),
    "no characters": lambda: np.zeros(3, "U0"),
    "transposed": lambda: np.arange(12.0).reshape(3, 4).T[::2],
    "of no axes": lambda: np.array(2.5, ">f8"),
}
SCALARS: dict[str, Callable[[], Any]] = {
    "datetime64": lambda: np.datetime64("2026-11-28T12:00", "s"),
    "NaT": lambda: np.timedelta64("NaT"),
    "record": lambda: np.ones(1, RECORD)[0],
    "unicode": lambda: np.str_("näme"),
    "bytes": lambda: np.bytes_(b"\x00x"),
    "longdouble": lambda: 1 / np.longdouble(3),
    "complex": lambda: np.complex64(1j),
    "bool": lambda: np.bool_(True),
    "void": lambda: np.void(b"abc"),
}


def extension(kind: Any) -> np.ndarray:
    return np.array([[0.0, 1.0, 0.5]]).astype(kind)


def given() -> dict[str, Callable[[], Any]]:
    made = {f"array, {name}": make for name, make in ARRAYS.items()} | {
        f"scalar, {name}": make for name, make in SCALARS.items()
    }
    for kind in EXTENSION:
        made[f"array, {kind.__name__}"] = lambda kind=kind: extension(kind)
        made[f"scalar, {kind.__name__}"] = lambda kind=kind: extension(kind)[0, 1]
        field = np.dtype([("value", kind), ("n", "i4")])
        made[f"a field of {kind.__name__}"] = lambda field=field: np.zeros(2, field)
    return made


def in_containers(samples: list[Any]) -> Any:
    (sample,) = samples
    return {"bare": sample, "within": ([sample], (sample, {"part": sample}), {3: sample}), "text": "beside it"}


def test_dtypes_are_kept_in_what_a_collate_fn_returns() -> None:
    made = given()
    assert len(EXTENSION) > 15
    ours = outcomes(DataLoader(Values(list(made.values())), collate_fn=in_containers, **FORK))
    for (name, make), batch in zip(made.items(), ours, strict=True):
        assert not isinstance(batch, Exception), (name, batch)
        same(batch, in_containers([make()]))
        assert batch["bare"].dtype.str == make().dtype.str, name


@pytest.mark.parametrize("batch_size", [1, None])
def test_samples_of_these_dtypes_are_as_torch_gives_them(batch_size: Any) -> None:
    """torch's collation refuses most of them, and converts none: what it gives and where it raises is the same."""
    made = given()
    theirs = outcomes(TorchLoader(Values(list(made.values())), batch_size))
    for options in (FORK, {}):
        ours = outcomes(DataLoader(Values(list(made.values())), batch_size, **options))
        for name, one, other in zip(made, ours, theirs, strict=True):
            if isinstance(other, Exception):
                assert type(one) is type(other), (name, one)
                assert str(other).splitlines()[0] in str(one), name
            elif isinstance(other, torch.Tensor):
                assert (one.dtype, one.tolist()) == (other.dtype, other.tolist()), name
            else:
                same(one, other)


class Own(np.float64): ...


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "StringDType": (lambda: np.array(["a", "b" * 100], np.dtypes.StringDType()), r"numpy.ndarray of dtype StringDType"),
    "objects": (lambda: np.array([1, None], object), r"numpy.ndarray of dtype object"),
    "a field of objects": (lambda: np.zeros(2, [("a", "O")]), r"numpy.ndarray of dtype"),
    "recarray": (lambda: np.ones(2, RECORD).view(np.recarray), r"numpy.*recarray"),
    "masked": (lambda: np.ma.masked_array([1], [0]), r"numpy.ma.*MaskedArray"),
    "metadata": (lambda: np.zeros(2, np.dtype("i4", metadata={"unit": "m"})), r"numpy.ndarray of dtype int32"),
    "a scalar's subclass": (lambda: Own(1.5), r"\S+Own of dtype float64"),
}


def test_other_arrays_are_refused_by_name_or_pickled() -> None:
    makers = [make for make, _ in OTHERS.values()]
    ours = outcomes(DataLoader(Values(makers), collate_fn=list, **FORK))
    for (name, (_, told)), error in zip(OTHERS.items(), ours, strict=True):
        assert isinstance(error, TypeError), (name, error)
        assert re.search(rf"batch\[0\] is a {told}.*allow_pickle=True", str(error)), (name, str(error))
    allowed = outcomes(DataLoader(Values(makers), collate_fn=list, allow_pickle=True, **FORK))
    for (name, (make, _)), batch in zip(OTHERS.items(), allowed, strict=True):
        there = pickle.loads(pickle.dumps(make()))  # NumPy's own makes a plain scalar of a subclass's
        assert (type(batch[0]), repr(batch[0])) == (type(there), repr(there)), name


# -- tensors ----------------------------------------------------------------------------------------------------------


class Sub(torch.Tensor): ...  # type: ignore[name-defined]


def rows() -> list[Any]:
    return [torch.arange(2.0), torch.arange(3.0)]


def sparse(layout: str) -> Any:
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    return dense.to_sparse() if layout == "coo" else getattr(dense, f"to_sparse_{layout}")()


SPECIAL: dict[str, tuple[Callable[[], Any], str]] = {
    "nested": (lambda: torch.nested.nested_tensor(rows()), "nested torch.Tensor"),
    "jagged": (lambda: torch.nested.nested_tensor(rows(), layout=torch.jagged), "NestedTensor"),
    "coo": (lambda: sparse("coo"), "layout torch.sparse_coo"),
    "csr": (lambda: sparse("csr"), "layout torch.sparse_csr"),
    "csc": (lambda: sparse("csc"), "layout torch.sparse_csc"),
    "bsr": (lambda: torch.eye(4).to_sparse_bsr((2, 2)), "layout torch.sparse_bsr"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.5, 1, torch.quint8), "is quantized"),
    "meta": (lambda: torch.empty(2, 3, device="meta"), "on the meta device"),
    "mkldnn": (lambda: torch.ones(2, 2).to_mkldnn(), "layout torch._mkldnn"),
    "zero": (lambda: torch._efficientzerotensor(3), "not plain memory"),
    "subclass": (lambda: torch.ones(2).as_subclass(Sub), "Sub"),
    "parameter": (lambda: torch.nn.Parameter(torch.ones(2)), "Parameter"),
}
PLAIN: dict[str, Callable[[], Any]] = {
    "conjugated": lambda: torch.tensor([1 + 2j, 3j]).conj(),
    "negated": lambda: torch.tensor([1 + 2j, 3j]).conj().imag,
    "requires grad": lambda: torch.ones(2, requires_grad=True),
    "inference": lambda: torch.ones(2).mul(3),
    "half complex": lambda: torch.zeros(2, dtype=torch.complex32),
    "uint4": lambda: torch.arange(3, dtype=torch.uint8).view(torch.uint4),
    "int2": lambda: torch.arange(3, dtype=torch.int8).view(torch.int2),
    "bits8": lambda: torch.arange(3, dtype=torch.uint8).view(torch.bits8),
    **{
        str(dtype): (lambda dtype=dtype: torch.arange(6.0).reshape(2, 3).to(dtype))
        for dtype in (
            torch.bfloat16,
            torch.float16,
            torch.float8_e4m3fn,
            torch.float8_e5m2,
            torch.float8_e4m3fnuz,
            torch.float8_e5m2fnuz,
            torch.float8_e8m0fnu,
        )
    },
}


def as_dense(value: Any) -> Any:
    """Content, to compare."""
    if value.is_nested:
        return [part.tolist() for part in value.unbind()]
    if value.is_meta:
        return value.shape
    if value.is_quantized:
        return value.int_repr().tolist(), value.q_scale()
    return (value.to_dense() if value.layout is not torch.strided else value).tolist()


@pytest.mark.filterwarnings("ignore")
def test_special_tensors_are_refused_by_name_or_sent_as_torch_sends_them() -> None:
    makers = [make for make, _ in SPECIAL.values()]
    refused = outcomes(DataLoader(Values(makers), collate_fn=list, **FORK))
    for (name, (_, told)), error in zip(SPECIAL.items(), refused, strict=True):
        assert isinstance(error, TypeError), (name, error)
        assert "batch[0] is a " in str(error), (name, error)
        assert told in str(error), (name, error)
        assert "allow_pickle=True" in str(error), (name, error)
    ours = outcomes(DataLoader(Values(makers), collate_fn=list, allow_pickle=True, **FORK))
    for (name, (make, _)), got in zip(SPECIAL.items(), ours, strict=True):
        if isinstance(got, Exception):  # torch's own pickling cannot, either: see below
            assert name in ("mkldnn", "zero"), (name, got)
            assert "which cannot be pickled" in str(got), got
            assert "nternal error" not in str(got), got
        else:
            assert (type(got[0]), got[0].layout, as_dense(got[0])) == (type(make()), make().layout, as_dense(make())), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPECIAL)
def test_torch_itself_sends_no_more_kinds(name: str) -> None:
    """Where torch's DataLoader sends a kind, this one does, with allow_pickle=True."""
    make, _ = SPECIAL[name]
    theirs = []
    with suppress(Exception):  # what its worker cannot send never comes: it times out
        theirs.append(next(iter(TorchLoader(Values([make]), collate_fn=list, num_workers=1, timeout=3))))
    (ours,) = outcomes(DataLoader(Values([make]), collate_fn=list, allow_pickle=True, **FORK))
    if theirs:
        assert not isinstance(ours, Exception), (name, ours)
        with suppress(RuntimeError):  # a quantized one comes without its quantizer from torch's
            assert as_dense(ours[0]) == as_dense(theirs[0][0]), name


def test_plain_tensors_of_all_dtypes_are_sent() -> None:
    with torch.inference_mode():
        made = {name: make() for name, make in PLAIN.items()}
    made |= {f"{name} again": make() for name, make in PLAIN.items()}
    data = Values([lambda one=one: one for one in made.values()])
    for (name, one), (batch) in zip(made.items(), outcomes(DataLoader(data, collate_fn=list, **FORK)), strict=True):
        assert not isinstance(batch, Exception), (name, batch)
        (got,) = batch
        assert (type(got), got.dtype, got.shape, got.requires_grad) == (type(one), one.dtype, one.shape, one.requires_grad), (
            name
        )
        bits = [(part.detach().resolve_conj().resolve_neg().contiguous()).view(torch.uint8).tolist() for part in (got, one)]
        assert bits[0] == bits[1], name


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_tensor_with_a_graph_is_refused_in_words(allow_pickle: bool) -> None:
    data = Values([lambda: torch.ones(2, requires_grad=True) * 3])
    (error,) = outcomes(DataLoader(data, collate_fn=list, allow_pickle=allow_pickle, **FORK))
    assert isinstance(error, TypeError)
    assert "batch[0] is a tensor with a graph (grad_fn), which cannot be sent: return tensor.detach()" in str(error)
    (batch,) = outcomes(DataLoader(data, collate_fn=list))
    assert batch[0].grad_fn is not None
