"""OpenCV: four packages have the same module, `cv2`. Any one of them will do; two in one folder do not go together.

    opencv-python, opencv-python-headless, opencv-contrib-python, opencv-contrib-python-headless

pip installs one over the files of another, so that their versions mix; and where it removes one, it removes files of the
other. conda's OpenCV says that it is all of them, and has its files once: so only those count whose list of files has `cv2`.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from ringload.checks import warn
from ringload.errors import missing

PACKAGE = "opencv-python-headless"


def packages() -> list[list[str]]:
    """The packages that have a `cv2`, such as "opencv-python 4.12.0.88": those of each folder of `sys.path` that has any.

    Told by the names of folders, as importlib.metadata takes 20 ms to import.
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
    """Once a process, if two packages share the `cv2` of one folder. The first folder's is the one that is imported."""
    first = next(iter(packages()), [])
    if len(first) > 1:
        warn(f"{_clash(first)} Until then images may be decoded wrongly or not at all")


def unusable(part: str, error: ImportError) -> ImportError:
    """The error where `cv2` cannot be imported, or not all of it: with the packages that should have it, and what to do."""
    first = next(iter(packages()), [])
    if not first:
        return missing(part, PACKAGE, error)
    if len(first) > 1:
        return ImportError(f"{part} needs OpenCV, which cannot be imported ({error}): {_clash(first)}", name="cv2")
    name = first[0].partition(" ")[0]
    return ImportError(
        f"{part} needs OpenCV, and {first[0]} is installed but cannot be imported ({error}). If it lacks a library of the "
        f"screen, such as libGL, or files of it were removed with another package: pip uninstall {name}, then "
        f"pip install {PACKAGE}",
        name="cv2",
    )


def _clash(names: list[str]) -> str:
    only = " ".join(name.partition(" ")[0] for name in names)
    return (
        f"{' and '.join(names)} are installed in one folder, and have the same module cv2: each has overwritten files of the "
        f"other. Keep one, whichever you like: pip uninstall {only}, then pip install {PACKAGE}."
    )
