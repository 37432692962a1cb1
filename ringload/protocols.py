"""The seams: what users and other packages plug into ringload, as typed protocols.

    Source      what a sample is, and how one is loaded
    Order       which samples are in the rows of each batch, and what each row draws by
    Storage     from a key to bytes: local files, and what `register_storage` adds
    Workers     what fills the slots of the ring: processes, the trainer itself, threads, another engine
    Observer    what is told of batches, stalls, deaths, restarts, growth and bad samples

An object needs no base class: it has the methods. A method that is optional gets its default in one place: `sources.bind` for
sources, the body below for workers and observers that name the protocol as their base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from ringload.system.deaths import Death

if TYPE_CHECKING:
    from ringload.bad_sample import Bad
    from ringload.ring.layout import Layout
    from ringload.ring.slots import InFlightBatch, TaskResult
    from ringload.workers.current_work import CurrentWork
    from ringload.workers.records import Task, WorkerReport
    from ringload.workers.start import Start

Last = Literal["drop", "keep", "pad"]  # how a loader treats samples that do not fill a batch
PAD = -1  # in place of a sample's index: the row holds none


class NoMoreRowsError(Exception):
    """What `Source.load` raises where a part of a stream has ended: this row of the task, and those after it, hold none."""


class Source(Protocol):
    """What a sample is, and how one is loaded. Samples are numbered 0..N-1.

    Example:
        class Squares:
            fields = {"x": ringload.Field((), "int64"), "noise": ringload.Field((8,), "float32")}

            def __len__(self):
                return 1_000_000

            def load(self, index, rng, out):      # out: field -> its row, to be written
                out["x"] = index * index
                out["noise"][:] = rng.random(8, np.float32)

    Optional, in a source's class:
        load_rows(indices, rngs, out)   loads several samples in one call: `indices (n,) int64`, `rngs` a sequence of n
                                        generators, `out` a dict: field -> `(n, *shape) dtype`. One of load and load_rows is
                                        enough
        prefetch(indices)               these samples are loaded next: begin to read them, and do not wait. Or a coroutine: then
                                        they are loaded once it has ended. load has to work without it, too: it is not
                                        called with workers=0, for a substitute of a bad sample, or where it killed a worker
        is_ready(indices)               whether these samples can be loaded without waiting: of several tasks that a worker has,
                                        it fills the first that is ready
        forget(indices)                 the task of these samples is over, for which prefetch was called: let go of what was
                                        read, and not used
        threads = 16                    so many threads of a worker call load at once, as it waits for a network, say. load then
                                        draws from `rng` alone: the global generators are not seeded. (An ImageFrame loads one
                                        image at a time: its files are read ahead in another way)
        start(worker)                   called once in each worker, before anything else; `worker` is a `ringload.Worker`
        describe(index)                 a sample in words (its path), for messages
        begin_task(rows)                some rows are loaded next, one by one: field -> `(n, *shape)`, with what the order has
                                        written there
        order_fields = ("a", "b")       the fields that its order writes, and no other order; see `Rows.fields`
        load_again()                    called after the rows of a task: True, and all of them are loaded once more
        end_task()                      called when a task is over
        scratch_bytes                   the most memory that loading one sample may take, beside its row
        fingerprint()                   a value that JSON can hold, and that differs from that of other data, or of the same
                                        data in another order: a loader's state holds it, and is refused by another source
        column(name)                    the values `(N,)` of a column, for orders that name one (`ringload.Weighted("weight")`)
        default_order                   the order of a loader that is given no order=
        rows_of(indices)                the rows `(n,)` of the user's table or arrays that samples are, for `Loader.batch_rows`
        refuses_large = True            the source refuses samples that need more memory than there is (`Worker.max_bytes`)
        random = False                  loading draws nothing: `rng` is None
        global_random = False           loading draws nothing from `random` or `numpy.random`: they are not seeded for it
        calls_user_code = True          of ringload's own sources: this one calls the user's code
        is_own = False                  of ringload's own sources: describe() calls the user's code, too
        ahead_bytes                     of scratch_bytes: what the source keeps between samples (bytes that are read ahead)
    """

    fields: Mapping[str, Any]  # name -> Field, or (shape, dtype)

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        """Write sample `index` into `out`, a `ringload.fields.Row`. `rng` is valid during the call."""
        ...


@dataclass(slots=True)
class Rows:
    """What is in the rows of a batch.

    `index`: the sample of each row, `(n,) int64`; PAD (-1) where there is none. `key`: what each row draws by, `(n,) int64`
    from 0 on; None where that is its index. `fields`: what else the order knows of its rows: field of the source -> `(n,
    *shape)`. `part`: the part of a stream that the rows belong to, if any: one worker fills all batches of a part, one after
    another.
    """

    index: np.ndarray
    key: np.ndarray | None = None
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)
    part: int | None = None


class PositionOrder(Protocol):
    """Which sample is at each position of an epoch. The loader cuts the positions into batches, and shares them among ranks.

    Batch k of rank r of `world` has the positions `(k * batch_size + i) * world + r`. So the first positions of an epoch are
    gone when all ranks have received as many batches, and a loader with another batch size or number of ranks can go on there.
    That is what an `Order` of whole batches cannot do.

    An order is arithmetic: for the same (epoch, position) it gives the same sample, whenever and however often it is asked.

    Example:
        class EvenFirst:                               # all even samples, then all odd ones
            def __init__(self, n_samples):
                self.n_samples = n_samples

            def n_positions(self, epoch):
                return self.n_samples

            def at(self, epoch, positions):
                n_even = (self.n_samples + 1) // 2
                return ringload.Rows(np.where(positions < n_even, 2 * positions, 2 * (positions - n_even) + 1))

    Optional, in an order's class:
        state()             a dict that JSON can hold, and that differs from that of an order with other arguments: a loader's
                            state holds it, and is refused by another order. By default: the name of the class
        shuffle = False     the samples come in the order of the source, for messages
    """

    def n_positions(self, epoch: int) -> int:
        """How many positions an epoch has, 1 or more."""
        ...

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        """The samples at `positions (n,) int64`, each from 0 to n_positions - 1, in any order; and what they draw by, where
        that is not their index."""
        ...


@dataclass(frozen=True)
class Binding:
    """What a description of an order, such as `ringload.Weighted`, is bound to: `bind(binding)` returns a `PositionOrder` or an
    `Order`. `column(name)` gives the values `(N,)` of a column of the source; `epoch` is the first that it is asked for; `last`
    is the loader's; `shuffle` is the loader's argument, for the order that a source has of its own."""

    n_samples: int
    batch_size: int
    seed: int
    column: Callable[[str], np.ndarray]
    epoch: int = 0
    last: Last = "drop"
    shuffle: bool = True


class Order(Protocol):
    """Which samples are in the rows of each batch of each epoch, and what they draw by.

    Ranks take turns: rank r of `world` has batches r, r + world, r + 2 * world, ...

    An order is arithmetic: for the same (epoch, number) it gives the same rows, whenever and however often it is asked. A
    sample that comes twice in an epoch has a key of its own each time, its position say, or both would be augmented alike.

    Example:
        class Weighted:                                # samples by weights, with replacement
            def __init__(self, weights, n_batches, batch_size):
                self.edges, self.n, self.size = np.cumsum(weights) / np.sum(weights), n_batches, batch_size

            def n_batches(self, epoch):
                return self.n

            def rows(self, epoch, number):
                positions = np.arange(number * self.size, (number + 1) * self.size)
                drawn = np.random.default_rng((epoch, number)).random(self.size)
                return ringload.Rows(np.searchsorted(self.edges, drawn), key=positions)

    Optional, in an order's class:
        heard(epoch, number, slot, is_lent) called with the arrays of a full batch, field -> `(B, ...)`: when it is lent, and
                                        before unfinished batches are filled again. Returns how many rows the batch shows; 0
                                        and it is not given to the trainer. `n_batches` may become smaller, but not below
                                        number + 1
        unfilled(parts)                 called before `rows` of each batch that is posted, if the attribute `chooses` is True:
                                        the part (`Rows.part`) of each batch that was posted and is not filled
    """

    def n_batches(self, epoch: int) -> int:
        """How many batches an epoch has, 1 or more."""
        ...

    def rows(self, epoch: int, number: int) -> Rows | None:
        """What is in the rows of batch `number` of `epoch`; None while nobody knows: it is asked for again later."""
        ...


class ByteRange(NamedTuple):
    """Some bytes of a content, such as those of an archive's member. `version`: see `ContentStat`; "": any will do."""

    key: str
    start: int
    n_bytes: int
    version: str = ""


