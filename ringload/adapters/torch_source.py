"""A torch dataset in a producer: loads the samples that a row asks for, and writes them, or says why they do not fit.

Two modes. In "rows", a row is one sample: its fixed leaves go into fields, the rest is encoded beside them. In "whole", a row
is the result of one call for a whole batch (a `collate_fn` of the user's, `__getitems__`), or a sample for batch_size=None; it
is encoded.

The trainer lists of each row: `index`, which names it in messages; `seed` () int64; `key` (K,) uint8, the encoded key or
keys, unless every key is its `index` (K = 0: the field is not there). The producer writes `status` () int64: WRITTEN; the
bytes that what is beside takes, if there is less room; or -1 - number for a node of the plan that the sample does not fit.

Randomness: `random`, `numpy.random` and torch's global generator are seeded with the row's seed before it is loaded, so that
what is drawn does not depend on who loads it. That costs 10 us a row, so it is done from the first task on in which anything
was drawn (that task is loaded again): where nothing is drawn, no seed matters.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils import collate, worker

from ringload.adapters.torch_tree import Beside, Misfit, Node, leaves, writer
from ringload.adapters.torch_values import Encoder, NoRoom, decode
from ringload.data.fields import Field, Producer
from ringload.data.sharing import unpack

WRITTEN = 0
MASK = (1 << 64) - 1
STATUS = Field((), "int64")


@dataclass
class Bundle:
    """What is the user's, pickled once. `collate` is None for rows; `batched`: keys come in lists."""

    dataset: Any
    collate: Callable[[Any], Any] | None
    worker_init_fn: Callable[[int], Any] | None
    batched: bool
    base_seed: int


class TorchSource:
    """See the module's text. `bundle` is a Bundle, or a pickled one."""

    def __init__(
        self, bundle: Bundle | bytes, tree: Node | None, fields: dict[str, Field], allow_pickle: bool, n_workers: int
    ) -> None:
        self._bundle, self._tree, self._n_workers = bundle, tree, n_workers
        self.fields = fields
        self._allow_pickle = allow_pickle
        self._init_error: Exception | None = None
        self._seeding = False

    def start(self, producer: Producer) -> None:
        """As torch's workers begin: one thread, seeds, `get_worker_info()`, then the user's `worker_init_fn`."""
        bundle = unpack(self._bundle) if isinstance(self._bundle, bytes) else self._bundle
        self._dataset, self._collate, self._batched = bundle.dataset, bundle.collate, bundle.batched
        self._encoder = Encoder(self._allow_pickle)
        self._write = writer(self._tree) if self._tree is not None else None
        self._paths = [leaf.path for leaf in leaves(self._tree) if isinstance(leaf, Beside)] if self._tree is not None else []
        torch.set_num_threads(1)
        if collate.default_collate_fn_map.get(torch.Tensor) is collate.collate_tensor_fn:
            collate.default_collate_fn_map[torch.Tensor] = _stack
        seed = bundle.base_seed + producer.id
        seed_all(seed)
        worker._worker_info = worker.WorkerInfo(id=producer.id, num_workers=self._n_workers, seed=seed, dataset=self._dataset)
        if bundle.worker_init_fn is not None:
            try:
                bundle.worker_init_fn(producer.id)
            except Exception as error:  # as with torch, it is said in place of a batch
                self._init_error = error
        self._generators = Generators()

    def load_row(self, row: int, rows: dict[str, np.ndarray]) -> None:
        """Load one row. What the user's code raises, and a TypeError for what cannot be encoded, is raised."""
        if self._init_error is not None:
            raise self._init_error
        if self._seeding:
            seed_all(int(rows["seed"][row]))
        key = decode(rows["key"][row], self._allow_pickle) if "key" in rows else int(rows["index"][row])
        status = WRITTEN
        try:
            if self._write is None:
                self._encoder.encode(*self._whole(key), rows["beside"][row])
            else:
                beside: list[Any] = []
                self._write(self._dataset[key], row, rows, beside)
                if beside:
                    self._encoder.encode_all(beside, self._paths, rows["beside"][row])
        except NoRoom as there_is:
            status = there_is.n_bytes
        except Misfit as there_is:
            status = -1 - there_is.number
        rows["status"][row] = status

    def _whole(self, key: Any) -> tuple[Any, str]:
        """One result, and what it is called in messages."""
        assert self._collate is not None
        if not self._batched:
            return self._collate(self._dataset[key]), "sample"
        return self._collate(fetch(self._dataset, key)), "batch"

    def again(self) -> bool:
        """Whether the first thing was drawn: then everything is seeded from now on."""
        if not self._seeding and self._generators.have_moved():
            self._seeding = True
            return True
        return False


