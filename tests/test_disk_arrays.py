"""Arrays on disk: their rows are read by the workers, each of which opens them again; or they are refused in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringload import Arrays, BudgetError, ConfigError, Field, Loader, SampleError
from ringload.sources.fingerprints import difference, fingerprint_of
from tests.helpers import run_quietly

h5py = pytest.importorskip("h5py")

TRUTH = np.arange(200 * 6, dtype="f4").reshape(200, 2, 3)
WORKERS: list[dict[str, Any]] = [{"workers": 0}, {"workers": 2}, {"workers": 2, "start_method": "fork"}]


def hdf5(path: Path, **options: Any) -> Path:
    """A file with the dataset g/x, which is TRUTH."""
    with h5py.File(path, "w") as file:
        file.create_dataset("g/x", data=TRUTH, **options)
    return path


def open_files() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}


def check(source: Arrays, truth: np.ndarray = TRUTH, **options: Any) -> None:
    """Verify every row of an epoch in another order, and of one in the source's."""
    for shuffle in (True, False):
        with Loader(source, 7, shuffle=shuffle, last="keep", ram_budget="400MB", **options) as loader:
            seen = []
            for batch in loader:
                np.testing.assert_array_equal(batch["x"], truth[batch.index])
                seen += batch.index.tolist()
            assert sorted(seen) == list(range(len(truth)))


@pytest.mark.parametrize("options", WORKERS, ids=str)
@pytest.mark.parametrize("stored", [{}, {"chunks": (9, 2, 3), "compression": "gzip"}], ids=["plain", "chunks"])
def test_rows_of_hdf5(tmp_path: Path, options: dict[str, Any], stored: dict[str, Any]) -> None:
    """Of a file that is open meanwhile, too, as workers that are forked inherit it."""
    path = hdf5(tmp_path / "a.h5", **stored)
    with h5py.File(path) as file:
        source = Arrays(x=file["g/x"], y=np.arange(200))
        assert source.fields == {"x": Field((2, 3), "f4"), "y": Field((), "i8")}
        check(source, **options)
    check(source, **options)  # it is not the dataset of the user's that is read