class ContentStat(NamedTuple):
    """How long a content is; and its `version`, which is another one once the content was changed (an ETag, a time)."""

    n_bytes: int
    version: str


class Storage(Protocol):
    """Gives the bytes that a key names: the content of a local file, of an object in a bucket, of a member of an archive.

    A key is a `str`. `ImageFrame` asks for a path from the root of the file system, or for a whole URL.

    `ringload.register_storage(scheme, factory)` plugs a storage in. Each process that reads calls `factory()` for a storage
    of its own, a fork too. So a storage is not pickled, and may hold threads and connections; `factory` is pickled. One
    thread at a time calls a storage.

    Example::

        class Memory:
            def __init__(self, contents: dict[str, bytes]) -> None:
                self._contents = contents

            def prefetch(self, keys: Sequence[str], max_bytes: int) -> None:
                pass  # all contents are here already

            def read(self, key: str, max_bytes: int) -> bytes:
                if (n_bytes := len(self._contents[key])) > max_bytes:
                    raise ringload.ContentTooLargeError(n_bytes, max_bytes)
                return self._contents[key]

            def close(self) -> None:
                pass

        ringload.register_storage("memory", functools.partial(Memory, contents))

    Optional, in a storage's class:
        is_ready(keys)                      whether `read` will not wait for any of these: they are there, or were not asked for
        forget(keys)                        let go of what was read ahead for these, once each, and was not read since `forget`
        stat(key)                           the `ringload.ContentStat` of a content
        read_range(part, max_bytes)         as `read`, for a `ringload.ByteRange` of an archive that is read in place. OSError
                                            if the content ends before, or has another version
        prefetch_ranges(parts, max_bytes)   as `prefetch`

    `ringload.ThreadedStorage` is a base class that has all of these but `stat`, and needs one method, `fetch`.
    """

    def prefetch(self, keys: Sequence[str], max_bytes: int) -> None:
        """Begin to read the contents that are read next, in this order, and do not wait for them.

        Of all contents that were asked for and not read yet, this process keeps `max_bytes` at most; what the kernel keeps
        does not count. `read` fetches what does not fit. Raise nothing: `read` says what is wrong with a key.
        """

    def read(self, key: str, max_bytes: int) -> bytes | bytearray | memoryview:
        """The whole content of a key.

        The caller does not write to it, and does not use it after the next `read`: a storage may use its memory again.

        Raises:
            ContentTooLargeError: the content has more than `max_bytes`. If possible, this is found out before it is read.
                The caller may ask again with a larger limit, once it has set the memory aside.
            Exception: the sample is a bad one, for this reason. The message names the key in any case.
        """

    def close(self) -> None:
        """Let go of what was read ahead, and of all connections. Called when the source is freed; a worker is killed without
        it. Idempotent."""


