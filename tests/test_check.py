"""`ringload check`: what it calls good is what the loader loads; what is bad is named; a killed check goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import ringload
from ringload import ConfigError, ImageFrame, Loader
from ringload.insight.check.journal import ENTRY, Journal
from ringload.insight.check.source import RECORD
from ringload.insight.cli import main
from tests.conftest import Injected, Times
from tests.crashing_images import Crashes
from tests.fuzzing import make_input
from tests.helpers import photo, run
from tests.hostile import CASES, HEIGHT, WIDTH, image

BUDGET = "800MB"
WHERE = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.filterwarnings("ignore:none of the .* files of column"),
    pytest.mark.filterwarnings("ignore:.* files that were looked for"),
]


def frame_of(paths: list[str], root: Path, **options: Any) -> ImageFrame:
    given = {"size": (HEIGHT, WIDTH), "max_pixels": 2_000_000, "root": root} | options
    return ImageFrame(pd.DataFrame({"path": pd.Series(paths, dtype=object)}), **given)


def loaded(source: ImageFrame) -> np.ndarray:
    """Whether a loader loads each sample: `(N,) bool`."""
    valid = np.zeros(len(source), bool)
    options: dict[str, Any] = {"order": "sequence", "epochs": 1, "last": "keep", "max_bad": len(source), "ram_budget": BUDGET}
    with Loader(source, 8, workers=2, on_error="skip", **options) as loader:
        for batch in loader:
            valid[batch.index] = batch["valid"]
    return valid


def agrees(source: ImageFrame) -> ringload.CheckReport:
    """Check a source, and compare with what a loader loads; with fast=True no good sample is called bad."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, fast = (ringload.check(source, workers=2, ram_budget=BUDGET, fast=one) for one in (False, True))
        valid = loaded(source)
    np.testing.assert_array_equal(found.records["status"] == 0, valid)
    assert not (valid & (fast.records["status"] != 0)).any()
    assert set(found.reasons) == set(np.flatnonzero(~valid).tolist())
    assert all(found.reasons.values())
    return found


def status(found: ringload.CheckReport, sample: int) -> str:
    return found.statuses[found.records["status"][sample]]


EXPECTED = {
    "missing": ("missing", "below a file", "a link to nowhere", "vanishes"),
    "unreadable": (
        "directory",
        "FIFO",
        "socket",
        "/dev/zero",
        "a loop of links",
        "a name of 300 characters",
        "JPEG cut at 0/16",
    ),
    "not an image": ("zero bytes", "random bytes", "text", "EPS", "pickle", "torch file"),
    "too large": ("JPEG of 12000 x 12000", "PNG of 60000 x 60000", "GIF of 60000 x 60000", "PGM of 65536 x 65536"),
    "truncated": (
        "JPEG cut at 8/16",
        "PNG cut at 8/16",
        "WEBP cut at 8/16",
        "BMP cut at 8/16",
        "progressive JPEG cut at 12/16",
    ),
    "damaged": ("TIFF of 65535 values a pixel", "PGM without a size"),
    "ok": ("PNG that is called JPEG", "PNG with a bomb as text", "CMYK", "16 bits", "animated"),
}


def test_files_of_every_kind(tmp_path: Path) -> None:
    paths = []
    for number, case in enumerate(CASES.values()):
        paths.append(str(case.make(tmp_path / f"{number}.jpg", tmp_path) or f"{number}.jpg"))
    source = frame_of(paths, tmp_path)
    for number, case in enumerate(CASES.values()):
        if case.listed is not None:
            case.listed(tmp_path / f"{number}.jpg")
    found = agrees(source)
    names = list(CASES)
    for expected, cases in EXPECTED.items():
        for name in cases:
            assert status(found, names.index(name)) == expected, (name, found.reasons.get(names.index(name)))
    bomb = found.records[names.index("PNG of 60000 x 60000")]
    assert (bomb["height"], bomb["width"]) == (60000, 60000)
    assert names.index("PNG that is called JPEG") in found.misnamed
    assert "unpickled" not in " ".join(os.listdir(tmp_path))


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_damaged_files_are_judged_as_the_loader_does(tmp_path: Path, times: Times, injected: Injected) -> None:
    n = times(120, 2000)
    for number in range(n):
        (tmp_path / f"{number}").write_bytes(make_input(20261130, number))
    found = agrees(frame_of([str(number) for number in range(n)], tmp_path, size=(20, 24), max_pixels=1 << 20))
    assert n // 20 < found.n_bad < n
    injected("damaged image that is checked", n)


