"""A source whose decoded samples are kept in a file on a local disk. `row_cache` describes the file and its guarantees."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ringload.checks import bytes_of, named, short
from ringload.errors import ConfigError
from ringload.fields import Field, Row, Worker, as_fields, in_brief
from ringload.sources.bind import BoundSource, bind
from ringload.sources.fingerprints import fingerprint_of
from ringload.sources.load_alone import load_alone
from ringload.sources.parts import checked, rows, subset
from ringload.sources.row_cache import RowCache, Rows, Version
from ringload.sources.row_memory import RowMemory
from ringload.sources.splits import folds, plain, split


class TwoSteps(Protocol):
    """Loading in two steps, the first of which draws nothing: its result is what is kept. `ImageFrame.two_steps` gives it."""

    field: Field  # of what is kept

    def key(self) -> Any:
        """What determines the bytes that are kept, beside the content of each sample: JSON can hold it."""
        ...

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker."""
        ...

    def version(self, index: int) -> Version:
        """The size and the time of a sample's content, or (0, 0)."""
        ...

    def load(self, index: int, out: np.ndarray) -> tuple[int, int]:
        """The first step, into `out`; (height, width) of the image as it is shown."""
        ...

    def finish(self, index: int, kept: np.ndarray, size: tuple[int, int], rng: Any, out: Row) -> None:
        """The second step: from what is kept to the row."""
        ...


