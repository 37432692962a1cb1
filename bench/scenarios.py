"""The scenarios: the data, the method, the peers, and ringload's goals.

Every figure is for 2 workers unless said otherwise. `make bench-quick` runs the scenarios and peers marked `quick`. A scenario
with `of` is another figure from the measurements of that scenario.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import data
from bench.scenario import N_PHOTOS, Scenario, at_least, at_most, files_of, photos, remote, rows, sleeps, table

ROW_224 = (224, 224, 3)

EVERYBODY = (
    *("roofline", "torch", "torch-pillow", "torch-vision", "tfdata", "grain", "spdl", "dali", "webdataset", "litdata"),
    *("keras", "naive"),
)
FORMATS = ("torch-pillow", "torch-opencv", "tfdata")
IMAGES: dict[str, Any] = {"metric": "samples_per_s", "unit": "images/s", "more": True}
STEADY: dict[str, Any] = {"ours": {"ahead": 16}}
COPIES: dict[str, Any] = {**STEADY, "metric": "gb_per_s", "unit": "GB/s", "more": True, "seconds": 1.0, "warm_s": 0.7}
FIRST: dict[str, Any] = {"metric": "first_s", "unit": "s", "more": False, "method": "first"}
MEMORY: dict[str, Any] = {"metric": "own_mb", "unit": "MB", "more": False, "method": "memory", "seconds": 3.0}

SCENARIOS = (
    Scenario(
        name="decode-64",
        number=1,
        title="photographs, 224 x 224, batches of 64",
        **STEADY,
        **IMAGES,
        peers=EVERYBODY,
        work=photos(64),
        quick=("roofline", "torch", "tfdata", "naive"),
        goals=(at_least(0.97, "roofline"), at_least(1.12, "torch"), at_least(1.4, "tfdata"), at_least(4.5, "naive")),
    ),
    Scenario(
        name="decode-256",
        number=1,
        title="photographs, 224 x 224, batches of 256",
        **STEADY,
        **IMAGES,
        peers=("roofline", "torch"),
        work=photos(256),
        seconds=3.0,
    ),
    Scenario(
        name="large",
        number=2,
        title="photographs of 12 to 24 megapixels, batches of 16",
        **STEADY,
        **IMAGES,
        peers=("roofline", "torch"),
        work=photos(16, 480) | {"folder": str(data.ROOT / "large"), "n_files": None},
        seconds=3.0,
    ),
    Scenario(
        name="copy-0.05",
        number=3,
        title="copies, batches of 0.05 MB",
        **COPIES,
        peers=("copying", "torch"),
        work=rows(64, (28, 28), n_rows=60_000),
    ),
    Scenario(
        name="copy-9.6",
        number=3,
        title="copies, batches of 9.6 MB",
        **COPIES,
        peers=("copying", "torch"),
        work=rows(64, ROW_224),
    ),
    Scenario(
        name="copy-38.5",
        number=3,
        title="copies, batches of 38.5 MB",
        **COPIES,
        peers=("copying", "torch", "grain", "torch-numpy"),
        work=rows(256, ROW_224),
        quick=("copying", "torch"),
        goals=(at_least(8, "torch"), at_least(15, "grain")),
    ),
    Scenario(
        name="copy-154",
        number=3,
        title="copies, batches of 154 MB",
        **COPIES,
        peers=("copying", "torch"),
        work=rows(1024, ROW_224),
    ),
    Scenario(
        name="tabular",
        number=4,
        title="rows of 32 float32, batches of 1,024",
        metric="samples_per_s",
        unit="rows/s",
        more=True,
        peers=("torch", "tfdata"),
        work=rows(1024, (32,), "float32", 1_000_000),
        **STEADY,
        seconds=1.0,
    ),
    Scenario(
        name="tiny",
        number=4,
        title="28 x 28, batches of 256",
        metric="samples_per_s",
        unit="images/s",
        more=True,
        peers=("torch", "keras"),
        work=rows(256, (28, 28), n_rows=60_000),
        **STEADY,
        seconds=1.0,
        quick=("torch",),
    ),
    Scenario(
        name="first-4k",
        number=5,
        title="first batch of 256, of 4 thousand files",
        **FIRST,
        peers=("torch", "tfdata", "grain"),
        work=photos(256, 4096),
        quick=("torch",),
        goals=(at_most(0.25, "torch"),),
    ),
    Scenario(
        name="ready-4k",
        number=5,
        title="the same, with the import of the framework, but not of numpy and pandas",
        metric="ready_s",
        unit="s",
        more=False,
        peers=("torch", "tfdata", "grain"),
        of="first-4k",
        goals=(at_most(0.25, "torch"),),
    ),
    Scenario(
        name="first-1m",
        number=5,
        title="first batch of 256, of 1 million files",
        **FIRST,
        peers=("torch", "tfdata"),
        work=table(1_000_000),
    ),
    Scenario(
        name="first-30m",
        number=5,
        title="first batch of 256, of 30 million files",
        **FIRST,
        peers=("torch",),
        work=table(30_000_000),
        options={"watch": True},
    ),
    Scenario(
        name="skew",
        number=6,
        title="time waited; 1 sample in 50 costs 50 times as much, step 1.1 x load",
        metric="wait_share",
        unit="of the time",
        more=False,
        peers=("torch", "grain"),
        work=sleeps(64, 0.002, every=50, factor=50.0),
        method="steps",
        options={"step": 1.1},
        seconds=5.0,
        quick=("torch",),
        goals=(at_most(0.3, "torch"),),
    ),
    *(
        Scenario(
            name=f"step-{step}",
            number=7,
            title=f"wall time over the ideal, step {step} x load",
            metric="over_ideal",
            unit="x ideal",
            more=False,
            peers=("torch",),
            work=sleeps(64, 0.004),
            method="steps",
            options={"step": step},
            seconds=4.0,
            quick=("torch",) if step == 1 else (),
            goals=(at_most(1.03),),
        )
        for step in (0.5, 1, 2)
    ),
    Scenario(
        name="cold",
        number=8,
        title="one epoch of photographs that are not in the page cache",
        **IMAGES,
        peers=("torch", "tfdata"),
        work=photos(64, N_PHOTOS // 2),
        method="epoch",
    ),
    Scenario(
        name="slow",
        number=8,
        title="one epoch from storage that takes 20 ms a read (FUSE)",
        **IMAGES,
        peers=("torch", "tfdata"),
        work=photos(64, 10 * 64),
        method="epoch",
        options={"delay_ms": 20},
        needs_root=True,
    ),
    *(
        Scenario(
            name=f"remote-{latency_ms}",
            number=16,
            title=f"one epoch of photographs from a web server that takes {latency_ms} ms a request",
            **IMAGES,
            peers=("ringload-shards", "torch-remote", "tfdata", "webdataset", "litdata"),
            work=remote(),
            method="epoch",
            options={"latency_ms": latency_ms},
            goals=(at_least(1.0, "torch-remote"), at_least(1.0, "webdataset"), at_least(1.0, "litdata")),
        )
        for latency_ms in (0, 50)
    ),
    *(
        Scenario(
            name=f"memory-{workers}",
            number=9,
            title=f"memory beyond the trainer's imports, {workers} workers, batches of 64, as many ahead as torch",
            **MEMORY,
            peers=("torch", "ringload-default") if workers == 2 else ("torch",),
            work=photos(64),
            workers=workers,
            options={"watch": True},
            ours={"lean": True},
            quick=("torch", "ringload-default") if workers == 2 else (),
        )
        for workers in (1, 2, 4, 8)
    ),
    Scenario(
        name="memory-all",
        number=9,
        title="PSS of all processes, the trainer's imports included, 2 workers",
        metric="peak_mb",
        unit="MB",
        more=False,
        peers=("torch",),
        of="memory-2",
        goals=(at_most(0.5, "torch"),),
    ),
    Scenario(
        name="memory-30m",
        number=9,
        title="memory beyond the trainer's imports and table, first batch of 30 million files",
        metric="own_mb",
        unit="MB",
        more=False,
        peers=("torch",),
        of="first-30m",
        goals=(at_most(0.5, "torch"),),
    ),
    Scenario(
        name="consumer",
        number=10,
        title="trainer's CPU a batch of 9.6 MB",
        metric="consumer_cpu_us",
        unit="us",
        more=False,
        peers=("torch",),
        of="copy-9.6",
        goals=(at_most(100),),
    ),
    Scenario(
        name="train-keras",
        number=11,
        title="a small Keras CNN, 96 x 96, 2 epochs",
        **IMAGES,
        peers=("keras", "tfdata"),
        work=photos(64, 1472, 96),
        method="train",
        options={"framework": "keras", "epochs": 2},
    ),
    Scenario(
        name="train-torch",
        number=11,
        title="a small torch CNN, 96 x 96, 2 epochs",
        **IMAGES,
        peers=("torch", "torch-pillow"),
        work=photos(64, 1472, 96),
        method="train",
        options={"framework": "torch", "epochs": 2},
    ),
    Scenario(
        name="scaling",
        number=12,
        title="samples that sleep 8 ms, 12 workers (and 1, 2, 4, 8)",
        metric="samples_per_s",
        unit="samples/s",
        more=True,
        peers=("torch",),
        work=sleeps(32, 0.008),
        method="scaling",
        options={"counts": [1, 2, 4, 8, 12]},
        workers=12,
        seconds=1.0,
        quick=("torch",),
    ),
    Scenario(
        name="recipe",
        number=13,
        title="random resized crop and flip, 500 pixels to 224 x 224, batches of 64",
        **STEADY,
        **IMAGES,
        peers=("roofline", "tfdata", "torch-opencv", "torch-area", "torch-vision", "grain", "dali"),
        work=files_of("recipe", 64),
        quick=("roofline", "tfdata", "torch-opencv"),
        goals=(
            *(at_least(0.97, "roofline"), at_least(1.15, "tfdata")),
            *(at_least(1.5, "torch-opencv"), at_least(1.5, "torch-area")),
        ),
    ),
    Scenario(
        name="12mp",
        number=14,
        title="photographs of 12 megapixels to 224 x 224, batches of 16",
        **STEADY,
        **IMAGES,
        peers=("torch-draft", "torch-opencv", "tfdata"),
        work=files_of("12mp", 16),
        seconds=3.0,
        quick=("torch-draft",),
        goals=(at_least(1.3, "torch-draft"),),
    ),
    Scenario(
        name="png",
        number=15,
        title="PNG, 500 pixels to 224 x 224, batches of 64",
        **STEADY,
        **IMAGES,
        peers=FORMATS,
        work=files_of("png", 64),
        quick=("torch-opencv",),
        goals=(at_least(1.0, "torch-opencv"),),
    ),
    Scenario(
        name="webp",
        number=15,
        title="WebP, 500 pixels to 224 x 224, batches of 64",
        **STEADY,
        **IMAGES,
        peers=FORMATS,
        work=files_of("webp", 64),
        quick=("torch-opencv",),
    ),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def make_folder(folder: Path) -> None:
    """Make a folder of photographs, if it does not exist."""
    makes: dict[Path, Callable[[], Path]] = {
        data.ROOT / "large": data.large,
        data.ROOT / "12mp": lambda: data.large(12, 12),
        data.ROOT / "of-500": data.of_500,
        data.ROOT / "png": lambda: data.converted("png"),
        data.ROOT / "webp": lambda: data.converted("webp"),
    }
    if folder in makes:
        makes[folder]()


def prepare(scenario: Scenario) -> None:
    """Make the files that a scenario needs, if they do not exist."""
    from bench.work import Photos, Rows, make_work

    if scenario.of:
        return
    work = make_work(scenario.work)
    if isinstance(work, Photos):
        make_folder(work.folder)
        if work.is_recipe:
            data.parts(work.folder)
        else:
            data.truth(work.folder, work.size)
        if work.table is not None:
            data.table(work.n_samples)
    if isinstance(work, Rows):
        data.rows(work.n_rows, work.shape, work.dtype)
    if scenario.options.get("delay_ms"):
        from bench.slowfs import program

        program()
