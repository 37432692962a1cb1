"""The extensions of ringload/images, compiled from the source that is tested, with flags of a test's own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
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
    library = ["-ljpeg"] if name == "_jpeg" else ["-lm"]
    has_headers = subprocess.run(
        ["gcc", "-E", f"-I{sysconfig.get_path('include')}", "-x", "c", "-"],
        input="#include <Python.h>\n" + ("#include <jpeglib.h>\n" if name == "_jpeg" else ""),
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


def check_sanitized(code: str, timeout_s: float) -> None:
    """Run a script that uses an extension compiled with `SANITIZED`: it must succeed, and the sanitizers find nothing."""
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "LD_PRELOAD": library}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **options}, timeout=timeout_s
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "runtime error" not in done.stderr


def load(path: Path) -> ModuleType:
    """Import the extension at `path`."""
    loader = ExtensionFileLoader(path.stem, str(path))
    spec = importlib.util.spec_from_loader(path.stem, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
