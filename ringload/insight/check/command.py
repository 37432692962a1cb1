"""`ringload check`: the dataset of the command line, a progress bar, and a summary."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ringload.errors import ConfigError
from ringload.images.formats import SUFFIXES
from ringload.insight.check.run import check
from ringload.sources.image_folder import ImageFolder
from ringload.sources.image_table import ImageFrame
from ringload.sources.tar_shards import TarShards

if TYPE_CHECKING:
    from ringload.insight.check.findings import CheckReport

SHARDS = (".tar", ".tar.gz", ".tgz")  # the latter are refused in words
MAX_SHOWN = 20  # bad samples, and classes, that the summary names
SHOWN_EACH_S = 0.1
INTERRUPTED = 130  # the exit status, as of shells


def run_check(dataset: str, *, report: Path | None, strict: bool, ram: str, **options: Any) -> int:
    """Check a dataset, and print what was found. Returns the exit status of the command.

    Raises:
        ConfigError: the dataset or an option cannot be used. ImportError: a package is not installed.
    """
    how = {name: options.pop(name) for name in ("fast", "restart", "workers")}
    frame = frame_of(dataset, **options)
    console = Console()
    begin_s = time.monotonic()
    try:
        with _progress(console) as tell:
            found = check(frame, report, ram_budget=ram, progress=tell, **how)
    except KeyboardInterrupt:
        again = ": the same command goes on there" if report is not None else "; with --report FILE it could go on"
        console.print(f"interrupted{again}", markup=False)
        return INTERRUPTED
    summarize(found, console, time.monotonic() - begin_s)
    if report is not None:
        console.print(f"the report is in {escape(str(report))}")
    noted = found.n_duplicates + len(found.misnamed) if strict else 0
    return 1 if found.n_bad or noted else 0


def frame_of(dataset: str, *, path: str | None, label: str | None, root: Path | None, **options: Any) -> ImageFrame:
    """The images of a table, of a folder of classes, of a folder, or of tar shards.

    Raises:
        ConfigError: it is none of these.
    """
    given: dict[str, Any] = {
        name: value for name, value in {"path": path, "label": label, "root": root}.items() if value is not None
    }
    is_folder, shown = os.path.isdir(dataset), []
    if is_folder:
        with os.scandir(dataset) as entries:
            shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    names = [entry.name for entry in shown if os.path.splitext(entry.name)[1].lower() in SUFFIXES]
    has_classes = any(entry.is_dir() for entry in shown)
    has_shards = any(entry.name.endswith(SHARDS) for entry in shown) and not names and not has_classes
    if has_shards or (not is_folder and dataset.endswith(SHARDS)):
        if path is not None or root is not None:
            raise ConfigError(f"--path and --root are for a table, and {dataset} names tar shards")
        return TarShards(dataset, label=label, **options)
    if not is_folder:
        return ImageFrame(dataset, **given, **options)
    if given:
        raise ConfigError(f"{', '.join(f'--{name}' for name in given)}: only for a table, and {dataset} is a folder")
    if has_classes:
        return ImageFolder(dataset, **options)
    import pandas as pd

    if not names:
        raise ConfigError(f"{dataset} holds no image ({', '.join(SUFFIXES)}), and no folder")
    return ImageFrame(pd.DataFrame({"path": pd.Series(names, dtype=object)}), root=dataset, **options)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar with the rate and the time left, on a terminal. It has no thread: it is drawn when it is told of progress."""
    columns = (
        TextColumn("checking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal)
    task, last_s, first, begin_s = bar.add_task("checking", rate=""), 0.0, -1, time.monotonic()

    def tell(n_checked: int, n_samples: int) -> None:
        nonlocal last_s, first
        now_s = time.monotonic()
        if first < 0:  # what an earlier check has found took no time now
            first = n_checked
            bar.reset(task, total=n_samples, completed=n_checked)
            if first and first < n_samples:
                console.print(f"going on after {first:,} samples that an earlier check has looked at")
        if now_s - last_s >= SHOWN_EACH_S or n_checked == n_samples:
            last_s = now_s
            rate = (n_checked - first) / max(now_s - begin_s, 1e-9)
            bar.update(task, completed=n_checked, rate=f"{rate:,.0f}/s", refresh=True)

    with bar:
        yield tell


def summarize(found: CheckReport, console: Console, elapsed_s: float) -> None:
    """Print the counts, the first bad samples, and the classes."""
    table = Table(title=f"{len(found):,} samples in {elapsed_s:,.1f} s", show_header=False, title_justify="left")
    for status, n in found.status_counts.items():
        table.add_row(status, f"{n:,}")
    for name, n in found.format_counts.items():
        table.add_row(f"format {name}", f"{n:,}")
    for name, (least, median, most) in found.sizes.items():
        table.add_row(f"{name} in pixels", f"{least:,} to {most:,}, median {median:,.0f}")
    table.add_row("suffix of another format", f"{len(found.misnamed):,}")
    if found.records["is_hashed"].any():
        other = f", {len(found.contradicting):,} of them with another label" if len(found.contradicting) else ""
        table.add_row("content of an earlier sample", f"{found.n_duplicates:,}{other}")
    console.print(table)
    for field, counts in found.class_counts.items():
        console.print(_classes(field, counts))
    for sample in found.bad[:MAX_SHOWN].tolist():
        status = found.statuses[found.records["status"][sample]]
        console.print(escape(f"{status}: {found.source.describe(sample)}: {found.reasons[sample]}"), soft_wrap=True)
    if found.n_bad > MAX_SHOWN:
        console.print(f"... and {found.n_bad - MAX_SHOWN:,} more")


def _classes(field: str, counts: dict[Any, int]) -> Table:
    """The largest and the smallest classes."""
    by_count = sorted(counts.items(), key=lambda pair: -pair[1])
    shown = by_count if len(by_count) <= MAX_SHOWN else [*by_count[: MAX_SHOWN // 2], *by_count[-MAX_SHOWN // 2 :]]
    total = max(1, sum(counts.values()))
    table = Table(title=f"{len(counts):,} classes of {escape(field)}", show_header=False, title_justify="left")
    for number, (name, n) in enumerate(shown):
        if number == MAX_SHOWN // 2 and len(by_count) > MAX_SHOWN:
            table.add_row("...", "", "")
        table.add_row(escape(str(name)), f"{n:,}", f"{n / total:.1%}")
    return table
