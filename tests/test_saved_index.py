"""An index in a file: it gives the same frame; what is damaged, of another table or another version is refused."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import ringload
from ringload import ConfigError, ImageFrame, Loader
from ringload.sources.saved_index import PREFIX, VERSION, _hash
from tests.conftest import Injected
from tests.helpers import content, photo, run
from tests.memory_storage import MemoryStorage

SIZE = (8, 8)
pytestmark = pytest.mark.filterwarnings("ignore:none of the first .* files of column")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of 30 files, with all kinds of labels."""
    rows = []
    for number in range(30):
        Image.fromarray(photo(number, 20, 30)).save(tmp_path / f"é{number}.png")
        some = ["a", "b", "c"][: number % 3 + 1]
        rows.append({"path": f"é{number}.png", "kind": "xyz"[number % 3], "n": number, "cm": number / 2, "some": some})
    table = pd.DataFrame(rows).assign(flag=lambda df: df["n"] % 2 == 0, p=1, q=lambda df: df["n"] % 2, w=0.5)
    table.drop(columns="some").to_csv(tmp_path / "table.csv", index=False)
    table.to_pickle(tmp_path / "table.pickle")
    return tmp_path


LABELS: dict[str, dict[str, Any]] = {
    "none": {},
    "classes": {"label": "kind"},
    "integers": {"label": "n"},
    "one-hot": {"label": "kind", "label_mode": "categorical"},
    "bools": {"label": "flag"},
    "numbers": {"label": "cm"},
    "lists": {"label": "some"},
    "columns": {"label": ["p", "q"]},
    "several, and weights": {"label": {"a": "kind", "b": "cm"}, "weight": "w"},
    "given": {"label": "kind", "classes": {"z": 0, "y": 1, "x": 2}},
}


def batches(source: ImageFrame, workers: int = 1) -> list[dict[str, bytes]]:
    with Loader(source, 4, workers=workers, seed=3, epochs=1, ram_budget="300MB") as loader:
        return content(batch.copy() for batch in loader)


@pytest.mark.parametrize("options", LABELS.values(), ids=LABELS)
def test_a_loaded_index_is_the_same_frame(folder: Path, options: dict[str, Any]) -> None:
    frame = ImageFrame(pd.read_pickle(folder / "table.pickle"), root=folder, size=SIZE, **options)
    frame.save_index(folder / "index")
    loaded = ImageFrame.load_index(folder / "index", size=SIZE)
    assert repr(loaded) == repr(frame)
    assert loaded.fields == frame.fields
    assert loaded.filepaths == frame.filepaths
    assert loaded.fingerprint() == frame.fingerprint()
    for one, other in zip(loaded.label_fields, frame.label_fields, strict=True):
        assert list(one.class_names) == list(other.class_names)
        assert list(map(type, one.class_names)) == list(map(type, other.class_names))
        np.testing.assert_array_equal(one.of_all(30), other.of_all(30))
    out: list[dict[str, np.ndarray]] = [{n: np.zeros(f.shape, f.dtype) for n, f in frame.fields.items()} for _ in range(2)]
    for index in range(30):
        frame.load(index, None, out[0])
        loaded.load(index, None, out[1])
        for name in frame.fields:
            np.testing.assert_array_equal(out[0][name], out[1][name])
    assert os.listdir(folder).count("index") == 1
    assert not list(folder.glob("*unfinished*"))


def test_workers_map_it_and_its_parts_and_states_go_on(folder: Path) -> None:
    frame = ImageFrame(folder / "table.csv", label="kind", size=SIZE)
    part = frame.split(0.5, by="kind")[1].subset(np.arange(14, -1, -1))
    part.save_index(folder / "index")
    loaded = ImageFrame.load_index(folder / "index", size=SIZE)
    assert batches(loaded) == batches(part)
    assert batches(loaded, workers=0) == batches(part)
    np.testing.assert_array_equal(loaded.rows, part.rows)
    assert loaded.subset([3, 1]).filenames == part.subset([3, 1]).filenames
    assert [len(one) for one in loaded.split(0.2)] == [12, 3]
    with Loader(part, 4, workers=0) as first, Loader(loaded, 4, workers=0) as second:
        next(iter(first))
        second.load_state_dict(first.state_dict())  # which compares fingerprints
    pickled = pickle.loads(pickle.dumps(loaded))  # by value, as a frame is
    assert batches(pickled, workers=0) == batches(part)
    again = folder / "again"
    loaded.save_index(again)  # an index of an index
    assert again.read_bytes() == (folder / "index").read_bytes()
    with pytest.raises(ConfigError, match="loaded from an index has none, either"):
        loaded.split(0.5, by="kind")


