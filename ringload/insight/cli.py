"""The command line: `ringload plan` and `ringload demo`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ringload.data.fields import Field
from ringload.errors import RingloadError
from ringload.insight.report import plan_table
from ringload.loader import n_workers
from ringload.ring.limits import Usable, usable_memory
from ringload.ring.memory import make_plan, parse_bytes

PATH_BYTES = 64  # of a sample, on average, where there is no table yet to measure
INDEX_ROW_BYTES = PATH_BYTES + 8 + 4 + 8  # path, where it begins, its length, its label


class Bytes(click.ParamType):
    """48GB, 48GiB, 0.5 or 50% (of what is usable), auto."""

    name = "bytes"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        try:
            return float(value)
        except ValueError:
            return value


class Count(click.ParamType):
    """An integer, as Python writes it: 30_000_000."""

    name = "integer"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is not an integer", param, ctx)


@click.group()
@click.version_option(package_name="ringload")
def main() -> None:
    """Feeds a training loop from a dataset far larger than memory."""


@main.command()
@click.option("--size", nargs=2, type=Count(), default=(224, 224), show_default=True, metavar="H W", help="in pixels")
@click.option("--channels", type=click.IntRange(1, 4), default=3, show_default=True)
@click.option("--dtype", type=click.Choice(["uint8", "float32"]), default="uint8", show_default=True)
@click.option("--batch", type=Count(), default=256, show_default=True, help="samples a batch")
@click.option("--ram", type=Bytes(), default="auto", show_default=True, help="the budget: 48GB, 48GiB, 0.5")
@click.option("--workers", type=str, default="auto", show_default=True, help="producers")
@click.option("--samples", type=Count(), default=1_000_000, show_default=True, help="in the dataset")
@click.option("--max-pixels", type=Count(), default=89_478_485, show_default=True, help="of the largest image")
@click.option("--here/--anywhere", default=False, help="refuse what does not fit into this machine's memory")
def plan(
    size: tuple[int, int],
    channels: int,
    dtype: str,
    batch: int,
    ram: str | float,
    workers: str,
    samples: int,
    max_pixels: int,
    here: bool,
) -> None:
    """Print what would be allocated for what. Starts and allocates nothing."""
    from ringload.data.images import worst_scratch_bytes

    try:
        usable = usable_memory()
        budget = ram if ram == "auto" else parse_bytes(int(ram) if isinstance(ram, float) and ram > 1 else ram, usable)
        if not here and isinstance(budget, int) and budget > usable.n_bytes:
            usable = Usable(budget, "assumed; this machine has less")
        made = make_plan(
            {"image": Field((*size, channels), dtype), "label": Field((), "int64")},
            batch,
            n_workers("auto" if workers == "auto" else Count().convert(workers, None, None)),
            budget,
            usable,
            index_bytes=samples * INDEX_ROW_BYTES,
            max_sample_bytes=worst_scratch_bytes(max_pixels),
        )
    except RingloadError as error:
        raise click.ClickException(str(error)) from error
    Console().print(plan_table(made))


@main.command()
@click.option("--images", type=click.Path(path_type=Path), help="a folder with one folder of images a class")
@click.option("--frame", type=click.Path(path_type=Path), help="a CSV or Parquet table with the columns path and multi")
@click.option("--size", nargs=2, type=Count(), default=(160, 160), show_default=True, metavar="H W")
@click.option("--batch", type=Count(), default=32, show_default=True, help="samples a batch")
@click.option("--epochs", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--ram", type=Bytes(), default="auto", show_default=True, help="the budget: 48GB, 48GiB, 0.5")
@click.option("--workers", type=str, default="auto", show_default=True, help="producers")
def demo(
    images: Path | None, frame: Path | None, size: tuple[int, int], batch: int, epochs: int, ram: str | float, workers: str
) -> None:
    """Train a small Keras CNN on your images through the ring, and compare with the generator people write by hand."""
    from ringload.insight.demo import run_demo

    if (images is None) == (frame is None):
        raise click.UsageError("give --images DIR (one folder a class) or --frame FILE (a table)")
    budget = int(ram) if isinstance(ram, float) and ram > 1 else ram
    try:
        run_demo(images, frame, size, batch, epochs, budget, "auto" if workers == "auto" else int(workers))
    except RingloadError as error:
        raise click.ClickException(str(error)) from error
