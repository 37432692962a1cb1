"""Large rings, page tables, and what decoding takes: the plan against what /proc says."""

from __future__ import annotations

import struct
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner
from PIL import Image

from ringload import Batch, ImageFrame, Loader, SampleError
from ringload.fields import Field
from ringload.images.decoder import worst_scratch_bytes
from ringload.insight.cli import main
from ringload.ring.plan import make_plan
from ringload.system.cgroups import Usable
from tests.conftest import Injected, Times
from tests.light import load_number
from tests.ram import blocks, check_blocks, reserved_bytes, status_bytes

pytestmark = pytest.mark.fault

GB = 10**9


# -- rings of tens of gigabytes -------------------------------------------------------------------------------------------


def test_a_plan_of_48_gb_counts_page_tables() -> None:
    """8 bytes a 4 KiB page, for each of 12 workers and the trainer: 13/512 of ring and index."""
    fields = {"image": Field((224, 224, 3), "uint8"), "label": Field((), "int64")}
    plan = make_plan(fields, 256, 12, "48GB", Usable(64 * GB, ""), index_bytes=30_000_000 * 84, max_sample_bytes=GB)
    mapped_bytes = plan.ring_bytes + plan.index_bytes + plan.control_bytes
    assert 13 * mapped_bytes // 512 <= plan.page_tables_bytes <= 13 * mapped_bytes // 512 + 13 * 8
    assert plan.page_tables_bytes > GB
    assert plan.total_bytes <= 48 * GB < plan.total_bytes + 2 * plan.slot_bytes
    assert "page tables 1.0 GB" in plan.arithmetic()
    arguments = "plan --ram 48GB --workers 12 --samples 30_000_000"
    output = CliRunner(env={"COLUMNS": "160"}).invoke(main, arguments.split()).output
    assert "page tables" in output
    assert "8 bytes a page of ring and index, for 12 workers and the trainer" in output


def ring_of(ring_bytes: int, workers: int = 2) -> Loader:
    """Batches of 4 MB. Workers import nothing for it."""
    budget_bytes = int(ring_bytes * (1 + (workers + 1) / 512)) + (64 << 20) + workers * (25 << 20) + (3 << 20)
    options: dict[str, Any] = {"fields": {"x": ((1_000_000,), "uint8")}, "n_samples": 100_000, "workers": workers}
    return Loader(load_number, 4, ram_budget=budget_bytes, **options)


def touch_all(made: Loader) -> None:
    """Hold as many batches as there are slots, each verified: so every page has been through the trainer's hands."""
    batches, held = iter(made), list[Batch]()
    while len(held) < made.plan().n_slots:
        held.append(next(batches))
        assert (held[-1]["x"] == (held[-1].index % 251 + 1).astype(np.uint8)[:, None]).all()


def test_page_tables_are_as_planned(injected: Injected) -> None:
    """The trainer touches the whole ring sooner or later; a worker some of it, and in the end all of it."""
    before_bytes = status_bytes("self", "VmPTE")
    with ring_of(1 << 30) as made:
        touch_all(made)
        mine_bytes = status_bytes("self", "VmPTE") - before_bytes
        each_bytes = made.plan().page_tables_bytes / 3
        assert 0.9 * each_bytes < mine_bytes < 1.1 * each_bytes
        workers = [p for p in psutil.Process().children(recursive=True) if p.name() in ("ringload:0", "ringload:1")]
        theirs_bytes = [status_bytes(process.pid, "VmPTE") for process in workers]
        assert len(theirs_bytes) == 2
        assert each_bytes < sum(theirs_bytes) < 2 * each_bytes + 2 * (512 << 10)  # and what any process has
    injected("a ring of 1 GiB, every page of it touched", 1)


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_a_ring_of_12_gib_does_not_delay_the_first_batch(injected: Injected) -> None:
    """By turns with a small one. The time is told, not judged; what is judged is that most of it was yet to be reserved."""
    ring_bytes = 12 << 30
    if psutil.virtual_memory().available < ring_bytes + (4 << 30):
        pytest.skip(f"needs 16 GiB of memory; {psutil.virtual_memory().available / GB:.1f} GB are available")
    first_s: dict[int, list[float]] = {1 << 28: [], ring_bytes: []}
    for n_bytes in [1 << 28, ring_bytes] * 3:
        begin_s = time.monotonic()
        with ring_of(n_bytes) as made:
            next(iter(made)).release()
            first_s[n_bytes].append(time.monotonic() - begin_s)
            assert made.plan().ring_bytes > 0.98 * n_bytes
            assert n_bytes < ring_bytes or reserved_bytes() < made.plan().ring_bytes / 4
    with ring_of(ring_bytes) as made:
        touch_all(made)
        assert made.stats.n_restarts == 0
    small, large = (", ".join(f"{s:.2f}" for s in times_s) for times_s in first_s.values())
    print(f"first batch of a ring of 256 MiB after {small} s; of 12 GiB after {large} s", file=sys.stderr)
    injected("a ring of 12 GiB, every page of it touched", 1)


