"""Tar shards of photographs, in data/bench: made once, before any timing."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from bench import data
from bench.work import Photos

PER_SHARD = 64


def shards_of(work: Photos) -> list[Path]:
    """The shards of all samples, with `PER_SHARD` each. If there are more samples than files, a shard comes several times.

    Raises:
        ValueError: a shard would not be full.
    """
    names = data.files(work.folder)[: work.n_files]
    folder = (data.ROOT / f"shards-{work.folder.name}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for start in range(0, work.n_samples, PER_SHARD):
        first = start % len(names)
        if first + PER_SHARD > len(names) or start + PER_SHARD > work.n_samples:
            raise ValueError("whole shards only")
        path = folder / f"{first:06d}.tar"
        if not path.exists():
            _write(path, names, first)
        found.append(path)
    return found


def _write(path: Path, names: list[str], first: int) -> None:
    unfinished = path.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w") as tar:
        for index in range(first, first + PER_SHARD):
            content = Path(names[index]).read_bytes()
            member = tarfile.TarInfo(f"{index:09d}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    unfinished.rename(path)
