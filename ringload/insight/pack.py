"""`ringload pack`: writes the images of a table, or of a folder of classes, into tar shards by WebDataset's convention.

Each sample has its image, byte by byte as it is in its file; `.cls`, the number of its class; and `.json` with its path, its
label and the columns that are kept. Its key is its number. Which sample is in which shard is arithmetic, so that a run that
was killed goes on: see `pack_shard`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ringload.checks import listed
from ringload.errors import ConfigError
from ringload.images.formats import HEAD_BYTES, SUFFIXES, format_of
from ringload.insight.pack_image import Resized
from ringload.insight.pack_shard import RECORDS, Item, ShardResult, ShardTask, make_shard
from ringload.ring.plan import human
from ringload.sources.image_folder import ImageFolder
from ringload.sources.image_table import ImageFrame
from ringload.sources.tar_index import write

ANY_SIZE = (8, 8)  # of a source that decodes nothing
CLASSES = "classes.json"


@dataclass(frozen=True)
class Options:
    """`name`: what the names of shards begin with. `n_samples`: in a shard. `shuffle`: a seed, or None. `keep`: columns that go
    into `.json`. `resized`: what becomes of images, or None. `skip_bad`: leave files out that are no images. `n_threads`."""

    name: str = "shard"
    n_samples: int = 1000
    shuffle: int | None = None
    keep: Sequence[str] = ()
    resized: Resized | None = None
    skip_bad: bool = False
    n_threads: int = 1


def run_pack(given: Path, out: Path, columns: dict[str, Any], options: Options) -> None:
    """Pack a table's file or a folder of classes, and print what has become of it.

    Arguments:
        columns: arguments of ImageFrame that name the table's columns and its root.

    Raises:
        ConfigError: the table, the folder or a file cannot be packed, or `out` has other shards.
    """
    console = Console(stderr=True)
    source = ImageFolder(given, size=ANY_SIZE) if given.is_dir() else ImageFrame(given, size=ANY_SIZE, **columns)
    for name in options.keep:
        source.column(name)
    with _locked(out), ThreadPoolExecutor(options.n_threads, "ringload-pack") as pool:
        wrong = _wrong_files(source, pool, options.n_threads)
        if wrong and not options.skip_bad:
            raise ConfigError(
                f"{len(wrong):,} of {len(source):,} files cannot be packed: {listed(list(wrong.values()))}. Leave them out by "
                "--skip-bad"
            )
        rows = np.setdiff1d(np.arange(len(source)), np.array(list(wrong), np.int64))
        if not len(rows):
            raise ConfigError("no image is left to be packed")
        if options.shuffle is not None:
            rows = np.random.default_rng(options.shuffle).permutation(rows)
        n_shards = -(-len(rows) // options.n_samples)
        _refuse_others(out, options.name, n_shards)
        if _is_of_classes(source):
            write(str(out / CLASSES), [json.dumps(source.class_names, default=_item).encode()])
        results = _made(_tasks(source, rows, out, options), n_shards, pool, options.n_threads, console)
    _print(console, out, results, list(wrong.values()))


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """While this is entered, no other run packs into the folder."""
    (out / RECORDS).mkdir(parents=True, exist_ok=True)
    with open(out / RECORDS / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the kernel, however this process ends
        except BlockingIOError as error:
            raise ConfigError(f"another `ringload pack` is writing into {out}: wait until it has ended") from error
        yield


def _wrong_files(source: ImageFrame, pool: ThreadPoolExecutor, n_threads: int) -> dict[int, str]:
    """The samples whose files cannot be packed, and why."""
    parts = np.array_split(np.arange(len(source)), n_threads)

    def look(part: np.ndarray) -> list[tuple[int, str]]:
        return [(index, f"{source.describe(index)}: {why}") for index in part.tolist() if (why := _why(source.describe(index)))]

    return dict(sorted(pair for found in pool.map(look, parts) for pair in found))


def _why(path: str) -> str:
    """Why a file cannot be packed; "" if it can."""
    if not path.lower().endswith(SUFFIXES):
        return "its name has no suffix of images"
    try:
        if not os.path.isfile(path):
            return "no such file" if not os.path.exists(path) else "not a regular file"
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return error.strerror or str(error)
    return "" if format_of(head) else ("it is empty" if not head else "it is no image")


def _refuse_others(out: Path, name: str, n_shards: int) -> None:
    """Refuse a folder that has shards beyond those that are written: readers would take them, too."""
    wanted = {f"{name}-{number:06d}.tar" for number in range(n_shards)}
    if others := sorted(
        path.name for path in out.glob("*.tar") if path.name not in wanted and path.name.startswith(f"{name}-")
    ):
        raise ConfigError(f"{out} has shards of another pack: {listed(others)}. Remove them, or pack into another folder")


def _is_of_classes(source: ImageFrame) -> bool:
    field = source.fields.get("label")
    return field is not None and field.shape == () and field.dtype == "int64" and bool(source.class_names)


def _tasks(source: ImageFrame, rows: np.ndarray, out: Path, options: Options) -> Iterator[ShardTask]:
    """The shards, in their order."""
    is_of_classes = _is_of_classes(source)
    for start in range(0, len(rows), options.n_samples):
        part = source.subset(rows[start : start + options.n_samples])
        about: dict[str, list[Any]] = {"path": part.filenames}
        numbers = None
        if "label" in part.fields:
            values = part.labels.tolist()
            numbers = [str(number) for number in values] if is_of_classes else None
            about["label"] = [part.class_names[number] for number in values] if is_of_classes else values
        about |= {name: np.asarray(part.column(name)).tolist() for name in options.keep}
        items = [
            Item(f"{start + place:09d}", path, numbers[place] if numbers else None, _json(about, place))
            for place, path in enumerate(part.filepaths)
        ]
        yield ShardTask(out, f"{options.name}-{start // options.n_samples:06d}", items, options.resized, options.skip_bad)


def _json(about: dict[str, list[Any]], place: int) -> str:
    values = {name: column[place] for name, column in about.items()}
    values = {name: None if value != value else value for name, value in values.items()}  # a NaN is missing
    try:
        return json.dumps(values, default=_item)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"JSON cannot hold the columns of {about['path'][place]} ({error}): leave them out of --keep"
        ) from error


def _item(value: Any) -> Any:
    """A number of NumPy's as one of Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r}")


