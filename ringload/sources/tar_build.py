"""Builds the index of tar shards, or takes it from its file: shards that have not changed are not read again.

Threads read the shards, each with a storage of its own, if reading waits for a disk or a network. If that takes more than a
second, a terminal shows the progress; where there is none, `ringload`'s logger tells it at level INFO. See `tar_index` for the
file.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from ringload.checks import listed, short, warn
from ringload.errors import ConfigError
from ringload.log import logger
from ringload.sources.shard_names import Shards
from ringload.sources.tar_columns import Column
from ringload.sources.tar_index import IndexFileError, Saved, packed, unpacked, write
from ringload.sources.tar_samples import ShardIndex, read_shard
from ringload.storage.ranges import RangedStorage, ranged
from ringload.storage.registry import LOCAL, Factory, factory_of

N_THREADS = (
    16  # which hide the latency of a storage, or of a disk. Of shards in the page cache 1 thread reads a member in 9 us, 4
)
CPU_SHARE = (
    0.5  # threads in 17, as they share Python's lock: a thread that works for more than this share of the time stays alone
)
WINDOW_BYTES = 8 << 20  # of a remote shard at a time: 16 MB/s a thread at 50 ms and 100 MB/s
LOCAL_WINDOW_BYTES = 4096  # a page: the headers, and small members between images
QUIET_S = 1.0  # before progress is told, and between two lines of the log
SHOWN_S = 0.1
Made = TypeVar("Made")


def index_of(shards: Shards, images: Sequence[str], columns: Sequence[Column], cache_dir: Any) -> list[ShardIndex]:
    """The index of each shard.

    Raises:
        ConfigError: a shard is missing or cannot be read.
    """
    factory = factory_of(shards.scheme)
    with _Progress(len(shards.keys), "looked for") as progress:
        stats = _for_each(shards, factory, shards.keys, _stat, progress)
    if absent := [f"{key}: {stat}" for key, stat in zip(shards.keys, stats, strict=True) if isinstance(stat, str)]:
        raise ConfigError(f"{len(absent):,} of {len(shards.keys):,} shards cannot be read: {listed(absent)}")
    names = names_of(shards.keys)
    files = _files(shards, names, images, cache_dir)
    saved = _saved(files, images)
    wanted = {one.name for one in columns}
    is_valid = [
        name in saved and saved[name].stat == stat and wanted <= saved[name].columns.keys()
        for name, stat in zip(names, stats, strict=True)
    ]
    todo = [place for place, valid in enumerate(is_valid) if not valid]
    if todo:
        window_bytes = LOCAL_WINDOW_BYTES if shards.scheme == LOCAL else WINDOW_BYTES
        suffixes = frozenset(image.encode() for image in images)

        def read(storage: RangedStorage, place: int) -> ShardIndex:
            begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
            made = read_shard(storage, shards.keys[place], stats[place], suffixes, columns, window_bytes)
            waits.append(time.thread_time() - begin_cpu_s < CPU_SHARE * (time.monotonic() - begin_s))
            return made

        waits: list[bool] = []
        n_first = 1 if shards.scheme == LOCAL else 0  # tells whether reading waits for the disk
        with _Progress(len(todo), "indexed") as progress:
            read_anew = _for_each(shards, factory, todo[:n_first], read, progress, 1)
            n_threads = 1 if waits and not waits[0] else N_THREADS
            read_anew += _for_each(shards, factory, todo[n_first:], read, progress, n_threads)
        saved |= {names[place]: shard for place, shard in zip(todo, read_anew, strict=True)}
        _save(files, {name: saved[name] for name in names}, images)
    return [saved[name] for name in names]


def names_of(keys: Sequence[str]) -> list[str]:
    """The names of shards: their paths from the last folder on that has all of them."""
    start = len(posixpath.commonprefix([posixpath.dirname(key) + "/" for key in keys]).rpartition("/")[0]) + 1
    return [key[start:] for key in keys]


# -- threads ----------------------------------------------------------------------------------------------------------


def _stat(storage: RangedStorage, key: str) -> Any:
    """The stat of a shard, or why there is none."""
    try:
        return storage.stat(key)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def _for_each(
    shards: Shards,
    factory: Factory,
    items: Sequence[Any],
    call: Callable[[RangedStorage, Any], Made],
    progress: _Progress,
    n_threads: int = N_THREADS,
) -> list[Made]:
    """`[call(storage, item) for item in items]`, by threads. After an error no more calls begin."""
    if not items:
        return []
    todo, made = deque(enumerate(items)), dict[int, Made]()

    def work() -> None:
        own = factory()
        try:
            storage = ranged(own, shards.scheme)
            while todo:
                try:
                    place, item = todo.popleft()
                except IndexError:  # another thread took the last one
                    return
                made[place] = call(storage, item)
        finally:
            own.close()

    n_threads = min(n_threads, len(items))
    with ThreadPoolExecutor(n_threads, "ringload-index") as pool:
        try:
            left = {pool.submit(work) for _ in range(n_threads)}
            while left:
                ended, left = wait(left, SHOWN_S, FIRST_EXCEPTION)
                for one in ended:
                    one.result()
                progress.show(len(made))
        finally:
            todo.clear()
    progress.n_before += len(items)
    return [made[place] for place in range(len(items))]


class _Progress:
    """Tells how many shards are done, if it takes more than a second: on a terminal, or else in the log."""

    def __init__(self, n_shards: int, done: str) -> None:
        self._n_shards, self._done = n_shards, done
        self._begin_s = self._said_s = time.monotonic()
        self._is_shown = False
        self.n_before = 0  # what was done by former calls

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._is_shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def show(self, n_done: int) -> None:
        """So many are done by this call."""
        now_s = time.monotonic()
        if now_s - self._begin_s < QUIET_S:
            return
        text = f"{self.n_before + n_done:,} of {self._n_shards:,} tar shards {self._done}, {now_s - self._begin_s:,.0f} s"
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()
            self._is_shown = True
        elif now_s - self._said_s >= QUIET_S:
            self._said_s = now_s
            logger.info("%s", text)


# -- the file ---------------------------------------------------------------------------------------------------------


def _files(shards: Shards, names: Sequence[str], images: Sequence[str], cache_dir: Any) -> list[str]:
    """Where the file of an index may be, the best place first."""
    of_names, of_keys = (
        hashlib.sha256("\0".join([*images, "", *texts]).encode(errors="surrogateescape")) for texts in (names, shards.keys)
    )
    if cache_dir is not None:
        try:
            folder = os.path.abspath(os.path.expanduser(os.fsdecode(cache_dir)))
        except TypeError as error:
            raise ConfigError(f"cache_dir is the path of a folder, not {short(cache_dir)}") from error
        return [os.path.join(folder, f"{of_keys.hexdigest()[:16]}.tarindex")]
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache")
    in_cache = os.path.join(caches, "ringload", f"{of_keys.hexdigest()[:16]}.tarindex")
    if shards.scheme != LOCAL:
        return [in_cache]
    key, name = shards.keys[0], names[0]
    return [f"{key[: len(key) - len(name)]}.ringload-{of_names.hexdigest()[:16]}.tarindex", in_cache]


def _saved(files: Sequence[str], images: Sequence[str]) -> Saved:
    """The index in the first of some files that is there and whole."""
    for path in files:
        try:
            with open(path, "rb") as file:
                return unpacked(file.read(), images)
        except FileNotFoundError:
            continue
        except (OSError, IndexFileError) as error:
            warn(f"the index of tar shards in {path} cannot be used, and is built anew: {error}")
    return {}


def _save(files: Sequence[str], saved: Saved, images: Sequence[str]) -> None:
    """Write the index into the first file that can be written."""
    pieces, errors = packed(saved, images), []
    for path in files:
        try:
            if not os.path.basename(path).startswith("."):  # in a cache folder
                os.makedirs(os.path.dirname(path), exist_ok=True)
            write(path, pieces)
            return
        except OSError as error:
            errors.append(f"{path}: {error.strerror}")
    warn(f"the index of tar shards cannot be saved, and will be built again: {listed(errors)}. Give cache_dir=, a folder")
