"""Walks through folders of images, one for each class.

Folders with links are a graph, not a tree: a link to a folder above makes a cycle. First each class is walked without links:
these folders belong to the class. Then its links are followed, in sorted order.
Guarantees:
1. The walk ends: for one class no folder (st_dev, st_ino) is walked twice.
2. A link to the root, to a folder above it, or to a folder that belongs to another class is skipped, and a warning names it.
3. A file (st_dev, st_ino) is one sample of a class, however many links and hard links the class has to it. Its path is one
   without a link, if there is one; else the first in sorted order.
4. A file that is in two classes, by links or hard links, is a sample of each, and a warning names it.
5. A warning names each broken link. If its name has a suffix of images, it is a bad sample.
6. Files without a suffix of images are skipped, and a warning counts them by suffix. Hidden files are not counted.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ringload.checks import listed, warn
from ringload.errors import ConfigError
from ringload.images.formats import SUFFIXES

MAX_NAMED, MAX_SUFFIX = 5, 20  # suffixes of skipped files, and characters of one

Key = tuple[int, int]  # st_dev, st_ino


@dataclass
class _Class:
    """What was found of one class: paths relative to the root, and the files' inode numbers as in their folders."""

    paths: list[str] = field(default_factory=list)
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    by_link: bytearray = field(default_factory=bytearray)  # whether a link leads there
    broken: list[str] = field(default_factory=list)  # broken links with a suffix of images
    links: list[str] = field(default_factory=list)  # to be followed
    walked: set[Key] = field(default_factory=set)

    def add(self, path: str, inode: int, by_link: bool) -> None:
        self.paths.append(path)
        self.inodes.append(inode)
        self.by_link.append(by_link)