class Job(NamedTuple):
    """All that workers need to fill rows, whatever they are.

    `source`: the source, or where `Workers.needs_packed` its bytes (`packing.pack`). `seed`, `n_samples`: what randomness and
    substitutes are made of. `on_error`: "raise", "skip" or "replace". `max_sample_bytes`: the most memory that there is for one
    sample; 0 where nothing is set aside. `setup`: what is called before the source is used, where it is not in its bytes.
    `by_part`: batches belong to parts (`Rows.part`). `owners`, for workers of the user's own: of the descriptors of the ring's
    segment, which is the first, and of those that the packed source names. `sample_timeout`: seconds a sample may take, for
    workers whose tasks are so large that the engine cannot see it; None: no limit.
    """

    source: Any
    layout: Layout
    seed: int
    n_samples: int
    on_error: str
    scratch_bytes: int = 0
    max_sample_bytes: int = 0
    setup: Callable[[], Any] | None = None
    by_part: bool = False
    owners: Sequence[Owner] = ()
    sample_timeout: float | None = None


class Owner(Protocol):
    """The owner of a descriptor that workers need under the same number."""

    fd: int

    def close(self) -> None: ...


@dataclass
class Event:
    """What has happened to workers and memory since the last call: see `Workers.events`."""

    died: list[Death]
    n_reserved: int | None = None
    goal: int | None = None  # how many slots will be reserved
    short: str = ""  # why they are fewer than was asked for, where the system refused more
    server_died: bool = False


