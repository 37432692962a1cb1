"""The command line: `ringload plan`, `ringload check`, `ringload pack` and `ringload demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ringload
from ringload.errors import RingloadError, missing
from ringload.fields import Field
from ringload.options import n_workers
from ringload.ring.plan import make_plan, parse_bytes
from ringload.system.cgroups import Usable, usable_memory

try:
    import click
except ImportError as error:
    raise missing("the command line", "click", error) from error
try:
    from rich.console import Console
except ImportError as error:
    raise missing("the command line", "rich", error) from error

PATH_BYTES = 64  # of a sample's path, on average: an assumption, as there is no table yet
INDEX_ROW_BYTES = PATH_BYTES + 8 + 4 + 8  # path, its start, its length, its label


class Count(click.ParamType):
    """An integer of at least `least`, in Python's notation: 30_000_000."""

    name = "integer"

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            count = int(value)
        except ValueError:
            self.fail(f"{value!r} is not an integer", param, ctx)
        if count < self._least:
            self.fail(f"{count} is less than {self._least}", param, ctx)
        return count


class Workers(Count):
    """`auto`, or a number of workers."""

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


class Sized(click.Command):
    """A command whose `--size 224` is short for `--size 224 224`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--size=") else [arg])]
        for place, arg in enumerate(args[:-1], 1):
            if arg == "--size" and args[place].isdigit() and not "".join(args[place + 1 : place + 2]).isdigit():
                args.insert(place, args[place])
                break
        return super().parse_args(ctx, args)


def _print_version(ctx: click.Context, param: click.Parameter, is_given: bool) -> None:
    """Print the version, and which decoder and resampler this installation uses."""
    if not is_given or ctx.resilient_parsing:
        return
    try:
        from ringload.images.engines import engines
    except ImportError as error:
        lines = [f"images: not available ({error})"]
    else:
        lines = engines()
    click.echo("\n".join((f"ringload {ringload.__version__}", *lines)))
    ctx.exit()


@click.group()
@click.option(
    *("--version", "-V"),
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="print versions and exit",
)
def main() -> None:
    """Feeds a training loop from a dataset far larger than memory."""


@main.command(cls=Sized)
@click.option(
    "--size", nargs=2, type=Count(), default=(224, 224), show_default=True, metavar="H W", help="in pixels; one number for both"
)
@click.option("--channels", type=click.IntRange(1, 4), default=3, show_default=True)
@click.option("--dtype", type=click.Choice(["uint8", "float32"]), default="uint8", show_default=True)
@click.option("--batch", type=Count(), default=256, show_default=True, help="samples a batch")
@click.option("--ram", default="auto", show_default=True, metavar="BYTES", help="the budget: 48GB, 48GiB, 0.5, 50%")
@click.option("--workers", type=Workers(0), default="auto", show_default=True, help="how many worker processes")
@click.option("--samples", type=Count(), default=1_000_000, show_default=True, help="in the dataset")
@click.option("--max-pixels", type=Count(), help="of the largest image; default: what half of the budget holds")
@click.option("--here/--anywhere", default=False, help="refuse what does not fit into this machine's memory")
def plan(
    size: tuple[int, int],
    channels: int,
    dtype: str,
    batch: int,
    ram: str,
    workers: Any,
    samples: int,
    max_pixels: int | None,
    here: bool,
) -> None:
    """Print how much memory a Loader would use, and for what. Starts and allocates nothing."""
    from ringload.images.decoder import worst_scratch_bytes
    from ringload.insight.report import plan_table

    try:
        usable = usable_memory()
        budget = ram if ram == "auto" else parse_bytes(ram, usable)
        if not here and isinstance(budget, int) and budget > usable.n_bytes:
            usable = Usable(budget, "assumed; this machine has less")
        made = make_plan(
            {"image": Field((*size, channels), dtype), "label": Field((), "int64")},
            batch,
            n_workers(workers),
            budget,
            usable,
            index_bytes=samples * INDEX_ROW_BYTES,
            max_sample_bytes=worst_scratch_bytes(max_pixels),
            refuses_large=max_pixels is None,
        )
    except RingloadError as error:
        raise click.ClickException(_in_options(error)) from error
    Console().print(plan_table(made))


@main.command(cls=Sized)
@click.option("--images", type=click.Path(path_type=Path), help="a folder with one folder of images a class")
@click.option("--frame", type=click.Path(path_type=Path), help="a CSV or Parquet table of image files")
@click.option("--path", help="the table's column of paths; default: path")
@click.option("--label", help="the table's column of classes; default: multi")
@click.option("--root", type=click.Path(path_type=Path), help="where relative paths start; default: the table's folder")
@click.option(
    "--size", nargs=2, type=Count(), default=(160, 160), show_default=True, metavar="H W", help="in pixels; one number for both"
)
@click.option("--batch", type=Count(), default=32, show_default=True, help="samples a batch")
@click.option("--epochs", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--ram", default="auto", show_default=True, metavar="BYTES", help="the budget: 48GB, 48GiB, 0.5, 50%")
@click.option("--workers", type=Workers(0), default="auto", show_default=True, help="how many worker processes")
def demo(
    images: Path | None,
    frame: Path | None,
    path: str | None,
    label: str | None,
    root: Path | None,
    size: tuple[int, int],
    batch: int,
    epochs: int,
    ram: str,
    workers: Any,
) -> None:
    """Train a small Keras CNN on your images through the ring, and compare it with a hand-written generator."""
    from ringload.insight.demo import run_demo

    if (images is None) == (frame is None):
        raise click.UsageError("give --images DIR (one folder a class) or --frame FILE (a table)")
    columns = {"path": path, "label": label, "root": root}
    given = {name: value for name, value in columns.items() if value is not None}
    if images is not None and given:
        raise click.UsageError(f"{', '.join(f'--{name}' for name in given)}: only for a table, --frame FILE, not for --images")
    try:
        run_demo(images, frame, {"label": "multi", **given}, size, batch, epochs, ram, workers)
    except RingloadError as error:
        raise click.ClickException(_in_options(error)) from error
    except ImportError as error:
        raise click.ClickException(f"the demo trains a Keras model: {error}") from error


@main.command()
@click.argument("given", metavar="TABLE|DIR", type=click.Path(exists=True, path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(file_okay=False, path_type=Path))
@click.option("--path", help="the table's column of paths; default: path")
@click.option("--label", help="the table's column of labels; default: none. A folder's classes are its folders")
@click.option("--root", type=click.Path(path_type=Path), help="where relative paths start; default: the table's folder")
@click.option("--keep", multiple=True, metavar="COLUMN", help="a column that goes into .json; may be repeated")
@click.option("--name", default="shard", show_default=True, help="shards are called NAME-000000.tar, and so on")
@click.option("--samples", type=Count(), default=1000, show_default=True, help="in a shard")
@click.option(
    "--shuffle", type=Count(0), metavar="SEED", help="shuffle the samples, for readers that read shards from end to end"
)
@click.option(
    "--resize", metavar="HxW|SIDE", help="make images smaller, as JPEG: to a size, or to a shortest side; others stay"
)
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="of JPEG, with --resize")
@click.option("--skip-bad", is_flag=True, help="leave out files that are missing or no images, and name them")
@click.option("--workers", type=Workers(1), default="auto", show_default=True, help="how many threads")
def pack(
    given: Path,
    out: Path,
    path: str | None,
    label: str | None,
    root: Path | None,
    keep: tuple[str, ...],
    name: str,
    samples: int,
    shuffle: int | None,
    resize: str | None,
    quality: int,
    skip_bad: bool,
    workers: Any,
) -> None:
    """Write a table's images, or a folder of classes, into tar shards by WebDataset's convention.

    Each shard is read back and compared. A run that was ended goes on: it checks the shards that are complete, and keeps them.
    """
    from ringload.insight.pack import Options, run_pack
    from ringload.insight.pack_image import resized_of

    columns = {"path": path, "label": label, "root": root}
    columns = {argument: value for argument, value in columns.items() if value is not None}
    if given.is_dir() and columns:
        raise click.UsageError(f"{', '.join(f'--{one}' for one in columns)}: only for a table, not for a folder of classes")
    try:
        resized = resized_of(resize, quality)
        options = Options(name, samples, shuffle, keep, resized, skip_bad, max(1, n_workers(workers)))
        run_pack(given, out, columns, options)
    except (RingloadError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command(cls=Sized)
@click.argument("dataset", metavar="TABLE|DIR|SHARDS")
@click.option("--path", help="the table's column of paths; default: path")
@click.option("--label", help="the column of classes, to count them; of shards, such as cls")
@click.option("--root", type=click.Path(path_type=Path), help="where relative paths start; default: the table's folder")
@click.option(
    "--size", nargs=2, type=Count(), default=(224, 224), show_default=True, metavar="H W", help="in pixels; one number for both"
)
@click.option("--color", type=click.Choice(["rgb", "gray", "rgba"]), default="rgb", show_default=True)
@click.option("--truncated", type=click.Choice(["refuse", "pad"]), help="files that are cut short; default: refuse")
@click.option("--max-pixels", type=Count(), help="larger images are bad; default: what half of the budget holds")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help=".parquet or .csv, one row a sample")
@click.option("--fast", is_flag=True, help="look at the beginning and the end of files only: no damaged pixels, no duplicates")
@click.option("--strict", is_flag=True, help="status 1 for duplicates and wrong suffixes, too")
@click.option("--restart", is_flag=True, help="do not go on with the journal beside the report, which a killed check has left")
@click.option("--ram", default="auto", show_default=True, metavar="BYTES", help="the budget: 48GB, 48GiB, 0.5, 50%")
@click.option("--workers", type=Workers(0), default="auto", show_default=True, help="how many worker processes")
def check(dataset: str, **options: Any) -> None:
    """Load each image of a dataset once, and report those that are bad.

    TABLE is a .csv or .parquet file, DIR a folder with one folder of images a class, or a folder of images, and SHARDS a tar
    file, a folder of them, a pattern such as 'train-{000..099}.tar', or a URL. The status is 0 if all images are good, 1 if
    some are bad, 2 if the check could not be made. With --report, a check that was killed goes on where it was.
    """
    from ringload.insight.check.command import run_check

    try:
        status = run_check(dataset, **options)
    except RingloadError as error:
        raise click.UsageError(_in_options(error)) from error
    except ImportError as error:
        raise click.UsageError(str(error)) from error
    raise SystemExit(status)


def _in_options(error: RingloadError) -> str:
    """An error's message, with names of options in place of names of arguments."""
    text = str(error)
    for argument, option in (("ram_budget", "--ram"), ("batch_size", "--batch"), ("max_pixels", "--max-pixels")):
        text = text.replace(argument, option)
    return text
