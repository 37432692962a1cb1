"""The cache of a loader: `Loader(source, batch_size, cache=..., cache_bytes=..., cache_size=...)`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ringload.checks import bytes_of, named, short
from ringload.errors import BudgetError, ConfigError
from ringload.order.explicit import NO_END
from ringload.sources.cached import Cached
from ringload.sources.function import FunctionSource
from ringload.sources.parts import Part
from ringload.sources.row_cache import RowCache
from ringload.sources.row_memory import RowMemory
from ringload.system.segment import Segment

RAM = "ram"
UNLIMITED_BYTES = 1 << 62
FREE_SHARE = 0.9  # of a disk's free room, which files may take by default


class GivenCache:
    """The source of a loader with the caches that its arguments ask for. Of a source that is made of others (a mix, a part),
    each of these has a cache; `n_bytes` are divided by their sizes.

    Attributes: `source`; `all_bytes`, what all samples take in memory; `n_bytes`, what they may take, if the user says so. Both
    are 0 and None if the cache is not in memory.

    Raises:
        ConfigError: an argument is not valid, or the source cannot be kept.
    """

    def __init__(self, source: Any, cache: Any, n_bytes: Any, size: tuple[int, int] | None) -> None:
        self._memories: list[RowMemory] = []
        self._files: list[RowCache] = []
        self._cache, self._size = cache, size
        self.n_bytes: int | None = None
        self.source = source
        if cache is None:
            if n_bytes is not None or size is not None:
                name = "cache_bytes" if n_bytes is not None else "cache_size"
                raise ConfigError(f"{name}= is for cache=: give a folder on a local disk, or cache='ram'")
            return
        if not isinstance(cache, str | os.PathLike) or not os.fspath(cache):
            raise ConfigError(f"cache is a folder on a local disk, or 'ram', not {short(cache)}")
        given = None if n_bytes is None else bytes_of("cache_bytes", n_bytes)
        self._whole = source
        self.source = self._with_cache(source)
        if self._memories:
            self.n_bytes = given
            if given is not None:
                self._shares(given)  # so that what is too little is refused at once
        else:
            self._limit_files(given)

    def _with_cache(self, source: Any) -> Any:
        make: Callable[[Callable[[Any], Any]], Any] | None = getattr(source, "with_caches", None)
        if self._cache == RAM and isinstance(source, Part):
            _refuse_cached(source.source)
        elif make is not None:  # a file of the whole serves all its parts; memory is of one loader, so of one part
            return make(self._with_cache)
        return self._cached(source)

    def _cached(self, source: Any) -> Any:
        if len(source) >= NO_END:
            raise ConfigError(f"cache=: the rows of {named(source)} have no index, by which they could be kept")
        if isinstance(source, FunctionSource):
            raise ConfigError(
                "cache=: a function load(index, rng, out) may draw from `rng`, and what is random cannot be kept. If it does "
                "not, give an object with `fields`, `__len__`, `load`, `fingerprint()` and `random = False`"
            )
        size = self._size if source is self._whole or _crops(source) else None
        if self._cache == RAM:
            made, memory = Cached.in_memory(source, size)
            self._memories.append(memory)
            return made
        made = Cached(source, self._cache, UNLIMITED_BYTES, size)
        self._files.append(made.file)
        return made

    def _limit_files(self, n_bytes: int | None) -> None:
        if n_bytes is None:
            disk = os.statvfs(os.fspath(self._cache))
            in_use_bytes = sum(os.stat(file.path).st_blocks * 512 for file in self._files)
            n_bytes = int(FREE_SHARE * (disk.f_bavail * disk.f_frsize + in_use_bytes))
        for file, share_bytes in zip(self._files, _divided(n_bytes, self._files), strict=True):
            file.limit("cache_bytes", share_bytes)

    # -- in memory ----------------------------------------------------------------------------------------------------

    @property
    def all_bytes(self) -> int:
        """What all samples take in memory."""
        return sum(memory.all_bytes for memory in self._memories)

    @property
    def is_in_memory(self) -> bool:
        """Whether there are samples in memory."""
        return bool(self._memories)

    @property
    def owners(self) -> list[Segment]:
        """The owners of descriptors that workers need."""
        return [memory.segment for memory in self._memories if memory.segment is not None]

    def _shares(self, n_bytes: int) -> list[int]:
        shares = _divided(n_bytes, self._memories)
        for memory, share_bytes in zip(self._memories, shares, strict=True):
            if share_bytes < memory.record_bytes:
                no_room = f"has no room for a row, which takes {memory.record_bytes:,} bytes"
                if self.n_bytes is not None:
                    raise ConfigError(f"cache_bytes={n_bytes:,} {no_room}: raise it")
                raise BudgetError(f"cache='ram': what ram_budget leaves, {n_bytes:,} bytes, {no_room}: raise ram_budget")
        return shares

    def allocate(self, n_bytes: int) -> None:
        """Have room for so many bytes of samples, once it is planned.

        Raises:
            BudgetError: that is no sample.
        """
        for memory, share_bytes in zip(self._memories, self._shares(n_bytes), strict=True):
            memory.allocate(share_bytes)

    def begin_anew(self) -> None:
        """The source was changed: workers that are started next have new memory."""
        for memory in self._memories:
            memory.begin_anew()

    def close(self) -> None:
        """Let go of the memory. Idempotent."""
        for memory in self._memories:
            memory.close()


def _divided(n_bytes: int, among: Sequence[RowCache] | Sequence[RowMemory]) -> list[int]:
    sizes = np.array([one.all_bytes for one in among], object)  # Python's integers, which do not overflow
    return [int(n_bytes * size // sizes.sum()) for size in sizes] if len(sizes) else []


def _crops(source: Any) -> bool:
    return dict(getattr(source, "augmentation", {})).get("resize") == "random_crop"


def _refuse_cached(source: Any) -> None:
    while isinstance(source, Part):
        source = source.source
    if isinstance(source, Cached):
        source.with_caches(lambda kept: kept)