def test_the_budget_bounds_the_pixels_as_in_a_loader(tmp_path: Path) -> None:
    """Without max_pixels, an image that needs more memory than the budget has is bad, also by a look at its header."""
    Image.new("L", (5000, 5000)).save(tmp_path / "0.png", compress_level=1)
    Image.new("RGB", (30, 30)).save(tmp_path / "1.png")
    source = frame_of(["0.png", "1.png"], tmp_path, max_pixels=None)
    for fast in (False, True):
        found = ringload.check(source, workers=1, ram_budget="320MB", fast=fast)
        assert [status(found, 0), status(found, 1)] == ["too large", "ok"], found.reasons
        assert "raise ram_budget" in found.reasons[0]
        assert ringload.check(source, workers=1, ram_budget="1200MB", fast=fast).n_bad == 0


def test_a_sample_that_ends_its_worker_is_named(tmp_path: Path) -> None:
    Image.fromarray(photo(0, 20, 30)).save(tmp_path / "a.png")
    source = Crashes(pd.DataFrame({"path": ["a.png"] * 90}), root=tmp_path, size=(8, 8))
    found = ringload.check(source, tmp_path / "report.csv", workers=2, ram_budget=BUDGET)
    assert found.status_counts == {"ok": 87, "crashed": 3}
    assert found.bad.tolist() == [3, 70, 71]
    assert "SIGSEGV" in found.reasons[3]
    table = pd.read_csv(tmp_path / "report.csv")
    assert table.loc[table["status"] == "crashed", "row"].tolist() == [3, 70, 71]
    assert table["reason"][71] == found.reasons[71]


# -- what is found of good images -----------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A table of 8 files: two formats, a duplicate with another label, a wrong suffix, a missing and a truncated file."""
    made = {"a.jpg": image("JPEG"), "b.png": image("PNG"), "c.webp": image("WEBP"), "d.jpg": image("PNG", "L")}
    made |= {"copy.jpg": made["a.jpg"], "cut.jpg": made["a.jpg"][:-300], "big.png": b""}
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (200, 100)).save(tmp_path / "big.png")
    names = ["a.jpg", "b.png", "c.webp", "d.jpg", "copy.jpg", "cut.jpg", "big.png", "none.jpg"]
    table = pd.DataFrame({"path": names, "kind": ["x", "x", "y", "y", "y", "x", "x", "z"]})
    table.to_csv(tmp_path / "table.csv", index=False)
    table.to_parquet(tmp_path / "table.parquet")
    return tmp_path


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_report(mixed: Path, suffix: str) -> None:
    path = mixed / f"report.{suffix}"
    source = ImageFrame(mixed / "table.csv", label="kind", size=(8, 8))
    told: list[tuple[int, int]] = []
    found = ringload.check(source, path, workers=1, progress=lambda n, of: told.append((n, of)))
    assert told == [(0, 8), (8, 8)]
    assert found.status_counts == {"ok": 6, "missing": 1, "truncated": 1}
    assert found.format_counts == {"JPEG": 3, "PNG": 3, "WebP": 1}
    assert found.sizes == {"width": (48, 48.0, 200), "height": (36, 36.0, 100)}
    assert found.class_counts == {"label": {"x": 4, "y": 3, "z": 1}}
    assert found.duplicate_of.tolist() == [-1, -1, -1, -1, 0, -1, -1, -1]
    assert found.contradicting.tolist() == [4]
    assert found.misnamed.tolist() == [3]
    assert source.subset(found.good).filenames == ["a.jpg", "b.png", "c.webp", "d.jpg", "copy.jpg", "big.png"]
    table = pd.read_csv(path) if suffix == "csv" else pd.read_parquet(path)
    assert table["row"].tolist() == list(range(8))
    assert table["path"].tolist() == source.filenames
    assert table["status"].tolist() == [status(found, sample) for sample in range(8)]
    assert table["width"].tolist()[:7] == [48, 48, 48, 48, 48, 48, 200]
    assert table["width"].isna().tolist() == [False] * 7 + [True]
    assert table["bytes"].tolist()[:7] == [os.path.getsize(mixed / name) for name in source.filenames[:7]]
    assert table["hash"].isna().tolist() == [False] * 7 + [True]
    assert table["hash"][0] == table["hash"][4] == __import__("xxhash").xxh3_128_hexdigest((mixed / "a.jpg").read_bytes())
    assert table["duplicate_of"].dropna().to_dict() == {4: 0}
    assert "No such file" in table["reason"][7]
    assert sorted(os.listdir(mixed)) == sorted([*source.filenames[:7], f"report.{suffix}", "table.csv", "table.parquet"])


