"""ringload/images/_jpeg.c and _png.c, compiled from the source that is tested, with flags of a test's own."""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

import pytest

SOURCES = Path(__file__).parent.parent / "ringload" / "images"
PLAIN = ("-O2",)
WITHOUT_VECTORS = ("-O2", "-DRINGLOAD_NO_AVX2")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def compiled(folder: Path, flags: tuple[str, ...] = PLAIN, name: str = "_jpeg") -> Path:
    """The extension; the test is skipped where the headers of libjpeg-turbo or of Python are missing."""
    library = ["-ljpeg"] if name == "_jpeg" else []
    has_headers = subprocess.run(
        ["gcc", "-E", f"-I{sysconfig.get_path('include')}", "-x", "c", "-"],
        input="#include <Python.h>\n" + ("#include <jpeglib.h>\n" if library else ""),
        capture_output=True,
        text=True,
    )
    if has_headers.returncode != 0:
        pytest.skip("headers of Python or of libjpeg-turbo are missing: apt-get install libjpeg62-turbo-dev")
    include = f"-I{sysconfig.get_path('include')}"
    path = folder / f"{name}.so"
    warnings = ("-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
    made = subprocess.run(
        [*["gcc", *flags, *warnings, "-fPIC", "-shared"], *[include, str(SOURCES / f"{name}.c"), "-o", str(path), *library]],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return path


def load(path: Path) -> ModuleType:
    """Import the extension at `path`."""
    loader = ExtensionFileLoader(path.stem, str(path))
    spec = importlib.util.spec_from_loader(path.stem, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
