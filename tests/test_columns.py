"""Reading the file of a table: what is missing in it, options, formats; and where its relative paths start."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from ringload import ConfigError, ImageFrame, Loader, SampleError
from ringload.insight.cli import main
from ringload.sources.columns import read_table
from tests.helpers import run

SIZE = (8, 8)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- names that pandas takes for missing ------------------------------------------------------------------------------


def test_names_such_as_na_are_names_in_a_column_of_strings(tmp_path: Path) -> None:
    words = ["NA", "None", "null", "nan", "n/a", "NULL", "<NA>", "NaN", "N/A", "-nan", "#N/A", "FR"]
    rows = "".join(f"{number}.png,{word}\n" for number, word in enumerate(words))
    table = read_table(written(tmp_path / "t.csv", f"path,country\n{rows}"))
    assert table["country"].tolist() == words
    with pytest.warns(UserWarning, match="none of the first"):
        assert set(ImageFrame(tmp_path / "t.csv", label="country", size=SIZE).class_names) == set(words)


def test_they_are_missing_in_columns_of_numbers_and_bools(tmp_path: Path) -> None:
    table = read_table(written(tmp_path / "t.csv", "i,f,b,s\n1,0.5,True,NA\nNA,nan,None,b\n3,,False,\n"))
    assert table["i"].isna().tolist() == [False, True, False]
    assert table["f"].isna().tolist() == [False, True, True]
    assert table["b"].isna().tolist() == [False, True, False]
    assert table["s"].isna().tolist() == [False, False, True]
    assert table["s"].tolist()[:2] == ["NA", "b"]
    assert (table["i"].dtype, table["f"].dtype) == (np.float64, np.float64)


def test_an_empty_cell_is_missing_and_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", 'path,kind\na.png,None\nb.png,\nc.png,""\n')
    with pytest.warns(UserWarning, match="none of"), pytest.raises(ConfigError, match=r"'kind' has 2 missing .* rows 1, 2"):
        ImageFrame(path, label="kind", size=SIZE)


def test_a_column_of_nothing_but_such_names_is_one_of_strings(tmp_path: Path) -> None:
    table = read_table(written(tmp_path / "t.csv", "a,b,c\nNA,,1\nNA,,2\n"))
    assert table["a"].tolist() == ["NA", "NA"]
    assert table["b"].isna().all()
    assert table["c"].tolist() == [1, 2]


def test_numbers_in_a_column_of_strings_stay_strings(tmp_path: Path) -> None:
    assert read_table(written(tmp_path / "t.csv", "a\n1\nNA\nx\n"))["a"].tolist() == ["1", "NA", "x"]


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        ("p;k\na;NA\nb;x\n", {"sep": ";"}, ["NA", "x"]),
        ("p,k\na,NA\nb,x\n", {"usecols": ["k", "p"]}, ["NA", "x"]),
        ("p,k\na,NA\nb,x\n", {"index_col": "p"}, ["NA", "x"]),
        ("p,k\na,NA\nb,x\n", {"index_col": 0}, ["NA", "x"]),
        ("a,NA\nb,x\n", {"names": ["p", "k"]}, ["NA", "x"]),
        ("# note\np,k\na,NA\nb,x\n", {"header": 0, "comment": "#"}, ["NA", "x"]),
        ("p,k\na,NA\nb,x\n", {"dtype": {"k": "category"}}, ["NA", "x"]),
        ("p,k\na,NA\nb,x\n", {"dtype": "string"}, ["NA", "x"]),
        ("p,k\na,1\nb,NA\n", {"dtype": {"k": str}}, ["1", "NA"]),
        ("p,k,w\na,NA,1\nb,x,NA\n", {"usecols": ["k", "w"], "dtype": {"w": "float32"}}, ["NA", "x"]),
        ("p,k\na,?\nb,x\n", {"na_values": ["?"]}, [None, "x"]),
        ("p,k\na,NA\nb,x\n", {"keep_default_na": True}, [None, "x"]),
        ("p,k\na,NA\nb,x\n", {"engine": "python"}, ["NA", "x"]),
    ],
    ids=str,
)
def test_options_are_those_of_pandas(tmp_path: Path, text: str, options: dict[str, Any], wanted: list[Any]) -> None:
    got = read_table(written(tmp_path / "t.csv", text), options)["k"]
    assert [None if missing else value for value, missing in zip(got, got.isna(), strict=True)] == wanted


def test_a_first_column_without_a_name_is_the_index_as_in_pandas(tmp_path: Path) -> None:
    table = read_table(written(tmp_path / "t.csv", "k,n\na,NA,7\nb,x,8\n"))
    assert (table["k"].tolist(), table["n"].tolist(), table.index.tolist()) == (["NA", "x"], [7, 8], ["a", "b"])


def test_a_table_given_as_a_frame_is_taken_as_it_is() -> None:
    table = pd.DataFrame({"path": ["a"], "k": [None]})
    with pytest.warns(UserWarning, match="none of"), pytest.raises(ConfigError, match="keep_default_na=False"):
        ImageFrame(pd.DataFrame({"path": ["a", "b"], "k": ["x", None]}), label="k", size=SIZE)
    assert read_table(table) is table
    with pytest.raises(ConfigError, match="read_options are for the file of a table, and df is a DataFrame"):
        read_table(table, {"sep": ";"})


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix",
    [".csv", ".CSV", ".csv.csv", ".tsv.csv", ".tsv", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zip", ".tsv.gz", ".parquet"],
)
def test_tables_of_each_kind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    table = pd.DataFrame({"path": ["a.png", "b.png"], "kind": ["x, y", "z"]})
    text = table.to_csv(index=False, sep="\t" if suffix.startswith(".tsv") and not suffix.endswith("csv") else ",").encode()
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix.endswith("zip"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("table.csv", text)
    else:
        pack: dict[str, Any] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
        path.write_bytes(pack.get(path.suffix, bytes)(text))
    for form in (path, str(path)):
        assert read_table(form).to_dict("list") == table.to_dict("list")


def test_some_columns_of_a_parquet_file(tmp_path: Path) -> None:
    pd.DataFrame({"path": ["a"], "k": ["x"], "large": ["y"]}).to_parquet(tmp_path / "t.parquet")
    assert list(read_table(tmp_path / "t.parquet", {"columns": ["path", "k"]})) == ["path", "k"]


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("t.txt", b"", None, r"neither \.csv nor \.parquet"),
        ("csv", b"", None, r"neither \.csv nor \.parquet"),
        ("t.csv.tar", b"", None, r"neither \.csv nor \.parquet"),
        ("t.csv.bak", b"", None, r"neither \.csv nor \.parquet"),
        ("t.csv", b"path\n\xfc.png\n", None, r"read_options=\{'encoding': 'latin-1'\}"),
        ("t.csv", b"path\na\n", {"seperator": ";"}, "cannot read the table .*seperator"),
        ("t.csv", b"path\na\n", {"chunksize": 10}, r"\['chunksize'\] pandas gives a TextFileReader, not a DataFrame"),
        ("t.csv", b"path\na\n", "sep=;", "read_options is a dict"),
        ("t.csv", b"", None, "cannot read the table .*EmptyDataError"),
        ("t.csv.gz", b"no gzip", None, "cannot read the table"),
        ("t.csv.zip", b"no zip", None, "cannot read the table"),
        ("t.csv.xz", b"no xz", None, "cannot read the table"),
        ("t.parquet", b"no parquet", None, "cannot read the table"),
        ("t.csv", b'path\n"a\n', None, "cannot read the table"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes, options: Any, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_table(tmp_path / name, options)


def test_an_encoding_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path;kind\nü.png;ä\n".encode("latin-1"))
    with pytest.warns(UserWarning, match="none of the first"):
        source = ImageFrame(tmp_path / "t.csv", label="kind", size=SIZE, read_options={"sep": ";", "encoding": "latin-1"})
    assert (source.filenames, source.class_names) == (["ü.png"], ["ä"])


@pytest.mark.parametrize("url", ["https://example.org/t.csv", "s3://bucket/t.parquet", "file:///t.csv", "s3:/a.csv"])
def test_the_url_of_a_table_is_refused_in_words(url: str) -> None:
    with pytest.raises(ConfigError, match=f"the table is given as the URL '{url}', and URLs are not read: read it by pandas"):
        ImageFrame(url, size=SIZE)


def test_what_is_no_table_at_all() -> None:
    for wrong in (3, [1], np.zeros(3), b"t.csv", None):
        with pytest.raises(ConfigError, match="df is a DataFrame or the path of"):
            read_table(wrong)


# -- where relative paths start ---------------------------------------------------------------------------------------


def test_relative_paths_of_a_file_start_at_its_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    monkeypatch.setenv("HOME", str(photos.parent))
    relative = Path(photos.name) / "photos.csv"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in (relative, str(photos / "photos.csv"), f"~/{relative}"):
            assert ImageFrame(form, label="multi", size=SIZE).filepaths[0] == str(photos / "a/00.jpg")
        table = pd.read_csv(relative)
        assert ImageFrame(table, root=photos.name, size=SIZE).filepaths[0] == str(photos / "a/00.jpg")
        assert ImageFrame(relative, root=f"~/{photos.name}", size=SIZE).filepaths[0] == str(photos / "a/00.jpg")
        monkeypatch.chdir(photos)
        assert ImageFrame(table, size=SIZE).filepaths[0] == str(photos / "a/00.jpg")


def test_paths_that_started_at_the_working_directory_are_refused_in_words(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text((photos / "photos.csv").read_text())
    monkeypatch.chdir(photos)
    with pytest.raises(
        ConfigError, match=r"start at the folder of that file. To start at the working directory, give root='.'"
    ):
        ImageFrame(tmp_path / "t.csv", size=SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ImageFrame(tmp_path / "t.csv", root=".", size=SIZE).filepaths[0] == str(photos / "a/00.jpg")


def test_the_demo_and_the_api_take_paths_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two places both look at that of the table, where the file is not, and say that it is at the other."""
    written(tmp_path / "data" / "t.csv", "path,multi\na.png,x\n")
    written(tmp_path / "a.png", "")
    monkeypatch.chdir(tmp_path)
    said = f"'{tmp_path}/data/a.png' does not exist, but '{tmp_path}/a.png' does"
    with pytest.raises(ConfigError, match=said):
        ImageFrame("data/t.csv", label="multi", size=SIZE)
    result = CliRunner().invoke(main, ["demo", "--frame", "data/t.csv"])
    assert result.exit_code == 1
    assert said in result.output