class Cached:
    """A source whose decoded samples are kept on a local disk: the first epoch fills the file, later ones read it.

    Example::

        train, validation = image_frame.split(0.2)
        loader = ringload.Loader(train.cached("/scratch/cache", max_bytes="100GB"), 256)

    Of an ImageFrame, images are kept as they are before mirroring, `transform` and float32. Samples are the same to the bit
    with a cache and without it, except with resize="random_crop": there the whole image is kept at `size`, and crops are scaled
    from that. Of other sources whole samples are kept, if they draw nothing (`random = False`).

    Later runs, and other ranks on the same host, use the same file: its name is a digest of all that the kept bytes depend on:
    the paths or the fingerprint of the source, the options of decoding, and the versions of ringload and of the decoders. A
    file whose size or time has changed is decoded again; so are images in tar shards whose version has changed. Contents that
    paths name by other URLs have no version here: it would take a request for each sample in each epoch, which is what a cache
    is to save. Delete the cache when they change. Files of a former version are not deleted.

    `Loader(source, batch_size, cache=folder, cache_bytes=...)` is short for this. `Loader(cache="ram")` keeps them in memory.

    Arguments:
        source: an ImageFrame, or a source without randomness that has `fingerprint()`.
        folder: where the file is; it is made if it is missing. A folder that cannot be written to may hold a finished cache.
        max_bytes: the most that the file may take, as a number, or as text such as "100GB". If that is too little for all
            samples, the first ones are kept, and which these are never changes. A full disk ends the filling, and no more.
        size: (height, width) at which images are kept for random crops, such as (320, 320).

    Attributes: `source`; `path`, of the file; `n_kept`, how many samples it has room for.

    Raises:
        ConfigError: the source cannot be kept; or the file cannot be made, or is damaged.
    """

    def __init__(
        self, source: Any, folder: str | os.PathLike[str], max_bytes: int | str, size: tuple[int, int] | None = None
    ) -> None:
        self._begin(source, size)
        key = hashlib.sha256(json.dumps(self._key(), sort_keys=True).encode()).digest()
        self.path = os.path.join(os.path.abspath(os.fspath(folder)), f"{key.hex()[:32]}.ringload-rows")
        self._cache: Rows = RowCache(self.path, key, self._row_bytes, len(source), bytes_of("max_bytes", max_bytes))

    def _begin(self, source: Any, size: tuple[int, int] | None) -> None:
        self._bound = _checked(source)
        self.source, self._size = source, size
        self._steps = _steps_of(source, size)
        self.fields = as_fields(source.fields)
        self._kept = self.fields if self._steps is None else {"": self._steps.field}
        self._row_bytes = sum(field.row_bytes for field in self._kept.values())
        self._places = _places(self._kept)
        self._scratch: np.ndarray | None = None  # what is kept of the sample that is loaded

    @classmethod
    def in_memory(cls, source: Any, size: tuple[int, int] | None = None) -> tuple[Cached, RowMemory]:
        """A source whose samples a loader keeps in memory that its workers share, for `Loader(cache="ram")`; and that memory,
        which has no room yet.

        Raises:
            ConfigError: the source cannot be kept.
        """
        made = cls.__new__(cls)
        made._begin(source, size)
        memory = RowMemory(made._row_bytes, len(source))
        made.path, made._cache = "", memory
        return made, memory

    def with_caches(self, keep: Callable[[Any], Any]) -> Any:
        """See `Part.with_caches`. Raises ConfigError: this source is kept already."""
        raise ConfigError("cache=: the samples of the source are kept already, by cached(): leave out cache=")

    @property
    def file(self) -> RowCache:
        """The file, if samples are not kept in memory."""
        assert isinstance(self._cache, RowCache)
        return self._cache

    @property
    def n_kept(self) -> int:
        """How many samples there is room for."""
        return self._cache.n_kept

    def _key(self) -> Any:
        kept = {name: str(field) for name, field in self._kept.items()}
        if self._steps is not None:
            return [kept, self._steps.key()]
        made = fingerprint_of(self.source)
        if made is None:
            raise ConfigError(
                f"Cached: {named(self.source)} has no method fingerprint(), which tells its content from that of other data"
            )
        return [kept, type(self.source).__qualname__, made]

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return in_brief(self, f"Cached {type(self.source).__name__}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_bound", "_steps", "_scratch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _bound=bind(state["source"]), _scratch=None)
        self._steps = _steps_of(self.source, self._size)

    # -- loading ------------------------------------------------------------------------------------------------------

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker."""
        max_bytes = None if worker.max_bytes is None else worker.max_bytes - self._row_bytes
        worker = replace(worker, scratch_bytes=worker.scratch_bytes - self._row_bytes, max_bytes=max_bytes)
        self._bound.start(worker)
        if self._steps is not None:
            self._steps.start(worker)
        self._cache.open()

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to read samples that are kept, or what those that are not kept yet are made of."""
        are_kept = self._cache.are_marked(indices)
        self._cache.will_need(indices[are_kept])
        if self._bound.prefetch is not None and not are_kept.all():
            self._bound.prefetch(indices[~are_kept])

    def is_ready(self, indices: np.ndarray) -> bool:
        """Whether samples can be loaded without waiting, as far as the source tells."""
        return self._bound.is_ready is None or self._bound.is_ready(indices)

    def forget(self, indices: np.ndarray) -> None:
        """Let go of what was read ahead, and not used."""
        if self._bound.forget is not None:
            self._bound.forget(indices)

    def load(self, index: int, rng: Any, out: Row) -> None:
        """Load sample `index` from where it is kept, or else from the source, and keep it."""
        if self._scratch is None:
            self._scratch = np.zeros(self._row_bytes, np.uint8)
        steps = self._steps
        version = (0, 0) if steps is None else steps.version(index)
        found = self._cache.find(index, version, self._scratch)
        size, memory = found or ((0, 0), self._scratch)
        kept = {name: memory[where].view(dtype).reshape(shape) for name, where, dtype, shape in self._places}
        if found is None:
            if steps is None:
                load_alone(self._bound, index, None, kept)
            else:
                size = steps.load(index, kept[""])
            self._cache.keep(index, version, size, memory)
        if steps is not None:
            steps.finish(index, kept[""], size, rng, out)
            return
        for name, values in kept.items():
            out[name][...] = values

    def n_filled(self) -> int:
        """How many samples are kept by now; takes a microsecond for each that it has room for."""
        return int(np.count_nonzero(self._cache.are_marked(np.arange(self.n_kept))))

    default_order = property(lambda self: self._bound.order)  # groups of rows that are read together, if any
    load_again = property(lambda self: self._bound.load_again)
    scratch_bytes = property(lambda self: self._bound.scratch_bytes + self._row_bytes)
    ahead_bytes = property(lambda self: self._bound.ahead_bytes + self._row_bytes)
    refuses_large = property(lambda self: self._bound.refuses_large)
    random = property(lambda self: self._bound.random)
    global_random = property(lambda self: self._bound.global_random)
    calls_user_code = property(lambda self: self._bound.calls_user_code)
    is_own = property(lambda self: self._bound.is_own)

    # -- what is known of its samples ---------------------------------------------------------------------------------

    def describe(self, index: int) -> str:
        """As the source does."""
        return self._bound.describe(index)

    def rows_of(self, indices: np.ndarray) -> Any:
        """As the source does."""
        return self._bound.rows_of(indices)

    def column(self, name: str) -> np.ndarray:
        """The values `(N,)` of a column of the source.

        Raises:
            ConfigError: there is no such column.
        """
        if not callable(ask := getattr(self.source, "column", None)):
            raise ConfigError(f"there is no column {short(name)}: {named(self.source)} has no method column(name)")
        return np.asarray(ask(name))

    def fingerprint(self) -> Any:
        """That of the source: a run may go on with a cache, or without it."""
        return fingerprint_of(self.source)

    rows = property(rows)
    subset, split, folds, plain = subset, split, folds, plain


def cached(self: Any, folder: str | os.PathLike[str], max_bytes: int | str, size: tuple[int, int] | None = None) -> Cached:
    """This source, with its decoded samples kept in a file in `folder`, of at most `max_bytes`: see `ringload.Cached`."""
    return Cached(self, folder, max_bytes, size)


def _checked(source: Any) -> BoundSource:
    bound = checked(source, "Cached")
    if (bound.order is not None and not hasattr(bound.order, "of_rows")) or bound.begin_task is not None:
        raise ConfigError(f"Cached: {named(source)} has an order of its own: keep the source inside of it, and not its rows")
    if bound.random and getattr(source, "two_steps", None) is None:
        raise ConfigError(
            f"Cached: {named(source)} may draw from `rng`, and what is random cannot be kept: set `random = False` in its "
            "class if it draws nothing; of an ImageFrame, what comes before the augmentation is kept"
        )
    return bound


def _steps_of(source: Any, size: tuple[int, int] | None) -> TwoSteps | None:
    make = getattr(source, "two_steps", None)
    if make is None and size is not None:
        raise ConfigError(f"Cached: size= is for images with resize='random_crop', not for {named(source)}")
    steps: TwoSteps | None = None if make is None else make(size)
    return steps


def _places(fields: dict[str, Field]) -> list[tuple[str, slice, np.dtype[Any], tuple[int, ...]]]:
    """Of `fields`, one after another in a row: name, bytes, dtype, shape."""
    made, start = [], 0
    for name, field in fields.items():
        made.append((name, slice(start, start + field.row_bytes), np.dtype(field.dtype), field.shape))
        start += field.row_bytes
    return made