class Walk:
    """Finds the images of a folder of classes."""

    def __init__(self, root: str, follow_links: bool) -> None:
        self._root, self._follow_links = root, follow_links
        folder = Path(os.path.realpath(root))
        self._above = {_key(path.stat()) for path in (folder, *folder.parents)}
        self._owner: dict[Key, str] = {}  # a folder without links -> its class
        self._skipped: list[str] = []  # links, by guarantee 2
        self._broken: list[str] = []
        self._no_images: Counter[str] = Counter()  # files by their suffix

    def class_folders(self) -> list[str]:
        """The names of the classes, sorted. A link to the root, to a folder above it or to another class is no class."""
        with _entries(self._root) as entries:
            shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
        plain = [entry.name for entry in shown if entry.is_dir(follow_symlinks=False)]
        owners = {_key(os.stat(os.path.join(self._root, name))): name for name in plain}
        linked = []
        for entry in shown:
            if not self._follow_links or not entry.is_symlink():
                continue
            status = self._status(entry.name)
            if status is None or not stat.S_ISDIR(status.st_mode):
                continue
            key = _key(status)
            if (other := owners.get(key)) in linked:
                raise ConfigError(f"in {self._root}, {other} and {entry.name} are links to one folder: a folder is one class")
            if key in self._above or other is not None:
                self._skipped.append(entry.name)
                continue
            owners[key] = entry.name
            linked.append(entry.name)
        self._owner = owners
        return sorted(plain + linked)

    def images(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The images of each class, as paths relative to the root, sorted.

        Raises:
            ConfigError: a class has none, or a folder cannot be read.
        """
        classes = {name: _Class() for name in names}
        for name, one in classes.items():
            self._walk(name, one, name, os.path.islink(os.path.join(self._root, name)), is_own=True)
        for name, one in classes.items():
            while self._follow_links and one.links:
                links, one.links = sorted(one.links), []
                for link in links:
                    self._follow(link, one, name)
        several = _in_two_classes(list(classes.values()), self._root)
        for name, one in classes.items():
            _keep_once(one, self._root)
            if not one.paths and not one.broken:
                raise ConfigError(f"{os.path.join(self._root, name)} holds no image ({', '.join(SUFFIXES)})")
        self._warn_of_findings(several)
        return {name: sorted(one.paths + one.broken) for name, one in classes.items()}

    def _walk(self, start: str, one: _Class, name: str, by_link: bool, is_own: bool) -> None:
        """Note the images and the links of a folder, and of the folders in it, for class `name`."""
        left = [start]
        while left:
            path = left.pop()
            with _entries(os.path.join(self._root, path)) as entries:
                key = _key(os.stat(os.path.join(self._root, path)))
                if is_own:
                    self._owner.setdefault(key, name)
                elif key in one.walked:
                    continue
                elif key in self._above or self._owner.get(key, name) != name:
                    self._skipped.append(path)
                    continue
                one.walked.add(key)
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    inner = f"{path}/{entry.name}"
                    if entry.is_symlink():
                        one.links.append(inner)
                    elif entry.is_dir(follow_symlinks=False):
                        left.append(inner)
                    elif _is_image(entry.name):
                        one.add(inner, entry.inode(), by_link)
                    else:
                        self._no_images[_suffix(entry.name)] += 1

    def _follow(self, link: str, one: _Class, name: str) -> None:
        status = self._status(link)
        if status is None:
            if _is_image(link):
                one.broken.append(link)
        elif stat.S_ISDIR(status.st_mode):
            self._walk(link, one, name, by_link=True, is_own=False)
        elif _is_image(link):
            one.add(link, status.st_ino, by_link=True)
        else:
            self._no_images[_suffix(link)] += 1

    def _status(self, link: str) -> os.stat_result | None:
        """The status of a link's target; None for a broken link."""
        try:
            return os.stat(os.path.join(self._root, link))
        except OSError:
            self._broken.append(link)
            return None

    def _warn_of_findings(self, several: list[tuple[str, str]]) -> None:
        if self._skipped:
            warn(
                f"in {self._root}, links to folders above or to folders of another class are skipped: "
                f"{listed(self._skipped)}. follow_links=False skips all links"
            )
        if self._broken:
            warn(f"in {self._root}, links are broken: {listed(self._broken)}. Those with a suffix of images are bad samples")
        if several:
            shown = listed([f"{first} = {second}" for first, second in several])
            warn(
                f"in {self._root}, {len(several):,} files are in two classes, by links: {shown}. Each is a sample of both. "
                "follow_links=False skips links"
            )
        if n_files := self._no_images.total():
            named = self._no_images.most_common(MAX_NAMED)
            counts = [f"{n:,} of {suffix}" for suffix, n in named]
            if n_others := n_files - sum(n for _, n in named):
                counts.append(f"and {n_others:,} others")
            warn(
                f"{n_files:,} files in {self._root} are skipped, since their names have no suffix of images: "
                f"{', '.join(counts)}"
            )


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()[:MAX_SUFFIX] or "no suffix"


def _key(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


def _entries(folder: str) -> Any:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise ConfigError(f"cannot read the folder {folder}: {error.strerror}") from error


def _same_files(inodes: np.ndarray, paths: Sequence[str], by_link: Sequence[int], root: str) -> list[list[int]]:
    """Groups of two or more paths of the same file, those without a link first.

    Only files with the same inode number are looked at. Some file systems give one number to several files: two paths without a
    link are one file only if it has several hard links (st_nlink).
    """
    order = np.argsort(inodes, kind="stable")
    same = np.zeros(len(order) + 1, bool)
    same[1:-1] = np.diff(inodes[order]) == 0
    groups: dict[Key, list[int]] = {}
    n_names: dict[Key, int] = {}
    for i in order[same[1:] | same[:-1]].tolist():
        status = os.stat(os.path.join(root, paths[i]))
        groups.setdefault(_key(status), []).append(i)
        n_names[_key(status)] = status.st_nlink
    return [
        sorted(group, key=lambda i: (by_link[i], paths[i]))
        for key, group in groups.items()
        if len(group) > 1 and (n_names[key] > 1 or any(by_link[i] for i in group))
    ]


def _keep_once(one: _Class, root: str) -> None:
    """Drop all but one path of each file of a class, by guarantee 3."""
    groups = _same_files(np.array(one.inodes, np.uint64), one.paths, one.by_link, root)
    dropped = {i for group in groups for i in group[1:]}
    if dropped:
        one.paths = [path for i, path in enumerate(one.paths) if i not in dropped]


def _in_two_classes(classes: list[_Class], root: str) -> list[tuple[str, str]]:
    """For each file that is in several classes: its paths in two of them."""
    inodes = np.concatenate([np.array(one.inodes, np.uint64) for one in classes])
    paths = [path for one in classes for path in one.paths]
    by_link = b"".join(one.by_link for one in classes)
    ends = np.cumsum([len(one.paths) for one in classes])
    found = []
    for group in _same_files(inodes, paths, by_link, root):
        of = np.searchsorted(ends, group, side="right").tolist()
        other = next((i for i, k in zip(group, of, strict=True) if k != of[0]), None)
        if other is not None:
            found.append((paths[group[0]], paths[other]))
    return sorted(found)
