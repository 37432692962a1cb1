"""Parquet files: images and numbers, which workers read by row groups."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import ConfigError, Loader, ParquetImages, ParquetTable, SampleError, mix
from ringload.sources.fingerprints import difference, fingerprint_of
from ringload.sources.parquet_files import RowGroups
from tests.helpers import truth
from tests.tables import NAMES, ROOM, SIZE, N, check_epoch, open_files, png

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
WORKERS: list[dict[str, Any]] = [{"workers": 0}, {"workers": 2, "kills": 2}, {"workers": 1, "start_method": "fork"}]
SPLIT = 33  # rows of the first file; its row groups have 8, 8, 8, 8 and 1 rows


def table(rows: range = range(N), *, as_struct: bool = False) -> Any:
    images = [png(row) for row in rows]
    return pa.table(
        {
            "words": [f"w{row}" for row in rows],
            "image": [{"bytes": image, "path": "x.png"} for image in images] if as_struct else images,
            "label": [NAMES[row % 3] for row in rows],
            "number": pa.array(rows, pa.int16()),
            "pair": [[row, row + 0.5] for row in rows],
        }
    )


def stored(folder: Path, *, as_struct: bool = False, made: Any = None, **options: Any) -> Path:
    """Two files of one table."""
    whole = table(as_struct=as_struct) if made is None else made
    for name, part in (("a", whole.slice(0, SPLIT)), ("b", whole.slice(SPLIT))):
        pq.write_table(part, folder / f"{name}.parquet", row_group_size=8, **options)
    return folder


def images(folder: Path, **options: Any) -> ParquetImages:
    return ParquetImages(folder, label="label", classes=NAMES, columns=["number", "pair"], size=SIZE, window=2, **options)


@pytest.mark.parametrize("options", WORKERS, ids=str)
def test_images_by_row_groups(tmp_path: Path, options: dict[str, Any]) -> None:
    source = images(stored(tmp_path))
    assert len(pickle.dumps(source)) < 10_000
    check_epoch(source, **options)
    assert check_epoch(source, workers=options["workers"], shuffle=False) == list(range(N))


@pytest.mark.parametrize("options", WORKERS[:2], ids=str)
def test_numbers_by_row_groups(tmp_path: Path, options: dict[str, Any]) -> None:
    source = ParquetTable(stored(tmp_path), ["number", "pair"])
    check_epoch(source, **options)
    train = source.split(0.3)[0]
    check_epoch(train, train.rows.tolist(), workers=0)


def test_a_row_group_is_read_once_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the source's own order. Another order reads one for nearly each sample."""
    read, of_group = list[int](), RowGroups.read

    def noting(self: RowGroups, group: int) -> Any:
        read.append(group)
        return of_group(self, group)

    monkeypatch.setattr(RowGroups, "read", noting)
    source = images(stored(tmp_path))
    read.clear()
    first = check_epoch(source, workers=0, epochs=1)
    assert sorted(read) == list(range(9))  # 5 row groups and 4
    assert len({index // 8 for index in first[:8]}) == 2  # mixed
    assert first != sorted(first)
    read.clear()
    check_epoch(source, workers=0, order="shuffle", epochs=1)
    assert len(read) > 30
    train = source.subset(np.random.default_rng(0).permutation(N)[:40])
    read.clear()
    check_epoch(train, train.rows.tolist(), workers=0, epochs=1)
    assert sorted(read) == sorted({np.searchsorted([0, 8, 16, 24, 32, 33, 41, 49, 57], row, "right") - 1 for row in train.rows})


def test_parts_of_a_mix(tmp_path: Path) -> None:
    source = images(stored(tmp_path))
    made = mix({"a": source.subset(range(20)), "b": source.subset(range(20, 60))}, weights={"a": 0.5, "b": 0.5})
    with Loader(made, 5, workers=0, epochs=1, **ROOM) as loader:
        for batch in loader:
            rows = [int(index) for index in batch.index]
            np.testing.assert_array_equal(batch["number"], rows)
            np.testing.assert_array_equal(batch["image"], [truth(row) for row in rows])


def test_tables_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [{"bytes": png(row), "path": None} for row in range(N)], "label": [row % 3 for row in range(N)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    source = ParquetImages(tmp_path / "a.parquet", label="label", size=SIZE)
    assert source.class_names == NAMES
    check_epoch(source, workers=0)


def test_how_files_are_named(tmp_path: Path) -> None:
    stored(tmp_path)
    for paths in (tmp_path, f"{tmp_path}/*.parquet", [tmp_path / "a.parquet", str(tmp_path / "b.parquet")]):
        assert len(ParquetTable(paths, ["number"])) == N
    for given, said in (
        (tmp_path / "c.parquet", "cannot read .*c.parquet as a Parquet file: .*No such file"),
        (f"{tmp_path}/*.parq", "there is no Parquet file in"),
        ([], "paths is an empty list"),
    ):
        with pytest.raises(ConfigError, match=said):
            ParquetTable(given)
    (tmp_path / "z.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"cannot read .*z.parquet as a Parquet file"):
        ParquetTable(tmp_path)
    pq.write_table(table().drop_columns("pair"), tmp_path / "z.parquet")
    with pytest.raises(ConfigError, match=r"z.parquet has other columns than .*a.parquet, such as"):
        ParquetTable(tmp_path)


def test_columns_that_cannot_be_used(tmp_path: Path) -> None:
    stored(tmp_path)
    with pytest.raises(ConfigError, match="column 'words' is of string, and no column of images"):
        ParquetImages(tmp_path, "words", size=SIZE)
    with pytest.raises(ConfigError, match="column 'image' has images: give size="):
        ParquetImages(tmp_path)
    with pytest.raises(ConfigError, match="there is no column 'img'"):
        ParquetImages(tmp_path, "img", size=SIZE)
    with pytest.raises(ConfigError, match=r"there is no column 'lable'.*did you mean 'label'"):
        ParquetImages(tmp_path, label="lable", size=SIZE)
    with pytest.raises(ConfigError, match="column 'words' is of string"):
        ParquetTable(tmp_path, ["words"])
    with pytest.warns(UserWarning, match=r"'words' is of string.*columns=\['number', 'pair'\]"):
        assert list(ParquetTable(tmp_path).fields) == ["number", "pair"]


def test_a_damaged_row_group_is_its_rows_alone(tmp_path: Path) -> None:
    path = stored(tmp_path, compression="gzip", use_dictionary=False) / "a.parquet"
    source = images(tmp_path)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(1)
    with path.open("r+b") as raw:
        raw.seek(chunk.data_page_offset + 60)
        raw.write(b"\xff" * (chunk.total_compressed_size - 60))
    with (
        Loader(source, 5, workers=0, **ROOM) as made,
        pytest.raises(SampleError, match=r"a\.parquet has changed since the source"),
    ):
        list(made)
    source = images(tmp_path)
    with Loader(source, 10, workers=2, on_error="skip", **ROOM) as made:
        seen = [int(index) for batch in made for index in batch.index[batch["valid"]]]
    assert sorted(seen) == [row for row in range(N) if not 8 <= row < 16]
    said = pytest.raises(SampleError, match=r"a\.parquet, row 8.*row group 1 of .*a\.parquet, column image: ")
    with Loader(source, 1, workers=0, shuffle=False, **ROOM) as made, said:
        list(made)


def test_files_that_are_deleted_or_cut_short(tmp_path: Path) -> None:
    source, numbers = images(stored(tmp_path)), ParquetTable(tmp_path, ["number"])
    os.truncate(tmp_path / "b.parquet", 1000)
    for one in (source, numbers):
        with (
            Loader(one, 5, workers=0, **ROOM) as made,
            pytest.raises(SampleError, match=r"b\.parquet has changed since the source"),
        ):
            list(made)
    (tmp_path / "b.parquet").unlink()
    with (
        Loader(source, 5, workers=1, **ROOM) as made,
        pytest.raises(SampleError, match=r"No such file or directory: .*b\.parquet"),
    ):
        list(made)


def test_rows_that_are_not_as_the_first(tmp_path: Path) -> None:
    whole = table()
    ragged = whole.set_column(4, "pair", [[[row, row + 0.5] + [0.0] * (row == 50) for row in range(N)]])
    numbers = ParquetTable(stored(tmp_path, made=ragged), ["number", "pair"])
    with Loader(numbers, 5, workers=0, on_error="skip", **ROOM) as made:
        assert 50 not in {int(index) for batch in made for index in batch.index[batch["valid"]]}
    cells = [None if row == 7 else b"" if row == 9 else png(row) for row in range(N)]
    source = images(stored(tmp_path, made=whole.set_column(1, "image", [cells])))
    with Loader(source, 5, workers=0, on_error="skip", **ROOM) as made:
        seen = {int(index) for batch in made for index in batch.index[batch["valid"]]}
    assert seen == set(range(N)) - {7, 9}


def test_a_dictionary_that_unpacks_to_too_much(tmp_path: Path) -> None:
    """One image for all rows is stored once, and would be decoded to 1,500 copies."""
    image = png(0) + bytes(1 << 16)
    pq.write_table(pa.table({"image": [image] * 1500}), tmp_path / "a.parquet")
    source = ParquetImages(tmp_path / "a.parquet", size=SIZE)
    assert source.ahead_bytes < 64 << 20
    with Loader(source, 5, workers=0, **ROOM) as made, pytest.raises(SampleError, match=r"decodes to more than .*dictionary"):
        next(iter(made))


def test_row_groups_that_the_budget_has_no_room_for(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [os.urandom(1 << 21) for _ in range(24)]}), tmp_path / "a.parquet", row_group_size=24)
    source = ParquetImages(tmp_path / "a.parquet", size=SIZE)
    assert source.ahead_bytes > 90 << 20
    said = pytest.raises(ConfigError, match=r"a row group may take .* raise ram_budget, lower workers")
    with said, Loader(source, 4, workers=2, ram_budget="400MB") as made:
        next(iter(made))


def test_a_state_is_of_these_files(tmp_path: Path) -> None:
    source = images(stored(tmp_path))
    with Loader(source, 7, workers=0, **ROOM) as made:
        batches = iter(made)
        next(batches)
        state, then = made.state_dict(), [batch.index.tolist() for batch in batches]
    with Loader(images(tmp_path), 7, workers=1, **ROOM) as made:
        made.load_state_dict(state)
        assert [batch.index.tolist() for batch in made] == then
    other = table().take([*range(1, N), 0])
    stored(tmp_path, made=other)
    again = images(tmp_path)
    assert difference(fingerprint_of(source), fingerprint_of(again), again)
    del source, again, made, batches
    gc.collect()
    assert not open_files(tmp_path)
