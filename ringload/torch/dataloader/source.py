"""A torch dataset in a worker: loads the samples of a row and writes them into it, or reports that they do not fit.

Two modes. In "rows", a row is one sample: each fixed leaf is written into its field, and all other leaves are encoded into the
field `encoded`. In "whole", a row is the result of one call for a whole batch (a `collate_fn` of the user's, `__getitems__`),
or a sample for batch_size=None; it is encoded.

The trainer writes into each row: `index`, which names it in messages; `place` () int64, from which its seed is made; `key` (K,)
uint8, the encoded key or keys. Where every key is its `index` there is no field `key`. The worker writes `status` () int64:
WRITTEN; the bytes that the encoded leaves take, if they do not fit into `encoded`; or -1 - number, if the sample does not fit
the tree at the node of that number.

Randomness: before a row is loaded, `random`, `numpy.random` and torch's global generator are seeded with the row's seed, so
that the numbers that it draws do not depend on the worker. That costs 10 us a row. So a worker begins to seed only when a task
has drawn a number, and then loads that task again; before that, no seed matters.
"""

from __future__ import annotations

import base64
import ctypes
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils import collate
from torch.utils.data._utils import worker as torch_worker

from ringload.errors import without_frames
from ringload.fields import Field, Row, Worker
from ringload.packing.generators import OwnGenerators, take_made
from ringload.packing.pack import generators_of
from ringload.packing.unpack import unpack
from ringload.torch.dataloader.tree import Encoded, MisfitError, Node, leaves, writer
from ringload.torch.dataloader.values import PLAIN, Encoder, NoRoomError, decode

WRITTEN = 0
SMALL = 1 << 16  # characters of a string, at most
MASK = (1 << 64) - 1
STATUS = Field((), "int64")


@dataclass
class WorkerSpec:
    """What a worker needs from the user, pickled once. `collate_fn` is None if a row is a sample; `batched`: keys come in
    lists."""

    dataset: Any
    collate_fn: Callable[[Any], Any] | None
    worker_init_fn: Callable[[int], Any] | None
    batched: bool
    base_seed: int


