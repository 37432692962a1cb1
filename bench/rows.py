"""Measures large tables: the time and the memory of each step from a table to the first batch.

    python -m bench.rows [--rows 3000000] [--kind frame --kind parquet ...] [--workers 2]

Each kind of table is measured in a process of its own. Its paths are links to the photographs of data/photos; a class is one of
1,000 strings, a group one of 100,000 numbers.

frame, csv, parquet    the table as a DataFrame, and as a file of it
index                  a saved index, which is loaded
step                   read: pandas alone; index: ImageFrame, without that; fingerprint, split (by group), save: its methods;
                       start: making a loader, with packing; first batch: after that, 64 photographs of 64 x 64 pixels
CPU s                  of this process: on a machine that does other work, what tells more than the time
bytes a row            the memory of this process at its peak, and after the step, beyond that before the step. What others
                       share counts in full; in the PSS of all processes, in parts
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from bench import data
from bench.machine import commit, machine, tree_pss_mb

KINDS = ("frame", "csv", "parquet", "index")
CHUNK = 300_000
N_CLASSES, N_GROUPS = 1000, 100_000


def table_file(n_rows: int, kind: str) -> Path:
    """A table of `n_rows` in a .csv or .parquet file, made once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = data.table(n_rows)

    def make(path: Path) -> None:
        with pq.ParquetFile(whole) as file:
            writer = None
            for number, batch in enumerate(file.iter_batches(CHUNK, columns=["path", "index"])):
                index = batch.column("index").to_numpy()
                columns = {"path": batch.column("path"), "kind": pa.array(names[index * 7919 % N_CLASSES].tolist())}
                made = pa.table({**columns, "group": index * 104729 % N_GROUPS})
                if kind == "csv":
                    made.to_pandas().to_csv(path, mode="a" if number else "w", header=not number, index=False)
                else:
                    writer = writer or pq.ParquetWriter(path, made.schema)
                    writer.write_table(made)
            if writer is not None:
                writer.close()

    names = np.array([f"class {number:04d}" for number in range(N_CLASSES)], object)
    return data._made(data.ROOT / f"labelled-{n_rows}.{kind}", make)


def memory_bytes(key: str) -> int:
    """A line of /proc/self/status: VmRSS, RssAnon, or VmHWM, the peak."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


class Steps:
    """Times steps, and prints each as a line of JSON."""

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
        before_bytes, begin_s, begin_cpu_s = memory_bytes("VmRSS"), time.perf_counter(), time.process_time()
        made = step()
        took_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
        peak_bytes = memory_bytes("VmHWM") - before_bytes
        kept_bytes = memory_bytes("VmRSS") - before_bytes
        print(
            json.dumps({"step": name, "s": took_s, "cpu_s": cpu_s, "peak_bytes": peak_bytes, "kept_bytes": kept_bytes}),
            flush=True,
        )
        return made


def measure(kind: str, n_rows: int, workers: int, folder: Path) -> None:
    """All steps for a kind of table, in this process."""
    steps = Steps(n_rows)
    import ringload

    of_images: dict[str, Any] = {"size": (64, 64)}
    steps("import", lambda: ringload.ImageFrame)
    if kind == "index":
        path = folder / "index"
        source = steps("index", lambda: ringload.ImageFrame.load_index(path, **of_images))
    else:
        source = from_table(kind, n_rows, steps, of_images)
    steps("fingerprint", source.fingerprint)
    loader = steps("start", lambda: ringload.Loader(source, 64, workers=workers, ram_budget="6GB", seed=1))
    with loader:
        steps("first batch", lambda: next(iter(loader)))
        pss = int(tree_pss_mb(os.getpid()) * 1e6)
    print(json.dumps({"step": "all processes then, PSS", "s": 0, "cpu_s": 0, "peak_bytes": pss, "kept_bytes": pss}), flush=True)
    if kind != "index":
        steps("split", lambda: source.split(0.1, by=source.column("group"), how="group"))
        steps("save", lambda: source.save_index(folder / "index"))


def from_table(kind: str, n_rows: int, steps: Steps, of_images: dict[str, Any]) -> Any:
    """The frame of a table, or of a file of it."""
    import pandas as pd

    import ringload

    file = table_file(n_rows, "parquet" if kind == "frame" else kind)
    if kind == "frame":
        df = steps("read", lambda: pd.read_parquet(file))
        return steps("index", lambda: ringload.ImageFrame(df, label="kind", **of_images))
    return steps("read and index", lambda: ringload.ImageFrame(file, label="kind", **of_images))


@click.command()
@click.option("--rows", default=3_000_000, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Default: all.")
@click.option("--workers", default=2, show_default=True)
@click.option("--here", type=click.Choice(KINDS), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(rows: int, kinds: tuple[str, ...], workers: int, here: str | None, folder: Path | None) -> None:
    """Print the time and the memory of each step, for tables of so many rows."""
    if here is not None and folder is not None:
        measure(here, rows, workers, folder)
        return
    for kind in ("csv", "parquet"):
        if not kinds or kind in kinds or (kind == "parquet" and "frame" in kinds):
            table_file(rows, kind)
    console = Console(width=120)
    table = Table(title=f"{rows:,} rows; {machine()['cpu']}, {commit()}", title_justify="left")
    for name in ("table", "step", "s", "CPU s", "CPU ns a row", "peak, bytes a row", "kept, bytes a row"):
        table.add_column(name, justify="left" if name in ("table", "step") else "right")
    with tempfile.TemporaryDirectory(dir=data.ROOT) as made:
        for kind in kinds or KINDS:
            command = [sys.executable, "-m", "bench.rows", "--rows", str(rows), "--workers", str(workers), "--here", kind]
            done = subprocess.run([*command, "--folder", made], stdout=subprocess.PIPE, text=True, check=True)
            for line in map(json.loads, done.stdout.splitlines()):
                peak, kept = (f"{line[name] / rows:,.1f}" for name in ("peak_bytes", "kept_bytes"))
                times = (f"{line['s']:.3f}", f"{line['cpu_s']:.3f}", f"{line['cpu_s'] / rows * 1e9:,.0f}")
                took = times if line["s"] else ("", "", "")
                table.add_row(kind, line["step"], *took, peak, kept)
            table.add_section()
    console.print(table)


if __name__ == "__main__":
    main()