def test_a_damaged_chunk_is_its_rows_alone(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", chunks=(9, 2, 3), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["g/x"].id.get_chunk_info(3)
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    with h5py.File(path) as file:
        source = Arrays(x=file["g/x"])
    damaged = set(range(27, 36))
    with Loader(source, 10, workers=2, on_error="skip", ram_budget="400MB") as loader:
        seen: list[int] = []
        for batch in loader:
            rows = batch.index[batch["valid"]]
            np.testing.assert_array_equal(batch["x"][batch["valid"]], TRUTH[rows])
            seen += rows.tolist()
    assert sorted(seen) == sorted(set(range(200)) - damaged)
    said = pytest.raises(SampleError, match=r"sample 27.*a\.h5, dataset /g/x: .*filter")
    with Loader(source, 1, workers=1, shuffle=False, ram_budget="400MB") as loader, said:
        list(loader)


@pytest.mark.parametrize("truth", [TRUTH.astype(">f4"), TRUTH > 3, TRUTH[:, 0, 0], TRUTH.astype("S7")], ids=str)
def test_every_dtype_of_hdf5(tmp_path: Path, truth: np.ndarray) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = truth
    with h5py.File(tmp_path / "a.h5") as file:
        source = Arrays(x=file["x"])
    assert source.fields["x"].dtype == truth.dtype
    check(source, truth, workers=1)


def test_the_trainer_reads_nothing(tmp_path: Path) -> None:
    """Not when the source is made, nor later: these 400 TB of zeros have no place in its memory."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        huge = file.create_dataset("x", (10**9, 10**5), "f4", chunks=(1, 10**5))
        huge[3], huge[10**9 - 1] = 5, 7
    with h5py.File(tmp_path / "a.h5") as file:
        source = Arrays(x=file["x"])
    with Loader(source, 4, workers=1, shuffle=False, ram_budget="400MB") as loader:
        stream = iter(loader)
        assert next(stream)["x"].tolist() == [[0] * 10**5] * 3 + [[5] * 10**5]
        loader.close()
    assert not any("a.h5" in name for name in open_files())


def test_links_lead_to_the_file_that_has_it(tmp_path: Path) -> None:
    hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["external"] = h5py.ExternalLink("a.h5", "/g/x")
        file["soft"] = h5py.SoftLink("/external")
    with h5py.File(tmp_path / "b.h5") as file:
        check(Arrays(x=file["external"]), workers=1)
        with pytest.raises(
            ConfigError, match=r"is not the dataset '/soft' of .*a\.h5 any more: .* an external link leads to the dataset"
        ):
            Arrays(x=file["soft"])


def test_a_relative_name_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hdf5(tmp_path / "a.h5")
    monkeypatch.chdir(tmp_path)
    with h5py.File("a.h5") as file:
        source = Arrays(x=file["g/x"])
        monkeypatch.chdir("/")
        check(source, workers=1)
        with pytest.raises(ConfigError, match=r"cannot be opened again: .*'/a\.h5'"):
            Arrays(x=file["g/x"])


def test_hdf5_that_workers_cannot_read(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["words"], file["empty"], file["number"] = ["a", "b"], h5py.Empty("f4"), 3
    with h5py.File(tmp_path / "b.h5") as file:
        for given, said in (
            (file["words"], "'x' is of object, maybe strings or lists of any length.*np.char.encode"),
            (file["empty"], "'/empty' of .* is empty"),
            (file["number"], "single number"),
            (file, "of type h5py.File: give an h5py.Dataset"),
            (file["number"].astype("f8"), "of type h5py.AsTypeView: give an h5py.Dataset"),
        ):
            with pytest.raises(ConfigError, match=said):
                Arrays(x=given)
    for options, said in (
        (
            {"mode": "r", "driver": "core"},
            r"driver='core', which workers cannot open again.*without a driver, or give x\[:\]",
        ),
        ({"mode": "r+"}, r"a\.h5, which is open for writing.*close it, and open it by h5py\.File\(path, 'r'\)"),
    ):
        with h5py.File(path, **options) as file, pytest.raises(ConfigError, match=said):
            Arrays(x=file["g/x"])
    with open(path, "rb") as raw, h5py.File(raw) as file, pytest.raises(ConfigError, match="driver='fileobj'"):
        Arrays(x=file["g/x"])
    with h5py.File(path) as file:
        dataset = file["g/x"]
    with pytest.raises(ConfigError, match="HDF5 file that is closed"):
        Arrays(x=dataset)


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5")
    with h5py.File(path) as file:
        source = Arrays(x=file["g/x"])
        os.replace(hdf5(tmp_path / "b.h5"), path)
        with pytest.raises(ConfigError, match="is not the dataset '/g/x' of"):
            Arrays(x=file["g/x"])
    with (
        Loader(source, 5, workers=1) as loader,
        pytest.raises(SampleError, match=r"a\.h5 has changed since the source was made"),
    ):
        next(iter(loader))


ZARR = """
import sys
import numpy as np, zarr
import ringload

truth = np.arange(200 * 6, dtype="f4").reshape(200, 2, 3)
def stored(store):
    made = zarr.open_array(store, mode="w", shape=truth.shape, chunks=(9, 2, 3), dtype="f4")
    made[:] = truth
    return made
stored(sys.argv[1] + ".zarr")
source = ringload.Arrays(x=zarr.open_array(sys.argv[1] + ".zarr", mode="r"))
for options in ({"workers": 0}, {"workers": 2}, {"workers": 2, "start_method": "fork"}):
    with ringload.Loader(source, 7, last="keep", ram_budget="600MB", **options) as loader:
        seen = []
        for batch in loader:
            assert (batch["x"] == truth[batch.index]).all()
            seen += batch.index.tolist()
        assert sorted(seen) == list(range(200)), options
try: ringload.Arrays(x=zarr.array(truth))
except ringload.ConfigError as error: print(error)
"""


def test_rows_of_zarr(tmp_path: Path) -> None:
    """In an interpreter of its own, as zarr leaves a thread and descriptors."""
    pytest.importorskip("zarr")
    said = run_quietly(ZARR, tmp_path / "x")
    assert said.startswith("array 'x' is of type zarr.Array in memory (")
    assert said.endswith("), which each worker would copy: give x[:], if all of it fits into memory\n")


class Cubes:
    """Rows by arithmetic; as dask and xarray have it, an object that is pickled."""

    shape, dtype = (200, 2), "int64"

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def __getitem__(self, rows: slice) -> Any:
        if self.fault == "error":
            raise KeyError("no rows")
        numbers = np.arange(rows.start, rows.stop)
        return np.stack([numbers**3, numbers], axis=1).astype("i4" if self.fault == "dtype" else "i8")


def test_rows_of_any_object_that_has_a_shape_and_a_dtype() -> None:
    check(Arrays(x=Cubes()), np.stack([np.arange(200) ** 3, np.arange(200)], axis=1), workers=2)
    for fault, said in (("error", "no rows"), ("dtype", r"x\[0:1\] is \(1, 2\) int32, of an array that is \(200, 2\) int64")):
        with pytest.raises(ConfigError, match=f"of type tests.Cubes, whose rows NumPy cannot read: .*{said}"):
            Arrays(x=Cubes(fault))


class OfOneProcess(Cubes):
    """As a store in memory: in another process there are zeros, as if nothing had ever been written."""

    def __init__(self) -> None:
        super().__init__()
        self.pid = os.getpid()

    def __getitem__(self, rows: slice) -> Any:
        return (super().__getitem__(rows) + 1) * (os.getpid() == self.pid)


def test_a_store_that_workers_do_not_see_is_no_zeros() -> None:
    source = Arrays(x=OfOneProcess())
    with Loader(source, 4, workers=0, shuffle=False) as loader:
        assert next(iter(loader))["x"][0].tolist() == [1, 1]
    said = "row 0 of the OfOneProcess is not what it was when the source was made"
    with Loader(source, 4, workers=1) as loader, pytest.raises(SampleError, match=said):
        next(iter(loader))


def test_fingerprints_are_those_of_the_content(tmp_path: Path) -> None:
    """The same as of an array in memory with as many blocks; and another one where a row differs."""
    path = hdf5(tmp_path / "a.h5")
    with h5py.File(path) as file:
        on_disk = Arrays(x=file["g/x"])
    assert fingerprint_of(on_disk) == fingerprint_of(Arrays(x=TRUTH))
    with h5py.File(hdf5(tmp_path / "b.h5"), "r+") as file:
        file["g/x"][100, 1, 1] = -1
    with h5py.File(tmp_path / "b.h5") as file:
        other = Arrays(x=file["g/x"])
    assert "have other content" in difference(
        fingerprint_of(on_disk_again := Arrays(x=TRUTH)), fingerprint_of(other), on_disk_again
    )


def test_the_chunk_that_a_row_lies_in_is_in_the_plan(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (100, 10**6), "u1", chunks=(50, 10**6))[7] = 7
    with h5py.File(tmp_path / "a.h5") as file:
        source = Arrays(x=file["x"], small=np.arange(100))
    chunk_bytes = 50 * 10**6
    assert 2 * chunk_bytes <= source.scratch_bytes <= 2 * chunk_bytes + (2 << 20)
    with Loader(source, 2, workers=2, ram_budget="400MB", shuffle=False) as loader:
        plan = loader.plan()
        assert plan.n_workers * plan.scratch_bytes + plan.exclusive_bytes >= source.scratch_bytes
        assert next(iter(loader))["x"].max() == 0
    with pytest.raises(BudgetError, match=r"the largest sample 102\.\d MB"):
        Loader(source, 2, workers=2, ram_budget="150MB")
    assert Arrays(x=np.zeros((5, 3))).scratch_bytes == 0