class TorchSource:
    """See the module's text. `spec` is a WorkerSpec, or a pickled one. This `Source` seeds the users' generators itself."""

    random = global_random = False
    calls_user_code = True

    def __init__(
        self, spec: WorkerSpec | bytes, tree: Node | None, fields: dict[str, Field], allow_pickle: bool, n_workers: int
    ) -> None:
        self._spec, self._tree, self._n_workers = spec, tree, n_workers
        self.fields = fields
        self._allow_pickle = allow_pickle
        self._init_error: Exception | None = None
        self._seeding = False

    def start(self, worker: Worker) -> None:
        """Begin as torch's workers do: one thread, seeds, `get_worker_info()`, then the user's `worker_init_fn`."""
        is_packed = isinstance(self._spec, bytes)
        spec = unpack(self._spec) if isinstance(self._spec, bytes) else self._spec
        self._spec = spec  # frees the bytes
        self._dataset, self._collate, self._batched = spec.dataset, spec.collate_fn, spec.batched
        self._own = OwnGenerators(take_made()) if is_packed else generators_of(spec)
        self._pid = os.getpid()
        self._first, self._gathered = 0, list[list[Any]]()  # rows of the task: the first, and the parts to encode of each
        self._encoder = Encoder(self._allow_pickle)
        self._write = writer(self._tree) if self._tree is not None else None
        self._paths = [leaf.path for leaf in leaves(self._tree) if isinstance(leaf, Encoded)] if self._tree is not None else []
        seed = spec.base_seed + worker.id
        seed_all(seed)
        become_torch_worker(self._dataset, worker.id, self._n_workers, seed)
        if spec.worker_init_fn is not None:
            try:
                spec.worker_init_fn(worker.id)
            except BaseException as error:  # as with torch, raised in place of a batch
                self._init_error = without_frames(as_error(error, self._pid))
        self._generators = Generators()

    def __len__(self) -> int:
        return len(self._dataset)

    def load(self, index: int, rng: None, out: Row) -> None:
        """Load one row. Raises what the user's code raises, and TypeError for a part that cannot be encoded."""
        if self._init_error is not None:
            raise self._init_error.with_traceback(None)  # else each raise would extend its traceback
        out.written()
        rows, row = self._rows, out.number
        if self._seeding or self._own.are_set:
            seed = seed_of(self._places[row])
            if self._seeding:
                seed_all(seed)
            self._own.set(seed)
        try:
            if self._write is None:
                self._encoder.encode(*self._whole(self._keys[row]), rows["encoded"][row])
            else:
                to_encode: list[Any] = []
                self._write(self._dataset[self._keys[row]], row, rows, to_encode)
                if to_encode:
                    self._gather(row, to_encode, rows["encoded"])
        except NoRoomError as error:
            rows["status"][row] = error.n_bytes
        except MisfitError as error:
            rows["status"][row] = -1 - error.number
        except Exception:
            raise
        except BaseException as error:
            raise as_error(error, self._pid) from error

    def begin_task(self, rows: dict[str, np.ndarray]) -> None:
        """Begin a task, or begin it again: `rows` is field -> `(n, *shape)` of it."""
        self._rows = rows
        self._first, self._gathered = 0, []
        self._keys = [decode(key, self._allow_pickle) for key in rows["key"]] if "key" in rows else rows["index"].tolist()
        self._places = rows["place"].tolist()
        rows["status"][:] = WRITTEN

    def _gather(self, row: int, to_encode: list[Any], into: np.ndarray) -> None:
        """Encode the parts of several rows of a task together: encoding rows one by one takes ten times as long. Only small
        rows are gathered, so that no more memory is held than for one sample. A row that failed leaves a gap; the rows gathered
        before it are dropped, as their batch is."""
        if row != self._first + len(self._gathered):
            self._first, self._gathered = row, []
        self._gathered.append(to_encode)
        if row + 1 == len(into) or not all(map(_is_small, to_encode)):
            first, gathered = self._first, self._gathered
            self._first, self._gathered = row + 1, []
            self._encoder.encode_rows(gathered, self._paths, into[first : row + 1])

    def _whole(self, key: Any) -> tuple[Any, str]:
        """The result for a key, and its name in messages."""
        assert self._collate is not None
        if not self._batched:
            return self._collate(self._dataset[key]), "sample"
        return self._collate(fetch(self._dataset, key)), "batch"

    def load_again(self) -> bool:
        """Whether the task has drawn its first number. From then on, every row is seeded."""
        have_moved = not self._seeding and self._generators.have_moved()
        self._seeding |= have_moved
        return self._own.were_used((self._dataset, self._collate)) or have_moved


def become_torch_worker(dataset: Any, worker_id: int, n_workers: int, seed: int) -> None:
    """Make this process what a worker of torch's is: of one thread, with `get_worker_info()`."""
    torch.set_num_threads(1)
    if collate.default_collate_fn_map.get(torch.Tensor) is collate.collate_tensor_fn:
        collate.default_collate_fn_map[torch.Tensor] = _stack
    torch_worker._worker_info = torch_worker.WorkerInfo(id=worker_id, num_workers=n_workers, seed=seed, dataset=dataset)


def as_error(error: BaseException, pid: int) -> Exception:
    """The RuntimeError for a SystemExit, KeyboardInterrupt or GeneratorExit of the user's code, which counts as an error of
    the sample; an Exception as it is. But in a child that this code has forked from the worker `pid`, the exception is raised,
    and ends the child."""
    if isinstance(error, Exception):
        return error
    if os.getpid() != pid:
        raise error
    made = RuntimeError(f"{type(error).__name__} was raised by the dataset, by collate_fn or by worker_init_fn")
    made.__cause__ = error
    return made


def _is_small(value: Any) -> bool:
    kind = type(value)
    return len(value) <= SMALL if kind is str or kind is bytes else kind in PLAIN