def test_large_arrays_are_shared_and_not_copied(folder: Path) -> None:
    """What is sent to workers names the file; their memory is the file's."""
    table = pd.DataFrame({"path": [f"é{n % 30}.png" for n in range(50_000)], "kind": np.arange(50_000) % 7})
    ImageFrame(table, label="kind", root=folder, size=SIZE).save_index(folder / "index")
    source = ImageFrame.load_index(folder / "index", size=SIZE)
    from ringload.packing.pack import pack

    packed = pack(source)
    assert packed.shared_bytes == 0
    assert len(packed.data) < 50_000
    with Loader(source, 4, workers=1, epochs=1, shuffle=False, ram_budget="300MB") as loader:
        first = next(iter(loader))
        assert first["label"].tolist() == [0, 1, 2, 3]
        first.release()
        table.iloc[::-1].to_csv(folder / "other.csv", index=False)  # another index takes the place of this one
        ImageFrame(folder / "other.csv", label="kind", size=SIZE).save_index(folder / "index")
        assert source.labels[:4].tolist() == [0, 1, 2, 3]
        assert source.filenames[:2] == ["é0.png", "é1.png"]


def test_a_worker_never_maps_another_index_by_the_same_name(folder: Path) -> None:
    """A worker that is started after the file was replaced raises; it does not load the other index's samples."""
    code = """
        import sys
        import numpy as np, pandas as pd, psutil
        import ringload
        folder = sys.argv[1]

        def index(kinds):
            paths = [folder + f"/é{n % 30}.png" for n in range(30_000)]
            frame = ringload.ImageFrame(pd.DataFrame({"path": paths, "kind": kinds}), label="kind", size=(8, 8))
            frame.save_index(folder + "/index")

        index(np.zeros(30_000, int))
        source = ringload.ImageFrame.load_index(folder + "/index", size=(8, 8))
        with ringload.Loader(source, 4, workers=1, ram_budget="300MB") as loader:
            batches = iter(loader)
            next(batches)
            index(np.arange(30_000) % 9)
            (worker,) = [one for one in psutil.Process().children(recursive=True) if one.name() == "ringload:0"]
            worker.kill()
            try:
                for batch in batches:
                    assert not batch["label"].any(), "of the other index"
                    batch.release()
            except Exception as error:
                print(type(error).__name__, "was replaced by another file" in str(error))
    """
    assert folder.exists()
    done = run(code, folder)
    assert done.stdout.endswith("True\n"), (done.stdout, done.stderr)


# -- what is refused --------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    ImageFrame(folder / "table.csv", label="kind", size=SIZE).save_index(folder / "index")
    return folder / "index"


def refused(path: Path, said: str, **options: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        ImageFrame.load_index(path, size=SIZE, **options)


def test_a_file_that_is_cut_short_is_refused(folder: Path) -> None:
    path = saved(folder)
    whole = path.read_bytes()
    for n in [*range(PREFIX.size + 1), *range(PREFIX.size, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:n])
        refused(path, "is no index of ringload|header is damaged or cut short|was cut short")
    path.write_bytes(whole + b"\0")
    refused(path, "was cut short")


def test_a_byte_that_is_wrong_is_found(folder: Path) -> None:
    """In each part of the file; only what fills up to the alignment may be anything."""
    path = saved(folder)
    whole = path.read_bytes()
    n_header = PREFIX.unpack_from(whole)[2]
    header = json.loads(whole[PREFIX.size : PREFIX.size + n_header])
    places = [PREFIX.size + n_header + array["start"] for array in header["arrays"].values()]
    for at in [*range(0, 24, 3), 30, PREFIX.size + n_header // 2, *places]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        refused(path, "is no index|version|header is damaged|checksum of its array")


def test_another_version_and_other_files_are_refused(folder: Path) -> None:
    path = saved(folder)
    whole = bytearray(path.read_bytes())
    whole[8:12] = struct.pack("<I", VERSION + 1)
    path.write_bytes(whole)
    refused(path, f"has version {VERSION + 1}, and this ringload reads version {VERSION}")
    refused(folder / "table.csv", "is no index of ringload: make one by source.save_index")
    refused(folder / "table.pickle", "is no index of ringload")
    refused(folder / "é0.png", "is no index of ringload")
    refused(folder / "none", "cannot be read: .*No such file")
    refused(folder, "cannot be read: .*directory")


def forged(path: Path, **changes: Any) -> None:
    """An index with another header, and the right checksum of it."""
    whole = path.read_bytes()
    magic, version, n_header, _ = PREFIX.unpack_from(whole)
    header = json.loads(whole[PREFIX.size : PREFIX.size + n_header]) | changes
    text = json.dumps({name: value for name, value in header.items() if value is not None}).encode()
    path.write_bytes(PREFIX.pack(magic, version, len(text), _hash(text)) + text + whole[PREFIX.size + n_header :])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "its header lacks something"),
        ({"scheme": "no"}, "no storage is registered for no"),
        ({"arrays": {"blob": {"dtype": "|O", "shape": [3], "start": 0, "checksum": ""}}}, "its array blob is none"),
        ({"arrays": {"blob": {"dtype": "<u8", "shape": [3000], "start": 0, "checksum": ""}}}, "its array blob is none"),
        ({"arrays": {"blob": {"dtype": "<u8", "shape": [3], "start": -64, "checksum": ""}}}, "its array blob is none"),
    ],
)
def test_a_header_of_other_code_is_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    path = saved(folder)
    forged(path, **changes)
    refused(path, said)