def fetch(dataset: Any, keys: list[Any]) -> list[Any]:
    """The samples of a batch, as torch fetches them."""
    if getattr(dataset, "__getitems__", None):
        samples: list[Any] = dataset.__getitems__(keys)
        return samples
    return [dataset[key] for key in keys]


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch. `torch.manual_seed` asks for each kind of GPU: 200 us."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


class Generators:
    """The state of the global generators as it is now."""

    def __init__(self) -> None:
        self._state: tuple[Any, Any, torch.Tensor] = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()

    def have_moved(self) -> bool:
        """Whether anything was drawn since. The last is the cheapest to ask, the first the most often drawn from."""
        of_python, of_numpy, of_torch = self._state
        now = np.random.get_state(legacy=False)
        return (
            not torch.equal(of_torch, torch.get_rng_state())
            or of_python != random.getstate()
            or any(now[name] != of_numpy[name] for name in ("has_gauss", "gauss"))
            or now["state"]["pos"] != of_numpy["state"]["pos"]
            or not np.array_equal(now["state"]["key"], of_numpy["state"]["key"])
        )

    def text(self) -> dict[str, Any]:
        """For JSON."""
        (version, words, gauss), of_numpy, of_torch = self._state
        return {
            "python": [version, text_of(np.array(words, np.uint32)), gauss],
            "numpy": of_numpy | {"state": of_numpy["state"] | {"key": text_of(of_numpy["state"]["key"])}},
            "torch": text_of(of_torch.numpy()),
        }

    @classmethod
    def of_text(cls, text: dict[str, Any]) -> Generators:
        """The other way round."""
        generators, of_numpy, (version, words, gauss) = cls(), text["numpy"], text["python"]
        generators._state = (
            (version, tuple(array_of(words, np.uint32).tolist()), gauss),
            of_numpy | {"state": of_numpy["state"] | {"key": array_of(of_numpy["state"]["key"], np.uint32)}},
            torch.from_numpy(array_of(text["torch"], np.uint8)),
        )
        return generators

    def restore(self) -> None:
        """As it was."""
        of_python, of_numpy, of_torch = self._state
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


def text_of(array: np.ndarray) -> str:
    """An array's bytes, for JSON."""
    return base64.b64encode(array.tobytes()).decode()


def array_of(text: str, dtype: Any) -> np.ndarray:
    """The other way round."""
    return np.frombuffer(bytearray(base64.b64decode(text)), dtype)


def seed_of_pass(base_seed: int, n_before: int) -> int:
    """The seed of a pass before which there were `n_before` with the same base seed: that itself, for the first."""
    return (base_seed + n_before * 0xD1B54A32D192ED03) & MASK


def seeds(seed: int, number: int, n_rows: int) -> np.ndarray:
    """The seeds of the rows of batch `number` of a pass, `(n_rows,) int64`, from 0 on: SplitMix64 (Steele, Lea, Flood 2014)."""
    rows = np.arange(n_rows, dtype=np.uint64) + np.uint64(number << 32 & MASK)
    mixed = (rows + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def _stack(batch: list[Any], *, collate_fn_map: Any = None) -> Any:
    """torch's collation of tensors, without its detour by /dev/shm in workers."""
    info, worker._worker_info = worker._worker_info, None
    try:
        return collate.collate_tensor_fn(batch, collate_fn_map=collate_fn_map)
    finally:
        worker._worker_info = info