def fetch(dataset: Any, keys: list[Any]) -> list[Any]:
    """Load the samples of a batch, as torch does."""
    if getattr(dataset, "__getitems__", None):
        samples: list[Any] = dataset.__getitems__(keys)
        return samples
    return [dataset[key] for key in keys]


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch. (`torch.manual_seed` takes 200 us, as it also seeds each kind of
    GPU.)"""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


class Generators:
    """The states of the global generators at the time of construction."""

    def __init__(self) -> None:
        self._state: tuple[Any, Any, torch.Tensor] = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
        self._words: bytes | None = None if self._state[1]["has_gauss"] else _numpy_words()

    def have_moved(self) -> bool:
        """Whether a number was drawn since. Takes 20 us for Python's generator, 4 for torch's, and 2 for NumPy's, or 90 if
        NumPy's keeps a normal number for its next call, which the words of its state do not show (2-core VM, November 2026). Of
        Python's state, the last four words and the position suffice: all words are new before the position repeats."""
        (_, words, gauss), of_numpy, of_torch = self._state
        if not torch.equal(of_torch, torch.get_rng_state()):
            return True
        _, words_now, gauss_now = random.getstate()
        if words[-5:] != words_now[-5:] or gauss != gauss_now:
            return True
        if self._words is not None and (numpy_now := _numpy_words()) is not None:
            return self._words != numpy_now
        now = np.random.get_state(legacy=False)
        return (
            any(now[name] != of_numpy[name] for name in ("bit_generator", "has_gauss", "gauss"))
            or now["state"]["pos"] != of_numpy["state"]["pos"]
            or not np.array_equal(now["state"]["key"], of_numpy["state"]["key"])
        )

    def text(self) -> dict[str, Any]:
        """The states, for JSON."""
        (version, words, gauss), of_numpy, of_torch = self._state
        return {
            "python": [version, text_of(np.array(words, np.uint32)), gauss],
            "numpy": of_numpy | {"state": of_numpy["state"] | {"key": text_of(of_numpy["state"]["key"])}},
            "torch": text_of(of_torch.numpy()),
        }

    @classmethod
    def of_text(cls, text: dict[str, Any]) -> Generators:
        """The inverse of `text`."""
        generators, of_numpy, (version, words, gauss) = cls(), text["numpy"], text["python"]
        generators._state = (
            (version, tuple(array_of(words, np.uint32).tolist()), gauss),
            of_numpy | {"state": of_numpy["state"] | {"key": array_of(of_numpy["state"]["key"], np.uint32)}},
            torch.from_numpy(array_of(text["torch"], np.uint8)),
        )
        return generators

    def restore(self) -> None:
        """Set the global generators to these states."""
        of_python, of_numpy, of_torch = self._state
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


def _numpy_words() -> bytes | None:
    """The memory of NumPy's global MT19937: 624 words and a position. None if the global generator is another one."""
    generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
    return ctypes.string_at(generator.ctypes.state_address, 2500) if type(generator) is np.random.MT19937 else None


def text_of(array: np.ndarray) -> str:
    """An array's bytes as text, for JSON."""
    return base64.b64encode(array.tobytes()).decode()


def array_of(text: str, dtype: Any) -> np.ndarray:
    """The inverse of `text_of`."""
    return np.frombuffer(bytearray(base64.b64decode(text)), dtype)


def seed_of_pass(base_seed: int, n_before: int) -> int:
    """The seed of a pass after `n_before` passes with the same base seed. For the first pass, the base seed."""
    return (base_seed + n_before * 0xD1B54A32D192ED03) & MASK


def places(seed: int, number: int, n_rows: int) -> np.ndarray:
    """The places of the rows of batch `number` of a pass, `(n_rows,) int64`, from which `seed_of` makes their seeds."""
    return (np.arange(n_rows, dtype=np.uint64) + np.uint64((seed + (number << 32)) & MASK)).view(np.int64)


def seed_of(place: int) -> int:
    """The seed of a row, from 0 on: SplitMix64 (Steele, Lea, Flood 2014). Computed in workers, only when rows are seeded."""
    mixed = (place & MASK) * 0x9E3779B97F4A7C15 & MASK
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & MASK
    return (mixed ^ (mixed >> 31)) >> 1


def _stack(batch: list[Any], *, collate_fn_map: Any = None) -> Any:
    """torch's collation of tensors. Without worker info, it uses ordinary memory, not /dev/shm."""
    info, torch_worker._worker_info = torch_worker._worker_info, None
    try:
        return collate.collate_tensor_fn(batch, collate_fn_map=collate_fn_map)
    finally:
        torch_worker._worker_info = info