def test_rows_are_those_of_the_table_in_a_part(mixed: Path) -> None:
    source = ImageFrame(mixed / "table.csv", label="kind", size=(8, 8)).subset([7, 4, 0])
    ringload.check(source, mixed / "report.csv", workers=1)
    table = pd.read_csv(mixed / "report.csv")
    assert table["row"].tolist() == [7, 4, 0]
    assert table["status"].tolist() == ["missing", "ok", "ok"]
    assert table["duplicate_of"].dropna().tolist() == [4]


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("one", {"label_mode": "categorical"}),
        (["p", "q"], {}),
        ("lists", {"classes": ["p", "q"]}),
        ("one", {"label_mode": "binary"}),
    ],
)
def test_classes_and_contradictions_of_every_kind_of_label(tmp_path: Path, label: Any, options: Any) -> None:
    """Rows 0 and 1 have one label, row 2 the same content and another label."""
    Image.fromarray(photo(0, 20, 30)).save(tmp_path / "a.png")
    lists = [["p", "q"], ["q", "p"], ["p"]] if label == "lists" else [[], [], []]
    table = pd.DataFrame({"path": ["a.png"] * 3, "one": ["p", "p", "q"], "p": [1, 1, 1], "q": [1, 1, 0], "lists": lists})
    expected = {"p": 2, "q": 1} if label == "one" else {"p": 3, "q": 2}
    found = ringload.check(ImageFrame(table, label=label, root=tmp_path, size=(8, 8), **options), workers=0)
    assert found.class_counts == {"label": expected}
    assert found.contradicting.tolist() == [2]


def test_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(photo(0, 20, 30)).save(tmp_path / name)
    source = frame_of([name], tmp_path)
    for suffix in ("csv", "parquet"):
        assert ringload.check(source, tmp_path / f"r.{suffix}", workers=0).n_bad == 0
    assert b"caf\xe9.png" in (tmp_path / "r.csv").read_bytes()
    assert pd.read_parquet(tmp_path / "r.parquet")["path"].tolist() == ["caf\\xe9.png"]


def test_what_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    Image.fromarray(photo(0, 20, 30)).save(tmp_path / "a.png")
    source = frame_of(["a.png"], tmp_path)
    with pytest.raises(ConfigError, match="only an ImageFrame or an ImageFolder can be checked, not Arrays"):
        ringload.check(ringload.Arrays(x=np.zeros(3)))
    for report, said in [
        ("r.txt", r"\.parquet or a \.csv"),
        (3, r"not to 3"),
        (tmp_path / "no" / "r.csv", "there is no folder"),
    ]:
        with pytest.raises(ConfigError, match=said):
            ringload.check(source, report)
    with pytest.raises(ConfigError, match="fast is True or False"):
        ringload.check(source, fast="yes")
    code = """
        import sys
        sys.modules["pyarrow"] = None
        import ringload
        try:
            ringload.check(ringload.ImageFrame(sys.argv[1] + "/t.csv", size=(8, 8)), sys.argv[1] + "/r.parquet")
        except ImportError as error:
            print(error)
    """
    (tmp_path / "t.csv").write_text("path\na.png\n")
    done = run(code, tmp_path)
    assert "a report as a .parquet file needs pyarrow" in done.stdout
    assert not list(tmp_path.glob("r.parquet*"))


# -- the journal ----------------------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    import ringload

    def progress(n_checked, n_samples):
        if n_checked >= 128:
            os.kill(os.getpid(), signal.SIGKILL)

    source = ringload.ImageFrame(sys.argv[1] + "/table.csv", size=(8, 8))
    ringload.check(source, sys.argv[1] + "/report.csv", workers=2, progress=progress)
"""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A table of 300 files, of which every 7th is truncated."""
    for number in range(300):
        content = image("PNG")
        (tmp_path / f"{number}.png").write_bytes(content[:-200] if number % 7 == 0 else content)
    (tmp_path / "table.csv").write_text("path\n" + "".join(f"{number}.png\n" for number in range(300)))
    return tmp_path