# -- what decoding takes --------------------------------------------------------------------------------------------------

SIDE = 65_500


def encoded(kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(blocks(0, 40, 40)).save(buffer, kind, **options)
    return buffer.getvalue()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def bombs() -> dict[str, bytes]:
    """Files of a few hundred bytes whose headers say that they are 65,500 pixels wide and high, or what the format allows."""
    jpeg, progressive = encoded("JPEG"), encoded("JPEG", progressive=True)
    png = patched(encoded("PNG"), 16, struct.pack(">II", SIDE, SIDE))
    png = patched(png, 29, struct.pack(">I", zlib.crc32(png[12:29])))
    tiff = encoded("TIFF")
    for tag in (256, 257):  # width and length: an entry is tag, type, count, value
        at = next(tiff.index(entry) for kind in (3, 4) if (entry := struct.pack("<HHI", tag, kind, 1)) in tiff)
        tiff = patched(tiff, at, struct.pack("<HHII", tag, 4, 1, SIDE))
    lossless = encoded("WEBP", lossless=True)
    bits = int.from_bytes(lossless[21:25], "little") | (1 << 28) - 1  # 14 bits each: 16,384 by 16,384
    return {
        "baseline.jpg": patched(jpeg, jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", SIDE, SIDE)),
        "progressive.jpg": patched(progressive, progressive.index(b"\xff\xc2") + 5, struct.pack(">HH", SIDE, SIDE)),
        "a.png": png,
        "a.gif": patched(encoded("GIF"), 6, struct.pack("<HH", SIDE, SIDE)),
        "a.bmp": patched(encoded("BMP"), 18, struct.pack("<ii", SIDE, SIDE)),
        "a.tiff": tiff,
        "a.webp": patched(lossless, 21, bits.to_bytes(4, "little")),
    }


def test_bombs_of_every_format_are_refused_by_their_headers(tmp_path: Path, injected: Injected) -> None:
    """Before any memory is taken for their pixels: the worker's peak stays where it was."""
    files = {"small.png": encoded("PNG"), **bombs()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    source = ImageFrame(pd.DataFrame({"path": [*files]}), root=tmp_path, size=(20, 20))
    with Loader(source, 1, workers=1, ram_budget="2GB", shuffle=False, epochs=1) as made:
        batches = iter(made)
        check_blocks(0, next(batches)["image"][0])
        (worker,) = [p.pid for p in psutil.Process().children(recursive=True) if p.name() == "ringload:0"]
        for name in [*files][1:]:
            with pytest.raises(SampleError, match=rf"{name}.*(pixels: more than max_pixels|4290250000 pixels)"):
                next(batches)
            assert made.stats.n_restarts == 0
        assert status_bytes(worker, "VmHWM") < 100_000_000
    injected("an image file whose header says 65,500 x 65,500 pixels", len(files) - 1)


KINDS: list[tuple[str, dict[str, Any]]] = [("png", {"compress_level": 1}), ("jpg", {"progressive": True}), ("jpg", {})]


def own_bytes_after(folder: Path, suffix: str, options: dict[str, Any], n_pixels: int, n: int, huge: set[int]) -> int:
    """What a worker has of its own (USS) after `n` images, of which some are huge and wait for their turn."""
    names = []
    for index in range(n):
        height = int((n_pixels * 2 / 3) ** 0.5) if index in huge else 200
        names.append(f"{index}.{suffix}")
        Image.fromarray(blocks(index, height, n_pixels // height if index in huge else 300)).save(folder / names[-1], **options)
    source = ImageFrame(pd.DataFrame({"path": names}), root=folder, size=(64, 64), max_pixels=n_pixels)
    budget_bytes = worst_scratch_bytes(n_pixels) + 140_000_000  # too little for a scratch of more than 32 MB
    with Loader(source, 1, workers=1, ram_budget=budget_bytes, shuffle=False, epochs=1) as made:
        assert made.plan().exclusive_bytes
        for batch in made:
            check_blocks(int(batch.index[0]), batch["image"][0])
        (worker,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "ringload:0"]
        return int(worker.memory_full_info().uss)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("suffix", "options"), KINDS, ids=["png", "progressive", "baseline"])
def test_a_worker_gives_back_what_a_huge_image_took(
    tmp_path: Path, suffix: str, options: dict[str, Any], times: Times, injected: Injected
) -> None:
    n_pixels, n = times(12_000_000, 24_000_000), times(20, 60)
    huge = set(range(5, n - 5, 5))
    small_bytes = own_bytes_after(tmp_path, suffix, options, n_pixels, n, set())
    huge_bytes = own_bytes_after(tmp_path, suffix, options, n_pixels, n, huge)
    print(f"{suffix} {options}: {small_bytes / 1e6:.1f} MB, and after huge ones {huge_bytes / 1e6:.1f} MB", file=sys.stderr)
    assert huge_bytes < small_bytes + 8_000_000  # the buffer that files are read into grows to 4 MiB
    injected("an image of max_pixels between small ones", len(huge))
