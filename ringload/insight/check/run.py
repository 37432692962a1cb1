"""Checking all images of a frame, by the workers of a Loader, in the order of the table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ringload.bad_sample import Bad
from ringload.checks import flag, in_our_words
from ringload.errors import ConfigError
from ringload.insight.check.findings import CheckReport
from ringload.insight.check.journal import Journal
from ringload.insight.check.source import RECORD, CheckedImages, text_of
from ringload.insight.check.verdict import CRASHED, OK
from ringload.insight.check.writing import check_writable, write_report
from ringload.loader import Loader
from ringload.protocols import Observer
from ringload.sources.image_table import ImageFrame

BATCH_SIZE = 64
JOURNAL = ".journal"  # behind the name of the report


class _Crashes(Observer):
    """The reasons of samples that were not loaded as they have ended their workers."""

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}

    def on_bad(self, bad: Bad, outcome: str) -> None:
        self.reasons[bad.index] = bad.reason


@in_our_words()
def check(
    source: ImageFrame,
    report: str | os.PathLike[str] | None = None,
    *,
    fast: bool = False,
    workers: int | Literal["auto"] = "auto",
    ram_budget: int | float | str = "auto",
    restart: bool = False,
    progress: Callable[[int, int], Any] | None = None,
    sample_timeout: float | None = None,
) -> CheckReport:
    """Load every image of a source once, by worker processes, and tell what is wrong with which.

        report = ringload.check(ringload.ImageFrame("train.csv", size=(224, 224)))
        source = report.source.subset(report.good)

    An image is good if, and only if, the loader loads it: it is loaded by the same code, with the options of the source, and
    its transform. Without `max_pixels` the largest image depends on `ram_budget`, so give the one of the training. An image
    that ends its worker, by a crash of the decoder say, is reported as "crashed".

    Arguments:
        source: an ImageFrame or ImageFolder.
        report: a .parquet or .csv file to write, of one row a sample: `row` (in the table), `path`, `status`, `reason`,
            `format`, `width`, `height` (as stored, in pixels), `bytes`, `hash`, `is_misnamed`, `duplicate_of` (a row).
            While the check runs, `report`.journal keeps what was found: if the check is killed, the same call goes on there.
        fast: look at the beginning and the end of each file only, and load those that look doubtful. This finds missing files,
            bombs and most truncated files, but neither damaged pixels nor duplicates.
        workers, ram_budget, sample_timeout: as of `Loader`.
        restart: forget what an earlier check has left in the journal.
        progress: called as `progress(n_checked, n_samples)`, at the beginning and after each batch.

    Raises:
        ConfigError: the source is none of these; the report cannot be written; or the journal is of another check.
        ImportError: xxhash is not installed; or pyarrow, for a .parquet file.
    """
    flag("restart", restart)
    images = CheckedImages(source, flag("fast", fast))
    path = None if report is None else check_writable(report)
    tell = progress or (lambda n_checked, n_samples: None)
    records, reasons = np.zeros(len(images), RECORD), dict[int, str]()
    options: dict[str, Any] = {"workers": workers, "ram_budget": ram_budget, "sample_timeout": sample_timeout}
    if path is None:
        _go_on(images, 0, records, reasons, options, None, tell)
        return CheckReport(source, records, reasons)
    journal = Journal(Path(f"{path}{JOURNAL}"), _about(images), restart)
    with closing(journal):
        n_done = _read(journal, records, reasons)
        _go_on(images, n_done, records, reasons, options, journal, tell)
        made = CheckReport(source, records, reasons, n_done)
        write_report(made, path)
        journal.remove()
    return made


def _about(images: CheckedImages) -> dict[str, Any]:
    """What is checked, and by which options: a journal with another text is not gone on with."""
    return {
        "source": images.fingerprint(),
        "fast": images.fast,
        "options": images.frame.loading_options(),
        "record": str(RECORD),
    }


def _read(journal: Journal, records: np.ndarray, reasons: dict[int, str]) -> int:
    """Enter what the journal has. Returns how many samples that are."""
    n_done = 0
    for found, why in journal.read():
        if n_done + len(found) > len(records):
            raise ConfigError(f"{journal.path} has more samples than the table, {len(records):,}: delete it")
        records[n_done : n_done + len(found)] = found
        reasons.update(why)
        n_done += len(found)
    return n_done


def _go_on(
    images: CheckedImages,
    n_done: int,
    records: np.ndarray,
    reasons: dict[int, str],
    options: Mapping[str, Any],
    journal: Journal | None,
    tell: Callable[[int, int], Any],
) -> None:
    """Check the samples from `n_done` on."""
    n_samples = len(images)
    tell(n_done, n_samples)
    if n_done == n_samples:
        return
    rest = images if n_done == 0 else images.subset(np.arange(n_done, n_samples))
    crashes = _Crashes()
    how: dict[str, Any] = {"order": "sequence", "last": "keep", "epochs": 1, "on_error": "skip", "restarts": None}
    with Loader(rest, BATCH_SIZE, shard=(0, 1), max_bad=n_samples, observers=[crashes], **how, **options) as loader:
        for batch in loader:
            found, why = _found(batch, n_done, crashes.reasons)
            stop = n_done + len(found)
            records[n_done:stop] = found
            reasons.update(why)
            if journal is not None:
                journal.append(n_done, found, why)
            n_done = stop
            tell(n_done, n_samples)


def _found(batch: Any, first: int, crashes: dict[int, str]) -> tuple[np.ndarray, dict[int, str]]:
    """The records of a batch whose samples begin with `first`, and the reasons of bad ones."""
    records = np.zeros(len(batch["status"]), RECORD)
    for name in RECORD.names or ():
        records[name] = batch[name]
    records["status"][~batch["valid"]] = CRASHED
    reasons = {}
    for row in np.flatnonzero(records["status"] != OK).tolist():
        if batch["valid"][row]:
            reasons[first + row] = text_of(batch["reason"][row])
        else:
            reasons[first + row] = crashes.pop(int(batch.index[row]))
    return records, reasons