@pytest.mark.fault
def test_a_killed_check_goes_on_and_reads_no_file_twice(many: Path, injected: Injected) -> None:
    done = run(KILLED, many)
    assert done.returncode == -signal.SIGKILL
    assert not (many / "report.csv").exists()
    for number in range(128):  # whoever reads them again finds them missing
        (many / f"{number}.png").unlink()
    told: list[int] = []
    source = ImageFrame(many / "table.csv", size=(8, 8))
    found = ringload.check(source, many / "report.csv", workers=2, progress=lambda n, of: told.append(n))
    assert (found.n_resumed, told[0], told[-1]) == (128, 128, 300)
    assert found.bad.tolist() == list(range(0, 300, 7))
    assert found.status_counts == {"ok": 257, "truncated": 43}
    assert pd.read_csv(many / "report.csv")["status"].eq("ok").sum() == 257
    assert not (many / "report.csv.journal").exists()
    injected("kill of a check", 1)


def test_a_journal_of_another_check_is_refused(many: Path) -> None:
    run(KILLED, many)
    journal = many / "report.csv.journal"
    for options, said in [({"max_pixels": 10_000}, "options was .* and is "), ({"truncated": "pad"}, "options was ")]:
        with pytest.raises(ConfigError, match=f"is not the journal of this check: {said}"):
            ringload.check(ImageFrame(many / "table.csv", size=(8, 8), **options), many / "report.csv")
    with pytest.raises(ConfigError, match="fast was False and is True"):
        ringload.check(ImageFrame(many / "table.csv", size=(8, 8)), many / "report.csv", fast=True)
    before = journal.read_bytes()
    with (many / "table.csv").open("a") as file:
        file.write("0.png\n")
    source = ImageFrame(many / "table.csv", size=(8, 8))
    with pytest.raises(ConfigError, match=r"the table has changed, or it is another one\. Delete it, or give --restart"):
        ringload.check(source, many / "report.csv")
    assert journal.read_bytes() == before
    found = ringload.check(source, many / "report.csv", workers=1, restart=True)
    assert (found.n_resumed, len(found)) == (0, 301)
    journal.write_bytes(b"\x80\x04 something else\n")
    with pytest.raises(ConfigError, match="it is no journal of ringload check"):
        ringload.check(source, many / "report.csv")
    assert journal.read_bytes() == b"\x80\x04 something else\n"


def records(first: int, n: int) -> np.ndarray:
    made = np.zeros(n, RECORD)
    made["n_bytes"] = np.arange(first, first + n)
    return made


def content(journal: Journal) -> tuple[list[int], dict[int, str]]:
    found: list[int] = []
    reasons: dict[int, str] = {}
    for entry, why in journal.read():
        found += entry["n_bytes"].tolist()
        reasons |= why
    return found, reasons


def test_what_was_not_written_to_its_end_is_cut_off(tmp_path: Path) -> None:
    """At each byte of the last entry; also one that is damaged, or in another's place. Then the journal goes on."""
    path, about = tmp_path / "j", {"source": "x"}
    journal = Journal(path, about)
    journal.append(0, records(0, 5), {3: "bad"})
    first_end = path.stat().st_size
    journal.append(5, records(5, 2), {6: "worse"})
    journal.close()
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[-20] ^= 1
    twice = whole[:first_end] + whole[len(json.dumps({**about, "ringload check": 1})) + 1 : first_end]
    for torn in [*(whole[:n] for n in range(first_end, len(whole))), bytes(damaged), twice]:
        path.write_bytes(torn)
        journal = Journal(path, about)
        assert content(journal) == (list(range(5)), {3: "bad"})
        journal.append(5, records(5, 3), {7: "again"})
        journal.close()
        journal = Journal(path, about)
        assert content(journal) == (list(range(8)), {3: "bad", 7: "again"})
        journal.close()
    for n in range(len(json.dumps(about))):  # killed within its first line
        path.write_bytes(whole[:n])
        journal = Journal(path, about)
        assert content(journal) == ([], {})
        journal.close()
    assert ENTRY.size == 12