def _made(
    tasks: Iterator[ShardTask], n_shards: int, pool: ThreadPoolExecutor, n_threads: int, console: Console
) -> list[ShardResult]:
    """Make all shards, `n_threads` at a time."""
    results: list[ShardResult] = []
    bars = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bars, console=console, transient=True) as progress:
        bar = progress.add_task("", total=n_shards)
        left: set[Future[ShardResult]] = {pool.submit(make_shard, task) for task in islice(tasks, n_threads)}
        while left:
            ended, left = wait(left, return_when=FIRST_COMPLETED)
            results += [one.result() for one in ended]
            left |= {pool.submit(make_shard, task) for task in islice(tasks, len(ended))}
            progress.update(bar, completed=len(results))
    return results


def _print(console: Console, out: Path, results: list[ShardResult], wrong: list[str]) -> None:
    n_kept, n_damaged = sum(one.was_kept for one in results), sum(one.was_damaged for one in results)
    left_out = wrong + [text for one in results for text in one.left_out]
    console.print(
        f"{out}: {len(results):,} shards, {sum(one.n_images for one in results):,} images, "
        f"{human(sum(one.n_bytes for one in results))}; {len(results) - n_kept:,} shards written and read back, "
        f"{n_kept:,} kept",
        highlight=False,
    )
    if n_damaged:
        console.print(f"{n_damaged:,} shards were damaged, and are written anew", highlight=False)
    if left_out:
        console.print(f"{len(left_out):,} files are left out: {listed(left_out)}", highlight=False)
