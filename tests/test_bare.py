"""Where only some packages are installed: what does not need the others runs, and what needs one says which, and what to do."""

from __future__ import annotations

import os
import subprocess
import textwrap
import venv
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ringload

BARE = ("numpy", "cloudpickle", "psutil")
MODULES = {  # of the packages that `pip install` brings besides
    "click": "click",
    "cykooz-resizer": "cykooz_resizer",
    "isal": "isal",
    "opencv-python-headless": "cv2",
    "pandas": "pandas",
    "pillow": "PIL",
    "rich": "rich",
    "simplejpeg": "simplejpeg",
    "xxhash": "xxhash",
}
IMAGES = "a source of images"
TABLE = "ringload.ImageFrame('photos.csv', label='multi', size=(32, 32))"
ARRAYS = "ringload.Loader(ringload.Arrays(x=np.arange(64)), 8, workers=2, ram_budget='200MB')"


def with_what_they_need(packages: Iterable[str]) -> set[str]:
    """The packages, and those that they need here."""
    found, todo = set(), list(packages)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            needed = map(Requirement, distribution(name).requires or ())
            todo += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


class Environment:
    """A virtual environment with ringload and some of the packages that are installed here, by links."""

    def __init__(self, folder: Path, packages: Iterable[str]) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        (self.site / "ringload").symlink_to(Path(ringload.__file__).parent)
        for name in with_what_they_need(packages):
            there = distribution(name)
            for top in {file.parts[0] for file in there.files or ()} - {"..", "__pycache__"}:
                (self.site / top).symlink_to(Path(str(there.locate_file(top))))

    def run(self, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a script there."""
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [self.python, "-c", f"import numpy as np\nimport ringload\n{textwrap.dedent(code)}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=environ)


def without(package: str, tmp_path: Path) -> Environment:
    """An environment that has all but one package."""
    return Environment(tmp_path / "venv", {*BARE, *MODULES} - {package})


@pytest.mark.parametrize("how", ["workers=2", "workers=2, start_method='spawn'", "workers=2, start_method='fork'", "workers=0"])
def test_arrays_need_numpy_cloudpickle_and_psutil_alone(how: str, tmp_path: Path) -> None:
    code = f"""
        import importlib.util
        there = [name for name in {[*MODULES.values(), "msgspec", "typing_extensions"]} if importlib.util.find_spec(name)]
        assert there == [], there
        x = np.arange(600).reshape(200, 3)
        source = ringload.Arrays(x=x, y=np.arange(200))
        with ringload.Loader(source, 16, ram_budget="200MB", last="keep", {how}) as loader:
            plan = str(loader.plan())
            for factor in (1, 2, 3):
                seen = []
                for batch in loader:
                    assert (batch["x"] == factor * (3 * batch["y"][:, None] + np.arange(3))).all()
                    seen += batch["y"].tolist()
                assert sorted(seen) == list(range(200))
                x *= factor + 1
                x //= factor  # which workers are given before the next epoch
            assert loader.stats.n_samples == 600, loader.stats
        print("done")
    """
    done = Environment(tmp_path / "venv", BARE).run(code, tmp_path)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_function_with_much_data_of_its_own_needs_no_more(tmp_path: Path) -> None:
    """A closure goes by cloudpickle; of lists and arrays that may change, hashes are kept."""
    code = """
        import cloudpickle
        names, table = [str(index) for index in range(3000)], np.arange(300_000)
        def load(index, rng, out):
            out["x"] = int(names[index]) + table[index]
        options = dict(fields={"x": ((), "int64")}, n_samples=3000, ram_budget="200MB")
        with ringload.Loader(load, 100, workers=2, **options) as loader:
            for shift in (0, 7):
                names[:] = [str(index + shift) for index in range(3000)]
                assert all((batch["x"] == 2 * batch.index + shift).all() for batch in loader)
        print("done")
    """
    done = Environment(tmp_path / "venv", BARE).run(code, tmp_path)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.parametrize(
    ("package", "part", "used"),
    [
        ("pandas", "a table", TABLE),
        ("pandas", "a table of tar shards", "ringload.TarShards('x.tar', size=(32, 32))"),
        ("pandas", "a folder of images", "ringload.ImageFolder('.', size=(32, 32))"),
        ("pillow", IMAGES, TABLE),
        ("opencv-python-headless", IMAGES, TABLE),
        ("simplejpeg", IMAGES, "ringload.ImageFolder('.', size=(32, 32))"),
        ("xxhash", "the fingerprint of a source, in a loader's state or of a table,", TABLE),
        (
            "xxhash",
            "the fingerprint of a source, in a loader's state or of a table,",
            f"with {ARRAYS} as loader: loader.state_dict()",
        ),
        ("cloudpickle", "a loader", ARRAYS),
        ("rich", "the command line", "import ringload.__main__"),
        ("click", "the command line", "import ringload.__main__"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_remedy(
    package: str, part: str, used: str, tmp_path: Path, photos: Path
) -> None:
    done = without(package, tmp_path).run(used, photos)
    module = MODULES.get(package, package)
    told = f"ImportError: {part} needs {package} (No module named '{module}'): pip install {package}"
    assert done.stderr.splitlines()[-1] == told


def test_without_cykooz_resizer_pillow_scales(tmp_path: Path, photos: Path) -> None:
    code = f"""
        from PIL import Image
        source = {TABLE}
        with ringload.Loader(source, 8, workers=2, ram_budget="300MB") as loader:
            for batch in loader:
                for row, index in enumerate(batch.index):
                    true = Image.open(source.filepaths[index]).resize((32, 32), Image.Resampling.BILINEAR)
                    assert np.abs(batch["image"][row].astype(int) - np.asarray(true)).mean() < 2
        print("done")
    """
    done = without("cykooz-resizer", tmp_path).run(code, photos)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_without_isal_zlib_inflates(tmp_path: Path, photos: Path) -> None:
    code = """
        from PIL import Image
        Image.linear_gradient("L").save("a.png")
        source = ringload.ImageFrame(pandas.DataFrame({"path": ["a.png"]}), size=(256, 256), color="gray")
        with ringload.Loader(source, 1, workers=1, ram_budget="300MB") as loader:
            assert (next(iter(loader))["image"][0, :, :, 0] == np.asarray(Image.open("a.png"))).all()
        print("done")
    """
    done = without("isal", tmp_path).run(f"import pandas\n{textwrap.dedent(code)}", tmp_path)
    assert (done.stdout, done.stderr) == ("done\n", "")


# -- two packages of OpenCV -----------------------------------------------------------------------------------------------


def claim_cv2(site: Path, package: str, record: str = "cv2/__init__.py,sha256=,1\n") -> None:
    """As pip does where a package is installed."""
    folder = site / f"{package}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\n")
    if record:
        (folder / "RECORD").write_text(f"cv2/LICENSE.txt,sha256=,1\n{record}")


USE = f"""
    source = {TABLE}
    for _ in range(2):
        with ringload.Loader({TABLE}, 8, workers=2, ram_budget="300MB") as loader:
            print(sum(len(batch.index) for batch in loader))
"""


def test_two_packages_of_opencv_in_one_folder_are_warned_of_once(tmp_path: Path, photos: Path) -> None:
    environment = without("", tmp_path)
    claim_cv2(environment.site, "opencv_contrib_python-4.12.0.88")
    done = environment.run(USE, photos)
    assert done.stdout == "24\n24\n"
    headless = f"opencv-python-headless {distribution('opencv-python-headless').version}"
    assert f"UserWarning: opencv-contrib-python 4.12.0.88 and {headless} are installed in one folder" in done.stderr
    assert "pip uninstall opencv-contrib-python opencv-python-headless, then pip install opencv-python-headless" in done.stderr
    assert done.stderr.count("pip uninstall") == 1


def test_one_package_of_opencv_whatever_it_is_called_is_no_clash(tmp_path: Path, photos: Path) -> None:
    """Nor is conda's, which is called opencv-python as well and has no file of that; nor one in a folder further behind."""
    environment = without("", tmp_path)
    claim_cv2(environment.site, "opencv_python-4.12.0", record="")
    (tmp_path / "later").mkdir()
    claim_cv2(tmp_path / "later", "opencv_python-4.12.0.88")
    (environment.site / "later.pth").write_text(f"{tmp_path / 'later'}\n")
    done = environment.run(USE, photos)
    assert (done.stdout, done.stderr) == ("24\n24\n", "")


def test_arrays_are_not_warned_of_it(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", BARE)
    for package in ("opencv_python-4.12.0.88", "opencv_python_headless-4.12.0.88"):
        claim_cv2(environment.site, package)
    done = environment.run(f"with {ARRAYS} as loader: print(len(list(loader)))", tmp_path)
    assert (done.stdout, done.stderr) == ("8\n", "")


@pytest.mark.parametrize(
    ("packages", "told"),
    [
        (["opencv_python-4.12.0.88", "opencv_python_headless-4.12.0.88"], "are installed in one folder"),
        (["opencv_python-4.12.0.88"], "opencv-python 4.12.0.88 is installed but cannot be imported"),
    ],
)
@pytest.mark.parametrize("left", ["nothing", "empty folder", "no library"])
def test_opencv_whose_files_are_not_whole_is_an_error_with_the_remedy(
    packages: list[str], told: str, left: str, tmp_path: Path, photos: Path
) -> None:
    """As after `pip uninstall` of one of two, or where libGL is not there."""
    environment = without("opencv-python-headless", tmp_path)
    for package in packages:
        claim_cv2(environment.site, package)
    if left != "nothing":
        (environment.site / "cv2").mkdir()
    if left == "no library":
        (environment.site / "cv2" / "__init__.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    last = environment.run(TABLE, photos).stderr.splitlines()[-1]
    assert last.startswith("ImportError: a source of images needs OpenCV")
    assert told in last
    assert "pip uninstall opencv-python" in last
    assert "then pip install opencv-python-headless" in last