def test_one_check_at_a_time_writes_a_journal(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", {})
    with pytest.raises(ConfigError, match="another check is writing"):
        Journal(tmp_path / "j", {}, restart=True)
    first.close()
    Journal(tmp_path / "j", {}).remove()
    assert not os.listdir(tmp_path)


# -- the command ----------------------------------------------------------------------------------------------------------


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(main, ["check", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_status_of_the_command(mixed: Path) -> None:
    code, output = call(mixed / "table.csv", "--label", "kind", "--workers", "1", "--report", mixed / "r.csv")
    assert code == 1, output
    for said in ("8 samples", "missing", "truncated", "none.jpg", "200", "1 of them with another label", "50.0%"):
        assert said in output
    assert len(pd.read_csv(mixed / "r.csv")) == 8
    table = pd.read_csv(mixed / "table.csv").iloc[:5]
    table.to_parquet(mixed / "good.parquet")
    assert call(mixed / "good.parquet", "--workers", "1")[0] == 0
    code, output = call(mixed / "good.parquet", "--workers", "1", "--strict")
    assert code == 1, output
    assert call(mixed / "good.parquet", "--workers", "1", "--fast")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nowhere.csv", "cannot read the table"),
        ("{0} --label kind", "--label: only for a table"),
        ("{0}/empty", "holds no image"),
        ("{0}/table.csv --path file", "no column 'file'"),
        ("{0}/table.csv --report {0}/r.txt", ".parquet or a .csv"),
        ("{0}/table.csv --ram 1MB", "the least that would do is"),
        ("{0}/table.csv --max-pixels 10", "--max-pixels=10 is less than the size"),
        ("{0}/table.csv --workers some", "not an integer"),
        ("{0}/none.tar", "none.tar: No such file"),
        ("{0}/none.tar.gz --root /", "--path and --root are for a table"),
        ("", "Missing argument"),
    ],
)
def test_wrong_usage_is_status_2(mixed: Path, arguments: str, said: str) -> None:
    (mixed / "empty").mkdir()
    code, output = call(*arguments.format(mixed).split())
    assert code == 2, output
    assert said in output
    assert "Traceback" not in output


def test_folders(mixed: Path, photos: Path) -> None:
    code, output = call(photos, "--workers", "1")
    assert code == 0, output
    assert "3 classes" in output
    code, output = call(mixed, "--workers", "1")  # a folder without classes
    assert code == 1, output
    assert "7 samples" in output


def test_shards(mixed: Path, tmp_path: Path) -> None:
    good, cut = (mixed / "a.jpg").read_bytes(), (mixed / "cut.jpg").read_bytes()
    (folder := tmp_path / "shards").mkdir()
    for number, contents in enumerate(([good, good], [good, cut])):
        with tarfile.open(folder / f"s-{number}.tar", "w") as shard:
            for place, content in enumerate(contents):
                for suffix, data in (("jpg", content), ("txt", b"class %d" % place)):
                    member = tarfile.TarInfo(f"{place:03d}.{suffix}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
    assert call(folder / "s-0.tar", "--workers", "1", "--label", "txt")[0] == 0
    for named in (folder, folder / "s-{0..1}.tar"):
        code, output = call(named, "--workers", "1", "--label", "txt")
        assert code == 1, output
        assert "truncated: " in output
        assert "s-1.tar" in output
        assert "001.jpg" in output
        assert "2 classes of label" in output
    (folder / "one.jpg").write_bytes(good)
    assert "1 samples" in call(folder, "--workers", "1")[1]  # a folder of images, with other files


@pytest.mark.fault
def test_ctrl_c_keeps_the_journal(many: Path, injected: Injected) -> None:
    command = [sys.executable, "-m", "ringload", "check", many / "table.csv", "--report", many / "report.csv", "--workers", "1"]
    checking = subprocess.Popen(command, cwd=WHERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    journal = many / "report.csv.journal"
    wait_for(lambda: checking.poll() is not None or (journal.exists() and journal.stat().st_size > 2000))
    checking.send_signal(signal.SIGINT)
    output, _ = checking.communicate(timeout=60)
    assert "Traceback" not in output
    if checking.returncode != 1 or journal.exists():  # else it was over before
        assert checking.returncode == 130
        assert "goes on there" in output
        assert journal.exists()
    code, output = call(many / "table.csv", "--report", many / "report.csv", "--workers", "1")
    assert code == 1
    assert pd.read_csv(many / "report.csv")["status"].eq("truncated").sum() == 43
    injected("Ctrl-C of a check", 1)


def wait_for(has_come: Callable[[], bool]) -> None:
    while not has_come():
        time.sleep(0.001)
