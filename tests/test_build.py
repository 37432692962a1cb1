"""The wheel: with the extension where libjpeg-turbo's headers are, and without it elsewhere; the same pixels, and a word."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import photo
from tests.native import compiled

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PARTS = ("ringload", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
CHILD = """
import sys
import numpy as np
import ringload
from ringload.images.decoder import ImageDecoder
from ringload.images.geometry import Geometry
assert ringload.__file__.startswith(sys.argv[1]), ringload.__file__
row = np.zeros((50, 40, 3), np.uint8)
decoder = ImageDecoder(Geometry(50, 40, "random_crop"), flip=True)
with open(sys.argv[2], "rb") as file:
    decoder.load(file.read(), np.random.default_rng(3), row)
sys.stdout.write(row.tobytes().hex())
"""
VERSION = "from ringload.insight.cli import main; main(['--version'])"


def test_with_and_without_the_headers(tmp_path: Path) -> None:
    compiled(tmp_path)  # or the test is skipped
    path = tmp_path / "a.jpg"
    file = io.BytesIO()
    Image.fromarray(photo(1, 120, 90)).save(file, "JPEG")
    path.write_bytes(file.getvalue())
    said: list[str] = []
    pixels: list[str] = []
    for name, flags in (("with", ""), ("without", "-include /nonexistent/jpeglib.h")):
        checkout, folder = tmp_path / name, tmp_path / f"installed {name}"
        checkout.mkdir()
        for part in PARTS:
            copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copied(ROOT / part, checkout / part)
        for built in checkout.rglob("*.so"):
            built.unlink()
        done = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", checkout / "dist", "."],
            cwd=checkout,
            capture_output=True,
            text=True,
            env={**os.environ, "CFLAGS": flags},
        )
        assert done.returncode == 0, done.stderr
        (wheel,) = (checkout / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            assert any(one.endswith(".so") for one in packed.namelist()) == (name == "with")
            assert "ringload/images/_jpeg.pyi" in packed.namelist()
            packed.extractall(folder)
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        for code, results in ((CHILD, pixels), (VERSION, said)):
            command = [sys.executable, "-c", code, folder, path]
            ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
            assert ran.returncode == 0, ran.stderr
            results.append(ran.stdout)
    assert pixels[0] == pixels[1] != ""
    assert "JPEG: libjpeg-turbo" in said[0]
    assert "apt-get install libjpeg62-turbo-dev" in said[1]
    assert "apt-get" not in said[0]