class Workers(Protocol):
    """What fills the slots of the ring. The engine calls these methods from one thread at a time, but for `wake`.

    A batch is split into tasks (`InFlightBatch.split`); a task is "fill rows a..b of slot s". Before a batch is posted, each
    row's index and draw key are in its slot. Whoever fills a task calls `workers.fill.Filler`, then reports it in `collect`.
    Where workers are threads of the trainer, or other machines, that is all; the other methods have defaults. tests/threads.py
    is an example of 100 lines.

    `n_workers`: how many tasks are filled at once; 0: `post` itself fills. `needs_packed`: the source is given as bytes.
    `max_ahead`: how many batches may be posted and not taken. `are_here`: the plan has to have room for them on this machine.
    `shares_memory`: they see what others of them write into memory of `Job.owners`. `task_s`: seconds that a task should take,
    long beside what it costs both sides.
    """

    n_workers: int
    needs_packed: bool = False
    max_ahead: int = 1 << 30  # the ring's slots bound it
    keeps_parts: bool = False  # one worker fills all batches of a part, in the order in which they are posted
    are_here: bool = True
    shares_memory: bool = True
    task_s: float = 0.016

    def open(self, job: Job, memory: np.ndarray) -> None:
        """Called once, before anything else: `memory` is the ring's segment, `(n_bytes,) uint8`."""
        ...

    def post(self, batches: Sequence[InFlightBatch]) -> int:
        """Have batches filled. Returns how many of them; the others are posted again later."""
        ...

    def collect(self) -> tuple[list[WorkerReport], list[TaskResult]]:
        """What was reported since the last call, without waiting: bad samples, and tasks that are done."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait until a slot is full, or there is an event, or `wake` is called. False: the time is over."""
        ...

    def wake(self) -> None:
        """End a wait, from another thread or a signal handler."""
        ...

    def close(self) -> None:
        """End for good; also where `open` failed half-way. Idempotent."""
        ...

    def take_back(self) -> list[Task]:
        """Take what is posted and not begun: it will not be filled."""
        return []

    def start(self, start: Start, n_reserved: int) -> None:
        """Begin, or begin again after `clear`: so many slots are reserved."""
        return

    def events(self) -> Event:
        """Deaths, and memory that was reserved, without waiting."""
        return Event([])

    def clear(self) -> Event:
        """End whatever may still write into slots. What was reported before can still be collected."""
        return self.events()

    def forget(self, batches: Iterable[InFlightBatch]) -> None:
        """After `clear`: nothing is posted or being filled, and the tasks of `batches` are done as `is_done` says."""
        return

    def renew(self, source: Any, setup: Callable[[], Any] | None, owners: Sequence[Owner]) -> None:
        """After `clear`: from the next start on another source is loaded (see `Job`), whose descriptors have these owners."""
        return

    def end(self, worker_id: int) -> None:
        """End this worker at the next `clear`, as it takes too long for a sample. Not needed where `clear` ends all."""
        return

    def most_rows(self, n_rows: int, n_slots: int) -> int:
        """How many rows of a batch a task holds at most, where the ring has so many slots. By default, all workers share it."""
        return -(-n_rows // self.n_workers)

    def store_bytes(self, slot_bytes: int, index_bytes: int) -> int:
        """What they take of this machine's memory for rows on their way into the ring, and for a copy of the index."""
        return 0

    def own_bytes(self) -> tuple[int, int] | None:
        """What all workers take of memory for the source, and for its modules; None: none of them has started yet."""
        return 0, 0

    def current_work(self) -> dict[int, tuple[int, CurrentWork]]:
        """Worker -> (pid, what it is filling)."""
        return {}

    def processes(self) -> dict[str, int]:
        """The processes there are beside the trainer: name -> pid."""
        return {}


class Observer(Protocol):
    """What a loader tells of itself as it goes. Each method is called in the trainer's thread; what it raises is raised there.

    Example:
        class CountDeaths(ringload.Observer):
            n = 0

            def on_death(self, death, samples):
                self.n += 1

        ringload.Loader(source, 64, observers=[CountDeaths()])
    """

    def on_batch(self, epoch: int, number: int, n_rows: int, wait_s: float) -> None:
        """A batch was lent, after a wait of so many seconds."""
        return

    def on_bad(self, bad: Bad, outcome: str) -> None:
        """A sample could not be loaded: it is "skipped", "replaced" or "raised"."""
        return

    def on_death(self, death: Death, samples: Sequence[int]) -> None:
        """A worker died, while it was filling these samples."""
        return

    def on_restart(self, n_workers: int, n_batches: int) -> None:
        """Workers were started again; so many batches have tasks that are filled again."""
        return

    def on_growth(self, n_slots: int, goal: int) -> None:
        """The ring has so many slots now, of `goal`."""
        return

    def on_seek(self, epoch: int, number: int) -> None:
        """The trainer goes on at another batch than the next: it resumes, say."""
        return
