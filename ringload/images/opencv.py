"""OpenCV: four packages install the same module, `cv2`. Any one of them works; two in one folder damage each other.

    opencv-python, opencv-python-headless, opencv-contrib-python, opencv-contrib-python-headless

pip installs one over the files of another, so that their versions mix, and when it removes one, it removes files of the other.
conda's OpenCV has the metadata of all four, and one set of files: so only packages that list `cv2` in their RECORD count.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from ringload.checks import warn
from ringload.errors import missing

PACKAGE = "opencv-python-headless"


def packages() -> list[list[str]]:
    """The packages with a `cv2`, such as "opencv-python 4.12.0.88", in each folder of `sys.path` that has any.

    The names of folders tell: importlib.metadata takes 20 ms to import.
    """
    found = []
    for folder in dict.fromkeys(sys.path):
        there = [one for one in sorted(Path(folder).glob("opencv_*.dist-info")) if _wrote_cv2(one)]
        if there:
            found.append([" ".join(one.stem.split("-")[:2]).replace("_", "-") for one in there])
    return found


def _wrote_cv2(dist_info: Path) -> bool:
    try:
        return "\ncv2/__init__.py," in "\n" + (dist_info / "RECORD").read_text()
    except OSError:
        return False


@functools.cache
def warn_of_two() -> None:
    """Warn once a process if two packages share the `cv2` that is imported, which is that of the first folder."""
    first = next(iter(packages()), [])
    if len(first) > 1:
        warn(f"{_clash(first)} Until then images may be decoded wrongly or not at all")


def unusable(part: str, error: ImportError) -> ImportError:
    """The error for a `cv2` that cannot be imported, or only in part: it names the installed packages and the remedy."""
    first = next(iter(packages()), [])
    if not first:
        return missing(part, PACKAGE, error)
    if len(first) > 1:
        return ImportError(f"{part} needs OpenCV, which cannot be imported ({error}): {_clash(first)}", name="cv2")
    name = first[0].partition(" ")[0]
    return ImportError(
        f"{part} needs OpenCV, and {first[0]} is installed but cannot be imported ({error}). If it lacks a display "
        f"library such as libGL, or lost files when another package was removed: pip uninstall {name}, then "
        f"pip install {PACKAGE}",
        name="cv2",
    )


def _clash(names: list[str]) -> str:
    only = " ".join(name.partition(" ")[0] for name in names)
    return (
        f"{' and '.join(names)} are installed in one folder and have the same module cv2: one has overwritten files of the "
        f"other. Keep only one: pip uninstall {only}, then pip install {PACKAGE}."
    )