def test_an_index_of_another_table_is_refused(folder: Path) -> None:
    path = saved(folder)
    table = folder / "table.csv"
    text = table.read_text()
    os.utime(table, ns=(1, 1))  # copied, with the same content
    ImageFrame.load_index(path, size=SIZE)
    table.write_text(text.replace("é3.png,x", "é3.png,y"))  # of the same size
    assert table.stat().st_size == len(text.encode())
    refused(path, f"the table {table} is not as it was when the index was made")
    table.write_text(text + "é1.png,x,1,1,True,1,1,1\n")
    refused(path, "is not as it was")
    table.rename(folder / "moved.csv")  # the table need not be there
    assert len(ImageFrame.load_index(path, size=SIZE)) == 30
    refused(path, "is not as it was", table=folder / "moved.csv")
    (folder / "moved.csv").write_text(text)
    assert len(ImageFrame.load_index(path, size=SIZE, table=folder / "moved.csv")) == 30
    refused(path, "does not exist", table=folder / "none.csv")
    ImageFrame(pd.DataFrame({"path": ["a.png"]}), size=SIZE).save_index(path)
    refused(path, "made from a DataFrame", table=folder / "moved.csv")


def test_a_table_that_changed_since_it_was_read_is_not_saved(folder: Path) -> None:
    frame = ImageFrame(folder / "table.csv", label="kind", size=SIZE)
    os.utime(folder / "table.csv", ns=(1, 1))
    with pytest.raises(ConfigError, match="has changed since it was read"):
        frame.save_index(folder / "index")
    assert not (folder / "index").exists()


def test_what_cannot_be_saved_or_given(folder: Path) -> None:
    table = pd.DataFrame({"path": ["é0.png"] * 2, "day": pd.to_datetime(["2026-01-01", "2026-01-02"])})
    with pytest.raises(ConfigError, match=r"field 'label' has the class .* a datetime64; .*convert the column"):
        ImageFrame(table, label="day", root=folder, size=SIZE).save_index(folder / "index")
    path = saved(folder)
    for name in ("label", "classes", "weight", "read_options"):
        refused(path, f"takes no {name}=", **{name: "kind"})
    with pytest.raises(TypeError, match="colour"):
        ImageFrame.load_index(path, size=SIZE, colour="rgb")
    with pytest.raises(ConfigError, match="cannot be written"):
        ImageFrame(folder / "table.csv", size=SIZE).save_index(folder / "none" / "index")
    loaded = ImageFrame.load_index(path, size=(4, 5), flip=True, color="gray", dtype="float32")
    assert str(loaded.fields["image"]) == "(4, 5, 1) float32"
    assert loaded.augmentation["flip"] is True


@pytest.mark.fault
def test_a_run_that_is_killed_while_it_saves_leaves_the_former_index(folder: Path, injected: Injected) -> None:
    path = saved(folder)
    before = path.read_bytes()
    code = """
        import os, signal, sys
        import ringload
        frame = ringload.ImageFrame(sys.argv[1] + "/table.csv", size=(8, 8))
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
        frame.save_index(sys.argv[1] + "/index")
    """
    assert run(code, folder).returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(ImageFrame.load_index(path, size=SIZE)) == 30
    injected("kill of a run that saves an index", 1)


def test_relative_paths_start_at_another_root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = saved(folder)
    other = tmp_path_factory.mktemp("other")
    loaded = ImageFrame.load_index(path, size=SIZE, root=other)
    assert loaded.filepaths[0] == f"{other}/é0.png"
    ringload.register_storage("memory", _memory)
    refused(path, "scheme file", root="memory://x")
    refused(path, "no storage is registered for nix", root="nix://x")


def _memory() -> MemoryStorage:
    return MemoryStorage({f"memory://b/{n}.png": _png(n) for n in range(4)})


def _png(number: int) -> bytes:
    import io

    file = io.BytesIO()
    Image.fromarray(photo(number, 8, 8)).save(file, "PNG")
    return file.getvalue()


def test_urls(tmp_path: Path) -> None:
    ringload.register_storage("memory", _memory)
    ImageFrame(pd.DataFrame({"path": [f"{n}.png" for n in range(4)]}), root="memory://b", size=SIZE).save_index(
        tmp_path / "index"
    )
    loaded = ImageFrame.load_index(tmp_path / "index", size=SIZE)
    out = {"image": np.zeros((8, 8, 3), np.uint8)}
    for number in range(4):
        loaded.load(number, None, out)
        np.testing.assert_array_equal(out["image"], photo(number, 8, 8))


def test_without_pandas(folder: Path) -> None:
    saved(folder)
    code = """
        import sys
        import ringload
        source = ringload.ImageFrame.load_index(sys.argv[1] + "/index", size=(8, 8))
        with ringload.Loader(source, 4, workers=0) as loader:
            print(len(next(iter(loader))["label"]), "pandas" in sys.modules)
    """
    assert run(code, folder).stdout == "4 False\n"
