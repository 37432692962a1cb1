"""A torch IterableDataset in a worker: reads its next batch, collates it, and writes it encoded, in one or more slots.

    iter(dataset) -> batch_size samples -> collate_fn -> encoded -> pieces of the size of a slot -> the trainer

Each worker has a copy of the dataset, and iterates over the whole copy, as torch's workers do: `get_worker_info()` tells it
which share is its own. A row of the ring is a piece of a batch. The trainer writes `told` into it, the worker the rest:
    told    (9,) int64: the pass; how many passes with the same base seed were before it; whether the mark that follows is known
            (else the worker is there already); the mark before this row
    mark    (6,) int64: where the worker is behind this row, see `Mark`
    status  () int64: the bytes of the batch that are left for the worker's next rows; or END, the worker has no more batches
    encoded (n,) uint8: the piece

A worker that takes the place of a dead one reads again what was read before: with the same seeds, the same samples and calls
of collate_fn. `Mark` has a checksum of the last batch, so that a dataset that gives something else then is noticed.

Random numbers: `random`, `numpy.random` and torch's generator are seeded once, with torch's own seeds, so what is drawn is what
torch's workers draw. Persistent workers are seeded again for each later pass.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate, default_convert
from torch.utils.data._utils import worker as torch_worker

from ringload.errors import without_frames
from ringload.fields import Field, Row, Worker
from ringload.packing.unpack import unpack
from ringload.torch.dataloader.source import Generators, as_error, become_torch_worker, seed_of_pass
from ringload.torch.dataloader.values import Encoder, NoRoomError, written_bytes

END = -1
CHECKED_BYTES = 1 << 13  # of an encoded batch: its beginning
DRAW_NOTHING = (default_collate, default_convert)


class Mark(NamedTuple):
    """Where a worker is in a pass: it has read `n_batches` batches, of `n_samples` samples in all. Of the last of them, which
    has `n_bytes` encoded, whose beginning has this `checksum`, the trainer has been given `n_sent`. `is_over`: none follow."""

    n_batches: int = 0
    n_samples: int = 0
    n_bytes: int = 0
    n_sent: int = 0
    checksum: int = 0
    is_over: int = 0


N_MARK = len(Mark._fields)


@dataclass
class IterableSpec:
    """What a worker needs from the user, pickled once. `batch_size` is None where samples are not collated."""

    dataset: Any
    collate_fn: Callable[[Any], Any]
    worker_init_fn: Callable[[int], Any] | None
    batch_size: int | None
    drop_last: bool
    base_seed: int


def fields(encoded_bytes: int) -> dict[str, Field]:
    """The fields of a row whose piece has up to so many bytes."""
    return {
        "told": Field((3 + N_MARK,), "int64"),
        "mark": Field((N_MARK,), "int64"),
        "status": Field((), "int64"),
        "encoded": Field((encoded_bytes,), "uint8"),
    }


class IterableSource:
    """See the module's text. `spec` is an IterableSpec, or a pickled one. A `Source` of rows in an order of their own."""

    random = global_random = False
    calls_user_code = True

    def __init__(self, spec: IterableSpec | bytes, encoded_bytes: int, allow_pickle: bool, n_workers: int) -> None:
        self._spec, self._allow_pickle, self._n_workers = spec, allow_pickle, n_workers
        self.fields = fields(encoded_bytes)

    def __len__(self) -> int:
        return 0

    def start(self, worker: Worker) -> None:
        """Begin as torch's workers do: one thread, torch's seeds, `get_worker_info()`, then the user's `worker_init_fn`."""
        self._spec = spec = unpack(self._spec) if isinstance(self._spec, bytes) else self._spec
        self._id, self._pid = worker.id, os.getpid()
        self._encoder = Encoder(self._allow_pickle)
        self._pass, self._mark = -1, Mark()
        self._samples: Iterator[Any] | None = None
        self._rest = np.empty(0, np.uint8)  # of a batch that did not fit into a row
        self._init_error: Exception | None = None
        self._seed(spec.base_seed)
        become_torch_worker(spec.dataset, worker.id, self._n_workers, spec.base_seed + worker.id)
        if spec.worker_init_fn is not None:
            try:
                spec.worker_init_fn(worker.id)
            except BaseException as error:  # as with torch, raised in place of a batch
                self._init_error = without_frames(as_error(error, self._pid))
        self._begin = Generators()

    def _seed(self, base_seed: int) -> None:
        seed = base_seed + self._id
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        np.random.seed(torch_worker._generate_state(base_seed, self._id))

    # -- a row --------------------------------------------------------------------------------------------------------

    def begin_task(self, rows: dict[str, np.ndarray]) -> None:
        """Begin a row: `rows` is field -> `(1, *shape)`."""
        self._row = {name: rows[name][0] for name in self.fields if name != "status"} | {"status": rows["status"]}
        self._told: list[int] = self._row["told"].tolist()
        self._was_loaded = False

    def load(self, index: int, rng: None, out: Row) -> None:
        """Write the next piece. Raises what the user's code raises, and TypeError for a part that cannot be encoded."""
        out.written()
        self._was_loaded = True
        try:
            self._load(self._row)
        except Exception:
            raise
        except BaseException as error:
            raise as_error(error, self._pid) from error

    def load_again(self) -> bool:
        """Samples cannot be read again."""
        return False

    def end_task(self) -> None:
        """Tell the trainer where the worker is. What has killed its worker twice is not read: this worker's pass is over."""
        if not self._was_loaded:
            self._pass, self._mark = self._told[0], Mark(is_over=1)
        self._row["mark"][:] = self._mark

    def _load(self, row: dict[str, np.ndarray]) -> None:
        pass_id, n_before, is_known, *numbers = self._told
        if is_known and (pass_id, Mark(*numbers)) != (self._pass, self._mark):
            self._go_to(pass_id, n_before, Mark(*numbers))
        row["status"][...] = 0
        if self._mark.n_sent == self._mark.n_bytes and (self._mark.is_over or not self._read(row["encoded"])):
            row["status"][...] = END
            return
        if len(self._rest):
            n = min(len(self._rest), len(row["encoded"]))
            row["encoded"][:n], self._rest = self._rest[:n], self._rest[n:]
            self._mark = self._mark._replace(n_sent=self._mark.n_sent + n)
        row["status"][...] = len(self._rest)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _go_to(self, pass_id: int, n_before: int, mark: Mark) -> None:
        """Open the dataset, and read it up to the mark."""
        spec = self._spec
        assert isinstance(spec, IterableSpec)
        self._pass, self._mark, self._rest = pass_id, Mark(is_over=1), np.empty(0, np.uint8)  # for what is raised here
        if self._init_error is not None:
            raise self._init_error.with_traceback(None)
        if mark.is_over and mark.n_sent == mark.n_bytes:
            self._mark = mark
            return
        if n_before:
            self._seed(seed_of_pass(spec.base_seed, n_before))
        else:
            self._begin.restore()
        self._samples = iter(spec.dataset)
        self._mark = Mark()
        for number in range(mark.n_batches):
            try:
                self._read(None, is_wanted=number + 1 == mark.n_batches)
            except Exception:  # it was raised when the batch was read first
                continue
        now = self._mark
        if now._replace(n_sent=mark.n_sent) != mark:
            self._mark = Mark(is_over=1)
            raise RuntimeError(
                f"the dataset of worker {self._id} was read again after its worker was ended, and gives other samples: batch "
                f"{mark.n_batches:,} ends behind {mark.n_samples:,} samples and has {mark.n_bytes:,} bytes, and it is behind "
                f"{now.n_samples:,} and has {now.n_bytes:,} now, or its content differs. Make what the dataset gives depend on "
                "get_worker_info() and the global generators alone, so that a worker's death loses nothing"
            )
        self._rest, self._mark = self._rest[mark.n_sent :], mark

    def _read(self, into: np.ndarray | None, is_wanted: bool = True) -> bool:
        """Read a batch, and encode it into a row, or to `_rest` where it does not fit. Returns whether there was one."""
        spec, mark = self._spec, self._mark
        assert isinstance(spec, IterableSpec)
        n_samples, is_over = mark.n_samples, 0
        try:
            samples: list[Any] = []
            for _ in range(1 if spec.batch_size is None else spec.batch_size):
                sample = self._next()
                if sample is END_OF_SAMPLES:
                    is_over = 1
                    break
                n_samples += 1
                samples.append(sample)
            if not samples or (spec.drop_last and spec.batch_size is not None and len(samples) < spec.batch_size):
                self._mark = mark._replace(n_samples=n_samples, n_bytes=0, n_sent=0, checksum=0, is_over=1)
                return False
            # while what was read is read again, only a collate_fn that may draw is called
            value = None
            if is_wanted or spec.collate_fn not in DRAW_NOTHING:
                value = self._collated(samples[0] if spec.batch_size is None else samples)
        except BaseException:
            self._mark = Mark(mark.n_batches + 1, n_samples, is_over=is_over)
            raise
        self._mark = Mark(mark.n_batches + 1, n_samples, is_over=is_over)
        if is_wanted:
            self._encode(value, into)
        return True

    def _next(self) -> Any:
        assert self._samples is not None
        try:
            return next(self._samples)
        except StopIteration:
            return END_OF_SAMPLES

    def _collated(self, samples: Any) -> Any:
        assert isinstance(self._spec, IterableSpec)
        try:
            return self._spec.collate_fn(samples)
        except StopIteration as error:  # torch would take it for the end of the dataset
            raise RuntimeError("StopIteration was raised by collate_fn: an iterator in it is exhausted") from error

    def _encode(self, value: Any, into: np.ndarray | None) -> None:
        what = "sample" if isinstance(self._spec, IterableSpec) and self._spec.batch_size is None else "batch"
        try:
            if into is None:
                raise NoRoomError(self._encoder.n_bytes(value, what))
            into[:CHECKED_BYTES] = 0  # what alignment leaves free shall not change the checksum
            self._encoder.encode(value, what, into)
            n_bytes = n_sent = written_bytes(into)
        except NoRoomError as error:
            n_bytes, n_sent = error.n_bytes, 0
            self._rest = into = np.zeros(n_bytes, np.uint8)
            self._encoder.encode(value, what, into)
        checksum = zlib.crc32(into[: min(n_bytes, CHECKED_BYTES)].data)
        self._mark = self._mark._replace(n_bytes=n_bytes, n_sent=n_sent, checksum=checksum)


END_OF_SAMPLES = object()