# -- paths that lead nowhere ------------------------------------------------------------------------------------------


def table(*paths: Any) -> pd.DataFrame:
    return pd.DataFrame({"path": pd.Series(paths, [f"row {n}" for n in range(len(paths))], dtype=object)})


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no://bucket/a.png", r"has 'no://bucket/a.png' in row row 1: no storage is registered for no://"),
        ("https://example.org/a.png", "its scheme is not that of the first path"),
        ("gs://b/a.png", "its scheme is not that of the first path"),
        ("hdfs+x.y-z://b/a.png", "no storage is registered for hdfs"),
        (Path("s3://bucket/a.png"), "has 's3:/bucket/a.png' in row row 1: a URL that has lost a slash"),
        (Path("file:///data/a.png"), "give the path itself, '/data/a.png'"),
        ("file://host/data/a.png", "give the path itself, '/host/data/a.png'"),
        ("C:\\data\\a.png", "a path of Windows, and this is Linux"),
        ("d:/data/a.png", "a path of Windows"),
        ("\\\\server\\share\\a.png", "a path of Windows"),
        (b"s3://bucket/a.png", "has 's3://bucket/a.png' in row row 1"),
    ],
)
def test_paths_of_another_kind_are_refused_in_words(path: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        ImageFrame(table("a.png", path), size=SIZE)
    assert "b'" not in str(raised.value)


@pytest.mark.parametrize(
    ("root", "said"), [("no://bucket", "no storage is registered"), ("C:\\data", "a path of Windows"), (3, "root is the path")]
)
def test_roots_of_another_kind_are_refused_in_words(root: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ImageFrame(table("a.png"), root=root, size=SIZE)


def test_names_that_only_look_like_these_are_files(tmp_path: Path, photos: Path) -> None:
    names = ["12:30:00.jpg", "~x.jpg", "a:b/c.jpg", "back\\slash.jpg", "~nobody-of-that-name/x.jpg", "a~/x.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((photos / "a/00.jpg").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = ImageFrame(table(*names), root=tmp_path, size=SIZE)
    assert source.filepaths == [f"{tmp_path}/{name}" for name in names]
    with Loader(source, len(names), workers=0, shuffle=False) as loader:
        assert len(next(iter(loader))["image"]) == len(names)


def test_a_home_is_expanded(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = ImageFrame(
            table("~/a/00.jpg", "~root/x.png", str(photos / "b/01.jpg")), root="/nowhere", size=SIZE, max_pixels=10**6
        )
        assert source.filenames == ["~/a/00.jpg", "~root/x.png", str(photos / "b/01.jpg")]
    assert source.filepaths == [str(photos / "a/00.jpg"), f"{os.path.expanduser('~root')}/x.png", str(photos / "b/01.jpg")]
    part = source.subset([0, 2])
    monkeypatch.setenv("HOME", "/elsewhere")  # as it was when the table was given, in each process
    batches = []
    for workers in (0, 1, 2):
        with Loader(part, 2, workers=workers, ram_budget="300MB", seed=1) as loader:
            batches.append(next(iter(loader))["image"].tobytes())
    assert len(set(batches)) == 1


@pytest.mark.parametrize(
    ("frame", "root", "said"),
    [
        (
            table("a.png", "b.png"),
            "/nonexist",
            "none of the first 2 files .*'/nonexist/a.png'; relative paths start at root='/nonexist'",
        ),
        (table("a.png"), None, "relative paths start at the working directory, as no root= is given"),
        (table("/nonexist/a.png"), None, r"No such file or directory: '/nonexist/a.png'\. Such samples will be bad samples"),
        (table("x\\a.png"), None, "it has backslashes: on Linux, folders are separated by /"),
        (table(*["nix.png"] * 10), None, "none of the first 5 files"),
        (table(b"raw\xff.png"), None, r"raw\\udcff.png"),
    ],
)
def test_a_warning_says_that_no_file_is_there(frame: pd.DataFrame, root: str | None, said: str) -> None:
    with pytest.warns(UserWarning, match=said) as warned:
        ImageFrame(frame, root=root, size=SIZE)
    assert (len(warned), warned[0].filename) == (1, __file__)


def test_half_of_the_files_are_enough_and_few_are_looked_for(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    stat = os.stat

    def counted(path: Any, **options: Any) -> os.stat_result:
        looked.append(path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", counted)
    paths = [*(f"{n}.png" for n in range(40_000)), *["a/00.jpg"] * 60_000]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFrame(pd.DataFrame({"path": paths}), root=photos, size=SIZE)
    assert len(looked) <= 25


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_is_not_there_is_named_in_text(photos: Path, workers: int) -> None:
    paths = ["a/00.jpg", "s3/ü.png", "x\\y.png", *["a/00.jpg"] * 20_000]
    paths[11_111] = "s3://bucket/late.png"  # between those that are looked at when the table is given
    source = ImageFrame(pd.DataFrame({"path": paths}), root=photos, size=SIZE, max_pixels=10**6).subset([0, 1, 2, 11_111])
    said = {}
    with Loader(source, 1, workers=workers, shuffle=False, ram_budget="300MB") as loader:
        iterator = iter(loader)
        next(iterator)
        for index in (1, 2, 3):
            with pytest.raises(SampleError) as raised:
                next(iterator)
            said[index] = str(raised.value)
    assert f"No such file or directory: '{photos}/s3/ü.png'" in said[1]
    assert "it has backslashes: on Linux, folders are separated by /" in said[2]
    assert "(its scheme is not that of the first path, and all paths of a table must have one scheme)" in said[3]
    assert not any("b'" in one for one in said.values())


def test_bytes_of_images_are_no_paths(photos: Path) -> None:
    content = (photos / "a/00.jpg").read_bytes()
    with pytest.raises(
        ConfigError, match=r"row row 0 has the [\d,]+ bytes of an image \(JPEG\), and no path\. .* load\(index, rng, out\)"
    ) as raised:
        ImageFrame(table(content), size=SIZE)
    assert len(str(raised.value)) < 300
    pixels = np.zeros((9, 9, 3), np.uint8)
    for given, said in (
        (bytearray(content), r"has the [\d,]+ bytes of an image \(JPEG\)"),
        (b"no\0image", "has 8 bytes with NULs, maybe the content of a file, and no path"),
        ({"bytes": content, "path": None}, "has a dict with the bytes of an image, .* and no path. ImageFrame reads"),
        ({"bytes": None, "path": "a/00.jpg"}, r"has a dict .*df\[column\]\.str\['path'\] are those\. ImageFrame reads"),
        (pixels, r"has an image \(numpy\.ndarray\), and no path"),
        (Image.fromarray(pixels), r"has an image \(PIL\.Image\.Image\), and no path"),
        (3, "is 3: a path is a str, bytes or a Path"),
    ):
        with pytest.raises(ConfigError, match=f"row row 0 {said}") as raised:
            ImageFrame(table(given), size=SIZE)
        assert len(str(raised.value)) < 400
    table(content)[["path"]].to_parquet(photos / "t.parquet")
    with pytest.raises(ConfigError, match=r"the [\d,]+ bytes of an image \(JPEG\), and no path"):
        ImageFrame(str(photos / "t.parquet"), size=SIZE)


def test_warnings_name_the_line_of_the_users_script(tmp_path: Path) -> None:
    script = written(
        tmp_path / "s.py", "import pandas as pd, ringload\nringload.ImageFrame(pd.DataFrame({'path': ['a']}), size=(8, 8))\n"
    )
    done = run("import runpy, sys; runpy.run_path(sys.argv[1])", script)
    assert f"{script}:2: UserWarning: none of the first" in done.stderr
