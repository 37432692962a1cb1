"""What is handed on: the sdist has all that git has, a page of an index shows the README whole, and no address is invented."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ringload

ROOT = Path(__file__).parent.parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files that git has."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metadata and the list of files of an sdist that is made of the files that git has."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "egg_info"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return folder / "ringload.egg-info"


def test_an_sdist_has_all_that_git_has(tracked: list[str], built: Path) -> None:
    assert set(tracked) - set((built / "SOURCES.txt").read_text().splitlines()) == set()


def test_the_metadata_are_complete_and_name_no_address(built: Path) -> None:
    said = email.message_from_string((built / "PKG-INFO").read_text())
    assert (said["Name"], said["Version"], said["Author"]) == ("ringload", ringload.__version__, "ringload developers")
    assert (said["License-Expression"], said["License-File"]) == ("Apache-2.0", "LICENSE")
    assert said["Keywords"]
    classifiers = said.get_all("Classifier") or []
    assert [one for one in classifiers if one.startswith("Development Status :: ")]
    assert [one.split(" :: ")[-1] for one in classifiers if "Python :: 3." in one] == PYTHONS
    assert said["Home-page"] is said["Project-URL"] is said["Author-email"] is None
    assert len((ROOT / "LICENSE").read_text()) == 11_358  # of Apache-2.0, as the Apache foundation has it


def test_the_readme_has_no_link_that_an_index_cannot_follow() -> None:
    """A relative one leads nowhere there, and there is no address yet that an absolute one could have."""
    readme = (ROOT / "README.md").read_text()
    assert [link for link in re.findall(r"\]\(([^)]*)\)|(?:src|srcset|href)=", readme) if not link.startswith("https://")] == []


def test_no_message_installs_ringload_from_an_index() -> None:
    """It is on none. A message names the packages that are missing."""
    texts = [ROOT / "README.md", *(path for part in ("ringload", "bench", "examples") for path in (ROOT / part).rglob("*.py"))]
    assert [
        str(path) for path in texts if re.search(r"ringload\[|(pip|uv|poetry) (install|add) '?ringload", path.read_text())
    ] == []
